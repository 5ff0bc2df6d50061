//! Whether the messages of one direction are numbered one after another: a pure value that is fed chunks.

use std::{fmt, mem, sync::Arc};

use thalweg_proto::{
    field::{FieldError, FieldPath, FieldPaths, FieldValue, FieldWalker},
    frame::{Event, FrameError, FrameInspector},
};

use super::settings::Fields;

/// What holds for every stream of one direction of a route.
#[derive(Debug)]
pub(super) struct Rules {
    /// The paths, as the walker takes them: the number first.
    paths: FieldPaths,
    list: Vec<FieldPath>,
    /// Where the other paths stand in the list.
    payload: Option<usize>,
    initial: Option<usize>,
    begin: Begin,
    first: u64,
}

/// What a stream with an initial message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With that message and no other.
    WithInitial,
    /// With that message or a payload.
    Either,
}

/// Judges each message of one stream when its last byte is seen. After a fault it is of no more use.
#[derive(Debug)]
pub(super) struct Judge {
    rules: Arc<Rules>,
    frames: FrameInspector,
    fields: FieldWalker,
    seen: Seen,
    /// Messages found sound.
    sound: u64,
    expected: u64,
}

// One lives in every direction of every stream that is checked.
const _: () = assert!(size_of::<Judge>() <= 328);

/// What the current message has had so far.
#[derive(Debug, Default)]
struct Seen {
    /// As protobuf has it: the last one wins, and where there is none it is 0.
    number: u64,
    /// How often each path of the list was there.
    times: [u8; PATHS],
}

/// The number, the payload and the initial message.
const PATHS: usize = 3;
const NUMBER: usize = 0;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// In which message of the stream, counted from 1.
    pub(super) message: u64,
    pub(super) kind: Kind,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    BadNumber { got: u64, expected: u64 },
    NoInitial(FieldPath),
    LateInitial(FieldPath),
    Twice(FieldPath),
    Both(FieldPath, FieldPath),
    Neither(FieldPath, Option<FieldPath>),
    WrongType(FieldPath),
    BadField(FieldError),
    BadFrame(FrameError),
    Compressed,
    Truncated,
}

// === impl Rules ===

impl Rules {
    pub(super) fn new(fields: &Fields, begin: Begin) -> Arc<Self> {
        let mut list = vec![fields.number.0];
        let mut place = |path| {
            list.push(path);
            list.len() - 1
        };
        let payload = fields.payload.map(|field| place(field.0));
        let initial = fields.initial.map(|field| place(field.0));
        Arc::new(Self {
            paths: FieldPaths::new(&list)
                .expect("fields that were read are three at most, none twice"),
            list,
            payload,
            initial,
            begin,
            first: fields.first.0,
        })
    }

    /// Judges a whole message; true if it has a number, and the right one.
    fn judge(&self, seen: &Seen, is_first: bool, expected: u64) -> Result<bool, Kind> {
        for place in [self.initial, self.payload].into_iter().flatten() {
            if seen.times[place] > 1 {
                return Err(Kind::Twice(self.list[place]));
            }
        }
        if let Some(place) = self.initial {
            let initial = self.list[place];
            match (seen.times[place] > 0, self.payload) {
                (true, Some(payload)) if seen.times[payload] > 0 => {
                    return Err(Kind::Both(initial, self.list[payload]));
                }
                (true, _) if is_first => return Ok(false),
                (true, _) => return Err(Kind::LateInitial(initial)),
                (false, _) if is_first && self.begin == Begin::WithInitial => {
                    return Err(Kind::NoInitial(initial));
                }
                (false, _) => {}
            }
        }
        if let Some(place) = self.payload
            && seen.times[place] == 0
        {
            return Err(Kind::Neither(
                self.list[place],
                self.initial.map(|place| self.list[place]),
            ));
        }
        match seen.number {
            got if got == expected => Ok(true),
            got => Err(Kind::BadNumber { got, expected }),
        }
    }
}

// === impl Judge ===

impl Judge {
    pub(super) fn new(rules: Arc<Rules>) -> Self {
        Self {
            frames: FrameInspector::new(),
            fields: FieldWalker::new(rules.paths.clone()),
            seen: Seen::default(),
            sound: 0,
            expected: rules.first,
            rules,
        }
    }

