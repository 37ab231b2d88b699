"""The kind of source that is raw voxels: with a header (NRRD, MetaImage), or described by hand."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.raw_headers import (
    MAX_HEADER_NBYTES,
    METAIMAGE_KEYS,
    NRRD_MAGIC,
    RawHeader,
    parse_metaimage,
    parse_nrrd,
)
from ctlab_dask_zarr.formats.units import VoxelUnit, chosen_voxel_size
from ctlab_dask_zarr.read.deflated import DeflatedSource, inflated_nbytes
from ctlab_dask_zarr.read.files import FilesSource, Run, RunsSource, SourceFile, slab_blocks
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.volume import Volume

NAME = "raw"
DESCRIPTION = "raw voxels (NRRD, MetaImage, or with shape= and dtype=)"

_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".vol")


def can_open(path: str) -> bool:
    """Whether a file begins as a header of NRRD or MetaImage does."""
    return _format_of(path) is not None


def looks_like(path: str) -> bool:
    """Whether a path has the name of raw voxels, or of a header."""
    return path.lower().endswith(_ENDINGS)


def is_ours(path: str) -> bool:
    """Return False: the CTLab's programs write raw voxels without a header."""
    return False


def _format_of(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return None
    if start.startswith(NRRD_MAGIC):
        return "NRRD"
    return "MetaImage" if start.startswith(METAIMAGE_KEYS) else None


def open_volume(
    path: str | os.PathLike[str],
    *,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    byte_order: str | None = None,
    offset: int | None = None,
    **kwargs: Any,
) -> Volume:
    """Open raw voxels lazily; only the header is read.

    Parameters
    ----------
    path
        A header (``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``), or a file of voxels in C order.
    datatype
        The mango data type, if the voxels are one.
    chunks
        Blocks of the dask array; by default slabs of about 32 MiB.
    voxel_size, voxel_unit
        Instead of what the header says. Most headers do not say the unit.
    shape, dtype, byte_order, offset
        For a file without a header: number of voxels (z, y, x), their NumPy dtype, ``'little'``
        (the default) or ``'big'``, and where the voxels begin, in bytes (0 by default).
    **kwargs
        For `dask.array.from_array`.

    Raises
    ------
    DatasetNotFoundError
        A file is not there.
    IncompleteSourceError
        A file has not the size that its shape and dtype make.
    MetadataError
        The header contradicts itself.
    VoxelSizeError
        The voxel size or its unit is not known.
    UnsupportedFormatError
        Text, several numbers a voxel, other encodings than raw and gzip, or axes other than space.
    InvalidArgumentError
        Shape or dtype are missing, or given beside a header.
    """
    local = local_path(path)
    if not os.path.isfile(local):
        raise DatasetNotFoundError(f"{local} is not a file" if os.path.exists(local) else
                                   f"{local} does not exist")  # fmt: skip
    form = _format_of(local)
    described = {"shape": shape, "dtype": dtype, "byte_order": byte_order, "offset": offset}
    given = [name for name, value in described.items() if value is not None]
    if form is None:
        header, begins = _by_hand(local, shape, dtype, byte_order), offset or 0
    elif given:
        raise InvalidArgumentError(
            f"{local} has a header of {form}, which says {given[0]} itself: leave {given[0]} out"
        )
    else:
        header, begins = _read_header(local, form)
    source = _source(local, form or "raw voxels", header, begins)
    ndim = len(header.shape)
    stored = header.lengths, header.unit
    size, unit = chosen_voxel_size(local, ndim, stored, voxel_size, voxel_unit)
    own_lengths = voxel_size is None and voxel_unit is None
    blocks = slab_blocks(source.shape, source.dtype.itemsize) if chunks is None else chunks
    return Volume(
        lazy_array(source, "raw", blocks, kwargs),
        dimension_names=("z", "y", "x")[-ndim:],
        voxel_unit=unit,
        voxel_size=size,
        datatype=datatype,
        origin=header.origin if own_lengths else None,
        source=source,
    )


def _by_hand(
    local: str, shape: Sequence[int] | None, dtype: Any, byte_order: str | None
) -> RawHeader:
    """Return the header of a file without one."""
    if shape is None or dtype is None:
        raise InvalidArgumentError(
            f"{local} has no header: say what it holds with shape=(z, y, x) and dtype= "
            "(--shape 100,200,300 --dtype uint16)"
        )
    if byte_order not in (None, "little", "big"):
        raise InvalidArgumentError(f"byte_order={byte_order!r} is neither 'little' nor 'big'")
    lengths = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(lengths) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in lengths):
        raise InvalidArgumentError(f"shape={shape!r} is not two or three numbers of voxels")
    try:
        voxel = np.dtype(dtype)
    except TypeError as error:
        raise InvalidArgumentError(f"dtype={dtype!r} is not a dtype of NumPy: {error}") from error
    if voxel.kind not in "iuf":
        raise InvalidArgumentError(f"dtype={dtype!r} is not of integers or floats")
    order = {"little": "<", "big": ">"}.get(byte_order or "", voxel.byteorder.replace("=", "<"))
    return RawHeader(lengths, voxel.newbyteorder(order), (), 0, False, None, None, None)


