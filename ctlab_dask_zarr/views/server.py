"""A read-only file server for one browser: named folders, on loopback, behind a token.

Other users of the same node can connect to a loopback port too, so every address begins with a
token that only the person who started the server sees. Only plain files in a served folder are
found: no listings, no hidden files, nothing outside of the folder.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from ctlab_dask_zarr.formats.zarr_v2 import V2_DOCUMENTS

_CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
#: How often to write to an event stream; the write fails once the page is closed.
_EVENT_INTERVAL_S = 15.0
#: A connection that stays silent for this long is closed.
_IDLE_S = 120.0


class FolderServer(ThreadingHTTPServer):
    """Serves folders on 127.0.0.1, read-only, until it is closed.

    Parameters
    ----------
    folders
        Folders by their name in addresses; a name may have several parts (``a/b``).
    port
        0 takes a free one.
    event_paths
        Addresses, below the token, of event streams without events that stay open while the server
        runs.

    Attributes
    ----------
    url
        The address with the token, ending in a slash; whoever knows it can read the folders.
    redirects
        Where paths below the token redirect to, as full addresses; may be filled in later.
    """

    daemon_threads = True

    def __init__(
        self,
        folders: Mapping[str, str | os.PathLike[str]],
        *,
        port: int = 0,
        event_paths: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.folders = {name: os.path.realpath(path) for name, path in folders.items()}
        self.redirects: dict[str, str] = {}
        self.event_paths = event_paths
        self.closing = threading.Event()
        self.port: int = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/{self.token}/"
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def folder_url(self, name: str) -> str:
        """Return the address of a served folder, ending in a slash."""
        return f"{self.url}{quote(name)}/"

    def close(self) -> None:
        """Stop serving and release the port."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: browsers cut connections off whenever the view moves on."""


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer
    # Connections stay open, because a view asks for thousands of small ranges.
    protocol_version = "HTTP/1.1"
    server_version = "ctlab-zarr"
    sys_version = ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        path = self._path_below_token()
        if path is None:
            self._respond(HTTPStatus.NOT_FOUND)
        elif path in self.server.redirects:
            self._respond(HTTPStatus.FOUND, {"Location": self.server.redirects[path]})
        elif path in self.server.event_paths:
            self._keep_open()
        else:
            self._send_file(path)

    do_HEAD = do_GET

    def do_OPTIONS(self) -> None:
        if self._path_below_token() is None:
            self._respond(HTTPStatus.NOT_FOUND)
            return
        self._respond(
            HTTPStatus.NO_CONTENT,
            {
                "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
                "Access-Control-Allow-Headers": "Range",
                # A page from the Internet that reads from this machine needs this too.
                "Access-Control-Allow-Private-Network": "true",
                "Access-Control-Max-Age": "600",
            },
        )

    def end_headers(self) -> None:
        # On every answer: without them, a page from another origin takes the 404 of a chunk that is
        # not stored for a broken connection.
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "Accept-Ranges, Content-Range")
        # Keep the token out of Referer headers, and the data out of the browser's cache.
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: a view makes thousands of requests."""

    def _path_below_token(self) -> str | None:
        """Return the path after the token, still quoted; None where the token is wrong."""
        _, _, rest = self.path.partition("?")[0].partition("/")
        token, slash, path = rest.partition("/")
        known = self.server.token.encode()
        is_known = secrets.compare_digest(token.encode(errors="replace"), known)
        return path if slash and is_known else None

    def _send_file(self, path: str) -> None:
        file = self._open(path)
        if file is None:
            self._respond(HTTPStatus.NOT_FOUND)
            return
        with file:
            nbytes = os.fstat(file.fileno()).st_size
            # This server sends no validators, so the condition of an If-Range never holds.
            asked = None if "If-Range" in self.headers else self.headers.get("Range")
            part = parse_range(asked, nbytes)
            if part is not None and not part:
                self._respond(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    {"Content-Range": f"bytes */{nbytes}"},
                )
                return
            kind = _CONTENT_TYPES.get(os.path.splitext(path)[1], "application/octet-stream")
            headers = {"Content-Type": kind, "Accept-Ranges": "bytes"}
            if part is None:
                part = range(nbytes)
                self._respond(HTTPStatus.OK, headers, nbytes)
            else:
                headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{nbytes}"
                self._respond(HTTPStatus.PARTIAL_CONTENT, headers, len(part))
            if self.command == "GET" and part:
                self.connection.sendfile(file, part.start, len(part))

    def _open(self, path: str) -> BinaryIO | None:
        """Open a plain file of a served folder; None for everything else."""
        # Split before unquoting: a quoted slash is part of a name, which no file has.
        parts = [unquote(part) for part in path.split("/")]
        if any(_is_forbidden(part) for part in parts):
            return None
        for name, root in self.server.folders.items():
            depth = name.count("/") + 1
            if "/".join(parts[:depth]) == name:
                return _open_inside(root, parts[depth:])
        return None

    def _keep_open(self) -> None:
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(b":\n\n")
        while not self.server.closing.wait(_EVENT_INTERVAL_S):
            self.wfile.write(b":\n\n")

    def _respond(
        self, status: HTTPStatus, headers: Mapping[str, str] | None = None, nbytes: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(nbytes))
        self.end_headers()


def _is_forbidden(part: str) -> bool:
    """Whether a part of a path is never served: empty, hidden, '..', or not a file name."""
    is_hidden = part.startswith(".") and part not in V2_DOCUMENTS
    return not part or is_hidden or any(sign in part for sign in "/\\\0")


def _open_inside(root: str, parts: list[str]) -> BinaryIO | None:
    try:
        real = os.path.realpath(os.path.join(root, *parts))
        # Links are followed inside the folder; the same rules apply to their targets.
        if any(_is_forbidden(part) for part in os.path.relpath(real, root).split(os.sep)):
            return None
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


def parse_range(header: str | None, nbytes: int) -> range | None:
    """Return the bytes of an object that a Range header asks for; empty if it has none of them.

    None means the whole object: there is no header, or it has several ranges, other units or no
    valid range, which RFC 9110 (section 14.2) allows a server to ignore.
    """
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last = match.groups()
    if first:
        if last and int(last) < int(first):
            return None
        return range(min(int(first), nbytes), min(int(last) + 1, nbytes) if last else nbytes)
    return range(max(nbytes - int(last), 0), nbytes) if last else None
