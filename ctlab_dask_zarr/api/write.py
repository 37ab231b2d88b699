"""Write a dataset: plan, prepare, run; the last task of a run commits."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    RunOptions,
    bound_write,
    in_force,
    plan_dataset,
    prepare_write,
    refuse_taken,
    refuse_too_little_memory,
    reported,
    run_reported,
    started,
    takes_arguments_of,
)
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.ome import OMEZarrVersion, ScalePlacement
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.planning.levels import DownsampleMethod, LevelSpec
from ctlab_dask_zarr.planning.occupied import (
    open_files_problem,
    place_problem,
    space_problem,
)
from ctlab_dask_zarr.planning.plan import Overwrite, WritePlan
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.planning.resolve import WriteOptions, existing_write, refuse_contradictions
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.store import storage_options_in_force
from ctlab_dask_zarr.waits import opening
from ctlab_dask_zarr.write.prepared import PreparedWrite, prepare_commit
from ctlab_dask_zarr.write.staging.commit import CommitResult, committed_result
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import is_committed

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.volume import Volume


@dataclass(frozen=True)
class WriteResult:
    """What a write has done.

    Attributes
    ----------
    destination
        The store.
    n_shards
        Shards of all levels; for a part, those of the part.
    n_resumed, n_half_made
        Shards that an interrupted write had left complete, and those that it had left incomplete
        and that were made again.
    n_objects, stored_nbytes
        Number of stored objects without metadata, and their size in bytes (None for a part).
    nbytes
        Size of the voxels of all levels before compression, in bytes.
    shape, n_levels
        Shape of level 0, in voxels, and the number of levels.
    seconds
        Time that the write took.
    """

    destination: str
    n_shards: int
    n_resumed: int
    n_half_made: int
    n_objects: int
    stored_nbytes: int | None
    nbytes: int
    shape: tuple[int, ...]
    n_levels: int
    seconds: float


def dataset_to_zarr(
    dataset: Volume,
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
    input_aligned_chunks: bool = False,
    compute: bool = True,
    *,
    codec: str | None = None,
    overwrite: Overwrite = False,
    scale_placement: ScalePlacement | None = None,
    levels: LevelSpec | None = None,
    downsample: DownsampleMethod | None = None,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    **extra_attrs: Any,
) -> Delayed | None:
    """Write a dataset as a sharded, committed OME-Zarr.

    Nothing is visible at the destination before every shard is written. A failed or killed write
    leaves a staging folder beside the destination, and the destination itself as it was.

    Parameters
    ----------
    dataset
        What to write: a `Dataset`, or an object with the same properties.
    path
        The store to make; ``.zarr`` is appended where it is missing.
    datatype
        The mango data type; by default the dataset's own.
    dataset_id
        The identifier. By default the dataset's own, or if it has none, one made from the local
        time and the data type.
    ome_zarr_version
        `OMEZarrVersion.v05` for an OME-Zarr 0.5 group with the array at ``0``, or None for a plain
        Zarr v3 array with mango metadata. `OMEZarrVersion.v06` is for programs that ask for 0.6:
        others do not read it yet (`check_readers` says which).
    max_shard_size_mb, chunk_size_mb
        Deprecated and ignored.
    history
        Entries to add to those of the dataset; an entry replaces one with the same key.
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
    input_aligned_chunks
        True makes each block of the dask array a shard (without sharding, a chunk), so that no
        block is made twice; inner chunks divide it. The blocks along an axis have to be equally
        long, but for a shorter last one. `shards` and `chunks` that are given have to divide the
        blocks evenly, and a 0 in `shards` spans a block.
    compute
        False returns a `dask.delayed.Delayed`; computing it stages, writes and commits.
    codec
        How inner chunks are compressed: ``'zstd:3'``, ``'blosc:zstd:3:shuffle'``, ``'gzip:6'``,
        ``'lz4'`` or ``'none'``; by default what dask's configuration says, else ``'zstd'``.
        ``'auto'`` encodes a sample and takes the smallest that is fast enough, ``'auto:small'`` the
        smallest, ``'auto:fast'`` the fastest that still saves (docs/codecs.md).
    overwrite
        Replace a Zarr store at the destination, at the moment of the commit. An image that has
        labels is replaced only with ``'drop_labels'``, and its labels are then lost.
    scale_placement
        Where the OME metadata has the voxel size: on each ``'dataset'`` (which most readers read)
        or on the ``'multiscales'`` entry (as in mango's own files).
    levels
        Number of levels of detail including the data itself, by default 1. Each has half as many
        voxels as the one before along the axes that are halved (see docs/pyramids.md). ``'auto'``
        adds levels until the longest axis has 256 voxels or fewer, which viewers show at once.
    downsample
        How a level becomes the next: ``'mean'``, ``'mode'``, ``'nearest'`` or ``'max'`` of the
        voxels that are not masked. By default the mode for classes (segmented, labels) and the
        mean for everything else.
    resume
        Continue an interrupted write of the same dataset with the same settings, from its staging
        folder.
    restart
        First remove the staging folder of an interrupted write.
    storage_options
        For a URL of an object store: ``{"endpoint": ..., "region": ...}`` by obstore's names; never
        credentials, which come from the environment (docs/object-stores.md).
    part
        ``(3, 8)`` writes the third of eight parts, so that eight jobs can share a write. When all
        parts are written, `commit` publishes the dataset.
    client
        The `distributed.Client` to run on, or a function that returns one; it is called once
        nothing stands in the way of the write. By default dask's scheduler in force. For `plan`
        and with ``compute=False`` the `Resources` of the workers are enough.
    progress
        True shows a bar, on standard error or below the cell of a notebook, and False shows none;
        by default only notebooks show it. A function is called with a `Progress` as shards are
        written. The logger ``ctlab_dask_zarr`` is told the same at the level INFO.
    stop
        A `Stop`, which ends the write before a deadline, on a signal or on request.
    **extra_attrs
        Further fields of the mango block. Names that are parameters elsewhere are refused.

    Raises
    ------
    InvalidArgumentError, MetadataError
        Something is wrong with the arguments or the metadata, or the memory of a worker is too
        small; nothing was touched.
    DestinationExistsError, StagingExistsError
        Something is at the destination or its staging folder; it was not touched.
    WriteFailedError, WriteStoppedError
        A task failed, or `stop` ended the write; the destination is as it was, and the staging
        folder stays for ``resume=True``.

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
    dataset, options, how = bound_write(locals())
    if compute:
        _write(dataset, path, options, how)
        return None
    graph: Delayed = _prepare(dataset, path, options, how, started(client)).graph
    return graph


@takes_arguments_of(dataset_to_zarr, without="compute")
def write_dataset(
    dataset: Volume, path: str | os.PathLike[str], options: WriteOptions, how: RunOptions
) -> WriteResult:
    """Write a dataset as `dataset_to_zarr` does, with the same arguments; return what was done.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, write_dataset
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = write_dataset(ds, folder + "/scan.zarr", levels=2)
    >>> result.n_levels, result.n_shards, result.nbytes
    (2, 2, 569080)
    """
    return _write(dataset, path, options, how)


@takes_arguments_of(dataset_to_zarr)
def plan(
    dataset: Volume, path: str | os.PathLike[str], options: WriteOptions, how: RunOptions
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
    refuse_contradictions(how.resume, how.restart, how.part)
    client = started(how.client)
    n_jobs = how.part[1] if how.part else 1
    with storage_options_in_force(how.storage_options), in_force(client) as resources:
        goes_on = how.resume or how.part is not None
        planned = plan_dataset(
            dataset, path, options, resources=resources, n_jobs=n_jobs, goes_on=goes_on
        )
        place = Destination.at(planned.destination)
        is_new = not (goes_on or how.restart)
        problem = place_problem(place, overwrite=options.overwrite, is_new=is_new)
        lacks = (space_problem(place, planned.nbytes), open_files_problem(planned))
        planned = replace(planned, notes=(*planned.notes, *filter(None, lacks)))
    notes = planned.notes if problem is None else (*planned.notes, problem)
    return replace(planned, notes=notes, destination_problem=problem)


def _write(
    dataset: Volume, path: str | os.PathLike[str], options: WriteOptions, how: RunOptions
) -> WriteResult:
    start_s = time.monotonic()
    # One display for all: workers start, and then shards are written.
    with reported(how.progress):
        client = how.client
        if callable(client):
            with storage_options_in_force(how.storage_options):
                if not how.resume:
                    refuse_taken(path, overwrite=options.overwrite)
                is_done = how.resume and _is_done(dataset, path, options, how)
            # What is done already is looked at by this process.
            client = None if is_done else client()
        prepared = _prepare(dataset, path, options, how, client)
        planned, remaining = prepared.plan, prepared.remaining
        assert planned is not None
        if client is not None:
            refuse_too_little_memory(planned)
        committed = run_reported(prepared, client, how.progress, how.stop)
    return WriteResult(
        destination=planned.destination,
        n_shards=len(remaining.tasks) + remaining.n_done,
        n_resumed=remaining.n_done,
        n_half_made=remaining.n_half_made,
        n_objects=committed.n_objects,
        stored_nbytes=None if how.part else committed.nbytes,
        nbytes=planned.nbytes,
        shape=planned.shape,
        n_levels=len(planned.levels),
        seconds=round(time.monotonic() - start_s, 3),
    )


def _is_done(
    dataset: Volume, path: str | os.PathLike[str], options: WriteOptions, how: RunOptions
) -> bool:
    """Whether a write that is given again has been committed."""
    n_parts = None if how.part is None else how.part[1]
    with warnings.catch_warnings(action="ignore"):
        # The write itself warns.
        planned = plan_dataset(dataset, path, options, goes_on=True)
    return is_committed(StageRequest.of(planned, resume=True, n_parts=n_parts))


def _prepare(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    how: RunOptions,
    client: Client | Resources | None,
) -> PreparedWrite:
    with (
        storage_options_in_force(how.storage_options),
        in_force(client) as resources,
        opening(path),
    ):
        return prepare_write(
            dataset,
            path,
            options,
            resume=how.resume,
            restart=how.restart,
            part=how.part,
            resources=resources,
        )


def commit(
    path: str | os.PathLike[str],
    *,
    overwrite: Overwrite = False,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CommitResult:
    """Publish a dataset whose parts were written by several jobs.

    The levels after level 0 are made now, from what the parts have left for them. A commit that
    was killed between its two renames is repaired.

    Parameters
    ----------
    path
        The destination that each part was given.
    overwrite
        Whether to replace a Zarr store at the destination, as in `dataset_to_zarr`.
    client, progress, stop, storage_options
        As in `dataset_to_zarr`, for the levels after level 0.

    Raises
    ------
    IncompleteDatasetError
        A part is missing or incomplete, or nothing is staged; nothing was committed.
    DestinationExistsError
        There is something at the destination.
    """
    with storage_options_in_force(storage_options):
        destination = existing_write(path)
        prepared = prepare_commit(destination, overwrite=overwrite)
    if prepared is None:
        return committed_result(destination)
    with reported(progress):
        running = started(client) if prepared.needs_workers else None
        return run_reported(prepared, running, progress, stop)
