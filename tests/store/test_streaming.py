"""Bytes come in the order in which they are asked for, and few of them are in memory at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.store.streaming import read_spans, whole_spans

CONTENT = bytes(range(256)) * 40
SPANS = [(n, n + 1000) for n in range(0, len(CONTENT), 1000)]
REMOTE = Store("memory://streams")


class Answers:
    """An object whose parts are answered in an order that another order of threads gives."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.n_asked = 0
        self._lock = threading.Lock()

    def read(self, start: int, nbytes: int, memory: Any) -> memoryview:
        with self._lock:
            self.n_asked += 1
        if start == self.fails_at:
            raise OSError("the server is gone")
        return memoryview(CONTENT[start : start + nbytes])


def test_parts_of_a_remote_object_come_in_order_and_few_are_asked_for_ahead() -> None:
    answers: Any = Answers()
    found = []
    for number, part in enumerate(read_spans(REMOTE, answers, SPANS)):
        assert answers.n_asked <= number + 4
        found.append(part.tobytes())
    assert b"".join(found) == CONTENT
    assert [len(part) for part in found] == [1000] * 10 + [240]


def test_a_request_that_fails_ends_the_reading() -> None:
    answers: Any = Answers(fails_at=5000)
    parts = read_spans(REMOTE, answers, SPANS)
    assert [next(parts).tobytes() for _ in range(5)] == [CONTENT[a:b] for a, b in SPANS[:5]]
    with pytest.raises(OSError, match="the server is gone"):
        next(parts)
    assert answers.n_asked <= 9
    # Whoever needs no more asks for no more.
    answers = Answers()
    parts = read_spans(REMOTE, answers, SPANS)
    next(parts)
    parts.close()
    assert answers.n_asked <= 4


def test_a_file_is_read_into_the_same_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    store = Store(str(tmp_path))
    addresses, found = set(), b""
    for part in read_spans(store, store.open("a"), [*SPANS, (len(CONTENT), len(CONTENT) + 9)]):
        addresses.add(part.ctypes.data if part.size else None)
        found += part.tobytes()
    assert found == CONTENT
    assert len(addresses - {None}) == 1


@pytest.mark.parametrize("nbytes", [0, 1, 1 << 20, (3 << 20) + 1])
def test_spans_cover_an_object(nbytes: int, tmp_path: Path) -> None:
    for store in (REMOTE, Store(str(tmp_path))):
        bounds = [n for span in whole_spans(store, nbytes) for n in span]
        assert bounds[1:-1:2] == bounds[2:-1:2]
        assert (bounds[:1] or [0])[0] == 0
        assert (bounds[-1:] or [0])[0] == nbytes
