//! `grpc-message` can always be read, and what is written reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::status::{Code, decode_message, encode_message};

fuzz_target!(|value: &[u8]| {
    Code::from_header(value);

    let text = decode_message(value);
    let encoded = encode_message(&text);
    assert!(encoded.bytes().all(|byte| matches!(byte, 0x20..=0x7e)));
    assert_eq!(decode_message(encoded.as_bytes()), text);
});
