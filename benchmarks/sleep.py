"""Blocks that only sleep, as if read and inflated elsewhere: workers count, and not cores."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np

from benchmarks.measure import Job, Row, Setting
from benchmarks.one import VOXEL

SLAB = 8
#: Rows of shards, and what is asked of the share of the time that is work.
SLABS_SHAPE, SLABS_EDGE, SLABS_ASKED = (512, 256, 256), 128, 0.85
ONE_SHAPE, ONE_EDGE, ONE_ASKED = (256, 256, 256), 256, 0.7
N_WORKERS = (6, 8, 16, 32)


def _sleep(pause_s: float, block_info: Any = None) -> np.ndarray:
    time.sleep(pause_s)
    where = block_info[None]["array-location"]
    block = np.empty([stop - start for start, stop in where], "u2")
    block[...] = np.arange(*where[0], dtype="u2")[:, None, None] + 1
    return block


def seconds(
    folder: str, shape: tuple[int, int, int], edge: int, pause_s: float, n: int, *, threads: bool
) -> float:
    """Return how long slabs that sleep take to be a store, on n threads or n workers."""
    from distributed import Client, LocalCluster

    from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr

    chunks = da.core.normalize_chunks((SLAB, *shape[1:]), shape)
    slabs = da.map_blocks(_sleep, pause_s, chunks=chunks, dtype="u2", meta=np.empty((0,) * 3, "u2"))
    dataset = Dataset(slabs, dimension_names=("z", "y", "x"), datatype="tomo", **VOXEL)
    out = os.path.join(folder, "sleep.zarr")
    write = partial(dataset_to_zarr, dataset, out, chunks=(32,) * 3, shards=(edge,) * 3)
    if threads:
        with dask.config.set(scheduler="threads", num_workers=n):
            took_s = _timed(write)
    else:
        with (
            LocalCluster(n_workers=n, threads_per_worker=1, processes=False,
                         dashboard_address=":0") as cluster,
            Client(cluster),
        ):  # fmt: skip
            took_s = _timed(write)
    stored = dataset_from_zarr(out).data.compute(scheduler="synchronous")
    assert (stored == np.arange(1, shape[0] + 1, dtype="u2")[:, None, None]).all()
    shutil.rmtree(out)
    return took_s


def _timed(write: Any) -> float:
    start = time.perf_counter()
    write()
    return time.perf_counter() - start


def _row(
    setting: Setting, name: str, shape: tuple[int, int, int], edge: int, n: int, asked: float,
    *, threads: bool = False,
) -> Row:  # fmt: skip
    pause_s = 0.1 if setting.quick else 1.0
    ideal_s = shape[0] / SLAB * pause_s / n
    took_s = [seconds(setting.folder, shape, edge, pause_s, n, threads=threads)
              for _ in range(setting.n_pairs)]  # fmt: skip
    return Row(f"slabs that sleep, {name}", [ideal_s / s for s in took_s], "of the time is work",
               against="no waiting", at_least=asked, note=f"ideal {ideal_s:.2f} s")  # fmt: skip


def slab_rows(setting: Setting) -> list[Row]:
    n_rows = SLABS_SHAPE[0] // SLABS_EDGE
    return [
        _row(setting, f"{n_rows} rows of shards, {n} workers", SLABS_SHAPE, SLABS_EDGE, n,
             SLABS_ASKED)
        for n in N_WORKERS
    ]  # fmt: skip


def one_rows(setting: Setting) -> list[Row]:
    return [
        _row(setting, f"one shard, 8 {'threads' if threads else 'workers'}", ONE_SHAPE, ONE_EDGE,
             8, ONE_ASKED, threads=threads)
        for threads in (True, False)
    ]  # fmt: skip


JOBS: dict[str, Job] = {"sleep-slabs": slab_rows, "sleep-shard": one_rows}
