"""Datasets for tests, and the command line within them."""

from __future__ import annotations

import copy
import pickle
import subprocess
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
from click.testing import CliRunner
from dask.delayed import Delayed

from ctlab_dask_zarr import Dataset
from ctlab_dask_zarr.cli import main


def make_dataset(voxels: np.ndarray, blocks: Any = -1, **options: Any) -> Dataset:
    """A dataset with anisotropic voxels, so that a swapped axis order is seen."""
    ndim = voxels.ndim
    settings: dict[str, Any] = {
        "dimension_names": ("z", "y", "x")[-ndim:],
        "voxel_unit": "um",
        "voxel_size": (3.0, 2.0, 1.5)[-ndim:],
    }
    if voxels.dtype == np.uint16:
        settings["datatype"] = "tomo"
    data = voxels if isinstance(voxels, da.Array) else da.from_array(voxels, chunks=blocks)
    return Dataset(data, **(settings | options))


def random_voxels(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def write_without_commit(graph: Delayed) -> None:
    """Do all of a write but its last task, as where its process dies before the commit."""
    tasks = dict(graph.dask)
    dask.get(tasks, list(tasks[graph.key].dependencies))


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `ctlab-zarr` within this process: to start one takes longer than most commands."""
    words = ["ctlab-zarr", *map(str, arguments)]
    done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


#: A voxel size for sources that do not say theirs.
UM: dict[str, Any] = {"voxel_size": 2.5, "voxel_unit": "um"}


def assert_opens_as(path: Any, voxels: np.ndarray, **options: Any) -> Dataset:
    """Open a source whose voxels are these, as a whole and in parts, also in another process."""
    scan = Dataset.from_path(path, **(UM | options))
    assert scan.dtype == voxels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(scan.data.compute(scheduler="synchronous"), voxels)
    source = pickle.loads(pickle.dumps(scan.source))
    for region in np.s_[1, :, :], np.s_[2:5, 7:31, 11:12], np.s_[:, 3, ::-2], np.s_[0:0]:
        np.testing.assert_array_equal(source[region], voxels[region])
    return scan


def with_voxels(dataset: Dataset, data: Any) -> Dataset:
    """Return a dataset that says the same of other voxels, its name and history included."""
    names = (
        *("dimension_names", "voxel_unit", "voxel_size", "datatype", "history", "dataset_id"),
        *("extra_attrs", "is_discrete"),
    )
    return Dataset(data, **{name: getattr(dataset, name) for name in names})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every part of a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a JSON document with another value at a path, or without it for an Ellipsis."""
    document = copy.deepcopy(document)
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = copy.deepcopy(value)
    return document
