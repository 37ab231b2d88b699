"""Headers of raw voxels: NRRD and MetaImage, which both name the fastest axis first.

The formats are described at https://teem.sourceforge.net/nrrd/format.html and
https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.units import VoxelUnit

NRRD_MAGIC = b"NRRD000"
#: What the first line of a MetaImage begins with.
METAIMAGE_KEYS = (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType")
#: More than the header of any volume.
MAX_HEADER_NBYTES = 1 << 20

_NRRD_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, "
    "int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_METAIMAGE_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
#: Of a pattern for names, as in ``slice%03d.raw 1 100 1``.
_PATTERN = re.compile(r"([^%]*%0?\d?d[^%]*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(\s+\d+)?")


@dataclass(frozen=True)
class RawHeader:
    """Where raw voxels are, and what they are; `shape` and lengths are in the order z, y, x.

    `data_files` is empty where the voxels follow the header in its file. `skip` are bytes to leave
    out at the beginning of each file, -1 for all but the last ones. `lengths` and `unit` are None
    where the header does not say them.
    """

    shape: Shape
    dtype: np.dtype[Any]
    data_files: tuple[str, ...]
    skip: int
    is_compressed: bool
    lengths: tuple[float, ...] | None
    unit: VoxelUnit | None
    origin: tuple[float, ...] | None


def parse_nrrd(text: str) -> RawHeader:
    """Parse the header of an NRRD file, up to its empty line.

    Raises
    ------
    MetadataError
        A field is missing, or says what cannot be.
    UnsupportedFormatError
        An encoding, a type, or axes that are not space.
    """
    lines = _lines(text)
    fields: dict[str, str] = {}
    listed: list[str] = []
    for number, line in enumerate(lines[1:], 1):
        key, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):
            continue
        key = key.strip().lower().replace(" ", "")
        fields[key] = value.strip()
        if key == "datafile" and value.split()[:1] == ["LIST"]:
            listed = [name.strip() for name in lines[number + 1 :] if name.strip()]
            break
    sizes = _integers(fields, "sizes")
    dtype = next((d for d, n in _NRRD_TYPES.items() if fields.get("type") in n.split(", ")), None)
    if dtype is None:
        raise UnsupportedFormatError(f"voxels of type {fields.get('type')!r} are not read")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise UnsupportedFormatError(
            f"encoding {encoding!r} is not read, only raw and gzip: save it anew as one of them"
        )
    if _integer(fields, "lineskip", 0) or fields.get("blocksize"):
        raise UnsupportedFormatError("a header with 'line skip' or blocks is not read")
    endian = fields.get("endian", "").lower()
    if np.dtype(dtype).itemsize > 1 and endian not in ("little", "big"):
        raise MetadataError(f"endian is {endian!r}, which has to be 'little' or 'big'")
    name = fields.get("datafile", "")
    lengths, origin = _nrrd_lengths(fields, len(sizes))
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", "") or fields.get("units", ""))
    return _header(
        sizes,
        np.dtype(dtype).newbyteorder(">" if endian == "big" else "<"),
        tuple(listed) or _names(name),
        _integer(fields, "byteskip", 0),
        encoding != "raw",
        lengths,
        _common_unit([unit for unit in units if unit]),
        origin,
    )


def nrrd_header(
    shape: Shape,
    dtype: np.dtype[Any],
    voxel_size: Sequence[float],
    unit: VoxelUnit,
    origin: Sequence[float],
    data_file: str | None = None,
) -> str:
    """Return the header of raw, little-endian voxels in C order; lengths are in the order z, y, x.

    With `data_file`, the header is one of its own (``.nhdr``); else the voxels follow it. Raises
    `UnsupportedFormatError` for a dtype that NRRD does not have.

    Examples
    --------
    >>> size, origin = (3, 2, 1.5), (6, 0, 0)
    >>> print(nrrd_header((3, 40, 50), np.dtype("u2"), size, VoxelUnit.UM, origin, "a.raw"))
    NRRD0004
    type: uint16
    dimension: 3
    space: left-posterior-superior
    sizes: 50 40 3
    space directions: (1.5,0,0) (0,2.0,0) (0,0,3.0)
    kinds: domain domain domain
    endian: little
    encoding: raw
    space units: "um" "um" "um"
    space origin: (0.0,0.0,6.0)
    data file: a.raw
    <BLANKLINE>
    """
    ndim = len(shape)
    key = dtype.newbyteorder("=").str[1:]
    if key not in _NRRD_TYPES:
        raise UnsupportedFormatError(f"NRRD has no voxels of type {dtype}")
    # Readers split the vectors at spaces, so they have none inside.
    vectors = (
        ",".join(str(float(length)) if n == axis else "0" for n in range(ndim))
        for axis, length in enumerate(reversed(voxel_size))
    )
    lines = {
        "type": _NRRD_TYPES[key] if dtype.kind == "f" else dtype.name,
        "dimension": str(ndim),
        # Slicer turns volumes round whose space it does not know.
        **({"space": "left-posterior-superior"} if ndim == 3 else {"space dimension": str(ndim)}),
        "sizes": " ".join(map(str, reversed(shape))),
        "space directions": " ".join(f"({vector})" for vector in vectors),
        "kinds": " ".join(["domain"] * ndim),
        "endian": "little",
        "encoding": "raw",
        "space units": " ".join([f'"{unit}"'] * ndim),
        "space origin": f"({','.join(str(float(first)) for first in reversed(origin))})",
        **({} if data_file is None else {"data file": data_file}),
    }
    return "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())


def parse_metaimage(text: str) -> RawHeader:
    """Parse the header of a MetaImage, up to its ``ElementDataFile``.

    Raises
    ------
    MetadataError, UnsupportedFormatError
        As `parse_nrrd`.
    """
    fields: dict[str, str] = {}
    listed: list[str] = []
    lines = _lines(text)
    for number, line in enumerate(lines, 1):
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            if value.split()[:1] == ["LIST"]:
                listed = [name.strip() for name in lines[number:] if name.strip()]
            break
    sizes = _integers(fields, "DimSize")
    kind = fields.get("ElementType", "")
    if kind not in _METAIMAGE_TYPES or fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnsupportedFormatError(
            f"voxels of type {kind!r} with {fields.get('ElementNumberOfChannels', '1')} channels "
            "are not read: save one number a voxel"
        )
    if fields.get("BinaryData", "True").lower() == "false":
        raise UnsupportedFormatError("voxels written as text are not read: save them as binary")
    order = fields.get("BinaryDataByteOrderMSB") or fields.get("ElementByteOrderMSB") or "False"
    name = fields.get("ElementDataFile", "")
    if not name:
        raise MetadataError("the header has no ElementDataFile")
    lengths = _floats(fields.get("ElementSpacing") or fields.get("ElementSize"), len(sizes))
    origins = (fields.get(key) for key in ("Offset", "Origin", "Position"))
    return _header(
        sizes,
        np.dtype(_METAIMAGE_TYPES[kind]).newbyteorder(">" if order.lower() == "true" else "<"),
        tuple(listed) or (() if name.upper() == "LOCAL" else _names(name)),
        _integer(fields, "HeaderSize", 0),
        fields.get("CompressedData", "False").lower() == "true",
        lengths,
        _common_unit([unit] if (unit := fields.get("DistanceUnits")) else []),
        _floats(next((text for text in origins if text), None), len(sizes)),
    )


def _header(
    sizes: Sequence[int],
    dtype: np.dtype[Any],
    names: tuple[str, ...],
    skip: int,
    is_compressed: bool,
    lengths: Sequence[float] | None,
    unit: VoxelUnit | None,
    origin: Sequence[float] | None,
) -> RawHeader:
    """Return the header of a volume: axes reversed, and those of one element left out."""
    kept = [n for n, size in enumerate(sizes) if size > 1 or len(sizes) <= 3][::-1]
    if len(kept) > 3 or not kept or min(sizes) < 1:
        raise UnsupportedFormatError(
            f"axes of lengths {' x '.join(map(str, sizes))} are not read, only two or three of "
            "space"
        )
    if len(names) > 1 and is_compressed:
        raise UnsupportedFormatError("compressed voxels in several files are not read")
    if skip < -1 or (skip and is_compressed):
        raise UnsupportedFormatError(f"a skip of {skip} bytes is not read: save it anew without")

    def along(values: Sequence[float] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(values[n] for n in kept)

    shape = tuple(sizes[n] for n in kept)
    return RawHeader(shape, dtype, names, skip, is_compressed, along(lengths), unit, along(origin))


def _nrrd_lengths(
    fields: Mapping[str, str], ndim: int
) -> tuple[list[float] | None, list[float] | None]:
    """Return voxel size and origin; an orientation other than along the axes has no origin."""
    directions = fields.get("spacedirections")
    if directions is None:
        return _floats(fields.get("spacings"), ndim), None
    vectors = [
        [float(part) for part in vector.split(",")] if vector else [1.0]
        for vector in re.findall(r"\(([^)]*)\)|none", directions)
    ]
    if len(vectors) != ndim:
        raise MetadataError(f"'space directions' has {len(vectors)} vectors for {ndim} axes")
    lengths = [math.hypot(*vector) for vector in vectors]
    found = re.fullmatch(r"\(([^)]*)\)", fields.get("spaceorigin", ""))
    along = [vector.index(max(vector, key=abs)) for vector in vectors]
    is_along_axes = all(sum(map(bool, vector)) == 1 and max(vector) > 0 for vector in vectors)
    if found is None or not is_along_axes or along != list(range(ndim)):
        return lengths, None
    return lengths, _floats(found[1].replace(",", " "), ndim)


def _lines(text: str) -> list[str]:
    # Not splitlines, which also splits at characters that are part of a name.
    return [line.rstrip("\r") for line in text.split("\n")]


def _names(text: str) -> tuple[str, ...]:
    """Return the files that a header names: one, or those of a pattern with its numbers."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        return (text,) if text else ()
    first, last, step = (int(match[n]) for n in (2, 3, 4))
    if not step or (last - first) // step > 10**6:
        raise MetadataError(f"the files {text!r} are no run of numbers")
    return tuple(match[1] % n for n in range(first, last + (1 if step > 0 else -1), step))


def _integers(fields: Mapping[str, str], key: str) -> list[int]:
    try:
        return [int(part) for part in fields[key].split()]
    except (KeyError, ValueError) as error:
        raise MetadataError(f"{key} is {fields.get(key)!r}, which has to be integers") from error


def _integer(fields: Mapping[str, str], key: str, default: int) -> int:
    return _integers(fields, key)[0] if fields.get(key) else default


def _floats(text: str | None, n: int) -> list[float] | None:
    """Return `n` finite numbers; None if there are not as many."""
    try:
        values = [float(part) for part in (text or "").split()]
    except ValueError:
        return None
    return values if len(values) == n and all(map(math.isfinite, values)) else None


def _common_unit(names: Sequence[str]) -> VoxelUnit | None:
    """Return the unit that all axes have; None if there is none, or several."""
    try:
        units = {VoxelUnit.from_str(name) for name in names}
    except ValueError:
        return None
    return units.pop() if len(units) == 1 and VoxelUnit.VOXEL not in units else None
