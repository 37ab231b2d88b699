"""Servers of plain HTTP that answer ranges wrongly, late, or not at all: never wrong voxels."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import CTLabError, dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.store import connection
from tests.builders import make_dataset, random_voxels

pytest.importorskip("obstore")
VOXELS = random_voxels((32, 64, 48)) + np.arange(48, dtype="uint16")
#: How an answer to a request for a range is wrong.
Fault = Callable[["Handler", bytes, int, int, int], None]


class Handler(BaseHTTPRequestHandler):
    """Answers ranges of a folder; those of shards by the fault of the server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.answer(404, b"")
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        name = "shard" if path.name.startswith("c.") else "document"
        self.server.n_requests[name] += 1
        if wanted is None:
            self.answer(200, data)
            return
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
        assert match is not None
        start = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
        stop = int(match[2]) + 1 if match[1] else len(data)
        if self.server.fault is not None:
            self.server.fault(self, data[start:stop], start, stop, len(data))
        else:
            self.part(data[start:stop], start, stop, len(data))

    def do_HEAD(self) -> None:
        self.answer(
            200, b"", **{"Content-Length": str((self.server.root / self.path[1:]).stat().st_size)}
        )

    def part(self, data: bytes, start: int, stop: int, size: int) -> None:
        self.answer(206, data, **{"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def answer(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        given = {
            "Content-Length": str(len(data)),
            "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT",
            "ETag": self.server.tag,
        }
        for name, value in (given | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    fault: Fault | None = None
    tag = '"a"'

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.n_requests: Counter[str] = Counter()

    def handle_error(self, *arguments: Any) -> None:
        pass  # clients that gave up


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", chunks=(8,) * 3, shards=(16, 32, 16))
    monkeypatch.setattr(connection, "RETRY_TIMEOUT", timedelta(seconds=2))
    monkeypatch.setattr(connection, "_FIRST_WAIT", timedelta(seconds=1))
    monkeypatch.setattr(connection, "_REQUEST_TIMEOUT", timedelta(seconds=2))
    connection._open.cache_clear()
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(240)
    connection._open.cache_clear()


def whole(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    """As servers do that know no ranges."""
    handler.answer(200, data)


def short(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.part(data[: len(data) // 2], start, stop, size)


def cut_off(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def another_range(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.part(data, start + 1, stop + 1, size + 1)


def garbage(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.part(bytes(reversed(data)), start, stop, size)


def another_size(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.part(data, start, stop, 10 * size)


def failing(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    handler.answer(500, b"")


def silent(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
    time.sleep(6)


FAULTS = (whole, short, cut_off, another_range, garbage, another_size, failing, silent)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_answer_is_an_error(server: Server, fault: Fault, is_known: bool) -> None:
    data = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    where = (slice(3, 30), slice(5, 60), slice(9, 10))
    if is_known:
        np.testing.assert_array_equal(data[where].compute(scheduler="threads"), VOXELS[where])
    server.fault = fault
    with pytest.raises((OSError, CTLabError)) as caught:
        data[where].compute(scheduler="threads")
    assert "a.zarr" in str(caught.value) or "0/c." in str(caught.value)
    # The connections of what failed do no harm to what is read next.
    server.fault = None
    np.testing.assert_array_equal(data[where].compute(scheduler="threads"), VOXELS[where])


def test_a_failure_that_passes_is_not_seen(server: Server) -> None:
    n_failed = [0]

    def once(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
        n_failed[0] += 1
        (failing if n_failed[0] <= 2 else Handler.part)(handler, data, start, stop, size)

    server.fault = once
    data = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    np.testing.assert_array_equal(data.compute(scheduler="threads"), VOXELS)
    assert n_failed[0] > 2


def test_an_object_that_is_shorter_than_the_end_that_is_asked_for(server: Server) -> None:
    def careless(handler: Handler, data: bytes, start: int, stop: int, size: int) -> None:
        is_end = handler.headers["Range"].startswith("bytes=-")
        handler.part(data, start - 7 if is_end and len(data) == size else start, stop, size)

    server.fault = careless
    data = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    np.testing.assert_array_equal(data.compute(scheduler="threads"), VOXELS)


def test_what_was_read_before_costs_one_request_each(server: Server) -> None:
    data = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    where = (slice(3, 4), slice(0, 64), slice(0, 48))
    for n_shard_requests, n_document_requests in ((6, 1), (6, 0)):
        server.n_requests.clear()
        np.testing.assert_array_equal(data[where].compute(scheduler="threads"), VOXELS[where])
        assert server.n_requests["shard"] == n_shard_requests
        assert server.n_requests["document"] == n_document_requests


def test_an_object_that_is_put_again_is_read_anew(server: Server, tmp_path: Path) -> None:
    """The index that was kept does not fit it, and its tag says so."""
    data = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    np.testing.assert_array_equal(data.compute(scheduler="threads"), VOXELS)
    other = VOXELS[::-1].copy()
    dataset_to_zarr(
        make_dataset(other), tmp_path / "a.zarr", chunks=(8,) * 3, shards=(16, 32, 16),
        overwrite=True,
    )  # fmt: skip
    server.tag = '"b"'
    with pytest.raises(CTLabError, match="changed since it was opened"):
        data.compute(scheduler="threads")
    again = dataset_from_zarr(f"http://127.0.0.1:{server.server_port}/a.zarr").data
    np.testing.assert_array_equal(again.compute(scheduler="threads"), other)
