//! What holds for every input: chunking changes nothing, garbage breaks nothing, and what is
//! written can be read back.

use std::time::Duration;

use bytes::BytesMut;
use proptest::{collection::vec, prelude::*, sample::Index};
use thalweg_proto::{
    bindings::{
        Form,
        reader::{Fault, Piece, Reader},
        writer::Writer,
    },
    deadline,
    field::{FieldError, FieldPath, FieldPaths, FieldValue, FieldWalker},
    frame::{Event, FrameError, FrameInspector, Head},
    method::{Method, is_grpc_content_type},
    status::{Code, decode_message, encode_message},
};

// === chunks ===

/// Cuts bytes at the given places; equal places make empty chunks.
fn cut<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|at| at.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut chunks = Vec::new();
    let mut start = 0;
    for end in places.into_iter().chain([bytes.len()]) {
        chunks.push(&bytes[start..end]);
        start = end;
    }
    chunks
}

fn places() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..20)
}

/// Sound bytes now and then broken: some byte changed, the end cut off, garbage after it.
fn damaged(sound: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = proptest::option::weighted(0.3, (any::<Index>(), any::<u8>()));
    let length = proptest::option::weighted(0.3, any::<Index>());
    (sound, change, length, vec(any::<u8>(), 0..4)).prop_map(|(mut bytes, change, length, tail)| {
        if let Some((at, byte)) = change
            && !bytes.is_empty()
        {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len() + 1));
        } else {
            bytes.extend(tail);
        }
        bytes
    })
}

// === frames ===

/// An event with its payload, so that events of different chunkings can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Framed {
    Start(Head),
    Payload(Vec<u8>),
    End,
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let message = (0..=1u8, vec(any::<u8>(), 0..40));
    vec(message, 0..8).prop_map(|messages| {
        let mut body = Vec::new();
        for (flag, payload) in messages {
            body.push(flag);
            body.extend((payload.len() as u32).to_be_bytes());
            body.extend(payload);
        }
        body
    })
}

/// All events of a body, with adjacent payload merged, and what the inspector says after it.
fn inspect(chunks: &[&[u8]]) -> (Vec<Framed>, Option<FrameError>, u64, bool) {
    let mut inspector = FrameInspector::new();
    let mut seen = Vec::new();
    let mut fault = None;
    for chunk in chunks {
        for event in inspector.inspect(chunk) {
            match event {
                Ok(Event::Start(head)) => seen.push(Framed::Start(head)),
                Ok(Event::Payload { start, end }) => {
                    assert!(start < end);
                    match seen.last_mut() {
                        Some(Framed::Payload(bytes)) => bytes.extend(&chunk[start..end]),
                        _ => seen.push(Framed::Payload(chunk[start..end].to_vec())),
                    }
                }
                Ok(Event::End) => seen.push(Framed::End),
                Err(error) => {
                    assert!(fault.is_none_or(|fault| fault == error));
                    fault = Some(error);
                }
            }
        }
    }
    (
        seen,
        fault,
        inspector.messages(),
        inspector.is_at_boundary(),
    )
}

fn frames_do_not_depend_on_chunks(bytes: &[u8], places: &[Index]) {
    let whole = inspect(&[bytes]);
    let chunks = cut(bytes, places);

    assert_eq!(inspect(&chunks), whole);
    let (seen, fault, messages, at_boundary) = whole;
    let payload: usize = seen
        .iter()
        .map(|event| match event {
            Framed::Payload(bytes) => bytes.len(),
            _ => 0,
        })
        .sum();
    assert!(payload <= bytes.len());
    let ends = seen.iter().filter(|event| **event == Framed::End).count();
    assert_eq!(messages, ends as u64);

    // Counting and dropped events come to the same place.
    let mut counting = FrameInspector::new();
    let mut dropping = FrameInspector::new();
    let mut counted = 0;
    let mut outcome = Ok(());
    for (i, chunk) in chunks.iter().enumerate() {
        match counting.count(chunk) {
            Ok(count) => counted += count,
            Err(error) => outcome = Err(error),
        }
        dropping.inspect(chunk).take(i % 4).for_each(drop);
    }
    assert_eq!(outcome.err(), fault);
    assert!(counted == messages || fault.is_some());
    for inspector in [counting, dropping] {
        assert_eq!(inspector.messages(), messages);
        assert_eq!(inspector.is_at_boundary(), at_boundary);
    }
}

