"""The messages of Dapr's bindings, and the descriptors of their services, without a compiler of .proto files."""

import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

COMMON = "dapr.proto.common.v1"
RUNTIME = "dapr.proto.runtime.v1"
COMPONENTS = "dapr.proto.components.v1"

# Fields as `type name = number`; those after a `|` are of one oneof, and `map` is a map of strings to strings.
MESSAGES = {
    COMMON: {
        "StreamPayload": "bytes data = 1, uint64 seq = 2",
    },
    RUNTIME: {
        "InvokeBindingRequest": "string name = 1, bytes data = 2, map metadata = 3, string operation = 4",
        "InvokeBindingResponse": "bytes data = 1, map metadata = 2",
        "InvokeBindingStreamRequest": "| InvokeBindingStreamRequestInitial initial_request = 1, StreamPayload payload = 2",
        "InvokeBindingStreamRequestInitial": "string name = 1, string operation = 2, map metadata = 3",
        "InvokeBindingStreamResponse": "| InvokeBindingStreamResponseInitial initial_response = 1, StreamPayload payload = 2",
        "InvokeBindingStreamResponseInitial": "map metadata = 1",
    },
    COMPONENTS: {
        "MetadataRequest": "map properties = 1",
        "OutputBindingInitRequest": "MetadataRequest metadata = 1",
        "OutputBindingInitResponse": "",
        "PingRequest": "",
        "PingResponse": "",
        "ListOperationsRequest": "",
        "ListOperationsResponse": "repeated operations = 1",
        "InvokeRequest": "bytes data = 1, map metadata = 2, string operation = 3",
        "InvokeResponse": "bytes data = 1, map metadata = 2, string content_type = 3",
        "InvokeStreamRequest": "uint64 seq = 3, string message_id = 4 | InvokeStreamRequestInitial initial_request = 1, bytes data = 2",
        "InvokeStreamRequestInitial": "map metadata = 1, string operation = 2",
        "InvokeStreamResponse": "uint64 seq = 3, string message_id = 4 | InvokeStreamResponseInitial initial_response = 1, bytes data = 2",
        "InvokeStreamResponseInitial": "map metadata = 1, string content_type = 2",
    },
}

OUTPUT_BINDING = f"{COMPONENTS}.OutputBinding"
# The names of the messages follow from the name of the method, but for Init.
METHODS = {
    "Init": ("OutputBindingInitRequest", "OutputBindingInitResponse"),
    "Invoke": ("InvokeRequest", "InvokeResponse"),
    "ListOperations": ("ListOperationsRequest", "ListOperationsResponse"),
    "Ping": ("PingRequest", "PingResponse"),
}
STREAMING_METHODS = {"InvokeStream": ("InvokeStreamRequest", "InvokeStreamResponse")}

FieldProto = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "bytes": FieldProto.TYPE_BYTES,
    "string": FieldProto.TYPE_STRING,
    "repeated": FieldProto.TYPE_STRING,
    "uint64": FieldProto.TYPE_UINT64,
}


def file_of(package, streams):
    """The descriptor of a package's file; whether its service has streams is for the caller to say."""
    file = descriptor_pb2.FileDescriptorProto(
        name=package.replace(".", "/") + ".proto", package=package, syntax="proto3"
    )
    if package == RUNTIME:
        file.dependency.append(COMMON.replace(".", "/") + ".proto")
    for name, fields in MESSAGES[package].items():
        add_message(file, name, fields)
    if package == COMPONENTS:
        service = file.service.add(name="OutputBinding")
        for methods, streaming in [(METHODS, False), (STREAMING_METHODS, True)][: 1 + streams]:
            for name, (request, response) in methods.items():
                service.method.add(
                    name=name,
                    input_type=f".{package}.{request}",
                    output_type=f".{package}.{response}",
                    client_streaming=streaming,
                    server_streaming=streaming,
                )
    return file


def add_message(file, name, fields):
    message = file.message_type.add(name=name)
    alone, _, together = fields.partition("|")
    if together:
        message.oneof_decl.add(name="kind")
    for of_oneof, part in [(False, alone), (True, together)]:
        for kind, field_name, number in re.findall(r"(\w+) (\w+) = (\d+)", part):
            field = message.field.add(name=field_name, number=int(number), label=FieldProto.LABEL_OPTIONAL)
            if of_oneof:
                field.oneof_index = 0
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                field.type = FieldProto.TYPE_MESSAGE
            if kind == "map":
                add_entry(message, field, f".{file.package}.{name}")
            elif kind not in SCALARS:
                package = COMMON if kind in MESSAGES[COMMON] else file.package
                field.type_name = f".{package}.{kind}"
            if kind in ("map", "repeated"):
                field.label = FieldProto.LABEL_REPEATED


def add_entry(message, field, place):
    """A map is a repeated message with a key and a value."""
    entry = message.nested_type.add(name=field.name.title() + "Entry")
    entry.options.map_entry = True
    for number, name in enumerate(["key", "value"], 1):
        entry.field.add(
            name=name, number=number, label=FieldProto.LABEL_OPTIONAL, type=FieldProto.TYPE_STRING
        )
    field.type_name = f"{place}.{entry.name}"


def pool(streams=True):
    """All descriptors; without streams, those of a component from before there were any."""
    descriptors = descriptor_pool.DescriptorPool()
    for package in MESSAGES:
        descriptors.Add(file_of(package, streams))
    return descriptors


POOL = pool()


def classes(package):
    """The classes of a package's messages, as attributes of one thing."""
    found = {
        name: message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{package}.{name}"))
        for name in MESSAGES[package]
    }
    return type(package, (), found)


common, runtime, components = map(classes, (COMMON, RUNTIME, COMPONENTS))
