"""Bindings: grpcio and curl as clients, and components of Dapr on grpcio behind the proxy."""

import contextlib
import hashlib
import json
import pathlib
import subprocess
import tempfile
import threading
import time

import grpc

from dapr_client import (
    BROKEN,
    CODE,
    KIB,
    MIB,
    Dapr,
    Told,
    Upload,
    answer,
    chunk,
    first,
    payload,
    pieces,
    post,
    refused,
    requests,
    send,
)
from dapr_messages import runtime
from harness import (
    HERE,
    PYTHON,
    SOON,
    VERSIONS,
    Failed,
    Proxy,
    curl,
    end,
    expect,
    log_on_failure,
    server,
)

CONFIG = """
admin: {{address: 127.0.0.1:{admin}}}
drain: {{timeout: 5s}}
workers: 2
listeners:
  - {{name: it, address: 127.0.0.1:{port}}}
filters:
  - metrics
  - initial_message: {{timeout: 500ms}}
  - sequence
bindings:
  echo: {{echo: {{}}}}
  orders: {{component: {{socket: {sockets}/orders.sock, metadata: {{key: value}}, ping: 200ms}}}}
  second: {{component: {{socket: {sockets}/orders.sock, instance: another, metadata: {{key: other}}}}}}
  old: {{component: {{socket: {sockets}/old.sock}}}}
  pretending: {{component: {{socket: {sockets}/pretending.sock}}}}
  mute: {{component: {{socket: {sockets}/mute.sock}}}}
  old-mute: {{component: {{socket: {sockets}/old-mute.sock}}}}
  alpha: {{component: {{socket: {sockets}/alpha.sock}}}}
  eager: {{component: {{socket: {sockets}/eager.sock}}}}
  fragile: {{component: {{socket: {sockets}/fragile.sock, metadata: {{key: again}}}}}}
  remote: {{dapr: {{cluster: second}}}}
  daprd: {{dapr: {{cluster: stock}}}}
component_sockets: {{folder: {sockets}/discovered, interval: 100ms}}
clusters:
  second: {{endpoints: [{second}]}}
  stock: {{endpoints: [127.0.0.1:{stock}]}}
"""

# A proxy in front of a component is another server of the same API.
SECOND = """
admin: {{address: 127.0.0.1:{admin}}}
drain: {{timeout: 5s}}
workers: 1
listeners:
  - {{name: it, address: 127.0.0.1:{port}}}
bindings:
  remote: {{component: {{socket: {sockets}/orders.sock}}}}
"""

# Components, and what they are told to be other than usual.
COMPONENTS = {
    "orders": [],
    "old": ["--stream", "absent"],
    "pretending": ["--stream", "unimplemented"],
    "mute": ["--reflection", "none"],
    "old-mute": ["--stream", "absent", "--reflection", "none"],
    "alpha": ["--reflection", "v1alpha"],
    "eager": ["--eager"],
}
# Those bindings that stream, and those for which the proxy collects what is streamed.
STREAMING = ["echo", "orders", "second", "remote", "mute", "alpha"]
COLLECTED = ["old", "pretending", "old-mute", "daprd"]


# === Components, as seen from here ===


