"""An interrupted write knows a source of any kind again, and refuses one that is another now."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nrrd
import numpy as np
import pytest
import tifffile

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    dataset_from_zarr,
    dataset_to_zarr,
    verify,
    write_dataset,
)
from tests.builders import random_voxels, write_without_commit

VOXELS = random_voxels((16, 16, 32))
SMALL: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 16, 16)}


def slices(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    for number, page in enumerate(VOXELS):
        tifffile.imwrite(folder / f"s{number:03d}.tif", page)
    return folder, folder / "s003.tif", {}


def pages(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    path = folder / "a.tif"
    tifffile.imwrite(path, VOXELS, compression="zlib")
    return path, path, {}


def hdf5(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=VOXELS, chunks=(1, 16, 32), compression="gzip")
    return path, path, {}


def gzipped(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    path = folder / "a.nrrd"
    nrrd.write(str(path), VOXELS, {"encoding": "gzip"}, index_order="C")
    return path, path, {}


def detached(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    nrrd.write(str(folder / "a.nhdr"), VOXELS, {"encoding": "raw"}, index_order="C")
    return folder / "a.nhdr", folder / "a.raw", {}


def raw(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    path = folder / "a.vol"
    VOXELS.tofile(path)
    return path, path, {"shape": VOXELS.shape, "dtype": "uint16"}


KINDS: list[Callable[[Path], tuple[Path, Path, dict[str, Any]]]] = [
    slices, pages, hdf5, gzipped, detached, raw,
]  # fmt: skip


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
def test_a_write_goes_on_with_the_same_source_and_with_no_other(
    tmp_path: Path, make: Callable[[Path], tuple[Path, Path, dict[str, Any]]]
) -> None:
    (tmp_path / "in").mkdir()
    path, file, options = make(tmp_path / "in")

    def opened() -> Dataset:
        return Dataset.from_path(path, voxel_size=2.5, voxel_unit="um", **options)

    store = tmp_path / "a.zarr"
    graph = dataset_to_zarr(opened(), store, compute=False, **SMALL)
    assert graph is not None
    write_without_commit(graph)
    found = file.stat()
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
    with pytest.raises(CTLabError, match="source"):
        write_dataset(opened(), store, resume=True, **SMALL)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    result = write_dataset(opened(), store, resume=True, **SMALL)
    assert (result.n_resumed, result.n_shards) == (4, 4)
    np.testing.assert_array_equal(dataset_from_zarr(store).data.compute(), VOXELS)
    assert not verify(store, opened())
