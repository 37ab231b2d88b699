"""Sources of other formats written as OME-Zarr, beside the usual way with dask, and the limit."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from benchmarks.data import make_raw
from benchmarks.measure import Job, Row, Setting, in_turn, quotients, run_apart
from benchmarks.peers import dask_to_zarr

#: Edges in voxels: of a shard and of an inner chunk.
_SHARD, _CHUNK = 128, 32
#: What is read: how it is written for the test, what its usual way is called, and how many times as
#: fast ours should be; and the most that it may take as a multiple of reading and compressing.
_KINDS = {
    "tiff": ("a stack of TIFF", "tifffile, dask.array.to_zarr", 3.0, 1.3),
    "hdf5": ("HDF5, gzip", "h5py, dask.array.to_zarr", 2.0, None),
}


def source_rows(setting: Setting, kind: str) -> list[Row]:
    raw = make_raw(setting.folder, setting.size)
    what, usual, at_least, at_most = _KINDS[kind]
    found = run_apart(
        "benchmarks.sources:rounds", kind=kind, raw=raw, size=setting.size,
        folder=os.path.join(setting.folder, f"source-{kind}"), n_rounds=setting.n_pairs,
    )  # fmt: skip
    alone = [sum(pair) for pair in zip(found["read"], found["compress"], strict=True)]
    note = ", ".join(f"{work} {statistics.median(s):.2f} s" for work, s in found.items())
    name = f"{what} of {setting.size}^3 to OME-Zarr, threads"
    rows = [
        Row(name, quotients(found["usual"], found["ours"]), against=usual, at_least=at_least,
            note=note, extra=found)
    ]  # fmt: skip
    limit = quotients(found["ours"], alone)
    rows.append(Row(name, limit, against="reading and compressing alone", at_most=at_most))
    return rows


def rounds(kind: str, raw: str, size: int, folder: str, n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round of both ways, of reading alone, and of compressing alone."""
    from ctlab_dask_zarr import dataset_from_zarr

    volume = np.memmap(raw, "u2", "r", shape=(size,) * 3)
    os.makedirs(folder, exist_ok=True)
    path, read, usual = {"tiff": _tiff, "hdf5": _hdf5}[kind](volume, folder)
    out = os.path.join(folder, "ours.zarr")
    works: dict[str, Callable[[], Any]] = {
        "ours": partial(_ours, path, out),
        "usual": partial(_usual, usual, os.path.join(folder, "usual.zarr")),
        "read": partial(_timed, read),
        "compress": partial(_compress, volume),
    }
    # Modules are loaded, and the source is in the page cache, before the first round.
    for work in works.values():
        work()
    np.testing.assert_array_equal(dataset_from_zarr(out).data.compute(), volume)
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(n_rounds):
        for name in in_turn(works, number):
            found[name].append(works[name]())
    shutil.rmtree(folder)
    return found


def _tiff(volume: np.ndarray, folder: str) -> tuple[str, Any, Callable[[], da.Array]]:
    """Write a folder of slices; return it, what reads all bytes, and the usual lazy array."""
    import tifffile

    path = os.path.join(folder, "slices")
    os.makedirs(path, exist_ok=True)
    names = [os.path.join(path, f"slice_{z:05}.tif") for z in range(len(volume))]
    for name, plane in zip(names, volume, strict=True):
        tifffile.imwrite(name, plane)

    def read_all(pool: ThreadPoolExecutor) -> None:
        list(pool.map(lambda name: np.fromfile(name, np.uint8).size, names))

    def usual() -> da.Array:
        def plane(block_info: Any = None) -> np.ndarray:
            z = block_info[None]["array-location"][0][0]
            return np.asarray(tifffile.imread(names[z]))[None]

        chunks = ((1,) * len(names), *((n,) for n in volume.shape[1:]))
        return da.map_blocks(plane, chunks=chunks, dtype=volume.dtype)

    return path, read_all, usual


def _hdf5(volume: np.ndarray, folder: str) -> tuple[str, Any, Callable[[], da.Array]]:
    import h5py

    path = os.path.join(folder, "scan.h5")
    n = min(64, len(volume))
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "data", volume.shape, "u2", chunks=(8, n, n), compression="gzip", compression_opts=1
        )
        for z in range(0, len(volume), 64):
            made[z : z + 64] = volume[z : z + 64]

    def read_all(pool: ThreadPoolExecutor) -> None:
        from ctlab_dask_zarr import Dataset

        source = Dataset.from_path(path, voxel_size=1.0, voxel_unit="um").source
        assert source is not None
        list(pool.map(lambda z: source[z : z + 8].size, range(0, len(volume), 8)))

    def usual() -> da.Array:
        file = h5py.File(path, "r")
        return da.from_array(file["data"], chunks=(_CHUNK, *volume.shape[1:]))

    return path, read_all, usual


def _n_threads() -> int:
    return len(os.sched_getaffinity(0))


def _ours(path: str, out: str) -> float:
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    start = time.perf_counter()
    scan = Dataset.from_path(path, voxel_size=1.0, voxel_unit="um")
    dataset_to_zarr(scan, out, chunks=(_CHUNK,) * 3, shards=(_SHARD,) * 3, overwrite=True)
    return time.perf_counter() - start


def _usual(source: Callable[[], da.Array], out: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    dask_to_zarr(source().rechunk((_SHARD,) * 3), out, _SHARD, "zstd")
    return time.perf_counter() - start


def _timed(read: Callable[[ThreadPoolExecutor], None]) -> float:
    with ThreadPoolExecutor(_n_threads()) as pool:
        start = time.perf_counter()
        read(pool)
        return time.perf_counter() - start


def _compress(volume: np.ndarray) -> float:
    """Compress the inner chunks of a volume, which lie in memory one after the other."""
    import zstandard

    n = len(volume) // _CHUNK
    seconds = 0.0
    with ThreadPoolExecutor(_n_threads()) as pool:
        for z in range(n):
            slab = np.asarray(volume[z * _CHUNK : (z + 1) * _CHUNK])
            cut = slab.reshape(_CHUNK, n, _CHUNK, n, _CHUNK).transpose(1, 3, 0, 2, 4)
            chunks = np.ascontiguousarray(cut).reshape(n * n, -1)
            start = time.perf_counter()
            list(pool.map(lambda part: _each(zstandard.ZstdCompressor(), part), np.array_split(
                chunks, _n_threads())))  # fmt: skip
            seconds += time.perf_counter() - start
    return seconds


def _each(compressor: Any, chunks: np.ndarray) -> None:
    for chunk in chunks:
        compressor.compress(chunk.data)


JOBS: dict[str, Job] = {f"source-{kind}": partial(source_rows, kind=kind) for kind in _KINDS}
