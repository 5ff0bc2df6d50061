//! A header of the PROXY protocol is the same however it comes, and ends where it says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::proxy::{LONGEST, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    let first = (0..=bytes.len()).map(|end| (end, parse(&bytes[..end])));
    let (end, first) = first
        .skip_while(|(_, found)| *found == Ok(None))
        .next()
        .unwrap_or((bytes.len(), Ok(None)));
    assert_eq!(first, whole, "more bytes change nothing");
    if let Ok(Some(header)) = whole {
        assert_eq!(header.len, end);
        assert!(header.len <= LONGEST);
    }
});
