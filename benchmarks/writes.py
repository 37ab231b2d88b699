"""Whole arrays written and read, against the reference on both of zarr's pipelines."""

from __future__ import annotations

import os
import statistics
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import Row, interleave, ratios, run_one

PEERS = {"default": "anu_ctlab_io, zarr's default pipeline", "zarrs": "anu_ctlab_io, zarrs"}
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


def write_rows(folder: str, size: int, n_pairs: int, work: str, scheduler: str) -> list[Row]:
    task = {"folder": folder, "size": size, "work": work, "scheduler": scheduler}
    if work == "netcdf":
        data.make_netcdf(folder, size)
    else:
        data.make_raw(folder, size)
    results = interleave({who: {**task, "who": who} for who in ("ours", *PEERS)}, n_pairs)
    for who in ("ours", *PEERS):
        run_one({**task, "who": who})
        check_equal(folder, size)
    return _rows(f"{work}, {scheduler}", results, ASKED[work, scheduler])


def read_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    task = {"folder": folder, "size": size, "work": "aligned", "scheduler": "threads"}
    data.make_raw(folder, size)
    run_one({**task, "who": "ours"})
    check_equal(folder, size)
    store = os.path.join(folder, "read.zarr")
    os.rename(os.path.join(folder, "out.zarr"), store)
    task = {**task, "work": "read", "store": store}
    results = interleave({who: {**task, "who": who} for who in ("ours", *PEERS)}, n_pairs)
    return _rows("read back, threads", results, ASKED["read", "threads"])


def _rows(
    name: str, results: dict[str, list[dict[str, Any]]], asked: tuple[float | None, float | None]
) -> list[Row]:
    ours = statistics.median(r["seconds"] for r in results["ours"])
    mib = statistics.median(max(r["mib"]) for r in results["ours"])
    rows = []
    for (who, label), wanted in zip(PEERS.items(), asked, strict=True):
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


def check_equal(folder: str, size: int) -> None:
    """Compare what was written with the raw file, by a reader that is nobody's here."""
    import tensorstore

    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    path = os.path.join(folder, "out.zarr", "0")
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    ).result()
    for z in range(0, size, 128):
        np.testing.assert_array_equal(store[z : z + 128].read().result(), raw[z : z + 128])
