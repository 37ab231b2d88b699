"""Whether a dataset has the voxels and the metadata of its source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ctlab_dask_zarr.codec.values import voxel_difference
from ctlab_dask_zarr.errors import BlockError, CTLabError
from ctlab_dask_zarr.execution.graphs import accepted_block
from ctlab_dask_zarr.formats.mango import CARRIED_DEFAULTS
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.units import are_same_positions, are_same_sizes
from ctlab_dask_zarr.read.zarr import ZarrSource
from ctlab_dask_zarr.volume import VOXEL_DERIVED_FIELDS, Volume

__all__ = ["block_problems", "metadata_differences", "native"]


def metadata_differences(found: Volume, source: Volume) -> Iterator[Problem]:
    """Yield what of the source's metadata did not carry over."""
    for name in ("shape", "dimension_names", "voxel_unit"):
        yield from _difference(name, getattr(found, name), getattr(source, name))
    yield from _difference("dtype", native(found.dtype), native(source.dtype))
    if not are_same_sizes(found.voxel_size, source.voxel_size):
        yield from _difference("voxel_size", found.voxel_size, source.voxel_size)
    origin = getattr(source, "origin", ())
    if any(origin) and not are_same_positions(found.origin, origin, found.voxel_size):
        yield from _difference("origin", found.origin, origin)
    # A write may add what the source does not know.
    for key, entry in source.history.items():
        yield from _difference(f"history[{key!r}]", found.history.get(key), entry)
    if getattr(source, "datatype", None) == found.datatype and hasattr(source, "is_discrete"):
        yield from _difference("is_discrete", found.is_discrete, source.is_discrete)
    for name in ("datatype", "dataset_id"):
        wanted = getattr(source, name, None)
        if wanted is not None:
            yield from _difference(name, getattr(found, name), wanted)
    extra = getattr(source, "extra_attrs", {})
    for name in sorted(extra.keys() - VOXEL_DERIVED_FIELDS):
        default = CARRIED_DEFAULTS.get(name)
        yield from _difference(name, found.extra_attrs.get(name, default), extra[name])


def native(dtype: Any) -> np.dtype[Any]:
    """Return a dtype in the machine's byte order, which is no matter of what voxels are."""
    found: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return found


def _difference(name: str, found: Any, wanted: Any) -> Iterator[Problem]:
    # Compared as JSON keeps them: a tuple is a list.
    if str(_plain(found)) != str(_plain(wanted)):
        yield Problem(
            "metadata", "metadata", f"{name} is {_short(found)}, the source has {_short(wanted)}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def block_problems(
    volume: ZarrSource,
    mask_value: Number | None,
    start: tuple[int, ...],
    shape: tuple[int, ...],
    block: Any,
) -> list[Problem]:
    """Compare a block of the source with the same region of the dataset, bit by bit.

    Voxels that a masked array masks are to have the dataset's `mask_value`.
    """
    region = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    place = f"voxels {', '.join(f'{r.start}:{r.stop}' for r in region)}"
    try:
        wanted = accepted_block(block, start, shape, volume.dtype, mask_value)
    except BlockError as error:
        return [Problem(place, "source", f"source: {error}")]
    try:
        found = volume[region]
    except (CTLabError, OSError) as error:
        return [Problem(place, "unreadable", f"{place} cannot be read: {error}")]
    difference = voxel_difference(found, wanted, start)
    return [] if difference is None else [Problem(place, "voxels", difference)]
