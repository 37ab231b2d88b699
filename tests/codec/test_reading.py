"""Regions of stored arrays, read by several threads: every codec, damage, changes, few files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.codec import object_read, region, shard_index, together
from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.store.opened import LocalObject
from ctlab_dask_zarr.store.store import Store

SHAPE, SHARD, CHUNK = (40, 33, 50), (16, 32, 32), (8, 8, 16)
CODECS: dict[str, Any] = {
    "zstd": {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
    "blosc": {
        "name": "blosc",
        "configuration": {
            "cname": "lz4", "clevel": 3, "shuffle": "shuffle", "typesize": 4, "blocksize": 0
        },
    },
    "gzip": {"name": "gzip", "configuration": {"level": 1}},
    "crc32c": {"name": "crc32c"},
    "zstd and crc32c": (
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}}, {"name": "crc32c"},
    ),
    "none": None,
}  # fmt: skip


def make(path: Path, dtype: str = "uint16", codec: str = "zstd", **options: Any) -> np.ndarray:
    """Write an array with zarr, of which some inner chunks and one shard are all fill value."""
    voxels = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(dtype)
    voxels[:16, :32, :32] = 0
    voxels[16:24, :8, 16:32] = 0
    settings = {"shards": SHARD, "chunks": CHUNK, "compressors": CODECS[codec]} | options
    stored = zarr.create_array(path, shape=SHAPE, dtype=dtype, fill_value=0, **settings)
    stored[...] = voxels
    return voxels


def opened(path: Path) -> tuple[Store, StoredArray]:
    return Store(str(path)), parse_array_document((path / "zarr.json").read_text())


def read(path: Path, where: Any = (slice(None),) * 3, **options: Any) -> np.ndarray:
    store, array = opened(path)
    parts = tuple(slice(*part.indices(n)) for part, n in zip(where, SHAPE, strict=True))
    return read_region(store, "", array, parts, strict=options.get("strict", False))


def age(path: Path, seconds: float = 60) -> None:
    """Let files be as old as those of a store that was not written just now."""
    for file in path.rglob("*"):
        then = time.time() - seconds
        os.utime(file, (then, then))


def take_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read small shards in several steps, each with several reads, as if they were large."""
    monkeypatch.setattr(object_read, "_SHORT_NBYTES", 0)
    monkeypatch.setattr(LocalObject, "small_nbytes", 0)
    monkeypatch.setattr(object_read, "_TOGETHER_NBYTES", 5000)
    monkeypatch.setattr(object_read, "_GAP_NBYTES", 500)


