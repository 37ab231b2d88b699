"""Shards that are put together from bands, because there are too few of them for the threads."""

from __future__ import annotations

import json
import os
import signal
import threading
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    Stop,
    WriteStoppedError,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.write.shards.shard import ShardReceipt
from tests.builders import make_dataset, random_voxels, write_without_commit

VOXELS = random_voxels((60, 40, 40))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (32, 32, 32)}
KNOWN = {"identity": "the scan", "voxel_size": (1.0, 1.0, 1.0)}


def threads(n: int) -> Any:
    return dask.config.set(scheduler="threads", num_workers=n)


class Slabs:
    """A dataset of slabs that counts how often each is made, and may fail at one of them."""

    def __init__(self, thickness: int = 4, voxels: np.ndarray = VOXELS) -> None:
        self.made: Counter[int] = Counter()
        self.fails_at: int | None = None
        self._lock = threading.Lock()
        source = da.from_array(voxels, chunks=(thickness, *voxels.shape[1:]))
        name = f"slabs-{uuid.uuid4().hex}"
        data = source.map_blocks(self._make, dtype=voxels.dtype, meta=voxels[:0], name=name)
        self.dataset = make_dataset(data, **KNOWN)

    def _make(self, block: np.ndarray, block_info: Any = None) -> np.ndarray:
        start = block_info[0]["array-location"][0][0]
        with self._lock:
            if start == self.fails_at:
                raise RuntimeError("stopped")
            self.made[start] += 1
        return block


def objects_in(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def pieces_in(folder: Path) -> list[Path]:
    found = folder.glob(".a.zarr.staging/pieces-*/*/*")
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


@contextmanager
def interrupted(slabs: Slabs, at: int) -> Iterator[None]:
    slabs.fails_at = at
    with pytest.raises(CTLabError, match="stopped"):
        yield
    slabs.fails_at = None


@pytest.mark.parametrize(
    ("n", "blocks", "layout", "method", "band"),
    [
        (2, (4, 40, 40), LAYOUT, "stream", None),
        (4, (4, 40, 40), LAYOUT, "stream", 8),
        (8, (4, 40, 40), LAYOUT, "stream", 8),
        (16, (4, 40, 40), LAYOUT, "tasks", 8),
        (4, (32, 32, 32), LAYOUT, "none", None),
        (64, (8, 32, 32), LAYOUT, "none", 8),
        (64, (32, 32, 32), LAYOUT, "none", None),
        (8, (4, 40, 40), LAYOUT | {"shards": None}, "none", None),
        (8, (4, 40, 40), {"chunks": (4, 5, 5), "shards": (4, 40, 40)}, "none", None),
        (64, (60, 40, 40), LAYOUT, "tasks", 8),
    ],
    ids=[
        "rows enough", "few rows", "as many bands as threads", "more threads than bands",
        "shards enough", "few shards", "blocks as large as shards", "no shards",
        "shards one chunk thick", "one block",
    ],
)  # fmt: skip
def test_what_the_plan_chooses(
    n: int, blocks: Any, layout: Any, method: str, band: int | None, tmp_path: Path
) -> None:
    dataset = make_dataset(VOXELS, blocks)
    with threads(n):
        found = plan(dataset, tmp_path / "a", **layout)
        write = dataset_to_zarr(dataset, tmp_path / "a", compute=False, **layout)
    assert (found.rechunk.method, found.rechunk.band) == (method, band)
    assert found.to_dict()["rechunk"]["band"] == band
    assert (f"bands of {band}" in found.describe()) is (band is not None)
    keys = [k[0] for k in dict(write.__dask_graph__()) if isinstance(k, tuple)]
    own = [k for k in keys if k.startswith(("write-shard", "write-band"))]
    n_blocks = VOXELS.size if method == "tasks" else 0
    assert len(own) <= found.rechunk.n_tasks <= len(own) + n_blocks


def test_blocks_that_bands_make_twice_are_counted(tmp_path: Path) -> None:
    slabs = Slabs(6)
    with threads(4):
        found = plan(slabs.dataset, tmp_path / "a", chunks=(8, 8, 8), shards=(64, 40, 40)).rechunk
        assert found.band == 8 or found.band == 16
        dataset_to_zarr(slabs.dataset, tmp_path / "a", chunks=(8, 8, 8), shards=(64, 40, 40))
    assert found.made > 1
    assert f"{found.made - 1:.0%} of the voxels are made twice" in found.reason
    assert 6 * sum(slabs.made.values()) == pytest.approx(found.made * 60)


@pytest.mark.parametrize("n_levels", [1, 3])
@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        {"chunks": (4, 8, 8), "shards": (32, 32, 32)},
        {"chunks": (16, 16, 16), "shards": (64, 64, 64)},
        {"chunks": (2, 40, 40), "shards": (8, 40, 40)},
        {"chunks": (0, 8, 8), "shards": (60, 40, 40)},
    ],
    ids=["usual", "thin chunks", "one shard", "rows one after another", "rows along y"],
)
@pytest.mark.parametrize("kind", ["uint16", "float32", "mask", "uint8"])
def test_bands_make_the_same_objects(
    kind: str, layout: dict[str, Any], n_levels: int, tmp_path: Path
) -> None:
    voxels = random_voxels(VOXELS.shape, "uint16" if kind == "mask" else kind)
    if kind == "float32":
        voxels[5:9, 3:20] = np.nan
    if kind == "mask":
        voxels[20:50, 10:, :30] = 65535
    if kind == "uint8":
        voxels[:36] = 0
    dataset = make_dataset(voxels, (2, 40, 40), **KNOWN)
    with dask.config.set(scheduler="sync"):
        assert plan(dataset, tmp_path / "b", levels=n_levels, **layout).rechunk.band is None
        dataset_to_zarr(dataset, tmp_path / "b", levels=n_levels, **layout)
    chosen = set()
    for n in (8, 24):
        with threads(n):
            chosen.add(plan(dataset, tmp_path / "a", levels=n_levels, **layout).rechunk.band)
            dataset_to_zarr(dataset, tmp_path / "a", levels=n_levels, overwrite=True, **layout)
        assert objects_in(tmp_path / "a.zarr") == objects_in(tmp_path / "b.zarr")
        assert verify(tmp_path / "a.zarr", dataset) == []
    assert chosen != {None} or layout["chunks"][0] == 0


