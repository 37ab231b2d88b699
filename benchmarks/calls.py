"""Calls that ask the file system for metadata: parallel ones answer each in up to a millisecond."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

from benchmarks.measure import Job, Row, Setting

#: What is counted: opening, looking at, making, syncing and renaming by name. What asks an open
#: file about itself is answered by the client.
_CALLS = (
    "open", "openat", "openat2", "creat", "stat", "lstat", "newfstatat", "statx", "access",
    "faccessat", "faccessat2", "readlink", "readlinkat", "mkdir", "mkdirat", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "fsync", "fdatasync",
)  # fmt: skip
_LINE = re.compile(r"^\d+ +(\w+)\(")
_EDGE = 32


def write(out: str, n: int) -> None:
    """Write n shards in one thread, of labels: of a small grey volume all is read for its contrast."""
    import dask
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    voxels = da.ones((_EDGE * n, _EDGE, _EDGE), chunks=_EDGE, dtype="u1")
    dataset = Dataset(voxels, dimension_names=("z", "y", "x"), datatype="segmented", **VOXEL)
    with dask.config.set(scheduler="synchronous"):
        dataset_to_zarr(dataset, out, chunks=(16,) * 3, shards=(_EDGE,) * 3)


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
                found[call[1]] += 1
    os.unlink(log)
    return found


def call_rows(setting: Setting) -> list[Row]:
    names = {"write": "metadata calls, a shard written", "read": "the same, a shard read",
             "again": "the same, a shard read again"}  # fmt: skip
    goals = {"write": 8, "read": 2, "again": 0}
    if shutil.which("strace") is None:
        note = "strace is not installed"
        return [Row(names[work], [], at_most=goals[work], note=note) for work in names]
    folder = os.path.realpath(setting.folder)
    out = os.path.join(folder, "calls.zarr")
    few, many = 4, 24
    # What does not depend on the number of shards falls out of the difference.
    counts = []
    for n in (few, many):
        shutil.rmtree(out, ignore_errors=True)
        counts.append(_counted(folder, "write", f"{out!r}, {n}"))
    found = {"write": counts[1] - counts[0]}
    reads = [_counted(folder, "read", f"{out!r}, {n}, 1") for n in (few, many)]
    found["read"] = reads[1] - reads[0]
    found["again"] = _counted(folder, "read", f"{out!r}, {many}, 2") - reads[1]
    shutil.rmtree(out)
    n_shards = {"write": many - few, "read": many - few, "again": many}
    return [
        Row(names[work], [found[work].total() / n_shards[work]], "calls", at_most=goals[work],
            note=", ".join(f"{name} {count / n_shards[work]:.3g}"
                           for name, count in found[work].most_common()))
        for work in names
    ]  # fmt: skip


JOBS: dict[str, Job] = {"calls": call_rows}
