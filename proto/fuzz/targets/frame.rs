//! Any chunking of a body gives the same messages as one chunk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::frame::{Event, FrameError, FrameInspector};
use thalweg_proto_fuzz::Chunked;

fuzz_target!(|input: Chunked<'_>| {
    let mut inspector = FrameInspector::new();
    let whole = inspect(&mut inspector, [input.bytes]);

    let mut chunked = FrameInspector::new();
    assert_eq!(inspect(&mut chunked, input.chunks()), whole);
    assert_eq!(chunked.messages(), inspector.messages());
    assert_eq!(chunked.is_at_boundary(), inspector.is_at_boundary());

    let mut counting = FrameInspector::new();
    let mut dropping = FrameInspector::new();
    for (i, chunk) in input.chunks().enumerate() {
        let _ = counting.count(chunk);
        dropping.inspect(chunk).take(i % 4).for_each(drop);
    }
    for other in [counting, dropping] {
        assert_eq!(other.messages(), inspector.messages());
        assert_eq!(other.is_at_boundary(), inspector.is_at_boundary());
    }
});

/// All events up to the first error, payload as its place in the body with neighbours merged.
fn inspect<'a>(
    inspector: &mut FrameInspector,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Option<FrameError>) {
    let mut seen = Vec::new();
    let mut fault = None;
    let mut passed = 0;
    for chunk in chunks {
        for event in inspector.inspect(chunk) {
            match event {
                Ok(Event::Payload { start, end }) => {
                    assert!(start < end && end <= chunk.len());
                    let (from, to) = (passed + start, passed + end);
                    match seen.last_mut() {
                        Some(Event::Payload { end, .. }) if *end == from => *end = to,
                        _ => seen.push(Event::Payload {
                            start: from,
                            end: to,
                        }),
                    }
                }
                Ok(event) => seen.push(event),
                Err(error) => fault = Some(error),
            }
        }
        passed += chunk.len();
    }
    (seen, fault)
}
