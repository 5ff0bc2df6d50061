"""The service of echo.proto on grpcio. Prints its port, and ends with its standard input.

With a folder of `thalweg certs` it speaks TLS, and wants a certificate of its clients."""

import concurrent.futures
import hashlib
import pathlib
import sys
import threading

import grpc

SEEN = {}
CHANGED = threading.Condition()


def note(text):
    """A `Note`, for a text of less than 128 bytes."""
    text = text.encode()
    return bytes([0x0A, len(text)]) + text


def begin(context):
    """Echoes the metadata `x-echo-*` in both places, and fails if the client asked for it."""
    asked = context.invocation_metadata()
    echoed = [(key, value) for key, value in asked if key.startswith("x-echo-")]
    asked = dict(asked)
    context.send_initial_metadata(echoed)
    if "x-fail" in asked:
        details = ("grpc-status-details-bin", asked["x-fail-details-bin"])
        context.set_trailing_metadata(echoed + [details])
        code = next(code for code in grpc.StatusCode if code.value[0] == int(asked["x-fail"]))
        context.abort(code, asked["x-fail-message-bin"].decode())
    context.set_trailing_metadata(echoed)
    return asked


def unary(request, context):
    asked = dict(context.invocation_metadata())
    if "x-hang-once" in asked and asked["x-hang-once"] not in SEEN:
        # Not a word of an answer, so that the client may try again.
        SEEN[asked["x-hang-once"]] = ["hung", None]
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(60)
    begin(context)
    return request


def collect(requests, context):
    begin(context)
    count, size, digest = 0, 0, hashlib.sha256()
    for request in requests:
        count, size = count + 1, size + len(request)
        digest.update(request)
    return note(f"{count} {size} {digest.hexdigest()}")


def repeat(request, context):
    asked = begin(context)
    for _ in range(int(asked.get("x-count", 3))):
        yield request


def talk(requests, context):
    asked = begin(context)
    most = int(asked.get("x-count", -1))
    held = []
    for index, request in enumerate(requests):
        if "x-hold" in asked:
            held.append(request)
        else:
            yield request
        if index + 1 == most:
            return
    yield from held


def hang(requests, context):
    del requests
    asked = dict(context.invocation_metadata())
    ended = threading.Event()
    with CHANGED:
        SEEN[asked["x-id"]] = ["started", context.time_remaining()]
        CHANGED.notify_all()
    # The callback is refused where the call is over already.
    if context.add_callback(ended.set):
        ended.wait(60)
    with CHANGED:
        SEEN[asked["x-id"]][0] = "ended"
        CHANGED.notify_all()
    return iter(())


def seen(request, context):
    """Waits for the state that the client names in `x-state`."""
    asked = dict(context.invocation_metadata())

    def reached():
        state = SEEN.get(asked["x-id"], ["unknown"])[0]
        return state == asked["x-state"] or state == "ended"

    with CHANGED:
        CHANGED.wait_for(reached, 5)
        state, deadline = SEEN.get(asked["x-id"], ["unknown", None])
    # Without a deadline it is about three hundred thousand years, or None.
    given = deadline is not None and deadline < 1e6
    return note(f"{state} {deadline:.3f}" if given else f"{state} none")


def mutual(folder):
    """The server's side of TLS in which both show a certificate."""
    ca, cert, key = (pathlib.Path(folder, name).read_bytes() for name in ["ca.pem", "server.pem", "server.key"])
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)


def main(*folder):
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(32),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ],
    )
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Hang": grpc.stream_stream_rpc_method_handler(hang),
        "Seen": grpc.unary_unary_rpc_method_handler(seen),
    }
    handler = grpc.method_handlers_generic_handler("thalweg.interop.Echo", methods)
    server.add_generic_rpc_handlers((handler,))
    if folder:
        port = server.add_secure_port("127.0.0.1:0", mutual(*folder))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    print(port, flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


main(*sys.argv[1:])