    /// Looks at the next chunk, which may be passed on if nothing is wrong in it.
    pub(super) fn inspect(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let Self {
            rules,
            frames,
            fields,
            seen,
            sound,
            expected,
        } = self;
        for event in frames.inspect(chunk) {
            let outcome = match event {
                Ok(Event::Start(head)) if head.compressed => Err(Kind::Compressed),
                Ok(Event::Start(_)) => Ok(()),
                Ok(Event::Payload { start, end }) => seen.read(&chunk[start..end], fields, rules),
                Ok(Event::End) => fields
                    .finish()
                    .map_err(Kind::BadField)
                    .and_then(|()| rules.judge(&mem::take(seen), *sound == 0, *expected))
                    .map(|has_number| {
                        *sound += 1;
                        *expected = expected.wrapping_add(has_number.into());
                    }),
                Err(error) => Err(Kind::BadFrame(error)),
            };
            outcome.map_err(|kind| Fault {
                message: *sound + 1,
                kind,
            })?;
        }
        Ok(())
    }

    /// Says that the stream has ended.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        if self.is_at_boundary() {
            return Ok(());
        }
        Err(Fault {
            message: self.sound + 1,
            kind: Kind::Truncated,
        })
    }

    /// Whether the stream may end here.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.frames.is_at_boundary()
    }
}

// === impl Seen ===

impl Seen {
    fn read(
        &mut self,
        payload: &[u8],
        fields: &mut FieldWalker,
        rules: &Rules,
    ) -> Result<(), Kind> {
        let mut wrong_type = None;
        let walked = fields.walk(payload, |event| match (event.path, event.value) {
            (NUMBER, FieldValue::Varint(number)) => self.number = number,
            (NUMBER, _)
            | (_, FieldValue::Varint(_) | FieldValue::Fixed32(_) | FieldValue::Fixed64(_)) => {
                wrong_type.get_or_insert(event.path);
            }
            (path, FieldValue::Start { .. }) => {
                self.times[path] = self.times[path].saturating_add(1);
            }
            (_, FieldValue::Bytes { .. } | FieldValue::End) => {}
        });
        // What came first in the message is told first, wherever the chunks are cut.
        match wrong_type {
            Some(path) => Err(Kind::WrongType(rules.list[path])),
            None => walked.map_err(Kind::BadField),
        }
    }
}

// === impl Kind ===

