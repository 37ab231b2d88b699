"""The kind of source that is mango netCDF: a single file, or a folder of blocks."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da

from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.history import history_from_attributes
from ctlab_dask_zarr.formats.netcdf import (
    BlockHeader,
    block_number,
    carried_attributes,
    is_stored_as,
    to_zyx,
)
from ctlab_dask_zarr.formats.netcdf_blocks import (
    block_label,
    expected_z_ranges,
    validate_blocks,
    z_text,
)
from ctlab_dask_zarr.formats.problems import Problem, describe_problems
from ctlab_dask_zarr.formats.units import VoxelUnit, lengths_along
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.netcdf_header import (
    HDF5_MAGIC,
    NETCDF3_MAGIC,
    DamagedFileError,
    open_block,
)
from ctlab_dask_zarr.read.netcdf_source import NetCDFSource
from ctlab_dask_zarr.read.netcdf_storage import Contiguous, StoredBlock
from ctlab_dask_zarr.store.paths import is_url, local_path
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

__all__ = ["DESCRIPTION", "NAME", "can_open", "is_ours", "looks_like", "open_volume"]

NAME = "NetCDF"
DESCRIPTION = "mango netCDF"

#: mango's own blocks are about this size; a larger file that can be read in parts is.
_BLOCK_NBYTES = 512 * 2**20

#: From here on it is worth a warning that stored pieces are decompressed again for every block.
_MANY_TIMES = 4

_NETCDF_MAGIC = (HDF5_MAGIC, *NETCDF3_MAGIC)

_Opened = tuple[BlockHeader, StoredBlock]


def open_volume(
    path: str | os.PathLike[str],
    *,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    **kwargs: Any,
) -> Volume:
    """Open a mango netCDF volume lazily; only headers are read.

    Every block is opened and all are checked against each other first, so that a volume that
    lacks a part is known before anything is done with it. Voxels are viewed as their true data
    type: mango stores ``uint16`` as ``int16`` and ``uint8`` as ``int8``.

    Parameters
    ----------
    path
        A file, or a folder of ``block00000000.nc``, ...; other files in it do not matter.
    datatype
        The data type, where the name of the variable in the file is not to be believed. Its dtype
        has to be that of the file.
    parse_history
        Whether mango's history becomes nested parameters; if not, it stays text.
    chunks
        Blocks of the dask array, in any form that dask knows. By default one for each file, and
        several for a file above 512 MiB where its storage allows that.
    voxel_size
        z, y, x in `voxel_unit`, or one length for all axes, instead of what the file says.
    voxel_unit
        Instead of what the file says.
    **kwargs
        For `dask.array.from_array`.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    UnsupportedFormatError
        What is there is no netCDF, or a folder without blocks.
    IncompleteSourceError
        A block is missing, truncated, or belongs to another volume; all of them are named.
    MetadataError
        The file is no mango volume or contradicts itself.
    InvalidArgumentError
        `datatype` cannot be that of the file.
    """
    local = local_path(path)
    wanted = None if datatype is None else _parse_datatype(datatype)
    opened = _open_files(local, _list_files(local), wanted)
    headers = [header for header, _ in opened]
    first = headers[0]
    kind = _resolve_datatype(local, first, wanted)
    source = NetCDFSource(
        folder=local if os.path.isdir(local) else os.path.dirname(local),
        variable=first.variable,
        dtype=kind.dtype,
        shape=(headers[-1].z_stop, *first.shape[1:]),
        blocks=tuple(block for _, block in opened),
        dataset_id=first.dataset_id,
    )
    extra_attrs, refused = carried_attributes(first.attributes)
    if refused:
        warnings.warn(
            shown(
                f"{local}: left out the attributes {', '.join(refused)}, whose values JSON cannot "
                "hold"
            ),
            stacklevel=2,
        )
    size, unit = _resolve_voxel_size(local, first, voxel_size, voxel_unit)
    if chunks is not None:
        _warn_of_repeated_decoding(source, chunks)
    blocks = _default_blocks(source) if chunks is None else chunks
    return Volume(
        lazy_array(source, "netcdf", blocks, {"inline_array": True} | kwargs),
        dimension_names=("z", "y", "x"),
        voxel_unit=unit,
        voxel_size=size,
        datatype=kind,
        history=history_from_attributes(
            {key: str(value) for key, value in first.attributes.items()},
            parse_history=parse_history,
        ),
        dataset_id=first.dataset_id,
        extra_attrs=extra_attrs,
        source=source,
    )


def can_open(path: str) -> bool:
    """Whether a path is a mango netCDF volume, by its content.

    A file with a fitting name that is damaged, or of a form that is not read, counts, so that
    opening it can say what is wrong with it.
    """
    if is_url(path):
        return False
    if os.path.isdir(path):
        return any(block_number(name) is not None for name in os.listdir(path))
    magic = _magic(path)
    if not magic.startswith(_NETCDF_MAGIC):
        return magic == b"" and path.endswith(".nc") and os.path.isfile(path)
    try:
        header, _ = open_block(path, None)
    except (DamagedFileError, UnsupportedFormatError):
        return path.endswith(".nc")
    except MetadataError:
        return False
    return header.variable in list(DataType) or header.zdim_total is not None


def looks_like(path: str) -> bool:
    """Whether a path is of netCDF, or has a name as mango gives it."""
    if os.path.isdir(path) and any(name.endswith(".nc") for name in os.listdir(path)):
        return True
    return path.endswith(("_nc", ".nc")) or _magic(path).startswith(_NETCDF_MAGIC)


def is_ours(path: str) -> bool:
    """Whether a path is a volume of mango; a folder also where a block is missing."""
    if os.path.isdir(path):
        return can_open(path)
    open_volume(path)
    return True


def _magic(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError:
        return b""


def _parse_datatype(datatype: DataType | str) -> DataType:
    try:
        return DataType.from_basename(str(datatype))
    except ValueError as error:
        raise InvalidArgumentError(f"datatype: {error}") from error


def _list_files(local: str) -> list[str]:
    """Return the files that make the volume, in the order of their numbers."""
    if not os.path.isdir(local):
        if not os.path.exists(local):
            raise DatasetNotFoundError(f"{local} does not exist")
        return [local]
    numbered = sorted(
        (number, name) for name in os.listdir(local) if (number := block_number(name)) is not None
    )
    if not numbered:
        raise UnsupportedFormatError(
            f"{local} holds no mango netCDF blocks (block00000000.nc, block00000001.nc, ...): "
            "open the folder that does, or a single file"
        )
    return [os.path.join(local, name) for _, name in numbered]


def _open_files(local: str, paths: Sequence[str], wanted: DataType | None) -> list[_Opened]:
    """Return headers and storage of all files, in the order of z, or name every problem."""
    opened: list[_Opened] = []
    failed: dict[str, tuple[str, str]] = {}
    for path in paths:
        try:
            opened.append(open_block(path, wanted))
        except DamagedFileError as error:
            failed[os.path.basename(path)] = (error.kind, str(error))
        except (MetadataError, UnsupportedFormatError) as error:
            if not os.path.isdir(local):
                raise type(error)(f"{local} {error}") from error
            failed[os.path.basename(path)] = ("unreadable", str(error))
    headers = [header for header, _ in opened]
    problems = _failed_problems(headers, failed)
    if headers:
        unreadable = {number for name in failed if (number := block_number(name)) is not None}
        problems += validate_blocks(headers, unreadable=unreadable)
    if problems:
        problems.sort(key=lambda problem: problem.location)
        raise IncompleteSourceError(f"{local} is no whole volume:\n{describe_problems(problems)}")
    return sorted(opened, key=lambda pair: pair[0].z_start)


def _failed_problems(
    headers: Sequence[BlockHeader], failed: dict[str, tuple[str, str]]
) -> list[Problem]:
    """Return what is wrong with files that could not be opened, by their name."""
    present = {header.number for header in headers}
    n_files = max((header.number_of_files or 0 for header in headers), default=0)
    numbers = {block_number(name) for name in failed} | set(range(n_files))
    absent = {number for number in numbers if number is not None} - present
    ranges = expected_z_ranges(headers, absent) if headers else {}
    problems = []
    for name, (kind, reason) in failed.items():
        number = block_number(name)
        label = block_label(name if number is None else number)
        z_range = None if number is None else ranges.get(number)
        problems.append(
            Problem(
                name,
                kind,
                f"{label} {kind}{z_text(z_range)}: {name} {reason}: copy it again from where the "
                "volume was made",
            )
        )
    return problems


def _resolve_datatype(local: str, header: BlockHeader, wanted: DataType | None) -> DataType:
    """Return the data type: the user's, else the variable's, else that of the path's name."""
    if wanted is not None:
        if not is_stored_as(wanted, header.stored_dtype):
            raise InvalidArgumentError(
                f"datatype {wanted.value!r} is {wanted.dtype}, which cannot be what {local} stores "
                f"as {header.stored_dtype} in its variable {header.variable!r}"
            )
        return wanted
    try:
        kind = DataType.from_basename(header.variable)
    except ValueError:
        try:
            kind = DataType.infer_from_path(local)
        except ValueError as error:
            raise MetadataError(
                f"neither the variable {header.variable!r} of {local} nor its name tells a mango "
                "data type: say which it is with datatype="
            ) from error
    if not is_stored_as(kind, header.stored_dtype):
        raise MetadataError(
            f"{local} stores {header.stored_dtype} as data type {kind.value!r}, which is "
            f"{kind.dtype}: say what it is with datatype="
        )
    return kind


