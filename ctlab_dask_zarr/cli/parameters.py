"""Types of command-line parameters: shapes, codecs, voxel sizes and units, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import click

from ctlab_dask_zarr.text import LEAST_WORKER_NBYTES

#: A number alone below this is the edge of a cube to most people, but means voxels in all.
_LEAST_ELEMENTS = 16**3


class _Type(click.ParamType):  # type: ignore[type-arg]
    """A type whose function raises `ValueError` with what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value.strip())
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _wrong(value: str, advice: str) -> NoReturn:
    raise ValueError(f"{value!r} {advice}")


def _shape(value: str) -> Any:
    if value.lower() == "auto":
        return "auto"
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        _wrong(value, "is not a shape: write 512,512,512, a number of elements or auto")
    if len(sizes) == 1 and sizes[0] < _LEAST_ELEMENTS:
        n, edge = sizes[0], max(round(sizes[0] ** (1 / 3)), 1)
        _wrong(
            value,
            f"alone counts the voxels in all: write {n},{n},{n} for edges of {n} voxels, or "
            f"{edge},{edge},{edge} for about {n} voxels in all",
        )
    return sizes if len(sizes) > 1 else sizes[0]


def _crop(value: str) -> tuple[slice, ...]:
    ranges = []
    for part in value.split(","):
        low, colon, high = (text.strip() for text in part.partition(":"))
        if not colon or any(text and not text.isdecimal() for text in (low, high)):
            _wrong(value, "is not a range of voxels an axis: write 100:200,:,0:512, as z,y,x")
        ranges.append(slice(int(low) if low else None, int(high) if high else None))
    return tuple(ranges)


def _shape_or_none(value: str) -> Any:
    # click takes None for "not given".
    return "none" if value.lower() == "none" else _shape(value)


def _color(value: str) -> tuple[int, tuple[int, ...]]:
    label, _, digits = value.partition("=")
    try:
        return int(label), tuple(bytes.fromhex(digits.removeprefix("#")))
    except ValueError:
        _wrong(value, "is not a colour: write 1=ff8000 for orange")


def _levels(value: str) -> int | str:
    if value.lower() == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        _wrong(value, "is not a number of levels: write 5, or auto")
    return int(value)


def _part(value: str) -> tuple[int, int]:
    number, _, n_parts = value.partition("/")
    if not (number.isdecimal() and n_parts.isdecimal()):
        _wrong(value, "is not a part: write 3/8 for the third of eight")
    if not 1 <= int(number) <= int(n_parts):
        _wrong(value, f"parts are counted from 1, as --array=1-{n_parts} does")
    return int(number), int(n_parts)


def _deadline(value: str) -> Any:
    from ctlab_dask_zarr import Stop

    return Stop(value)


def _voxel_size(value: str) -> tuple[tuple[float, ...], str | None]:
    from ctlab_dask_zarr import VoxelUnit

    return VoxelUnit.size_from_str(value)


def _voxel_unit(value: str) -> str:
    from ctlab_dask_zarr import VoxelUnit

    try:
        return str(VoxelUnit.from_str(value))
    except ValueError:
        names = ", ".join(map(str, VoxelUnit))
        _wrong(value, f"is not a unit of length: write one of {names}")


def _nbytes(value: str) -> int:
    from dask.utils import parse_bytes

    try:
        nbytes = int(parse_bytes(value))
    except ValueError:
        _wrong(value, "is not an amount of memory: write 4GiB or 500MB")
    if nbytes < LEAST_WORKER_NBYTES:
        _wrong(value, f"is {nbytes} bytes, too little for a worker: write 4GiB or 500MB")
    return nbytes


def _codec(value: str) -> str:
    from ctlab_dask_zarr import array_kwargs

    codec = value.lower()
    if codec not in ("auto", "auto:small", "auto:fast"):
        array_kwargs(codec)
    return codec


def _window(value: str) -> tuple[float, float]:
    low, _, high = value.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        _wrong(value, "is not a lower and a higher number: write 0.5:99.5")


CODEC = _Type("codec", _codec)
COLOR = _Type("label=rrggbb", _color)
CROP = _Type("ranges", _crop)
DEADLINE = _Type("duration", _deadline)
LAYOUT = click.Choice(["ome", "plain"])
LEVELS = _Type("levels", _levels)
NBYTES = _Type("memory", _nbytes)
PART = _Type("part", _part)
SHAPE = _Type("shape", _shape)
SHAPE_OR_NONE = _Type("shape", _shape_or_none)
VOXEL_SIZE = _Type("size", _voxel_size)
VOXEL_UNIT = _Type("unit", _voxel_unit)
WINDOW = _Type("low:high", _window)
