"""``python -m benchmarks``: run the comparison and print it as Markdown."""

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

from benchmarks import graphs, shard, writes
from benchmarks.measure import Row

PACKAGES = ("dask", "zarr", "numpy", "zstandard", "numcodecs", "anu_ctlab_io", "zarrs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; a RAM disk by default")
    parser.add_argument("--size", type=int, default=1024, help="edge of the volume, in voxels")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--rows", default=None, help="comma-separated; all by default")
    parser.add_argument("--quick", action="store_true", help="a small volume, in 3 minutes")
    parser.add_argument("--json", default=None, help="write every measured value to this file")
    options = parser.parse_args()
    size, pairs = (256, 3) if options.quick else (options.size, options.pairs)
    parent = options.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-bench-", dir=parent)
    jobs: dict[str, Callable[[], list[Row]]] = {
        "shard": lambda: shard.shard_rows(folder, size, pairs),
        "build": lambda: graphs.build_rows(pairs, quick=options.quick),
        "schedule": lambda: graphs.schedule_rows(folder, pairs, quick=options.quick),
        "memory": lambda: graphs.memory_rows(folder, size, pairs),
        "read": lambda: writes.read_rows(folder, size, pairs),
    }
    for work, scheduler in writes.ASKED:
        if work != "read":
            jobs[f"{work}-{scheduler}"] = lambda w=work, s=scheduler: writes.write_rows(  # type: ignore[misc]
                folder, size, pairs, w, s
            )
    chosen = options.rows.split(",") if options.rows else list(jobs)
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python "
          f"{platform.python_version()}, " + ", ".join(_version(p) for p in PACKAGES))  # fmt: skip
    print(f"{size}^3 uint16, {pairs} interleaved rounds, on {parent}\n")
    print("| work | asked | median | range | |\n| --- | --- | --- | --- | --- |", flush=True)
    rows = []
    try:
        for name in chosen:
            for row in jobs[name]():
                print(row.text(), flush=True)
                rows.append(row)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                [{"name": r.name, "asked": r.asked, "values": r.values, "unit": r.unit,
                  "median": statistics.median(r.values), **r.extra} for r in rows], file
            )  # fmt: skip


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except ImportError:
        return f"{package} not installed"


if __name__ == "__main__":
    main()
