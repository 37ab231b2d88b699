"""Other writers of sharded Zarr, each in the same interleaved rounds; and a round trip."""

from __future__ import annotations

import importlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import (
    Job,
    Row,
    Setting,
    in_turn,
    interleave,
    quotients,
    ratios,
    run_apart,
    run_one,
)
from benchmarks.one import ZARRS
from benchmarks.peers import LEVEL_WRITERS, WRITERS, create_tensorstore, read_back
from benchmarks.writes import check_equal

#: A writer that takes so many times as long is run once: five rounds of it would be the afternoon.
_TOO_SLOW = 15
#: Which of the peers write on a cluster of their own accord.
_ON_A_CLUSTER = ("dask.array.to_zarr", "xarray to_zarr", "ngff-zarr", "ome-zarr")
#: Shards and chunks of the round trip, those of zarrs' own benchmark.
_SHARD, _CHUNK = 256, 64


def peer_rows(
    setting: Setting,
    work: str,
    scheduler: str,
    *,
    dtype: str = "uint16",
    codec: str = "zstd",
    levels: int = 1,
    names: Sequence[str] | None = None,
    at_least: float | None = 1.0,
) -> list[Row]:
    data.make_raw(setting.folder, setting.size)
    task = {"folder": setting.folder, "size": setting.size, "work": work, "scheduler": scheduler}
    task |= {"dtype": dtype, "codec": codec, "levels": levels}
    label = f"{work}, {dtype}, {codec}, {scheduler}"
    if levels > 1:
        label += f", {levels} levels"
    wanted = list(names or (_ON_A_CLUSTER if scheduler == "cluster" else WRITERS))
    once = _first_run({**task, "who": "ours"}, dtype)
    rows = []
    for who in list(wanted):
        try:
            first = _first_run({**task, "who": who}, dtype)
        except RuntimeError as error:
            note = f"left out: {str(error).strip().splitlines()[-1][:200]}"
            rows.append(Row(label, [], against=who, at_least=at_least, note=note))
            wanted.remove(who)
            continue
        if first["seconds"] > _TOO_SLOW * once["seconds"]:
            rows.append(Row(label, [first["seconds"] / once["seconds"]], against=who,
                            at_least=at_least, note="one run each, not interleaved"))  # fmt: skip
            wanted.remove(who)
    results = interleave({who: {**task, "who": who} for who in ("ours", *wanted)}, setting.n_pairs)
    ours = results["ours"]
    mib = statistics.median(max(r["mib"]) for r in ours)
    for who in wanted:
        theirs = results[who]
        note = (
            f"peak {mib:.0f} MiB against {statistics.median(max(r['mib']) for r in theirs):.0f}; "
            f"{ours[0]['n_objects']} objects against {theirs[0]['n_objects']}"
        )
        rows.append(Row(label, ratios(results, who), against=who, at_least=at_least, note=note,
                        extra={"results": results}))  # fmt: skip
    return rows