def _resolve_voxel_size(
    local: str,
    header: BlockHeader,
    voxel_size: Sequence[float] | float | None,
    voxel_unit: VoxelUnit | str | None,
) -> tuple[tuple[float, ...], VoxelUnit | str]:
    if voxel_size is not None:
        size = lengths_along(3, voxel_size)
    elif header.voxel_size_xyz is not None:
        size = to_zyx(header.voxel_size_xyz)
    else:
        raise MetadataError(f"{local} has no voxel_size_xyz: give it with voxel_size=(z, y, x)")
    unit = header.voxel_unit if voxel_unit is None else voxel_unit
    if unit is None:
        raise MetadataError(f"{local} has no voxel_unit: give it with voxel_unit=")
    return size, unit


def _warn_of_repeated_decoding(volume: NetCDFSource, chunks: Any) -> None:
    blocks = da.core.normalize_chunks(chunks, volume.shape, dtype=volume.dtype)
    times = 1.0
    for heights, unit, n in zip(blocks, volume.chunk_shape, volume.shape, strict=True):
        stops = itertools.accumulate(heights)
        touched = sum(
            -(-stop // unit) - (stop - height) // unit
            for stop, height in zip(stops, heights, strict=True)
        )
        times *= touched / max(-(-n // unit), 1)
    if times >= _MANY_TIMES:
        warnings.warn(
            f"with blocks of {tuple(map(max, blocks))} all of {shown(volume.folder)} is "
            f"decompressed {times:.0f} times, because it is stored in pieces of "
            f"{volume.chunk_shape}: leave chunks out and rechunk the array",
            stacklevel=4,
        )


def _default_blocks(volume: NetCDFSource) -> tuple[tuple[int, ...], ...]:
    """Return one block for each file, and several for a large file that can be read in parts."""
    slice_nbytes = math.prod(volume.shape[1:]) * volume.dtype.itemsize
    heights: list[int] = []
    for block in volume.blocks:
        rest = block.z_stop - block.z_start
        unit = 1 if isinstance(block.storage, Contiguous) else block.storage.chunk_shape[0]
        step = max(_BLOCK_NBYTES // max(slice_nbytes * unit, 1), 1) * unit
        while rest:
            heights.append(min(step, rest))
            rest -= heights[-1]
    return tuple(heights), (volume.shape[1],), (volume.shape[2],)
