"""The header of a netCDF-3 file: attributes, variables, and where these lie in the file.

The format is the "classic" one, with its 64-bit offset and 64-bit data forms, as specified at
https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html . Everything in it
is big-endian and padded to four bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import MetadataError

__all__ = [
    "NETCDF3_MAGIC",
    "NetCDF3Header",
    "NetCDF3Variable",
    "ShortHeaderError",
    "parse_netcdf3_header",
]

#: Classic, 64-bit offset, 64-bit data.
NETCDF3_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")

_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
_CHAR = 2
_DTYPES = {
    number: np.dtype(name)
    for number, name in enumerate(
        (">i1", "S1", ">i2", ">i4", ">f4", ">f8", ">u1", ">u2", ">u4", ">i8", ">u8"), start=1
    )
}


class ShortHeaderError(Exception):
    """The header goes on behind the bytes that were given."""


@dataclass(frozen=True)
class NetCDF3Variable:
    """A variable.

    Attributes
    ----------
    dtype
        Big-endian.
    shape, dimensions
        Length and name of each axis.
    offset
        Byte of the file where its values begin.
    first_axis_stride
        Bytes from one index of the first axis to the next; those of records are interleaved.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    offset: int
    first_axis_stride: int


@dataclass(frozen=True)
class NetCDF3Header:
    """What a header says; attributes are ``bytes`` or arrays."""

    attributes: dict[str, Any]
    variables: dict[str, NetCDF3Variable]


def parse_netcdf3_header(data: bytes) -> NetCDF3Header:
    """Return what the header at the beginning of a file says.

    Parameters
    ----------
    data
        The first bytes of the file, as many as there may be in the header.

    Raises
    ------
    ShortHeaderError
        The header is longer than `data`.
    MetadataError
        It is no header of netCDF-3.
    """
    if not data.startswith(NETCDF3_MAGIC):
        raise MetadataError("does not begin as a netCDF-3 file")
    reader = _Reader(data, version=data[3])
    n_records = reader.count()
    dimensions = reader.list_of(_DIMENSIONS, lambda: (reader.name(), reader.count()))
    attributes = dict(reader.list_of(_ATTRIBUTES, reader.attribute))
    variables = reader.list_of(_VARIABLES, reader.variable)
    by_record = [
        number
        for number, (_, axes, _, _) in enumerate(variables)
        if axes and axes[0] < len(dimensions) and dimensions[axes[0]][1] == 0
    ]
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...], tuple[str, ...], int]] = {}
    sizes = []
    for name, axes, dtype, offset in variables:
        if any(axis >= len(dimensions) for axis in axes):
            raise MetadataError(f"has a variable {name!r} with an axis that is not there")
        lengths = tuple(dimensions[axis][1] for axis in axes)
        found[name] = (dtype, lengths, tuple(dimensions[axis][0] for axis in axes), offset)
        sizes.append(math.prod(lengths[1:]) * dtype.itemsize)
    # Records are padded like everything else, except for a variable that is the only one.
    padded = [sizes[number] + (-sizes[number] % 4) for number in by_record]
    record_nbytes = sizes[by_record[0]] if len(by_record) == 1 else sum(padded)
    record_names = {variables[number][0] for number in by_record}
    return NetCDF3Header(
        attributes,
        {
            name: NetCDF3Variable(
                dtype,
                (n_records, *lengths[1:]) if name in record_names else lengths,
                names,
                offset,
                record_nbytes if name in record_names else size,
            )
            for (name, (dtype, lengths, names, offset)), size in zip(
                found.items(), sizes, strict=True
            )
        },
    )


class _Reader:
    """Walks through a header."""

    def __init__(self, data: bytes, version: int) -> None:
        self._data = data
        self._position = 4
        self._count_nbytes = 8 if version == 5 else 4
        self._offset_nbytes = 4 if version == 1 else 8

    def _take(self, n_bytes: int) -> bytes:
        end = self._position + n_bytes
        if end > len(self._data):
            raise ShortHeaderError(f"its header goes on behind byte {len(self._data)}")
        taken = self._data[self._position : end]
        self._position = end + (-n_bytes % 4)
        return taken

    def _integer(self, n_bytes: int) -> int:
        return int.from_bytes(self._take(n_bytes), "big")

    def count(self) -> int:
        return self._integer(self._count_nbytes)

    def name(self) -> str:
        return self._take(self.count()).decode("utf-8", "replace")

    def list_of(self, tag: int, element: Any) -> list[Any]:
        found_tag, n = self._integer(4), self.count()
        if found_tag not in (0, tag) or (found_tag == 0 and n):
            raise MetadataError(f"has a header with a list {found_tag} where {tag} belongs")
        return [element() for _ in range(n)]

    def _dtype(self) -> np.dtype[Any]:
        number = self._integer(4)
        if number not in _DTYPES:
            raise MetadataError(f"has a value of type {number}, which netCDF-3 does not know")
        return _DTYPES[number]

    def attribute(self) -> tuple[str, Any]:
        name, dtype, n = self.name(), self._dtype(), self.count()
        raw = self._take(n * dtype.itemsize)
        return name, raw if dtype == _DTYPES[_CHAR] else np.frombuffer(raw, dtype)

    def variable(self) -> tuple[str, list[int], np.dtype[Any], int]:
        name = self.name()
        axes = [self.count() for _ in range(self.count())]
        self.list_of(_ATTRIBUTES, self.attribute)
        dtype = self._dtype()
        self.count()  # The size, which follows from the shape and overflows in large files.
        return name, axes, dtype, self._integer(self._offset_nbytes)
