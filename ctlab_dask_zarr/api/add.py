"""Public functions that add levels or labels to an existing image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    analysed_source,
    bound,
    in_force,
    plan_dataset,
    reported,
    run_reported,
    started,
)
from ctlab_dask_zarr.errors import (
    InvalidArgumentError,
    UnsupportedFormatError,
    is_delayed,
    no_dataset,
)
from ctlab_dask_zarr.execution.graphs import is_read
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.planning.levels import DownsampleMethod, LevelSpec
from ctlab_dask_zarr.planning.plan import Overwrite
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.planning.resolve import WriteOptions, refuse_contradictions
from ctlab_dask_zarr.read.arrays import says_voxel_size, volume_from_array, volume_from_xarray
from ctlab_dask_zarr.read.zarr import open_volume, read_store_metadata
from ctlab_dask_zarr.read.zarr_documents import refuse_old
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import drop_consolidated
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.store.store import files_at, storage_options_in_force
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.write.extend import (
    halved_levels,
    images_to_extend,
    level_request,
    plan_labels,
    refuse_unfit_labels,
)
from ctlab_dask_zarr.write.prepared import PreparedWrite, prepare, prepare_levels
from ctlab_dask_zarr.write.staging.commit import CommitResult, committed_result
from ctlab_dask_zarr.write.staging.labels import image_identity

if TYPE_CHECKING:
    import numpy.typing as npt
    from dask.delayed import Delayed

#: Voxels along each axis of the part that is looked at, and the most classes that it may have.
_SAMPLE, _MAX_CLASSES = 128, 2**16


def add_levels(
    path: str | os.PathLike[str],
    levels: LevelSpec = "auto",
    downsample: DownsampleMethod | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CommitResult:
    """Add levels to an OME-Zarr image that has one level, and to its labels.

    The image stays readable; the new levels appear together, when all are complete.

    Parameters
    ----------
    path
        An OME-Zarr 0.5 image, written by any program.
    levels, downsample, resume, restart, client, progress, stop, storage_options
        As in `dataset_to_zarr`; labels are made by ``'mode'``, or
        by ``'nearest'`` if that is asked for.

    Raises
    ------
    InvalidArgumentError
        The image has several levels already, or an argument is wrong; nothing was touched.
    """
    with storage_options_in_force(storage_options):
        writes = prepare_pyramid(path, levels, downsample, resume=resume, restart=restart)
        destination = Destination.at(storage_path(path))
    with reported(progress):
        running = started(client) if writes else None
        results = [run_reported(prepared, running, progress, stop) for prepared in writes]
    # A commit that was killed at its very end has left its staging folder.
    destination.discard_committed_staging()
    return results[-1] if results else committed_result(destination)


def prepare_pyramid(
    path: str | os.PathLike[str],
    levels: LevelSpec,
    downsample: str | None,
    *,
    resume: bool,
    restart: bool,
) -> list[PreparedWrite]:
    """Prepare the further levels of labels and of their image, in this order.

    Only the copies of the labels' documents in the image are dropped: they would be wrong once
    labels have levels, and to drop them later would change the image after it was planned. Returns
    an empty list if all have their levels and `resume` allows that.
    """
    refuse_contradictions(resume, restart)
    image = read_store_metadata(path)
    image.refuse_changes()
    wanted, lacking = images_to_extend(image, levels)
    if not lacking and not (resume and levels in ("auto", len(wanted))):
        raise InvalidArgumentError(f"{image.path} has {len(wanted)} levels already")
    writes = []
    if len(lacking) > 1:
        drop_consolidated(image.files, image.path)
        wanted, lacking = images_to_extend(read_store_metadata(path), levels)
    for metadata in lacking:
        is_image = metadata.path == image.path
        request = level_request(
            metadata,
            wanted,
            downsample if is_image or downsample == "nearest" else None,
            labels_of=None if is_image else image.path,
            resume=resume,
            restart=restart,
        )
        writes.append(prepare_levels(request))
    return writes


def labels_to_zarr(
    labels: Volume | da.Array | npt.NDArray[Any],
    image_path: str | os.PathLike[str],
    name: str,
    *,
    colors: Mapping[int, Sequence[int]] | None = None,
    downsample: DownsampleMethod | None = None,
    chunks: ChunkSpec = "auto",
    shards: ShardSpec = "auto",
    create_array_kwargs: Mapping[str, Any] | None = None,
    codec: str | None = None,
    overwrite: Overwrite = False,
    compute: bool = True,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
) -> Delayed | None:
    """Write labels of an OME-Zarr image, in its folder ``labels``, with as many levels as it has.

    Parameters
    ----------
    labels
        Integers with the image's shape: a `Dataset` or a `xarray.DataArray` with the image's voxel
        size, or an array of dask, NumPy, h5py or Zarr.
    image_path
        The OME-Zarr 0.5 image.
    name
        A new name for the labels, as ``'phases'``.
    colors
        For a label its red, green, blue and optionally opacity, 0 to 255 each.
    downsample
        ``'mode'`` (the default) or ``'nearest'``.
    chunks, shards, create_array_kwargs, codec, overwrite, compute, resume, restart
        As in `dataset_to_zarr`.
    storage_options, part, client, progress, stop
        As in `dataset_to_zarr`; ``commit("scan.zarr/labels/phases")`` publishes labels that
        were written in parts.

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
    options = bound(WriteOptions, locals())
    with reported(progress if compute else False):
        running = started(client)
        with storage_options_in_force(storage_options), in_force(running) as resources:
            prepared = prepare_labels(
                labels,
                image_path,
                name,
                options,
                colors=colors,
                resume=resume,
                restart=restart,
                part=part,
                resources=resources,
            )
        if not compute:
            graph: Delayed = prepared.graph
            return graph
        run_reported(prepared, running, progress, stop)
    return None


