"""Calls that ask the file system for metadata: parallel ones answer each in up to a millisecond."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import Any

from benchmarks.measure import Job, Row, Setting

#: What is counted: opening, looking at, making, syncing and renaming by name. What asks an open
#: file about itself is answered by the client.
_CALLS = (
    "open", "openat", "openat2", "creat", "stat", "lstat", "newfstatat", "statx", "access",
    "faccessat", "faccessat2", "readlink", "readlinkat", "mkdir", "mkdirat", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "fsync", "fdatasync",
)  # fmt: skip
_LINE = re.compile(r"^\d+ +(\w+)\(")
#: Where an open file is, which the kernel tells by itself: named in the notes, and not counted.
_OF_KERNEL = 'readlink("/proc/self/fd/'
_EDGE = 32
_N_BANDS = 32


def write(out: str, n: int) -> None:
    """Write n shards in one thread."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        _write(out, (_EDGE * n, _EDGE, _EDGE), _EDGE, (_EDGE,) * 3)


def write_bands(out: str, n: int) -> None:
    """Write n shards side by side, each in so many bands."""
    import dask

    length = _N_BANDS * _EDGE // 2
    with dask.config.set(scheduler="threads", num_workers=8):
        _write(out, (length, _EDGE * n, _EDGE), (_EDGE // 4, -1, -1), (length, _EDGE, _EDGE))


def _write(out: str, shape: tuple[int, ...], blocks: Any, shards: tuple[int, ...]) -> None:
    """Write labels: of a small grey volume all is read again, for its contrast."""
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    voxels = da.ones(shape, chunks=blocks, dtype="u1")
    dataset = Dataset(voxels, dimension_names=("z", "y", "x"), datatype="segmented", **VOXEL)
    dataset_to_zarr(dataset, out, chunks=(_EDGE // 2,) * 3, shards=shards)


def read(out: str, n: int, times: int) -> None:
    """Read a part of each of the first n shards, so many times."""
    from ctlab_dask_zarr import dataset_from_zarr

    volume = dataset_from_zarr(out).data
    for time in range(times):
        for shard in range(n):
            at = _EDGE * shard + time
            volume[at : at + 1].compute(scheduler="synchronous")


def _counted(folder: str, function: str, arguments: str) -> Counter[str]:
    """Return the calls below a folder of ``function(arguments)`` in a process of its own."""
    log = os.path.join(folder, "calls.log")
    code = f"from benchmarks.calls import {function}; {function}({arguments})"
    subprocess.run(
        ["strace", "-f", "-y", "-s", "4096", "-o", log, "-e", "trace=" + ",".join(_CALLS),
         sys.executable, "-c", code],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    found: Counter[str] = Counter()
    with open(log, errors="replace") as file:
        for line in file:
            call = _LINE.match(line)
            if call and folder in line and "AT_EMPTY_PATH" not in line and log not in line:
                found["readlink of /proc" if _OF_KERNEL in line else call[1]] += 1
    os.unlink(log)
    return found


#: What is counted of how many shards, and what is asked of one.
_ROWS = {
    "write": ("metadata calls, a shard written", 8),
    "write_bands": (f"the same, a shard written in {_N_BANDS} bands", None),
    "read": ("the same, a shard read", 2),
    "again": ("the same, a shard read again", 0),
}


def call_rows(setting: Setting) -> list[Row]:
    if shutil.which("strace") is None:
        note = "strace is not installed"
        return [Row(name, [], at_most=asked, note=note) for name, asked in _ROWS.values()]
    folder = os.path.realpath(setting.folder)
    out = os.path.join(folder, "calls.zarr")
    few, many = 4, 24
    n_shards = dict.fromkeys(_ROWS, many - few) | {"again": many}
    found = {}
    # What does not depend on the number of shards falls out of the difference.
    for work in ("write_bands", "write"):
        counts = []
        for n in (few, many):
            shutil.rmtree(out, ignore_errors=True)
            counts.append(_counted(folder, work, f"{out!r}, {n}"))
        found[work] = counts[1] - counts[0]
    reads = [_counted(folder, "read", f"{out!r}, {n}, 1") for n in (few, many)]
    found["read"] = reads[1] - reads[0]
    found["again"] = _counted(folder, "read", f"{out!r}, {many}, 2") - reads[1]
    shutil.rmtree(out)
    rows = []
    for work, (name, asked) in _ROWS.items():
        n = n_shards[work]
        note = ", ".join(f"{call} {count / n:.3g}" for call, count in found[work].most_common())
        n_calls = found[work].total() - found[work]["readlink of /proc"]
        rows.append(Row(name, [n_calls / n], "calls", at_most=asked, note=note))
    return rows


JOBS: dict[str, Job] = {"calls": call_rows}
