"""Write and read: resolve, plan, build, write shards, commit.

`dataset_to_zarr` reads top to bottom as the write happens. Everything up to `build_graph` is
free of side effects.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.base import is_dask_collection

from ctlab_dask_zarr.codec.named import array_kwargs
from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.errors import (
    CTLabError,
    DestinationExistsError,
    InvalidArgumentError,
    StagingExistsError,
    StorageError,
    UnsupportedFormatError,
    WriteFailedError,
    WriteStoppedError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.ome import OMEZarrVersion, ScalePlacement
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.zarr import dataset_from_zarr, read_store_metadata
from ctlab_dask_zarr.runtime.probe import check_shared_folder
from ctlab_dask_zarr.runtime.resources import current_client, scheduler_resources
from ctlab_dask_zarr.runtime.settings import setting
from ctlab_dask_zarr.runtime.stopping import Stop, compute_until
from ctlab_dask_zarr.runtime.storage import storage_options_in_force, storage_path
from ctlab_dask_zarr.verification.verify import build_verification
from ctlab_dask_zarr.write.commit import CommitResult, committed_result, refuse_missing
from ctlab_dask_zarr.write.commit import commit as commit_staged
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.graph import (
    SourceGraph,
    analyse_source,
    build_completion,
    build_graph,
)
from ctlab_dask_zarr.write.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.write.plan import WritePlan
from ctlab_dask_zarr.write.pyramid import DownsampleMethod, LevelGeometry, LevelSpec
from ctlab_dask_zarr.write.remaining import Remaining, all_tasks, part_tasks, what_remains
from ctlab_dask_zarr.write.resolve import WriteOptions, named_destination, plan_write
from ctlab_dask_zarr.write.stage import (
    StagedWrite,
    StageRequest,
    destination_problem,
    is_committed,
    open_staged,
    staging_problem,
)

if TYPE_CHECKING:
    import dask.array as da
    import numpy.typing as npt
    from dask.delayed import Delayed
    from distributed import Client

    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.write.rechunk import Resources

__all__ = [
    "add_levels",
    "commit",
    "dataset_from_zarr",
    "dataset_to_zarr",
    "labels_to_zarr",
    "plan",
    "verify",
]


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
    scale_placement: ScalePlacement | None = None,
    levels: LevelSpec | None = None,
    downsample: DownsampleMethod | None = None,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
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
    levels
        How many levels of detail, the data itself counted, by default 1; each has half the voxels
        of the one before along the axes that are halved (docs/pyramids.md says which). ``'auto'``:
        until the longest axis has 256 voxels or fewer, which viewers show at once.
    downsample
        ``'mean'``, ``'mode'``, ``'nearest'`` or ``'max'`` of the voxels that are not masked; by
        default the mode for classes (segmented, labels) and the mean for everything else.
    resume
        Go on from the staging folder of an interrupted write of the same dataset and settings.
    restart
        Remove the staging folder of an interrupted write first.
    storage_options
        For a URL of an object store: ``{"endpoint": ..., "region": ...}`` by obstore's names; never
        credentials, which come from the environment (docs/object-stores.md).
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
        levels=levels,
        downsample=downsample,
        extra_attrs=extra_attrs,
    )
    with storage_options_in_force(storage_options):
        write = build_write(dataset, path, options, resume=resume, restart=restart)
    if compute:
        run_write(write)
        return None
    graph: Delayed = write.graph
    return graph


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
    scale_placement: ScalePlacement | None = None,
    levels: LevelSpec | None = None,
    downsample: DownsampleMethod | None = None,
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
        levels=levels,
        downsample=downsample,
        extra_attrs=extra_attrs,
    )
    return build_plan(dataset, path, options)


def build_plan(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: WriteOptions,
    resources: Resources | None = None,
) -> WritePlan:
    """Plan a write for these resources, or those of the scheduler in force; nothing is touched."""
    return _plan(dataset, path, options, _analysed_source(dataset), resources=resources)


class Write(NamedTuple):
    """A write that is planned and built: compute `graph`, and it is done.

    Attributes
    ----------
    graph
        Stages, writes every shard and commits; of a part, everything but the commit.
    plan
        Of the whole write.
    remaining
        What of it this graph does.
    request
        What its staging is asked for.
    """

    graph: Delayed
    plan: WritePlan
    remaining: Remaining
    request: StageRequest


def build_write(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: WriteOptions,
    *,
    resume: bool = False,
    restart: bool = False,
    part: tuple[int, int] | None = None,
) -> Write:
    """Plan a write and build its graph; nothing is touched.

    `resume` looks what is there already, and `part` (number from 1, of how many) leaves the rest
    to others.
    """
    _refuse_both(resume, restart)
    if part is not None:
        _validate_part(part, restart)
    source = _analysed_source(dataset)
    write_plan = _plan(dataset, path, options, source)
    request = StageRequest.of(
        write_plan,
        uuid.uuid4().hex,
        resume=resume,
        restart=restart,
        n_parts=None if part is None else part[1],
        dataset_id=options.dataset_id or getattr(dataset, "dataset_id", None),
    )
    request, remaining = _what_remains(request, part)
    graph = build_graph(write_plan, source, request, remaining, publish=part is None)
    return Write(graph, write_plan, remaining, request)


def _what_remains(
    request: StageRequest, part: tuple[int, int] | None
) -> tuple[StageRequest, Remaining]:
    levels = request.levels
    wanted = tuple(
        all_tasks(levels, request.n_existing)
        if part is None
        else part_tasks(levels[0].layout, *part)
    )
    if is_committed(request):
        return request, Remaining((), n_done=len(wanted))
    _refuse_what_is_there(request)
    staged = request.destination.staged_plan()
    if (request.resume or part is not None) and "staging_id" in staged:
        staging_id = staged["staging_id"]
        remaining = what_remains(StagedWrite(request, staging_id), wanted)
        return replace(request, resumes=staging_id), remaining
    return request, Remaining(wanted)


def _refuse_both(resume: bool, restart: bool) -> None:
    if resume and restart:
        raise InvalidArgumentError("resume and restart exclude one another: pass one of them")


def _validate_part(part: tuple[int, int], restart: bool) -> None:
    number, n_parts = part
    if restart:
        raise InvalidArgumentError(
            "restart would remove what the jobs of the other parts write: before the first of "
            "them starts, remove what an earlier write has left by `ctlab-zarr abort DESTINATION`"
        )
    if not 1 <= number <= n_parts:
        raise InvalidArgumentError(f"part {number} of {n_parts}: parts are counted from 1")


def _refuse_what_is_there(request: StageRequest) -> None:
    problem = destination_problem(request)
    if problem is not None:
        raise DestinationExistsError(problem)
    problem = staging_problem(request)
    if problem is not None:
        raise StagingExistsError(problem)


def _plan(
    dataset: Dataset,
    path: str | os.PathLike[str],
    options: WriteOptions,
    source: SourceGraph,
    geometries: Sequence[LevelGeometry] | None = None,
    resources: Resources | None = None,
) -> WritePlan:
    return plan_write(
        dataset,
        path,
        _with_settings(options),
        block_lengths=source.chunks,
        independent=source.is_independent,
        resources=scheduler_resources() if resources is None else resources,
        now=datetime.now(),
        geometries=geometries,
    )


def _with_settings(options: WriteOptions) -> WriteOptions:
    """Return the options with what dask's configuration says in place of what was left open."""
    found: dict[str, Any] = {}
    for name in ("chunks", "shards"):
        if getattr(options, name) == "auto":
            value = setting(name)
            found[name] = tuple(value) if isinstance(value, list) else value
    if found.get("shards") == "none":
        found["shards"] = None
    if options.create_array_kwargs is None:
        found["create_array_kwargs"] = array_kwargs(str(setting("codec")))
    if options.levels is None:
        found["levels"] = setting("levels")
    if options.scale_placement is None:
        found["scale_placement"] = setting("scale-placement")
    return replace(options, **found)


