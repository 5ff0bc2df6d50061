//! Writes payload as binding messages, without holding it.
//!
//! A message is written as what stands before its payload and what stands after it; the payload in between goes its own way.
//! What stands after it is never empty, so that a message is not whole before [`Writer::end`] has been written, and whoever
//! judges it last still holds it back.

use bytes::{BufMut, BytesMut};

use super::{Form, put_head, put_initial, put_varint, varint_len};

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
        match self.form {
            Form::Runtime => {
                let payload = data + number;
                put_head(buffer, 1 + varint_len(payload) + payload);
                buffer.put_u8(0x12);
                put_varint(buffer, payload);
                buffer.put_u8(0x0a);
                put_varint(buffer, length);
            }
            Form::Component => {
                put_head(buffer, data + number);
                buffer.put_u8(0x12);
                put_varint(buffer, length);
            }
            Form::Raw => {}
        }
    }

    /// Writes what stands after the payload.
    pub fn end(&mut self, buffer: &mut BytesMut) {
        match self.form {
            Form::Runtime => buffer.put_u8(0x10),
            Form::Component => buffer.put_u8(0x18),
            Form::Raw => return,
        }
        put_varint(buffer, self.next);
        self.next += 1;
    }
}
