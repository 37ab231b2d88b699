"""The small things that people feel: imports, help, opening a store of many shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from benchmarks.measure import Row

_OPEN = """
import time
from ctlab_dask_zarr import dataset_from_zarr
start = time.perf_counter(); dataset_from_zarr({path!r}); first = time.perf_counter() - start
start = time.perf_counter(); dataset_from_zarr({path!r}); print(first, time.perf_counter() - start)
"""


def _run_s(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=120)
    return time.perf_counter() - start


def start_rows(folder: str, n_pairs: int) -> list[Row]:
    """Each beside what it is asked to stay below; seconds, for there is nothing to compare with."""
    store = _large_store(folder)
    imports, helps, commands, opens = [], [], [], []
    names = "dataset_to_zarr, dataset_from_zarr, Dataset"
    for _ in range(n_pairs):
        base = _run_s("-c", "import dask.array, zarr")
        more = _run_s("-c", f"import dask.array, zarr; from ctlab_dask_zarr import {names}")
        imports.append(more - base)
        helps.append(_run_s("-m", "ctlab_dask_zarr.cli", "--help"))
        click = _run_s("-c", "import click")
        commands.append(_run_s("-c", "import click, ctlab_dask_zarr.cli") - click)
        done = subprocess.run(
            [sys.executable, "-c", _OPEN.format(path=store)],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        opens.append(float(done.stdout.split()[1]))
    return [
        Row("import of the writer, beyond dask and zarr", "under 0.3 s", imports, "s"),
        Row("ctlab-zarr --help", "under 0.5 s", helps, "s"),
        Row("import of the command, beyond click (each `dask` call)", "under 0.05 s", commands,
            "s"),
        Row("open a store of 97,336 shards", "under 0.2 s", opens, "s"),
    ]  # fmt: skip


def _large_store(folder: str) -> str:
    """Make the documents of a store with 46^3 shards; no shard is needed to open it."""
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, plan

    path = os.path.join(folder, "many.zarr")
    data = da.zeros((512 * 46,) * 3, chunks=512 * 46, dtype="u2")
    dataset = Dataset(data, dimension_names=("z", "y", "x"), datatype="tomo", **VOXEL)
    for document in plan(dataset, path).documents:
        target = os.path.join(path, document.key)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            json.dump(json.loads(document.text), file)
    return path