// === fields ===

/// What lies at a path, with its bytes, so that different chunkings can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Number(FieldValue),
    Start(u64),
    Bytes(Vec<u8>),
    End,
}

type Walked = (Vec<(usize, Found)>, Result<(), FieldError>);

/// Paths that share beginnings, lead through one another, and go as deep as paths may.
const PATHS: [&[u32]; 8] = [
    &[1],
    &[1, 1],
    &[1, 2],
    &[2, 2],
    &[2, 1, 1],
    &[3],
    &[1, 1, 1, 1, 1, 1, 1, 1],
    &[4, 4],
];

fn walk(chunks: &[&[u8]]) -> Walked {
    let paths = PATHS.map(FieldPath::new);
    let mut walker = FieldWalker::new(FieldPaths::new(&paths).expect("distinct paths"));
    let mut seen = Vec::new();
    for chunk in chunks {
        let outcome = walker.walk(chunk, |event| {
            let found = match event.value {
                FieldValue::Bytes { start, end } => {
                    assert!(start < end);
                    if let Some((path, Found::Bytes(bytes))) = seen.last_mut() {
                        assert_eq!(*path, event.path);
                        bytes.extend(&chunk[start..end]);
                        return;
                    }
                    Found::Bytes(chunk[start..end].to_vec())
                }
                FieldValue::Start { length } => Found::Start(length),
                FieldValue::End => Found::End,
                number => Found::Number(number),
            };
            seen.push((event.path, found));
        });
        if outcome.is_err() {
            break;
        }
    }
    let outcome = walker.finish();
    assert_eq!(walker.finish(), Ok(()), "finished twice");
    (seen, outcome)
}

/// The same by plain recursion over a message that is all there.
struct Reference<'a> {
    bytes: &'a [u8],
    at: u64,
    seen: Vec<(usize, Found)>,
}

impl Reference<'_> {
    fn walk(bytes: &[u8]) -> Walked {
        let mut reference = Reference {
            bytes,
            at: 0,
            seen: Vec::new(),
        };
        let outcome = reference.message(u64::MAX, &[]);
        (reference.seen, outcome)
    }

    /// Walks one message, which lies at the path `here`.
    fn message(&mut self, end: u64, here: &[u32]) -> Result<(), FieldError> {
        while self.at < end && (end < u64::MAX || self.at < self.bytes.len() as u64) {
            let tag = self.varint(end)?;
            self.field(tag, end, Some(here), 0)?;
        }
        Ok(())
    }

    /// Walks one field; `here` is `None` in groups, where nothing is of interest.
    fn field(
        &mut self,
        tag: u64,
        end: u64,
        here: Option<&[u32]>,
        groups: usize,
    ) -> Result<(), FieldError> {
        let number = u32::try_from(tag).map_err(|_| FieldError::BadNumber)? >> 3;
        if number == 0 {
            return Err(FieldError::BadNumber);
        }
        let field: Option<Vec<u32>> = here.map(|here| [here, &[number]].concat());
        let path = field
            .as_ref()
            .and_then(|field| PATHS.iter().position(|path| path == field));
        let entered = field.filter(|field| {
            PATHS
                .iter()
                .any(|path| path.len() > field.len() && path.starts_with(field))
        });

        match tag & 7 {
            0 => {
                let number = self.varint(end)?;
                self.report(path, Found::Number(FieldValue::Varint(number)));
            }
            1 => {
                let bytes = *self.take(8, end)?.as_array().expect("took eight");
                let number = FieldValue::Fixed64(u64::from_le_bytes(bytes));
                self.report(path, Found::Number(number));
            }
            5 => {
                let bytes = *self.take(4, end)?.as_array().expect("took four");
                let number = FieldValue::Fixed32(u32::from_le_bytes(bytes));
                self.report(path, Found::Number(number));
            }
            2 => {
                let length = self.varint(end)?;
                let field_end = self.at.checked_add(length).ok_or(FieldError::Overrun)?;
                if field_end > end {
                    return Err(FieldError::Overrun);
                }
                self.report(path, Found::Start(length));
                if let Some(field) = entered {
                    self.message(field_end, &field)?;
                } else {
                    let rest = &self.bytes[self.at as usize..];
                    let here = &rest[..rest
                        .len()
                        .min(usize::try_from(length).unwrap_or(usize::MAX))];
                    if !here.is_empty() {
                        self.report(path, Found::Bytes(here.to_vec()));
                    }
                    self.take(length, end)?;
                }
                self.report(path, Found::End);
            }
            3 if groups == 16 => return Err(FieldError::GroupsTooDeep),
            3 => loop {
                let tag = self.varint(end)?;
                if tag == u64::from(number << 3 | 4) {
                    return Ok(());
                }
                self.field(tag, end, None, groups + 1)?;
            },
            4 => return Err(FieldError::UnexpectedGroupEnd),
            kind => return Err(FieldError::BadWireType(kind as u8)),
        }
        Ok(())
    }

    fn report(&mut self, path: Option<usize>, found: Found) {
        self.seen.extend(path.map(|path| (path, found)));
    }

    fn varint(&mut self, end: u64) -> Result<u64, FieldError> {
        let mut number = 0u128;
        for place in 0..10 {
            if self.at == end {
                return Err(FieldError::Overrun);
            }
            let byte = *self
                .bytes
                .get(self.at as usize)
                .ok_or(FieldError::Truncated)?;
            self.at += 1;
            number |= u128::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return u64::try_from(number).map_err(|_| FieldError::VarintTooLong);
            }
        }
        Err(FieldError::VarintTooLong)
    }

    fn take(&mut self, length: u64, end: u64) -> Result<Vec<u8>, FieldError> {
        let field_end = self.at.checked_add(length).ok_or(FieldError::Overrun)?;
        if field_end > end {
            return Err(FieldError::Overrun);
        }
        if field_end > self.bytes.len() as u64 {
            return Err(FieldError::Truncated);
        }
        let taken = self.bytes[self.at as usize..field_end as usize].to_vec();
        self.at = field_end;
        Ok(taken)
    }
}

