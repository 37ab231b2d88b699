"""Types of command-line parameters: shapes, codecs, voxel sizes and units, memory."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = [
    "CODEC",
    "NBYTES",
    "SHAPE",
    "SHAPE_OR_NONE",
    "VOXEL_SIZE",
    "VOXEL_UNIT",
    "array_kwargs",
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
        text = str(value).strip().lower()
        try:
            array_kwargs(text)
        except (ValueError, IndexError):
            self.fail(
                f"{value!r} is no codec: write zstd:3, blosc:zstd:5:bitshuffle, gzip:6, lz4 or none"
            )
        return text


SHAPE = _Shape(none_allowed=False)
SHAPE_OR_NONE = _Shape(none_allowed=True)
VOXEL_SIZE = _VoxelSize()
VOXEL_UNIT = _VoxelUnit()
NBYTES = _NBytes()
CODEC = _Codec()

_BLOSC_DEFAULTS = ["zstd", "5", "bitshuffle"]


def array_kwargs(codec: str | None) -> dict[str, Any]:
    """Return what `zarr.create_array` needs for a codec as written on the command line."""
    if codec is None:
        return {}
    name, *options = codec.split(":")
    compressors: Any
    if name == "none" and not options:
        compressors = None
    elif name == "zstd" and len(options) < 2:
        level = int(options[0]) if options else 0
        compressors = [{"name": "zstd", "configuration": {"level": level, "checksum": False}}]
    elif name == "gzip" and len(options) < 2:
        compressors = [
            {"name": "gzip", "configuration": {"level": int(options[0]) if options else 5}}
        ]
    elif name == "lz4" and not options:
        compressors = [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}]
    elif name == "blosc" and len(options) <= len(_BLOSC_DEFAULTS):
        cname, level_text, shuffle = options + _BLOSC_DEFAULTS[len(options) :]
        from zarr.codecs import BloscCodec

        # By its class, so that zarr sets the type size from the array's dtype.
        settings: dict[str, Any] = {"cname": cname, "clevel": int(level_text), "shuffle": shuffle}
        compressors = [BloscCodec(**settings)]
    else:
        raise ValueError(codec)
    return {"compressors": compressors}
