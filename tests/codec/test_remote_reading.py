"""Reads of object stores: how many requests they take, and what is learned from those."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import pytest

from ctlab_dask_zarr.codec import object_read, together
from ctlab_dask_zarr.codec.pace import Pace
from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.store import Store
from tests.codec.test_reading import SHAPE, make, opened

pytest.importorskip("obstore")

EVERYTHING = tuple(slice(0, n) for n in SHAPE)
N_SHARDS = 3 * 2 * 2


class NotingFiles(ObjectFiles):
    """Notes the path and the extent of each request."""

    asked: ClassVar[list[tuple[str, Any]]] = []

    def get(self, path: str, extent: Any = None) -> Any:
        self.asked.append((path, extent))
        return super().get(path, extent)


@pytest.fixture
def requests() -> list[tuple[str, Any]]:
    NotingFiles.asked.clear()
    return NotingFiles.asked


def uploaded(folder: Path) -> Store:
    """Return a store in memory with the objects of a folder, as if they were put long ago."""
    store = Store(f"memory://{uuid4().hex}", NotingFiles())
    for file in folder.rglob("*"):
        if file.is_file():
            store.put(file.relative_to(folder).as_posix(), file.read_bytes())
    return store


@pytest.mark.parametrize("where", [EVERYTHING, (slice(0, 40), slice(5, 6), slice(3, 49))])
def test_a_small_shard_is_read_by_one_request(
    tmp_path: Path, where: Any, requests: list[tuple[str, Any]]
) -> None:
    voxels = make(tmp_path)
    array = opened(tmp_path)[1]
    found = read_region(uploaded(tmp_path), "", array, where, strict=False)
    np.testing.assert_array_equal(found, voxels[where])
    n_touched = N_SHARDS if where is EVERYTHING else N_SHARDS // 2
    # zarr leaves out the shard that is all fill value; that takes a request too.
    assert len(requests) == n_touched
    assert all(isinstance(extent, int) for _, extent in requests)


@pytest.mark.parametrize("tail_nbytes", [1, 999, 6000])
def test_the_end_of_a_larger_shard_comes_with_its_index(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tail_nbytes: int,
    requests: list[tuple[str, Any]],
) -> None:
    monkeypatch.setattr(object_read, "_SMALL_TAIL_NBYTES", 0)
    monkeypatch.setattr(object_read, "_TAIL_NBYTES", tail_nbytes)
    voxels = make(tmp_path)
    array = opened(tmp_path)[1]
    store = uploaded(tmp_path)
    np.testing.assert_array_equal(read_region(store, "", array, EVERYTHING, strict=False), voxels)
    asked = dict.fromkeys(path for path, _ in requests)
    assert len(asked) == N_SHARDS
    for path in asked:
        end, *more = [extent for other, extent in requests if other == path]
        nbytes = len(store.get(path.removeprefix(f"{store.root}/"))) if more else 0
        # The rest is asked for once; a chunk of which the beginning did not come, whole.
        assert [start for start, _ in more] == [0] * bool(more)
        assert all(stop < nbytes - end + 2200 for _, stop in more)
    ends = [extent for _, extent in requests if isinstance(extent, int)]
    assert max(ends) == array.index_nbytes + tail_nbytes
    # Of a small part of a shard, only the index is read beforehand.
    requests.clear()
    part = (slice(0, 8), slice(0, 8), slice(32, 48))
    np.testing.assert_array_equal(read_region(store, "", array, part, strict=False), voxels[part])
    assert requests[0][1] == array.index_nbytes


def test_what_a_step_has_read_counts_until_the_next_one_used_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(together, "_MAX_NBYTES", 100)
    order: list[str] = []

    def read(name: str) -> list[together.Step]:
        order.append(f"read {name}")
        use = together.Step(60, lambda: order.append(f"use {name}") or (), is_held=True)
        return [use]

    steps = (together.Step(60, lambda name=name: read(name)) for name in "abc")
    together.run_steps(steps, 1)
    assert order == ["read a", "use a", "read b", "use b", "read c", "use c"]


def ask(
    known: Pace, clock: list[float], nbytes: int, n: int, first_s: float, next_s: float
) -> None:
    """Let four times n requests be answered in turn, of which n are under way at a time."""
    running: deque[Any] = deque()
    for number in range(5 * n):
        if number == n:
            clock[0] += first_s
        if number >= n:
            running.popleft().__exit__(None, None, None)
            clock[0] += next_s
        if number < 4 * n:
            running.append(known.request(nbytes))
            running[-1].__enter__()


@pytest.mark.parametrize(
    ("server", "small", "large", "gap_nbytes"),
    [
        ("answers side by side after 20 ms", (0.02, 0.0003), (0.02, 0.012), 256 << 10),
        ("does one after the other", (0.005, 0.005), (0.01, 0.01), 1 << 20),
        ("is in between", (0.0008, 0.0008), (0.014, 0.014), 500_000),
    ],
)
def test_gaps_are_read_where_that_takes_less_time_than_requests(
    server: str, small: Any, large: Any, gap_nbytes: int
) -> None:
    clock = [0.0]
    known = Pace(lambda: clock[0])
    assert known.gap_nbytes() == 256 << 10
    ask(known, clock, 8 << 20, 4, *large)
    # Few requests wait side by side, whatever they take of the server.
    ask(known, clock, 10_000, 8, *small)
    assert known.gap_nbytes() == 256 << 10
    ask(known, clock, 10_000, 64, *small)
    assert known.gap_nbytes() == pytest.approx(gap_nbytes, rel=0.2)
    assert 8 << 20 <= known.together_nbytes() <= 32 << 20


def test_the_rate_of_a_store_is_tried_once() -> None:
    clock = [0.0]
    known = Pace(lambda: clock[0])
    ask(known, clock, 10_000, 64, 0.005, 0.005)
    assert [known.gap_nbytes() for _ in range(3)] == [1 << 20, 256 << 10, 256 << 10]
    # A slow line: what is between the chunks takes longer than a request.
    ask(known, clock, 8 << 20, 1, 1.0, 1.0)
    assert known.gap_nbytes() == 256 << 10
