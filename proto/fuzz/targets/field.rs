//! Any chunking of a message gives the same fields as one chunk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::field::{
    FieldError, FieldEvent, FieldPath, FieldPaths, FieldValue, FieldWalker,
};
use thalweg_proto_fuzz::Chunked;

const PATHS: [FieldPath; 6] = [
    FieldPath::new(&[1]),
    FieldPath::new(&[1, 1]),
    FieldPath::new(&[2, 2]),
    FieldPath::new(&[2, 1, 1]),
    FieldPath::new(&[3]),
    FieldPath::new(&[1, 1, 1, 1, 1, 1, 1, 1]),
];

fuzz_target!(|input: Chunked<'_>| {
    let paths = FieldPaths::new(&PATHS).expect("distinct paths");
    let mut walker = FieldWalker::new(paths);

    let whole = walk(&mut walker, [input.bytes]);

    // The same walker: one message leaves nothing behind for the next.
    assert_eq!(walk(&mut walker, input.chunks()), whole);
});

/// All events up to the first error, bytes as their place in the message with neighbours merged.
fn walk<'a>(
    walker: &mut FieldWalker,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<FieldEvent>, Result<(), FieldError>) {
    let mut seen: Vec<FieldEvent> = Vec::new();
    let mut passed = 0;
    for chunk in chunks {
        let outcome = walker.walk(chunk, |FieldEvent { path, mut value }| {
            if let FieldValue::Bytes { start, end } = &mut value {
                assert!(*start < *end && *end <= chunk.len());
                *start += passed;
                *end += passed;
                if let Some(last) = seen.last_mut()
                    && last.path == path
                    && let FieldValue::Bytes { end: before, .. } = &mut last.value
                    && *before == *start
                {
                    *before = *end;
                    return;
                }
            }
            seen.push(FieldEvent { path, value });
        });
        if outcome.is_err() {
            break;
        }
        passed += chunk.len();
    }
    (seen, walker.finish())
}
