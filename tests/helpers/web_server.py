"""A small web server whose behaviour a test chooses."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".html": "text/html",
    ".css": "text/css",
    ".json": "application/json",
}


class Site(ThreadingHTTPServer):
    """Files by their path. Requests are noted in `asked` as (path, range); after so many, `then` has other files."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True, cut: int | None = None, told: bool = True):
        """
        Args:
            ranges: whether the server answers requests for ranges.
            cut: bytes after which every answer ends early.
            told: whether pages of other origins may see how long a file is.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.ranges, self.cut, self.told = files, ranges, cut, told
        self.then: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.held: tuple[str, int] | None = None
        self.released, self.expired = threading.Event(), False

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def hold(self, path: str, at: int) -> None:
        """Answers that hold a certain byte of a file stop before it until `/go` is asked for, at most for 30 s."""
        self.held = (path, at)


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, wanted = self.path.lstrip("/").split("?")[0], self.headers.get("Range")
        self.server.asked.append((path, wanted))
        after, other = self.server.then.get(path, (0, b""))
        if after and len(self.server.asked) > after:
            self.server.files[path] = other
        if path == "go":
            self.server.released.set()
            self._answer(200, b"", path)
        elif path not in self.server.files:
            self._answer(404, b"nothing here", path)
        elif wanted and self.server.ranges:
            self._answer_range(path, wanted)
        else:
            self._answer(200, self.server.files[path], path)

    def _answer_range(self, path: str, wanted: str) -> None:
        data = self.server.files[path]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        assert found, wanted
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        if start >= len(data):
            self._answer(416, b"", path)
            return
        told = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if self.server.told else {}
        self._answer(206, data[start:stop], path, told, start)

    def _answer(self, status: int, body: bytes, path: str, more: dict[str, str] | None = None, start: int = 0) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": TYPES.get(Path(path).suffix, "application/octet-stream"),
            "Content-Length": str(len(body)),
            "Access-Control-Allow-Origin": "*",
            **(more or {}),
        }
        if self.server.told:
            headers["Access-Control-Expose-Headers"] = "Content-Range"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        whole = len(body)
        if self.server.cut is not None and path.endswith(".safetensors"):
            body = body[: self.server.cut]
        if self.server.held and self.server.held[0] == path and 0 <= self.server.held[1] - start < len(body):
            first = self.server.held[1] - start
            self.wfile.write(body[:first])
            self.wfile.flush()
            self.server.expired |= not self.server.released.wait(30)
            body = body[first:]
            whole -= first
        self.wfile.write(body)
        self.close_connection = len(body) < whole

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(files: dict[str, bytes], *, ranges: bool = True, cut: int | None = None, told: bool = True) -> Iterator[Site]:
    """A running server."""
    server = Site(files, ranges=ranges, cut=cut, told=told)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
