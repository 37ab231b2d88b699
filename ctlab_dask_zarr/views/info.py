"""What a dataset is, from its metadata alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.history import History
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.read.source import open_to_compare
from ctlab_dask_zarr.store.store import storage_options_in_force
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.views.labels import read_label_images
from ctlab_dask_zarr.views.slices import extents_of

#: Facts about the layout, which only some kinds of source have.
_LAYOUT = {"shards", "chunks", "codecs"}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A description of a dataset.

    Attributes
    ----------
    path, format
        Where it is, and its file format.
    shape, axes, dtype, datatype
        Voxels along each axis, the names of the axes, NumPy's and mango's data type.
    nbytes
        Size of the voxels of the finest level, in bytes.
    voxel_size, voxel_unit, field_of_view
        Edge lengths of a voxel, their unit, and edge lengths of the volume in the same unit.
    levels, labels
        Levels of detail; the number of levels of each label image by its name, None if the labels
        cannot be read.
    shards, chunks, codecs
        The layout of a Zarr store: shard (None without sharding) and inner chunk in voxels. The
        codecs are None if this package does not decode them itself.
    blocks
        Numbers of blocks of a netCDF volume along each axis; None for a Zarr store.
    dataset_id, history
        mango's identifier and the history.
    """

    path: str
    format: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str
    datatype: str | None
    nbytes: int
    voxel_size: tuple[float, ...]
    voxel_unit: str
    field_of_view: tuple[float, ...]
    levels: tuple[Level, ...]
    labels: dict[str, int] | None
    shards: tuple[int, ...] | None = None
    chunks: tuple[int, ...] | None = None
    codecs: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None
    dataset_id: str | None
    history: History


def info(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> DatasetInfo:
    """Describe the dataset at a path; voxels are not read.

    Parameters
    ----------
    path
        A Zarr store, a mango netCDF file or a folder of its blocks.
    storage_options
        As in `dataset_to_zarr`.

    Raises
    ------
    DatasetNotFoundError, UnsupportedFormatError, IncompleteSourceError, MetadataError
        As in `Dataset.from_path`.

    Warns
    -----
    UserWarning
        The labels cannot be read.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, info
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr")
    ...     found = info(folder + "/scan.zarr")
    >>> found.chunks, found.codecs, found.field_of_view
    ((32, 32, 32), ('zstd',), (100.0, 162.5, 242.5))
    """
    with storage_options_in_force(storage_options):
        volume = open_to_compare(path)
        labels: dict[str, int] | None = None
        try:
            labels = {i.name: len(i.volume.levels) for i in read_label_images(volume)}
        except (CTLabError, OSError) as error:
            # The image itself is known without them.
            warnings.warn(f"the labels cannot be read: {shown(str(error))}", stacklevel=3)
    assert volume.source is not None
    facts = volume.source.facts()
    layout = {name: facts[name] and tuple(facts[name]) for name in _LAYOUT & facts.keys()}
    return DatasetInfo(
        path=os.fspath(path),
        format=facts["format"],
        shape=volume.shape,
        axes=volume.dimension_names,
        dtype=str(volume.dtype),
        datatype=None if volume.datatype is None else str(volume.datatype),
        nbytes=int(volume.data.nbytes),
        voxel_size=volume.voxel_size,
        voxel_unit=str(volume.voxel_unit),
        field_of_view=tuple(extents_of(volume)),
        levels=volume.levels,
        labels=labels,
        blocks=None if layout else volume.data.numblocks,
        dataset_id=volume.dataset_id,
        history=volume.history,
        **layout,
    )