def _read_header(local: str, form: str) -> tuple[RawHeader, int]:
    """Return the header of a file, and where it ends, in bytes."""
    with open(local, "rb") as file:
        start = file.read(MAX_HEADER_NBYTES)
    if form == "NRRD":
        ends = [
            start.find(blank) + len(blank) for blank in (b"\n\n", b"\r\n\r\n") if blank in start
        ]
        end = min(ends, default=len(start))
    else:
        place = start.find(b"ElementDataFile")
        newline = start.find(b"\n", place)
        end = len(start) if place < 0 or newline < 0 else newline + 1
        if start[place:end].split(b"=")[-1].split()[:1] == [b"LIST"]:
            end = len(start)
    try:
        text = start[:end].decode("latin-1")
        return (parse_nrrd if form == "NRRD" else parse_metaimage)(text), end
    except (MetadataError, UnsupportedFormatError) as error:
        raise type(error)(f"{local}: {error}") from error


def _source(local: str, form: str, header: RawHeader, begins: int) -> FilesSource:
    """Return what reads the voxels, after comparing the files' sizes with the shape's."""
    folder = os.path.dirname(local)
    names = header.data_files or (os.path.basename(local),)
    try:
        files = tuple(SourceFile.at(folder, name) for name in names)
    except DatasetNotFoundError as error:
        raise IncompleteSourceError(
            f"{error}, which the header {local} names: put it beside the header"
        ) from error
    native = header.dtype.newbyteorder("=")
    common = form, folder, files, header.shape, native
    nbytes = math.prod(header.shape) * native.itemsize
    is_swapped = not header.dtype.isnative
    begins = max(header.skip, 0) + (0 if header.data_files else begins)
    if header.is_compressed:
        where = os.path.join(folder, names[0])
        _refuse_size(where, inflated_nbytes(where, begins), nbytes & 0xFFFFFFFF, "inflated, ")
        return DeflatedSource(*common, begins=begins, is_swapped=is_swapped)
    n_lines = math.prod(header.shape[:-1])
    share, rest = divmod(n_lines, len(files))
    if rest:
        raise MetadataError(f"{local} names {len(files)} files for {header.shape} voxels")
    runs = []
    for number, file in enumerate(files):
        wanted = nbytes // len(files)
        start = file.nbytes - wanted if header.skip == -1 else begins
        _refuse_size(os.path.join(folder, file.name), file.nbytes - start, wanted, "")
        runs.append(Run(number, start, share))
    return RunsSource(*common, runs=tuple(runs), is_swapped=is_swapped)


def _refuse_size(path: str, found: int | None, wanted: int, how: str) -> None:
    if found is not None and found != wanted:
        raise IncompleteSourceError(
            f"{path} holds {found:,} bytes of voxels, {how}where shape and type make {wanted:,}: "
            "the file is not whole, or the header (or shape, dtype, offset) is wrong"
        )
