"""Whole arrays written and read, against the reference on both of zarr's pipelines."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import Row, interleave, ratios, run_one

PEERS = {"default": "anu_ctlab_io, zarr's default pipeline", "zarrs": "anu_ctlab_io, zarrs"}
_NEEDS = {"default": ("anu_ctlab_io",), "zarrs": ("anu_ctlab_io", "zarrs")}
#: (work, scheduler): what is asked of the ratio to each peer.
ASKED = {
    ("aligned", "threads"): (5.0, 1.8),
    ("aligned", "cluster"): (3.5, 2.5),
    ("slabs", "threads"): (None, None),
    ("slabs", "cluster"): (2.5, 2.0),
    ("netcdf", "threads"): (3.0, 2.2),
    ("netcdf", "cluster"): (3.0, 2.2),
    ("read", "threads"): (3.0, None),
}


def _installed_peers() -> list[str]:
    """Return which ways of the reference can be run here; on Python 3.11 there is none."""
    found = [who for who in PEERS if all(map(find_spec, _NEEDS[who]))]
    if len(found) < len(PEERS):
        print(f"left out, since not installed: {sorted({*PEERS} - {*found})}", file=sys.stderr)
    return found


def write_rows(folder: str, size: int, n_pairs: int, work: str, scheduler: str) -> list[Row]:
    task = {"folder": folder, "size": size, "work": work, "scheduler": scheduler}
    if work == "netcdf":
        data.make_netcdf(folder, size)
    else:
        data.make_raw(folder, size)
    writers = ["ours", *_installed_peers()]
    tasks = {who: {**task, "who": who} for who in writers}
    results = interleave(tasks, n_pairs, partial(check_equal, folder, size))
    return _rows(f"{work}, {scheduler}", results, ASKED[work, scheduler])


#: A writer that takes so many times as long is run once: five rounds of it would be the afternoon.
_TOO_SLOW = 15
#: Which of the peers write on a cluster of their own accord.
_ON_A_CLUSTER = ("dask.array.to_zarr", "xarray to_zarr", "ngff-zarr", "ome-zarr")


def peer_rows(
    folder: str,
    size: int,
    n_pairs: int,
    work: str,
    scheduler: str,
    *,
    dtype: str = "uint16",
    codec: str = "zstd",
    levels: int = 1,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Other writers of sharded Zarr, each in one run of the same interleaved rounds."""
    from benchmarks.peers import WRITERS

    data.make_raw(folder, size)
    task = {"folder": folder, "size": size, "work": work, "scheduler": scheduler}
    task |= {"dtype": dtype, "codec": codec, "levels": levels}
    label = f"{work}, {dtype}, {codec}, {scheduler}"
    if levels > 1:
        label += f", {levels} levels"
    wanted = list(names or (_ON_A_CLUSTER if scheduler == "cluster" else WRITERS))
    once = _first_run({**task, "who": "ours"}, dtype)
    failed, slow = {}, {}
    for who in list(wanted):
        try:
            first = _first_run({**task, "who": who}, dtype)
        except RuntimeError as error:
            failed[who] = str(error).strip().splitlines()[-1][:200]
            wanted.remove(who)
            continue
        if first["seconds"] > _TOO_SLOW * once["seconds"]:
            slow[who] = first["seconds"] / once["seconds"]
            wanted.remove(who)
    results = interleave({who: {**task, "who": who} for who in ("ours", *wanted)}, n_pairs)
    ours = results["ours"]
    mib = statistics.median(max(r["mib"]) for r in ours)
    rows = []
    for who in wanted:
        theirs = results[who]
        note = (
            f"peak {mib:.0f} MiB against {statistics.median(max(r['mib']) for r in theirs):.0f}; "
            f"{ours[0]['n_objects']} objects against {theirs[0]['n_objects']}"
        )
        name = f"{label}: {who}"
        values = ratios(results, who)
        rows.append(Row(name, "above 1 x", values, note=note, extra={"results": results}))
    for who, value in slow.items():
        name = f"{label}: {who}"
        rows.append(Row(name, "above 1 x", [value], note="one run each, not interleaved"))
    for who, problem in failed.items():
        print(f"{label}: {who} left out: {problem}", file=sys.stderr)
    return rows


