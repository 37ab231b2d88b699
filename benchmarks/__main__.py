"""``python -m benchmarks [ROWS...]``: run the comparison and print it as Markdown.

Ends with 1 where a writer of ours took more memory than it may, which small volumes do not tell.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version

from benchmarks import (
    calls,
    compared,
    exports,
    graphs,
    reads,
    report,
    shard,
    sleep,
    sources,
    start,
    writes,
)
from benchmarks.measure import HEADER, Job, Row, Setting

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
JOBS: dict[str, Job] = {}
for module in (shard, sleep, graphs, reads, writes, compared, exports, sources, calls, start):
    JOBS |= module.JOBS

#: Names that stand for several rows.
GROUPS = {
    # What says whether all cores are used, whatever the shape, and whether reading waits.
    "goals": (
        "sleep-slabs", "sleep-shard", "before-netcdf-cluster", "before-aligned-cluster",
        "before-aligned-threads", "memory", "read-shard", "read-http", "read-s3", "read-many",
        "round-trip", "shard", "peers-float32-zstd", "peers-uint8-zstd", "aligned-threads",
        "verify", "verify-source", "calls", "convert-tiny", "first-levels",
    ),
    # What may not have become slower than an older checkout.
    "before": tuple(name for name in JOBS if name.startswith("before-")),
    # One of each kind of work.
    "quick": (
        "shard", "sleep-shard", "build", "schedule", "read", "read-http", "read-many",
        "aligned-threads", "netcdf-cluster", "levels-aligned-cluster", "verify", "export-raw",
        "peers-uint16-blosc", "round-trip", "calls", "start", "first-levels",
    ),
}  # fmt: skip
#: Edge in voxels below which what a worker holds anyway counts for most of its memory.
_LEAST_FOR_MEMORY = 512
#: What is run only where it is named: nothing is asked of it, and it is long.
_BY_NAME = ("slabs-threads", "peers-slabs-threads")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "rows", nargs="*",
        help=f"nearly all by default; or {', '.join(GROUPS)}; or of {', '.join(JOBS)}",
    )  # fmt: skip
    parser.add_argument("--folder", default=None, help="where to write; a RAM disk by default")
    parser.add_argument("--size", type=int, default=512, help="edge of the volume, in voxels")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds")
    parser.add_argument(
        "--before", default=None, help="an older checkout of this package, to compare with"
    )
    parser.add_argument(
        "--s3", default=None,
        help="an s3://bucket/prefix that may be written; AWS_ENDPOINT_URL and credentials are "
        "those of the environment. moto is started without it",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=60, help="rows that are not begun by then are left out"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help="one round of some rows, small, in 3 minutes: whether it works, and no figures",
    )  # fmt: skip
    parser.add_argument("--json", default=None, help="write every measured value to this file")
    parser.add_argument("--report", default=None, help="write report.md and plots to this folder")
    options = parser.parse_args()
    names = options.rows or (["quick"] if options.quick else [n for n in JOBS if n not in _BY_NAME])
    chosen = [row for name in names for row in GROUPS.get(name, (name,))]
    unknown = [name for name in chosen if name not in JOBS]
    if unknown:
        parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(JOBS)}")
    # What most is asked of comes first, in case that the time does not suffice for all.
    options.rows = sorted(dict.fromkeys(chosen), key=lambda name: name not in GROUPS["goals"])
    return options


def main() -> None:
    options = _options()
    parent = options.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-bench-", dir=parent)
    setting = Setting(
        folder=folder,
        size=256 if options.quick else options.size,
        n_pairs=1 if options.quick else options.pairs,
        quick=options.quick,
        before=options.before,
        s3=options.s3,
    )
    title = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python "
        f"{platform.python_version()}, {', '.join(map(_version, PACKAGES))}; "
        f"{setting.size}^3 voxels, {setting.n_pairs} interleaved rounds, on {parent}"
    )
    print(f"{title}\n\n{HEADER}", flush=True)
    begun_s = time.monotonic()
    rows: list[Row] = []
    try:
        for name in options.rows:
            if time.monotonic() - begun_s > 60 * options.minutes:
                note = f"the {options.minutes:g} minutes were over"
                found = [Row(name, [], note=note)]
            else:
                found = _run(name, setting)
            for row in found:
                print(row.text(), flush=True)
            rows += found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if options.report and rows:
            print(f"\n{report.write_report(options.report, title, rows)}")
        if options.json:
            _write_json(options.json, rows)
    print(f"\n{(time.monotonic() - begun_s) / 60:.0f} minutes", flush=True)
    over = [row.name for row in rows if row.is_over()]
    if over and setting.size >= _LEAST_FOR_MEMORY:
        raise SystemExit(f"more memory than may be: {', '.join(over)}")


def _run(name: str, setting: Setting) -> list[Row]:
    """Run a job; where it fails in a long run, the others are measured all the same."""
    begun_s = time.monotonic()
    try:
        return JOBS[name](setting)
    except Exception as error:
        if setting.quick:
            raise
        lines = str(error).strip().splitlines() or [""]
        return [
            Row(name, [], note=f"failed: {type(error).__name__}: {lines[-1][:300]}", fails=True)
        ]
    finally:
        print(f"{name}: {time.monotonic() - begun_s:.0f} s", file=sys.stderr, flush=True)


def _write_json(path: str, rows: list[Row]) -> None:
    with open(path, "w") as file:
        json.dump(
            [{"name": r.name, "against": r.against, "goal": r.goal, "values": r.values,
              "unit": r.unit, "median": statistics.median(r.values) if r.values else None,
              "met": r.is_met() if r.values else None, "note": r.note, **r.extra}
             for r in rows], file
        )  # fmt: skip


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except ImportError:
        return f"{package} not installed"


if __name__ == "__main__":
    main()
