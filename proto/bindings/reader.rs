//! Finds the payload in a stream of binding messages, as it passes.
//!
//! The reader takes chunks cut anywhere and reports what is in them; payload is reported as ranges of the chunk. Only an
//! initial message is kept, up to a bound, since whoever needs it needs it whole.

use std::fmt;

use bytes::Bytes;

use super::Form;
use crate::{
    FieldPath, FieldPaths, FieldWalker, FrameError, FrameInspector,
    field::{FieldError, FieldEvent, FieldValue},
    frame::Event,
};

/// The largest initial message.
pub const INITIAL_MAX: usize = 64 * 1024;

/// Something in a stream of binding messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// An initial message has come whole.
    Initial(Bytes),
    /// The payload of a message begins, and has so many bytes.
    Start(u64),
    /// `chunk[start..end]` is payload. Never empty.
    Data {
        /// Index of the first byte in the given chunk.
        start: usize,
        /// Index after the last byte in the given chunk.
        end: usize,
    },
    /// A message with payload has come whole; it had this number.
    End(u64),
}

/// Why a stream is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not made of gRPC messages.
    Frame(FrameError),
    /// A message is no protobuf.
    Field(FieldError),
    /// A message is compressed.
    Compressed,
    /// A field has a wire type that it cannot have.
    WireType,
    /// An initial message exceeds [`INITIAL_MAX`].
    InitialTooLarge,
    /// An initial message came after the first message.
    InitialNotFirst,
    /// A message holds an initial message and payload.
    Both,
    /// A message holds neither an initial message nor payload.
    Neither,
    /// A message holds its payload twice.
    Twice,
    /// A message with so much payload could not be wrapped anew: it would pass 4 GiB.
    TooLarge,
    /// A message has another number than the one that was due. Whoever reads the stream judges that, not the reader.
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number that it has.
        got: u64,
    },
    /// The stream ended within a message.
    Truncated,
}

/// Reads one stream; see the [module docs](self).
#[derive(Debug)]
pub struct Reader {
    form: Form,
    frames: FrameInspector,
    fields: FieldWalker,
    messages: u64,
    message: Message,
    fault: Option<Fault>,
}

/// What is known of the current message.
#[derive(Debug, Default)]
struct Message {
    initial: Option<Vec<u8>>,
    payload: bool,
    data: bool,
    number: u64,
}

/// Payload that leaves room for any wrapping within the length of a message, which has 32 bits.
pub(super) const DATA_MAX: u64 = u32::MAX as u64 - 64;

const INITIAL: usize = 0;
const DATA: usize = 1;
const NUMBER: usize = 2;
const PAYLOAD: usize = 3;

// === impl Reader ===

impl Reader {
    /// For a stream in this form.
    pub fn new(form: Form) -> Self {
        let paths: &[FieldPath] = match form {
            Form::Runtime => {
                const {
                    &[
                        FieldPath::new(&[1]),
                        FieldPath::new(&[2, 1]),
                        FieldPath::new(&[2, 2]),
                        FieldPath::new(&[2]),
                    ]
                }
            }
            Form::Component => {
                const {
                    &[
                        FieldPath::new(&[1]),
                        FieldPath::new(&[2]),
                        FieldPath::new(&[3]),
                    ]
                }
            }
            Form::Raw => &[],
        };
        let paths = FieldPaths::new(paths).expect("the paths are few and differ");
        Self {
            form,
            frames: FrameInspector::new(),
            fields: FieldWalker::new(paths),
            messages: 0,
            message: Message::default(),
            fault: None,
        }
    }

    /// Reports what is in the next chunk.
    ///
    /// After a fault, the rest of the stream is refused with the same fault.
    pub fn read(&mut self, chunk: &[u8], report: impl FnMut(Piece)) -> Result<(), Fault> {
        let outcome = self.fault.map_or_else(|| self.advance(chunk, report), Err);
        self.fault = outcome.err();
        outcome
    }

