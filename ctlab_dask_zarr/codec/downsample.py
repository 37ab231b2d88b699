"""From the voxels of one level to those of the next: mean, mode, nearest or max, with the mask.

A voxel of a level has as parents the voxels of the finer level that it covers: two along an axis
that is halved, one along another, and one at the end of an axis with an odd number of them.

The rules:

- A voxel is masked where at least half of its parents are. A parent is masked where it has the mask
  value, or is NaN; a masked voxel gets the mask value, or NaN where the data type has none.
- ``mean``: of the parents that are not masked, rounded half up for integers. A mean that would be
  the mask value itself, as may happen where that lies among the data, is the first such parent.
- ``mode``: the most frequent parent that is not masked; of several the smallest.
- ``max``: the largest parent that is not masked.
- ``nearest``: the first parent, masked or not.

The loops are compiled by numba (`kernels`). That takes seconds, once on each machine; another
process does it, and until it is done, and for small volumes altogether, NumPy is used (`plain`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.plain import halve_plainly, takes
from ctlab_dask_zarr.codec.values import MIXED, PLAIN, SUMMABLE, UNIFORM
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import grid_of

#: What the compiled code calls the methods.
METHOD_CODES = {"mean": 0, "mode": 1, "nearest": 2, "max": 3}
#: The mean of 64-bit integers and of huge floats: no type holds the sum of eight of them.
WIDE_MEAN = 4
#: So many voxels a process halves by NumPy before it loads numba, which takes half a second.
N_BEFORE_COMPILING = 1 << 24
_n_halved = 0


def halve(
    block: npt.NDArray[Any], factors: Shape, method: str, mask_value: Any
) -> npt.NDArray[Any]:
    """Return a block at half the resolution along the axes whose factor is 2.

    It has two or three axes, and begins at an even voxel along each axis that is halved. Masked
    voxels have `mask_value`, None where the data type has none.

    Examples
    --------
    >>> halve(np.array([[1, 2, 9], [4, 65535, 9]], "uint16"), (2, 2), "mean", 65535)
    array([[2, 9]], dtype=uint16)
    """
    out = np.empty(grid_of(block.shape, factors), block.dtype)
    chunks = np.ascontiguousarray(block).reshape((1,) * block.ndim + block.shape)
    flags = np.full(1, MIXED, np.uint8)
    halve_chunks(chunks, flags, block.shape, factors, method, mask_value, out, (0,) * block.ndim)
    return out


def halve_chunks(
    chunks: npt.NDArray[Any],
    flags: npt.NDArray[np.uint8],
    extent: Shape,
    factors: Shape,
    method: str,
    mask_value: Any,
    out: npt.NDArray[Any],
    origin: Shape,
) -> None:
    """Halve a block that is cut into chunks, as `halve` does.

    `chunks` has the shape (number of chunks along each axis, edges of a chunk); what lies beyond
    `extent` does not count. Edges are even along each halved axis with more than one chunk. `flags`
    say whether a chunk is `PLAIN`, `UNIFORM` or `MIXED`. The result, of the shape
    ``ceil(extent / factors)``, is put into `out` at `origin`. Both arrays are contiguous.
    """
    ndim, dtype = out.ndim, chunks.dtype
    shape = grid_of(extent, factors)
    if any(not 0 <= o <= m - n for o, n, m in zip(origin, shape, out.shape, strict=True)):
        # The compiled code would write there all the same.
        raise IndexError(f"{extent} halved at {origin} is not inside of {out.shape}")
    if dtype == np.float16:
        # numba has no such type on a CPU; float32 holds every value of it, and more of a mean.
        wide, chunks = np.empty(shape, np.float32), chunks.astype(np.float32)
        halve_chunks(chunks, flags, extent, factors, method, mask_value, wide, (0,) * ndim)
        out[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))] = wide
        return
    grid, edges = chunks.shape[:ndim], chunks.shape[ndim:]
    one, none = (1,) * (3 - ndim), (0,) * (3 - ndim)
    mask = np.nan if mask_value is None and dtype.kind == "f" else mask_value
    arguments = (
        chunks.reshape(one + grid + one + edges),
        flags,
        one + extent,
        one + factors,
        WIDE_MEAN if method == "mean" and _is_wide(chunks, flags) else METHOD_CODES[method],
        None if mask is None else dtype.type(mask),
        _zero(dtype),
        out.reshape(one + out.shape),
        none + origin,
    )
    kernel = _kernel_for(arguments)
    if kernel is not None:
        kernel(*arguments)
        return
    order = [i + k * ndim for i in range(ndim) for k in (0, 1)]
    whole = tuple(n * c for n, c in zip(grid, edges, strict=True))
    block = chunks.transpose(order).reshape(whole)[tuple(map(slice, extent))]
    may_be_masked = bool((flags != PLAIN).any())
    voxels = halve_plainly(block, factors, method, arguments[5], may_be_masked=may_be_masked)
    voxels = voxels.reshape(shape)
    if dtype.kind == "f" and (flags == UNIFORM).any():
        # A mean of -0.0 is 0.0, but such a chunk is taken as it is.
        of_chunks = zip(shape, factors, edges, strict=True)
        where = np.ix_(*(np.arange(n) * f // edge for n, f, edge in of_chunks))
        first = block[tuple(slice(None, None, f) for f in factors)]
        voxels = np.where((flags == UNIFORM).reshape(grid)[where], first, voxels)
    out[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))] = voxels


def _kernel_for(arguments: tuple[Any, ...]) -> Any | None:
    """Return the compiled kernel for these arguments; None while it is not worth to wait for it."""
    global _n_halved
    is_plain = takes(arguments[0].dtype)
    _n_halved += arguments[0].size
    if is_plain and _n_halved <= N_BEFORE_COMPILING:
        return None
    from ctlab_dask_zarr.codec.compiled import kernel_for

    return kernel_for(arguments, waits=not is_plain)


def _is_wide(chunks: npt.NDArray[Any], flags: npt.NDArray[np.uint8]) -> bool:
    """Whether eight voxels may add up to more than any type holds.

    `ValueRange.add` calls chunks with huge floats mixed; others are not looked at.
    """
    if chunks.dtype.kind != "f" or chunks.itemsize < 8:
        return chunks.itemsize == 8
    if not (flags == MIXED).any():
        return False
    lowest, highest = np.fmin.reduce(chunks, axis=None), np.fmax.reduce(chunks, axis=None)
    return bool(max(-lowest, highest) > SUMMABLE)


def _zero(dtype: np.dtype[Any]) -> Any:
    """Return the zero of the type that eight voxels are added up in."""
    if dtype.kind == "f":
        return np.float64(0)
    if dtype.itemsize == 8:
        return dtype.type(0)
    return np.int64(0) if dtype.itemsize == 4 else np.int32(0)
