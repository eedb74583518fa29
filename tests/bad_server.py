"""A local HTTP server that misbehaves as real mirrors do."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What is at a path. `cuts`: after so many bytes the line is cut, one number an answer, then no more."""

    data: bytes
    cuts: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)  # answered first, one a request
    ranges: bool = True  # whether parts can be asked for
    delay: float = 0.0  # seconds between pieces of 4 kB


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []  # path, Range

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        page = self.server.pages.get(self.path)
        status = 404 if page is None else page.status.pop(0) if page.status else 200
        if status != 200:
            self.send_error(status)
            return
        start = 0
        if wanted and page.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(page.data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(page.data) - 1}/{len(page.data)}")
        else:
            self.send_response(200)
        body = page.data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:page.cuts.pop(0)] if page.cuts else body
        for place in range(0, len(body), 4096):
            self.wfile.write(body[place:place + 4096])
            time.sleep(page.delay)
        self.close_connection = True

    def log_message(self, *arguments) -> None:
        pass


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
