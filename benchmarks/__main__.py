"""``python -m benchmarks``: run the comparison and print it as Markdown.

Ends with 1 where a writer of ours took more memory than it may, which small volumes do not tell.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version

from benchmarks import graphs, report, shard, start, writes
from benchmarks.measure import Row
from benchmarks.peers import LEVEL_WRITERS

PACKAGES = (
    "dask",
    "zarr",
    "numpy",
    "zstandard",
    "numcodecs",
    "anu_ctlab_io",
    "zarrs",
    "xarray",
    "tensorstore",
    "ngff-zarr",
    "ome-zarr",
    "bioio-ome-zarr",
    "icechunk",
)

#: What `--quick` runs: one row of each kind of work.
_QUICK = (
    "shard", "build", "schedule", "read", "aligned-threads", "netcdf-cluster",
    "levels-aligned-cluster", "verify", "peers-uint16-blosc", "start",
)  # fmt: skip
#: Edge in voxels below which what a worker holds anyway counts for most of its memory.
_LEAST_FOR_MEMORY = 512
#: What is run only where it is named: nothing is asked of it, and it is long.
_BY_NAME = ("slabs-threads", "peers-slabs-threads")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; a RAM disk by default")
    parser.add_argument("--size", type=int, default=512, help="edge of the volume, in voxels")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--rows", default=None, help="comma-separated; nearly all by default")
    parser.add_argument(
        "--quick", action="store_true",
        help="one round of some rows, small, in 3 minutes: whether it works, and no figures",
    )  # fmt: skip
    parser.add_argument("--json", default=None, help="write every measured value to this file")
    parser.add_argument("--report", default=None, help="write report.md and plots to this folder")
    options = parser.parse_args()
    size, pairs = (256, 1) if options.quick else (options.size, options.pairs)
    parent = options.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-bench-", dir=parent)
    jobs: dict[str, Callable[[], list[Row]]] = {
        "shard": lambda: shard.shard_rows(folder, size, pairs),
        "build": lambda: graphs.build_rows(pairs, quick=options.quick),
        "schedule": lambda: graphs.schedule_rows(folder, pairs, quick=options.quick),
        "memory": lambda: graphs.memory_rows(folder, pairs),
        "read": lambda: writes.read_rows(folder, size, pairs),
        "scaling": lambda: writes.scaling_rows(folder, size, pairs),
    }
    for work, scheduler in writes.ASKED:
        if work != "read":
            jobs[f"{work}-{scheduler}"] = lambda w=work, s=scheduler: writes.write_rows(  # type: ignore[misc]
                folder, size, pairs, w, s
            )
    for work, scheduler in (("aligned", "threads"), ("aligned", "cluster"), ("slabs", "cluster"),
                            ("netcdf", "cluster")):  # fmt: skip
        jobs[f"levels-{work}-{scheduler}"] = lambda w=work, s=scheduler: writes.level_rows(  # type: ignore[misc]
            folder, size, pairs, w, s
        )
    jobs["levels-labels-cluster"] = lambda: writes.level_rows(
        folder, size, pairs, "aligned", "cluster", dtype="uint8"
    )
    jobs["verify"] = lambda: writes.verify_rows(folder, size, pairs)
    for work, scheduler in (("aligned", "threads"), ("aligned", "cluster"), ("slabs", "threads")):
        jobs[f"peers-{work}-{scheduler}"] = lambda w=work, s=scheduler: writes.peer_rows(  # type: ignore[misc]
            folder, size, pairs, w, s
        )
    for dtype, codec in (("uint16", "blosc"), ("uint16", "none"), ("float32", "zstd"),
                         ("uint8", "zstd")):  # fmt: skip
        jobs[f"peers-{dtype}-{codec}"] = lambda d=dtype, c=codec: writes.peer_rows(  # type: ignore[misc]
            folder, size, pairs, "aligned", "threads", dtype=d, codec=c,
            names=["dask.array.to_zarr", "xarray to_zarr", "tensorstore"],
        )  # fmt: skip
    jobs["peers-levels"] = lambda: writes.peer_rows(
        folder, size, pairs, "aligned", "threads", levels=3, names=LEVEL_WRITERS
    )
    jobs["limits"] = lambda: writes.limit_rows(folder, size, pairs)
    jobs["read-parts"] = lambda: writes.read_part_rows(folder, size, pairs)
    jobs["wide"] = lambda: graphs.wide_rows(folder, pairs, quick=options.quick)
    jobs["start"] = lambda: start.start_rows(folder, pairs)
    chosen = list(_QUICK) if options.quick else [name for name in jobs if name not in _BY_NAME]
    if options.rows:
        chosen = options.rows.split(",")
        unknown = [name for name in chosen if name not in jobs]
        if unknown:
            parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(jobs)}")
    title = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python "
        f"{platform.python_version()}, {', '.join(map(_version, PACKAGES))}; "
        f"{size}^3 voxels, {pairs} interleaved rounds, on {parent}"
    )
    print(f"{title}\n")
    print("| work | asked | median | range | |\n| --- | --- | --- | --- | --- |", flush=True)
    rows = []
    try:
        for name in chosen:
            for row in jobs[name]():
                print(row.text(), flush=True)
                rows.append(row)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.report:
        print(f"\n{report.write_report(options.report, title, rows)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                [{"name": r.name, "asked": r.asked, "values": r.values, "unit": r.unit,
                  "median": statistics.median(r.values), **r.extra} for r in rows], file
            )  # fmt: skip
    over = [row.name for row in rows if row.is_over()]
    if over and size >= _LEAST_FOR_MEMORY:
        raise SystemExit(f"more memory than may be: {', '.join(over)}")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except ImportError:
        return f"{package} not installed"


if __name__ == "__main__":
    main()
