"""Whole arrays written: against the reference, an older checkout of this package, and limits."""

from __future__ import annotations

import os
import statistics
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import Job, Row, Setting, interleave, quotients, ratios, run_one, seconds

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
#: What is compared with an older checkout, and what of its speed is asked: where nothing should
#: have changed, what two runs of the same code differ by is granted.
_BEFORE = {
    ("aligned", "threads"): 1.0,
    ("aligned", "cluster"): 1.0,
    ("netcdf", "cluster"): 1.0,
    ("slabs", "cluster"): 0.95,
}


def installed_peers() -> list[str]:
    """Return which ways of the reference can be run here; on Python 3.11 there is none."""
    found = [who for who in PEERS if all(map(find_spec, _NEEDS[who]))]
    if len(found) < len(PEERS):
        print(f"left out, since not installed: {sorted({*PEERS} - {*found})}", file=sys.stderr)
    return found


def _task(setting: Setting, work: str, scheduler: str, size: int | None = None) -> dict[str, Any]:
    """Return the task of our own write, with its source made."""
    size = size or setting.size
    (data.make_netcdf if work == "netcdf" else data.make_raw)(setting.folder, size)
    return {"folder": setting.folder, "size": size, "work": work, "scheduler": scheduler,
            "who": "ours"}  # fmt: skip


def write_rows(setting: Setting, work: str, scheduler: str) -> list[Row]:
    task = _task(setting, work, scheduler)
    tasks = {who: {**task, "who": who} for who in ("ours", *installed_peers())}
    check = partial(check_equal, setting.folder, setting.size)
    results = interleave(tasks, setting.n_pairs, check)
    return reference_rows(f"{work}, {scheduler}", results, ASKED[work, scheduler])


def before_rows(setting: Setting, work: str, scheduler: str) -> list[Row]:
    """This code beside an older checkout's, in volumes whose fixed costs count for little."""
    size = setting.large
    gb = 2 * size**3 / 1e9
    where = "LocalCluster 2 x 1" if scheduler == "cluster" else scheduler
    name = f"{work}, {gb:.1f} GB, {where}: this code"
    asked = _BEFORE[work, scheduler]
    if setting.before is None:
        return [no_before(name, asked)]
    task = {**_task(setting, work, scheduler, size), "warm": True}
    check = partial(check_equal, setting.folder, size)
    tasks = {"ours": task, "before": {**task, "code": setting.before}}
    results = interleave(tasks, setting.n_pairs, check)
    return [before_row(name, results, asked)]


def before_row(name: str, results: dict[str, list[dict[str, Any]]], asked: float) -> Row:
    ours, before = (statistics.median(seconds(results[who])) for who in ("ours", "before"))
    note = f"{ours:.2f} s against {before:.2f}"
    return Row(name, ratios(results, "before"), against="the older checkout", at_least=asked,
               note=note, extra={"results": results})  # fmt: skip


def no_before(name: str, asked: float) -> Row:
    note = "no --before FOLDER of an older checkout"
    return Row(name, [], against="the older checkout", at_least=asked, note=note)


def before_read_rows(setting: Setting) -> list[Row]:
    name, asked = "read a whole store back, threads: this code", 0.95
    if setting.before is None:
        return [no_before(name, asked)]
    store = written_store(setting, setting.large)
    task = {"folder": setting.folder, "size": setting.large, "work": "read",
            "scheduler": "threads", "who": "ours", "store": store}  # fmt: skip
    tasks = {"ours": task, "before": {**task, "code": setting.before}}
    return [before_row(name, interleave(tasks, setting.n_pairs), asked)]


