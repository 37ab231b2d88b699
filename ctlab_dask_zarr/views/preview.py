"""A picture of a volume: its three orthogonal mid-slices."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.errors import InvalidArgumentError

__all__ = ["save_slices"]

_GAP_PIXELS = 8
#: Contrast runs between these percentiles of the voxels that are not masked.
_PERCENTILES = (0.5, 99.5)
_BACKGROUND = 255


def save_slices(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Save the mid-slices along z, y and x side by side as a picture.

    Only the inner chunks that the slices cross are read. The grey levels run from the 0.5th to
    the 99.5th percentile of the voxels that are not masked; masked voxels are white.

    Parameters
    ----------
    dataset
        Three axes.
    path
        The picture to write; its ending says the format, for example ``.png``.
    """
    if len(dataset.shape) != 3:
        raise InvalidArgumentError(f"{dataset!r} has no three axes to cut slices along")
    middle = [n // 2 for n in dataset.shape]
    slices = [
        np.asarray(dataset.data[middle[0]].compute()),
        np.asarray(dataset.data[:, middle[1]].compute()),
        np.asarray(dataset.data[:, :, middle[2]].compute()),
    ]
    valid = [_valid(part, dataset.mask_value) for part in slices]
    voxels = np.concatenate([part[ok] for part, ok in zip(slices, valid, strict=True)])
    low, high = np.percentile(voxels, _PERCENTILES) if voxels.size else (0.0, 1.0)
    pictures = [_grey(part, ok, low, high) for part, ok in zip(slices, valid, strict=True)]
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + 2 * _GAP_PIXELS
    canvas = np.full((height, width), _BACKGROUND, np.uint8)
    x = 0
    for picture in pictures:
        canvas[: picture.shape[0], x : x + picture.shape[1]] = picture
        x += picture.shape[1] + _GAP_PIXELS
    Image.fromarray(canvas).save(path)


def _valid(voxels: npt.NDArray[Any], mask_value: Any) -> npt.NDArray[np.bool_]:
    valid = np.isfinite(voxels)
    return valid if mask_value is None else valid & (voxels != mask_value)


def _grey(
    voxels: npt.NDArray[Any], valid: npt.NDArray[np.bool_], low: float, high: float
) -> npt.NDArray[np.uint8]:
    scaled = (voxels.astype(np.float64) - low) / max(high - low, 1e-30)
    grey = (np.clip(np.nan_to_num(scaled), 0, 1) * 254).astype(np.uint8)
    return np.where(valid, grey, np.uint8(_BACKGROUND))
