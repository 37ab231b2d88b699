"""A kind of source: mango netCDF, a single file or a folder of blocks."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
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
)
from ctlab_dask_zarr.formats.netcdf_blocks import validate_blocks
from ctlab_dask_zarr.formats.problems import describe_problems
from ctlab_dask_zarr.formats.units import VoxelUnit, chosen_voxel_size
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.netcdf_header import (
    HDF5_MAGIC,
    NETCDF3_MAGIC,
    DamagedFileError,
    open_block,
)
from ctlab_dask_zarr.read.netcdf_source import FORMAT, NetCDFSource
from ctlab_dask_zarr.read.netcdf_storage import Contiguous, StoredBlock
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

NAME = "NetCDF"
DESCRIPTION = FORMAT

#: About the size of mango's own blocks; a larger file is read in parts of this size if possible.
_BLOCK_NBYTES = 512 * 2**20

#: Warn if `chunks` make every stored chunk be decompressed this many times.
_MANY_TIMES = 4

_NETCDF_MAGIC = (HDF5_MAGIC, *NETCDF3_MAGIC)


def can_open(path: str) -> bool:
    """Whether a path is a mango netCDF volume, by its content.

    A damaged file, or one of a form that is not read, counts if its name ends in ``.nc``, so that
    opening it can say what is wrong with it.
    """
    if os.path.isdir(path):
        return any(block_number(name) is not None for name in os.listdir(path))
    magic = _magic(path)
    if not magic:
        return path.endswith(".nc") and os.path.isfile(path)
    if not magic.startswith(_NETCDF_MAGIC):
        return False
    try:
        header, _ = open_block(path, None)
    except (DamagedFileError, UnsupportedFormatError):
        return path.endswith(".nc")
    except MetadataError:
        return False
    return header.variable in list(DataType) or header.zdim_total is not None


def looks_like(path: str) -> bool:
    """Whether a path is netCDF of any kind, or has a name like mango's."""
    if os.path.isdir(path) and any(name.endswith(".nc") for name in os.listdir(path)):
        return True
    return path.endswith(("_nc", ".nc")) or _magic(path).startswith(_NETCDF_MAGIC)


def is_ours(path: str) -> bool:
    """Whether a path is a volume of mango; a folder counts even if it lacks a block."""
    return can_open(path) if os.path.isdir(path) else bool(open_volume(path))


def _magic(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError:
        return b""


def open_volume(
    path: str | os.PathLike[str],
    *,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    ignore_block_chunks: bool | None = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    **kwargs: Any,
) -> Volume:
    """Open a mango netCDF volume lazily; only headers are read.

    All blocks are opened and checked against each other first, so that a missing part is known
    before anything is done. Voxels are viewed as their true data type: mango stores ``uint16`` as
    ``int16`` and ``uint8`` as ``int8``.

    Parameters
    ----------
    path
        A file, or a folder of ``block00000000.nc``, ...; other files in it do not matter.
    datatype
        Where the name of the variable in the file is wrong; its dtype has to be that of the file.
    chunks
        By default one block for each file, and several for a file above 512 MiB where its storage
        allows that.
    ignore_block_chunks
        True: one block for each file; False: one for each run of slices that is stored together.
    parse_history, voxel_size, voxel_unit, **kwargs
        As in `source.SourceKind.open_volume`.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    UnsupportedFormatError
        It is not netCDF, or a folder without blocks.
    IncompleteSourceError
        Blocks are missing, truncated, or belong to another volume; all of them are named.
    MetadataError
        The file is not a mango volume, or contradicts itself.
    InvalidArgumentError
        `datatype` cannot be that of the file.
    """
    local = local_path(path)
    try:
        wanted = None if datatype is None else DataType.from_basename(str(datatype))
    except ValueError as error:
        raise InvalidArgumentError(f"datatype: {error}") from error
    opened = _open_files(local, wanted)
    first, last = opened[0][0], opened[-1][0]
    size: Sequence[float] | None = first.voxel_size_xyz and first.voxel_size_xyz[::-1]
    stored = size, first.voxel_unit
    size, unit = chosen_voxel_size(local, 3, stored, voxel_size, voxel_unit)
    kind = _resolve_datatype(local, first, wanted)
    source = NetCDFSource(
        FORMAT,
        folder=local if os.path.isdir(local) else os.path.dirname(local),
        files=tuple(block for _, block in opened),
        shape=(last.z_stop, *first.shape[1:]),
        dtype=kind.dtype,
        variable=first.variable,
        dataset_id=first.dataset_id,
    )
    if chunks is None and ignore_block_chunks is not None:
        blocks = tuple(_heights(source, ignore_block_chunks)), *((n,) for n in source.shape[1:])
    else:
        blocks = _blocks(source, chunks)
    extra_attrs, refused = carried_attributes(first.attributes)
    if refused:
        names = ", ".join(refused)
        text = f"{local}: left out the attributes {names}, whose values JSON cannot hold"
        warnings.warn(shown(text), stacklevel=2)
    history = {key: str(value) for key, value in first.attributes.items()}
    return Volume(
        lazy_array(source, "netcdf", blocks, {"inline_array": True} | kwargs),
        dimension_names=("z", "y", "x"),
        voxel_unit=unit,
        voxel_size=size,
        datatype=kind,
        history=history_from_attributes(history, parse_history=parse_history),
        dataset_id=first.dataset_id,
        extra_attrs=extra_attrs,
        source=source,
    )


def _open_files(local: str, wanted: DataType | None) -> list[tuple[BlockHeader, StoredBlock]]:
    """Return headers and storage of all files in the order of z, or raise with every problem."""
    opened, failed = [], {}
    for path in _files(local):
        name = os.path.basename(path)
        try:
            opened.append(open_block(path, wanted))
        except DamagedFileError as error:
            failed[name] = (error.kind, str(error))
        except (MetadataError, UnsupportedFormatError) as error:
            if not os.path.isdir(local):
                raise type(error)(f"{local} {error}") from error
            failed[name] = ("unreadable", str(error))
    problems = validate_blocks([header for header, _ in opened], failed)
    if problems:
        raise IncompleteSourceError(
            f"{local} is not a whole volume:\n{describe_problems(problems)}"
        )
    return sorted(opened, key=lambda pair: pair[0].z_start)


def _files(local: str) -> list[str]:
    """Return the files of the volume in the order of their numbers."""
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
            "open the folder that holds them, or a single file"
        )
    return [os.path.join(local, name) for _, name in numbered]