def _first_run(task: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Run a writer once and compare what it wrote; return what was measured."""
    result = run_one(task)
    size = task["size"]
    raw = np.memmap(data.make_raw(task["folder"], size), "u2", "r", shape=(size,) * 3)
    stored = read_back(result["place"], os.path.join(task["folder"], "out.zarr"))
    for z in range(0, size, 128):
        wanted = data.as_dtype(np.asarray(raw[z : z + 128]), dtype)
        np.testing.assert_array_equal(stored[z : z + 128], wanted)
    return result


def trip_rows(setting: Setting) -> list[Row]:
    """A store read and written again in the same layout, on threads."""
    size = setting.large
    folder = setting.folder
    data.make_raw(folder, size)
    source = os.path.join(folder, "source.zarr")
    run_apart("benchmarks.compared:write_source", folder=folder, size=size, out=source)
    others = {"tensorstore": "tensorstore", "zarrs": "zarrs under dask"}
    found: dict[str, list[float]] = {"ours": [], **{who: [] for who in others}}
    if not find_spec("zarrs"):
        print("left out of the round trip, since not installed: zarrs", file=sys.stderr)
        del found["zarrs"]
    out = os.path.join(folder, "out.zarr")
    for number in range(setting.n_long):
        for who in in_turn(found, number):
            shutil.rmtree(out, ignore_errors=True)
            pipeline = {"ZARR_CODEC_PIPELINE__PATH": ZARRS} if who == "zarrs" else None
            found[who].append(run_apart("benchmarks.compared:round_trip", environment=pipeline,
                                        who=who, source=source, out=out))  # fmt: skip
            check_equal(folder, size)
    shutil.rmtree(source)
    name = f"round trip of {size}^3, shards of {_SHARD}^3, chunks of {_CHUNK}^3, threads"
    note = ", ".join(f"{who} {statistics.median(times):.2f} s" for who, times in found.items())
    return [
        Row(name, quotients(found[who], found["ours"]) if who in found else [],
            against=others[who], at_least=1, note=note)
        for who in others
    ]  # fmt: skip


def write_source(folder: str, size: int, out: str) -> None:
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    dataset = Dataset(da.from_array(raw, chunks=_SHARD), dimension_names=("z", "y", "x"),
                      datatype="tomo", **VOXEL)  # fmt: skip
    dataset_to_zarr(dataset, out, chunks=(_CHUNK,) * 3, shards=(_SHARD,) * 3)


def round_trip(who: str, source: str, out: str) -> float:
    """Return the seconds from one store to another; modules are loaded before."""
    # dask loads distributed when it first looks for a scheduler.
    loaded = ["dask.array", "distributed", "zarr"]
    loaded += {"ours": ["ctlab_dask_zarr.api.write", "ctlab_dask_zarr.read.zarr"]}.get(who, [who])
    for module in loaded:
        importlib.import_module(module)
    trip = {"ours": _trip_ours, "tensorstore": _trip_tensorstore, "zarrs": _trip_dask}[who]
    start = time.perf_counter()
    trip(source, out)
    return time.perf_counter() - start


def _trip_ours(source: str, out: str) -> None:
    from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr

    dataset_to_zarr(
        dataset_from_zarr(source), out, chunks=(_CHUNK,) * 3, shards=(_SHARD,) * 3
    )  # fmt: skip


def _trip_tensorstore(source: str, out: str) -> None:
    """Shard after shard on each core, each of them read and written by all that it has."""
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{source}/0"}}
    stored = ts.open(spec, read=True).result()
    made = create_tensorstore(out, stored.shape, np.dtype("u2"), _SHARD, "zstd", _CHUNK)

    def copy(coords: tuple[int, ...]) -> None:
        where = tuple(slice(c * _SHARD, (c + 1) * _SHARD) for c in coords)
        made[where].write(stored[where]).result()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(copy, np.ndindex(*(n // _SHARD for n in stored.shape))))


def _trip_dask(source: str, out: str) -> None:
    import dask.array as da

    array = da.from_zarr(source, component="0", chunks=(_SHARD,) * 3)
    da.to_zarr(
        array, out, component="0", chunks=(_CHUNK,) * 3, shards=(_SHARD,) * 3,
        **data.codec_kwargs("zstd"),
    )  # fmt: skip


JOBS: dict[str, Job] = {
    f"peers-{work}-{scheduler}": partial(peer_rows, work=work, scheduler=scheduler)
    for work, scheduler in (("aligned", "threads"), ("aligned", "cluster"), ("slabs", "threads"))
}
# Small volumes, of other types: what is asked is more where it was less.
JOBS |= {
    f"peers-{dtype}-{codec}": partial(
        peer_rows, work="aligned", scheduler="threads", dtype=dtype, codec=codec,
        names=["tensorstore"], at_least=asked,
    )
    for dtype, codec, asked in (("uint16", "blosc", 1.0), ("uint16", "none", 1.0),
                                ("float32", "zstd", 1.2), ("uint8", "zstd", 1.2))
}  # fmt: skip
JOBS["peers-levels"] = partial(
    peer_rows, work="aligned", scheduler="threads", levels=3, names=LEVEL_WRITERS
)
JOBS["round-trip"] = trip_rows
