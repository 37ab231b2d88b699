"""The slices through the middle of a volume, at the resolution at which they will be seen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.read.zarr import read_store_metadata, source_of
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.volume import Volume


@dataclass(frozen=True)
class Slice:
    """A cut through the middle of a volume, perpendicular to `cut_axis` (None: a whole image).

    `axes` run downwards and to the right; `voxel_size` is along them.
    """

    cut_axis: int | None
    axes: tuple[int, int]
    voxels: npt.NDArray[Any]
    voxel_size: tuple[float, float]


def levels_of(volume: Volume) -> tuple[Level, ...]:
    """Return the level that a volume was opened at and all coarser ones, in its voxel size.

    A volume that differs from its store, for example because it was computed, is its only level.
    """
    source = volume.source
    if not isinstance(source, ZarrSource):
        ones = (1,) * len(volume.shape)
        return (Level("", volume.shape, ones, volume.voxel_size, volume.origin),)
    first = [level.path for level in source.levels].index(source.array_path)
    finest = source.levels[first].voxel_size

    def in_its_size(level: Level) -> Level:
        # The voxel size may have been corrected after the volume was opened.
        sizes = zip(volume.voxel_size, level.voxel_size, finest, strict=True)
        return replace(level, voxel_size=tuple(v * size / f for v, size, f in sizes))

    return tuple(map(in_its_size, source.levels[first:]))


def extents_of(volume: Volume) -> list[float]:
    """Return the length of a volume along each axis, in its voxel unit."""
    return [n * v for n, v in zip(volume.shape, volume.voxel_size, strict=True)]


def coarsest_sufficient(levels: Sequence[Level], pixel_size: float) -> Level:
    """Return the smallest level whose voxels are no longer than a pixel.

    If voxels of the finest level are longer than a pixel along an axis, no longer ones are chosen.
    """
    longest = [max(pixel_size, v) * (1 + 1e-6) for v in levels[0].voxel_size]
    sufficient = [
        level
        for level in levels
        if all(v <= limit for v, limit in zip(level.voxel_size, longest, strict=True))
    ]
    return min(sufficient, key=lambda level: prod(level.shape))


def read_mid_slices(volume: Volume, pixel_size: float) -> tuple[Slice, ...]:
    """Read the slices through the middle of a volume, perpendicular to each axis.

    They are read from the coarsest level whose voxels are no longer than `pixel_size` (in the
    volume's unit), and only the inner chunks that they cross are read. An image of two axes is its
    only slice.
    """
    level = coarsest_sufficient(levels_of(volume), pixel_size)
    array = array_of(volume, level)
    cut_axes = [None] if len(level.shape) == 2 else list(range(len(level.shape)))
    # Decoding releases the interpreter lock, and a slice across all shards is many chunks.
    with ThreadPoolExecutor(len(cut_axes)) as pool:
        return tuple(pool.map(lambda axis: read_slice(volume, level, array, axis), cut_axes))


def array_of(volume: Volume, level: Level) -> Any:
    """Return a level of a volume to slice; only what is sliced is read."""
    source = volume.source
    if not isinstance(source, ZarrSource):
        return volume.data
    if level.path == source.array_path:
        return source
    source.check_unchanged()
    metadata = read_store_metadata(source.location, source.store.files)
    number = [path for path, _ in metadata.arrays].index(level.path)
    return source_of(metadata, number, strict=source.strict)


def read_slice(volume: Volume, level: Level, array: Any, cut_axis: int | None) -> Slice:
    """Read one slice of a level, through the same place of the sample on every level."""
    axes = [axis for axis in range(len(level.shape)) if axis != cut_axis]
    index: list[Any] = [slice(None)] * len(level.shape)
    if cut_axis is not None:
        middle = (volume.shape[cut_axis] // 2 + 0.5) * volume.voxel_size[cut_axis]
        number = int(middle / level.voxel_size[cut_axis])
        index[cut_axis] = min(number, level.shape[cut_axis] - 1)
    down, right = axes
    sizes = level.voxel_size[down], level.voxel_size[right]
    return Slice(cut_axis, (down, right), np.asarray(array[tuple(index)]), sizes)


def grey_levels(
    values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], contrast: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """Return values as greys from 0 to 255; those that are not valid are black."""
    low, high = contrast
    scaled = (np.where(valid, values, low).astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
