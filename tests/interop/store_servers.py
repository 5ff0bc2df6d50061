"""Object stores, as they are seen without the proxy: what is in them, and what was left over.

Each has the same words. `names` are the names of its objects without the prefix that the proxy puts before them, `unfinished`
the names of uploads that were begun and neither completed nor aborted, `sent` how many bytes of the unfinished ones are there.
"""

import base64
import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import urllib.parse
import urllib.request

import boto3
import botocore.config
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient

from harness import PYTHON, SOON, server, server_process

# What the proxy puts before the names of objects in buckets and containers.
PREFIX = "below/here/"


class S3:
    """Moto. Unless it is lax, it checks who asks, and that each request is signed."""

    def __init__(self, stack, bucket="bucket", prefix=PREFIX, lax=False):
        self.stack, self.bucket, self.prefix, self.lax = stack, bucket, prefix, lax
        self.port = 0
        self.start()

    def start(self):
        """Empty, and where it was before if it is killed and started again."""
        self.process, self.port = server_process(self.stack, PYTHON, "s3_server.py", str(self.port))
        self.url = f"http://127.0.0.1:{self.port}"
        self.id, self.secret = "anybody", "anything"
        self.client("s3").create_bucket(Bucket=self.bucket)
        if not self.lax:
            self.know_one_user()
        self.s3 = self.client("s3")

    def know_one_user(self):
        users = self.client("iam")
        users.create_user(UserName="proxy")
        everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
        users.put_user_policy(UserName="proxy", PolicyName="all", PolicyDocument=policy)
        key = users.create_access_key(UserName="proxy")["AccessKey"]
        self.id, self.secret = key["AccessKeyId"], key["SecretAccessKey"]
        strict = urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", {"content-type": "text/plain"})
        urllib.request.urlopen(strict, timeout=SOON).close()

    def client(self, service):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.id,
            aws_secret_access_key=self.secret,
            config=botocore.config.Config(
                max_pool_connections=16, s3={"addressing_style": "path"}, retries={"max_attempts": 1}
            ),
        )

    def kill(self):
        self.process.kill()
        self.process.wait(SOON)

    def here(self, name):
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def names(self):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
        return {key.removeprefix(self.prefix) for key in keys if key.startswith(self.prefix)}

    def read(self, name):
        with contextlib.closing(self.s3.get_object(**self.here(name))["Body"]) as body:
            return body.read()

    def write(self, name, data):
        self.s3.put_object(**self.here(name), Body=data)

    def content_type(self, name):
        return self.s3.head_object(**self.here(name))["ContentType"]

    def part_sizes(self, name):
        """Those of an object that was sent in parts."""
        _, _, parts = self.s3.head_object(**self.here(name))["ETag"].strip('"').partition("-")
        numbers = range(1, int(parts or 0) + 1)
        return [self.s3.head_object(**self.here(name), PartNumber=number)["ContentLength"] for number in numbers]

    def uploads(self):
        found = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [one for one in found if one["Key"].startswith(self.prefix)]

    def unfinished(self):
        return [one["Key"].removeprefix(self.prefix) for one in self.uploads()]

    def sent(self):
        sizes = []
        for one in self.uploads():
            parts = self.s3.list_parts(Bucket=self.bucket, Key=one["Key"], UploadId=one["UploadId"])
            sizes += [part["Size"] for part in parts.get("Parts", [])]
        return sum(sizes)


class Azure:
    """Azurite. Azure knows no aborted uploads: it drops blocks of which no blob was made after a week, so none count as left over."""

    account, container = "thalweg", "container"

    def __init__(self, stack):
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()
        port = server(stack, "node", "azure_server.js", self.account, self.key)
        self.url = f"http://127.0.0.1:{port}/{self.account}"
        credential = {"account_name": self.account, "account_key": self.key}
        self.blobs = ContainerClient(self.url, self.container, credential=credential)
        stack.callback(self.blobs.close)
        self.blobs.create_container()

    def blob(self, name):
        return self.blobs.get_blob_client(PREFIX + name)

    def names(self):
        return {one.name.removeprefix(PREFIX) for one in self.blobs.list_blobs(name_starts_with=PREFIX)}

    def read(self, name):
        return self.blob(name).download_blob().readall()

    def write(self, name, data):
        self.blob(name).upload_blob(data, overwrite=True)

    def content_type(self, name):
        return self.blob(name).get_blob_properties().content_settings.content_type

    def part_sizes(self, name):
        return [block.size for block in self.blob(name).get_block_list("committed")[0]]

    def unfinished(self):
        return []

    def sent(self):
        found = 0
        for one in self.blobs.list_blobs(name_starts_with=PREFIX, include=["uncommittedblobs"]):
            with contextlib.suppress(ResourceNotFoundError):
                blocks = self.blobs.get_blob_client(one.name).get_block_list("uncommitted")[1]
                found += sum(block.size for block in blocks)
        return found


class Folder:
    """Files. Those in `.thalweg` are no objects."""

    def __init__(self, root):
        self.root = pathlib.Path(root)

    def names(self):
        found = set()
        for folder, folders, files in os.walk(self.root):
            if pathlib.Path(folder) == self.root and ".thalweg" in folders:
                folders.remove(".thalweg")
            found |= {str((pathlib.Path(folder) / file).relative_to(self.root)) for file in files}
        return found

    def read(self, name):
        return (self.root / name).read_bytes()

    def write(self, name, data):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def temporaries(self):
        return [file for file in (self.root / ".thalweg").iterdir() if file.name != "lock"]

    def unfinished(self):
        return [file.name for file in self.temporaries()]

    def sent(self):
        found = 0
        for file in self.temporaries():
            with contextlib.suppress(FileNotFoundError):
                found += file.stat().st_size
        return found


class Gate:
    """Stands before a store and lets bytes through as long as it is open."""

    def __init__(self, stack, url):
        self.target = urllib.parse.urlsplit(url)
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        stack.callback(self.listener.close)
        stack.callback(self.open.set)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}{self.target.path}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection((self.target.hostname, self.target.port))
                for source, sink in [(near, far), (far, near)]:
                    threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while self.open.wait() and (data := source.recv(64 * 1024)):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
