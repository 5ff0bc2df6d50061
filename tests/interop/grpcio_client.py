"""The checks of the grpcio client. Takes the proxy's address; prints a line for each check, and ends at the first failure."""

import concurrent.futures
import hashlib
import queue
import sys
import threading
import time
import uuid

import grpc

# For any one call; none of them takes seconds.
PATIENCE = 60
CHUNK = bytes(range(256)) * 256
MANY = 1600  # times CHUNK is 100 MiB
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ECHOED = (
    ("x-echo-text", "plain text; with, signs"),
    ("x-echo-many", "one"),
    ("x-echo-many", "two"),
    ("x-echo-bytes-bin", bytes(range(256))),
    ("x-echo-many-bin", b"\x00"),
    ("x-echo-many-bin", b""),
    ("x-echo-many-bin", b"\xff\xfe"),
)


def metadata(pairs):
    """What was echoed. HTTP lets anybody join repeated headers of text, and one of the servers does."""
    echoed = {}
    for key, value in pairs:
        if key.startswith("x-echo-"):
            echoed.setdefault(key, []).append(value)
    return {key: values if key.endswith("-bin") else ", ".join(values) for key, values in echoed.items()}


def expect(what, wanted):
    if what != wanted:
        raise AssertionError(f"expected {wanted!r:.300}, got {what!r:.300}")


class Echo:
    def __init__(self, channel):
        path = "/thalweg.interop.Echo/"
        self.unary = channel.unary_unary(path + "Unary")
        self.collect = channel.stream_unary(path + "Collect")
        self.repeat = channel.unary_stream(path + "Repeat")
        self.talk = channel.stream_stream(path + "Talk")
        self.hang = channel.stream_stream(path + "Hang")
        self.nobody = channel.unary_unary("/no.such.Service/Call")
        self.missing = channel.unary_unary(path + "Missing")
        self._seen = channel.unary_unary(path + "Seen")

    def seen(self, id, state):
        answer = self._seen(b"", metadata=(("x-id", id), ("x-state", state)), timeout=PATIENCE)
        state, deadline = answer[2:].decode().split()
        return state, None if deadline == "none" else float(deadline)


class Upload:
    """Requests that are sent when the test says so."""

    def __init__(self):
        self.queue = queue.Queue()

    def __iter__(self):
        return iter(self.queue.get, None)


def collected(messages):
    digest = hashlib.sha256()
    for message in messages:
        digest.update(message)
    return f"{len(messages)} {sum(map(len, messages))} {digest.hexdigest()}"


def failure(call):
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def unary(echo):
    expect(echo.unary(b"hello", timeout=PATIENCE), b"hello")
    expect(echo.unary(b"", timeout=PATIENCE), b"")


def client_streaming(echo):
    messages = [b"a", b"", b"bc" * 1000]
    expect(echo.collect(iter(messages), timeout=PATIENCE)[2:].decode(), collected(messages))


def client_streaming_of_nothing(echo):
    expect(echo.collect(iter(()), timeout=PATIENCE)[2:].decode(), collected([]))


def server_streaming(echo):
    answers = echo.repeat(b"again", metadata=(("x-count", "7"),), timeout=PATIENCE)
    expect(list(answers), [b"again"] * 7)


def server_streaming_of_nothing(echo):
    expect(list(echo.repeat(b"never", metadata=(("x-count", "0"),), timeout=PATIENCE)), [])


def bidirectional_streaming(echo):
    upload = Upload()
    answers = echo.talk(iter(upload), timeout=PATIENCE)
    for index in range(100):
        message = str(index).encode() * index
        upload.queue.put(message)
        expect(next(answers), message)
    upload.queue.put(None)
    expect(list(answers), [])
    expect(answers.code(), grpc.StatusCode.OK)


def metadata_both_ways(echo):
    answer, call = echo.unary.with_call(b"hi", metadata=ECHOED, timeout=PATIENCE)
    expect(answer, b"hi")
    expect(metadata(call.initial_metadata()), metadata(ECHOED))
    expect(metadata(call.trailing_metadata()), metadata(ECHOED))


def metadata_of_streams(echo):
    call = echo.talk(iter([b"hi"]), metadata=ECHOED, timeout=PATIENCE)
    expect(metadata(call.initial_metadata()), metadata(ECHOED))
    expect(list(call), [b"hi"])
    expect(metadata(call.trailing_metadata()), metadata(ECHOED))


def error_with_message_and_details(echo):
    message = "naïve 100% — не найдено 🦀\nsecond line"
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        asked = ECHOED + (
            ("x-fail", str(code.value[0])),
            ("x-fail-message-bin", message.encode()),
            ("x-fail-details-bin", b"\x08\x05details\x00\xff"),
        )
        error = failure(echo.repeat(b"", metadata=asked, timeout=PATIENCE))
        expect(error.code(), code)
        expect(error.details(), message)
        expect(metadata(error.trailing_metadata()), metadata(ECHOED))
        expect(dict(error.trailing_metadata())["grpc-status-details-bin"], b"\x08\x05details\x00\xff")


def error_of_unary_calls(echo):
    asked = (
        ("x-fail", "9"),
        ("x-fail-message-bin", b"not now"),
        ("x-fail-details-bin", b"why"),
    )
    future = echo.unary.future(b"", metadata=asked, timeout=PATIENCE)
    error = future.exception(PATIENCE)
    expect((error.code(), error.details()), (grpc.StatusCode.FAILED_PRECONDITION, "not now"))


def no_route(echo):
    error = echo.nobody.future(b"", timeout=PATIENCE).exception(PATIENCE)
    expect((error.code(), error.details()), (grpc.StatusCode.UNIMPLEMENTED, "no route for /no.such.Service/Call"))