/// Writes a varint the shortest way.
fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// A sound message with fields of every kind, many of them at or near a path.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![9 => 1..5u64, 1 => 1..1u64 << 29];
    let varint = prop_oneof![0..3u64, any::<u64>()];
    let plain = prop_oneof![
        (numbers.clone(), varint).prop_map(|(number, value)| {
            let mut field = Vec::new();
            put_varint(&mut field, number << 3);
            put_varint(&mut field, value);
            field
        }),
        (numbers.clone(), any::<[u8; 4]>()).prop_map(|(number, value)| {
            let mut field = Vec::new();
            put_varint(&mut field, number << 3 | 5);
            field.extend(value);
            field
        }),
        (numbers.clone(), any::<[u8; 8]>()).prop_map(|(number, value)| {
            let mut field = Vec::new();
            put_varint(&mut field, number << 3 | 1);
            field.extend(value);
            field
        }),
    ];
    let fields = vec(plain, 0..4).prop_map(|fields| fields.concat());
    fields.prop_recursive(8, 64, 4, move |inner| {
        let nested = (numbers.clone(), inner, any::<bool>()).prop_map(|(number, inner, group)| {
            let mut field = Vec::new();
            if group {
                put_varint(&mut field, number << 3 | 3);
                field.extend(inner);
                put_varint(&mut field, number << 3 | 4);
            } else {
                put_varint(&mut field, number << 3 | 2);
                put_varint(&mut field, inner.len() as u64);
                field.extend(inner);
            }
            field
        });
        vec(nested, 1..4).prop_map(|fields| fields.concat())
    })
}

fn fields_do_not_depend_on_chunks(bytes: &[u8], places: &[Index]) {
    let expected = Reference::walk(bytes);

    assert_eq!(walk(&[bytes]), expected);
    assert_eq!(walk(&cut(bytes, places)), expected);
    let singles: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(walk(&singles), expected);
}

// === bindings ===

/// A piece with its bytes, so that pieces of different chunkings can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Taken {
    Initial(Vec<u8>),
    Start(u64),
    Data(Vec<u8>),
    End(u64),
}

