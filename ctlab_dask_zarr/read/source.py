"""The kinds of source that are read: each is one module of this room, and one name in `KINDS`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from ctlab_dask_zarr.arguments import parameters_of, refuse_unknown
from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    InvalidArgumentError,
    UnsupportedFormatError,
    VoxelSizeError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read import hdf5, netcdf, raw, tiff, zarr
from ctlab_dask_zarr.read.files import slab_blocks
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.source_array import SourceArray
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.waits import opening

#: What `chunks` is for slabs of whole slices.
SLABS = "slabs"
#: A slab is of at most so many bytes; of a source whose units of decoding would take more, blocks
#: are read as they are.
_MAX_SLAB_NBYTES = 1 << 30
#: About the size of a slab.
_SLAB_NBYTES = 128 << 20


class SourceKind(Protocol):
    """What a module offers that opens one kind of source. Paths are as `storage_path` gives them.

    Attributes
    ----------
    NAME
        As ``filetype=`` takes it, in any case.
    DESCRIPTION
        What it reads, as a message lists it: ``a Zarr store``.
    """

    NAME: str
    DESCRIPTION: str

    def can_open(self, path: str) -> bool:
        """Whether what is at the path is of this kind, by its content."""

    def looks_like(self, path: str) -> bool:
        """Whether the path seems to be of this kind, so that opening it can say what is wrong.

        It is asked where no kind can open what is there, or where nothing is there.
        """

    def is_ours(self, path: str) -> bool:
        """Whether the CTLab's programs wrote it: xarray opens it then without being told how."""

    def open_volume(
        self,
        path: str | os.PathLike[str],
        *,
        datatype: DataType | str | None = None,
        parse_history: bool = True,
        chunks: Any = None,
        voxel_size: Sequence[float] | float | None = None,
        voxel_unit: VoxelUnit | str | None = None,
        **kwargs: Any,
    ) -> Volume:
        """Open it lazily: a volume with a `volume.Source`.

        Parameters
        ----------
        datatype, voxel_size, voxel_unit
            Instead of what the source says; one length is for all axes.
        parse_history
            Whether text of a history becomes nested parameters.
        chunks
            Blocks of the dask array, in any form that dask knows.
        **kwargs
            What else this kind takes; the rest is for `dask.array.from_array`.

        Raises
        ------
        DatasetNotFoundError, UnsupportedFormatError, IncompleteSourceError, IncompleteDatasetError,
        MetadataError, InvalidArgumentError
        """


#: The kinds in the order in which they are asked.
KINDS: tuple[SourceKind, ...] = (zarr, netcdf, hdf5, tiff, raw)


def kind_of(path: str | os.PathLike[str]) -> SourceKind:
    """Return the kind of what is at a path: by its content, then by what it looks like.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path, and its name is of no kind.
    UnsupportedFormatError
        Neither content nor name is of a kind that is read here.
    """
    root = storage_path(path)
    for kind in KINDS:
        if kind.can_open(root):
            return kind
    for kind in KINDS:
        if kind.looks_like(root):
            return kind
    if not os.path.lexists(root):
        raise DatasetNotFoundError(f"{root} does not exist")
    known = "; ".join(kind.DESCRIPTION for kind in KINDS)
    raise UnsupportedFormatError(f"{root} is not of a kind that is read here: {known}")


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether the CTLab's programs wrote what is at a path; raises where it cannot be told."""
    root = storage_path(path)
    return kind_of(root).is_ours(root)


def open_volume(path: str | os.PathLike[str], filetype: str = "auto", **options: Any) -> Volume:
    """Open a source of any kind: see `Dataset.from_path`, and `SourceKind.open_volume`."""
    with opening(path):
        kind = kind_of(path) if filetype == "auto" else _kind_named(filetype)
    for name in options:
        if name in parameters_of(kind.open_volume):
            continue
        others = [other for other in KINDS if name in parameters_of(other.open_volume)]
        if others:
            raise InvalidArgumentError(
                f"{storage_path(path)} is {kind.DESCRIPTION}: {name}= is for "
                f"{others[0].DESCRIPTION}; leave it out"
            )
    refuse_unknown(kind.open_volume, options, "Dataset.from_path")
    is_in_slabs = isinstance(chunks := options.get("chunks"), str) and chunks == SLABS
    if is_in_slabs:
        options["chunks"] = None
    with opening(path):
        volume = kind.open_volume(path, **options)
        return in_slabs(volume) if is_in_slabs else volume


def in_slabs(volume: Volume) -> Volume:
    """Return a volume in blocks of whole slices, if it was opened or is a part of what was.

    A slab is of about 128 MiB, and of whole stored chunks.
    """
    # A dataset of another package may have no source.
    data, source = volume.data, getattr(volume, "source", None)
    region = (source, (slice(None),) * data.ndim) if source is not None else None
    if isinstance(data, SourceArray):
        region = data.region
    if region is None or data.ndim < 2:
        return volume
    source, index = region
    axis = next(n for n, part in enumerate(index) if isinstance(part, slice))
    # Of all axes that are stored, these are the last ones.
    chunks: Any = source.facts().get("chunks")
    unit = int(chunks[len(chunks) - len(index) + axis]) if chunks else max(data.chunks[0])
    height = slab_blocks(data.shape, data.dtype.itemsize, unit, _SLAB_NBYTES)[0][0]
    is_small = height * data.nbytes // data.shape[0] <= _MAX_SLAB_NBYTES
    if not is_small and any(len(lengths) > 1 for lengths in data.chunks[1:]):
        return volume
    blocks = tuple(height if n == axis else -1 for n in range(len(index)))
    return volume.with_blocks(lazy_array(source, "slabs", blocks, {})[index])


def open_to_compare(path: str | os.PathLike[str]) -> Volume:
    """Open a source for its voxels: an unknown voxel size is one voxel, and not an error."""
    try:
        return open_volume(path)
    except VoxelSizeError:
        return open_volume(path, voxel_size=1.0, voxel_unit=VoxelUnit.VOXEL)


def _kind_named(filetype: str) -> SourceKind:
    for kind in KINDS:
        if kind.NAME.lower() == filetype.lower():
            return kind
    names = ", ".join(repr(kind.NAME) for kind in KINDS)
    raise UnsupportedFormatError(f"filetype {filetype!r} is not one of {names}, 'auto'")
