"""A source as a lazy dask array: its blocks, and the region that an index asks for."""

from __future__ import annotations

import hashlib
import json
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da

    from ctlab_dask_zarr.volume import Source


def lazy_array(
    source: Source,
    kind: str,
    chunks: Any,
    options: dict[str, Any],
    *,
    reads_together: bool = False,
) -> da.Array:
    """Return a source as a dask array; nothing is read.

    Its name begins with `kind` and is made of the source's identity and blocks, so that opening it
    again gives the same name. `options` are further ones of `dask.array.from_array`. A source that
    `reads_together` reads a region of many blocks faster than tasks would.
    """
    # Not for workers, which slice the source alone.
    import dask.array as da

    blocks = da.core.normalize_chunks(chunks, source.shape, dtype=source.dtype)
    fingerprint = json.dumps([source.location, source.identity(), repr(blocks)])
    defaults = {
        "chunks": blocks,
        "name": f"{kind}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:32]}",
        "asarray": False,
        "meta": np.empty((0,) * len(source.shape), source.dtype),
    }
    array: da.Array = da.from_array(source, **(defaults | options))
    if reads_together:
        from ctlab_dask_zarr.read.source_array import SourceArray

        array = SourceArray.of(array, source, tuple(map(range, source.shape)))
    return array


def split_index(index: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Split a NumPy index into the region to read and the index to apply to what was read.

    The region is one slice of step 1 an axis. The index has integers, slices of any step and an
    Ellipsis; dask asks for nothing else.

    Examples
    --------
    >>> split_index((3, slice(None, None, -2)), (10, 5))
    ((slice(3, 4, 1), slice(0, 5, 1)), (0, slice(4, None, -2)))
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) != len(shape):
        raise IndexError(f"{len(parts)} indices for an array with {len(shape)} axes")
    region: list[slice] = []
    rest: list[Any] = []
    for part, n in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            wanted = range(*part.indices(n))
            low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
            region.append(slice(low, high, 1))
            if wanted and wanted.step < 0:
                rest.append(slice(high - low - 1, None, wanted.step))
            else:
                rest.append(slice(None, None, wanted.step))
        else:
            number = operator.index(part)
            if not -n <= number < n:
                raise IndexError(f"index {number} is outside an axis of length {n}")
            number %= n
            region.append(slice(number, number + 1, 1))
            rest.append(0)
    return tuple(region), tuple(rest)