    fn advance(&mut self, chunk: &[u8], mut report: impl FnMut(Piece)) -> Result<(), Fault> {
        if self.form == Form::Raw {
            if !chunk.is_empty() {
                report(Piece::Start(chunk.len() as u64));
                report(Piece::Data {
                    start: 0,
                    end: chunk.len(),
                });
                report(Piece::End(self.messages));
                self.messages += 1;
            }
            return Ok(());
        }
        for event in self.frames.inspect(chunk) {
            match event.map_err(Fault::Frame)? {
                Event::Start(head) if head.compressed => return Err(Fault::Compressed),
                Event::Start(_) => {}
                Event::Payload { start, end } => {
                    let message = &mut self.message;
                    let mut fault = None;
                    let walked = self.fields.walk(&chunk[start..end], |event| {
                        if fault.is_none() {
                            let slice = &chunk[start..end];
                            fault = message.take(event, slice, start, &mut report).err();
                        }
                    });
                    // What is wrong with a field was seen before what ended the walk, if anything did.
                    fault.map_or(Ok(()), Err)?;
                    walked.map_err(Fault::Field)?;
                }
                Event::End => {
                    self.fields.finish().map_err(Fault::Field)?;
                    let message = std::mem::take(&mut self.message);
                    message.end(self.messages == 0, &mut report)?;
                    self.messages += 1;
                }
            }
        }
        Ok(())
    }

    /// Says whether the stream may end here.
    pub fn finish(&self) -> Result<(), Fault> {
        if let Some(fault) = self.fault {
            Err(fault)
        } else if self.form == Form::Raw || self.frames.is_at_boundary() {
            Ok(())
        } else {
            Err(Fault::Truncated)
        }
    }

    /// Whether a message has come whole, or its payload has begun.
    pub fn has_begun(&self) -> bool {
        self.messages > 0 || self.message.data
    }
}

// === impl Message ===

impl Message {
    fn take(
        &mut self,
        event: FieldEvent,
        slice: &[u8],
        offset: usize,
        report: &mut impl FnMut(Piece),
    ) -> Result<(), Fault> {
        match (event.path, event.value) {
            (INITIAL, FieldValue::Start { length }) => {
                if self.payload || self.data {
                    return Err(Fault::Both);
                }
                // Protobuf merges a message that is there twice; appending the parts does the same.
                let initial = self.initial.get_or_insert_default();
                if initial.len() as u64 + length > INITIAL_MAX as u64 {
                    return Err(Fault::InitialTooLarge);
                }
            }
            (INITIAL, FieldValue::Bytes { start, end }) => {
                if let Some(initial) = &mut self.initial {
                    initial.extend_from_slice(&slice[start..end]);
                }
            }
            (DATA, FieldValue::Start { length }) => {
                if self.initial.is_some() {
                    return Err(Fault::Both);
                }
                if std::mem::replace(&mut self.data, true) {
                    return Err(Fault::Twice);
                }
                if length > DATA_MAX {
                    return Err(Fault::TooLarge);
                }
                report(Piece::Start(length));
            }
            (DATA, FieldValue::Bytes { start, end }) => report(Piece::Data {
                start: offset + start,
                end: offset + end,
            }),
            (NUMBER, FieldValue::Varint(number)) => self.number = number,
            (PAYLOAD, FieldValue::Start { .. }) => {
                if self.initial.is_some() {
                    return Err(Fault::Both);
                }
                if std::mem::replace(&mut self.payload, true) {
                    return Err(Fault::Twice);
                }
            }
            (INITIAL | DATA | PAYLOAD, FieldValue::End) | (PAYLOAD, FieldValue::Bytes { .. }) => {}
            _ => return Err(Fault::WireType),
        }
        Ok(())
    }

