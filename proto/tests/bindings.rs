//! Holds the messages of bindings against `schema/`: what one side encodes, the other one decodes.
//!
//! Names come from the schema and numbers from the code, so that a wrong tag in either does not stay unseen.

use std::{fmt::Debug, path::Path, sync::LazyLock};

use bytes::{BufMut, BytesMut};
use prost_reflect::{
    DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use thalweg_proto::bindings::{
    ComponentInitialRequest, Empty, FirstRequest, Form, InitRequest, InitialRequest,
    InitialResponse, InvokeBindingRequest, InvokeBindingResponse, InvokeRequest, InvokeResponse,
    ListOperationsResponse, Message, Properties, framed, framed_initial,
    reader::{Piece, Reader},
    reflection::{self, FileDescriptor, FileDescriptorResponse},
    writer::Writer,
};

const FILES: [&str; 6] = [
    "dapr/proto/common/v1/common.proto",
    "dapr/proto/components/v1/bindings.proto",
    "dapr/proto/components/v1/common.proto",
    "dapr/proto/runtime/v1/binding.proto",
    "dapr/proto/runtime/v1/dapr.proto",
    "grpc/health/v1/health.proto",
];

static SCHEMA: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let files = protox::compile(FILES, [root]).expect("the schema compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("the schema is whole")
});

// === messages by name ===

const RUNTIME: &str = "dapr.proto.runtime.v1";
const COMPONENTS: &str = "dapr.proto.components.v1";

/// A message with these fields.
fn message(package: &str, name: &str, fields: &[(&str, Value)]) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor(package, name));
    for (field, value) in fields {
        message
            .try_set_field_by_name(field, value.clone())
            .unwrap_or_else(|error| panic!("{name}.{field}: {error}"));
    }
    message
}

fn decoded(package: &str, name: &str, bytes: &[u8]) -> DynamicMessage {
    let message =
        DynamicMessage::decode(descriptor(package, name), bytes).expect("a sound message");
    // A field with its default value may have been there or not. Encoding leaves it out.
    let bytes = message.encode_to_vec();
    DynamicMessage::decode(descriptor(package, name), &*bytes).expect("a sound message")
}

fn descriptor(package: &str, name: &str) -> MessageDescriptor {
    let name = format!("{package}.{name}");
    let descriptor = SCHEMA.get_message_by_name(&name);
    descriptor.unwrap_or_else(|| panic!("{name} is not in the schema"))
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn bytes(bytes: &'static str) -> Value {
    Value::Bytes(bytes.into())
}

fn map(entries: &[(&str, &str)]) -> Value {
    let entry = |(key, value): &(&str, &str)| (MapKey::String((*key).into()), text(value));
    Value::Map(entries.iter().map(entry).collect())
}

/// Checks that a message of the code is one of the schema, in both directions and with all fields.
fn assert_same<M>(package: &str, name: &str, fields: &[(&str, Value)], ours: &M)
where
    M: Message + Default + PartialEq + Debug,
{
    let theirs = message(package, name, fields);
    let all = theirs.descriptor().fields().len();

    assert_eq!(fields.len(), all, "{name} has fields that are not tested");
    assert_eq!(M::decode(&*theirs.encode_to_vec()).as_ref(), Ok(ours));
    assert_eq!(decoded(package, name, &ours.encode_to_vec()), theirs);
}

const PAIRS: [(&str, &str); 2] = [("blobName", "a"), ("ttl", "1")];

fn pairs() -> std::collections::BTreeMap<String, String> {
    PAIRS.map(|(key, value)| (key.into(), value.into())).into()
}

// === the files ===

#[test]
fn files_lie_where_their_packages_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(&root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, FILES.map(Path::new), "files that are not tested");

    for file in FILES {
        let file = SCHEMA.get_file_by_name(file).unwrap();
        let folder = file.package_name().replace('.', "/");
        assert!(file.name().starts_with(&format!("{folder}/")), "{file:?}");
    }
}

