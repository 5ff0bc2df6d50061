"""Clients of Dapr's bindings, on grpcio and on curl, and what they are asked to send."""

import json
import queue
import random
import re

import grpc

from dapr_messages import RUNTIME, runtime
from harness import PATIENCE, Failed, curl, expect

KIB, MIB = 1024, 1024 * 1024
BLOCK = random.Random(13).randbytes(MIB + 13)
CODE = grpc.StatusCode
# How curl ends when an answer breaks off: partial file, failed to receive, HTTP/2 stream error.
BROKEN = {18, 56, 92}


def payload(size):
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def pieces(data, size=64 * KIB):
    return [data[start : start + size] for start in range(0, len(data), size)]


# === gRPC ===


class Dapr:
    """A client of the service Dapr, on grpcio."""

    def __init__(self, stack, proxy):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = stack.enter_context(grpc.insecure_channel(proxy.address, options))
        self.stream = channel.stream_stream(
            f"/{RUNTIME}.Dapr/InvokeBindingAlpha1",
            runtime.InvokeBindingStreamRequest.SerializeToString,
            runtime.InvokeBindingStreamResponse.FromString,
        )
        self.unary = channel.unary_unary(
            f"/{RUNTIME}.Dapr/InvokeBinding",
            runtime.InvokeBindingRequest.SerializeToString,
            runtime.InvokeBindingResponse.FromString,
        )

    def open(self, requests, **options):
        return self.stream(iter(requests), timeout=PATIENCE, **options)

    def invoke(self, name, chunks=(), operation="create", **options):
        """A whole stream: the metadata of its answer, and the pieces of it."""
        metadata = options.pop("metadata", {})
        call = self.open(requests(name, chunks, operation, metadata), **options)
        return answer(call)

    def call(self, name, data=b"", operation="create", metadata=None, **options):
        request = runtime.InvokeBindingRequest(name=name, data=data, operation=operation, metadata=metadata)
        return self.unary(request, timeout=PATIENCE, **options)


def first(name, operation="create", metadata=None):
    initial = runtime.InvokeBindingStreamRequestInitial(name=name, operation=operation, metadata=metadata)
    return runtime.InvokeBindingStreamRequest(initial_request=initial)


def chunk(data, seq):
    return runtime.InvokeBindingStreamRequest(payload={"data": data, "seq": seq})


def requests(name, chunks=(), operation="create", metadata=None):
    yield first(name, operation, metadata)
    for seq, data in enumerate(chunks):
        yield chunk(data, seq)


def answer(call):
    """The metadata of an answer and its pieces, which must be in order."""
    initial, found = next(call), []
    expect(initial.WhichOneof("kind"), "initial_response")
    for index, message in enumerate(call):
        expect((message.WhichOneof("kind"), message.payload.seq), ("payload", index))
        found.append(message.payload.data)
    return dict(initial.initial_response.metadata), found


def refused(code, words, action):
    """The action must fail, with a status that says why."""
    try:
        result = action()
    except grpc.RpcError as error:
        if error.code() != code or not re.search(words, error.details()):
            raise Failed(f"expected {code} with {words!r}, got {error.code()}: {error.details()}") from None
        return error
    raise Failed(f"expected {code}, got {result!r:.200}")


class Upload:
    """Requests that are sent when the test says so."""

    def __init__(self, *requests):
        self.queue = queue.Queue()
        for request in requests:
            self.queue.put(request)

    def send(self, request):
        self.queue.put(request)

    def finish(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


# === HTTP ===


class Told:
    """What curl was told: a status, headers with names in small letters, and a body."""

    def __init__(self, done):
        self.exit, output = done.returncode, done.stdout
        self.interim = []
        while True:
            head, _, output = output.partition(b"\r\n\r\n")
            start, *lines = head.decode().split("\r\n")
            if not start.startswith("HTTP/"):
                raise Failed(f"curl ended with {done.returncode} and said {done.stderr.decode()!r}")
            self.status = int(start.split()[1])
            if self.status >= 200:
                break
            self.interim.append(self.status)
        pairs = (line.split(": ", 1) for line in lines)
        self.headers = {name.lower(): value for name, value in pairs}
        self.body = output

    def error(self):
        """The code and the message of an error."""
        expect(self.headers.get("content-type"), "application/json")
        told = json.loads(self.body)
        expect(sorted(told), ["errorCode", "message"])
        expect(told["errorCode"].startswith("ERR_"), True)
        return told["message"]


def send(setting, name, *options, query="operation=create", version="--http1.1", path=None, **more):
    path = path or f"/v1.0-alpha1/bindings/{name}/stream?{query}"
    return curl(setting.proxy, path, version, "--include", "--request", "POST", *options, **more)


def post(*arguments, **more):
    return Told(send(*arguments, **more))
