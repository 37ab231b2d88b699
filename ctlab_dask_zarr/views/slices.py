"""The mid-slices of a volume, read at the resolution at which they will be seen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.read.zarr import ZarrVolume, read_store_metadata, volume_of
from ctlab_dask_zarr.volume import Volume

__all__ = ["Level", "Slice", "dataset_levels", "read_mid_slices", "valid_voxels"]


@dataclass(frozen=True)
class Level:
    """One resolution of a volume.

    Attributes
    ----------
    array
        A stored or a dask array; only what is sliced from it is read.
    voxel_size
        One edge length an axis, in the dataset's unit.
    """

    array: Any
    voxel_size: tuple[float, ...]


@dataclass(frozen=True)
class Slice:
    """A cut through the middle of a volume.

    Attributes
    ----------
    cut_axis
        The axis that the cut is perpendicular to; None where the dataset is an image.
    axes
        The two axes that it shows, downwards and to the right.
    voxels
        Of two axes.
    voxel_size
        Along these two axes.
    """

    cut_axis: int | None
    axes: tuple[int, int]
    voxels: npt.NDArray[Any]
    voxel_size: tuple[float, float]


def dataset_levels(dataset: Volume) -> tuple[Level, ...]:
    """Return the levels that a dataset has been opened with, its own first.

    Only a dataset that is as its store says has others; what was computed has one.
    """
    source = dataset.source
    if not isinstance(source, ZarrVolume):
        return (Level(dataset.data, dataset.voxel_size),)
    source.check_unchanged()
    metadata = read_store_metadata(source.path, source.files)
    paths = [path for path, _ in metadata.arrays]
    if metadata.ome is None or source.array_path not in paths:
        return (Level(source, dataset.voxel_size),)
    first = paths.index(source.array_path)
    # By its ratio: the voxel size may have been corrected after opening.
    finest = metadata.ome.levels[first].scale
    return tuple(
        Level(
            volume_of(metadata, number, strict=source.strict),
            tuple(
                v * s / f for v, s, f in zip(dataset.voxel_size, level.scale, finest, strict=True)
            ),
        )
        for number, level in enumerate(metadata.ome.levels[first:], first)
    )


def coarsest_sufficient(levels: Sequence[Level], pixel_size: float) -> Level:
    """Return the smallest level whose voxels are no longer than a pixel.

    Along an axis whose voxels are longer than a pixel to begin with, they must not become longer
    still.
    """
    longest = [max(pixel_size, v) * (1 + 1e-6) for v in levels[0].voxel_size]
    sufficient = [
        level
        for level in levels
        if all(v <= limit for v, limit in zip(level.voxel_size, longest, strict=True))
    ]
    return min(sufficient, key=lambda level: int(np.prod(level.array.shape)))


def read_mid_slices(dataset: Volume, pixel_size: float) -> tuple[Slice, ...]:
    """Read the slices through the middle of a volume, perpendicular to each axis.

    Parameters
    ----------
    dataset
        Three axes, or two: then the image itself is the only slice.
    pixel_size
        Edge length, in the dataset's unit, that a pixel of the picture will have. The coarsest
        level is read that is as fine as that, and only the inner chunks that the slices cross.
    """
    levels = dataset_levels(dataset)
    level = coarsest_sufficient(levels, pixel_size)
    finest = levels[0]

    def read(cut_axis: int | None) -> Slice:
        axes = tuple(axis for axis in range(len(level.voxel_size)) if axis != cut_axis)
        index: list[Any] = [slice(None)] * len(level.voxel_size)
        if cut_axis is not None:
            # The same place in the sample, whatever the level.
            middle = (finest.array.shape[cut_axis] // 2 + 0.5) * finest.voxel_size[cut_axis]
            n = level.array.shape[cut_axis]
            index[cut_axis] = min(int(middle / level.voxel_size[cut_axis]), n - 1)
        voxels = np.asarray(level.array[tuple(index)])
        down, right = axes
        return Slice(
            cut_axis, (down, right), voxels, (level.voxel_size[down], level.voxel_size[right])
        )

    cut_axes = [None] if len(level.voxel_size) == 2 else list(range(len(level.voxel_size)))
    # Decoding releases the interpreter lock, and a slice across all shards is many chunks.
    with ThreadPoolExecutor(len(cut_axes)) as pool:
        return tuple(pool.map(read, cut_axes))


def valid_voxels(voxels: npt.NDArray[Any], mask_value: Any) -> npt.NDArray[np.bool_]:
    """Return which voxels are finite and not masked."""
    valid: npt.NDArray[np.bool_] = np.isfinite(voxels)
    return valid if mask_value is None else valid & (voxels != mask_value)