/// What a message that is wrong does, as the rest of a sentence.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadNumber { got, expected } => {
                write!(
                    f,
                    "has a bad sequence number: got {got}, expected {expected}"
                )
            }
            Self::NoInitial(initial) => {
                write!(
                    f,
                    "has no field {initial}: the first message must be the initial one"
                )
            }
            Self::LateInitial(initial) => {
                write!(
                    f,
                    "has field {initial}: only the first message may be the initial one"
                )
            }
            Self::Twice(field) => write!(f, "has field {field} more than once"),
            Self::Both(one, other) => write!(f, "has both field {one} and field {other}"),
            Self::Neither(payload, Some(initial)) => {
                write!(f, "has neither field {initial} nor field {payload}")
            }
            Self::Neither(payload, None) => write!(f, "has no field {payload}"),
            Self::WrongType(field) => write!(f, "has a field {field} of the wrong type"),
            Self::BadField(error) => write!(f, "is malformed: {error}"),
            Self::BadFrame(error) => write!(f, "is malformed: {error}"),
            Self::Compressed => f.write_str(
                "is compressed, and the filter `sequence` reads only what is sent uncompressed",
            ),
            Self::Truncated => f.write_str("has not come whole"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::{sequence::settings::Field, units::Count};

    // === messages ===

    /// A message of a stream, with its head.
    pub(in crate::sequence) fn framed(message: &[u8]) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        framed
    }

    /// A stream of one message, `initial_request` with a name.
    pub(in crate::sequence) fn initial() -> Vec<u8> {
        framed(&[0x0a, 3, 0x0a, 1, b'n'])
    }

    /// A stream of one message, `payload` with data and this number, below 128.
    pub(in crate::sequence) fn payload(number: u8) -> Vec<u8> {
        framed(&[0x12, 6, 0x0a, 2, b'h', b'i', 0x10, number])
    }

    fn rules(begin: Begin) -> Arc<Rules> {
        Rules::new(&Fields::api_013(), begin)
    }

    fn fields(number: &str, payload: Option<&str>, initial: Option<&str>, first: u64) -> Fields {
        let field = |text: &str| Field(text.parse().unwrap());
        Fields {
            number: field(number),
            payload: payload.map(field),
            initial: initial.map(field),
            first: Count(first),
        }
    }

    /// What is said of a stream that comes in these chunks and then ends, and how much of it passes.
    fn judge_chunks<'a>(
        rules: &Arc<Rules>,
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Result<(), Fault>, usize) {
        let mut judge = Judge::new(Arc::clone(rules));
        let mut passed = 0;
        for chunk in chunks {
            if let Err(fault) = judge.inspect(chunk) {
                return (Err(fault), passed);
            }
            passed += chunk.len();
        }
        (judge.finish(), passed)
    }

    /// What is said of a request, which is the same in one chunk, in two wherever it is cut, and byte by byte.
    #[track_caller]
    fn judge_by(rules: &Arc<Rules>, stream: &[u8]) -> Result<(), Fault> {
        let (whole, _) = judge_chunks(rules, [stream]);
        for at in 0..=stream.len() {
            let (one, two) = stream.split_at(at);
            assert_eq!(judge_chunks(rules, [one, two]).0, whole, "cut at {at}");
        }
        assert_eq!(judge_chunks(rules, stream.chunks(1)).0, whole);
        whole
    }

    #[track_caller]
    fn assert_sound(messages: &[Vec<u8>]) {
        assert_eq!(
            judge_by(&rules(Begin::WithInitial), &messages.concat()),
            Ok(())
        );
    }

    /// The fault of the last message, which nothing follows and the others do not have.
    #[track_caller]
    fn fault(messages: &[Vec<u8>]) -> Kind {
        let fault = judge_by(&rules(Begin::WithInitial), &messages.concat()).unwrap_err();
        assert_eq!(fault.message, messages.len() as u64);
        fault.kind
    }

    fn path(text: &str) -> FieldPath {
        text.parse().unwrap()
    }

    fn bad_number(got: u64, expected: u64) -> Kind {
        Kind::BadNumber { got, expected }
    }

    // === numbers ===

    #[test]
    fn messages_that_count_from_zero_pass() {
        assert_sound(&[initial(), payload(0), payload(1), payload(2)]);
        assert_sound(&[initial()]);
        assert_sound(&[]);
    }

    #[test]
    fn gap_repeat_and_step_back_are_refused() {
        assert_eq!(
            fault(&[initial(), payload(0), payload(2)]),
            bad_number(2, 1)
        );
        assert_eq!(
            fault(&[initial(), payload(0), payload(0)]),
            bad_number(0, 1)
        );
        assert_eq!(
            fault(&[initial(), payload(0), payload(1), payload(0)]),
            bad_number(0, 2)
        );
    }

    #[test]
    fn counting_from_one_is_refused() {
        assert_eq!(fault(&[initial(), payload(1)]), bad_number(1, 0));
    }

    #[test]
    fn absent_number_is_zero() {
        let absent = framed(&[0x12, 4, 0x0a, 2, b'h', b'i']);
        let empty = framed(&[0x12, 0]);

        assert_sound(&[initial(), absent.clone(), payload(1)]);
        assert_sound(&[initial(), empty.clone(), payload(1)]);
        assert_eq!(fault(&[initial(), payload(0), absent]), bad_number(0, 1));
        assert_eq!(fault(&[initial(), payload(0), empty]), bad_number(0, 1));
    }

    #[test]
    fn number_may_stand_before_the_data_or_without_any() {
        let before = framed(&[0x12, 5, 0x10, 0, 0x0a, 1, b'x']);
        let alone = framed(&[0x12, 2, 0x10, 1]);

        assert_sound(&[initial(), before, alone]);
    }

    #[test]
    fn last_of_several_numbers_wins() {
        let good = framed(&[0x12, 4, 0x10, 9, 0x10, 0]);
        let bad = framed(&[0x12, 4, 0x10, 0, 0x10, 9]);

        assert_sound(&[initial(), good]);
        assert_eq!(fault(&[initial(), bad]), bad_number(9, 0));
    }

    #[test]
    fn largest_number_is_read_whole() {
        let mut message = vec![0x12, 11, 0x10];
        message.extend([0xff; 9]);
        message.push(1);

        assert_eq!(
            fault(&[initial(), framed(&message)]),
            bad_number(u64::MAX, 0)
        );
    }

    #[test]
    fn unknown_fields_change_nothing() {
        // Around the payload and in it: field 9 as a varint, field 3 as bytes, a group, field 15 as fixed32.
        let message = [
            0x48, 7, 0x1a, 1, 0xff, 0x12, 12, 0x48, 7, 0x10, 0, 0x7d, 0, 0, 0, 0, 0x1a, 1, 0xff,
            0x2b, 0x10, 5, 0x2c,
        ];

        assert_sound(&[initial(), framed(&message), payload(1)]);
    }

    // === initial messages ===

    #[test]
    fn client_must_begin_with_the_initial_message() {
        assert_eq!(fault(&[payload(0)]), Kind::NoInitial(path("1")));
        assert_eq!(fault(&[framed(&[])]), Kind::NoInitial(path("1")));
    }

    #[test]
    fn upstream_may_leave_the_initial_message_out() {
        let rules = rules(Begin::Either);

        for sound in [[initial(), payload(0)], [payload(0), payload(1)]] {
            assert_eq!(judge_by(&rules, &sound.concat()), Ok(()));
        }
        assert_eq!(
            judge_by(&rules, &[payload(0), initial()].concat()),
            Err(Fault {
                message: 2,
                kind: Kind::LateInitial(path("1"))
            })
        );
    }

    #[test]
    fn second_initial_message_is_refused() {
        assert_eq!(fault(&[initial(), initial()]), Kind::LateInitial(path("1")));
        assert_eq!(
            fault(&[initial(), payload(0), initial()]),
            Kind::LateInitial(path("1"))
        );
    }

    #[test]
    fn empty_initial_message_is_one() {
        assert_sound(&[framed(&[0x0a, 0]), payload(0)]);
    }

    // === malformed messages ===

    #[test]
    fn message_has_one_of_the_two_and_has_it_once() {
        let both = framed(&[0x0a, 0, 0x12, 0]);
        let swapped = framed(&[0x12, 0, 0x0a, 0]);
        let neither = framed(&[]);
        let unknown = framed(&[0x1a, 0]);
        let initials = framed(&[0x0a, 0, 0x0a, 0]);
        let payloads = framed(&[0x12, 0, 0x12, 0]);

        assert_eq!(
            fault(std::slice::from_ref(&both)),
            Kind::Both(path("1"), path("2"))
        );
        assert_eq!(fault(&[initial(), both]), Kind::Both(path("1"), path("2")));
        assert_eq!(
            fault(&[initial(), swapped]),
            Kind::Both(path("1"), path("2"))
        );
        for none in [neither, unknown] {
            assert_eq!(
                fault(&[initial(), none]),
                Kind::Neither(path("2"), Some(path("1")))
            );
        }
        assert_eq!(fault(&[initials]), Kind::Twice(path("1")));
        assert_eq!(fault(&[initial(), payloads]), Kind::Twice(path("2")));
    }

    #[test]
    fn payload_given_256_times_is_not_none() {
        let many = framed(&[0x12, 0].repeat(256));

        assert_eq!(fault(&[initial(), many]), Kind::Twice(path("2")));
    }

    #[test]
    fn fields_of_the_wrong_type_are_refused() {
        let text_as_number = framed(&[0x12, 3, 0x12, 1, b'0']);
        let fixed_as_number = framed(&[0x12, 5, 0x15, 0, 0, 0, 0]);
        let varint_as_payload = framed(&[0x10, 0]);
        let varint_as_initial = framed(&[0x08, 0]);

        assert_eq!(
            fault(&[initial(), text_as_number]),
            Kind::WrongType(path("2.2"))
        );
        assert_eq!(
            fault(&[initial(), fixed_as_number]),
            Kind::WrongType(path("2.2"))
        );
        assert_eq!(
            fault(&[initial(), varint_as_payload]),
            Kind::WrongType(path("2"))
        );
        assert_eq!(fault(&[varint_as_initial]), Kind::WrongType(path("1")));
    }

    #[test]
    fn first_of_two_faults_is_told_wherever_the_message_is_cut() {
        let message = framed(&[0x12, 3, 0x12, 1, b'0', 0x00]);

        assert_eq!(fault(&[initial(), message]), Kind::WrongType(path("2.2")));
    }

    #[test]
    fn what_is_no_protobuf_is_refused() {
        let garbage = framed(&[0x00]);
        let overrun = framed(&[0x12, 1, 0x0a, 9]);
        let cut_off = framed(&[0x12, 9, 0x0a]);

        assert_eq!(
            fault(&[initial(), garbage]),
            Kind::BadField(FieldError::BadNumber)
        );
        assert_eq!(
            fault(&[initial(), overrun]),
            Kind::BadField(FieldError::Overrun)
        );
        assert_eq!(
            fault(&[initial(), cut_off]),
            Kind::BadField(FieldError::Truncated)
        );
    }

    #[test]
    fn what_is_no_grpc_is_refused() {
        let http = b"GET / HTTP/1.1".to_vec();

        assert_eq!(
            fault(&[initial(), http]),
            Kind::BadFrame(FrameError::BadFlag(b'G'))
        );
    }

    #[test]
    fn compressed_message_is_refused_at_its_head() {
        assert_eq!(fault(&[initial(), vec![1, 0, 0, 0, 9]]), Kind::Compressed);
    }

    #[test]
    fn stream_ends_between_messages_only() {
        let stream = [initial(), payload(0)].concat();
        let ends: Vec<usize> = (0..=stream.len())
            .filter(|end| {
                judge_chunks(&rules(Begin::WithInitial), [&stream[..*end]])
                    .0
                    .is_ok()
            })
            .collect();

        assert_eq!(ends, [0, initial().len(), stream.len()]);
    }

    // === fields of other protocols ===

    #[test]
    fn without_payload_and_initial_each_message_counts() {
        let rules = Rules::new(&fields("3", None, None, 7), Begin::WithInitial);
        let numbered = |number| framed(&[0x18, number]);

        assert_eq!(
            judge_by(&rules, &[numbered(7), numbered(8)].concat()),
            Ok(())
        );
        let fault = judge_by(&rules, &[numbered(7), framed(&[])].concat()).unwrap_err();
        assert_eq!(fault.kind, bad_number(0, 8));
    }

    #[test]
    fn without_payload_each_message_after_the_initial_counts() {
        let rules = Rules::new(&fields("3", None, Some("1"), 0), Begin::WithInitial);
        let hello = framed(&[0x0a, 0, 0x18, 9]);

        assert_eq!(
            judge_by(&rules, &[hello, framed(&[]), framed(&[0x18, 1])].concat()),
            Ok(())
        );
    }

    #[test]
    fn without_initial_each_message_has_a_payload() {
        let rules = Rules::new(&fields("3", Some("2"), None, 0), Begin::WithInitial);
        let message = framed(&[0x18, 0, 0x12, 1, b'x']);

        assert_eq!(judge_by(&rules, &message), Ok(()));
        let fault = judge_by(&rules, &[message, framed(&[0x18, 1])].concat()).unwrap_err();
        assert_eq!(fault.kind, Kind::Neither(path("2"), None));
    }

    // === bounds ===

    #[test]
    fn longest_message_in_a_trickle_is_walked_over_and_judged_at_its_end() {
        // 2: { 1: all the rest but the number, 2: 5 }
        let message_length = u32::MAX;
        let varint = |value: u32| {
            let byte = |shift: u32, more: u8| (value >> shift) as u8 & 0x7f | more;
            [
                byte(0, 0x80),
                byte(7, 0x80),
                byte(14, 0x80),
                byte(21, 0x80),
                byte(28, 0),
            ]
        };
        let data_length = message_length - 14;
        let mut head = vec![0];
        head.extend(message_length.to_be_bytes());
        head.push(0x12);
        head.extend(varint(message_length - 6));
        head.push(0x0a);
        head.extend(varint(data_length));
        let chunk = vec![0xff; 1 << 20];

        let mut judge = Judge::new(rules(Begin::WithInitial));
        judge.inspect(&initial()).unwrap();
        for byte in head {
            judge.inspect(&[byte]).unwrap();
        }
        let mut left = data_length as usize;
        while left > 0 {
            let taken = left.min(chunk.len());
            judge.inspect(&chunk[..taken]).unwrap();
            left -= taken;
        }
        judge.inspect(&[0x10]).unwrap();
        let verdict = judge.inspect(&[5]);

        assert_eq!(verdict.unwrap_err().kind, bad_number(5, 0));
    }

    // === properties ===

    /// A message that is sound somewhere in some stream, more often than not.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            2 => Just(initial()),
            8 => (0..4u8).prop_map(payload),
            1 => Just(framed(&[0x12, 0])),
            1 => Just(framed(&[0x0a, 0, 0x12, 0])),
            1 => vec(any::<u8>(), 0..8).prop_map(|bytes| framed(&bytes)),
            1 => vec(any::<u8>(), 1..8),
        ]
    }

    proptest! {
        /// The verdict does not depend on the chunks, and what passes before it holds only messages found sound.
        #[test]
        fn no_complete_bad_message_passes(
            messages in vec(message(), 0..6),
            good in 0..5u8,
            cuts in vec(any::<Index>(), 0..12),
        ) {
            let mut stream = initial();
            stream.extend((0..good).flat_map(payload));
            stream.extend(messages.concat());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(stream.len());
            let mut start = 0;
            let chunks = cuts.iter().map(|end| &stream[mem::replace(&mut start, *end)..*end]);
            let rules = rules(Begin::WithInitial);

            let (verdict, passed) = judge_chunks(&rules, chunks);

            prop_assert_eq!(verdict, judge_chunks(&rules, [&stream[..]]).0);
            let mut whole = FrameInspector::new();
            let count = whole.count(&stream[..passed]).unwrap();
            match verdict {
                Ok(()) => prop_assert_eq!(passed, stream.len()),
                Err(fault) => prop_assert!(count < fault.message),
            }
        }
    }
}
