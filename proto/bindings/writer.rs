//! Writes payload as binding messages, without holding it.
//!
//! A message is written as what stands before its payload and what stands after it; the payload in between goes its own way.
//! What stands after it is never empty, so that a message is not whole before [`Writer::end`] has been written, and whoever
//! judges it last still holds it back.

use bytes::{BufMut, BytesMut};

use super::{Form, put_head, put_initial, put_varint, varint_len};

/// More than stands on either side of payload: a head, two tags and two varints, or a tag and a varint.
const AROUND_MAX: usize = 5 + 2 * (1 + 10);

/// Writes one stream; see the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    form: Form,
    /// The number of the next message with payload.
    next: u64,
}

impl Writer {
    /// For a stream in this form, whose first message with payload has the number `first`.
    pub fn new(form: Form, first: u64) -> Self {
        Self { form, next: first }
    }

    /// The number of the next message with payload.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Writes an initial message.
    pub fn initial(&self, content: &[u8], buffer: &mut BytesMut) {
        if self.form != Form::Raw {
            put_initial(buffer, content);
        }
    }

    /// Writes what stands before `length` bytes of payload.
    pub fn start(&self, length: u64, buffer: &mut BytesMut) {
        let number = 1 + varint_len(self.next);
        let data = 1 + varint_len(length) + length;
        put_together(buffer, |mut start| {
            match self.form {
                Form::Runtime => {
                    let payload = data + number;
                    put_head(&mut start, 1 + varint_len(payload) + payload);
                    start.put_u8(0x12);
                    put_varint(&mut start, payload);
                    start.put_u8(0x0a);
                    put_varint(&mut start, length);
                }
                Form::Component => {
                    put_head(&mut start, data + number);
                    start.put_u8(0x12);
                    put_varint(&mut start, length);
                }
                Form::Raw => {}
            }
            start.len()
        });
    }

    /// Writes what stands after the payload.
    pub fn end(&mut self, buffer: &mut BytesMut) {
        let tag = match self.form {
            Form::Runtime => 0x10,
            Form::Component => 0x18,
            Form::Raw => return,
        };
        put_together(buffer, |mut end| {
            end.put_u8(tag);
            put_varint(&mut end, self.next);
            end.len()
        });
        self.next = self.next.wrapping_add(1); // `first` may be anything
    }
}

/// Puts what `write` writes into the buffer at once: asking for room byte by byte costs more than the bytes. `write` says how
/// much room it has left.
fn put_together(buffer: &mut BytesMut, write: impl FnOnce(&mut [u8]) -> usize) {
    let mut bytes = [0; AROUND_MAX];
    let left = write(&mut bytes);
    buffer.put_slice(&bytes[..AROUND_MAX - left]);
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;
    use crate::{FrameInspector, bindings::reader::DATA_MAX};

    const FORMS: [Form; 3] = [Form::Runtime, Form::Component, Form::Raw];

    /// One message with payload.
    fn written(writer: &mut Writer, payload: &[u8]) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        writer.start(payload.len() as u64, &mut buffer);
        buffer.put_slice(payload);
        writer.end(&mut buffer);
        buffer.to_vec()
    }

    #[test]
    fn payload_is_wrapped_and_numbered() {
        let mut runtime = Writer::new(Form::Runtime, 0);
        let mut component = Writer::new(Form::Component, 127);

        // A number of zero is written, too.
        let first = b"\0\0\0\0\x08\x12\x06\x0a\x02hi\x10\0";
        assert_eq!(written(&mut runtime, b"hi"), first);
        let second = b"\0\0\0\0\x06\x12\x04\x0a\0\x10\x01";
        assert_eq!(written(&mut runtime, b""), second);
        let first = b"\0\0\0\0\x06\x12\x02hi\x18\x7f";
        assert_eq!(written(&mut component, b"hi"), first);
        let second = b"\0\0\0\0\x05\x12\0\x18\x80\x01";
        assert_eq!(written(&mut component, b""), second);
        assert_eq!((runtime.next(), component.next()), (2, 129));
    }

    #[test]
    fn raw_payload_stays_as_it_is() {
        let mut writer = Writer::new(Form::Raw, 0);
        let mut buffer = BytesMut::new();
        writer.initial(b"initial", &mut buffer);

        assert!(buffer.is_empty());
        assert_eq!(written(&mut writer, b"hi"), b"hi");
    }

    #[test]
    fn initial_message_takes_no_number() {
        for form in [Form::Runtime, Form::Component] {
            let writer = Writer::new(form, 3);
            let mut buffer = BytesMut::new();
            writer.initial(b"hi", &mut buffer);

            assert_eq!(buffer[..], b"\0\0\0\0\x04\x0a\x02hi"[..]);
            assert_eq!(writer.next(), 3);
        }
    }

    #[test]
    fn message_is_whole_only_at_its_end() {
        for form in [Form::Runtime, Form::Component] {
            for length in [0, 1, 127, 128, 16_383, 16_384] {
                for number in [0, 127, 128, u64::MAX] {
                    let mut writer = Writer::new(form, number);
                    let mut frames = FrameInspector::new();
                    let mut buffer = BytesMut::new();
                    writer.start(length, &mut buffer);
                    buffer.put_bytes(b'x', length as usize);
                    assert_eq!(frames.count(&buffer.split()), Ok(0));
                    assert!(!frames.is_at_boundary());

                    writer.end(&mut buffer);
                    assert_eq!(frames.count(&buffer), Ok(1));
                    assert!(frames.is_at_boundary());
                }
            }
        }
    }

    #[test]
    fn largest_payload_fits_a_message() {
        for (form, around) in [
            (Form::Runtime, 1 + 5 + 1 + 5 + 11),
            (Form::Component, 1 + 5 + 11),
        ] {
            let writer = Writer::new(form, u64::MAX);
            let mut buffer = BytesMut::new();
            writer.start(DATA_MAX, &mut buffer);

            let length = u64::from((&buffer[1..]).get_u32());
            assert_eq!(length, DATA_MAX + around);
        }
    }

    #[test]
    fn numbers_start_again_after_the_last_one() {
        for form in FORMS {
            let mut writer = Writer::new(form, u64::MAX);
            written(&mut writer, b"x");

            let next = if form == Form::Raw { u64::MAX } else { 0 };
            assert_eq!(writer.next(), next);
        }
    }
}