def _first_run(task: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Run a writer once and compare what it wrote; return what was measured."""
    from benchmarks.peers import read_back

    result = run_one(task)
    size = task["size"]
    raw = np.memmap(data.make_raw(task["folder"], size), "u2", "r", shape=(size,) * 3)
    stored = read_back(result["place"], os.path.join(task["folder"], "out.zarr"))
    for z in range(0, size, 128):
        wanted = data.as_dtype(np.asarray(raw[z : z + 128]), dtype)
        np.testing.assert_array_equal(stored[z : z + 128], wanted)
    return result


def read_part_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    """Opening a store, one slice, one sub-volume of a fifth of the edge."""
    from benchmarks.readers import READERS

    store = _written_store(folder, size)
    rows = []
    for work in ("open", "slice", "sub-volume"):
        task = {"folder": folder, "size": size, "work": work, "scheduler": "threads",
                "store": store}  # fmt: skip
        readers = [who for who in READERS if who != "anu_ctlab_io" or find_spec(who)]
        results = interleave({who: {**task, "who": who} for who in readers}, n_pairs)
        ours = statistics.median(r["seconds"] for r in results["ours"])
        for who in readers[1:]:
            note = f"ours {ours * 1e3:.3g} ms"
            values = ratios(results, who)
            rows.append(Row(f"{work}: {who}", "above 1 x", values, note=note))
    shutil.rmtree(store, ignore_errors=True)
    return rows


def level_rows(
    folder: str, size: int, n_pairs: int, work: str, scheduler: str, dtype: str = "uint16"
) -> list[Row]:
    """What a pyramid costs beside a write of one level: time and memory.

    In 8 shards, and in 64 of the same volume: the last shards of the coarser levels have no others
    beside them, which counts for less the more there are. Aligned blocks on a cluster also in 32 of
    the larger size, of a volume four times as high.
    """
    if work == "netcdf":
        data.make_netcdf(folder, size)
    else:
        data.make_raw(folder, size)
    layouts = [(size // 2, 1), (size // 4, 1)]
    if (work, scheduler, dtype) == ("aligned", "cluster", "uint16") and size >= 1024:
        layouts.append((size // 2, 4))
    rows = []
    for edge, repeat in layouts:
        task = {"folder": folder, "size": size, "work": work, "scheduler": scheduler}
        task |= {"who": "ours", "edge": edge, "repeat": repeat, "dtype": dtype, "warm": True}
        one, several = {**task, "levels": 1}, {**task, "levels": 3 if repeat == 1 else 4}
        check = partial(check_equal, folder, size, repeat, dtype)
        results = interleave({"ours": one, "auto": several}, n_pairs, check)
        peaks = {who: [max(r["mib"]) for r in rounds] for who, rounds in results.items()}
        memory = [b / a for a, b in zip(peaks["ours"], peaks["auto"], strict=True)]
        median = {who: statistics.median(mib) for who, mib in peaks.items()}
        seconds = [b / a for a, b in zip(*(_seconds(results[w]) for w in peaks), strict=True)]
        n_shards = (size // edge) ** 3 * repeat
        name = (
            f"{several['levels']} levels against one, {n_shards} shards of {edge}^3, {dtype}, "
            f"{work}, {scheduler}"
        )
        note = f"peak {median['auto']:.0f} MiB against {median['ours']:.0f}"
        rows += [
            Row(f"{name}: time", "at most 1.35 x", seconds, extra={"results": results}),
            Row(f"{name}: memory", "", memory, note=note, at_most=1.35),
        ]
    return rows


def limit_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    """Slabs beside aligned blocks, and netCDF beside the work that cannot be left out."""
    data.make_raw(folder, size)
    data.make_netcdf(folder, size)
    task = {"folder": folder, "size": size, "scheduler": "cluster", "who": "ours", "warm": True}
    slabs = interleave(
        {"ours": {**task, "work": "aligned"}, "slabs": {**task, "work": "slabs"}}, n_pairs
    )
    netcdf = {**task, "work": "netcdf"}
    found = interleave({"ours": {**netcdf, "who": "limit"}, "write": netcdf}, n_pairs)
    return [
        Row("slabs of 16 slices against aligned blocks, LocalCluster 2 x 1", "at most 1.5 x",
            ratios(slabs, "slabs")),
        Row("mango netCDF to OME-Zarr against inflate, compress and write alone, LocalCluster "
            "2 x 1", "at most 1.3 x", ratios(found, "write")),
    ]  # fmt: skip


def scaling_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    """What a second worker gains, and what it gains where nothing but cores is shared."""
    data.make_raw(folder, size)
    task = {"folder": folder, "size": size, "work": "aligned", "scheduler": "cluster"}
    task |= {"who": "ours", "edge": size // 4, "warm": True}
    cores = {**task, "work": "compress"}
    results = interleave(
        {"ours": task, "one": {**task, "n_workers": 1}, "cores": cores,
         "one core": {**cores, "n_workers": 1}}, n_pairs
    )  # fmt: skip
    # The last of the rounds may have written nothing.
    run_one(task)
    check_equal(folder, size)
    limit = {"ours": results["cores"], "one": results["one core"]}
    return [
        Row("1 worker against 2, 64 shards, aligned", "at least 1.8 x", ratios(results, "one"),
            extra={"results": results}),
        Row("1 worker against 2, 64 tasks that only compress", "", ratios(limit, "one")),
    ]  # fmt: skip


def _seconds(results: list[dict[str, Any]]) -> list[float]:
    return [result["seconds"] for result in results]


def read_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    store = _written_store(folder, size)
    task = {"folder": folder, "size": size, "work": "read", "scheduler": "threads", "store": store}
    readers = ["ours", *_installed_peers()]
    results = interleave({who: {**task, "who": who} for who in readers}, n_pairs)
    shutil.rmtree(store, ignore_errors=True)
    return _rows("read back, threads", results, ASKED["read", "threads"])


def verify_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    """Checking a store, beside reading all of it, which checks less."""
    store = _written_store(folder, size)
    task = {"folder": folder, "size": size, "scheduler": "threads", "store": store}
    results = interleave(
        {"ours": {**task, "who": "ours", "work": "verify"},
         "read": {**task, "who": "ours", "work": "read"},
         "dask": {**task, "who": "dask.array.from_zarr", "work": "read"}}, n_pairs
    )  # fmt: skip
    shutil.rmtree(store, ignore_errors=True)
    return [
        Row("verify, threads: our reading of every voxel", "", ratios(results, "read")),
        Row("verify, threads: reading every voxel by dask.array.from_zarr", "above 1 x",
            ratios(results, "dask")),
    ]  # fmt: skip


def _rows(
    name: str, results: dict[str, list[dict[str, Any]]], asked: tuple[float | None, float | None]
) -> list[Row]:
    ours = statistics.median(r["seconds"] for r in results["ours"])
    mib = statistics.median(max(r["mib"]) for r in results["ours"])
    rows = []
    for (who, label), wanted in zip(PEERS.items(), asked, strict=True):
        if who not in results:
            continue
        theirs_mib = statistics.median(max(r["mib"]) for r in results[who])
        note = f"ours {ours:.2f} s; peak {mib:.0f} MiB against {theirs_mib:.0f}"
        rows.append(
            Row(
                f"{name}: {label}",
                "" if wanted is None else f"at least {wanted:g} x",
                ratios(results, who),
                note=note,
                extra={"results": results},
            )
        )
    return rows


def _written_store(folder: str, size: int) -> str:
    """Write a store, compare it with its source, and return where it is kept for readers."""
    data.make_raw(folder, size)
    run_one({"folder": folder, "size": size, "work": "aligned", "scheduler": "threads",
             "who": "ours"})  # fmt: skip
    check_equal(folder, size)
    store = os.path.join(folder, "store.zarr")
    os.rename(os.path.join(folder, "out.zarr"), store)
    return store


def check_equal(folder: str, size: int, repeat: int = 1, dtype: str = "uint16") -> None:
    """Compare what was written with the raw file, by a reader that is nobody's here."""
    import tensorstore

    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    path = os.path.join(folder, "out.zarr", "0")
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    ).result()
    assert store.shape == (size * repeat, size, size)
    for z in range(0, size * repeat, 128):
        part = store[z : z + 128].read().result()
        wanted = data.as_dtype(np.asarray(raw[z % size : z % size + 128]), dtype)
        np.testing.assert_array_equal(part, wanted)