def _resolve_datatype(local: str, header: BlockHeader, wanted: DataType | None) -> DataType:
    """Return the data type: the user's, or else from the variable, or else from the path."""
    if wanted is not None:
        if not is_stored_as(wanted, header.stored_dtype):
            raise InvalidArgumentError(
                f"datatype {wanted.value!r} is {wanted.dtype}, which cannot be what {local} stores "
                f"as {header.stored_dtype} in its variable {header.variable!r}"
            )
        return wanted
    try:
        is_named = header.variable in list(DataType)
        kind = DataType(header.variable) if is_named else DataType.infer_from_path(local)
    except ValueError as error:
        raise MetadataError(
            f"neither the variable {header.variable!r} of {local} nor its name is a mango "
            "data type: say which it is with datatype="
        ) from error
    if not is_stored_as(kind, header.stored_dtype):
        raise MetadataError(
            f"{local} stores {header.stored_dtype} as data type {kind.value!r}, which is "
            f"{kind.dtype}: say what it is with datatype="
        )
    return kind


def _blocks(source: NetCDFSource, chunks: Any) -> tuple[tuple[int, ...], ...]:
    """Return the blocks of the dask array; warn if stored chunks would be decoded many times."""
    if chunks is None:
        return tuple(_default_heights(source)), *((n,) for n in source.shape[1:])
    blocks: tuple[tuple[int, ...], ...] = da.core.normalize_chunks(
        chunks, source.shape, dtype=source.dtype
    )
    times = 1.0
    for heights, unit, n in zip(blocks, source.chunk_shape, source.shape, strict=True):
        stops = itertools.accumulate(heights)
        touched = sum(
            -(-stop // unit) - (stop - height) // unit
            for stop, height in zip(stops, heights, strict=True)
        )
        times *= touched / max(-(-n // unit), 1)
    if times >= _MANY_TIMES:
        warnings.warn(
            f"with blocks of {tuple(map(max, blocks))} all of {shown(source.folder)} is "
            f"decompressed {times:.0f} times, because it is stored in pieces of "
            f"{source.chunk_shape}: leave chunks out and rechunk the array",
            stacklevel=3,
        )
    return blocks


def _default_heights(source: NetCDFSource) -> Iterator[int]:
    """Yield one block for each file, or several for a large file that can be read in parts."""
    slice_nbytes = math.prod(source.shape[1:]) * source.dtype.itemsize
    for block in source.blocks:
        rest = block.z_stop - block.z_start
        unit = _stored_height(block)
        step = max(_BLOCK_NBYTES // max(slice_nbytes * unit, 1), 1) * unit
        while rest:
            yield min(step, rest)
            rest -= min(step, rest)


def _heights(source: NetCDFSource, is_whole: bool) -> Iterator[int]:
    """Yield the slices of each file, or of each run of slices that a file stores together."""
    for block in source.blocks:
        n_slices = block.z_stop - block.z_start
        step = n_slices if is_whole else _stored_height(block)
        yield from (min(step, n_slices - z) for z in range(0, n_slices, step))


def _stored_height(block: StoredBlock) -> int:
    return 1 if isinstance(block.storage, Contiguous) else block.storage.chunk_shape[0]
