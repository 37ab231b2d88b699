"""Exports of a whole store, beside decoding it and writing as many bytes, each alone."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from benchmarks.measure import Job, Row, Setting, in_turn, quotients, run_apart
from benchmarks.writes import written_store

#: What is exported: its name, and what is asked of the time, as a multiple of both. The MD5 of
#: mango's files is a third part of the work.
_KINDS = {
    "raw": ("out.raw", 1.3),
    "TIFF": ("out.tif", 1.3),
    "TIFF slices": ("out/", 1.3),
    "HDF5": ("out.h5", 1.3),
    "mango netCDF": ("tomo_out_nc", None),
}
#: Slices that one thread decodes or writes at once: a row of inner chunks.
_N_SLICES = 32


def export_rows(setting: Setting, kind: str) -> list[Row]:
    store = written_store(setting)
    name, at_most = _KINDS[kind]
    out = os.path.join(setting.folder, name)
    found = run_apart("benchmarks.exports:rounds", store=store, out=out, n_rounds=setting.n_pairs)
    shutil.rmtree(store)
    alone = [sum(pair) for pair in zip(found["decode"], found["write"], strict=True)]
    seconds = {work: statistics.median(values) for work, values in found.items()}
    note = ", ".join(f"{work} {value:.2f} s" for work, value in seconds.items())
    return [
        Row(f"export of {setting.size}^3 to {kind}, threads", quotients(found["export"], alone),
            against="decoding and writing alone", at_most=at_most, note=note, extra=found)
    ]  # fmt: skip


def rounds(store: str, out: str, n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round of the export, of decoding, and of writing."""
    from ctlab_dask_zarr import dataset_from_zarr

    alone = f"{out.rstrip('/')}.alone"
    works = {
        "export": partial(_export, store, out),
        "decode": partial(_each_slab, store, lambda slab, z: None),
        "write": partial(_write, store, alone),
    }
    # Modules are loaded, and the store is in the page cache, before the first round.
    for work in works.values():
        work()
    wanted = dataset_from_zarr(store).data.compute()
    np.testing.assert_array_equal(_read_back(out, wanted), wanted)
    del wanted
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(n_rounds):
        for name in in_turn(works, number):
            _remove(out)
            _remove(alone)
            found[name].append(works[name]())
    _remove(out)
    _remove(alone)
    return found


def _export(store: str, out: str) -> float:
    from ctlab_dask_zarr import dataset_from_zarr, export_dataset

    start = time.perf_counter()
    export_dataset(dataset_from_zarr(store), out)
    return time.perf_counter() - start


def _each_slab(store: str, work: Callable[[np.ndarray, int], None]) -> float:
    from ctlab_dask_zarr import dataset_from_zarr

    source = dataset_from_zarr(store).source
    assert source is not None
    starts = range(0, source.shape[0], _N_SLICES)
    start = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda z: work(source[z : z + _N_SLICES], z), starts))
    return time.perf_counter() - start


def _write(store: str, out: str) -> float:
    """Write the voxels, which are in memory, and sync the file."""
    from ctlab_dask_zarr import dataset_from_zarr

    source = dataset_from_zarr(store).source
    assert source is not None
    slab = source[:_N_SLICES]
    n_slabs = -(-source.shape[0] // _N_SLICES)
    start = time.perf_counter()
    file = os.open(out, os.O_WRONLY | os.O_CREAT)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            places = range(0, n_slabs * slab.nbytes, slab.nbytes)
            list(pool.map(lambda place: os.pwrite(file, slab.data, place), places))
        os.fsync(file)
    finally:
        os.close(file)
    return time.perf_counter() - start


def _read_back(out: str, like: np.ndarray) -> np.ndarray:
    from ctlab_dask_zarr import Dataset

    if out.endswith(".raw"):
        return np.fromfile(out, like.dtype).reshape(like.shape)
    voxels: np.ndarray = Dataset.from_path(out).data.compute()
    return voxels


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


JOBS: dict[str, Job] = {
    f"export-{name.split()[-1].lower()}": partial(export_rows, kind=name) for name in _KINDS
}
