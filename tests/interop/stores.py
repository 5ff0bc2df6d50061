"""Object stores: grpcio and curl as clients, behind the proxy folders, memory, Moto and Azurite, and whatever may befall them."""

import collections
import contextlib
import hashlib
import itertools
import json
import pathlib
import random
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import grpc

from dapr_client import BROKEN, CODE, KIB, MIB, Dapr, Upload, answer, chunk, first, payload, pieces, post, requests
from harness import PATIENCE, VERSIONS, Failed, Proxy, curl, end, expect, free_ports, log_on_failure
from store_servers import S3, Azure, Folder, Gate

CONFIG = """
admin: {{address: 127.0.0.1:{admin}}}
drain: {{timeout: 5s}}
workers: 2
listeners:
  - {{name: it, address: 127.0.0.1:{port}}}
filters: [metrics]
bindings:
  files: {{object_store: {{url: "file://{folder}/files", part_size: 1MiB}}}}
  memory: {{object_store: {{url: "memory://", part_size: 1MiB}}}}
  s3: {{object_store: {{endpoint: "{s3}", {s3_bucket}}}, timeouts: {{stall: 5m}}}}
  s3-slow: {{object_store: {{endpoint: "{slow_s3}", {s3_bucket}}}, timeouts: {{stall: 5m}}}}
  s3-frail: {{object_store: {{endpoint: "{frail}", {s3_bucket}}}}}
  s3-down: {{object_store: {{endpoint: "http://127.0.0.1:{nobody}", {s3_bucket}}}}}
  s3-stranger: {{object_store: {{endpoint: "{s3}", url: "s3://bucket", access_key_id: stranger, secret_access_key_file: "{folder}/wrong"}}}}
  s3-forger: {{object_store: {{endpoint: "{s3}", url: "s3://bucket", access_key_id: "{s3_id}", secret_access_key_file: "{folder}/wrong"}}}}
  azure: {{object_store: {{endpoint: "{azure}", {container}}}}}
  azure-slow: {{object_store: {{endpoint: "{slow_azure}", {container}}}, timeouts: {{stall: 5m}}}}
  azure-down: {{object_store: {{endpoint: "http://127.0.0.1:{nobody}/thalweg", {container}}}}}
  azure-forger: {{object_store: {{endpoint: "{azure}", url: "az://container", account: thalweg, account_key_file: "{folder}/wrong"}}}}
  google: {{object_store: {{endpoint: "{google}", url: "gs://bucket/below/here", part_size: 5MiB, service_account_file: "{folder}/google.json"}}}}
"""
S3_BUCKET = 'url: "s3://bucket/below/here", part_size: 5MiB, access_key_id: "{id}", secret_access_key_file: "{folder}/s3-secret"'
CONTAINER = 'url: "az://container/below/here", part_size: 1MiB, account: thalweg, account_key_file: "{folder}/azure-key"'

# How a refusal is told over HTTP and over gRPC.
MISSING = (404, CODE.NOT_FOUND)
EXISTS = (412, CODE.ALREADY_EXISTS)
DIFFERS = (412, CODE.FAILED_PRECONDITION)
BAD = (400, CODE.INVALID_ARGUMENT)
BAD_RANGE = (416, CODE.OUT_OF_RANGE)
FORBIDDEN = (403, CODE.PERMISSION_DENIED)
DOWN = (503, CODE.UNAVAILABLE)

# How much memory the proxy may take in addition while it waits: a part for each stream, its windows, and what libraries keep.
GROWTH = 32 * MIB

NAMES = ["plain", "two words", "a/b/c.txt", "ünïcödé ☃", "100% of 50%25", "a+b", "tag#1", "what?", "x=y&z", "a:b;c,d", "~dots..and.", "(q)'*!"]
ATTRIBUTES = {
    "contentType": "text/plain; charset=utf-8",
    "cacheControl": "no-cache",
    "contentDisposition": "attachment",
    "contentEncoding": "identity",
    "contentLanguage": "de",
}


