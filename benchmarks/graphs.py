"""What the client, the scheduler and the memory of workers cost, without much data."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

import dask.array as da
import numpy as np

from benchmarks.measure import Job, Row, Setting, in_turn, quotients, run_apart
from benchmarks.one import VOXEL, peak_mib, reset_peak
from benchmarks.writes import no_before
from ctlab_dask_zarr import Dataset, dataset_to_zarr, plan


def _dataset(data: da.Array) -> Dataset:
    return Dataset(data, dimension_names="zyx", datatype="tomo", **VOXEL)


def build_rows(setting: Setting) -> list[Row]:
    """Time to build and optimise a write of aligned shards, a shard."""
    rows = []
    for n in (10, 22) if setting.quick else (10, 22, 46):
        values = build_ms(n, setting.n_pairs if n < 40 else setting.n_long)
        name = f"build and optimise, {n**3:,} shards, a shard"
        rows.append(Row(name, values, "ms", at_most=0.1))
    return rows


def build_ms(n: int, n_times: int) -> list[float]:
    """Return the time to build the graph of n^3 shards, a shard."""
    values = []
    for _ in range(n_times):
        data = da.zeros((512 * n,) * 3, chunks=512, dtype="u2") + np.uint16(1)
        start = time.perf_counter()
        dataset_to_zarr(_dataset(data), "none.zarr", compute=False)
        values.append((time.perf_counter() - start) / n**3 * 1e3)
    return values


def before_rows(setting: Setting) -> list[Row]:
    """Building the graph of 10,648 shards, beside an older checkout."""
    name, asked = "build and optimise, 10,648 shards: this code", 0.95
    if setting.before is None:
        return [no_before(name, asked)]
    found: dict[str, list[float]] = {"ours": [], "before": []}
    for number in range(setting.n_pairs):
        for who in in_turn(found, number):
            code = setting.before if who == "before" else None
            # The first one of a process loads modules.
            found[who].append(run_apart("benchmarks.graphs:build_ms", code=code, n=22,
                                        n_times=2)[1])  # fmt: skip
    ours, before = (float(np.median(found[who])) for who in ("ours", "before"))
    return [Row(name, quotients(found["before"], found["ours"]), against="the older checkout",
                at_least=asked, note=f"{ours:.3f} ms a shard against {before:.3f}")]  # fmt: skip


def schedule_rows(setting: Setting) -> list[Row]:
    """Time to schedule and run a write of 1 KiB shards: files and renames are counted too."""
    n = 10 if setting.quick else 16
    data = da.zeros((8 * n,) * 3, chunks=8, dtype="u2")
    options: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}
    out = os.path.join(setting.folder, "small.zarr")
    values = []
    with _cluster() as client:
        for number in range(setting.n_pairs + 1):
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            with client.as_current():
                dataset_to_zarr(_dataset(data), out, **options)
            if number:
                values.append((time.perf_counter() - start) / n**3 * 1e3)
    shutil.rmtree(out, ignore_errors=True)
    name = f"schedule and write {n**3:,} shards of 1 KiB, LocalCluster 2 x 1"
    return [Row(f"{name}, a shard", values, "ms", at_most=2.5)]


def memory_rows(setting: Setting) -> list[Row]:
    """Peak memory of a worker above its start, from a source that holds nothing itself."""
    # So large that a shard, of 108 MiB, counts for more than what a worker holds anyway.
    edge = 192 if setting.quick else 384
    size = 2 * edge
    shard_mib = edge**3 * 2 / 2**20
    out = os.path.join(setting.folder, "memory.zarr")
    rows = []
    # Of one row of shards a part is what a worker makes, as no two could share it otherwise.
    for work, shape, blocks, bound in (
        ("aligned", (size,) * 3, (edge,) * 3, 1.25),
        ("slabs of 16, two rows of shards", (size,) * 3, (16, size, size), 3),
        ("slabs of 16, one row of shards: bands", (edge, size, size), (16, size, size), 1.5),
        ("slabs of 16, one shard: bands", (edge,) * 3, (16, edge, edge), 1.5),
    ):
        values, planned = [], []
        for _ in range(setting.n_pairs):
            chunks = da.core.normalize_chunks(blocks, shape)
            data = da.map_blocks(_cheap, chunks=chunks, dtype="u2", meta=np.empty((0,) * 3, "u2"))
            with _cluster() as client, client.as_current():
                # One small write first, so that modules and buffers of libraries are there.
                dataset_to_zarr(_dataset(da.zeros((64,) * 3, dtype="u2")), out, overwrite=True)
                dataset = _dataset(data)
                options: dict[str, Any] = {"chunks": (32,) * 3, "shards": (edge,) * 3}
                way = plan(dataset, out, overwrite=True, **options).rechunk
                starts = client.run(reset_peak)
                dataset_to_zarr(dataset, out, overwrite=True, **options)
                peaks = client.run(peak_mib)
            mib = max(peaks[worker] - starts[worker] for worker in starts)
            values.append(mib / shard_mib)
            planned.append(mib / (way.peak_nbytes / 2**20))
        name = f"peak memory of a worker thread, {work}"
        note = f"planned {way.peak_nbytes / 2**20:.0f} MiB, method {way.method}"
        rows += [
            Row(name, values, against="a shard", at_most=bound, fails=True, note=note),
            Row(name, planned, against="the plan", at_least=0.75, at_most=1.25, note=note),
        ]
    shutil.rmtree(out, ignore_errors=True)
    return rows


def wide_rows(setting: Setting) -> list[Row]:
    """Slices of which a row of shards does not fit: two workers of 2 GiB, and of 8 GiB.

    2520 x 2520 slices in shards of 512: a row of shards holds 6.5 GB, so that each process would
    need several times its limit to bring slabs to shards in memory.
    """
    shape, edge = ((256, 630, 630), 128) if setting.quick else ((1024, 2520, 2520), 512)
    tight, ample = ("256MiB", "1GiB") if setting.quick else ("2GiB", "8GiB")
    out = os.path.join(setting.folder, "wide.zarr")
    seconds: dict[str, list[float]] = {tight: [], ample: []}
    peaks: dict[str, list[float]] = {tight: [], ample: []}
    spilled: list[float] = []
    for number in range(setting.n_long):
        for limit in (tight, ample) if number % 2 == 0 else (ample, tight):
            shutil.rmtree(out, ignore_errors=True)
            chunks = da.core.normalize_chunks((16, *shape[1:]), shape)
            data = da.map_blocks(_cheap, chunks=chunks, dtype="u2", meta=np.empty((0,) * 3, "u2"))
            with _cluster(limit) as client, client.as_current():
                dataset_to_zarr(_dataset(da.zeros((64,) * 3, dtype="u2")), out, overwrite=True)
                starts = client.run(reset_peak)
                start = time.perf_counter()
                dataset_to_zarr(
                    _dataset(data), out, overwrite=True, chunks=(32,) * 3, shards=(edge,) * 3
                )
                seconds[limit].append(time.perf_counter() - start)
                reached = client.run(peak_mib)
                peaks[limit].append(max(reached[w] - starts[w] for w in starts))
                if limit == tight:
                    spilled.append(max(client.run(_spilled_nbytes).values()) / 2**20)
    shutil.rmtree(out, ignore_errors=True)
    speed = quotients(seconds[ample], seconds[tight])
    gb = 2 * shape[0] * shape[1] * shape[2] / 1e9
    name = f"{shape[1]} x {shape[2]} slices, two workers of {tight}"
    shard_mib = edge**3 * 2 / 2**20
    return [
        Row(f"{name}: speed", speed, against=f"two of {ample}", at_least=0.7,
            note=f"{gb / float(np.median(seconds[tight])):.2f} GB/s"),
        Row(f"{name}: peak of a worker", [p / shard_mib for p in peaks[tight]], against="a shard",
            at_most=3, fails=True),
        Row(f"{name}: spilled", spilled, "MiB", at_most=0, fails=True),
    ]  # fmt: skip


def _spilled_nbytes(dask_worker: Any) -> int:
    return int(getattr(dask_worker.data, "spilled_total", (0, 0))[1])


def _cheap(block_info: Any = None) -> np.ndarray:
    shape = tuple(b - a for a, b in block_info[None]["array-location"])
    block = np.empty(shape, "u2")
    block[...] = np.random.default_rng(0).integers(0, 4000, shape[-1], dtype="u2")
    return block


def _cluster(memory_limit: str = "auto") -> Any:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        memory_limit=memory_limit,
    )  # fmt: skip

    class Both(Client):
        def __exit__(self, *exception: Any) -> None:
            super().__exit__(*exception)
            cluster.close()

    return Both(cluster, set_as_default=False)


JOBS: dict[str, Job] = {
    "build": build_rows,
    "before-graph": before_rows,
    "schedule": schedule_rows,
    "memory": memory_rows,
    "wide": wide_rows,
}