def no_such_method(echo):
    error = echo.missing.future(b"", timeout=PATIENCE).exception(PATIENCE)
    expect(error.code(), grpc.StatusCode.UNIMPLEMENTED)


def cancellation(echo):
    id = uuid.uuid4().hex
    upload = Upload()
    call = echo.hang(iter(upload), metadata=(("x-id", id),))
    upload.queue.put(b"hello")
    expect(echo.seen(id, "started"), ("started", None))
    call.cancel()
    upload.queue.put(None)
    began = time.monotonic()
    expect(echo.seen(id, "ended"), ("ended", None))
    if time.monotonic() - began > 2:
        raise AssertionError("the server heard of it only much later")


def cancellation_while_the_upload_is_blocked(echo):
    """A call whose server takes nothing more: the windows are full when it is cancelled."""
    id = uuid.uuid4().hex
    call = echo.talk(iter(lambda: CHUNK, None), metadata=(("x-id", id),))
    next(call)
    time.sleep(0.5)
    call.cancel()
    expect(failure(call).code(), grpc.StatusCode.CANCELLED)


def deadline(echo):
    id = uuid.uuid4().hex
    began = time.monotonic()
    error = failure(echo.hang(iter(()), metadata=(("x-id", id),), timeout=1))
    took = time.monotonic() - began
    expect(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    if not 0.9 < took < 5:
        raise AssertionError(f"it took {took:.3f} s")
    state, given = echo.seen(id, "ended")
    expect(state, "ended")
    # The client rounds up what it writes, to the next hundredth.
    if given is None or not 0 < given <= 1.02:
        raise AssertionError(f"the server's deadline was {given} s")


def deadline_that_is_long_over(echo):
    error = failure(echo.hang(iter(()), metadata=(("x-id", uuid.uuid4().hex),), timeout=0.000001))
    expect(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)


def upload_of_100_mib(echo):
    answer = echo.collect((CHUNK for _ in range(MANY)), timeout=PATIENCE)
    expect(answer[2:].decode(), collected([CHUNK] * MANY))


def download_of_100_mib(echo):
    digest, size = hashlib.sha256(), 0
    for answer in echo.repeat(CHUNK, metadata=(("x-count", str(MANY)),), timeout=PATIENCE):
        size += len(answer)
        digest.update(answer)
    expect(f"{MANY} {size} {digest.hexdigest()}", collected([CHUNK] * MANY))


def both_ways_at_once_100_mib(echo):
    def requests():
        for index in range(MANY):
            yield index.to_bytes(4, "big") + CHUNK[4:]

    wanted, got, size = hashlib.sha256(), hashlib.sha256(), 0
    for request in requests():
        wanted.update(request)
    for answer in echo.talk(requests(), timeout=PATIENCE):
        size += len(answer)
        got.update(answer)
    expect((size, got.hexdigest()), (MANY * len(CHUNK), wanted.hexdigest()))


def many_small_messages(echo):
    count = 0
    for answer in echo.repeat(b"20 bytes, as it says", metadata=(("x-count", "20000"),), timeout=PATIENCE):
        count += answer == b"20 bytes, as it says"
    expect(count, 20000)


def large_unary(echo):
    message = CHUNK * 160
    expect(echo.unary(message, timeout=PATIENCE) == message, True)


def early_end_of_the_server(echo):
    """The server ends the call with OK after three messages, whatever else the client still wants to send."""
    upload = Upload()
    call = echo.talk(iter(upload), metadata=(("x-count", "3"),) + ECHOED, timeout=PATIENCE)
    for index in range(3):
        upload.queue.put(b"%d" % index)
    expect(list(call), [b"0", b"1", b"2"])
    expect(call.code(), grpc.StatusCode.OK)
    expect(metadata(call.trailing_metadata()), metadata(ECHOED))
    upload.queue.put(None)


def early_end_while_the_client_sends(echo):
    call = echo.talk(iter(lambda: CHUNK, None), metadata=(("x-count", "50"),), timeout=PATIENCE)
    expect(sum(map(len, call)), 50 * len(CHUNK))
    expect(call.code(), grpc.StatusCode.OK)


def half_close(echo):
    """The server answers only when the client has said all."""
    messages = [b"%d" % index for index in range(100)]
    expect(list(echo.talk(iter(messages), metadata=(("x-hold", "1"),), timeout=PATIENCE)), messages)


def two_hundred_calls_at_once(echo):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        messages = [b"%d" % index for index in range(200)]
        answers = pool.map(lambda message: echo.unary(message, timeout=PATIENCE), messages)
        expect(list(answers), messages)


CHECKS = [
    unary,
    client_streaming,
    client_streaming_of_nothing,
    server_streaming,
    server_streaming_of_nothing,
    bidirectional_streaming,
    metadata_both_ways,
    metadata_of_streams,
    error_with_message_and_details,
    error_of_unary_calls,
    no_route,
    no_such_method,
    cancellation,
    cancellation_while_the_upload_is_blocked,
    deadline,
    deadline_that_is_long_over,
    upload_of_100_mib,
    download_of_100_mib,
    both_ways_at_once_100_mib,
    many_small_messages,
    large_unary,
    early_end_of_the_server,
    early_end_while_the_client_sends,
    half_close,
    two_hundred_calls_at_once,
]


def main():
    with grpc.insecure_channel(sys.argv[1], options=UNLIMITED) as channel:
        echo = Echo(channel)
        for check in CHECKS:
            check(echo)
            print(check.__name__.replace("_", " "), flush=True)


threading.excepthook = lambda arguments: None  # Iterators of requests end with their call, and need not say so.
main()
