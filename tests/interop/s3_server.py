"""Moto's S3, with its objects in memory. Takes a port or 0, prints the port, and ends with its standard input.

S3 keeps a condition and stores in one step, and keeps `If-Match` for objects that are sent in parts as well. Moto does neither, so
such requests pass one after the other here, and that condition is added. Google's clients show a token or nothing; Moto
would have them sign, even where it checks nothing.
"""

import io
import logging
import sys
import threading

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()
# For a lax server, and a strict one does not believe it.
SIGNED = "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"


def application(environ, start):
    who = environ.get("HTTP_AUTHORIZATION", "Bearer")
    if who.startswith("Bearer") and not environ["PATH_INFO"].startswith("/moto-api/"):
        environ["HTTP_AUTHORIZATION"] = SIGNED
    if "HTTP_IF_MATCH" not in environ and "HTTP_IF_NONE_MATCH" not in environ:
        return moto(environ, start)
    # Its body may take its time; only what is done with it may not.
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    with one_at_a_time:
        completes = environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ["QUERY_STRING"]
        if completes and "HTTP_IF_MATCH" in environ and tag(environ) != environ["HTTP_IF_MATCH"]:
            start("412 Precondition Failed", [("content-type", "application/xml")])
            return [b"<Error><Code>PreconditionFailed</Code></Error>"]
        return moto(environ, start)


def tag(environ):
    """That of the object which is there."""
    _, bucket, name = environ["PATH_INFO"].encode("latin-1").decode().split("/", 2)
    found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, name)
    return found and found.etag


# It tells of each request that was cut.
logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
server = make_server(
    "127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler
)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()
