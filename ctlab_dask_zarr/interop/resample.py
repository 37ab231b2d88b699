"""A volume with larger voxels, or with its grey values in another data type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.history import HistoryValue
from ctlab_dask_zarr.interop.derived import derived, facts_of, of_volume
from ctlab_dask_zarr.planning.levels import resolve_downsample
from ctlab_dask_zarr.volume import Volume

#: Percentiles are those of so many planes, from across the volume.
_N_PLANES = 16
#: Data types of mango that hold grey values of a dtype.
_GREY = {"uint16": DataType.TOMO, "float32": DataType.TOMO_FLOAT}
_TARGETS = ("uint8", "uint16", "float32")


def binned(volume: Volume, factor: int, method: str | None) -> Volume:
    """Return a volume of larger voxels: see `Dataset.binned`."""
    import dask.array as da

    if not isinstance(factor, int) or factor < 2 or factor & (factor - 1):
        raise InvalidArgumentError(f"factor={factor!r} is not 2, 4, 8 or another power of two")
    dtype = np.dtype(volume.dtype)
    way = resolve_downsample(method, dtype.kind, is_discrete=volume.is_discrete)
    factors = tuple(factor if n > 1 else 1 for n in volume.shape)
    # Blocks begin where a coarser voxel does, so that none needs two of them.
    chunks = zip(volume.data.chunks, factors, strict=True)
    blocks = tuple(tuple(_multiples(lengths, f)) for lengths, f in chunks)
    data = da.map_blocks(
        partial(_binned, factors, way, volume.mask_value),
        volume.data.rechunk(blocks),
        dtype=dtype,
        chunks=tuple(
            tuple(math.ceil(n / f) for n in lengths)
            for lengths, f in zip(blocks, factors, strict=True)
        ),
        meta=np.empty((0,) * volume.data.ndim, dtype),
    )
    edges = zip(volume.origin, volume.voxel_size, factors, strict=True)
    entry: dict[str, HistoryValue] = {"operation": "bin", "factor": factor, "method": way}
    return derived(
        volume,
        "bin",
        entry | of_volume(volume),
        data=data,
        voxel_size=[size * f for size, f in zip(volume.voxel_size, factors, strict=True)],
        # The centre of a voxel is in the middle of those that it covers.
        origin=[start + size * (f - 1) / 2 for start, size, f in edges],
    )


def _multiples(lengths: Sequence[int], factor: int) -> list[int]:
    """Return lengths of about the same blocks, each but the last a multiple of `factor`."""
    edges = sorted({round(stop / factor) * factor for stop in np.cumsum(lengths)[:-1].tolist()})
    edges = [0, *(edge for edge in edges if 0 < edge < sum(lengths)), sum(lengths)]
    return [stop - start for start, stop in pairwise(edges)]


def _binned(
    factors: tuple[int, ...], method: str, mask_value: Any, block: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    for _ in range(max(factors).bit_length() - 1):
        block = halve(block, tuple(min(f, 2) for f in factors), method, mask_value)
    return block


def rescaled(
    volume: Volume,
    dtype: Any,
    window: Sequence[float] | None,
    values: Sequence[float] | None,
) -> Volume:
    """Return a volume with its grey values in another dtype: see `Dataset.rescaled`."""
    import dask.array as da

    target = np.dtype(dtype)
    if target.name not in _TARGETS:
        raise InvalidArgumentError(f"dtype={dtype!r} is none of {', '.join(_TARGETS)}")
    if volume.is_discrete:
        raise InvalidArgumentError("the voxels are classes: another scale of them means nothing")
    if window is not None and values is not None:
        raise InvalidArgumentError("window= and values= both say which greys to keep: give one")
    kind = _GREY.get(target.name)
    old_mask, may_be_masked = volume.mask_value, np.dtype(volume.dtype).kind == "f"
    may_be_masked = may_be_masked or old_mask is not None
    low, high = 0.0, 1.0
    if target.kind == "f":
        if window is not None or values is not None:
            raise InvalidArgumentError("floats keep their values: leave window= and values= out")
        bounds: tuple[float, float] | None = None
        new_mask = (
            kind.mask_value if kind is not None and old_mask is not None else np.float32("nan")
        )
    else:
        low, high = _limits(volume, window, values)
        new_mask, bounds = _integers(target, kind, may_be_masked)
    data = da.map_blocks(
        partial(_rescaled, target, (low, high), bounds, old_mask, new_mask),
        volume.data,
        dtype=target,
        meta=np.empty((0,) * volume.data.ndim, target),
    )
    entry: dict[str, HistoryValue] = {"operation": "rescale", "dtype": target.name}
    if bounds is not None:
        entry |= {"values": [low, high], "become": [bounds[0], bounds[1]]}
        if may_be_masked and new_mask is not None:
            entry["masked"] = int(new_mask)
        if window is not None:
            entry["percentiles"] = [float(part) for part in window]
    if kind is None:
        facts = facts_of(volume) | {"datatype": None}
        volume = Volume(volume.data, **facts)
    return derived(volume, "rescale", entry | of_volume(volume), data=data, datatype=kind)


def _integers(
    target: np.dtype[Any], kind: DataType | None, may_be_masked: bool
) -> tuple[Any, tuple[int, int]]:
    """Return the value of masked voxels, and the range of the others."""
    top = int(np.iinfo(target).max)
    if kind is not None:
        return kind.mask_value, (0, top - 1)
    # mango has no data type of grey values of 8 bits, and none that says which are masked.
    return (target.type(0), (1, top)) if may_be_masked else (None, (0, top))


def _limits(
    volume: Volume, window: Sequence[float] | None, values: Sequence[float] | None
) -> tuple[float, float]:
    """Return the values that become the smallest and the largest one."""
    name, given = ("values", values) if values is not None else ("window", window or (0.0, 100.0))
    try:
        low, high = (float(part) for part in given)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}={given!r} is not two numbers") from error
    if not low < high or (name == "window" and not (low >= 0 and high <= 100)):
        limits = ", percentiles from 0 to 100" if name == "window" else ""
        raise InvalidArgumentError(f"{name}={given!r} is not a lower and a higher number{limits}")
    if name == "values":
        return low, high
    n = len(volume.data)
    planes = sorted({round(part * (n - 1)) for part in np.linspace(0, 1, min(n, _N_PLANES))})
    sample = np.asarray(volume.data[planes]).reshape(-1)
    valid = sample if volume.mask_value is None else sample[sample != volume.mask_value]
    valid = valid[np.isfinite(valid)] if valid.dtype.kind == "f" else valid
    if not valid.size:
        raise InvalidArgumentError("all voxels of the sample are masked: give values= instead")
    first, last = (float(part) for part in np.percentile(valid, (low, high)))
    if not first < last:
        raise InvalidArgumentError(
            f"the percentiles {low:g} and {high:g} are both {first:g}: give values= instead"
        )
    return first, last


def _rescaled(
    target: np.dtype[Any],
    limits: tuple[float, float],
    bounds: tuple[float, float] | None,
    old_mask: Any,
    new_mask: Any,
    block: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    masked = np.zeros(block.shape, bool) if old_mask is None else block == old_mask
    if block.dtype.kind == "f":
        masked |= np.isnan(block)
    if bounds is None:
        out = block.astype(target)
    else:
        scale = (bounds[1] - bounds[0]) / (limits[1] - limits[0])
        with np.errstate(invalid="ignore"):
            grey = (block.astype(np.float64) - limits[0]) * scale + bounds[0]
            out = np.clip(np.floor(grey + 0.5), *bounds, out=grey).astype(target)
    if new_mask is not None:
        out[masked] = new_mask
    return out
