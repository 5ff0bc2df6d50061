"""Starts the servers and a proxy in front of each, and runs every client against every server; then the bindings, the stores, and what operators do."""

import base64
import contextlib
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import bindings
import operation
import stores
from harness import (
    FAILURES,
    HERE,
    PATIENCE,
    PYTHON,
    SOON,
    VERSIONS,
    Failed,
    Proxy,
    Tally,
    curl,
    expect,
    free_ports,
    log_on_failure,
    run,
    server,
    told,
)

BUF = str(pathlib.Path(PYTHON).with_name("buf"))
SERVICE = "thalweg.interop.Echo"

# A build with debug assertions may be slow, but none of these is about speed.
CONFIG = """
admin: {{address: 127.0.0.1:{admin}}}
drain: {{timeout: 5s}}
workers: 2
listeners:
  - {{name: plain, address: 127.0.0.1:{port}}}
filters: [metrics]
clusters:
  grpc: {{endpoints: [127.0.0.1:{grpc}]{tls}}}
  http1: {{endpoints: [127.0.0.1:{http1}], protocol: http1}}
  http2: {{endpoints: [127.0.0.1:{http2}]}}
  down: {{endpoints: [127.0.0.1:{nobody}]}}
routes:
  - {{name: echo, match: {{grpc: {{service: {service}}}}}, cluster: grpc}}
  - {{name: http1, match: {{path_prefix: /http1/}}, cluster: http1}}
  - {{name: http2, match: {{path_prefix: /http2/}}, cluster: http2}}
  - {{name: down, match: {{path_prefix: /down/}}, cluster: down}}
"""
TLS = ", tls: {{ca: {0}/ca.pem, server_name: localhost, certificate: {{cert: {0}/client.pem, key: {0}/client.key}}}}"


# === The clients with checks of their own ===


def client(tally, name, command):
    """Runs a client, whose every line is a check that passed."""
    process = subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"Error: it took more than {PATIENCE} s\n"
    lines = output.splitlines()
    if process.returncode == 0:
        done, rest = lines, []
    else:
        # Names of checks are words; what follows them tells of the failure.
        done = [line for line in lines if re.fullmatch(r"[a-z][\w -]*( 100 MiB)?", line)]
        rest = lines[len(done) :]
    for line in done:
        tally.ok(f"{name}: {line}")
    if process.returncode != 0:
        raise Failed(f"{name}: the check after {done[-1:]}\n" + "\n".join(rest))
    if not done:
        raise Failed(f"{name}: it checked nothing")


# === buf curl ===


def buf_curl(proxy, method, data, *more):
    return run(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--schema", "echo.proto",
        "--data", "@-", *more, f"http://{proxy.address}/{SERVICE}/{method}",
        input=data.encode(), wait=60,
    )  # fmt: skip


def texts(output):
    """The messages that buf curl has printed, one JSON object after the other."""
    decoder, output, found = json.JSONDecoder(), output.decode().strip(), []
    while output:
        message, length = decoder.raw_decode(output)
        found.append(message.get("text", ""))
        output = output[length:].strip()
    return found


def buf_unary(proxy):
    expect(texts(buf_curl(proxy, "Unary", '{"text":"héllo"}').stdout), ["héllo"])


def buf_client_streaming(proxy):
    notes = [b"\x0a\x01a", b"\x0a\x02bc"]
    told = f"2 7 {hashlib.sha256(b''.join(notes)).hexdigest()}"
    expect(texts(buf_curl(proxy, "Collect", '{"text":"a"}{"text":"bc"}').stdout), [told])


def buf_server_streaming(proxy):
    answer = buf_curl(proxy, "Repeat", '{"text":"again"}', "--header", "x-count: 5")
    expect(texts(answer.stdout), ["again"] * 5)


def buf_bidirectional_streaming(proxy):
    answer = buf_curl(proxy, "Talk", "".join(f'{{"text":"{index}"}}' for index in range(20)))
    expect(texts(answer.stdout), [str(index) for index in range(20)])


def buf_metadata(proxy):
    answer = buf_curl(proxy, "Unary", "{}", "--verbose", "--header", "x-echo-word: said")
    heads = re.findall(r"^buf: < .*?x-echo-word: said", answer.stderr.decode(), re.MULTILINE | re.IGNORECASE)
    expect(len(heads), 2)


def buf_error(proxy):
    message = "naïve 100% — 🦀"
    headers = [
        "x-fail: 5",
        "x-fail-message-bin: " + binary(message.encode()),
        # google.rpc.Status with code 5.
        "x-fail-details-bin: " + binary(b"\x08\x05\x12" + bytes([len(message.encode())]) + message.encode()),
    ]
    options = [option for header in headers for option in ("--header", header)]
    answer = buf_curl(proxy, "Unary", "{}", *options)
    error = json.loads(answer.stderr)
    expect((error["code"], error["message"]), ("not_found", message))


def buf_no_route(proxy):
    answer = run(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--schema", "echo.proto",
        "--data", "{}", f"http://{proxy.address}/down/{SERVICE}/Unary", wait=60,
    )  # fmt: skip
    error = json.loads(answer.stderr)
    expect(error["code"], "unavailable")
    expect("cluster down" in error["message"], True)


def binary(data):
    return base64.b64encode(data).decode()


# === curl ===


SIZE = 20 * 1024 * 1024
BODY = (bytes(range(256)) * 256 * 320)[:SIZE]
DIGEST = hashlib.sha256(BODY).hexdigest()