class Component:
    """A component's process, and what it told."""

    def __init__(self, stack, socket, *flags):
        self.socket = pathlib.Path(socket)
        self.told, self.changed = [], threading.Condition()
        self.process = subprocess.Popen(
            [PYTHON, "dapr_component.py", str(socket), *flags],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(end, self.process)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            with self.changed:
                self.told.append(json.loads(line))
                self.changed.notify_all()

    def mark(self):
        """A place in the story, after which something is to happen."""
        return len(self.told)

    def seen(self, event, since=0, **fields):
        wanted = {"event": event, **fields}
        return [one for one in self.told[since:] if wanted.items() <= one.items()]

    def wait(self, event, since=0, **fields):
        """The first such event, which happens soon if it has not."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.seen(event, since, **fields), SOON):
                raise Failed(f"no {event} {fields} of {self.socket.name} within {SOON} s, but {self.told[since:]}")
            return self.seen(event, since, **fields)[0]

    def kill(self):
        self.process.kill()
        self.process.wait(SOON)


class Setting:
    """All that takes part."""

    def __init__(self, stack, binary):
        self.stack = stack
        self.sockets = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (self.sockets / "discovered").mkdir()
        self.components = {name: self.component(name, *flags) for name, flags in COMPONENTS.items()}
        stock = server(stack, PYTHON, "dapr_stock.py")
        self.second = Proxy(stack, binary, SECOND, sockets=self.sockets)
        self.proxy = Proxy(
            stack, binary, CONFIG, sockets=self.sockets, second=self.second.address, stock=stock
        )

    def connect(self, stack):
        self.dapr = Dapr(stack, self.proxy)
        for name in [*STREAMING, *COLLECTED, "eager"]:
            # The first call of all may be of either kind; what it tells of the other is nothing.
            self.until_ready(name, unary=name != "old-mute")
        # What lists the method is believed, and its first stream finds out. The next is sent again as an Invoke.
        refused(CODE.UNIMPLEMENTED, "InvokeStream", lambda: self.dapr.invoke("pretending", [b"x"]))

    def component(self, name, *flags):
        return Component(self.stack, self.sockets / f"{name}.sock", *flags)

    def until_ready(self, name, unary=True):
        def ready():
            try:
                if unary:
                    self.dapr.call(name, operation="list")
                else:
                    self.dapr.invoke(name, operation="list")
            except grpc.RpcError as error:
                if error.code() in (CODE.UNAVAILABLE, CODE.NOT_FOUND):
                    return False
                raise Failed(f"{name}: {error.code()} {error.details()}") from None
            return True

        self.proxy.until(f"ready: {name}", ready)


# === Streams over gRPC ===


def round_trips(setting, name):
    invoke = setting.dapr.invoke
    for size in [0, 1, 11, 256 * KIB, MIB]:
        data = payload(size)
        metadata, found = invoke(name, pieces(data))
        expect((metadata, b"".join(found)), ({}, data))
    metadata, found = invoke(name, [b"hello world"], metadata={"key1": "one", "key2": "zwei ½"})
    expect((metadata, found), ({"key1": "one", "key2": "zwei ½"}, [b"hello world"]))


def empty_chunks(setting, name):
    expect(b"".join(setting.dapr.invoke(name, [b"", b"", b"x", b""])[1]), b"x")
    expect(b"".join(setting.dapr.invoke(name, [b""])[1]), b"")


def many_small_chunks(setting, name):
    data = payload(3000)
    expect(b"".join(setting.dapr.invoke(name, pieces(data, 1))[1]), data)


def one_large_chunk(setting, name):
    data = payload(3 * MIB)
    expect(b"".join(setting.dapr.invoke(name, [data])[1]), data)


def gzip_client(setting, name):
    data = payload(300 * KIB) + bytes(300 * KIB)
    options = {"compression": grpc.Compression.Gzip, "metadata": {"key": "value"}}
    expect(b"".join(setting.dapr.invoke(name, pieces(data), **options)[1]), data)
    expect(setting.dapr.call(name, data, **options).data, data)


def unary(setting, name):
    found = setting.dapr.call(name, payload(MIB), metadata={"key1": "one"})
    expect((found.data, dict(found.metadata)), (payload(MIB), {"key1": "one"}))
    expect(setting.dapr.call(name).data, b"")


def component_repacks(setting, name):
    """A component may cut the bytes anew, and numbers what it sends for itself."""
    pieces_of = setting.dapr.invoke(name, pieces(payload(MIB)))[1]
    expect({len(piece) for piece in pieces_of}, {32 * KIB})


def large(setting, name):
    size, block = 64 * MIB, payload(64 * KIB)
    call = setting.dapr.open(requests(name, (block for _ in range(size // len(block)))))
    expect(next(call).WhichOneof("kind"), "initial_response")
    digest, wanted, got = hashlib.sha256(), hashlib.sha256(), 0
    for index, message in enumerate(call):
        expect(message.payload.seq, index)
        digest.update(message.payload.data)
        got += len(message.payload.data)
    for _ in range(size // len(block)):
        wanted.update(block)
    expect((got, digest.hexdigest()), (size, wanted.hexdigest()))


def answer_begins_before_payload(setting, name):
    """Both directions are open from the start."""
    upload = Upload(first(name, metadata={"key": "value"}))
    call = setting.dapr.open(upload)
    expect(dict(next(call).initial_response.metadata), {"key": "value"})
    for seq in range(3):
        upload.send(chunk(b"ping", seq))
        message = next(call).payload
        expect((message.data, message.seq), (b"ping", seq))
    upload.finish()
    expect(list(call), [])
    expect(call.code(), CODE.OK)


def bad_requests(setting, name):
    def stream(*requests):
        return lambda: list(setting.dapr.open(requests))

    initial = first(name)
    refused(CODE.INVALID_ARGUMENT, "sequence", stream(initial, chunk(b"x", 1)))
    refused(CODE.INVALID_ARGUMENT, "sequence", stream(initial, chunk(b"x", 0), chunk(b"x", 2)))
    refused(CODE.INVALID_ARGUMENT, "sequence", stream(initial, chunk(b"x", 0), chunk(b"x", 0)))
    refused(CODE.INVALID_ARGUMENT, "initial", stream(initial, initial))
    refused(CODE.INVALID_ARGUMENT, "initial", stream(initial, chunk(b"x", 0), initial))
    refused(CODE.INVALID_ARGUMENT, "initial", stream(chunk(b"x", 0)))
    refused(CODE.INVALID_ARGUMENT, "", stream(initial, runtime.InvokeBindingStreamRequest()))
    refused(CODE.INVALID_ARGUMENT, "", stream())
    refused(CODE.INVALID_ARGUMENT, "operation", stream(first(name, "")))


def bad_names(setting, _):
    invoke, call = setting.dapr.invoke, setting.dapr.call
    for action in (invoke, call):
        refused(CODE.NOT_FOUND, "nobody", lambda: action("nobody"))
        refused(CODE.INVALID_ARGUMENT, "name", lambda: action(""))
        refused(CODE.INVALID_ARGUMENT, "operation", lambda: action("orders", operation=""))
        refused(CODE.FAILED_PRECONDITION, "erase.*create get list", lambda: action("orders", operation="erase"))
        refused(CODE.FAILED_PRECONDITION, "erase.*create get list", lambda: action("old", operation="erase"))


def silent_client(setting, _):
    """A client that opens a stream and does not say what it wants."""
    upload, began = Upload(), time.monotonic()
    refused(CODE.DEADLINE_EXCEEDED, "first message", lambda: list(setting.dapr.open(upload)))
    upload.finish()
    waited = time.monotonic() - began
    if not 0.4 < waited < 3:
        raise Failed(f"it waited {waited} s")


def misnumbered_upload_is_cut(setting, name):
    """What is wrong on the client's side must not look like an end to the component."""
    component, since = setting.components["orders"], setting.components["orders"].mark()
    upload = Upload(first(name))
    call = setting.dapr.open(upload)
    id = component.wait("stream", since)["id"]
    upload.send(chunk(b"x", 0))
    next(call), next(call)
    upload.send(chunk(b"x", 7))
    upload.finish()
    refused(CODE.INVALID_ARGUMENT, "sequence", lambda: list(call))
    component.wait("cut", since, id=id, bytes=1)
    expect(component.seen("whole", since, id=id), [])


def cancelled_upload_is_cut(setting, name):
    component, since = setting.components["orders"], setting.components["orders"].mark()
    upload = Upload(first(name), chunk(b"x", 0))
    call = setting.dapr.open(upload)
    id = component.wait("stream", since)["id"]
    next(call), next(call)
    call.cancel()
    upload.finish()
    component.wait("cut", since, id=id, bytes=1)
    expect(component.seen("whole", since, id=id), [])


def whole_upload_is_whole(setting, name):
    component, since = setting.components["orders"], setting.components["orders"].mark()
    setting.dapr.invoke(name, pieces(payload(MIB)), metadata={"behave": "digest"}, operation="get")
    seen = component.wait("stream", since)
    expect((seen["operation"], seen["metadata"]), ("get", {"behave": "digest"}))
    whole = component.wait("whole", since, id=seen["id"])
    expect((whole["bytes"], whole["digest"]), (MIB, hashlib.sha256(payload(MIB)).hexdigest()))
    expect(component.seen("misnumbered"), [])


def held_back(setting, name):
    """A component that does not read holds back the client, in place of a proxy that swallows it all."""
    component, since = setting.components["orders"], setting.components["orders"].mark()
    taken = 0

    def upload():
        nonlocal taken
        for request in requests(name, (bytes(64 * KIB) for _ in range(1024)), metadata={"behave": "read nothing"}):
            taken += 1
            yield request

    call = setting.dapr.open(upload())
    expect(next(call).WhichOneof("kind"), "initial_response")
    time.sleep(1)
    before = taken
    time.sleep(0.3)
    expect(taken, before)
    if taken * 64 * KIB > 24 * MIB:
        raise Failed(f"{taken} chunks of 64 KiB were taken")
    call.cancel()
    component.wait("left", since)


def slow_component(setting, name):
    data = payload(2 * MIB)
    _, found = setting.dapr.invoke(name, pieces(data), metadata={"behave": "read slowly"})
    expect(b"".join(found), data)


def three_pieces(setting, name):
    _, found = setting.dapr.invoke(name, [b"123456", b"789"], metadata={"behave": "three pieces"})
    expect(found, [b"1234", b"5678", b"9"])


def payload_before_initial_response(setting, name):
    """Components may do without the initial message; clients get one all the same."""
    metadata, found = setting.dapr.invoke(name, [b"x"], metadata={"behave": "payload first"})
    expect((metadata, found), ({}, [b"x"]))


def early_end(setting, name):
    """A component that has enough before the client has ended."""
    upload = Upload(first(name, metadata={"behave": "end early"}), chunk(b"x", 0))
    call = setting.dapr.open(upload)
    expect(answer(call)[1], [b"enough"])
    expect(call.code(), CODE.OK)
    upload.finish()


def failures_of_the_component(setting, name):
    def stream(behaviour):
        return lambda: setting.dapr.invoke(name, [b"x"], metadata={"behave": behaviour})

    refused(CODE.ALREADY_EXISTS, "it is there already", stream("refuse"))
    refused(CODE.DATA_LOSS, "the disk is gone", stream("fail midway"))
    refused(CODE.INTERNAL, name + ".*sequence", stream("gap"))
    refused(CODE.INTERNAL, name, stream("initial twice"))
    refused(CODE.ALREADY_EXISTS, "it is there already", lambda: setting.dapr.call(name, metadata={"behave": "refuse"}))


def instances(setting, _):
    """One process may stand behind two bindings, each with settings of its own."""
    component = setting.components["orders"]
    component.wait("init", instance="orders", metadata={"key": "value"})
    component.wait("init", instance="another", metadata={"key": "other"})
    component.wait("init", instance="remote", metadata={})
    since = component.mark()
    setting.dapr.invoke("second")
    component.wait("stream", since, instance="another")


def pings(setting, _):
    component = setting.components["orders"]
    for _ in range(3):
        component.wait("ping", component.mark())


# === Bindings that do not stream ===


def collected_whole(setting, name):
    """An old component gets all of it at once; the answer is handed out in pieces."""
    component, since = setting.components[name], setting.components[name].mark()
    data = payload(3 * MIB)
    _, found = setting.dapr.invoke(name, pieces(data), metadata={"key": "value"}, operation="get")
    expect((b"".join(found), max(map(len, found)) <= 64 * KIB), (data, True))
    [seen] = component.seen("invoke", since)
    expect((seen["operation"], seen["metadata"], seen["bytes"]), ("get", {"key": "value"}, 3 * MIB))
    expect(component.seen("stream"), [])


def too_large_to_collect(setting, name):
    component, since = setting.components[name], setting.components[name].mark()
    refused(CODE.RESOURCE_EXHAUSTED, "buffer.max_bytes", lambda: setting.dapr.invoke(name, pieces(payload(5 * MIB))))
    refused(CODE.RESOURCE_EXHAUSTED, "buffer.max_bytes", lambda: setting.dapr.call(name, payload(5 * MIB)))
    expect(component.seen("invoke", since), [])


def half_an_upload_is_not_invoked(setting, name):
    component, since = setting.components[name], setting.components[name].mark()
    upload = Upload(first(name), chunk(b"x", 0))
    call = setting.dapr.open(upload)
    time.sleep(0.2)
    call.cancel()
    upload.finish()
    misnumbered = [first(name), chunk(b"x", 0), chunk(b"x", 2)]
    refused(CODE.INVALID_ARGUMENT, "sequence", lambda: list(setting.dapr.open(misnumbered)))
    time.sleep(0.2)
    expect(component.seen("invoke", since), [])


def refusal_of_an_old_component(setting, name):
    refused(
        CODE.ALREADY_EXISTS,
        "it is there already",
        lambda: setting.dapr.invoke(name, [b"x"], metadata={"behave": "refuse"}),
    )


def asked_once(setting, name):
    """That a component has no streams is found out once."""
    setting.components[name].wait("unimplemented")
    for _ in range(3):
        setting.dapr.invoke(name, [b"x"])
    # Each worker may have found out for itself.
    if len(setting.components[name].seen("unimplemented")) > 2:
        raise Failed("it was asked again")


def eager_component(setting, name):
    """An answer that begins before the request was read."""
    metadata, found = setting.dapr.invoke(name, [b"and ", b"late"])
    expect((metadata, b"".join(found)), ({}, b"early and late"))


# === HTTP ===


def http_round_trips(setting, name, version):
    data = payload(3 * MIB)
    for method in ("POST", "PUT"):
        # Without a length.
        told = post(setting, name, "--request", method, "--upload-file", "-", input=data, version=version)
        expect((told.exit, told.status, told.body == data), (0, 200, True))
        expect(told.headers["content-type"], "application/octet-stream")
    # With one, and so large that curl asks first whether it may.
    told = post(setting, name, "--data-binary", "@-", input=data, version=version)
    expect((told.exit, told.status, told.body == data), (0, 200, True))
    for small in (b"", b"hello world"):
        told = post(setting, name, "--data-binary", "@-", input=small, version=version)
        expect((told.exit, told.status, told.body), (0, 200, small))


def http_continue(setting, name, version):
    told = post(setting, name, "--data-binary", "@-", "--header", "expect: 100-continue", input=b"x", version=version)
    expect((told.interim, told.status, told.body), ([100], 200, b"x"))


def http_large(setting, name, version):
    with tempfile.NamedTemporaryFile() as file:
        file.write(payload(64 * MIB))
        file.flush()
        path = f"/v1.0-alpha1/bindings/{name}/stream?operation=create"
        done = curl(setting.proxy, path, version, "--request", "POST", "--upload-file", file.name)
    expect((done.returncode, hashlib.sha256(done.stdout).digest()), (0, hashlib.sha256(payload(64 * MIB)).digest()))


def http_operation(setting, name, version):
    component = setting.components["orders"]

    def operation(*options, **more):
        since = component.mark()
        told = post(setting, name, "--data-binary", "x", *options, version=version, **more)
        return told.status, component.wait("stream", since)["operation"]

    expect(operation(query="operation=list"), (200, "list"))
    expect(operation("--header", "dapr-operation: get", query=""), (200, "get"))
    # As with Dapr, the header wins.
    expect(operation("--header", "dapr-operation: get", query="operation=list"), (200, "get"))


def http_metadata(setting, name, version):
    component, since = setting.components["orders"], setting.components["orders"].mark()
    told = post(
        setting, name, "--data-binary", "x",
        "--header", "metadata-path: a/b",
        "--header", "X-Dapr-Metadata-Tag: blue",
        "--header", "metadata-blobname: loses",
        query="operation=create&metadata.blobName=w%C3%AFns%20%26&metadata.contentType=text/plain",
        version=version,
    )  # fmt: skip
    expect(told.status, 200)
    sent = {"path": "a/b", "tag": "blue", "blobName": "wïns &", "contentType": "text/plain"}
    expect(component.wait("stream", since)["metadata"], sent)
    expect(told.headers["content-type"], "text/plain")
    for prefix in ("metadata.", "x-dapr-metadata-"):
        expect((told.headers[prefix + "path"], told.headers[prefix + "tag"]), ("a/b", "blue"))


def http_errors(setting, name, version):
    """Without a body: an answer that comes before the body is sent is more than curl 7.88 can take over HTTP/2."""

    def refusal(*options, **more):
        told = post(setting, *options, "--data-binary", "", version=version, **more)
        return told.status, told.error()

    status, message = refusal(name, query="")
    expect((status, "operation" in message), (400, True))
    status, message = refusal("nobody")
    expect((status, "nobody" in message), (404, True))
    status, message = refusal(name, query="operation=erase")
    expect((status, "create get list" in message), (400, True))
    status, message = refusal(name, query="operation=create&metadata.behave=refuse")
    expect((status, "it is there already" in message), (409, True))
    status, message = refusal("fragile")
    expect((status, "fragile" in message), (503, True))
    status, message = refusal("old", query="operation=create&metadata.behave=refuse")
    expect((status, "it is there already" in message), (409, True))


def http_too_large(setting, _, version):
    component, since = setting.components["old"], setting.components["old"].mark()
    for options in (["--upload-file", "-"], ["--data-binary", "@-"]):
        told = Told(send(setting, "old", *options, input=payload(5 * MIB), version=version))
        expect((told.status, "buffer.max_bytes" in told.error()), (413, True))
    expect(component.seen("invoke", since), [])


def http_collected(setting, _, version):
    data = payload(3 * MIB)
    for name in COLLECTED:
        told = post(setting, name, "--upload-file", "-", input=data, version=version)
        expect((told.status, told.body == data), (200, True))


def http_unary(setting, name, version):
    def call(body, name=name):
        body = body if isinstance(body, str) else json.dumps(body)
        return post(setting, name, "--data-binary", body, path=f"/v1.0/bindings/{name}", version=version)

    told = call({"operation": "create", "data": "hello", "metadata": {"key": "value"}})
    expect((told.status, told.body, told.headers["metadata.key"]), (200, b'"hello"', "value"))
    expect(told.headers["content-type"], "application/json")
    told = call({"operation": "create", "data": {"a": [1, None]}})
    expect((told.status, json.loads(told.body)), (200, {"a": [1, None]}))
    told = call({"operation": "create"})
    expect((told.status, told.body), (204, b""))
    expect(call("{").status, 400)
    expect(call({"data": "no operation"}).status, 400)
    expect(call({"operation": "erase"}).status, 400)
    expect(call({"operation": "create"}, "nobody").status, 404)


def http_answer_begins_early(setting, name, version):
    """The answer comes while the body is still being sent. Of a dot for a file, curl reads without waiting for it."""
    process = subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--include", version, "--request", "POST", "--upload-file", ".",
         f"http://{setting.proxy.address}/v1.0-alpha1/bindings/{name}/stream?operation=create"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.stdin.write(b"begin")
        process.stdin.flush()
        told, found = b"", threading.Event()

        def read():
            nonlocal told
            while data := process.stdout.read1(1000):
                told += data
                if told.endswith(b"begin"):
                    found.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if not found.wait(SOON):
            raise Failed(f"it answered {told!r} while the request was not over")
        process.stdin.close()
        expect(process.wait(SOON), 0)
        reader.join(SOON)
    finally:
        end(process)
        process.stdout.close()


def http_aborted_upload_is_cut(setting, name, version):
    component, since = setting.components["orders"], setting.components["orders"].mark()
    process = subprocess.Popen(
        ["curl", "--silent", version, "--request", "POST", "--upload-file", "-",
         f"http://{setting.proxy.address}/v1.0-alpha1/bindings/{name}/stream?operation=create"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.stdin.write(payload(100_000))
        process.stdin.flush()
        id = component.wait("stream", since)["id"]
    finally:
        process.kill()
        process.wait(SOON)
        process.stdin.close()
    component.wait("cut", since, id=id)
    expect(component.seen("whole", since, id=id), [])


def http_broken_answer(setting, name, version):
    """What fails after the answer has begun must not look like a whole answer."""
    for behaviour in ("fail%20midway", "gap", "initial%20twice"):
        query = f"operation=create&metadata.behave={behaviour}"
        done = curl(
            setting.proxy, f"/v1.0-alpha1/bindings/{name}/stream?{query}", version, "--data-binary", "x"
        )
        expect((behaviour, done.returncode in BROKEN), (behaviour, True))


# === Components that come and go ===


def comes_and_goes(setting, tally):
    dapr, proxy = setting.dapr, setting.proxy

    def invoke(behaviour="echo"):
        return dapr.invoke("fragile", [b"x"], metadata={"behave": behaviour})

    def start(*flags):
        component = setting.component("fragile", *flags)
        if not flags:
            setting.until_ready("fragile")
            component.wait("init", instance="fragile", metadata={"key": "again"})
            expect(len(component.seen("init")), 1)
            expect(invoke()[1], [b"x"])
        return component

    def is_down():
        try:
            invoke()
        except grpc.RpcError as error:
            return error.code() == CODE.UNAVAILABLE
        return False

    refused(CODE.UNAVAILABLE, "fragile", invoke)
    refused(CODE.UNAVAILABLE, "fragile", lambda: dapr.call("fragile"))
    tally.ok("component: not there yet")

    crashing = start("--crash", "init")
    crashing.process.wait(SOON)
    refused(CODE.UNAVAILABLE, "fragile", invoke)
    tally.ok("component: ends in Init")

    component = start()
    tally.ok("component: starts after the proxy")

    component.kill()
    proxy.until("without the component", is_down)
    component = start()
    tally.ok("component: killed and started again, with Init")

    error = refused(CODE.UNAVAILABLE, "fragile|connection|upstream|reset", lambda: invoke("crash before the answer"))
    expect(error.code(), CODE.UNAVAILABLE)
    component.process.wait(SOON)
    component = start()
    tally.ok("component: ends before it answers")

    call = dapr.open(requests("fragile", [b"x"], metadata={"behave": "crash midway"}))
    next(call)
    expect(len(next(call).payload.data), 100_000)
    try:
        raise Failed(f"the stream went on with {list(call)!r:.200}")
    except grpc.RpcError as error:
        expect(error.code() in (CODE.UNAVAILABLE, CODE.INTERNAL), True)
    component.process.wait(SOON)
    component = start()
    tally.ok("component: ends in the middle of an answer")

    for name, version in VERSIONS.items():
        path = "/v1.0-alpha1/bindings/fragile/stream?operation=create&metadata.behave="
        done = curl(proxy, path + "crash%20midway", version, "--data-binary", "x")
        expect((done.returncode in BROKEN, len(done.stdout)), (True, 100_000))
        component.process.wait(SOON)
        component = start()
        told = Told(curl(proxy, path + "crash%20before%20the%20answer", version, "--include", "--data-binary", "x"))
        expect((told.status, told.headers["thalweg-reason"]), (502, "upstream_lost"))
        told.error()
        component.process.wait(SOON)
        component = start()
        tally.ok(f"component: ends before and in the middle of an answer over {name}")
    component.kill()


def discovery(setting, tally):
    dapr, socket = setting.dapr, setting.sockets / "discovered" / "found.sock"
    refused(CODE.NOT_FOUND, "found", lambda: dapr.invoke("found"))

    def within(seconds, what, reached):
        began = time.monotonic()
        setting.proxy.until(what, reached)
        if time.monotonic() - began > seconds:
            raise Failed(f"{what}: only after {time.monotonic() - began:.1f} s")

    def has(code):
        try:
            dapr.invoke("found", [b"x"])
        except grpc.RpcError as error:
            return error.code() == code
        return code == CODE.OK

    for again in ("", " once more"):
        component = setting.component("discovered/found")
        component.wait("listening")
        within(2, "found", lambda: has(CODE.OK))
        component.wait("init", instance="found", metadata={})
        tally.ok(f"discovery: a socket becomes a binding{again}")
        if not again:
            told = post(setting, "found", "--data-binary", "x")
            expect((told.status, told.body), (200, b"x"))
        component.kill()
        within(2, "without its component", lambda: has(CODE.UNAVAILABLE))
        socket.unlink(missing_ok=True)
        within(2, "forgotten", lambda: has(CODE.NOT_FOUND))
        tally.ok(f"discovery: a binding goes with its socket{again}")

    # What is no socket, and what is no component.
    (setting.sockets / "discovered" / "notes.txt").write_text("x")
    time.sleep(0.3)
    refused(CODE.NOT_FOUND, "notes", lambda: dapr.invoke("notes"))
    tally.ok("discovery: other files are no bindings")


# === Metrics ===


def metrics(setting, _):
    told = setting.proxy.get("/metrics")

    def count(success, component):
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in told.splitlines()
            if line.startswith("dapr_component_output_binding_count{")
            and f'component="{component}"' in line
            and f'success="{success}"' in line
        ]
        return sum(found)

    for name in ["orders", "old", "remote", "echo"]:
        expect((name, count("true", name) > 0), (name, True))
    expect(count("false", "orders") > 0, True)


# === All together ===

EVERYWHERE = [round_trips, empty_chunks, many_small_chunks, one_large_chunk, unary, gzip_client, bad_requests]
BIDIRECTIONAL = [answer_begins_before_payload]
OF_COMPONENTS = [
    component_repacks,
    whole_upload_is_whole,
    misnumbered_upload_is_cut,
    cancelled_upload_is_cut,
    held_back,
    slow_component,
    three_pieces,
    payload_before_initial_response,
    early_end,
]
OVER_HTTP = [
    http_round_trips,
    http_large,
    http_operation,
    http_metadata,
    http_errors,
    http_too_large,
    http_collected,
    http_unary,
    http_answer_begins_early,
    http_aborted_upload_is_cut,
    http_broken_answer,
]


def words(check, less=""):
    return check.__name__[len(less) :].replace("_", " ")


def checks(tally, setting):
    def check(function, name):
        function(setting, name)
        tally.ok(f"binding {name}: {words(function)}")

    for name in STREAMING + COLLECTED:
        for function in EVERYWHERE:
            check(function, name)
    for name in STREAMING:
        for function in BIDIRECTIONAL:
            check(function, name)
    for name in ["echo", "orders", "remote"]:
        check(large, name)
    for name in ["orders", "remote"]:
        for function in OF_COMPONENTS:
            check(function, name)
    check(failures_of_the_component, "orders")
    for name in ["old", "pretending", "old-mute"]:
        for function in [collected_whole, too_large_to_collect, refusal_of_an_old_component]:
            check(function, name)
    check(half_an_upload_is_not_invoked, "old")
    check(asked_once, "pretending")
    check(eager_component, "eager")
    for function in [bad_names, silent_client, instances, pings]:
        function(setting, None)
        tally.ok(f"bindings: {words(function)}")

    for version, option in VERSIONS.items():
        for function in OVER_HTTP:
            function(setting, "orders", option)
            tally.ok(f"bindings over {version}: {words(function, 'http_')}")
    http_continue(setting, "orders", "--http1.1")
    tally.ok("bindings over HTTP/1.1: 100 continue")

    comes_and_goes(setting, tally)
    discovery(setting, tally)
    metrics(setting, None)
    tally.ok("bindings: metrics with Dapr's names")


@contextlib.contextmanager
def unexpected_status():
    """A call that should have succeeded is a check that failed."""
    try:
        yield
    except grpc.RpcError as error:
        raise Failed(f"{error.code()}: {error.details()}") from error


def all_of_it(tally, binary):
    with contextlib.ExitStack() as stack:
        setting = Setting(stack, binary)
        with log_on_failure(setting.second), log_on_failure(setting.proxy), unexpected_status():
            with contextlib.ExitStack() as connections:
                setting.connect(connections)
                checks(tally, setting)
            setting.proxy.finish(tally, "proxy before bindings")
            setting.second.finish(tally, "second proxy")