    fn end(self, first: bool, report: &mut impl FnMut(Piece)) -> Result<(), Fault> {
        if let Some(initial) = self.initial {
            if !first {
                return Err(Fault::InitialNotFirst);
            }
            report(Piece::Initial(initial.into()));
            return Ok(());
        }
        if !self.data {
            if !self.payload {
                return Err(Fault::Neither);
            }
            report(Piece::Start(0));
        }
        report(Piece::End(self.number));
        Ok(())
    }
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Field(error) => error.fmt(f),
            Self::Compressed => f.write_str("a message is compressed"),
            Self::WireType => f.write_str("a field has a wire type that it cannot have"),
            Self::InitialTooLarge => write!(f, "an initial message exceeds {INITIAL_MAX} bytes"),
            Self::InitialNotFirst => f.write_str("an initial message came after the first message"),
            Self::Both => f.write_str("a message holds both an initial message and payload"),
            Self::Neither => f.write_str("a message holds neither an initial message nor payload"),
            Self::Twice => f.write_str("a message holds its payload twice"),
            Self::TooLarge => f.write_str("a message holds 4 GiB of payload or more"),
            Self::Sequence { expected, got } => {
                write!(f, "invalid sequence number: got {got}, expected {expected}")
            }
            Self::Truncated => f.write_str("the stream ended within a message"),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;
    use Piece::{Data, End, Initial, Start};

    const FORMS: [Form; 2] = [Form::Runtime, Form::Component];