def run_write(
    write: Write | Completion, client: Client | None = None, stop: Stop | None = None
) -> Any:
    """Compute a write, on `client` or on the scheduler in force, and wait for its end.

    Returns the `CommitResult`; of a part, how many objects it has.

    Raises
    ------
    WriteStoppedError
        `stop` was asked for.
    ClusterError
        A worker does not see the folder of the destination; nothing was touched.
    WriteFailedError
        A task failed.
    """
    running = client or current_client()
    if running is not None and write.request.destination.can_rename:
        check_shared_folder(running, os.path.dirname(write.request.destination.staging))
    try:
        if client is None:
            return write.graph.compute()
        return compute_until(write.graph, client, stop)
    except WriteStoppedError:
        # The commit itself may have been what was finished.
        if write.request.destination.committed().get("run_id") == write.request.run_id:
            return committed_result(write.request.destination)
        raise
    except Exception as error:
        if isinstance(error, CTLabError) and not isinstance(error, StorageError):
            raise
        destination = write.request.destination
        message = (
            f"writing {destination.path} failed: {type(error).__name__}: {error}. "
            f"{_state_after_failure(destination, write.request.run_id)}"
        )
        raise WriteFailedError(message) from error


def _state_after_failure(destination: Destination, run_id: str) -> str:
    """Say what is at the destination after a write that failed, and how to go on."""
    try:
        aside = destination.all_replaced()
        is_there = destination.files.kind(destination.path) is not None
        if destination.committed().get("run_id") == run_id:
            return "The new dataset is at the destination, but may not outlast a power failure yet"
        if aside and not is_there:
            return (
                f"The old dataset is whole in {aside[0]}; `ctlab-zarr commit {destination.path}`, "
                "or the next write, puts the new one or the old one in its place"
            )
        is_staged = bool(destination.staged_plan())
    except OSError as error:
        return f"What is at the destination cannot be looked at: {error}"
    if not is_staged:
        return "The destination is as it was"
    return (
        f"The destination is as it was; the shards written so far are in {destination.staging}. Go "
        "on by resume=True (--resume), or start anew by restart=True (--restart)"
    )