#[test]
fn services_have_the_methods_that_are_called() {
    // Each with whether it streams.
    let runtime = [("InvokeBinding", false), ("InvokeBindingAlpha1", true)];
    let component = [
        ("Init", false),
        ("Invoke", false),
        ("InvokeStream", true),
        ("ListOperations", false),
        ("Ping", false),
    ];
    for (service, methods) in [
        (format!("{RUNTIME}.Dapr"), &runtime[..]),
        (format!("{COMPONENTS}.OutputBinding"), &component),
    ] {
        let descriptor = SCHEMA.get_service_by_name(&service).unwrap();
        let found: Vec<_> = descriptor
            .methods()
            .inspect(|method| {
                assert_eq!(method.is_client_streaming(), method.is_server_streaming())
            })
            .map(|method| (method.name().to_owned(), method.is_client_streaming()))
            .collect();
        let expected = methods
            .iter()
            .map(|&(name, streams)| (name.to_owned(), streams));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}

#[test]
fn reflection_finds_the_methods_of_a_compiled_file() {
    let files = SCHEMA.file_descriptor_protos();
    let response = FileDescriptorResponse {
        file_descriptor_proto: files.map(|file| file.encode_to_vec().into()).collect(),
    };

    let service = format!("{COMPONENTS}.OutputBinding");
    let found: Vec<_> = response
        .file_descriptor_proto
        .iter()
        .map(|file| FileDescriptor::decode(&**file).unwrap())
        .filter_map(|file| reflection::methods(&file, &service))
        .collect();

    let methods = ["Init", "Invoke", "InvokeStream", "ListOperations", "Ping"];
    assert_eq!(found, [methods.map(String::from)]);
}

// === single messages ===

#[test]
fn initial_messages_are_those_of_the_schema() {
    let request = [
        ("name", text("store")),
        ("operation", text("create")),
        ("metadata", map(&PAIRS)),
    ];
    let ours = InitialRequest {
        name: "store".into(),
        operation: "create".into(),
        metadata: pairs(),
    };
    assert_same(
        RUNTIME,
        "InvokeBindingStreamRequestInitial",
        &request,
        &ours,
    );

    let request = [("metadata", map(&PAIRS)), ("operation", text("create"))];
    let ours = ComponentInitialRequest {
        metadata: pairs(),
        operation: "create".into(),
    };
    assert_same(COMPONENTS, "InvokeStreamRequestInitial", &request, &ours);

    let response = [
        ("metadata", map(&PAIRS)),
        ("content_type", text("text/css")),
    ];
    let mut ours = InitialResponse {
        metadata: pairs(),
        content_type: "text/css".into(),
    };
    assert_same(COMPONENTS, "InvokeStreamResponseInitial", &response, &ours);

    // Towards clients, the content type is a field of its own that the schema does not have.
    let theirs = "InvokeBindingStreamResponseInitial";
    let unknown = decoded(RUNTIME, theirs, &ours.encode_to_vec());
    let numbers: Vec<u32> = unknown
        .unknown_fields()
        .map(|field| field.number())
        .collect();
    assert_eq!(numbers, [2]);
    ours.content_type.clear();
    assert_same(RUNTIME, theirs, &[("metadata", map(&PAIRS))], &ours);
}

#[test]
fn first_message_of_a_client_holds_the_initial_request() {
    let ours = InitialRequest {
        name: "store".into(),
        operation: "create".into(),
        metadata: pairs(),
    };
    let initial = decoded(
        RUNTIME,
        "InvokeBindingStreamRequestInitial",
        &ours.encode_to_vec(),
    );
    let initial = ("initial_request", Value::Message(initial));
    let theirs = message(RUNTIME, "InvokeBindingStreamRequest", &[initial]);

    let first = FirstRequest::decode(&*theirs.encode_to_vec()).unwrap();
    assert_eq!(first.initial_request.as_ref(), Some(&ours));
    for framed in [framed(&first), framed_initial(&ours)] {
        assert_eq!(framed[..5], [0, 0, 0, 0, framed.len() as u8 - 5]);
        let read = decoded(RUNTIME, "InvokeBindingStreamRequest", &framed[5..]);
        assert_eq!(read, theirs);
    }

    let payload = in_stream(Form::Runtime, "Request", Sent::Payload("hi", 0));
    let first = FirstRequest::decode(&*payload.encode_to_vec()).unwrap();
    assert_eq!(first.initial_request, None);
}

#[test]
fn unary_messages_are_those_of_the_schema() {
    let fields = [
        ("name", text("store")),
        ("data", bytes("hi")),
        ("metadata", map(&PAIRS)),
        ("operation", text("create")),
    ];
    let ours = InvokeBindingRequest {
        name: "store".into(),
        data: "hi".into(),
        metadata: pairs(),
        operation: "create".into(),
    };
    assert_same(RUNTIME, "InvokeBindingRequest", &fields, &ours);

    let fields = [("data", bytes("hi")), ("metadata", map(&PAIRS))];
    let ours = InvokeBindingResponse {
        data: "hi".into(),
        metadata: pairs(),
    };
    assert_same(RUNTIME, "InvokeBindingResponse", &fields, &ours);

    let fields = [
        ("data", bytes("hi")),
        ("metadata", map(&PAIRS)),
        ("operation", text("create")),
    ];
    let ours = InvokeRequest {
        data: "hi".into(),
        metadata: pairs(),
        operation: "create".into(),
    };
    assert_same(COMPONENTS, "InvokeRequest", &fields, &ours);

    let fields = [
        ("data", bytes("hi")),
        ("metadata", map(&PAIRS)),
        ("content_type", text("text/css")),
    ];
    let ours = InvokeResponse {
        data: "hi".into(),
        metadata: pairs(),
        content_type: "text/css".into(),
    };
    assert_same(COMPONENTS, "InvokeResponse", &fields, &ours);
}

#[test]
fn messages_of_a_components_life_are_those_of_the_schema() {
    let properties = [("properties", map(&PAIRS))];
    let ours = Properties {
        properties: pairs(),
    };
    assert_same(COMPONENTS, "MetadataRequest", &properties, &ours);

    let metadata = Value::Message(message(COMPONENTS, "MetadataRequest", &properties));
    let ours = InitRequest {
        metadata: Some(ours),
    };
    let fields = [("metadata", metadata)];
    assert_same(COMPONENTS, "OutputBindingInitRequest", &fields, &ours);

    let fields = [("operations", Value::List(vec![text("get"), text("create")]))];
    let ours = ListOperationsResponse {
        operations: vec!["get".into(), "create".into()],
    };
    assert_same(COMPONENTS, "ListOperationsResponse", &fields, &ours);

    for name in [
        "OutputBindingInitResponse",
        "ListOperationsRequest",
        "PingRequest",
        "PingResponse",
    ] {
        assert_same(COMPONENTS, name, &[], &Empty {});
    }
}

// === streams ===

const STREAMS: [(Form, &str); 4] = [
    (Form::Runtime, "Request"),
    (Form::Runtime, "Response"),
    (Form::Component, "Request"),
    (Form::Component, "Response"),
];

/// A message of a stream: an initial one with metadata, or payload and its number.
#[derive(Clone, Copy)]
enum Sent {
    Initial,
    Payload(&'static str, u64),
}

/// Numbers from `first` on. One payload is empty, and one number has two bytes.
fn sent(first: u64) -> [Sent; 4] {
    [
        Sent::Initial,
        Sent::Payload("hello", first),
        Sent::Payload("", first + 1),
        Sent::Payload("world", first + 2),
    ]
}

/// The message by the names of the schema.
fn in_stream(form: Form, direction: &str, sent: Sent) -> DynamicMessage {
    let (package, stream) = match form {
        Form::Component => (COMPONENTS, "InvokeStream"),
        _ => (RUNTIME, "InvokeBindingStream"),
    };
    let fields = match (sent, form) {
        (Sent::Initial, _) => {
            let name = format!("{stream}{direction}Initial");
            // One entry: a map has no order.
            let initial = message(package, &name, &[("metadata", map(&PAIRS[..1]))]);
            let field = match direction {
                "Request" => "initial_request",
                _ => "initial_response",
            };
            vec![(field, Value::Message(initial))]
        }
        (Sent::Payload(data, number), Form::Component) => {
            vec![("data", bytes(data)), ("seq", Value::U64(number))]
        }
        (Sent::Payload(data, number), _) => {
            let fields = [("data", bytes(data)), ("seq", Value::U64(number))];
            let payload = message("dapr.proto.common.v1", "StreamPayload", &fields);
            vec![("payload", Value::Message(payload))]
        }
    };
    let message = message(package, &format!("{stream}{direction}"), &fields);
    let bytes = message.encode_to_vec();
    decoded(package, &format!("{stream}{direction}"), &bytes)
}

/// The initial message alone, encoded.
fn initial(form: Form, direction: &str) -> Vec<u8> {
    let message = in_stream(form, direction, Sent::Initial);
    let (_, initial) = message.fields().next().expect("one field");
    initial.as_message().expect("a message").encode_to_vec()
}

#[test]
fn reader_finds_what_the_schema_encodes() {
    for (form, direction) in STREAMS {
        let mut stream = BytesMut::new();
        for sent in sent(126) {
            stream.put_slice(&framed(&in_stream(form, direction, sent)));
        }

        let mut reader = Reader::new(form);
        let mut seen = Vec::new();
        let mut payload = Vec::new();
        let outcome = reader.read(&stream, |piece| match piece {
            Piece::Data { start, end } => payload.extend_from_slice(&stream[start..end]),
            piece => seen.push(piece),
        });

        assert_eq!(outcome.and_then(|()| reader.finish()), Ok(()));
        assert_eq!(payload, b"helloworld");
        let expected = [
            Piece::Initial(initial(form, direction).into()),
            Piece::Start(5),
            Piece::End(126),
            Piece::Start(0),
            Piece::End(127),
            Piece::Start(5),
            Piece::End(128),
        ];
        assert_eq!(seen, expected, "{form:?} {direction}");
    }
}

#[test]
fn schema_decodes_what_the_writer_writes() {
    for (form, direction) in STREAMS {
        for first in [0, 126] {
            let mut writer = Writer::new(form, first);
            for sent in sent(first) {
                let mut buffer = BytesMut::new();
                match sent {
                    Sent::Initial => writer.initial(&initial(form, direction), &mut buffer),
                    Sent::Payload(data, _) => {
                        writer.start(data.len() as u64, &mut buffer);
                        buffer.put_slice(data.as_bytes());
                        writer.end(&mut buffer);
                    }
                }

                let expected = in_stream(form, direction, sent);
                let (head, message) = buffer.split_at(5);
                assert_eq!(head, [0, 0, 0, 0, message.len() as u8]);
                let descriptor = expected.descriptor();
                let package = descriptor.package_name();
                assert_eq!(decoded(package, descriptor.name(), message), expected);
            }
        }
    }
}

#[test]
fn component_counts_its_initial_request_and_others_do_not() {
    // Without a number, the initial request has number 0; the writer goes on with 1.
    let mut writer = Writer::new(Form::Component, 1);
    let mut stream = BytesMut::new();
    writer.initial(&initial(Form::Component, "Request"), &mut stream);
    let after_initial = stream.len();
    writer.start(0, &mut stream);
    writer.end(&mut stream);

    for (message, number) in [
        (&stream[5..after_initial], 0),
        (&stream[after_initial + 5..], 1),
    ] {
        let message = decoded(COMPONENTS, "InvokeStreamRequest", message);
        let seq = message.get_field_by_name("seq").unwrap();
        assert_eq!(seq.as_u64(), Some(number));
    }
}