    /// One gRPC message.
    fn frame(message: &[u8]) -> Vec<u8> {
        let length = (message.len() as u32).to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    /// What is in a stream that comes in one chunk.
    fn read(form: Form, stream: &[u8]) -> (Vec<Piece>, Result<(), Fault>) {
        let mut reader = Reader::new(form);
        let mut pieces = Vec::new();
        let outcome = reader.read(stream, |piece| pieces.push(piece));
        let outcome = outcome.and_then(|()| reader.finish());
        (pieces, outcome)
    }

    /// What is in one message that is sound.
    fn pieces(form: Form, message: &[u8]) -> Vec<Piece> {
        let (pieces, outcome) = read(form, &frame(message));
        assert_eq!(outcome, Ok(()), "{form:?} {message:x?}");
        pieces
    }

    /// What is wrong with one message.
    fn fault(form: Form, message: &[u8]) -> Fault {
        read(form, &frame(message)).1.unwrap_err()
    }

    fn initial(content: &[u8]) -> Piece {
        Initial(Bytes::copy_from_slice(content))
    }

    #[test]
    fn payload_is_found_where_it_lies() {
        let runtime = pieces(Form::Runtime, b"\x12\x06\x0a\x02hi\x10\x07");
        let component = pieces(Form::Component, b"\x12\x02hi\x18\x07");

        assert_eq!(runtime, [Start(2), Data { start: 9, end: 11 }, End(7)]);
        assert_eq!(component, [Start(2), Data { start: 7, end: 9 }, End(7)]);
    }

    #[test]
    fn raw_chunks_are_messages_of_their_own() {
        let mut reader = Reader::new(Form::Raw);
        let mut pieces = Vec::new();
        for chunk in [&b"\x07a"[..], b"", b"b"] {
            assert_eq!(reader.read(chunk, |piece| pieces.push(piece)), Ok(()));
            assert!(reader.has_begun());
            assert_eq!(reader.finish(), Ok(()));
        }

        let first = [Start(2), Data { start: 0, end: 2 }, End(0)];
        let second = [Start(1), Data { start: 0, end: 1 }, End(1)];
        assert_eq!(pieces, [first, second].concat());
    }

    #[test]
    fn absent_number_is_zero() {
        assert_eq!(pieces(Form::Runtime, b"\x12\x03\x0a\x01x")[2], End(0));
        assert_eq!(pieces(Form::Component, b"\x12\x01x")[2], End(0));
    }

    #[test]
    fn number_may_stand_before_the_data() {
        let runtime = pieces(Form::Runtime, b"\x12\x05\x10\x07\x0a\x01x");
        let component = pieces(Form::Component, b"\x18\x07\x12\x01x");

        assert_eq!(runtime, [Start(1), Data { start: 11, end: 12 }, End(7)]);
        assert_eq!(component, [Start(1), Data { start: 9, end: 10 }, End(7)]);
    }

    #[test]
    fn last_of_two_numbers_counts() {
        let runtime = pieces(Form::Runtime, b"\x12\x07\x10\x07\x0a\x01x\x10\x08");
        let component = pieces(Form::Component, b"\x18\x07\x12\x01x\x18\x08");

        assert_eq!((&runtime[2], &component[2]), (&End(8), &End(8)));
    }

    #[test]
    fn number_has_64_bits() {
        let number = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        let message = [b"\x12\0\x18", &number[..]].concat();

        assert_eq!(pieces(Form::Component, &message), [Start(0), End(u64::MAX)]);
    }

    #[test]
    fn sequence_is_left_to_the_caller() {
        let stream = [b"\x12\0\x18\x05", b"\x12\0\x18\x05"].map(|message| frame(message));

        let (pieces, outcome) = read(Form::Component, &stream.concat());

        assert_eq!(outcome, Ok(()));
        assert_eq!(pieces, [Start(0), End(5), Start(0), End(5)]);
    }

    #[test]
    fn empty_payload_is_payload() {
        let empty = [Start(0), End(0)];
        assert_eq!(pieces(Form::Runtime, b"\x12\0"), empty); // neither data nor a number
        assert_eq!(pieces(Form::Runtime, b"\x12\x02\x0a\0"), empty);
        assert_eq!(pieces(Form::Component, b"\x12\0"), empty);

        let numbered = [Start(0), End(7)];
        assert_eq!(pieces(Form::Runtime, b"\x12\x02\x10\x07"), numbered);
        assert_eq!(pieces(Form::Runtime, b"\x12\x04\x0a\0\x10\x07"), numbered);
        assert_eq!(pieces(Form::Component, b"\x12\0\x18\x07"), numbered);
    }

    #[test]
    fn unknown_fields_are_stepped_over() {
        // 4: "id", 5: fixed32, 6: fixed64, 7: a group of { 1: 1 }, 8: 1
        let unknown = b"\x22\x02id\x2d1234\x3112345678\x3b\x08\x01\x3c\x40\x01";
        let payload = [unknown, &b"\x0a\x01x"[..], unknown, b"\x10\x07", unknown].concat();
        let length = payload.len() as u8;
        let runtime = [unknown, &[0x12, length][..], &payload, unknown].concat();
        let component = [unknown, &b"\x12\x01x"[..], unknown, b"\x18\x07", unknown].concat();
        let opening = [unknown, &b"\x0a\x02hi"[..], unknown].concat();

        for (form, message) in [(Form::Runtime, runtime), (Form::Component, component)] {
            let seen = pieces(form, &message);
            assert!(
                matches!(seen[..], [Start(1), Data { .. }, End(7)]),
                "{seen:?}"
            );
            assert_eq!(pieces(form, &opening), [initial(b"hi")]);
        }
    }

    #[test]
    fn initial_message_comes_whole_from_any_two_chunks() {
        for form in FORMS {
            let stream = frame(b"\x0a\x05hello");
            for at in 0..=stream.len() {
                let (before, after) = stream.split_at(at);
                let mut reader = Reader::new(form);
                let mut pieces = Vec::new();
                reader.read(before, |piece| pieces.push(piece)).unwrap();
                assert_eq!(pieces.len(), usize::from(after.is_empty()));
                reader.read(after, |piece| pieces.push(piece)).unwrap();

                assert_eq!(pieces, [initial(b"hello")]);
                assert_eq!(reader.finish(), Ok(()));
            }
        }
    }

    #[test]
    fn initial_message_may_be_empty_or_in_parts() {
        for form in FORMS {
            assert_eq!(pieces(form, b"\x0a\0"), [initial(b"")]);
            let parts = b"\x0a\x02\x0a\0\x0a\0\x0a\x02\x12\0";
            assert_eq!(pieces(form, parts), [initial(b"\x0a\0\x12\0")]);
        }
    }

    #[test]
    fn number_of_an_initial_message_is_passed_over() {
        let message = b"\x0a\x01x\x18\x07";
        assert_eq!(pieces(Form::Component, message), [initial(b"x")]);
    }

    #[test]
    fn initial_message_has_a_bound() {
        for form in FORMS {
            // 65536 bytes, at once and in parts.
            let largest = [&b"\x0a\x80\x80\x04"[..], &[b'x'; INITIAL_MAX]].concat();
            assert_eq!(pieces(form, &largest), [initial(&[b'x'; INITIAL_MAX])]);
            let part = [&b"\x0a\x80\x80\x02"[..], &[b'x'; INITIAL_MAX / 2]].concat();
            let parts = [&part[..], &part].concat();
            assert_eq!(pieces(form, &parts), [initial(&[b'x'; INITIAL_MAX])]);

            // One byte more is refused by the length alone, before any of it is kept.
            let too_large = fault(form, b"\x0a\x81\x80\x04");
            assert_eq!(too_large, Fault::InitialTooLarge);
            let too_many = [&parts[..], b"\x0a\x01"].concat();
            assert_eq!(fault(form, &too_many), Fault::InitialTooLarge);
            let absurd = b"\x0a\x01x\x0a\xf0\xff\xff\xff\xff\xff\xff\xff\xff\x01";
            assert_eq!(fault(form, absurd), Fault::InitialTooLarge);
        }
    }

    #[test]
    fn initial_message_only_opens_a_stream() {
        for form in FORMS {
            for first in [&b"\x0a\x01x"[..], b"\x12\0"] {
                let stream = [frame(first), frame(b"\x0a\x01y")].concat();
                let (pieces, outcome) = read(form, &stream);
                assert_eq!(outcome, Err(Fault::InitialNotFirst));
                assert!(!pieces.contains(&initial(b"y")));
            }
        }
    }

    #[test]
    fn stream_of_something_else_is_refused() {
        for form in FORMS {
            let outcome = read(form, b"{\"name\":").1;
            assert_eq!(outcome, Err(Fault::Frame(FrameError::BadFlag(b'{'))));
            let outcome = read(form, b"\x01\0\0\0\x02\x12\0").1;
            assert_eq!(outcome, Err(Fault::Compressed));
        }
    }

    #[test]
    fn message_that_is_no_protobuf_is_refused() {
        for form in FORMS {
            let bad_number = Fault::Field(FieldError::BadNumber);
            assert_eq!(fault(form, b"\0"), bad_number);
            let bad_wire_type = Fault::Field(FieldError::BadWireType(7));
            assert_eq!(fault(form, b"\x0f"), bad_wire_type);
            // The frame ends within the payload, and so does the message.
            let cut_off = Fault::Field(FieldError::Truncated);
            assert_eq!(fault(form, b"\x12\x04\x0a\x02h"), cut_off);
        }
        let overrun = Fault::Field(FieldError::Overrun);
        assert_eq!(fault(Form::Runtime, b"\x12\x03\x0a\x02hi"), overrun);
    }

    #[test]
    fn wrong_wire_types_are_refused() {
        for message in [
            &b"\x08\x01"[..],        // initial: 1
            b"\x0d1234",             // initial as fixed32
            b"\x10\x01",             // payload: 1
            b"\x1112345678",         // payload as fixed64
            b"\x12\x02\x08\x01",     // data: 1
            b"\x12\x02\x12\0",       // number: ""
            b"\x12\x05\x151234",     // number as fixed32
            b"\x12\x09\x0912345678", // data as fixed64
        ] {
            assert_eq!(fault(Form::Runtime, message), Fault::WireType);
        }
        for message in [&b"\x08\x01"[..], b"\x10\x01", b"\x1a\0", b"\x1d1234"] {
            assert_eq!(fault(Form::Component, message), Fault::WireType);
        }
    }

    #[test]
    fn message_holds_one_thing() {
        for form in FORMS {
            assert_eq!(fault(form, b"\x0a\0\x12\0"), Fault::Both);
            assert_eq!(fault(form, b"\x12\0\x0a\0"), Fault::Both);
            assert_eq!(fault(form, b"\x12\0\x12\0"), Fault::Twice);
            assert_eq!(fault(form, b""), Fault::Neither);
            assert_eq!(fault(form, b"\x22\x02id"), Fault::Neither);
        }
        let data_twice = b"\x12\x04\x0a\0\x0a\0";
        assert_eq!(fault(Form::Runtime, data_twice), Fault::Twice);
        assert_eq!(fault(Form::Component, b"\x18\x07"), Fault::Neither);
    }

    #[test]
    fn payload_leaves_room_to_be_wrapped() {
        // 4 GiB - 65 bytes, of which none come.
        let begun = read(
            Form::Component,
            b"\0\xff\xff\xff\xff\x12\xbf\xff\xff\xff\x0f",
        );
        assert_eq!(begun, (vec![Start(DATA_MAX)], Err(Fault::Truncated)));

        for (form, message) in [
            (Form::Component, &b"\x12\xc0\xff\xff\xff\x0f"[..]),
            (
                Form::Runtime,
                b"\x12\xff\xff\xff\xff\x0f\x0a\xc0\xff\xff\xff\x0f",
            ),
        ] {
            let stream = [b"\0\xff\xff\xff\xff", message].concat();
            assert_eq!(read(form, &stream), (vec![], Err(Fault::TooLarge)));
        }
    }

    #[test]
    fn stream_may_end_only_between_messages() {
        for form in FORMS {
            assert_eq!(read(form, b""), (vec![], Ok(())));
            let stream = [frame(b"\x0a\x01x"), frame(b"\x12\0")].concat();
            for end in 0..=stream.len() {
                let outcome = read(form, &stream[..end]).1;
                let whole = [0, 8, stream.len()].contains(&end);
                let expected = if whole { Ok(()) } else { Err(Fault::Truncated) };
                assert_eq!(outcome, expected, "{end}");
            }
        }
    }

    #[test]
    fn fault_stays() {
        for form in FORMS {
            // The inspector has passed the compressed message; the stream is refused all the same.
            let mut reader = Reader::new(form);
            let compressed = reader.read(b"\x01\0\0\0\x02\x12\0", |_| panic!("a piece"));
            assert_eq!(compressed, Err(Fault::Compressed));
            let later = reader.read(&frame(b"\x12\0"), |_| panic!("a piece"));

            assert_eq!(later, Err(Fault::Compressed));
            assert_eq!(reader.finish(), Err(Fault::Compressed));
        }
    }

    #[test]
    fn first_of_two_faults_counts() {
        for form in FORMS {
            let twice_then_garbage = b"\x12\0\x12\0\0";
            assert_eq!(fault(form, twice_then_garbage), Fault::Twice);
            let garbage_then_twice = b"\0\x12\0\x12\0";
            let garbage = Fault::Field(FieldError::BadNumber);
            assert_eq!(fault(form, garbage_then_twice), garbage);
        }
    }

    #[test]
    fn stream_begins_with_a_whole_message_or_with_payload() {
        for (stream, begins_at) in [
            (frame(b"\x0a\x02hi"), 9),
            (frame(b"\x12\x02hi"), 7),
            (frame(b"\x18\x07\x12\0"), 9),
        ] {
            let mut reader = Reader::new(Form::Component);
            for (i, byte) in stream.iter().enumerate() {
                assert_eq!(reader.has_begun(), i >= begins_at, "{i} {stream:x?}");
                reader.read(&[*byte], |_| {}).unwrap();
            }
            assert!(reader.has_begun());
        }
    }

    #[test]
    fn sequence_fault_names_both_numbers() {
        let fault = Fault::Sequence {
            expected: 3,
            got: 5,
        };
        assert_eq!(
            fault.to_string(),
            "invalid sequence number: got 5, expected 3"
        );
    }
}