def commit(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> CommitResult:
    """Publish a dataset whose parts were written by several jobs.

    Where there are several levels, those after level 0 are made now, from what the parts have left
    for them. Also repairs what a commit left that died between its two renames.

    Parameters
    ----------
    path
        The destination that was given to each part.
    overwrite
        Whether to replace a Zarr store at the destination.
    storage_options
        As of `dataset_to_zarr`.

    Raises
    ------
    IncompleteDatasetError
        A part is missing or not complete, or nothing is staged; nothing was committed.
    DestinationExistsError
        There is something at the destination.
    """
    with storage_options_in_force(storage_options):
        completion = build_commit(path, overwrite=overwrite)
    if isinstance(completion, CommitResult):
        return completion
    result: CommitResult = run_write(completion)
    return result


class Completion(NamedTuple):
    """What is still to do before a dataset can be committed: compute `graph`, and it is."""

    graph: Delayed
    request: StageRequest
    remaining: Remaining


def build_commit(path: str | os.PathLike[str], *, overwrite: bool) -> CommitResult | Completion:
    """Commit at once where nothing is left to write; else return what is."""
    destination = named_destination(path)
    destination.finish_interrupted_replacement()
    if not destination.staged_plan() and destination.committed():
        return committed_result(destination)
    staged = open_staged(destination)
    if overwrite:
        staged = replace(staged, request=replace(staged.request, overwrite=True))
    if staged.request.extends is None:
        refuse_missing(staged, staged.recorded(staged.sizes()), staged.level_keys(0))
    remaining = what_remains(staged, all_tasks(staged.request.levels, first=1))
    if not remaining.tasks and not remaining.found:
        return commit_staged(staged)
    # A run of its own, so that its progress is not taken for that of a part.
    request = replace(staged.request, run_id=uuid.uuid4().hex)
    staged = replace(staged, request=request)
    return Completion(build_completion(staged, remaining), request, remaining)


def add_levels(
    path: str | os.PathLike[str],
    levels: LevelSpec = "auto",
    downsample: DownsampleMethod | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> CommitResult:
    """Give an OME-Zarr image that has one level its further ones, and its labels too.

    The image stays readable; the new levels appear all at once, when they are complete.

    Parameters
    ----------
    path
        An OME-Zarr 0.5 image, whoever wrote it.
    levels, downsample, resume, restart, storage_options
        As of `dataset_to_zarr`; labels get the mode, or where that is asked for the nearest.

    Raises
    ------
    InvalidArgumentError
        The image has several levels already, or an argument is wrong; nothing was touched.
    """
    with storage_options_in_force(storage_options):
        completions = build_levels(path, levels, downsample, resume=resume, restart=restart)
        destination = Destination.at(storage_path(path))
    results: list[CommitResult] = [run_write(completion) for completion in completions]
    # A commit that died at its very end has left its staging folder.
    destination.discard_committed_staging()
    return results[-1] if results else committed_result(destination)


def build_levels(
    path: str | os.PathLike[str],
    levels: LevelSpec,
    downsample: str | None,
    *,
    resume: bool,
    restart: bool,
) -> list[Completion]:
    """Plan the further levels of labels and of their image, in this order; nothing is touched.

    None where all have them and `resume` says that this may be.
    """
    _refuse_both(resume, restart)
    from ctlab_dask_zarr.write.extend import images_to_extend, level_request

    image = read_store_metadata(path)
    geometries, lacking = images_to_extend(image, levels)
    if not lacking and not (resume and levels in ("auto", len(geometries))):
        raise InvalidArgumentError(f"{image.path} has {len(geometries)} levels already")
    completions = []
    for metadata in lacking:
        is_image = metadata.path == image.path
        request = level_request(
            metadata,
            geometries,
            downsample if is_image or downsample == "nearest" else None,
            uuid.uuid4().hex,
            labels_of=None if is_image else image.path,
            resume=resume,
            restart=restart,
        )
        request, remaining = _what_remains(request, None)
        completions.append(Completion(build_completion(request, remaining), request, remaining))
    return completions


def labels_to_zarr(
    labels: Dataset | da.Array | npt.NDArray[Any],
    image_path: str | os.PathLike[str],
    name: str,
    *,
    colors: Mapping[int, Sequence[int]] | None = None,
    downsample: DownsampleMethod | None = None,
    chunks: ChunkSpec = "auto",
    shards: ShardSpec = "auto",
    create_array_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compute: bool = True,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Delayed | None:
    """Write labels of an OME-Zarr image: below its ``labels``, with the levels that it has.

    Parameters
    ----------
    labels
        Integers, of the image's shape: a `Dataset`, whose voxel size has to be the image's, or an
        array of dask or NumPy.
    image_path
        The OME-Zarr 0.5 image.
    name
        Of the labels, a new one: ``'phases'``.
    colors
        By label, red, green, blue and optionally opacity, 0 to 255 each.
    downsample
        ``'mode'`` (the default) or ``'nearest'``.
    chunks, shards, create_array_kwargs, overwrite, compute, resume, restart, storage_options
        As of `dataset_to_zarr`.

    Raises
    ------
    InvalidArgumentError
        The labels do not fit the image; nothing was touched.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, labels_to_zarr
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> image = folder.name + "/scan.zarr"
    >>> dataset_to_zarr(ds, image, levels=2)
    >>> labels_to_zarr((ds.data > 0).astype("uint8"), image, "phases", colors={1: (255, 0, 0)})
    >>> [level.shape for level in dataset_from_zarr(image + "/labels/phases").levels]
    [(40, 65, 97), (20, 33, 49)]
    >>> folder.cleanup()
    """
    options = WriteOptions(
        chunks=chunks,
        shards=shards,
        create_array_kwargs=create_array_kwargs,
        overwrite=overwrite,
        downsample=downsample,
    )
    with storage_options_in_force(storage_options):
        write = build_labels(
            labels, image_path, name, options, colors=colors, resume=resume, restart=restart
        )
    if compute:
        run_write(write)
        return None
    graph: Delayed = write.graph
    return graph


def build_labels(
    labels: Dataset | da.Array | npt.NDArray[Any],
    image_path: str | os.PathLike[str],
    name: str,
    options: WriteOptions,
    *,
    colors: Mapping[int, Sequence[int]] | None,
    resume: bool,
    restart: bool,
    part: tuple[int, int] | None = None,
) -> Write:
    """Plan the labels of an image and build their graph; nothing is touched.

    `part` as of `build_write`.
    """
    from ctlab_dask_zarr.write.extend import plan_labels, refuse_unfit_labels, stored_geometries

    _refuse_both(resume, restart)
    if part is not None:
        _validate_part(part, restart)
    image = dataset_from_zarr(image_path)
    path = image.source.path
    if not image.source.array_path:
        raise UnsupportedFormatError(
            f"{path} is a plain array: labels belong to an OME-Zarr image, convert it to one first"
        )
    if image.source.space is not None:
        raise UnsupportedFormatError(
            f"{path} has axes of channels or times; labels are written for images with axes of "
            "space alone: convert it first"
        )
    dataset = _labels_dataset(labels, image)
    refuse_unfit_labels(dataset, image, path)
    options = replace(options, downsample=options.downsample or "mode")
    if options.downsample not in ("mode", "nearest"):
        raise InvalidArgumentError(
            f"downsample={options.downsample!r} makes no sense for labels, which name classes: use "
            "'mode' or 'nearest'"
        )
    source = _analysed_source(dataset)
    placed = os.path.join(os.path.dirname(path), f"{name}.zarr")
    geometries = stored_geometries(image, path)
    image_plan = _plan(dataset, placed, options, source, geometries)
    write_plan = plan_labels(image_plan, path, name, colors)
    request = StageRequest.of(
        write_plan,
        uuid.uuid4().hex,
        resume=resume,
        restart=restart,
        n_parts=None if part is None else part[1],
    )
    request, remaining = _what_remains(request, part)
    graph = build_graph(write_plan, source, request, remaining, publish=part is None)
    return Write(graph, write_plan, remaining, request)


def _labels_dataset(labels: Any, image: Dataset) -> Any:
    """Return labels as a dataset in the unit of their image, whose voxels an array has."""
    if isinstance(labels, Dataset):
        units = (labels.voxel_unit, image.voxel_unit)
        if VoxelUnit.VOXEL in units:
            return labels
        size = labels.voxel_size_with_unit(image.voxel_unit)
        return Dataset.from_modified(labels, voxel_size=size, voxel_unit=image.voxel_unit)
    if hasattr(labels, "dimension_names"):
        return labels
    if isinstance(labels, np.ndarray):
        from dask.array import from_array

        labels = from_array(labels)
    return Dataset(
        labels,
        dimension_names=image.dimension_names,
        voxel_unit=image.voxel_unit,
        voxel_size=image.voxel_size,
    )


def verify(
    path: str | os.PathLike[str],
    source: Dataset | str | os.PathLike[str] | None = None,
    *,
    checksums: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Return everything that is wrong with a dataset; an empty list where all is well.

    Its metadata is held against the rules of OME-Zarr 0.5 and mango, every shard has to be there
    and nothing else, and every inner chunk has to decode. What this package wrote is compared
    with the checksums of its commit, which cover every byte. Computed on the scheduler in force.

    Parameters
    ----------
    path
        The store.
    source
        What it was made from: every voxel has to be equal, and the metadata to have carried over.
        The blocks of mango netCDF are compared with their own MD5 too.
    checksums
        False looks only at documents, sizes and the index of each shard, without reading all.
    storage_options
        As of `dataset_to_zarr`.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, verify
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> dataset_to_zarr(ds, folder.name + "/scan.zarr")
    >>> verify(folder.name + "/scan.zarr", ds)
    []
    >>> folder.cleanup()
    """
    with storage_options_in_force(storage_options):
        if isinstance(source, str | os.PathLike):
            source = Dataset.from_path(source)
        verification = build_verification(path, source, checksums=checksums)
    return verification.problems + list(verification.graph.compute())


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
