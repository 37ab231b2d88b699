"""Datasets for tests."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from ctlab_dask_zarr import Dataset


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
