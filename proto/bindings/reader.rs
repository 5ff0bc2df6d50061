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
    /// A message has another number than the one that was due.
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
const DATA_MAX: u64 = u32::MAX as u64 - 64;

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
        }
    }

    /// Reports what is in the next chunk.
    pub fn read(&mut self, chunk: &[u8], mut report: impl FnMut(Piece)) -> Result<(), Fault> {
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
                    walked.map_err(Fault::Field)?;
                    fault.map_or(Ok(()), Err)?;
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
        if self.form == Form::Raw || self.frames.is_at_boundary() {
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
