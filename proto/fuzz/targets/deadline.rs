//! A deadline that is read and written again never grows.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use thalweg_proto::deadline;

#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    left: Duration,
    value: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    never_grows(input.left);
    if let Ok(timeout) = deadline::parse(input.value) {
        never_grows(timeout);
    }
});

fn never_grows(left: Duration) {
    let written = deadline::format(left);
    let read = deadline::parse(written.as_str().as_bytes()).expect("what is written can be read");
    assert!(read <= left);
    assert!(!read.is_zero() || left.is_zero());
}