@pytest.fixture(params=[1, 2, 9, "short steps"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    n_threads = 2 if request.param == "short steps" else int(request.param)
    cores = together.Cores(n_threads, threading.Semaphore(n_threads))
    monkeypatch.setattr(region, "cores_for_a_read", lambda: cores)
    if request.param != "short steps":
        take_many_steps(monkeypatch)
    return n_threads


@pytest.mark.parametrize("shards", [SHARD, None])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_region_is_what_numpy_has(
    tmp_path: Path, codec: str, dtype: str, shards: Any, threads: int
) -> None:
    voxels = make(tmp_path, dtype, codec, shards=shards)
    np.testing.assert_array_equal(read(tmp_path), voxels)
    random = np.random.default_rng(threads)
    for _ in range(12):
        ends = [sorted(random.integers(0, n + 1, 2).tolist()) for n in SHAPE]
        where = tuple(slice(a, b) for a, b in ends)
        np.testing.assert_array_equal(read(tmp_path, where), voxels[where])


def test_codecs_that_are_left_to_zarr_are_read_by_it(tmp_path: Path, threads: int) -> None:
    big_endian = {"name": "bytes", "configuration": {"endian": "big"}}
    voxels = make(tmp_path, serializer=big_endian)
    assert not opened(tmp_path)[1].is_direct
    where = (slice(3, 39), slice(0, 33), slice(20, 21))
    np.testing.assert_array_equal(read(tmp_path, where), voxels[where])


def test_many_threads_that_read_at_once_each_get_their_own(tmp_path: Path) -> None:
    voxels = make(tmp_path)
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(20):
                ends = [sorted(random.integers(0, n + 1, 2).tolist()) for n in SHAPE]
                where = tuple(slice(a, b) for a, b in ends)
                np.testing.assert_array_equal(read(tmp_path, where), voxels[where])
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(240)
    assert failures == []


def shard_of(path: Path, coords: str = "c/1/0/0") -> Path:
    return path / coords


def damage(file: Path, change: Callable[[bytearray], Any]) -> None:
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("codec", ["zstd", "blosc", "gzip", "crc32c"])
def test_a_damaged_inner_chunk_is_named(tmp_path: Path, codec: str, threads: int) -> None:
    voxels = make(tmp_path, codec=codec)
    store, array = opened(tmp_path)
    shard = shard_index.open_shard(store, "c/1/0/0", array)
    offset, nbytes = (int(n) for n in shard.entries[5])

    def change(data: bytearray) -> None:
        data[offset : offset + nbytes] = bytes(reversed(data[offset : offset + nbytes]))

    damage(shard_of(tmp_path), change)
    with pytest.raises(ShardDecodeError, match=rf"c/1/0/0: inner chunk \(0, 2, 1\) at .* {offset}"):
        read(tmp_path)
    # The others of the same shard are read as before.
    where = (slice(16, 24), slice(0, 8), slice(0, 32))
    np.testing.assert_array_equal(read(tmp_path, where), voxels[where])


def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, threads: int) -> None:
    make(tmp_path)
    os.truncate(shard_of(tmp_path), 100)
    with pytest.raises(ShardDecodeError, match="c/1/0/0: it has 100 bytes, fewer than its index"):
        read(tmp_path)


@pytest.mark.parametrize("is_short", [True, False])
def test_a_shard_that_ends_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    make(tmp_path)
    if not is_short:
        take_many_steps(monkeypatch)
    monkeypatch.setattr(LocalObject, "small_nbytes", 0)
    open_shard = object_read.open_shard

    def cut(*arguments: Any) -> Any:
        shard = open_shard(*arguments)
        os.truncate(tmp_path / arguments[1], 1000)
        return shard

    monkeypatch.setattr(object_read, "open_shard", cut)
    with pytest.raises(ShardDecodeError, match="the shard ends before it does"):
        read(tmp_path)


def test_a_missing_shard_is_an_error_or_fill_values(tmp_path: Path, threads: int) -> None:
    voxels = make(tmp_path)
    shard_of(tmp_path).unlink()
    with pytest.raises(IncompleteDatasetError, match=r"c/./0/0 is missing"):
        read(tmp_path, strict=True)
    voxels[16:32, :32, :32] = 0
    np.testing.assert_array_equal(read(tmp_path), voxels)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is asked of the file system, and which indexes are read."""
    found: Counter[str] = Counter()

    def counting(place: Any, name: str) -> None:
        function = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(place, name, call)

    for name in ("open", "stat", "lstat", "fstat", "readlink", "access", "listdir", "scandir"):
        counting(os, name)
    counting(LocalObject, "read_end")
    return found


def test_a_shard_is_opened_once_and_its_index_kept(tmp_path: Path, calls: Counter[str]) -> None:
    voxels = make(tmp_path)
    age(tmp_path)
    where = (slice(17, 30), slice(3, 30), slice(2, 31))
    store, array = opened(tmp_path)
    read_region(store, "", array, where, strict=True)  # where the root is, is asked once
    shard_index.forget_index(store, "c/1/0/0", array)
    calls.clear()
    found = read_region(store, "", array, where, strict=True)
    # Of the three, none but the first is answered by the file system: one is of an open file, and
    # the kernel itself tells the last.
    assert calls == {"open": 1, "fstat": 1, "readlink": 1, "read_end": 1}
    np.testing.assert_array_equal(found, voxels[where])
    calls.clear()
    read_region(store, "", array, where, strict=True)
    assert calls == {"open": 1, "fstat": 1}


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_shard_that_is_written_again_is_read_anew(
    tmp_path: Path, in_place: bool, is_old: bool
) -> None:
    first, second = (np.roll(make(tmp_path / name) + 1, n, 0) for n, name in enumerate("ab"))
    for voxels, name in ((first, "a"), (second, "b")):
        zarr.open_array(tmp_path / name)[...] = voxels
    target = tmp_path / "a"
    if is_old:
        age(target)
    np.testing.assert_array_equal(read(target), first)
    for file in (tmp_path / "b").rglob("c/*/*/*"):
        place = target / file.relative_to(tmp_path / "b")
        if in_place:
            place.write_bytes(file.read_bytes())
        else:
            temporary = place.with_name("temporary")
            temporary.write_bytes(file.read_bytes())
            temporary.rename(place)
    np.testing.assert_array_equal(read(target), second)


def test_no_more_indexes_are_kept_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shard_index._KeptIndexes()
    monkeypatch.setattr(shard_index, "_kept", kept)
    monkeypatch.setattr(shard_index, "_MAX_NBYTES", 5000)
    voxels = make(tmp_path)
    age(tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(read(tmp_path), voxels)
        assert 0 < kept._nbytes <= 5000
        assert kept._nbytes == sum(one.entries.nbytes + 1024 for one in kept._found.values())


@pytest.mark.parametrize("what", ["shard", "folder"])
def test_a_link_out_of_the_store_is_refused_and_one_inside_is_followed(
    tmp_path: Path, what: str
) -> None:
    from ctlab_dask_zarr import MetadataError

    inside = tmp_path / "store"
    voxels = make(inside)
    place = shard_of(inside) if what == "shard" else inside / "c" / "1"
    aside = inside / "aside"
    place.rename(aside)
    place.symlink_to(aside)
    np.testing.assert_array_equal(read(inside), voxels)
    outside = tmp_path / "outside"
    aside.rename(outside)
    place.unlink()
    place.symlink_to(outside)
    for _ in range(2):
        with pytest.raises(MetadataError, match="leads out of the store"):
            read(inside)
    store, array = opened(inside)
    follows = Store(store.root, LocalFiles(follows_links=True))
    whole = tuple(slice(0, n) for n in SHAPE)
    np.testing.assert_array_equal(read_region(follows, "", array, whole, strict=False), voxels)
    # What was found inside of it by a reader that may follow links is not let in otherwise.
    with pytest.raises(MetadataError, match="leads out of the store"):
        read(inside)


def test_steps_hold_no_more_memory_together_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_MAX_NBYTES", 100)
    lock, held, most, order = threading.Lock(), [0], [0], []

    def step(nbytes: int, further: int = 0) -> together.Step:
        def run() -> list[together.Step]:
            with lock:
                held[0] += nbytes
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with lock:
                held[0] -= nbytes
                order.append(nbytes)
            return [step(nbytes) for _ in range(further)]

        return together.Step(nbytes, run)

    together.run_steps((step(30, 3) for _ in range(20)), 8)
    assert order == [30] * 80
    assert 30 < most[0] <= 100
    # One that needs more by itself goes alone.
    together.run_steps((step(n) for n in (30, 300, 30)), 8)
    assert order[80:] in ([30, 300, 30], [300, 30, 30], [30, 30, 300])
    assert most[0] == 300


@pytest.mark.parametrize("waits", [True, False])
def test_short_steps_are_done_by_one_thread_unless_they_wait(
    monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    monkeypatch.setattr(together, "_SHORT_S", 0.0 if waits else 60.0)
    threads = set()

    def run() -> list[together.Step]:
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return []

    together.run_steps((together.Step(1, run, is_short=True) for _ in range(100)), 4)
    assert (len(threads) > 1) == waits


def test_an_error_of_another_thread_is_raised_and_ends_all(tmp_path: Path) -> None:
    n_run = [0]

    def run(number: int) -> list[together.Step]:
        n_run[0] += 1
        time.sleep(0.001)
        if number == 5:
            raise ValueError(number)
        return []

    steps = (together.Step(1, lambda n=n: run(n)) for n in range(10_000))
    with pytest.raises(ValueError, match="5"):
        together.run_steps(steps, 4)
    assert n_run[0] < 100


def test_a_task_takes_its_core_and_those_that_are_idle() -> None:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=1, threads_per_worker=4, processes=False, dashboard_address=":0"
    )
    with cluster, Client(cluster) as client:
        assert client.submit(_cores, 1, pure=False).result(240) == [4]
        found = client.submit(_cores, 2, pure=False), client.submit(_cores, 2, pure=False)
        assert [future.result(240) for future in found] == [[3], [3]]


_BARRIERS = {n: threading.Barrier(n) for n in (1, 2)}


def _cores(n_tasks: int) -> list[int]:
    """Return the cores of a read of this task while `n_tasks` of them are running."""
    _BARRIERS[n_tasks].wait(240)
    found = together.cores_for_a_read().n_cores
    _BARRIERS[n_tasks].wait(240)
    return [found]


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import dask, numpy as np
from ctlab_dask_zarr import dataset_from_zarr
data = dataset_from_zarr(sys.argv[1]).data
with dask.config.set(scheduler="threads", num_workers=16):
    for _ in range(3):
        blocks = (data + 0).compute()
        whole = data.compute()
np.save(sys.argv[2], np.stack([blocks, whole]))
"""


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    voxels = make(tmp_path / "a.zarr", shards=(8, 8, 16), chunks=(4, 4, 8))
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path / "a.zarr"), str(tmp_path / "r.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for found in np.load(tmp_path / "r.npy"):
        np.testing.assert_array_equal(found, voxels)