def download(proxy, version):
    expect(curl(proxy, f"/http1/download/{SIZE}", version).stdout == BODY, True)


def upload_of_unknown_length(proxy, version):
    answer = curl(proxy, "/http1/x", version, "--upload-file", "-", input=BODY)
    expect(answer.stdout.decode(), f"PUT {SIZE} {DIGEST}")


def upload_of_known_length(proxy, version):
    with tempfile.NamedTemporaryFile() as file:
        file.write(BODY)
        file.flush()
        answer = curl(proxy, "/http1/x", version, "--upload-file", file.name)
    expect(answer.stdout.decode(), f"PUT {SIZE} {DIGEST}")


def upload_to_an_http2_server(proxy, version):
    answer = curl(proxy, "/http2/x", version, "--upload-file", "-", input=BODY)
    expect(answer.stdout.decode(), f"PUT {SIZE} {DIGEST}")


def no_route(proxy, version):
    status, headers, body = told(curl(proxy, "/nowhere", version, "--include").stdout)
    expect((status, headers["thalweg-reason"]), (404, "no_route"))
    expect(json.loads(body), {"errorCode": "ERR_NO_ROUTE", "message": "no route for /nowhere"})


def server_down(proxy, version):
    status, headers, body = told(curl(proxy, "/down/", version, "--include").stdout)
    expect((status, headers["thalweg-reason"]), (503, "upstream_connect_failed"))
    expect("cluster down" in json.loads(body)["message"], True)


def grpc_over_http1(proxy):
    answer = curl(
        proxy, f"/{SERVICE}/Unary", "--http1.1", "--include", "--data-binary", "x",
        "--header", "content-type: application/grpc",
    ).stdout  # fmt: skip
    expect(b"grpc_over_http1" in answer and b"gRPC needs HTTP/2" in answer, True)


def aborted_upload(proxy, version):
    """A client that leaves in the middle of its upload is no client whose upload was whole."""
    process = subprocess.Popen(
        ["curl", "--silent", version, "--upload-file", "-", f"http://{proxy.address}/http1/x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        process.stdin.write(BODY[:100_000])
        process.stdin.flush()
        proxy.until("forwarded", lambda: proxy.metric("thalweg_cluster_streams") > 0)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait(SOON)
    proxy.until(
        "noticed by the server",
        lambda: curl(proxy, "/http1/last").stdout.startswith(b"cut after"),
    )


# === All together ===


def through(tally, binary, name, ports, plain, tls=""):
    """Everything that goes through one proxy."""
    with contextlib.ExitStack() as stack:
        [nobody] = free_ports(1)
        proxy = Proxy(stack, binary, CONFIG, nobody=nobody, service=SERVICE, tls=tls, **ports)
        with log_on_failure(proxy):
            checks(tally, proxy, name, plain)


def checks(tally, proxy, name, plain):
    client(tally, f"grpcio to {name}", [PYTHON, "grpcio_client.py", proxy.address])
    client(tally, f"grpcio's health client before {name}", [PYTHON, "grpcio_health.py", proxy.address])
    client(tally, f"grpc-js to {name}", ["node", "grpcjs_client.js", proxy.address])
    for check in [
        buf_unary,
        buf_client_streaming,
        buf_server_streaming,
        buf_bidirectional_streaming,
        buf_metadata,
        buf_error,
        buf_no_route,
    ]:
        check(proxy)
        tally.ok(f"buf curl to {name}: {check.__name__[4:].replace('_', ' ')}")

    if plain:
        for version, option in VERSIONS.items():
            for check in [
                download,
                upload_of_unknown_length,
                upload_of_known_length,
                upload_to_an_http2_server,
                no_route,
                server_down,
                aborted_upload,
            ]:
                check(proxy, option)
                tally.ok(f"curl over {version}: {check.__name__.replace('_', ' ')}")
        grpc_over_http1(proxy)
        tally.ok("curl over HTTP/1.1: gRPC gets a clear error")

    proxy.finish(tally, f"proxy before {name}")


def stacks(tally, binary):
    with contextlib.ExitStack() as stack:
        http1 = server(stack, PYTHON, "http1_server.py")
        http2 = server(stack, "node", "http2_server.js")
        grpcio = server(stack, PYTHON, "grpcio_server.py")
        grpcjs = server(stack, "node", "grpcjs_server.js")
        for name, port, plain in [("grpcio", grpcio, True), ("grpc-js", grpcjs, False)]:
            ports = {"grpc": port, "http1": http1, "http2": http2}
            through(tally, binary, name, ports, plain)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run(binary, "certs", "--name", "localhost", "--dir", folder, check=True)
        ports["grpc"] = server(stack, PYTHON, "grpcio_server.py", folder)
        through(tally, binary, "grpcio under TLS", ports, False, TLS.format(folder))


PARTS = {"stacks": stacks, "bindings": bindings.all_of_it, "stores": stores.all_of_it, "operation": operation.all_of_it}


def main(binary, *parts):
    tally = Tally()
    try:
        for part in parts or PARTS:
            PARTS[part](tally, binary)
    except FAILURES as failure:
        print(f"FAILED {type(failure).__name__}: {failure}", file=sys.stderr)
        print(f"{tally.passed} passed, 1 failed", flush=True)
        return 1
    print(f"{tally.passed} passed, 0 failed", flush=True)
    return 0


sys.exit(main(*sys.argv[1:]))
