"""How often a write asks the file system something: parallel ones take a millisecond to answer.

Two writes are compared, of as many shards and of twice as many, so that what a write asks once, of
its folders and documents, drops out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import dataset_to_zarr
from tests.builders import make_dataset

#: What asks for metadata or changes them. What reads and writes an open file is left out.
CALLS = (
    *("stat", "lstat", "fstat", "open", "fsync", "rename", "replace", "mkdir", "unlink", "remove"),
    *("rmdir", "scandir", "listdir", "access", "chmod", "fchmod", "readlink", "link", "utime"),
)
#: The same as Linux has them.
SYSTEM_CALLS = (
    "%stat,%lstat,%fstat,open,openat,openat2,fsync,fdatasync,rename,renameat,renameat2,mkdir,"
    "mkdirat,unlink,unlinkat,rmdir,getdents64,access,faccessat2,chmod,fchmod,readlink,statx,utimensat"
)
EDGE, N_SHARDS = 16, 32


def write(path: Path, n_shards: tuple[int, int, int], levels: int, slabs: bool = False) -> None:
    shape = tuple(EDGE * n for n in n_shards)
    voxels = np.broadcast_to(np.arange(shape[2], dtype="uint8"), shape)
    blocks = (4, *shape[1:]) if slabs else EDGE
    data = da.from_array(voxels, chunks=blocks, name=False)
    # Of labels, no voxels are read back for their contrast. In one thread, since two that come to a
    # new folder at once would both open it.
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(
            make_dataset(data, datatype="segmented"), path, shards=(EDGE,) * 3, chunks=(8,) * 3,
            levels=levels, dimension_separator_threshold=64,
        )  # fmt: skip


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(name, getattr(os, name)))
        patch.setattr("builtins.open", counting("open()", open))
        yield found


def calls_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: tuple[int, int], **how: Any
) -> dict[str, float]:
    seen = []
    for number, n in enumerate((N_SHARDS, N_SHARDS, 2 * N_SHARDS)):
        # The first write loads modules.
        with counted(monkeypatch) as found:
            write(tmp_path / f"{number}.zarr", (n // row[0] // row[1], *row), **how)
        seen.append(found)
    more = seen[2] - seen[1]
    return {name: n / N_SHARDS for name, n in more.items()}


@pytest.mark.parametrize("row", [(1, 1), (1, 2)], ids=["column", "two columns"])
@pytest.mark.parametrize("slabs", [False, True], ids=["blocks", "slabs"])
def test_a_shard_is_written_with_at_most_eight_calls(
    row: tuple[int, int], slabs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_a_shard(tmp_path, monkeypatch, row, levels=1, slabs=slabs)
    assert 1 <= calls["fsync"] < 1.2, "every shard is durable"
    assert 1 <= calls["rename"] < 1.2, "every shard appears whole"
    assert sum(calls.values()) <= 8, calls


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not there")
def test_the_kernel_counts_the_same(tmp_path: Path) -> None:
    n_calls = []
    for n in (N_SHARDS, 2 * N_SHARDS):
        trace = tmp_path / f"{n}.trace"
        script = (
            "from pathlib import Path; from tests.write import test_calls as t; "
            f"t.write(Path({str(tmp_path)!r}) / '{n}', ({n}, 1, 1), 1)"
        )
        command = ["strace", "-f", "-qq", "-e", f"trace={SYSTEM_CALLS}", "-o", str(trace)]
        subprocess.run([*command, sys.executable, "-c", script], check=True, timeout=300)
        n_calls.append(len(trace.read_text().splitlines()))
    assert (n_calls[1] - n_calls[0]) / N_SHARDS <= 8