def prepare_labels(
    labels: Volume | da.Array | npt.NDArray[Any],
    image_path: str | os.PathLike[str],
    name: str,
    options: WriteOptions,
    *,
    colors: Mapping[int, Sequence[int]] | None,
    resume: bool,
    restart: bool,
    part: tuple[int, int] | None = None,
    resources: Resources | None = None,
) -> PreparedWrite:
    """Plan the labels of an image and prepare their write; nothing is touched."""
    refuse_contradictions(resume, restart, part)
    path = storage_path(image_path)
    # First, so that an image which replaces this one meanwhile is noticed.
    identity = image_identity(files_at(path), path)
    image = open_volume(path)
    if not image.levels[0].path:
        raise UnsupportedFormatError(
            f"{path} is a plain array: labels belong to an OME-Zarr image, convert it to one first"
        )
    if not isinstance(image.source, ZarrSource) or image.source.space is not None:
        raise UnsupportedFormatError(
            f"{path} has axes of channels or times; labels are written only for images whose "
            "axes are all spatial: convert it first"
        )
    refuse_old(path, image.source.stored.zarr_format, image.source.ome_version)
    dataset = _labels_dataset(labels, image)
    refuse_unfit_labels(dataset, image, path)
    is_said = isinstance(labels, Volume) and labels.is_discrete
    if not is_said:
        _refuse_grey_sample(dataset.data)
    version = image.source.ome_version
    options = replace(
        options,
        downsample=options.downsample or "mode",
        ome_zarr_version=OMEZarrVersion.v05 if version == "0.5" else OMEZarrVersion.v06,
    )
    if options.downsample not in ("mode", "nearest"):
        raise InvalidArgumentError(
            f"downsample={options.downsample!r} makes no sense for labels, which name classes: use "
            "'mode' or 'nearest'"
        )
    if colors is None and dataset.source is not None:
        colors = dict(dataset.source.facts().get("colors") or ())
    source = analysed_source(dataset)
    placed = os.path.join(os.path.dirname(path), f"{name}.zarr")
    wanted = halved_levels(image, path)
    n_jobs = part[1] if part else 1
    write_plan = plan_dataset(
        dataset, placed, options, source, levels=wanted, resources=resources, n_jobs=n_jobs,
        goes_on=resume or part is not None,
        finish=lambda image_plan: plan_labels(image_plan, path, name, colors, identity),
    )  # fmt: skip
    return prepare(write_plan, source, resume=resume, restart=restart, part=part)


def _refuse_grey_sample(data: da.Array) -> None:
    """Raise if the middle of an array has more values than classes have.

    It is not looked at where functions make it: that may take as long as the whole write.
    """
    if data.dtype.itemsize <= 2 or not is_read(data):
        return
    starts = [max(0, (n - _SAMPLE) // 2) for n in data.shape]
    middle = data[tuple(slice(start, start + _SAMPLE) for start in starts)]
    n_values = len(np.unique(np.asarray(middle.compute(scheduler="threads"))))
    if n_values > _MAX_CLASSES:
        raise InvalidArgumentError(
            f"the {data.dtype} labels have {n_values:,} values in {middle.size:,} voxels of their "
            "middle: that looks like greys, which name no classes. Where they are classes all the "
            "same, say so by Dataset.from_array(labels, voxel_size=..., is_discrete=True)"
        )


def _labels_dataset(labels: Any, image: Volume) -> Any:
    """Return labels as a dataset in the image's unit; an array gets the image's voxels."""
    if says_voxel_size(labels):
        labels = volume_from_xarray(labels)
    if isinstance(labels, Volume):
        units = (labels.voxel_unit, image.voxel_unit)
        if VoxelUnit.VOXEL in units:
            return labels
        size = labels.voxel_size_with_unit(image.voxel_unit)
        return Volume.from_modified(labels, voxel_size=size, voxel_unit=image.voxel_unit)
    if hasattr(labels, "dimension_names"):
        return labels
    if is_delayed(labels) or not hasattr(labels, "dtype"):
        raise no_dataset(labels, "labels")
    return volume_from_array(
        labels,
        dimension_names=image.dimension_names,
        voxel_unit=image.voxel_unit,
        voxel_size=image.voxel_size,
        origin=image.origin,
        is_discrete=True,
    )
