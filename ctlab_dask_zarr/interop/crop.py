"""A part of a volume as a volume of its own: by voxels, or by positions."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.history import HistoryValue
from ctlab_dask_zarr.interop.derived import derived, facts_of, of_volume
from ctlab_dask_zarr.volume import Volume

#: Positions are compared to this part of a voxel, so that rounding does not lose one.
_TOLERANCE = 1e-6


def cropped(volume: Volume, index: Any) -> Volume:
    """Return the voxels at an index of integers and slices: see `Dataset.__getitem__`."""
    parts = _parts(volume, index)
    kept = [axis for axis, part in enumerate(parts) if isinstance(part, slice)]
    if not kept or len(kept) < 2:
        raise InvalidArgumentError(
            f"{index!r} leaves {len(kept)} axes of {volume.dimension_names}, and a dataset has two "
            "or three: give slices, as in 10:11"
        )
    starts = [part.start if isinstance(part, slice) else part for part in parts]
    edges = zip(volume.origin, starts, volume.voxel_size, strict=True)
    origin = [first + start * size for first, start, size in edges]
    ranges = [
        f"{part.start}:{part.stop}" if isinstance(part, slice) else str(part) for part in parts
    ]
    voxels: HistoryValue = dict(zip(volume.dimension_names, ranges, strict=True))
    entry: dict[str, HistoryValue] = {"operation": "crop", "voxels": voxels}
    return derived(
        _along(volume, kept),
        "crop",
        entry | of_volume(volume),
        data=volume.data[tuple(parts)],
        origin=[origin[axis] for axis in kept],
    )


def _along(volume: Volume, kept: list[int]) -> Volume:
    """Return the volume with the names and lengths of some axes alone, and its first plane."""
    if len(kept) == len(volume.shape):
        return volume
    plane = tuple(slice(None) if axis in kept else 0 for axis in range(len(volume.shape)))
    along = {
        name: [getattr(volume, name)[axis] for axis in kept]
        for name in ("dimension_names", "voxel_size", "origin")
    }
    return Volume(volume.data[plane], **(facts_of(volume) | along))


def _parts(volume: Volume, index: Any) -> list[int | slice]:
    """Return an integer or a slice of step 1 for each axis, within the volume."""
    parts = list(index) if isinstance(index, tuple) else [index]
    # By identity: an array compares each of its elements.
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(places) > 1:
        raise InvalidArgumentError(f"{index!r} has more than one Ellipsis")
    for place in places:
        parts[place : place + 1] = [slice(None)] * (len(volume.shape) - len(parts) + 1)
    parts += [slice(None)] * (len(volume.shape) - len(parts))
    if len(parts) != len(volume.shape):
        raise InvalidArgumentError(f"{index!r} is for {len(parts)} axes, of {len(volume.shape)}")
    axes = zip(volume.dimension_names, parts, volume.shape, strict=True)
    return [_part(name, part, n) for name, part, n in axes]


def _part(name: str, part: Any, n: int) -> int | slice:
    """Return an integer or a slice of one axis with `n` voxels, counted from its beginning."""
    if not isinstance(part, slice):
        try:
            number = operator.index(part)
        except TypeError as error:
            raise InvalidArgumentError(
                f"{part!r} along {name} is neither a whole number nor a slice, as in 100:200"
            ) from error
        if not -n <= number < n:
            raise InvalidArgumentError(f"{name} has {n} voxels, 0 to {n - 1}: not {number}")
        return number % n
    if part.step not in (None, 1):
        raise InvalidArgumentError(
            f"{part!r} along {name} leaves voxels out between others: write levels, or bin"
        )
    try:
        start, stop, _ = part.indices(n)
    except TypeError as error:
        raise InvalidArgumentError(f"{part!r} along {name} is not of whole numbers") from error
    beyond = [edge for edge in (part.start, part.stop) if edge is not None and not -n <= edge <= n]
    if start >= stop or beyond:
        raise InvalidArgumentError(
            f"{name} has {n} voxels, 0 to {n - 1}: there is nothing, or not all, of "
            f"{_shown(part.start)}:{_shown(part.stop)}"
        )
    return slice(start, stop)


def _shown(edge: Any) -> str:
    return "" if edge is None else str(edge)


def by_name(volume: Volume, parts: Mapping[str, Any], what: str) -> list[Any]:
    """Return what is given for each axis by its name; the whole axis where nothing is."""
    unknown = [name for name in parts if name not in volume.dimension_names]
    if unknown:
        raise InvalidArgumentError(
            f"{what}: {unknown[0]} is none of the axes {', '.join(volume.dimension_names)}"
        )
    return [parts.get(name, slice(None)) for name in volume.dimension_names]


def selected(volume: Volume, positions: Mapping[str, Any]) -> Volume:
    """Return the voxels whose centres lie within positions: see `Dataset.sel`."""
    index: list[int | slice] = []
    wanted = by_name(volume, positions, "sel")
    for axis, (name, part) in enumerate(zip(volume.dimension_names, wanted, strict=True)):
        first, size, n = volume.origin[axis], volume.voxel_size[axis], volume.shape[axis]
        last = first + (n - 1) * size
        where = f"{name} goes from {first:g} to {last:g} {volume.voxel_unit}"
        if isinstance(part, slice):
            low, high = _number(name, part.start, first), _number(name, part.stop, last)
            start = max(math.ceil((low - first) / size - _TOLERANCE), 0)
            stop = min(math.floor((high - first) / size + _TOLERANCE) + 1, n)
            if part.step is not None or start >= stop:
                raise InvalidArgumentError(f"{where}: no voxel's centre is in {low:g} to {high:g}")
            index.append(slice(start, stop))
        else:
            number = round((_number(name, part, first) - first) / size)
            if not 0 <= number < n:
                raise InvalidArgumentError(f"{where}: {part:g} {volume.voxel_unit} is outside")
            index.append(number)
    return cropped(volume, tuple(index))


def _number(name: str, value: Any, default: float) -> float:
    try:
        found = default if value is None else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InvalidArgumentError(f"{value!r} along {name} is not a position")
    return found
