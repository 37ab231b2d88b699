"""The small things that people feel: imports, help, a tiny scan, the first levels of a machine."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import data
from benchmarks.measure import Job, Row, Setting, run_apart

#: Edge of the tiny scan: half a megabyte.
_TINY = 64


def _run_s(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=120)
    return time.perf_counter() - start


def start_rows(setting: Setting) -> list[Row]:
    """Each beside what it is asked to stay below; seconds, for there is nothing to compare with."""
    imports, helps, commands = [], [], []
    names = "dataset_to_zarr, dataset_from_zarr, Dataset"
    for _ in range(setting.n_pairs):
        base = _run_s("-c", "import dask.array, zarr")
        more = _run_s("-c", f"import dask.array, zarr; from ctlab_dask_zarr import {names}")
        imports.append(more - base)
        helps.append(_run_s("-m", "ctlab_dask_zarr.cli", "--help"))
        click = _run_s("-c", "import click")
        commands.append(_run_s("-c", "import click, ctlab_dask_zarr.cli") - click)
    return [
        Row("import of the writer, beyond dask and zarr", imports, "s", at_most=0.3),
        Row("ctlab-zarr --help", helps, "s", at_most=0.5),
        Row("import of the command, beyond click (each `dask` call)", commands, "s", at_most=0.05),
    ]


def convert_rows(setting: Setting) -> list[Row]:
    """The whole command on a scan of half a megabyte, with the workers it starts by itself."""
    source = data.make_netcdf(setting.folder, _TINY)
    out = os.path.join(setting.folder, "tiny.zarr")
    values = []
    for number in range(setting.n_pairs + 1):
        shutil.rmtree(out, ignore_errors=True)
        seconds = _run_s("-m", "ctlab_dask_zarr.cli", "convert", source, out, "-q")
        if number:
            values.append(seconds)
    shutil.rmtree(out)
    return [Row("`convert` of a scan of half a megabyte, whole command", values, "s", at_most=3.5)]


def first_level_rows(setting: Setting) -> list[Row]:
    """A write with levels on a machine that has never made any, and the next one."""
    first, after = [], []
    for _ in range(setting.n_pairs):
        with tempfile.TemporaryDirectory(dir=setting.folder) as home:
            fresh = {"HOME": home, "XDG_CACHE_HOME": home, "NUMBA_CACHE_DIR": f"{home}/numba"}
            for values in (first, after):
                values.append(
                    run_apart("benchmarks.start:levels_s", environment=fresh, folder=home)
                )
    note = f"the next one {statistics.median(after):.2f} s"
    return [Row("the first levels of a machine, tiny scan, after imports", first, "s", at_most=1.5,
                note=note)]  # fmt: skip


def levels_s(folder: str) -> float:
    """Return the seconds of a tiny write with three levels, with modules loaded."""
    import dask.array as da
    import distributed  # noqa: F401  dask loads it when it first looks for a scheduler

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    voxels = da.ones((_TINY,) * 3, chunks=_TINY, dtype="u2")
    dataset = Dataset(voxels, dimension_names=("z", "y", "x"), datatype="tomo", **VOXEL)
    out = os.path.join(folder, "levels.zarr")
    options = {"chunks": (8,) * 3, "shards": (32,) * 3, "overwrite": True}
    dataset_to_zarr(dataset, out, **options)
    start = time.perf_counter()
    dataset_to_zarr(dataset, out, levels=3, **options)
    return time.perf_counter() - start


JOBS: dict[str, Job] = {
    "start": start_rows,
    "convert-tiny": convert_rows,
    "first-levels": first_level_rows,
}
