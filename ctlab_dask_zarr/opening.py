"""Functions that open one kind of source as a `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ctlab_dask_zarr.arguments import refuse_unknown
from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.waits import opening


def dataset_from_zarr(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    strict: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    follow_links: bool | None = None,
    **kwargs: Any,
) -> Dataset:
    """Open a Zarr store lazily, as a `Dataset` whose blocks are shards.

    OME-Zarr images of 0.1 to 0.6 and plain arrays of Zarr v3 and v2 are read, with or without
    mango's metadata; nothing is ever written. The voxel size of an image is that of its OME
    metadata, the voxel size of a plain array its ``voxel_size_xyz``, in the order x, y, z. Axes of
    channels and times with one element are
    left out. If axes have different units, all lengths are converted to one unit. If a unit is not
    known, such as ``pixel``, lengths are taken for voxels, with a warning.

    Parameters
    ----------
    path
        The store.
    level
        Which level of detail, 0 for the finest; `Dataset.levels` lists them.
    strict
        Whether a missing shard is an error (True) or fill values (False). By default it is an error
        if this package wrote the store, because it writes every shard. In other stores missing
        shards are fill values, as the Zarr specification says.
    storage_options
        For a URL of an object store: ``{"endpoint": ..., "region": ...}`` by obstore's names, never
        with credentials, which come from the environment.
    voxel_size, voxel_unit
        Edge lengths of a voxel (one for all axes, or one each) and their unit, instead of what the
        store says. The unit alone does not convert the numbers that are stored.
    follow_links
        Whether to follow links that lead out of the store, as git-annex makes them. By default the
        setting ``ctlab-zarr.follow-links`` decides, which refuses them.
    **kwargs
        For `dask.array.from_array`, for example ``chunks=(64, 512, 512)``.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    UnsupportedFormatError
        It is not a Zarr store, its version of OME-Zarr or of mango's metadata is unknown, or it
        is an image without two or three axes of space, or with several channels or times.
    IncompleteDatasetError
        An array that the metadata lists is missing.
    MetadataError
        The metadata contradicts itself.
    InvalidArgumentError
        There is no such level.
    """
    from ctlab_dask_zarr.read.zarr import open_volume

    refuse_unknown(dataset_from_zarr, kwargs)
    with opening(path):
        volume = open_volume(
            path,
            level=level,
            strict=strict,
            storage_options=storage_options,
            voxel_size=voxel_size,
            voxel_unit=voxel_unit,
            follow_links=follow_links,
            **kwargs,
        )
    return Dataset._of(volume)


def dataset_from_netcdf(
    path: str | os.PathLike[str],
    *,
    parse_history: bool = True,
    ignore_block_chunks: bool | None = None,
    datatype: DataType | str | None = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    **kwargs: Any,
) -> Dataset:
    """Open mango netCDF lazily, a file or a folder of blocks, as a `Dataset`.

    All blocks are opened and checked against each other first, so that a missing one is known.

    Parameters
    ----------
    path
        The file, or the folder.
    parse_history
        Whether the text of the history becomes nested parameters.
    ignore_block_chunks
        True makes one block of the dask array for each file, False one for each run of slices that
        a file stores together. By default large files are divided where their storage allows it.
    datatype
        Where the name of the variable in the file is wrong; its dtype has to be that of the file.
    voxel_size, voxel_unit
        Edge lengths of a voxel (one for all axes, or one each) and their unit, instead of what the
        file says.
    **kwargs
        For `dask.array.from_array`, for example ``chunks=(64, 512, 512)``.

    Raises
    ------
    DatasetNotFoundError, UnsupportedFormatError, IncompleteSourceError, MetadataError
        As `Dataset.from_path`: there is nothing, it is no netCDF, blocks are missing or damaged, or
        they contradict themselves.
    InvalidArgumentError
        `datatype` cannot be that of the file.
    """
    from ctlab_dask_zarr.read.netcdf import open_volume

    refuse_unknown(dataset_from_netcdf, kwargs)
    volume = open_volume(
        path,
        parse_history=parse_history,
        ignore_block_chunks=ignore_block_chunks,
        datatype=datatype,
        voxel_size=voxel_size,
        voxel_unit=voxel_unit,
        **kwargs,
    )
    return Dataset._of(volume)