class Refused(Exception):
    """The proxy said no, and why."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Broken(Exception):
    """The answer began and did not come to its end."""


# What an operation answers. Names of metadata are in small letters, as HTTP has them.
Answer = collections.namedtuple("Answer", "metadata body trailers")


def refused(kind, action, words=""):
    try:
        result = action()
    except Refused as refusal:
        if refusal.code in kind and re.search(words, refusal.message):
            return
        raise Failed(f"expected {kind} with {words!r}, got {refusal}") from None
    raise Failed(f"expected {kind}, got {result!r:.200}")


# === Clients ===


class OverHttp:
    """curl."""

    def __init__(self, proxy, name):
        self.proxy, self.name, self.version = proxy, name, VERSIONS[name]

    def ask(self, binding, operation, data=b"", **metadata):
        with tempfile.NamedTemporaryFile() as head:
            done = curl(
                self.proxy, path(binding, operation, metadata), self.version, "--request", "POST",
                "--dump-header", head.name, "--header", "te: trailers", *sending(data), input=data,
            )  # fmt: skip
            told = pathlib.Path(head.name).read_text()
        heads = [block for block in told.split("\n\n") if block]
        start, *lines = heads[-1 if heads[-1].startswith("HTTP/") else -2].splitlines()
        status, headers = int(start.split()[1]), fields(lines)
        if status >= 400:
            expect(headers["content-type"], "application/json")
            raise Refused(status, json.loads(done.stdout)["message"])
        if done.returncode in BROKEN:
            raise Broken(done.stderr.decode())
        expect((done.returncode, status in (200, 204)), (0, True))
        metadata = {name[len("metadata.") :]: text for name, text in headers.items() if name.startswith("metadata.")}
        trailers = {} if heads[-1].startswith("HTTP/") else fields(heads[-1].splitlines())
        return Answer(metadata, done.stdout, trailers)


def path(binding, operation, metadata):
    query = {"operation": operation} | {f"metadata.{name}": text for name, text in metadata.items()}
    query = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    return f"/v1.0-alpha1/bindings/{binding}/stream?{query}"


def sending(data):
    """Small bodies go with their length, large ones without."""
    return ["--data-binary", "@-"] if len(data) < KIB else ["--upload-file", "-"]


def fields(lines):
    return {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}


class OverGrpc:
    """grpcio."""

    name = "gRPC"

    def __init__(self, dapr):
        self.dapr = dapr

    def ask(self, binding, operation, data=b"", **metadata):
        call = self.dapr.open(requests(binding, pieces(data), operation, metadata))
        began = False
        try:
            initial = next(call).initial_response
            began = True
            body = b"".join(message.payload.data for message in call)
        except grpc.RpcError as error:
            if began:
                raise Broken(error.details()) from None
            raise Refused(error.code(), error.details()) from None
        metadata = {name.lower(): text for name, text in initial.metadata.items()}
        return Answer(metadata, body, dict(call.trailing_metadata()))


# === What takes part ===


class Store:
    """A binding, the store behind it as it looks without the proxy, and how the proxy cuts objects for it."""

    def __init__(self, binding, look, part=MIB, **can):
        self.binding, self.look, self.part = binding, look, part
        self.attributes = can.get("attributes", True)
        self.conditions = can.get("conditions", True)

    def holds(self, name, data):
        if self.look:
            expect((name, name in self.look.names()), (name, True))
            expect(self.look.read(name) == data, True)

    def lacks(self, name):
        if self.look:
            expect((name, name in self.look.names()), (name, False))
            expect(self.look.unfinished(), [])


class Setting:
    """All that takes part."""

    def __init__(self, stack, binary):
        self.folder = folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.s3, self.frail = S3(stack), S3(stack, lax=True)
        self.google, self.azure = S3(stack, lax=True), Azure(stack)
        self.slow_s3, self.slow_azure = Gate(stack, self.s3.url), Gate(stack, self.azure.url)
        [nobody] = free_ports(1)
        for name, text in {
            "s3-secret": self.s3.secret,
            "azure-key": self.azure.key,
            "wrong": "d3Jvbmc=",
            "google.json": json.dumps(
                {"private_key": "none", "private_key_id": "none", "client_email": "none", "disable_oauth": True}
            ),
        }.items():
            (folder / name).write_text(text)
        self.proxy = Proxy(
            stack,
            binary,
            CONFIG,
            folder=folder,
            s3=self.s3.url,
            s3_id=self.s3.id,
            s3_bucket=S3_BUCKET.format(id=self.s3.id, folder=folder),
            slow_s3=self.slow_s3.url,
            frail=self.frail.url,
            google=self.google.url,
            azure=self.azure.url,
            slow_azure=self.slow_azure.url,
            container=CONTAINER.format(folder=folder),
            nobody=nobody,
        )
        # Google's own language for objects is close enough to that of S3, but for conditions.
        self.stores = [
            Store("files", Folder(folder / "files"), attributes=False),
            Store("memory", None),
            Store("s3", self.s3, part=5 * MIB),
            Store("azure", self.azure),
            Store("google", self.google, part=5 * MIB, conditions=False),
        ]
        self.numbers = itertools.count()

    def connect(self, stack):
        self.dapr = Dapr(stack, self.proxy)
        self.doors = [*(OverHttp(self.proxy, name) for name in VERSIONS), OverGrpc(self.dapr)]

    def name(self, text="object"):
        """One that was not used before."""
        return f"{next(self.numbers)}/{text}"

    def at_rest(self):
        self.proxy.until("at rest", lambda: self.proxy.metric("thalweg_streams_live") == 0)

    def memory(self):
        status = pathlib.Path(f"/proc/{self.proxy.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * KIB


# === Objects ===


def there_and_back(setting, store, door):
    part = store.part
    for size in [0, 1, 1000, part - 1, part, part + 1, 2 * part + 12345]:
        name, data = setting.name(), payload(size)
        told = door.ask(store.binding, "create", data, key=name)
        created = json.loads(told.body)
        expect((created["key"], created["size"]), (name, size))
        expect((told.metadata["key"], told.metadata["size"]), (name, str(size)))
        store.holds(name, data)
        found = door.ask(store.binding, "get", key=name)
        expect((size, found.body == data), (size, True))
        about = door.ask(store.binding, "head", key=name)
        expect(about.body, b"")
        for told in (found.metadata, about.metadata):
            expect((told["key"], told["size"], told["etag"]), (name, str(size), created["etag"]))
            expect(told["lastmodified"][:2], "20")


def parts_are_as_large_as_was_said(setting, store, door):
    if not hasattr(store.look, "part_sizes"):
        return
    for size in [store.part - 1, store.part, 3 * store.part, 2 * store.part + 1]:
        name = setting.name()
        door.ask(store.binding, "create", payload(size), key=name)
        sizes = store.look.part_sizes(name)
        if size < store.part:
            expect(sizes, [])
        elif sizes or size > store.part:
            whole, rest = divmod(size, store.part)
            expect(sizes, [store.part] * whole + [rest] * (rest > 0))


def replaced(setting, store, door):
    name = setting.name()
    for data in (payload(2 * store.part + 1), b"small", b"", payload(store.part)):
        door.ask(store.binding, "create", data, key=name)
        store.holds(name, data)
        expect(door.ask(store.binding, "get", key=name).body == data, True)


def names(setting, store, door):
    folder = setting.name("names")
    for text in NAMES:
        name = f"{folder}/{text}"
        told = json.loads(door.ask(store.binding, "create", text.encode(), key=name).body)
        expect(told["key"], name)
        store.holds(name, text.encode())
        expect(door.ask(store.binding, "get", key=name).body, text.encode())
    listed = json.loads(door.ask(store.binding, "list", prefix=folder + "/").body)
    expect(sorted(one["key"] for one in listed), sorted(f"{folder}/{text}" for text in NAMES))
    for text in NAMES:
        door.ask(store.binding, "delete", key=f"{folder}/{text}")
        store.lacks(f"{folder}/{text}")


def spellings(setting, store, door):
    for spelling in ["key", "blobName", "fileName", "BLOB_NAME", "file-name"]:
        name = setting.name()
        expect(json.loads(door.ask(store.binding, "create", b"x", **{spelling: name}).body)["key"], name)
        store.holds(name, b"x")
        expect(door.ask(store.binding, "get", **{spelling: name}).body, b"x")
    refused(BAD, lambda: door.ask(store.binding, "create", b"x", key="one", blobName="another"), "different")
    for operation in ("get", "head", "delete"):
        refused(BAD, lambda: door.ask(store.binding, operation), "key")


def nameless(setting, store, door):
    told = [json.loads(door.ask(store.binding, "create", b"x").body)["key"] for _ in range(2)]
    expect(len(set(told)), 2)
    for name in told:
        expect(bool(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)), True)
        store.holds(name, b"x")


def bad_names(setting, store, door):
    for name in ["../x", "a/../x", "/etc/passwd", "a//b", "a/", ".", "a/./b", "x\x01y", "x" * 1025]:
        for operation in ("create", "get", "delete"):
            refused(BAD, lambda: door.ask(store.binding, operation, b"", key=name))
    refused((400, CODE.FAILED_PRECONDITION), lambda: door.ask(store.binding, "erase", key="x"), "create get head delete list")


def attributes(setting, store, door):
    if not store.attributes:
        return
    for size in (10, store.part + 10):
        name = setting.name()
        door.ask(store.binding, "create", payload(size), key=name, **ATTRIBUTES)
        if store.look:
            expect(store.look.content_type(name), ATTRIBUTES["contentType"])
        for operation in ("get", "head"):
            told = door.ask(store.binding, operation, key=name).metadata
            expect({name: told.get(name.lower()) for name in ATTRIBUTES}, ATTRIBUTES)


def ranges(setting, store, door):
    size = store.part + 1000
    name, data = setting.name(), payload(size)
    door.ask(store.binding, "create", data, key=name)
    for text, found in {
        "bytes=0-0": (0, 1),
        "bytes=0-99": (0, 100),
        f"bytes={store.part - 5}-{store.part + 4}": (store.part - 5, store.part + 5),
        f"bytes={size - 1}-{size - 1}": (size - 1, size),
        f"bytes={store.part}-": (store.part, size),
        "bytes=-7": (size - 7, size),
        f"bytes=10-{size + 1000}": (10, size),
    }.items():
        begin, end = found
        told = door.ask(store.binding, "get", key=name, range=text)
        expect((text, told.body == data[begin:end]), (text, True))
        expect(told.metadata["contentrange"], f"bytes {begin}-{end - 1}/{size}")
    refused(BAD_RANGE, lambda: door.ask(store.binding, "get", key=name, range=f"bytes={size}-"))
    for text in ["bytes=", "bytes=5-1", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6"]:
        refused(BAD, lambda: door.ask(store.binding, "get", key=name, range=text), "range")


def what_is_not_there(setting, store, door):
    name = setting.name()
    for operation in ("get", "head"):
        refused(MISSING, lambda: door.ask(store.binding, operation, key=name), name)
    # That it is gone is what was asked for.
    expect(door.ask(store.binding, "delete", key=name).body, b"")
    door.ask(store.binding, "create", b"x", key=name)
    door.ask(store.binding, "delete", key=name)
    store.lacks(name)
    refused(MISSING, lambda: door.ask(store.binding, "get", key=name), name)


def only_if_there_is_none(setting, store, door):
    if not store.conditions:
        return
    for size in (10, 2 * store.part + 10):
        name, data = setting.name(), payload(size)
        door.ask(store.binding, "create", data, key=name, ifNoneMatch="*")
        store.holds(name, data)
        # What comes before a body is sent is more than curl 7.88 can take over HTTP/2, so it sends little.
        refused(EXISTS, lambda: door.ask(store.binding, "create", b"other", key=name, if_none_match="*"))
        store.holds(name, data)
    expect(store.look.unfinished() if store.look else [], [])


def only_if_it_is_this_one(setting, store, door):
    if not store.conditions:
        return
    for size in (10, 2 * store.part + 10):
        name, data = setting.name(), payload(size)
        old = json.loads(door.ask(store.binding, "create", b"old", key=name).body)["etag"]
        new = json.loads(door.ask(store.binding, "create", data, key=name, ifMatch=old).body)["etag"]
        store.holds(name, data)
        for again in (b"other", payload(size + 1)):
            refused(DIFFERS, lambda: door.ask(store.binding, "create", again, key=name, ifMatch=old))
        store.holds(name, data)
        expect(door.ask(store.binding, "get", key=name, ifMatch=new).body == data, True)
        refused(DIFFERS, lambda: door.ask(store.binding, "get", key=name, ifMatch=old))
        refused(DIFFERS, lambda: door.ask(store.binding, "create", b"", key=setting.name(), ifMatch=new))
    setting.at_rest()
    expect(store.look.unfinished() if store.look else [], [])


def one_of_many_wins(setting, store, door):
    """Of uploads that may only create, and end together."""
    if not store.conditions:
        return
    for size in (10, store.part + 10):
        name = setting.name()
        all_of_them = [bytes([number]) * size for number in range(4)]

        def create(data):
            try:
                door.ask(store.binding, "create", data, key=name, ifNoneMatch="*")
            except Refused as refusal:
                if refusal.code not in EXISTS:
                    raise
                return False
            except Broken:
                # It was told so while it still sent.
                return False
            return True

        with ThreadPoolExecutor(len(all_of_them)) as threads:
            won = list(threads.map(create, all_of_them))
        expect((size, won.count(True)), (size, 1))
        store.holds(name, all_of_them[won.index(True)])
    setting.at_rest()
    expect(store.look.unfinished() if store.look else [], [])


def sums(setting, store, door):
    for size in (0, 10, 2 * store.part + 10):
        name, data = setting.name(), payload(size)
        sum = hashlib.sha256(data).hexdigest()
        told = door.ask(store.binding, "create", data, key=name, sha256="true")
        expect((told.metadata["sha256"], json.loads(told.body)["sha256"]), (sum, sum))
        told = door.ask(store.binding, "create", data, key=name, sha256=sum.upper())
        expect(told.metadata["sha256"], sum)
        store.holds(name, data)
        told = door.ask(store.binding, "get", key=name, sha256="true")
        expect((told.body == data, told.trailers.get("metadata.sha256")), (True, sum))

        wrong = setting.name()
        refused(BAD, lambda: door.ask(store.binding, "create", data, key=wrong, sha256="0" * 64), sum)
        setting.at_rest()
        store.lacks(wrong)
    refused(BAD, lambda: door.ask(store.binding, "create", b"", key=setting.name(), sha256="short"), "sha256")


def lists(setting, store, door):
    folder = setting.name("list")
    sizes = {f"{folder}/{number:02}.txt": number for number in range(12)} | {f"{folder}/0/below": 3, f"{folder}-not": 1}
    for name, size in sizes.items():
        door.ask(store.binding, "create", payload(size), key=name)
    inside = sorted(name for name in sizes if name.startswith(folder + "/"))

    def found(data=b"", **metadata):
        return json.loads(door.ask(store.binding, "list", data, **metadata).body)

    everything = found(prefix=folder + "/")
    expect([one["key"] for one in everything], inside)
    for one in everything:
        expect(one["size"], sizes[one["key"]])
        about = door.ask(store.binding, "head", key=one["key"]).metadata
        expect((one["etag"], one["lastModified"][:19]), (about["etag"], about["lastmodified"][:19]))
    expect([one["key"] for one in found(prefix=folder + "/0")], [name for name in inside if "/0" in name[len(folder) :]])
    expect(len(found(prefix=folder)), len(sizes))
    expect(found(prefix=folder + "/none"), [])
    expect([one["key"] for one in found(prefix=folder + "/", maxResults="5")], inside[:5])
    expect([one["key"] for one in found(prefix=folder + "/", marker=inside[4], max_results="3")], inside[5:8])
    asked = json.dumps({"prefix": folder + "/", "maxResults": 4, "marker": inside[1]}).encode()
    expect([one["key"] for one in found(asked)], inside[2:6])
    refused(BAD, lambda: found(b"{"))
    refused(BAD, lambda: found(maxResults="none"), "maxResults")


def headers(setting, store):
    """Over HTTP, metadata come in headers as well."""
    for version in VERSIONS.values():
        for prefix in ("metadata-", "X-Dapr-Metadata-"):
            name = setting.name()
            told = post(
                setting, store.binding, "--data-binary", "x", "--header", f"{prefix}blobName: {name}",
                "--header", f"{prefix}content-type: text/plain", version=version,
            )  # fmt: skip
            expect((told.status, told.headers["content-type"]), (200, "application/json"))
            expect((told.headers["metadata.key"], told.headers["x-dapr-metadata-key"]), (name, name))
            store.holds(name, b"x")
            told = post(
                setting, store.binding, "--header", f"{prefix}key: {name}", query="operation=get", version=version
            )  # fmt: skip
            expected = "text/plain" if store.attributes else "application/octet-stream"
            expect((told.status, told.body, told.headers["content-type"]), (200, b"x", expected))


def many(setting, store):
    """More objects than a store lists at once."""
    folder = setting.name("many")
    wanted = [f"{folder}/{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.look.write(name, b""), wanted))
    for door in setting.doors:
        found = json.loads(door.ask(store.binding, "list", prefix=folder + "/").body)
        expect([one["key"] for one in found], wanted)
        found = json.loads(door.ask(store.binding, "list", prefix=folder + "/", maxResults="1030", marker=wanted[9]).body)
        expect([one["key"] for one in found], wanted[10:1040])


OBJECTS = [
    there_and_back,
    parts_are_as_large_as_was_said,
    replaced,
    names,
    spellings,
    nameless,
    bad_names,
    attributes,
    ranges,
    what_is_not_there,
    only_if_there_is_none,
    only_if_it_is_this_one,
    one_of_many_wins,
    sums,
    lists,
]


# === Uploads that take their time ===


class Http1Upload:
    """Written by hand, over HTTP/1.1."""

    name = "HTTP/1.1"

    def __init__(self, setting, binding, **metadata):
        host, port = setting.proxy.address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        head = f"POST {path(binding, 'create', metadata)} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n"
        self.socket.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())

    def send(self, data):
        # If no more is taken, the answer says why.
        with contextlib.suppress(ConnectionError):
            for piece in pieces(data):
                self.socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))

    def cut(self):
        self.socket.close()

    def finish(self):
        told = b""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(b"0\r\n\r\n")
        with contextlib.suppress(ConnectionError), self.socket:
            while data := self.socket.recv(MIB):
                told += data
        if not told:
            raise Broken("no answer")
        if (status := int(told.split()[1])) >= 400:
            raise Refused(status, told.decode())


class Http2Upload:
    """curl, over HTTP/2."""

    name = "h2c"

    def __init__(self, setting, binding, **metadata):
        url = f"http://{setting.proxy.address}{path(binding, 'create', metadata)}"
        self.process = subprocess.Popen(
            ["curl", "--silent", VERSIONS[self.name], "--request", "POST", "--upload-file", "-",
             "--output", "/dev/null", "--write-out", "%{http_code}", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def send(self, data):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def cut(self):
        self.process.kill()
        self.process.communicate()

    def finish(self):
        told, _ = self.process.communicate(timeout=PATIENCE)
        if (status := int(told)) >= 400:
            raise Refused(status, "")
        if self.process.returncode != 0:
            raise Broken(f"curl ended with {self.process.returncode}")


class GrpcUpload:
    """grpcio."""

    name = "gRPC"

    def __init__(self, setting, binding, **metadata):
        self.upload, self.numbers = Upload(first(binding, "create", metadata)), itertools.count()
        self.call = setting.dapr.open(self.upload)

    def send(self, data):
        for piece in pieces(data):
            self.upload.send(chunk(piece, next(self.numbers)))

    def cut(self):
        self.call.cancel()
        self.upload.finish()

    def finish(self):
        self.upload.finish()
        try:
            answer(self.call)
        except grpc.RpcError as error:
            raise Refused(error.code(), error.details()) from None


UPLOADS = [Http1Upload, Http2Upload, GrpcUpload]


def until_sent(setting, look, size):
    setting.proxy.until("sent to the store", lambda: look.sent() >= size)


def cut_uploads(setting, store, open_upload):
    """Leave what was there before, and nothing of themselves."""
    look = store.look
    for before in (None, b"before"):
        for more in ({}, {"ifNoneMatch": "*"} if before is None and store.conditions else {"sha256": "true"}):
            name = setting.name()
            if before is not None:
                look.write(name, before)
            upload = open_upload(setting, store.binding, key=name, **more)
            upload.send(payload(2 * store.part + 100))
            until_sent(setting, look, store.part)
            upload.cut()
            setting.at_rest()
            setting.proxy.until("without what was begun", lambda: not look.unfinished())
            if before is None:
                store.lacks(name)
            else:
                store.holds(name, before)
    # Before the first part, too.
    name = setting.name()
    upload = open_upload(setting, store.binding, key=name)
    upload.send(b"x" * 1000)
    setting.proxy.until("open", lambda: setting.proxy.metric("thalweg_streams_live") > 0)
    upload.cut()
    setting.at_rest()
    store.lacks(name)


def misnumbered(setting, store):
    """An upload that breaks the rules in its middle is cut as well."""
    name = setting.name()
    chunks = pieces(payload(2 * store.part))
    wrong = [first(store.binding, "create", {"key": name}), *map(chunk, chunks, range(len(chunks))), chunk(b"x", 9999)]
    try:
        list(setting.dapr.open(wrong))
        raise Failed("it was taken")
    except grpc.RpcError as error:
        expect(error.code(), CODE.INVALID_ARGUMENT)
    setting.at_rest()
    setting.proxy.until("without what was begun", lambda: not store.look or not store.look.unfinished())
    store.lacks(name)


# === Stores that fail ===


def strangers(setting, tally):
    for door in setting.doors:
        for binding in ("s3-stranger", "s3-forger", "azure-forger"):
            for operation in ("create", "get", "head", "delete"):
                refused(FORBIDDEN, lambda: door.ask(binding, operation, b"", key="x"))
            tally.ok(f"{binding} over {door.name}: is refused")


def nobody_there(setting, tally):
    for door in setting.doors:
        for binding in ("s3-down", "azure-down"):
            for operation in ("create", "get", "head", "delete", "list"):
                refused(DOWN, lambda: door.ask(binding, operation, b"", key="x"))
            if door.name != "h2c":
                # An answer that comes before the body is sent is more than curl 7.88 can take over HTTP/2.
                refused(DOWN, lambda: door.ask(binding, "create", payload(6 * MIB), key="x"))
        tally.ok(f"no store over {door.name}: is told")


def dies_while_it_is_written(setting, tally):
    for open_upload in UPLOADS:
        upload = open_upload(setting, "s3-frail", key="x")
        upload.send(payload(6 * MIB))
        until_sent(setting, setting.frail, 5 * MIB)
        setting.frail.kill()
        # Little over HTTP/2, for the same reason.
        upload.send(payload(100 * KIB if open_upload is Http2Upload else 6 * MIB))
        refused(DOWN, upload.finish)
        setting.frail.start()
        tally.ok(f"store that dies over {open_upload.name}: an upload fails")


def dies_while_it_is_read(setting, tally):
    size = 96 * MIB

    def http(version, place):
        return subprocess.Popen(
            ["curl", "--silent", version, "--limit-rate", "4M", "--request", "POST", "--output", place,
             f"http://{setting.proxy.address}{path('s3-frail', 'get', {'key': 'x'})}"]
        )  # fmt: skip

    for name, version in VERSIONS.items():
        setting.frail.write("x", payload(size))
        place = setting.folder / f"download-{name[:2]}"
        process = http(version, place)
        try:
            setting.proxy.until("begun", lambda: place.exists() and place.stat().st_size > MIB)
            setting.frail.kill()
            expect((process.wait(PATIENCE) in BROKEN, place.stat().st_size < size), (True, True))
        finally:
            end(process)
        setting.frail.start()
        tally.ok(f"store that dies over {name}: a download breaks off")

    setting.frail.write("x", payload(size))
    call = setting.dapr.open(requests("s3-frail", operation="get", metadata={"key": "x"}))
    next(call), next(call)
    setting.frail.kill()
    try:
        raise Failed(f"it came to an end after {sum(len(message.payload.data) for message in call)} bytes")
    except grpc.RpcError as error:
        expect(error.code() in (CODE.UNAVAILABLE, CODE.DATA_LOSS), True)
    setting.frail.start()
    tally.ok("store that dies over gRPC: a download breaks off")


# === Those who are slow ===


def until_still(count):
    """Waits until it does not grow any more."""
    before = -1
    while (now := count()) != before:
        before = now
        time.sleep(0.5)
    return now


def slow_stores(setting, tally):
    """Hold up who writes to them, in place of a proxy that swallows it all."""
    for binding, gate, store, part in [
        ("s3-slow", setting.slow_s3, setting.s3, 5 * MIB),
        ("azure-slow", setting.slow_azure, setting.azure, MIB),
    ]:
        name, data, taken = setting.name(), payload(96 * MIB), 0

        def upload():
            nonlocal taken
            for request in requests(binding, pieces(data), metadata={"key": name}):
                taken += 1
                yield request

        before = setting.memory()
        gate.open.clear()
        call = setting.dapr.open(upload())
        taken_at_rest = until_still(lambda: taken) * 64 * KIB
        grown = setting.memory() - before
        gate.open.set()
        answer(call)
        expect((taken_at_rest < part + 8 * MIB, grown < GROWTH), (True, True))
        expect(hashlib.sha256(store.read(name)).digest(), hashlib.sha256(data).digest())
        tally.ok(f"{binding}: holds up the client")


def slow_readers(setting, tally):
    """Cost a window each, however large the object is."""
    data = payload(64 * MIB)
    host, port = setting.proxy.address.split(":")
    for store in setting.stores:
        name = setting.name()
        setting.doors[-1].ask(store.binding, "create", data, key=name)
        before = setting.memory()
        with contextlib.ExitStack() as stack:
            request = f"POST {path(store.binding, 'get', {'key': name})} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n"
            sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(4)]
            for one in sockets:
                one.sendall(request.encode())
            calls = [setting.dapr.open(requests(store.binding, operation="get", metadata={"key": name})) for _ in range(4)]
            for call in calls:
                next(call), next(call)
                stack.callback(call.cancel)
            most = until_still(lambda: setting.memory() // MIB) * MIB
            if most - before > GROWTH:
                raise Failed(f"{store.binding}: {(most - before) // MIB} MiB for eight who do not read")
            found = b"".join(message.payload.data for message in calls[0])
            expect(data.endswith(found) and len(data) - len(found) < 2 * MIB, True)
        setting.doors[-1].ask(store.binding, "delete", key=name)
        tally.ok(f"{store.binding}: slow readers cost little")


# === All at once ===


def storm(setting, store):
    """Two hundred uploads at once, a third of which are cut: the others are whole, and nothing else is there."""
    dice, folder = random.Random(29), setting.name("storm")
    planned = []
    for number in range(200):
        size = dice.choice([0, dice.randrange(100), dice.randrange(MIB), dice.randrange(2 * store.part + 1)])
        cut = dice.randrange(size + 1) if number % 3 == 0 else None
        planned.append((f"{folder}/{number}", UPLOADS[dice.randrange(3)], size, cut))
    begin = threading.Barrier(len(planned))

    def upload(name, open_upload, size, cut):
        data = random.Random(name).randbytes(size)
        begin.wait()
        one = open_upload(setting, store.binding, key=name)
        for piece in pieces(data if cut is None else data[:cut], 256 * KIB):
            one.send(piece)
        if cut is None:
            one.finish()
        else:
            one.cut()

    with ThreadPoolExecutor(len(planned)) as threads:
        list(threads.map(upload, *zip(*planned)))
    setting.at_rest()
    setting.proxy.until("without what was begun", lambda: not store.look.unfinished())
    whole = {name: size for name, _, size, cut in planned if cut is None}
    expect({name for name in store.look.names() if name.startswith(folder + "/")}, set(whole))
    for name, size in whole.items():
        expect(store.look.read(name) == random.Random(name).randbytes(size), True)


# === All together ===


def words(check):
    return check.__name__.replace("_", " ")


def checks(tally, setting):
    for store in setting.stores:
        for door in setting.doors:
            for check in OBJECTS:
                check(setting, store, door)
                tally.ok(f"{store.binding} over {door.name}: {words(check)}")
        headers(setting, store)
        tally.ok(f"{store.binding}: metadata in headers")
        misnumbered(setting, store)
        tally.ok(f"{store.binding}: misnumbered upload")
        if not store.look:
            continue
        for open_upload in UPLOADS:
            cut_uploads(setting, store, open_upload)
            tally.ok(f"{store.binding} over {open_upload.name}: {words(cut_uploads)}")
    for store in setting.stores:
        if store.binding in ("files", "s3"):
            many(setting, store)
            tally.ok(f"{store.binding}: more than a thousand objects")
    for check in [strangers, nobody_there, dies_while_it_is_written, dies_while_it_is_read, slow_stores, slow_readers]:
        check(setting, tally)
    for store in setting.stores:
        if store.binding in ("files", "s3", "azure"):
            storm(setting, store)
            tally.ok(f"{store.binding}: storm of uploads")


def all_of_it(tally, binary):
    with contextlib.ExitStack() as stack:
        setting = Setting(stack, binary)
        with log_on_failure(setting.proxy):
            with contextlib.ExitStack() as connections:
                setting.connect(connections)
                try:
                    checks(tally, setting)
                except (Refused, Broken) as failure:
                    raise Failed(f"{type(failure).__name__} {failure}") from failure
            setting.proxy.finish(tally, "proxy before stores")
