"""Serves the page of a running run to a browser on this machine.

The server has two addresses, `/` and `/stamp`, and never uses a path from a request. It listens only on the loopback
interface, refuses requests with another host name (against DNS rebinding), and changes nothing.
"""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpg_vl.errors import UserError

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_WATCHED = ("metrics.jsonl", "run.json", "config.yaml", "samples", "evaluations")


def stamp(folder: Path) -> str:
    """A text that changes whenever the run folder does: times and sizes of the page's files."""
    signs = []
    for name in _WATCHED:
        try:
            at = (folder / name).stat()
        except OSError:
            continue
        signs.append(f"{name}:{at.st_mtime_ns}:{at.st_size}")
    return " ".join(signs)


class Pages:
    """The current page, rendered again only when the run folder has changed.

    make: renders the page as HTML. now: returns the current stamp.
    """

    def __init__(self, make: Callable[[], str], now: Callable[[], str]) -> None:
        self._make, self.now = make, now
        self._lock = threading.Lock()
        self._cached: tuple[str, bytes] | None = None

    def page(self) -> bytes:
        # use a lock, so that several tabs do not read a large folder at the same time
        with self._lock:
            stamp = self.now()
            if self._cached is None or self._cached[0] != stamp:
                self._cached = stamp, self._make().encode()
            return self._cached[1]


def make_server(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server on the loopback; port 0 takes a free one. Raises UserError if the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            self._respond(with_body=True)

        def do_HEAD(self) -> None:
            self._respond(with_body=False)

        def _respond(self, *, with_body: bool) -> None:
            name, _, _ = self.headers.get("Host", "").partition(":")
            if name not in _NAMES:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._send(pages.page(), "text/html; charset=utf-8", with_body=with_body)
            elif self.path == "/stamp":
                self._send(pages.now().encode(), "text/plain; charset=utf-8", with_body=with_body)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, body: bytes, kind: str, *, with_body: bool) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: the page polls every few seconds, which would fill the terminal."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"The page cannot be served on port {port}: {error}. Choose another one with --port; 0 takes a free one."
        ) from None