/// The pieces of a stream, and whether it is sound.
fn take(form: Form, chunks: &[&[u8]]) -> (Vec<Taken>, Result<(), Fault>) {
    let mut reader = Reader::new(form);
    let mut seen = Vec::new();
    let mut outcome = Ok(());
    for chunk in chunks {
        let before = seen.len();
        let read = reader.read(chunk, |piece| {
            let taken = match piece {
                Piece::Data { start, end } => {
                    assert!(start < end);
                    if let Some(Taken::Data(bytes)) = seen.last_mut() {
                        bytes.extend(&chunk[start..end]);
                        return;
                    }
                    Taken::Data(chunk[start..end].to_vec())
                }
                Piece::Initial(content) => Taken::Initial(content.to_vec()),
                Piece::Start(length) => Taken::Start(length),
                Piece::End(number) => Taken::End(number),
            };
            seen.push(taken);
        });
        if outcome.is_err() {
            assert_eq!((read, seen.len()), (outcome, before), "a fault stays");
        }
        outcome = read;
    }
    assert!(outcome.is_ok() || reader.finish() == outcome);
    (seen, outcome.and_then(|()| reader.finish()))
}

fn pieces_do_not_depend_on_chunks(form: Form, bytes: &[u8], places: &[Index]) {
    let whole = take(form, &[bytes]);

    assert_eq!(take(form, &cut(bytes, places)), whole);
    let singles: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(take(form, &singles), whole);

    // A message has as much payload as it says, and none that was not sent.
    let mut due = None;
    let mut taken = 0;
    for piece in &whole.0 {
        match piece {
            Taken::Initial(content) => taken += content.len(),
            Taken::Start(length) => assert_eq!(due.replace(*length), None),
            Taken::Data(data) => {
                taken += data.len();
                due = due.map(|due| due - data.len() as u64);
                assert!(due.is_some());
            }
            Taken::End(_) => assert_eq!(due.take(), Some(0)),
        }
    }
    assert!(taken <= bytes.len());
    assert!(due.is_none() || whole.1.is_err());
}

/// A message of a stream, apart from its form.
#[derive(Clone, Debug)]
struct Sent {
    data: Vec<u8>,
    number: u64,
    /// The number stands before the data.
    number_first: bool,
    /// Fields that no one knows, before, between and after the others.
    unknown: [Vec<u8>; 3],
}

/// An initial message now and then, and messages with payload after it.
type Stream = (Option<Vec<u8>>, Vec<Sent>);

fn stream() -> impl Strategy<Value = Stream> {
    // Above the numbers of both forms.
    let unknown = || {
        vec((4..9u64, vec(any::<u8>(), 0..4)), 0..2).prop_map(|fields| {
            let mut unknown = Vec::new();
            for (number, content) in fields {
                put_field(&mut unknown, number, &content);
            }
            unknown
        })
    };
    let number = prop_oneof![Just(0), 0..300u64, any::<u64>()];
    let data = prop_oneof![Just(vec![]), vec(any::<u8>(), 1..200)];
    let sent = (
        data,
        number,
        any::<bool>(),
        [unknown(), unknown(), unknown()],
    );
    let sent = sent.prop_map(|(data, number, number_first, unknown)| Sent {
        data,
        number,
        number_first,
        unknown,
    });
    let initial = proptest::option::of(vec(any::<u8>(), 0..200));
    (initial, vec(sent, 0..6))
}

fn put_field(message: &mut Vec<u8>, number: u64, content: &[u8]) {
    put_varint(message, number << 3 | 2);
    put_varint(message, content.len() as u64);
    message.extend(content);
}

fn put_frame(body: &mut Vec<u8>, message: &[u8]) {
    body.push(0);
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
}

/// The stream as some other program may encode it.
fn encode(form: Form, (initial, messages): &Stream) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(content) = initial {
        let mut message = Vec::new();
        put_field(&mut message, 1, content);
        put_frame(&mut body, &message);
    }
    for sent in messages {
        let (data_field, number_field) = match form {
            Form::Component => (2, 3),
            _ => (1, 2),
        };
        let mut data = Vec::new();
        // A oneof says that it holds nothing; a plain field need not be there.
        if form == Form::Component || !sent.data.is_empty() {
            put_field(&mut data, data_field, &sent.data);
        }
        let mut number = Vec::new();
        if sent.number > 0 {
            put_varint(&mut number, number_field << 3);
            put_varint(&mut number, sent.number);
        }
        let [before, between, after] = &sent.unknown;
        let (first, second) = match sent.number_first {
            true => (&number, &data),
            false => (&data, &number),
        };
        let mut message = [before, first, between, second, after]
            .map(|part| &part[..])
            .concat();
        if form == Form::Runtime {
            let payload = std::mem::replace(&mut message, before.clone());
            put_field(&mut message, 2, &payload);
            message.extend(after);
        }
        put_frame(&mut body, &message);
    }
    body
}

