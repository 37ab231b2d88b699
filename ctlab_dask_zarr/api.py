"""Write and read: resolve, plan, build, write shards, commit.

`dataset_to_zarr` reads top to bottom as the write happens. Everything up to `build_graph` is
free of side effects.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.base import is_dask_collection

from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.errors import (
    CTLabError,
    DestinationExistsError,
    InvalidArgumentError,
    WriteFailedError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.ome import OMEZarrVersion, ScalePlacement
from ctlab_dask_zarr.read.zarr import dataset_from_zarr
from ctlab_dask_zarr.runtime.resources import scheduler_resources
from ctlab_dask_zarr.write.commit import CommitResult
from ctlab_dask_zarr.write.destination import destination_problem, staging_path
from ctlab_dask_zarr.write.graph import SourceGraph, analyse_source, build_graph
from ctlab_dask_zarr.write.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.write.plan import WritePlan
from ctlab_dask_zarr.write.resolve import WriteOptions, plan_write

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

    from ctlab_dask_zarr.formats.history import History

__all__ = ["dataset_from_zarr", "dataset_to_zarr", "plan"]


def dataset_to_zarr(
    dataset: Dataset,
    path: str | os.PathLike[str],
    datatype: DataType | str | None = None,
    dataset_id: str | None = None,
    ome_zarr_version: OMEZarrVersion | None = OMEZarrVersion.v05,
    max_shard_size_mb: float | None = None,
    history: History | None = None,
    chunk_size_mb: float | None = None,
    chunks: ChunkSpec = "auto",
    shards: ShardSpec = "auto",
    create_array_kwargs: Mapping[str, Any] | None = None,
    dimension_separator_threshold: int | None = 64,
    *,
    compute: bool = True,
    overwrite: bool = False,
    scale_placement: ScalePlacement = "dataset",
    resume: bool = False,
    restart: bool = False,
    **extra_attrs: Any,
) -> Delayed | None:
    """Write a dataset as a sharded, committed OME-Zarr.

    Nothing is visible at the destination before every shard is written; a failed or killed write
    leaves a staging folder beside it, and the destination as it was.

    Parameters
    ----------
    dataset
        What to write: a `Dataset`, or an object with the same properties.
    path
        The store to make; ``.zarr`` is appended where it is missing.
    datatype
        The mango data type; by default the dataset's own.
    dataset_id
        By default the dataset's own, else one made from the local time and the data type.
    ome_zarr_version
        `OMEZarrVersion.v05` for an OME-Zarr 0.5 group with the array at ``0``, or None for a plain
        Zarr v3 array with mango metadata.
    max_shard_size_mb, chunk_size_mb
        Deprecated and ignored.
    history
        Replaces the dataset's history.
    chunks
        Inner chunk: a shape in elements (0 spans the shard, or without sharding the array), a
        target number of elements, or ``'auto'``: 32**3, for two-dimensional data 256**2.
    shards
        Shard: a shape in elements (0 spans the array), a target number of elements, ``'auto'``:
        512**3 or 8192**2, or None to write without sharding.
    create_array_kwargs
        Further arguments of `zarr.create_array`, for example ``{"compressors": ...}``.
    dimension_separator_threshold
        Chunk keys are separated by ``/`` where there are more stored objects than this, by ``.``
        otherwise; None leaves it to zarr.
    compute
        False returns a `dask.delayed.Delayed` whose computing stages, writes and commits.
    overwrite
        Whether to replace a Zarr store at the destination, at the moment of the commit.
    scale_placement
        Where the physical voxel size stands: on each ``'dataset'`` (what most readers look at) or
        on the ``'multiscales'`` entry (as mango's own files have it).
    resume
        Go on from the staging folder of an interrupted write of the same dataset and settings.
    restart
        Remove the staging folder of an interrupted write first.
    **extra_attrs
        Further fields of the mango block.

    Raises
    ------
    InvalidArgumentError, MetadataError
        Something is wrong with the arguments or the metadata; nothing was touched.
    DestinationExistsError, StagingExistsError
        Something is in the way; it was not touched.
    WriteFailedError
        A task failed; the destination is as it was, the staging folder is kept.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> dataset_to_zarr(ds, folder.name + "/scan.zarr")
    >>> dataset_from_zarr(folder.name + "/scan.zarr")
    <Dataset tomo (z: 40, y: 65, x: 97) uint16, voxel 2.5 um>
    >>> folder.cleanup()
    """
    _warn_of_ignored_sizes(chunk_size_mb, max_shard_size_mb)
    options = WriteOptions(
        datatype=datatype,
        dataset_id=dataset_id,
        ome_zarr_version=ome_zarr_version,
        history=history,
        chunks=chunks,
        shards=shards,
        create_array_kwargs=create_array_kwargs,
        dimension_separator_threshold=dimension_separator_threshold,
        overwrite=overwrite,
        scale_placement=scale_placement,
        extra_attrs=extra_attrs,
    )
    write, write_plan = build_write(dataset, path, options, resume=resume, restart=restart)
    if not compute:
        return write
    run_write(write, write_plan.destination)
    return None


def plan(
    dataset: Dataset,
    path: str | os.PathLike[str],
    datatype: DataType | str | None = None,
    dataset_id: str | None = None,
    ome_zarr_version: OMEZarrVersion | None = OMEZarrVersion.v05,
    max_shard_size_mb: float | None = None,
    history: History | None = None,
    chunk_size_mb: float | None = None,
    chunks: ChunkSpec = "auto",
    shards: ShardSpec = "auto",
    create_array_kwargs: Mapping[str, Any] | None = None,
    dimension_separator_threshold: int | None = 64,
    *,
    overwrite: bool = False,
    scale_placement: ScalePlacement = "dataset",
    **extra_attrs: Any,
) -> WritePlan:
    """Return what `dataset_to_zarr` would do with the same arguments; nothing is done.

    Examples
    --------
    >>> import dask.array as da
    >>> from ctlab_dask_zarr import Dataset, plan
    >>> ds = Dataset(
    ...     da.ones((4096, 4096, 4096), dtype="uint16", chunks=512),
    ...     dimension_names=("z", "y", "x"), voxel_unit="um", voxel_size=(2.5, 2.5, 2.5),
    ... )
    >>> plan(ds, "scan.zarr").n_shards
    512
    """
    _warn_of_ignored_sizes(chunk_size_mb, max_shard_size_mb)
    options = WriteOptions(
        datatype=datatype,
        dataset_id=dataset_id,
        ome_zarr_version=ome_zarr_version,
        history=history,
        chunks=chunks,
        shards=shards,
        create_array_kwargs=create_array_kwargs,
        dimension_separator_threshold=dimension_separator_threshold,
        overwrite=overwrite,
        scale_placement=scale_placement,
        extra_attrs=extra_attrs,
    )
    return _plan(dataset, path, options, _analysed_source(dataset))


def build_write(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: WriteOptions,
    *,
    resume: bool = False,
    restart: bool = False,
) -> tuple[Delayed, WritePlan]:
    """Plan a write and build its graph; nothing is touched."""
    if resume and restart:
        raise InvalidArgumentError("resume and restart exclude one another: pass one of them")
    source = _analysed_source(dataset)
    write_plan = _plan(dataset, path, options, source)
    problem = destination_problem(write_plan.destination, overwrite=options.overwrite)
    if problem is not None:
        raise DestinationExistsError(problem)
    run_id = uuid.uuid4().hex
    return build_graph(write_plan, source, run_id, resume=resume, restart=restart), write_plan


def _plan(
    dataset: Dataset, path: str | os.PathLike[str], options: WriteOptions, source: SourceGraph
) -> WritePlan:
    return plan_write(
        dataset,
        path,
        options,
        block_lengths=source.chunks,
        independent=source.is_independent,
        resources=scheduler_resources(),
        now=datetime.now(),
    )


def run_write(write: Delayed, destination: str, client: Client | None = None) -> CommitResult:
    """Compute a write, on `client` or on the scheduler in force, and wait for its commit."""
    try:
        result = write.compute() if client is None else client.compute(write).result()
    except CTLabError:
        raise
    except Exception as error:
        raise WriteFailedError(
            f"writing {destination} failed: {type(error).__name__}: {error}. The destination is as "
            f"it was; the shards written so far are in {staging_path(destination)}. Go on by "
            "resume=True (--resume), or start anew by restart=True (--restart)"
        ) from error
    committed: CommitResult = result
    return committed


def _analysed_source(dataset: Dataset) -> SourceGraph:
    data: Any = getattr(dataset, "data", None)
    if not is_dask_collection(data) or not hasattr(data, "chunks"):
        raise InvalidArgumentError(
            f"dataset.data is a {type(data).__name__}; it has to be a dask array, as "
            "dask.array.from_array makes one"
        )
    if any(np.isnan(n) for n in data.shape):
        raise InvalidArgumentError(
            "the dask array has axes of unknown length: call its compute_chunk_sizes() first"
        )
    if 0 in data.shape:
        raise InvalidArgumentError(f"the array {data.shape} has an axis without elements")
    return analyse_source(data)


def _warn_of_ignored_sizes(chunk_size_mb: float | None, max_shard_size_mb: float | None) -> None:
    given = {"chunk_size_mb": chunk_size_mb, "max_shard_size_mb": max_shard_size_mb}
    ignored = [name for name, value in given.items() if value is not None]
    if ignored:
        warnings.warn(
            f"{', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored when writing "
            "Zarr. Use chunks/shards or 'auto' instead.",
            UserWarning,
            stacklevel=3,
        )