def test_a_two_dimensional_image_is_written_in_bands(tmp_path: Path) -> None:
    voxels = random_voxels((90, 70))
    dataset = make_dataset(voxels, (4, 70))
    with threads(8):
        assert plan(dataset, tmp_path / "a", chunks=(8, 8), shards=(96, 96)).rechunk.band == 8
        dataset_to_zarr(dataset, tmp_path / "a", chunks=(8, 8), shards=(96, 96))
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, voxels)


def test_overlapping_blocks_are_gathered_in_bands(tmp_path: Path) -> None:
    data = da.from_array(VOXELS, chunks=(4, 40, 40)).map_overlap(
        lambda block: block, depth=1, boundary="none"
    )
    with threads(4):
        found = plan(make_dataset(data), tmp_path / "a", **LAYOUT).rechunk
        dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
    assert (found.method, found.band) == ("tasks", 8)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def test_labels_are_written_in_bands(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS, **KNOWN), tmp_path / "a", levels=2, **LAYOUT)
    phases = (VOXELS > 50).astype("uint8")
    with threads(8):
        labels_to_zarr(
            da.from_array(phases, chunks=(4, 40, 40)), tmp_path / "a.zarr", "phases", **LAYOUT
        )
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr/labels/phases").data, phases)


@pytest.mark.parametrize("levels", [1, 3])
def test_what_was_kept_of_bands_is_not_made_again(levels: int, tmp_path: Path) -> None:
    slabs = Slabs()
    with dask.config.set(scheduler="sync"), interrupted(slabs, 20):
        # Planned for threads, and run in order.
        with threads(8):
            write = dataset_to_zarr(
                slabs.dataset, tmp_path / "a", levels=levels, compute=False, **LAYOUT
            )
        _raising(write)
    bands = [p for p in pieces_in(tmp_path) if p.parent.name == "bands-8" and "of" not in p.name]
    n_kept = len(bands) // 4
    assert n_kept >= 1
    before = Counter(slabs.made)
    with threads(8):
        dataset_to_zarr(slabs.dataset, tmp_path / "a", levels=levels, resume=True, **LAYOUT)
    again = sum((slabs.made & before).values()) and [
        start for start in before if slabs.made[start] > before[start]
    ]
    kept = {8 * int(band.name.split(".")[0]) for band in bands}
    assert not [start for start in again or () if start // 8 * 8 in kept]
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


def _raising(write: Any) -> None:
    try:
        write.compute(scheduler="sync")
    except RuntimeError as error:
        raise CTLabError(str(error)) from error


@pytest.mark.parametrize("why", ["SIGTERM", "the time is nearly up"])
def test_a_stop_amid_bands_keeps_those_that_are_done(why: str, tmp_path: Path) -> None:
    slabs, stop = Slabs(), Stop(3600)

    def make(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["array-location"][0][0] == 20:
            if why == "SIGTERM":
                stop.ask(why)
            stop.saw(task_s=3600)
        return block

    data = slabs.dataset.data.map_blocks(make, dtype=VOXELS.dtype, meta=VOXELS[:0])
    dataset = make_dataset(data, **KNOWN)
    with threads(4):
        assert plan(dataset, tmp_path / "a", levels=2, **LAYOUT).rechunk.band == 8
        with pytest.raises(WriteStoppedError, match=why):
            dataset_to_zarr(dataset, tmp_path / "a", levels=2, stop=stop, **LAYOUT)
        n_there = Counter(
            8 * int(p.name.split(".")[0])
            for p in pieces_in(tmp_path)
            if p.parent.name == "bands-8" and "of" not in p.name
        )
        # Voxels of shards that are whole may be made again, to see whether the source is the same.
        kept = {start for start, n in n_there.items() if n == 4}
        assert kept
        before = Counter(slabs.made)
        dataset_to_zarr(dataset, tmp_path / "a", levels=2, resume=True, **LAYOUT)
    assert not {start // 8 * 8 for start in slabs.made - before}.intersection(kept)
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


@pytest.mark.parametrize("band", [0, -8, 7, 64, 8.0, "8", None], ids=repr)
def test_a_plan_with_bands_that_cannot_be_never_makes_wrong_voxels(
    band: Any, tmp_path: Path, snapshot: Any
) -> None:
    slabs = Slabs()
    with threads(8), interrupted(slabs, 40):
        dataset_to_zarr(slabs.dataset, tmp_path / "a", **LAYOUT)
    place = tmp_path / ".a.zarr.staging" / "plan.json"
    kept = json.loads(place.read_text())
    assert kept["band"] == 8
    place.write_text(json.dumps(kept | {"band": band}))
    before = snapshot(tmp_path)
    with pytest.raises(CTLabError, match=r"were not written|is not a staging folder"):
        commit(tmp_path / "a.zarr")
    assert snapshot(tmp_path) == before
    with threads(8):
        if isinstance(band, int | None):
            dataset_to_zarr(slabs.dataset, tmp_path / "a", resume=True, **LAYOUT)
            assert verify(tmp_path / "a.zarr", slabs.dataset) == []
        else:
            with pytest.raises(CTLabError, match=r"its plan\.json has band"):
                dataset_to_zarr(slabs.dataset, tmp_path / "a", resume=True, **LAYOUT)
            assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty", "lost"])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_band_that_is_not_whole_is_made_again(damage: str, levels: int, tmp_path: Path) -> None:
    slabs = Slabs()
    with threads(8), interrupted(slabs, 40):
        dataset_to_zarr(slabs.dataset, tmp_path / "a", levels=levels, **LAYOUT)
    pieces = pieces_in(tmp_path)
    assert pieces
    for piece in pieces:
        data = bytearray(piece.read_bytes())
        if damage == "flipped":
            data[len(data) // 3] ^= 1
        piece.write_bytes({"cut off": data[:-9], "empty": b""}.get(damage, data))
        if damage == "lost":
            piece.unlink()
    with threads(8):
        dataset_to_zarr(slabs.dataset, tmp_path / "a", levels=levels, resume=True, **LAYOUT)
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


def test_bands_of_another_number_of_threads_are_not_mixed(tmp_path: Path) -> None:
    layout = {"chunks": (2, 8, 8), "shards": (32, 32, 32)}
    slabs = Slabs(2)
    found = []
    for n, at in ((2, 58), (4, 56), (16, 50), (1, None), (3, None)):
        name = tmp_path / ("a" if at is not None or n == 1 else "b")
        with threads(n):
            found.append(plan(slabs.dataset, name, levels=2, **layout).rechunk.band)
            if at is None:
                dataset_to_zarr(slabs.dataset, name, levels=2, resume=True, **layout)
                continue
            with interrupted(slabs, at):
                dataset_to_zarr(slabs.dataset, name, levels=2, resume=True, **layout)
    assert len(set(found)) >= 3
    for name in "ab":
        assert verify(tmp_path / f"{name}.zarr", slabs.dataset) == []


@pytest.mark.parametrize("levels", [1, 3])
def test_every_task_may_run_twice(levels: int, tmp_path: Path) -> None:
    """In the order of the graph, each task runs again at once, and all again at the end."""
    slabs = Slabs()
    with threads(8):
        write = dataset_to_zarr(
            slabs.dataset, tmp_path / "a", levels=levels, compute=False, **LAYOUT
        )
    graph, done = dict(write.__dask_graph__()), {}
    run_tasks(graph, write.key, done, n_times=2)
    assert max(slabs.made.values()) == 1, "what is there is not made again"
    receipts = {key: result for key, result in done.items() if is_receipts(result)}
    assert receipts
    # A cluster has lost all results, and begins again with the staging.
    for key in done:
        done[key] = graph[key]({d: done[d] for d in graph[key].dependencies})
    assert max(slabs.made.values()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


@pytest.mark.parametrize("levels", [1, 3])
def test_a_task_may_run_again_long_after_others(levels: int, tmp_path: Path) -> None:
    slabs = Slabs()
    with threads(8):
        write = dataset_to_zarr(
            slabs.dataset, tmp_path / "a", levels=levels, compute=False, **LAYOUT
        )
    graph, done = dict(write.__dask_graph__()), {}
    for needed in graph[write.key].dependencies:
        run_tasks(graph, needed, done)
    for key in reversed([key for key in done if "write-" in str(key) or "downsample" in str(key)]):
        again = graph[key]({d: done[d] for d in graph[key].dependencies})
        assert again == done[key]
    assert max(slabs.made.values()) == 1
    run_tasks(graph, write.key, done)
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


def run_tasks(graph: Any, key: Any, done: dict[Any, Any], n_times: int = 1) -> None:
    """Run a task and those that it needs, each some times in a row."""
    for needed in graph[key].dependencies:
        if needed not in done:
            run_tasks(graph, needed, done, n_times)
    for _ in range(n_times):
        done[key] = graph[key]({d: done[d] for d in graph[key].dependencies})


def is_receipts(result: Any) -> bool:
    return isinstance(result, list) and isinstance(result[0], ShardReceipt)


def test_bands_are_removed_with_their_shard(tmp_path: Path) -> None:
    slabs = Slabs()
    with threads(8):
        write = dataset_to_zarr(slabs.dataset, tmp_path / "a", compute=False, **LAYOUT)
    write_without_commit(write)
    assert pieces_in(tmp_path) == []
    assert list(tmp_path.glob(".a.zarr.staging/store-*/0/c*"))


def test_a_lost_band_stops_the_write_and_is_made_again(tmp_path: Path) -> None:
    slabs = Slabs()
    with threads(8):
        write = dataset_to_zarr(slabs.dataset, tmp_path / "a", compute=False, **LAYOUT)
    graph = dict(write.__dask_graph__())
    shard = next(key for key in graph if str(key).startswith("('write-shard"))
    done: dict[Any, Any] = {}
    for needed in graph[shard].dependencies:
        run_tasks(graph, needed, done)
    pieces_in(tmp_path)[0].unlink()
    with pytest.raises(CTLabError, match=r"lost, or damaged .*resume=True"):
        run_tasks(graph, shard, done)
    with threads(8):
        dataset_to_zarr(slabs.dataset, tmp_path / "a", resume=True, **LAYOUT)
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


def test_jobs_that_share_a_write_cut_their_shards_into_bands(tmp_path: Path) -> None:
    slabs = Slabs()
    with threads(2):
        found = [
            plan(slabs.dataset, tmp_path / "a", part=part, **LAYOUT).rechunk.band
            for part in (None, (1, 4))
        ]
        for number in (3, 1, 4, 2):
            dataset_to_zarr(slabs.dataset, tmp_path / "a", levels=3, part=(number, 4), **LAYOUT)
        commit(tmp_path / "a.zarr")
    assert found == [None, 8]
    assert verify(tmp_path / "a.zarr", slabs.dataset) == []


def test_workers_write_bands(tmp_path: Path, cluster: Client) -> None:
    voxels = random_voxels((64, 40, 40))
    layout = {"chunks": (4, 8, 8), "shards": (64, 48, 48)}
    dataset = make_dataset(voxels, (2, 40, 40), **KNOWN)
    with cluster.as_current():
        assert plan(dataset, tmp_path / "a", **layout).rechunk.band
        dataset_to_zarr(dataset, tmp_path / "a", levels=2, **layout)
    assert verify(tmp_path / "a.zarr", dataset) == []


def test_a_worker_that_dies_takes_no_band_with_it_but_its_own(tmp_path: Path) -> None:
    made, killed = tmp_path / "made", tmp_path / "killed"
    made.mkdir()

    def make(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        start = block_info[0]["array-location"][0][0]
        (made / f"{start}.{uuid.uuid4().hex}").touch()
        if start == 52 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    voxels = random_voxels((64, 40, 40))
    data = da.from_array(voxels, chunks=(4, 40, 40)).map_blocks(make, dtype="u2", meta=voxels[:0])
    dataset = make_dataset(data, **KNOWN)
    layout = {"chunks": (8, 8, 8), "shards": (64, 48, 48)}
    (tmp_path / "out").mkdir()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local, set_as_default=False) as client,
        client.as_current(),
    ):
        assert plan(dataset, tmp_path / "out" / "a", **layout).rechunk.band == 8
        dataset_to_zarr(dataset, tmp_path / "out" / "a", levels=2, **layout)
    assert killed.exists()
    twice = {int(start) for start, n in Counter(p.stem for p in made.iterdir()).items() if n > 1}
    assert twice <= {48, 52}
    assert verify(tmp_path / "out" / "a.zarr", make_dataset(voxels, **KNOWN)) == []


@pytest.mark.parametrize("blocks", [(8, 256, 256), (32, 32, 256), (8, 32, 256)])
def test_a_thread_needs_the_memory_that_the_plan_says(blocks: Any, tmp_path: Path) -> None:
    def make(block_info: Any = None) -> np.ndarray:
        shape = [b - a for a, b in block_info[None]["array-location"]]
        return np.random.default_rng(0).integers(0, 999, shape, "u2")

    layout = {"chunks": (32, 32, 32), "shards": (256, 256, 256)}
    chunks = da.core.normalize_chunks(blocks, (256, 256, 256), dtype="u2")
    data = da.map_blocks(make, chunks=chunks, dtype="u2", meta=np.empty((0, 0, 0), "u2"))
    dataset: Dataset = make_dataset(data)
    with threads(8):
        found = plan(dataset, tmp_path / "a", **layout).rechunk
        write = dataset_to_zarr(dataset, tmp_path / "a", compute=False, **layout)
    assert found.band == 32
    tracemalloc.start()
    try:
        write_without_commit(write)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    shard_nbytes = 256**3 * 2
    assert found.peak_nbytes < 1.5 * shard_nbytes
    # Files have buffers of a megabyte, whatever the size of a shard.
    assert peak < 1.25 * found.peak_nbytes + (2 << 20)
    assert found.peak_nbytes < 1.25 * peak
