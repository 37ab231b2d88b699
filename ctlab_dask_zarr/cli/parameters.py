"""Types of command-line parameters: shapes, codecs, voxel sizes and units, memory."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = [
    "CODEC",
    "COLOR",
    "DEADLINE",
    "LEVELS",
    "NBYTES",
    "PART",
    "SHAPE",
    "SHAPE_OR_NONE",
    "VOXEL_SIZE",
    "VOXEL_UNIT",
]

#: A worker needs more than this to start at all; a smaller number lacks its unit.
_LEAST_WORKER_NBYTES = 2**26


class _Shape(click.ParamType):  # type: ignore[type-arg]
    """``512,512,512``, a number of elements, ``auto``, and where it makes sense ``none``."""

    name = "shape"

    def __init__(self, *, none_allowed: bool) -> None:
        self._none_allowed = none_allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).strip().lower()
        if text == "auto":
            return "auto"
        if text == "none" and self._none_allowed:
            # click takes None for "not given".
            return "none"
        try:
            sizes = tuple(int(part) for part in text.split(","))
        except ValueError:
            self.fail(f"{value!r} is no shape: write 512,512,512, a number of elements or auto")
        return sizes if len(sizes) > 1 else sizes[0]


class _Color(click.ParamType):  # type: ignore[type-arg]
    """``LABEL=RRGGBB``, optionally with two more digits for the opacity."""

    name = "label=rrggbb"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, tuple[int, ...]]:
        label, _, digits = str(value).partition("=")
        try:
            return int(label), tuple(bytes.fromhex(digits.removeprefix("#")))
        except ValueError:
            self.fail(f"{value!r} is no colour: write 1=ff8000 for orange")


class _Levels(click.ParamType):  # type: ignore[type-arg]
    """A number of levels, or ``auto``."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).strip().lower()
        if text == "auto":
            return text
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"{value!r} is no number of levels: write 5, or auto")
        return int(text)


class _Part(click.ParamType):  # type: ignore[type-arg]
    """``I/N``, counted from 1."""

    name = "part"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        number, _, n_parts = str(value).partition("/")
        if not (number.isdecimal() and n_parts.isdecimal()):
            self.fail(f"{value!r} is no part: write 3/8 for the third of eight")
        if not 1 <= int(number) <= int(n_parts):
            self.fail(f"{value!r}: parts are counted from 1, as --array=1-{n_parts} does")
        return int(number), int(n_parts)


class _Deadline(click.ParamType):  # type: ignore[type-arg]
    """A duration in seconds, or ``auto``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ctlab_dask_zarr.errors import InvalidArgumentError
        from ctlab_dask_zarr.execution.allocation import parse_duration, seconds_left
        from ctlab_dask_zarr.execution.stopping import CLOSING_S

        try:
            if value == "auto":
                # However little that is: the run itself tells where it does not do for a shard.
                return seconds_left()
            seconds = parse_duration(str(value))
        except InvalidArgumentError as error:
            self.fail(str(error))
        if seconds <= CLOSING_S:
            self.fail(
                f"{value!r} leaves no time for any work: the last {CLOSING_S:.0f} s are for "
                "closing the cluster. Give more, as 1h50m"
            )
        return seconds


class _VoxelSize(click.ParamType):  # type: ignore[type-arg]
    """``2.5`` or ``z,y,x``, optionally with a unit at the end: ``2.5um``."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[float, ...], str | None]:
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZµμÅå ")
        unit = text[len(number) :].strip() or None
        try:
            sizes = tuple(float(part) for part in number.split(","))
        except ValueError:
            self.fail(f"{value!r} is no voxel size: write 2.5um, or z,y,x as in 3,2.5,2.5um")
        if not all(math.isfinite(size) and size > 0 for size in sizes):
            self.fail(f"{value!r} holds a value that is no length")
        return sizes, None if unit is None else VOXEL_UNIT.convert(unit, param, ctx)


class _VoxelUnit(click.ParamType):  # type: ignore[type-arg]
    """The name or the symbol of a unit."""

    name = "unit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ctlab_dask_zarr.formats.units import VoxelUnit

        try:
            return str(VoxelUnit.from_str(str(value)))
        except ValueError:
            names = ", ".join(map(str, VoxelUnit))
            self.fail(f"{value!r} is no unit of length: write one of {names}")


class _NBytes(click.ParamType):  # type: ignore[type-arg]
    """An amount of memory, as dask writes it: ``4GiB``, ``500MB``."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from dask.utils import parse_bytes

        try:
            nbytes = parse_bytes(value)
        except ValueError:
            self.fail(f"{value!r} is no amount of memory: write 4GiB or 500MB")
        if nbytes < _LEAST_WORKER_NBYTES:
            self.fail(f"{value!r} is {nbytes} bytes, too little for a worker: write 4GiB or 500MB")
        return nbytes


class _Codec(click.ParamType):  # type: ignore[type-arg]
    """``zstd:LEVEL``, ``blosc:CNAME:LEVEL:SHUFFLE``, ``gzip:LEVEL``, ``lz4`` or ``none``."""

    name = "codec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ctlab_dask_zarr.formats.codecs import array_kwargs

        text = str(value).strip().lower()
        try:
            array_kwargs(text)
        except ValueError:
            self.fail(
                f"{value!r} is no codec: write zstd:3, blosc:zstd:5:bitshuffle, gzip:6, lz4 or none"
            )
        return text


COLOR = _Color()
LEVELS = _Levels()
PART = _Part()
DEADLINE = _Deadline()
SHAPE = _Shape(none_allowed=False)
SHAPE_OR_NONE = _Shape(none_allowed=True)
VOXEL_SIZE = _VoxelSize()
VOXEL_UNIT = _VoxelUnit()
NBYTES = _NBytes()
CODEC = _Codec()
