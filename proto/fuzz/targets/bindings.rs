//! Any chunking of a binding stream gives the same payload, and so does any form that it is wrapped in.

#![no_main]

use arbitrary::Arbitrary;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use thalweg_proto::{
    FrameInspector,
    bindings::{
        Form,
        reader::{Fault, Piece, Reader},
        writer::Writer,
    },
};
use thalweg_proto_fuzz::Chunked;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    from_component: bool,
    to_component: bool,
    first: u64,
    stream: Chunked<'a>,
}

fuzz_target!(|input: Input<'_>| {
    let from = wrapped(input.from_component);
    let to = wrapped(input.to_component);

    let whole = translate(from, to, input.first, [input.stream.bytes]);
    let chunked = translate(from, to, input.first, input.stream.chunks());
    assert_eq!(chunked, whole);

    // What has been written is sound up to where the stream was, and says the same.
    let again = translate(to, from, 0, [&whole.written[..]]);
    assert_eq!(again.payload, whole.payload);
    assert_eq!(again.initial, whole.initial);
    assert_eq!(again.messages, whole.messages);
    let counted = (0..whole.messages).map(|i| input.first.wrapping_add(i));
    assert!(again.numbers.into_iter().eq(counted));
    assert!(again.outcome.is_ok() || whole.outcome.is_err());

    let plain = translate(from, Form::Raw, 0, input.stream.chunks());
    assert_eq!(plain.written, whole.payload);
    translate(Form::Raw, to, input.first, input.stream.chunks())
        .outcome
        .expect("plain bytes are always sound");
});

fn wrapped(component: bool) -> Form {
    if component {
        Form::Component
    } else {
        Form::Runtime
    }
}

/// What a stream held, and what became of it.
#[derive(Debug, PartialEq)]
struct Translated {
    initial: Option<Vec<u8>>,
    payload: Vec<u8>,
    messages: u64,
    numbers: Vec<u64>,
    written: Vec<u8>,
    outcome: Result<(), Fault>,
}

fn translate<'a>(
    from: Form,
    to: Form,
    first: u64,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Translated {
    let mut reader = Reader::new(from);
    let mut writer = Writer::new(to, first);
    let mut frames = FrameInspector::new();
    let mut seen = Translated {
        initial: None,
        payload: Vec::new(),
        messages: 0,
        numbers: Vec::new(),
        written: Vec::new(),
        outcome: Ok(()),
    };
    let mut due = None;
    for chunk in chunks {
        let outcome = reader.read(chunk, |piece| {
            let mut buffer = BytesMut::new();
            let mut ended = false;
            match piece {
                Piece::Initial(content) => {
                    assert!(seen.messages == 0 && due.is_none());
                    assert_eq!(seen.initial.replace(content.to_vec()), None);
                    writer.initial(&content, &mut buffer);
                    ended = true;
                }
                Piece::Start(length) => {
                    assert_eq!(due.replace(length), None);
                    writer.start(length, &mut buffer);
                }
                Piece::Data { start, end } => {
                    let data = &chunk[start..end];
                    assert!(!data.is_empty());
                    due = due.map(|due| due - data.len() as u64);
                    assert!(due.is_some());
                    seen.payload.extend(data);
                    buffer.extend_from_slice(data);
                }
                Piece::End(number) => {
                    assert_eq!(due.take(), Some(0));
                    seen.messages += 1;
                    seen.numbers.push(number);
                    writer.end(&mut buffer);
                    ended = true;
                }
            }
            if to != Form::Raw {
                // No message is whole before the one that was read.
                assert_eq!(frames.count(&buffer), Ok(u64::from(ended)));
                assert_eq!(frames.is_at_boundary(), ended);
            }
            seen.written.extend(buffer);
        });
        if outcome.is_err() {
            assert_eq!(reader.read(chunk, |_| panic!("a fault stays")), outcome);
            assert_eq!(reader.finish(), outcome);
            break;
        }
    }
    seen.outcome = reader.finish();
    assert!(due.is_none() || seen.outcome.is_err());
    seen
}
