"""What operators do to a running proxy, as grpcio sees it: changing the process, its configuration and its endpoints, and draining it."""

import contextlib
import json
import pathlib
import signal
import socket
import tempfile
import threading
import time

import grpc

from harness import PYTHON, SOON, Failed, Proxy, expect, log_on_failure, server

SERVICE = "/thalweg.interop.Echo/"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
# Calls that must go well between two steps.
CALLS = 200
STREAMS = 8

CONFIG = """
admin: {{address: 127.0.0.1:{admin}}}
drain: {{timeout: {timeout}, spread: 500ms}}
workers: 2
listeners:
  - {{name: plain, address: 127.0.0.1:{port}}}
filters: [metrics]
clusters:
  grpc: {{endpoints: [127.0.0.1:{grpc}]}}
routes:
  - {{name: echo, cluster: grpc}}
"""

RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "60s",
                "maxBackoff": "60s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def note(text):
    """A `Note`, for a text of less than 128 bytes."""
    return bytes([0x0A, len(text)]) + text


@contextlib.contextmanager
def channel(proxy, **config):
    """A channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", json.dumps(config))]
    with grpc.insecure_channel(proxy.address, options) as opened:
        yield opened


class Load:
    """Calls without a pause, each of which must go well."""

    def __init__(self, stack, proxy):
        self.done, self.stopped, self.failed = 0, False, []
        self.threads = []
        for _ in range(3):
            calls = stack.enter_context(channel(proxy)).unary_unary(SERVICE + "Unary")
            self.threads.append(threading.Thread(target=self.run, args=[calls]))
        for thread in self.threads:
            thread.start()
        stack.callback(self.stop)

    def run(self, call):
        while not self.stopped:
            try:
                expect(call(note(b"hello"), timeout=SOON), note(b"hello"))
                self.done += 1
            except (grpc.RpcError, Failed) as error:
                self.failed.append(error)
                return

    def goes_on(self):
        wanted, began = self.done + CALLS, time.monotonic()
        while self.done < wanted:
            if self.failed:
                raise Failed(f"a call failed: {self.failed[0]}")
            if time.monotonic() - began > 2 * SOON:
                raise Failed("the calls do not go on")
            time.sleep(0.01)

    def stop(self):
        self.stopped = True
        for thread in self.threads:
            thread.join()


class Talk:
    """A stream on which each message comes back."""

    def __init__(self, opened):
        self.waits, self.said, self.over = threading.Condition(), [], False
        self.answers = opened.stream_stream(SERVICE + "Talk")(self.messages(), timeout=60)

    def messages(self):
        while True:
            with self.waits:
                self.waits.wait_for(lambda: self.said or self.over)
                if not self.said:
                    return
                message = self.said.pop(0)
            yield message

    def say(self, message):
        with self.waits:
            self.said.append(message)
            self.waits.notify()

    def echo(self, text):
        self.say(note(text))
        expect(next(self.answers), note(text))

    def finish(self):
        with self.waits:
            self.over = True
            self.waits.notify()
        expect(list(self.answers), [])
        expect(self.answers.code(), grpc.StatusCode.OK)


def listening(stack):
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    bound.listen(1024)
    return bound


def drain(proxy):
    proxy.process.send_signal(signal.SIGTERM)
    proxy.until("draining", lambda: "draining;" in proxy.log())


def ended(proxy):
    expect(proxy.process.wait(SOON), 0)


def change_of_the_process(stack, binary, backend):
    """A new process takes the socket of an old one: no call fails, and no stream is cut."""
    handed_over = listening(stack)

    def start():
        return Proxy(stack, binary, CONFIG, handed_over=handed_over, grpc=backend, timeout="60s")

    old = start()
    with log_on_failure(old), contextlib.ExitStack() as clients:
        streams = [Talk(clients.enter_context(channel(old))) for _ in range(STREAMS)]
        for stream in streams:
            stream.echo(b"first")
        load = Load(clients, old)
        load.goes_on()
        new = start()
        load.goes_on()
        drain(old)
        load.goes_on()
        for stream in streams:
            stream.echo(b"last")
            stream.finish()
        ended(old)
        load.goes_on()
        load.stop()
        new.until("called", lambda: new.metric("thalweg_streams_started_total") > 0)


def end_between_two_messages(stack, binary, backend):
    """A stream that outlives the drain ends behind whole messages, and its client hears when to come back."""
    proxy = Proxy(stack, binary, CONFIG, grpc=backend, timeout="500ms")
    with log_on_failure(proxy), contextlib.ExitStack() as clients:
        stream = Talk(clients.enter_context(channel(proxy)))
        stream.echo(b"first")
        flood = Talk(clients.enter_context(channel(proxy)))
        flood.echo(b"first")  # or the drain may come before its connection
        large = bytes(200_000)
        flood.say(large)
        drain(proxy)
        came = 0
        try:
            for message in flood.answers:
                expect(message, large)
                came += 1
                flood.say(large)
        except grpc.RpcError as error:
            told_to_come_back(error)
        expect(came > 0, True)
        try:
            next(stream.answers)
            raise Failed("the stream should have ended")
        except grpc.RpcError as error:
            told_to_come_back(error)
        ended(proxy)


def told_to_come_back(error):
    expect(error.code(), UNAVAILABLE)
    trailers = dict(error.trailing_metadata())
    expect(0 <= int(trailers["grpc-retry-pushback-ms"]) <= 500, True)
    expect(trailers["thalweg-reason"], "drain")


def second_attempt(stack, binary, backend):
    """grpcio tries a call again that it was told to, and the new process takes it."""
    handed_over = listening(stack)

    def start():
        return Proxy(stack, binary, CONFIG, handed_over=handed_over, grpc=backend, timeout="200ms")

    old = start()
    with log_on_failure(old), channel(old, **RETRYING) as opened:
        hanging = opened.unary_unary(SERVICE + "Unary").future(
            note(b"again"), metadata=[("x-hang-once", "second attempt")], timeout=30
        )
        old.until("called", lambda: old.metric("thalweg_streams_live") > 0)
        new = start()
        drain(old)
        expect(hanging.result(SOON), note(b"again"))
        expect(new.metric("thalweg_streams_started_total"), 1)
        ended(old)


def reloads(stack, binary, backend):
    """The configuration changes and breaks while calls and streams go on."""
    proxy = Proxy(stack, binary, CONFIG, grpc=backend, timeout="5s")
    with log_on_failure(proxy), contextlib.ExitStack() as clients:
        streams = [Talk(clients.enter_context(channel(proxy))) for _ in range(STREAMS)]
        load = Load(clients, proxy)
        good = proxy.file.read_text()
        for turn in range(10):
            route = f"  - {{name: more, match: {{path: /more/{turn}}}, cluster: grpc}}\n"
            proxy.file.write_text(good.replace("routes:\n", "routes:\n" + route))
            status, said = proxy.post("/reload")
            expect((status, '"more"' in said), (200, True))
            proxy.file.write_text(good.replace("cluster: grpc", "cluster: nobody"))
            status, said = proxy.post("/reload")
            expect((status, "there is no cluster `nobody`" in said), (422, True))
            expect(proxy.metric("thalweg_config_last_reload_successful"), 0)
            for stream in streams:
                stream.echo(b"%d" % turn)
        load.goes_on()
        load.stop()
        for stream in streams:
            stream.finish()
        expect(proxy.metric("thalweg_config_reloads_total"), 10)
        expect(proxy.metric("thalweg_config_reload_failures_total"), 10)
        drain(proxy)
        ended(proxy)


def endpoints_from_a_file(stack, binary, backend):
    """Streams go on where they are, and calls go where the file says."""
    other = server(stack, PYTHON, "grpcio_server.py")
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    file = folder / "endpoints.yaml"
    file.write_text(f"[127.0.0.1:{backend}]")
    config = CONFIG.replace("[127.0.0.1:{grpc}]", "{{file: {file}, refresh: 100ms}}")
    proxy = Proxy(stack, binary, config, file=file, timeout="5s")

    def streams_of(port):
        endpoints = json.loads(proxy.get("/clusters"))["grpc"]["endpoints"]
        return sum(it["streams"] for it in endpoints if it["address"] == f"127.0.0.1:{port}")

    with log_on_failure(proxy), contextlib.ExitStack() as clients:
        streams = [Talk(clients.enter_context(channel(proxy))) for _ in range(STREAMS)]
        for stream in streams:
            stream.echo(b"first")
        expect(streams_of(backend), STREAMS)
        load = Load(clients, proxy)
        load.goes_on()
        (folder / "next").write_text(f"[127.0.0.1:{other}]")
        (folder / "next").rename(file)
        proxy.until("changed", lambda: f"127.0.0.1:{other}" in proxy.get("/clusters"))
        load.goes_on()
        later = Talk(clients.enter_context(channel(proxy)))
        later.echo(b"later")
        expect(streams_of(other) > 0, True)
        load.stop()
        for stream in [*streams, later]:
            stream.echo(b"last")
            stream.finish()
        drain(proxy)
        ended(proxy)


CHECKS = [
    change_of_the_process,
    end_between_two_messages,
    second_attempt,
    reloads,
    endpoints_from_a_file,
]


def all_of_it(tally, binary):
    for check in CHECKS:
        with contextlib.ExitStack() as stack:
            backend = server(stack, PYTHON, "grpcio_server.py")
            check(stack, binary, backend)
        tally.ok(f"grpcio: {check.__name__.replace('_', ' ')}")
