"""What the checks share: processes that end with them, a running proxy, and curl."""

import contextlib
import http.client
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
PYTHON = sys.executable

# For one client with all its checks, or one call of a command.
PATIENCE = 240
# For whatever must happen soon.
SOON = 10
# The two ways of curl to speak; the second is nghttp2's.
VERSIONS = {"HTTP/1.1": "--http1.1", "h2c": "--http2-prior-knowledge"}


class Failed(Exception):
    """What a check found; the rest of the story is in the log."""


# What a check that does not pass may raise.
FAILURES = (Failed, subprocess.TimeoutExpired, AssertionError, KeyError, ValueError)


def expect(what, wanted):
    if what != wanted:
        raise Failed(f"expected {wanted!r:.500}\n     got {what!r:.500}")


class Tally:
    passed = 0

    def ok(self, name):
        self.passed += 1
        print(f"ok {name}", flush=True)


def free_ports(count):
    """Ports that nobody listens on; they may be taken before they are used, but in a range that is rarely asked for."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def end(process):
    """Ends a process that was started here, and nothing else."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SOON)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(SOON)


def server(stack, *command):
    """Starts a server and answers with the port that it prints."""
    return server_process(stack, *command)[1]


def server_process(stack, *command):
    """The same, with the process before the port."""
    process = subprocess.Popen(
        command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(end, process)
    if not select.select([process.stdout], [], [], 30)[0]:
        raise Failed(f"{command} did not start")
    return process, int(process.stdout.readline())


def run(*command, wait=PATIENCE, **options):
    return subprocess.run(command, cwd=HERE, timeout=wait, capture_output=True, **options)


# Only the process itself knows its number before it runs.
HANDED_OVER = 'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"'


class Proxy:
    def __init__(self, stack, binary, config, handed_over=None, **places):
        """Starts one. `handed_over` is a socket that listens already, in place of a free port."""
        port, admin = free_ports(2)
        command, given = [binary], subprocess.DEVNULL
        if handed_over:
            port, given = handed_over.getsockname()[1], handed_over
            command = ["sh", "-c", HANDED_OVER, binary]
        self.address, self.admin = f"127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.file, self.log_file = folder / "proxy.yaml", folder / "log"
        self.file.write_text(config.format(port=port, admin=admin, **places))
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.file)],
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "THALWEG_LOG": "thalweg=debug"},
            )
        stack.callback(end, self.process)
        self.until("ready", lambda: self.get("/readyz") == "ready\n")

    def get(self, path):
        try:
            with urllib.request.urlopen(self.admin + path, timeout=SOON) as answer:
                return answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return str(error)

    def post(self, path):
        """The status and the answer, whatever they are."""
        request = urllib.request.Request(self.admin + path, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=SOON) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def log(self):
        return self.log_file.read_text(errors="replace")

    def until(self, what, reached):
        began = time.monotonic()
        while not reached():
            if self.process.poll() is not None:
                raise Failed(f"the proxy ended with {self.process.returncode}")
            if time.monotonic() - began > SOON:
                raise Failed(f"not {what} within {SOON} s")
            time.sleep(0.05)

    def metric(self, name):
        """The sum of a metric over its labels."""
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return sum(map(float, values))

    def is_idle(self):
        gauges = ["streams_live", "cluster_streams", "cluster_pending", "listener_connections_live"]
        return all(self.metric("thalweg_" + gauge) == 0 for gauge in gauges)

    def finish(self, tally, name):
        """Nothing may be left of what went through it, and it must end when it is told."""
        self.until("idle", self.is_idle)
        expect(self.metric("thalweg_panics_total"), 0)
        tally.ok(f"{name}: nothing is left open")
        self.process.send_signal(signal.SIGTERM)
        expect(self.process.wait(SOON), 0)
        tally.ok(f"{name}: SIGTERM ends it with 0")


@contextlib.contextmanager
def log_on_failure(proxy):
    """Shows the log of a proxy to whoever has to find out why a check failed."""
    try:
        yield
    except FAILURES:
        print(f"=== the proxy's log ===\n{proxy.log()[-20_000:]}", file=sys.stderr)
        raise


def curl(proxy, path, *more, **options):
    return run(
        "curl", "--silent", "--show-error", "--max-time", "60", *more, f"http://{proxy.address}{path}",
        **options,
    )  # fmt: skip


def told(output):
    head, _, body = output.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body