/// What is in the stream, with numbers as they were sent or counted from `first` on.
fn expected((initial, messages): &Stream, first: Option<u64>) -> Vec<Taken> {
    let mut pieces: Vec<Taken> = initial.iter().cloned().map(Taken::Initial).collect();
    for (i, sent) in messages.iter().enumerate() {
        pieces.push(Taken::Start(sent.data.len() as u64));
        if !sent.data.is_empty() {
            pieces.push(Taken::Data(sent.data.clone()));
        }
        let number = first.map_or(sent.number, |first| first.wrapping_add(i as u64));
        pieces.push(Taken::End(number));
    }
    pieces
}

/// Wraps what is in a stream anew, and watches that no message is whole before its end.
fn translate(from: Form, to: Form, first: u64, chunks: &[&[u8]]) -> (Vec<u8>, Result<(), Fault>) {
    let mut reader = Reader::new(from);
    let mut writer = Writer::new(to, first);
    let mut frames = FrameInspector::new();
    let mut written = Vec::new();
    let mut outcome = Ok(());
    for chunk in chunks {
        outcome = reader.read(chunk, |piece| {
            let mut buffer = BytesMut::new();
            match &piece {
                Piece::Initial(content) => writer.initial(content, &mut buffer),
                Piece::Start(length) => writer.start(*length, &mut buffer),
                Piece::Data { start, end } => buffer.extend_from_slice(&chunk[*start..*end]),
                Piece::End(_) => writer.end(&mut buffer),
            }
            if to != Form::Raw {
                let whole = frames.count(&buffer).expect("heads are sound");
                let ended = matches!(piece, Piece::Initial(_) | Piece::End(_));
                assert_eq!(whole, u64::from(ended), "{piece:?}");
                assert_eq!(frames.is_at_boundary(), ended, "{piece:?}");
            }
            written.extend(buffer);
        });
        if outcome.is_err() {
            break;
        }
    }
    (written, outcome.and_then(|()| reader.finish()))
}

fn wrapped() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Runtime), Just(Form::Component)]
}

fn first_number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 100..300u64, any::<u64>()]
}

