"""The write: resolve, plan, build, write shards, commit.

`dataset_to_zarr` reads top to bottom as the write happens. Everything up to `run` is
free of side effects. What is added to an image that is there stands in `additions`.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from dask.base import is_dask_collection

from ctlab_dask_zarr.arguments import refuse_other_meanings
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.graphs import SourceGraph, analyse_source
from ctlab_dask_zarr.execution.scheduler import scheduler_resources
from ctlab_dask_zarr.formats.codecs import array_kwargs
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.ome import OMEZarrVersion, ScalePlacement
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.planning.levels import DownsampleMethod, LevelSpec
from ctlab_dask_zarr.planning.plan import WritePlan
from ctlab_dask_zarr.planning.resolve import (
    WriteOptions,
    existing_write,
    plan_write,
    refuse_contradictions,
)
from ctlab_dask_zarr.settings import setting
from ctlab_dask_zarr.store.store import storage_options_in_force
from ctlab_dask_zarr.volume import is_delayed, no_dataset
from ctlab_dask_zarr.write.prepared import PreparedWrite, prepare, prepare_commit
from ctlab_dask_zarr.write.run import run
from ctlab_dask_zarr.write.staging.commit import CommitResult, committed_result

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.planning.rechunk import Resources
    from ctlab_dask_zarr.volume import Volume

__all__ = [
    "analysed_source",
    "build_plan",
    "build_write",
    "commit",
    "dataset_to_zarr",
    "plan",
]


P = ParamSpec("P")
R = TypeVar("R")


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
        Entries to add to the dataset's own; one that has the key of another replaces it.
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
        Further fields of the mango block. Names that are parameters elsewhere are refused.

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
    options = _bound(locals())
    with storage_options_in_force(storage_options):
        prepared = build_write(dataset, path, options, resume=resume, restart=restart)
    if not compute:
        return prepared.graph
    run(prepared)
    return None


def _with_arguments_of(
    model: Callable[P, Any],
) -> Callable[[Callable[[Mapping[str, Any]], R]], Callable[P, R]]:
    """Give a function the signature of another; it gets every argument by its name."""
    signature = inspect.signature(model)

    def decorate(function: Callable[[Mapping[str, Any]], R]) -> Callable[P, R]:
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return function(given.arguments)

        update_wrapper(
            bound, function, assigned=("__module__", "__name__", "__qualname__", "__doc__")
        )
        returned = inspect.signature(function).return_annotation
        bound.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return bound

    return decorate


@_with_arguments_of(dataset_to_zarr)
def plan(given: Mapping[str, Any]) -> WritePlan:
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
    options = _bound(given, stacklevel=5)
    refuse_contradictions(given["resume"], given["restart"])
    with storage_options_in_force(given["storage_options"]):
        return build_plan(given["dataset"], given["path"], options)


def _bound(given: Mapping[str, Any], stacklevel: int = 4) -> WriteOptions:
    """Return those of the arguments of `dataset_to_zarr` that shape what is written."""
    _warn_of_ignored_sizes(given["chunk_size_mb"], given["max_shard_size_mb"], stacklevel)
    known = given.keys() - {"dataset", "path", "extra_attrs"}
    refuse_other_meanings(given["extra_attrs"], known)
    return WriteOptions(**{field.name: given[field.name] for field in fields(WriteOptions)})


def build_plan(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    source: SourceGraph | None = None,
    *,
    levels: Sequence[Level] | None = None,
    resources: Resources | None = None,
) -> WritePlan:
    """Plan a write; nothing is touched.

    `source` is the dataset's where it is known already, `levels` are given where `options` do
    not say them, `resources` are by default those of the scheduler in force.
    """
    source = analysed_source(dataset) if source is None else source
    return plan_write(
        dataset,
        path,
        _with_settings(options),
        block_lengths=source.chunks,
        independent=source.is_independent,
        resources=scheduler_resources() if resources is None else resources,
        now=datetime.now(),
        levels=levels,
    )


def build_write(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    *,
    resume: bool = False,
    restart: bool = False,
    part: tuple[int, int] | None = None,
) -> PreparedWrite:
    """Plan a write and prepare it; nothing is touched.

    `resume` looks what is there already, and `part` (number from 1, of how many) leaves the rest
    to others.
    """
    refuse_contradictions(resume, restart, part)
    source = analysed_source(dataset)
    write_plan = build_plan(dataset, path, options, source)
    return prepare(
        write_plan,
        source,
        resume=resume,
        restart=restart,
        part=part,
        dataset_id=options.dataset_id or getattr(dataset, "dataset_id", None),
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
        destination = existing_write(path)
        prepared = prepare_commit(destination, overwrite=overwrite)
    return committed_result(destination) if prepared is None else run(prepared)


def analysed_source(dataset: Volume) -> SourceGraph:
    """Return the graph of a dataset's voxels, or say why none can be written from it."""
    is_array = hasattr(dataset, "dtype") and not hasattr(dataset, "dimension_names")
    if is_delayed(dataset) or is_array or not hasattr(dataset, "data"):
        raise no_dataset(dataset, "dataset")
    data: Any = dataset.data
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


def _warn_of_ignored_sizes(
    chunk_size_mb: float | None, max_shard_size_mb: float | None, stacklevel: int
) -> None:
    given = {"chunk_size_mb": chunk_size_mb, "max_shard_size_mb": max_shard_size_mb}
    ignored = [name for name, value in given.items() if value is not None]
    if ignored:
        warnings.warn(
            f"{', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored when writing "
            "Zarr. Use chunks/shards or 'auto' instead.",
            UserWarning,
            stacklevel=stacklevel,
        )
