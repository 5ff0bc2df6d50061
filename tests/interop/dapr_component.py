"""A pluggable component of Dapr: an output binding on grpcio, at a Unix socket, that echoes.

It prints what happens to it, a JSON object a line, first of all that it listens; and ends with its standard input. What it does
other than echo, it does for the flags, which concern the process, and for the key `behave` in the metadata of a call.
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import sys
import threading

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

import dapr_messages
from dapr_messages import components

OPERATIONS = ["create", "get", "list"]
PIECE = 32 * 1024

LOCK = threading.Lock()


def tell(event, **more):
    with LOCK:
        print(json.dumps({"event": event, **more}), flush=True)


class Component:
    def __init__(self, options):
        self.options = options
        self.known = set()
        self.ids = itertools.count(1)

    # Unary methods

    def Init(self, request, context):
        instance = instance_of(context)
        tell("init", instance=instance, metadata=dict(request.metadata.properties))
        if self.options.crash == "init":
            os._exit(3)
        self.known.add(instance)
        return components.OutputBindingInitResponse()

    def ListOperations(self, request, context):
        self.check_known(context)
        return components.ListOperationsResponse(operations=OPERATIONS)

    def Ping(self, request, context):
        tell("ping")
        return components.PingResponse()

    def Invoke(self, request, context):
        self.check_known(context)
        metadata = dict(request.metadata)
        tell(
            "invoke",
            operation=request.operation,
            metadata=metadata,
            bytes=len(request.data),
            digest=hashlib.sha256(request.data).hexdigest(),
        )
        behaviour = metadata.get("behave", "")
        if behaviour == "crash before the answer":
            os._exit(3)
        if behaviour == "refuse":
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there already")
        return components.InvokeResponse(
            data=request.data, metadata=metadata, content_type=metadata.get("contentType", "")
        )

    # The streaming method

    def InvokeStream(self, requests, context):
        self.check_known(context)
        if self.options.stream == "unimplemented":
            tell("unimplemented")
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "method InvokeStream not implemented")
        id, ended = next(self.ids), threading.Event()
        if not context.add_callback(ended.set):
            ended.set()
        answer = Answer()
        if self.options.eager:
            tell("eager")
            yield answer.initial({}, "")
            yield answer.data(b"early ")
        first = next(requests, None)
        if first is None or first.seq != 0 or not first.HasField("initial_request"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message is not initial_request with seq 0")
        operation, metadata = first.initial_request.operation, dict(first.initial_request.metadata)
        tell("stream", id=id, operation=operation, metadata=metadata, instance=instance_of(context))
        behaviour = metadata.get("behave", "echo")
        upload = Upload(id, requests, context, ended)
        if not self.options.eager and behaviour not in ("payload first", "crash before the answer", "refuse"):
            yield answer.initial(metadata, metadata.get("contentType", ""))
        yield from BEHAVIOURS[behaviour](upload, answer, context, ended)

    def check_known(self, context):
        """A component that was not initialised knows nothing of what it stands for."""
        instance = instance_of(context)
        if instance not in self.known:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"no Init for {instance!r}")


class Answer:
    """Numbers what is answered."""

    def __init__(self):
        self.seq = 0

    @staticmethod
    def initial(metadata, content_type):
        initial = components.InvokeStreamResponseInitial(metadata=metadata, content_type=content_type)
        return components.InvokeStreamResponse(initial_response=initial)

    def data(self, data):
        message = components.InvokeStreamResponse(data=data, seq=self.seq)
        self.seq += 1
        return message


class Upload:
    """The payload of a request, whose numbers are checked. Tells how it ended."""

    def __init__(self, id, requests, context, ended):
        self.id, self.requests, self.context, self.ended = id, requests, context, ended
        self.size, self.is_whole = 0, False
        if not context.add_callback(self.over):
            self.over()

    def over(self):
        if not self.is_whole:
            tell("cut", id=self.id, bytes=self.size)

    def __iter__(self):
        digest = hashlib.sha256()
        for expected, request in enumerate(self.requests, 1):
            if request.seq != expected or not request.HasField("data"):
                tell("misnumbered", id=self.id, seq=request.seq, expected=expected)
                self.context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"seq {request.seq} instead of {expected}")
            self.size += len(request.data)
            digest.update(request.data)
            yield request.data
        # For grpcio a stream that was reset has ended, for a moment, before it was cancelled.
        if not self.ended.wait(0.05):
            self.is_whole = True
            tell("whole", id=self.id, bytes=self.size, digest=digest.hexdigest())


# === What it does with a stream ===


def echo(upload, answer, context, ended):
    for data in upload:
        for start in range(0, max(len(data), 1), PIECE):
            yield answer.data(data[start : start + PIECE])


def three_pieces(upload, answer, context, ended):
    whole = b"".join(upload)
    third = len(whole) // 3 + 1
    for start in range(0, 3 * third, third):
        yield answer.data(whole[start : start + third])


def digest(upload, answer, context, ended):
    size, sum = 0, hashlib.sha256()
    for data in upload:
        size += len(data)
        sum.update(data)
    yield answer.data(f"{size} {sum.hexdigest()}".encode())


def gap(upload, answer, context, ended):
    for index in range(4):
        answer.seq = index if index < 2 else index + 1
        yield answer.data(b"piece")
    yield from digest(upload, answer, context, ended)


def initial_twice(upload, answer, context, ended):
    yield answer.data(b"piece")
    yield answer.initial({}, "")
    yield from digest(upload, answer, context, ended)


def end_early(upload, answer, context, ended):
    yield answer.data(b"enough")


def fail_midway(upload, answer, context, ended):
    yield answer.data(b"piece")
    context.abort(grpc.StatusCode.DATA_LOSS, "the disk is gone")


def refuse(upload, answer, context, ended):
    context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there already")
    yield


def read_nothing(upload, answer, context, ended):
    ended.wait(60)
    tell("left", id=upload.id)
    yield from ()


def read_slowly(upload, answer, context, ended):
    for data in upload:
        ended.wait(0.01)
        yield answer.data(data)


def crash_before_the_answer(upload, answer, context, ended):
    for _ in upload:
        break
    os._exit(3)
    yield


def crash_midway(upload, answer, context, ended):
    yield answer.data(bytes(100_000))
    for _ in upload:
        break
    # What was answered is to arrive before the end does.
    ended.wait(0.3)
    os._exit(3)


BEHAVIOURS = {
    function.__name__.replace("_", " "): function
    for function in [
        echo,
        three_pieces,
        digest,
        gap,
        initial_twice,
        end_early,
        fail_midway,
        refuse,
        read_nothing,
        read_slowly,
        crash_before_the_answer,
        crash_midway,
    ]
}
BEHAVIOURS["payload first"] = echo


# === The server ===


def instance_of(context):
    return dict(context.invocation_metadata()).get("x-component-instance")


def reflect(server, options):
    """Both versions of the service have the same messages, and grpcio has one of them."""
    streams = options.stream != "absent"
    servicer = reflection.ReflectionServicer(
        [dapr_messages.OUTPUT_BINDING, "grpc.reflection.v1alpha.ServerReflection"],
        pool=dapr_messages.pool(streams),
    )
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    versions = {"both": ["v1", "v1alpha"], "none": []}.get(options.reflection, [options.reflection])
    for version in versions:
        service = f"grpc.reflection.{version}.ServerReflection"
        handlers = grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((handlers,))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--stream", choices=["yes", "absent", "unimplemented"], default="yes")
    parser.add_argument("--reflection", choices=["both", "v1", "v1alpha", "none"], default="both")
    parser.add_argument("--eager", action="store_true", help="answers streams before it reads anything")
    parser.add_argument("--crash", choices=["init"])
    options = parser.parse_args()
    component = Component(options)

    # With grpcio's own limits, as components have them.
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(32))
    methods = {}
    for name, (request, response) in {**dapr_messages.METHODS, **dapr_messages.STREAMING_METHODS}.items():
        streaming = name in dapr_messages.STREAMING_METHODS
        if streaming and options.stream == "absent":
            continue
        handler = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        methods[name] = handler(
            getattr(component, name),
            request_deserializer=getattr(components, request).FromString,
            response_serializer=getattr(components, response).SerializeToString,
        )
    handlers = grpc.method_handlers_generic_handler(dapr_messages.OUTPUT_BINDING, methods)
    server.add_generic_rpc_handlers((handlers,))
    reflect(server, options)
    server.add_insecure_port(f"unix:{options.socket}")
    server.start()
    tell("listening")
    sys.stdin.read()
    server.stop(None)


main()