def level_rows(
    setting: Setting, work: str, scheduler: str, dtype: str = "uint16"
) -> list[Row]:  # fmt: skip
    """What a pyramid costs beside a write of one level: time and memory.

    In 8 shards, and in 64 of the same volume: the last shards of the coarser levels have no others
    beside them, which counts for less the more there are. Aligned blocks on a cluster also in 32 of
    the larger size, of a volume four times as high.
    """
    size = setting.size
    base = _task(setting, work, scheduler)
    layouts = [(size // 2, 1), (size // 4, 1)]
    if (work, scheduler, dtype) == ("aligned", "cluster", "uint16") and size >= 1024:
        layouts.append((size // 2, 4))
    rows = []
    for edge, repeat in layouts:
        task = {**base, "edge": edge, "repeat": repeat, "dtype": dtype, "warm": True}
        one, several = {**task, "levels": 1}, {**task, "levels": 3 if repeat == 1 else 4}
        check = partial(check_equal, setting.folder, size, repeat, dtype)
        results = interleave({"ours": one, "auto": several}, setting.n_pairs, check)
        peaks = {who: [max(r["mib"]) for r in rounds] for who, rounds in results.items()}
        median = {who: statistics.median(mib) for who, mib in peaks.items()}
        n_shards = (size // edge) ** 3 * repeat
        name = f"{several['levels']} levels, {n_shards} shards of {edge}^3, {dtype}, {work}"
        name += f", {scheduler}"
        note = f"peak {median['auto']:.0f} MiB against {median['ours']:.0f}"
        rows += [
            Row(f"{name}: time", ratios(results, "auto"), against="one level", at_most=1.35,
                extra={"results": results}),
            Row(f"{name}: memory", quotients(peaks["auto"], peaks["ours"]), against="one level",
                note=note, at_most=1.35, fails=True),
        ]  # fmt: skip
    return rows


def limit_rows(setting: Setting) -> list[Row]:
    """Slabs beside aligned blocks, and netCDF beside the work that cannot be left out."""
    aligned, slabs = (
        {**_task(setting, work, "cluster"), "warm": True} for work in ("aligned", "slabs")
    )
    found = interleave({"ours": aligned, "slabs": slabs}, setting.n_pairs)
    netcdf = {**_task(setting, "netcdf", "cluster"), "warm": True}
    limit = interleave({"ours": {**netcdf, "who": "limit"}, "write": netcdf}, setting.n_pairs)
    return [
        Row("slabs of 16 slices, LocalCluster 2 x 1", ratios(found, "slabs"),
            against="aligned blocks", at_most=1.5),
        Row("mango netCDF, LocalCluster 2 x 1", ratios(limit, "write"),
            against="inflate, compress and write alone", at_most=1.3),
    ]  # fmt: skip


def scaling_rows(setting: Setting) -> list[Row]:
    """What a second worker gains, and what it gains where nothing but cores is shared."""
    task = {**_task(setting, "aligned", "cluster"), "edge": setting.size // 4, "warm": True}
    cores = {**task, "work": "compress"}
    results = interleave(
        {"ours": task, "one": {**task, "n_workers": 1}, "cores": cores,
         "one core": {**cores, "n_workers": 1}}, setting.n_pairs
    )  # fmt: skip
    # The last of the rounds may have written nothing.
    run_one(task)
    check_equal(setting.folder, setting.size)
    limit = {"ours": results["cores"], "one": results["one core"]}
    return [
        Row("1 worker, 64 shards, aligned", ratios(results, "one"), against="2 workers",
            at_least=1.8, extra={"results": results}),
        Row("1 worker, 64 tasks that only compress", ratios(limit, "one"), against="2 workers"),
    ]  # fmt: skip


def reference_rows(
    name: str, results: dict[str, list[dict[str, Any]]], asked: tuple[float | None, float | None]
) -> list[Row]:
    ours = statistics.median(seconds(results["ours"]))
    mib = statistics.median(max(r["mib"]) for r in results["ours"])
    rows = []
    for (who, label), wanted in zip(PEERS.items(), asked, strict=True):
        if who not in results:
            rows.append(Row(name, [], against=label, at_least=wanted, note="not installed"))
            continue
        theirs_mib = statistics.median(max(r["mib"]) for r in results[who])
        note = f"ours {ours:.2f} s; peak {mib:.0f} MiB against {theirs_mib:.0f}"
        rows.append(Row(name, ratios(results, who), against=label, at_least=wanted, note=note,
                        extra={"results": results}))  # fmt: skip
    return rows


def written_store(setting: Setting, size: int | None = None) -> str:
    """Write a store, compare it with its source, and return where it is kept for readers."""
    run_one(_task(setting, "aligned", "threads", size))
    check_equal(setting.folder, size or setting.size)
    store = os.path.join(setting.folder, "store.zarr")
    os.rename(os.path.join(setting.folder, "out.zarr"), store)
    return store


def check_equal(
    folder: str, size: int, repeat: int = 1, dtype: str = "uint16", name: str = "out.zarr"
) -> None:
    """Compare what was written with the raw file, by a reader that is nobody's here."""
    import tensorstore

    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    path = os.path.join(folder, name, "0")
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    ).result()
    assert store.shape == (size * repeat, size, size)
    for z in range(0, size * repeat, 128):
        part = store[z : z + 128].read().result()
        wanted = data.as_dtype(np.asarray(raw[z % size : z % size + 128]), dtype)
        np.testing.assert_array_equal(part, wanted)


JOBS: dict[str, Job] = {
    f"{work}-{scheduler}": partial(write_rows, work=work, scheduler=scheduler)
    for work, scheduler in ASKED
    if work != "read"
}
JOBS |= {
    f"levels-{work}-{scheduler}": partial(level_rows, work=work, scheduler=scheduler)
    for work, scheduler in (
        ("aligned", "threads"), ("aligned", "cluster"), ("slabs", "cluster"), ("netcdf", "cluster")
    )
}  # fmt: skip
JOBS["levels-labels-cluster"] = partial(
    level_rows, work="aligned", scheduler="cluster", dtype="uint8"
)
JOBS |= {"limits": limit_rows, "scaling": scaling_rows}
JOBS |= {
    f"before-{work}-{scheduler}": partial(before_rows, work=work, scheduler=scheduler)
    for work, scheduler in _BEFORE
}
JOBS["before-read"] = before_read_rows
