"""The slices through the middle of a volume as a plot of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctlab_dask_zarr.codec.values import contrast_of, valid_voxels
from ctlab_dask_zarr.errors import InvalidArgumentError, MissingExtraError
from ctlab_dask_zarr.text import install_text
from ctlab_dask_zarr.views.slices import extents_of, read_mid_slices
from ctlab_dask_zarr.volume import Volume


def plot(volume: Volume, axes: Any, size: int, imshow: Mapping[str, Any]) -> Any:
    """Plot a volume: see `Dataset.plot`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(f"a plot needs matplotlib: {install_text('plot')}") from error
    if size < 1 or 0 in volume.shape:
        raise InvalidArgumentError(f"{volume!r} has no voxels to plot at size={size}")
    slices = read_mid_slices(volume, max(extents_of(volume)) / size)
    if axes is None:
        width = 4.5 * len(slices)
        _, axes = plt.subplots(1, len(slices), figsize=(width, 4.5), layout="constrained")
    axes = np.atleast_1d(np.asarray(axes, dtype=object))
    if len(axes) != len(slices):
        raise InvalidArgumentError(f"axes are {len(axes)}, and the volume has {len(slices)} slices")
    for ax, part in zip(axes, slices, strict=True):
        valid = valid_voxels(part.voxels, volume.mask_value)
        shown = np.ma.masked_array(part.voxels, mask=~valid)
        options: dict[str, Any] = {"cmap": "tab20" if volume.is_discrete else "gray"}
        if not volume.is_discrete and valid.any():
            options["vmin"], options["vmax"] = contrast_of(part.voxels, volume.mask_value)
        ax.imshow(shown, extent=_extent(volume, part), **(options | dict(imshow)))
        down, right = (volume.dimension_names[axis] for axis in part.axes)
        ax.set_xlabel(f"{right} ({volume.voxel_unit})")
        ax.set_ylabel(f"{down} ({volume.voxel_unit})")
        if part.cut_axis is not None:
            middle = volume.shape[part.cut_axis] // 2 * volume.voxel_size[part.cut_axis]
            position = volume.origin[part.cut_axis] + middle
            name = volume.dimension_names[part.cut_axis]
            ax.set_title(f"{name} = {position:.6g} {volume.voxel_unit}")
    return axes


def _extent(volume: Volume, part: Any) -> tuple[float, ...]:
    """Return the edges of a slice: left, right, bottom, top. Positions are those of centres."""
    down, right = (
        (start, start + volume.shape[axis] * volume.voxel_size[axis])
        for axis in part.axes
        for start in (volume.origin[axis] - volume.voxel_size[axis] / 2,)
    )
    return (right[0], right[1], down[1], down[0])
