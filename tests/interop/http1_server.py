"""A plain HTTP/1.1 server on Python's own stack. Prints its port, and ends with its standard input.

`GET /http1/download/N` answers with N bytes; a `PUT` with what it got; `GET /http1/last` with how the last upload ended.
"""

import hashlib
import http.server
import sys
import threading

BLOCK = bytes(range(256)) * 256
last = "none"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/http1/last":
            return self.answer(last.encode())
        left = int(self.path.rsplit("/", 1)[1])
        self.send_response(200)
        self.send_header("content-length", str(left))
        self.end_headers()
        while left:
            left -= self.wfile.write(BLOCK[:left])

    def do_PUT(self):
        global last
        digest, size = hashlib.sha256(), 0
        try:
            for block in self.blocks():
                size += len(block)
                digest.update(block)
        except (EOFError, ConnectionError):
            last = f"cut after {size}"
            self.close_connection = True
            return
        last = f"whole {size}"
        self.answer(f"PUT {size} {digest.hexdigest()}".encode())

    def blocks(self):
        if self.headers.get("transfer-encoding") != "chunked":
            left = int(self.headers.get("content-length", 0))
            while left:
                block = self.read(min(left, 65536))
                left -= len(block)
                yield block
            return
        while size := int(self.line(), 16):
            yield self.read(size)
            self.line()
        self.line()

    def read(self, size):
        block = self.rfile.read(size)
        if len(block) < size:
            raise EOFError
        return block

    def line(self):
        line = self.rfile.readline(100)
        if not line.endswith(b"\r\n"):
            raise EOFError
        return line

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