// === properties ===

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn frames_of_a_body_do_not_depend_on_chunks(bytes in damaged(body()), places in places()) {
        frames_do_not_depend_on_chunks(&bytes, &places);
    }

    #[test]
    fn frames_of_garbage_do_not_depend_on_chunks(bytes in vec(any::<u8>(), 0..200), places in places()) {
        frames_do_not_depend_on_chunks(&bytes, &places);
    }

    #[test]
    fn sound_body_ends_at_a_boundary(bytes in body()) {
        let (_, fault, _, at_boundary) = inspect(&[&bytes]);
        prop_assert_eq!((fault, at_boundary), (None, true));
    }

    #[test]
    fn sound_message_is_walked_to_its_end(bytes in message()) {
        prop_assert_eq!(walk(&[&bytes]).1, Ok(()));
    }

    #[test]
    fn fields_of_a_message_do_not_depend_on_chunks(bytes in damaged(message()), places in places()) {
        fields_do_not_depend_on_chunks(&bytes, &places);
    }

    #[test]
    fn fields_of_garbage_do_not_depend_on_chunks(
        bytes in vec(prop_oneof![0..40u8, any::<u8>()], 0..100),
        places in places(),
    ) {
        fields_do_not_depend_on_chunks(&bytes, &places);
    }

    #[test]
    fn pieces_of_a_binding_stream_do_not_depend_on_chunks(
        (form, bytes) in wrapped().prop_flat_map(|form| {
            (Just(form), damaged(stream().prop_map(move |stream| encode(form, &stream))))
        }),
        places in places(),
    ) {
        pieces_do_not_depend_on_chunks(form, &bytes, &places);
    }

    #[test]
    fn pieces_of_garbage_do_not_depend_on_chunks(
        form in wrapped(),
        messages in vec(vec(prop_oneof![0..40u8, any::<u8>()], 0..40), 0..4),
        tail in vec(any::<u8>(), 0..8),
        places in places(),
    ) {
        let mut bytes = Vec::new();
        for message in messages {
            put_frame(&mut bytes, &message);
        }
        bytes.extend(tail);
        pieces_do_not_depend_on_chunks(form, &bytes, &places);
    }

    #[test]
    fn payload_is_what_lies_in_the_data_fields(form in wrapped(), stream in stream(), places in places()) {
        let bytes = encode(form, &stream);

        let taken = take(form, &cut(&bytes, &places));

        prop_assert_eq!(taken, (expected(&stream, None), Ok(())));
    }

    #[test]
    fn payload_survives_a_change_of_form_and_back(
        (form, other) in (wrapped(), wrapped()),
        stream in stream(),
        (first, second) in (first_number(), first_number()),
        places in places(),
    ) {
        let sent = encode(form, &stream);

        let (there, outcome) = translate(form, other, first, &cut(&sent, &places));
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(take(other, &[&there]).0, expected(&stream, Some(first)));

        let (back, outcome) = translate(other, form, second, &cut(&there, &places));
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(take(form, &[&back]).0, expected(&stream, Some(second)));
    }

    #[test]
    fn damaged_stream_never_makes_a_message_whole(
        (form, bytes) in wrapped().prop_flat_map(|form| {
            (Just(form), damaged(stream().prop_map(move |stream| encode(form, &stream))))
        }),
        other in wrapped(),
        places in places(),
    ) {
        let (written, outcome) = translate(form, other, 0, &cut(&bytes, &places));

        let (pieces, _) = take(form, &[&bytes]);
        let ends = |pieces: &[Taken]| pieces.iter().filter(|piece| matches!(piece, Taken::End(_))).count();
        let (again, read) = take(other, &[&written]);
        prop_assert_eq!(ends(&again), ends(&pieces));
        prop_assert!(read.is_ok() || outcome.is_err());
    }

    #[test]
    fn plain_bytes_come_back_from_messages(bytes in vec(any::<u8>(), 0..200), form in wrapped(), places in places()) {
        let chunks = cut(&bytes, &places);

        let (wrapped, outcome) = translate(Form::Raw, form, 0, &chunks);
        prop_assert_eq!(outcome, Ok(()));
        let (plain, outcome) = translate(form, Form::Raw, 0, &cut(&wrapped, &places));

        prop_assert_eq!((plain, outcome), (bytes, Ok(())));
    }

    #[test]
    fn path_reads_back_as_it_was_written(numbers in vec(1..1u32 << 29, 1..=8)) {
        let path = FieldPath::new(&numbers);
        prop_assert_eq!(path.to_string().parse(), Ok(path));
    }

    #[test]
    fn deadline_never_grows(seconds in prop_oneof![0..200_000u64, any::<u64>()], nanos in 0..1_000_000_000u32) {
        let left = Duration::new(seconds, nanos);

        let again = |left| deadline::parse(deadline::format(left).as_str().as_bytes());
        let read = again(left).unwrap();

        prop_assert!(read <= left);
        prop_assert_eq!(again(read), Ok(read), "what has been rounded once stays as it is");
        // Where the next unit begins, a count has six digits, so little is lost.
        let longest = Duration::from_secs(99_999_999 * 3600);
        prop_assert!(left - read <= left / 100_000 || read == longest);
    }

    #[test]
    fn deadline_of_garbage_is_refused_or_short(value in "[0-9]{0,9}.?[HMSmun]?") {
        if let Ok(timeout) = deadline::parse(value.as_bytes()) {
            prop_assert!(value.len() <= 9);
            prop_assert!(timeout <= Duration::from_secs(99_999_999 * 3600));
        }
    }

    #[test]
    fn message_text_round_trips(text in any::<String>()) {
        let encoded = encode_message(&text);

        prop_assert!(encoded.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
        prop_assert_eq!(encoded.trim(), &*encoded);
        prop_assert_eq!(decode_message(encoded.as_bytes()), &*text);
    }

    #[test]
    fn garbage_breaks_nothing(value in vec(prop_oneof![Just(b'%'), Just(b'/'), any::<u8>()], 0..30)) {
        let text = String::from_utf8_lossy(&value);
        if let Ok(Method { service, method }) = Method::parse(&text) {
            prop_assert_eq!(format!("/{service}/{method}"), &*text);
        }
        decode_message(&value);
        Code::from_header(&value);
        is_grpc_content_type(&value);
    }
}
