"""A web server on loopback that does what a test says: it stalls, lies, cuts, sends elsewhere or sends other bytes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        answers = self.server.answers[self.path]
        answer = answers if callable(answers) else answers.pop(0) if len(answers) > 1 else answers[0]
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up += 1

    def log_message(self, *_: object) -> None:
        pass

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def first(self) -> int:
        """The byte from which the client wants the file."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


class Web(ThreadingHTTPServer):
    """`answers`: what to do for a path, or a list of what to do one time after the other. `asked`: paths and ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.asked: list[tuple[str, str]] = []
        self.hung_up = 0
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def close(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


def sends(data: bytes, ranges: bool = True, upto: int | None = None, then: str = "close", **headers: object) -> Answer:
    """The file, or its first `upto` bytes and then what `then` says: close, reset or stall. `ranges`: from the byte on
    that the client asks for. `headers`: in the place of right ones.
    """

    def answer(handler: Handler) -> None:
        start = handler.first() if ranges else 0
        if start >= len(data):
            handler.begin(416, Content_Range=f"bytes */{len(data)}")
            return
        own: dict[str, object] = {"Content_Length": len(data) - start}
        if start:
            own["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        told = {key: value for key, value in (own | headers).items() if value is not None}
        handler.begin(206 if start else 200, **told)
        handler.wfile.write(data[start:upto])
        if upto is not None and then == "stall":
            handler.server.ended.wait(20)
        if upto is not None and then == "reset":
            handler.wfile.flush()
            time.sleep(0.05)  # what was sent is read before
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    return answer


def says(code: int, **headers: object) -> Answer:
    """An answer without a file."""
    return lambda handler: handler.begin(code, **({"Content_Length": 0} | headers))


def endless(handler: Handler) -> None:
    """Zeros until the client hangs up, of which no length is told."""
    handler.begin(200)
    while not handler.server.ended.is_set():
        handler.wfile.write(bytes(1 << 16))


def drips(handler: Handler) -> None:
    """A byte now and then."""
    handler.begin(200, Content_Length=100_000)
    while not handler.server.ended.wait(0.05):
        handler.wfile.write(b"x")
