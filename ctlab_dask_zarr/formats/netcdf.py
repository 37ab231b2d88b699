"""What the header of a mango netCDF file says.

A volume is one file, or a folder of ``block00000000.nc``, ``block00000001.nc``, ..., each with a
range of z. Every block describes the whole volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.mango import RESERVED_KEYS
from ctlab_dask_zarr.formats.units import VoxelUnit

#: Attributes of the files and not of the volume, which are not carried over. They include the
#: parameters of the histogram, because the histogram itself, an array, is not carried over either.
BOOKKEEPING_KEYS = frozenset(
    {
        *("zdim_total", "zdim_range", "number_of_files", "total_grid_size_xyz", "_NCProperties"),
        *("data_histogram_binsize", "data_histogram_offset"),
    }
)
_BLOCK_NAME = re.compile(r"block(\d+)\.nc")
#: Real volumes have a few hundred blocks. A larger number is damage: do not loop up to it.
_MAX_BLOCKS = 100_000


@dataclass(frozen=True)
class BlockHeader:
    """What one file says about itself and about the volume; None for what it does not say."""

    name: str
    #: mango names the variable after the data type.
    variable: str
    #: As the file declares it: ``int16`` where the voxels are ``uint16``; with byte order.
    stored_dtype: np.dtype[Any]
    #: z, y, x of this file.
    shape: tuple[int, ...]
    #: Its first slice in the volume, and the one after its last.
    z_start: int
    z_stop: int
    #: Slices, files and size of the volume.
    zdim_total: int | None
    number_of_files: int | None
    total_grid_size_xyz: tuple[int, ...] | None
    voxel_size_xyz: tuple[float, ...] | None
    voxel_unit: VoxelUnit | None
    #: All attributes of the file, as plain Python values.
    attributes: Mapping[str, Any]
    #: MD5 of the voxels of this file, little-endian, in C order.
    md5_checksum: bytes | None = None

    @property
    def number(self) -> int | None:
        """The number in the file's name; None for a single file."""
        return block_number(self.name)

    @property
    def dataset_id(self) -> str | None:
        """The volume's identifier, which only the first block has."""
        value = self.attributes.get("dataset_id")
        return str(value) if value else None


def block_number(name: str) -> int | None:
    """Return the number of a block from its file's name; None for any other file.

    Examples
    --------
    >>> block_number("block00000012.nc"), block_number("README.txt")
    (12, None)
    """
    match = _BLOCK_NAME.fullmatch(name)
    return int(match[1]) if match else None


def plain_attribute(value: Any) -> Any:
    """Return an attribute's value as text, a number, or a list of them.

    NetCDF does not distinguish a number from an array of one, so an array of one becomes a number.
    Text is UTF-8, else Latin-1; NULs at its end are dropped.
    """
    if isinstance(value, bytes | np.bytes_):
        raw = bytes(value).rstrip(b"\0")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    if isinstance(value, str):
        return str(value).rstrip("\0")
    if isinstance(value, np.ndarray):
        values = [plain_attribute(item) for item in value.reshape(-1).tolist()]
        return values[0] if len(values) == 1 else values
    return value.item() if isinstance(value, np.generic) else value


def choose_variable(candidates: Sequence[str], preferred: DataType | None) -> str:
    """Return which of a file's three-dimensional variables holds the voxels, or raise."""
    for names in (
        [name for name in candidates if preferred is not None and name == preferred.value],
        [name for name in candidates if name in list(DataType)],
        candidates,
    ):
        if len(names) == 1:
            return names[0]
    if not candidates:
        raise MetadataError("holds no three-dimensional variable, so it is not a mango volume")
    raise MetadataError(
        f"holds several three-dimensional variables ({', '.join(candidates)}): "
        "say which one with datatype="
    )


def is_stored_as(datatype: DataType, stored_dtype: np.dtype[Any]) -> bool:
    """Whether a variable of this dtype, in any byte order, can hold this data type.

    mango stores unsigned integers as signed ones; other programs store them as they are.
    """
    return stored_dtype.newbyteorder("=") in (datatype.dtype, datatype.stored_dtype)


def parse_block_header(
    name: str,
    *,
    variable: str,
    stored_dtype: np.dtype[Any],
    shape: Sequence[int],
    attributes: Mapping[str, Any],
    md5_checksum: bytes | None = None,
) -> BlockHeader:
    """Return the header of a file from its attributes, as `plain_attribute` gives them.

    Raises `MetadataError` for an attribute with an impossible value, and for one block of several
    that does not say which slices it holds.
    """
    z_range = _integers(attributes, "zdim_range", 2)
    n_files = _integers(attributes, "number_of_files", 1)
    total = _integers(attributes, "zdim_total", 1)
    if n_files is not None and not 0 < n_files[0] <= _MAX_BLOCKS:
        raise MetadataError(f"number_of_files {n_files[0]} is not a possible number of blocks")
    if z_range is None:
        if (n_files or (1,))[0] > 1 or block_number(name):
            raise MetadataError("has no zdim_range, so its place in the volume is not known")
        z_range = (0, int(shape[0]) - 1)
    size = _numbers(attributes, "voxel_size_xyz", 3)
    if size is not None and not all(math.isfinite(length) and length > 0 for length in size):
        raise MetadataError(f"voxel_size_xyz {list(size)} holds a value that is not a length")
    try:
        unit_name = attributes.get("voxel_unit")
        unit = VoxelUnit.from_str(unit_name) if unit_name else None
    except ValueError as error:
        raise MetadataError(f"voxel_unit: {error}") from error
    return BlockHeader(
        name=name,
        variable=variable,
        stored_dtype=stored_dtype,
        shape=tuple(int(n) for n in shape),
        z_start=z_range[0],
        z_stop=z_range[1] + 1,
        zdim_total=None if total is None else total[0],
        number_of_files=None if n_files is None else n_files[0],
        total_grid_size_xyz=_integers(attributes, "total_grid_size_xyz", 3),
        voxel_size_xyz=size,
        voxel_unit=unit,
        attributes=attributes,
        md5_checksum=md5_checksum,
    )


def _numbers(attributes: Mapping[str, Any], key: str, n: int) -> tuple[float, ...] | None:
    value = attributes.get(key)
    if value is None or value == "":
        return None
    values = value if isinstance(value, list) else [value]
    if len(values) != n or not all(isinstance(v, int | float) for v in values):
        raise MetadataError(f"{key} is {value!r}, not {n} number{'s' if n > 1 else ''}")
    return tuple(float(v) for v in values)


def _integers(attributes: Mapping[str, Any], key: str, n: int) -> tuple[int, ...] | None:
    values = _numbers(attributes, key, n)
    if values is not None and not all(v.is_integer() and v >= 0 for v in values):
        raise MetadataError(f"{key} is {list(values)}, not whole numbers from 0 up")
    return None if values is None else tuple(int(v) for v in values)


def carried_attributes(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes to carry over, and the names of those that JSON cannot hold.

    Left out are the history, bookkeeping of the files, and what a dataset has fields for. An empty
    ``coord_transform``, a newline in netCDF, becomes ``""`` as in mango's Zarr.
    """
    carried: dict[str, Any] = {}
    refused = []
    for key, value in attributes.items():
        if key in BOOKKEEPING_KEYS or key in RESERVED_KEYS or key.startswith("history"):
            continue
        values = value if isinstance(value, list) else [value]
        if all(
            isinstance(v, str | int) or (isinstance(v, float) and math.isfinite(v)) for v in values
        ):
            carried[key] = value.strip() if key == "coord_transform" else value
        else:
            refused.append(key)
    return carried, refused
