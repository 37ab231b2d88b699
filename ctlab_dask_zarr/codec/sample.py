"""A sample of a stored array's voxels, for a contrast that suits them."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.store import Store

__all__ = ["contrast_of", "sample_voxels", "valid_voxels"]

#: Grey levels run between these percentiles of the voxels that are not masked.
_PERCENTILES = (0.5, 99.5)
#: Arrays up to this size are read whole: a level of 256**3.
_WHOLE_SIZE = 256**3
#: Of a larger one, so many inner chunks along each axis.
_N_CHUNKS = 4
#: Percentiles are taken of no more voxels than this.
_MAX_VOXELS = 2**20


def sample_voxels(store: Store, path: str, array: StoredArray) -> npt.NDArray[Any]:
    """Return voxels from all over an array, flat: all of a small one, some chunks of a large."""
    if prod(array.shape) <= _WHOLE_SIZE:
        regions = [tuple(slice(0, n) for n in array.shape)]
    else:
        axes = []
        for n, c in zip(array.shape, array.inner_chunk_shape, strict=True):
            n_chunks = -(-n // c)
            numbers = {(2 * k + 1) * n_chunks // (2 * _N_CHUNKS) for k in range(_N_CHUNKS)}
            axes.append([slice(k * c, min((k + 1) * c, n)) for k in sorted(numbers)])
        regions = list(product(*axes))
    voxels = [read_region(store, path, array, region, strict=False).ravel() for region in regions]
    sample = np.concatenate(voxels)
    return sample[:: -(-sample.size // _MAX_VOXELS)]


def valid_voxels(voxels: npt.NDArray[Any], mask_value: Number | None) -> npt.NDArray[np.bool_]:
    """Return which voxels are finite and not masked."""
    valid: npt.NDArray[np.bool_] = np.isfinite(voxels)
    return valid if mask_value is None else valid & (voxels != mask_value)


def contrast_of(voxels: npt.NDArray[Any], mask_value: Number | None) -> tuple[float, float]:
    """Return the grey levels of black and white for some voxels; black is below white.

    Examples
    --------
    >>> contrast_of(np.arange(1001), None)
    (5.0, 995.0)
    >>> contrast_of(np.array([7, 7, 9]), 9)
    (6.5, 7.5)
    """
    values = voxels[valid_voxels(voxels, mask_value)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, _PERCENTILES))
    if high <= low:
        # All voxels have one value, or nearly so: it is shown in medium grey.
        half = max(0.5, abs(low) * 1e-6)
        return low - half, low + half
    return low, high
