"""From a dataset and the user's arguments to a plan: defaults are resolved, all is validated.

There are no side effects; the caller says the time and the scheduler's resources.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.mango import build_mango_block, new_dataset_id
from ctlab_dask_zarr.formats.ome import (
    OMEZarrVersion,
    ScalePlacement,
    build_ome_attributes,
)
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE, stored_facts
from ctlab_dask_zarr.formats.zarr_array import key_in
from ctlab_dask_zarr.planning.codec import document_with_codec, refuse_wrong_codec
from ctlab_dask_zarr.planning.identity import plan_identity, source_identity
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec, align_specs, resolve_layout
from ctlab_dask_zarr.planning.levels import (
    DownsampleMethod,
    LevelSpec,
    level_layout,
    levels_problem,
    plan_levels,
    resolve_downsample,
)
from ctlab_dask_zarr.planning.notes import notes_on
from ctlab_dask_zarr.planning.occupied import refuse_place
from ctlab_dask_zarr.planning.plan import (
    Document,
    Overwrite,
    PlannedLevel,
    WritePlan,
    array_document,
    document_of_shape,
    group_document,
)
from ctlab_dask_zarr.planning.rechunk import Resources, choose_rechunk
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.volume import Volume, as_volume, copied_mapping

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import History

#: dtypes of volumes; the formats have no bool and no complex.
_DTYPE_KINDS = "iuf"
#: Fields of the mango block that nobody asks for: the identity has them, or they change with time,
#: as the entries do that each step adds to a history.
_NOT_REQUESTED = {"basename", "dataset_id", "history"} | {
    *("metadata_version_major", "metadata_version_minor"),
}


@dataclass(frozen=True)
class WriteOptions:
    """The arguments of `dataset_to_zarr` that shape what is written; documented there."""

    datatype: DataType | str | None = None
    dataset_id: str | None = None
    ome_zarr_version: OMEZarrVersion | None = OMEZarrVersion.v05
    history: History | None = None
    chunks: ChunkSpec = "auto"
    shards: ShardSpec = "auto"
    create_array_kwargs: Mapping[str, Any] | None = None
    codec: str | None = None
    dimension_separator_threshold: int | None = 64
    input_aligned_chunks: bool = False
    overwrite: Overwrite = False
    scale_placement: ScalePlacement | None = None
    levels: LevelSpec | None = None
    downsample: DownsampleMethod | None = None
    extra_attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        version, threshold = self.ome_zarr_version, self.dimension_separator_threshold
        if not isinstance(version, OMEZarrVersion | None):
            raise InvalidArgumentError(
                f"ome_zarr_version={version!r}: pass an OMEZarrVersion, or None for a plain array"
            )
        if isinstance(threshold, bool) or not isinstance(threshold, int | None):
            raise InvalidArgumentError(
                f"dimension_separator_threshold={threshold!r} is not a number of objects"
            )
        if self.scale_placement not in ("dataset", "multiscales", None):
            raise InvalidArgumentError(
                f"scale_placement={self.scale_placement!r} is neither 'dataset' nor 'multiscales'"
            )
        if self.overwrite not in (True, False, "drop_labels"):
            raise InvalidArgumentError(
                f"overwrite={self.overwrite!r} is neither True nor False, nor 'drop_labels'"
            )
        if not isinstance(self.create_array_kwargs, Mapping | None):
            raise InvalidArgumentError(
                f"create_array_kwargs={self.create_array_kwargs!r} is not a mapping of arguments "
                "by their name"
            )
        refuse_wrong_codec(self.codec, self.create_array_kwargs)


def plan_write(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    *,
    block_lengths: Sequence[Sequence[int]],
    independent: bool,
    resources: Resources,
    now: datetime,
    levels: Sequence[Level] | None = None,
    n_jobs: int = 1,
) -> WritePlan:
    """Lay the whole write out, or raise `InvalidArgumentError` or `MetadataError`.

    `dataset` may be any object with the properties of a `Dataset`. `block_lengths` are those of the
    source's blocks along each axis, in voxels; `independent` says whether each block can be made
    from its own part of the source's graph. `now` is the local time, for a new dataset id.
    `levels` are those of the image to which labels belong; by default `options` says which.
    `n_jobs` share the write, each with these `resources`.
    """
    destination = resolve_destination(path)
    refuse_place(destination, getattr(dataset, "source", None))
    volume = _volume_to_write(dataset, options)
    dtype = _validated_dtype(volume)
    dataset_id = volume.dataset_id
    if dataset_id is None and volume.datatype is not None:
        dataset_id = new_dataset_id(volume.datatype, now)
    attributes, requested = _metadata(volume, dataset_id, options)
    if options.input_aligned_chunks:
        chunks, shards = align_specs(block_lengths, options.chunks, options.shards)
        options = replace(options, chunks=chunks, shards=shards)
    planned = _levels_to_write(volume, dtype, attributes, options, levels)
    downsample = resolve_downsample(options.downsample, dtype.kind, is_discrete=volume.is_discrete)
    facts = {} if volume.source is None else volume.source.facts()
    stem = os.path.basename(destination.path).removesuffix(".zarr")
    name = dataset_id or facts.get("name") or stem
    omero = None if volume.is_discrete else facts.get("omero")
    documents = _documents(volume, planned, attributes, options, name, omero, downsample)
    source = source_identity(volume)
    return WritePlan(
        destination=destination.path,
        levels=planned,
        documents=documents,
        rechunk=choose_rechunk(
            planned[0].layout, block_lengths, dtype.itemsize, row_axis_of(planned[0].array),
            independent=independent, resources=resources, can_merge=planned[0].array.is_direct,
            n_jobs=n_jobs,
        ),
        datatype=volume.datatype,
        dataset_id=dataset_id,
        overwrite=options.overwrite,
        identity=plan_identity(planned, volume.datatype, source.fields, downsample),
        requested=requested,
        notes=(*notes_on(planned), *source.notes),
        random_name=source.random_name,
        resources=resources,
        downsample=downsample,
        is_discrete=volume.is_discrete,
    )  # fmt: skip


def _volume_to_write(dataset: Any, options: WriteOptions) -> Volume:
    """Return the volume with what the options say in place of what it says itself."""
    volume = Volume.from_modified(
        as_volume(dataset),
        datatype=options.datatype,
        dataset_id=options.dataset_id,
        extra_attrs=options.extra_attrs,
    )
    volume.update_history(copied_mapping("history", options.history))
    return volume


def _metadata(
    volume: Volume, dataset_id: str | None, options: WriteOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of the root, and what the user asks of the metadata."""
    datatype = volume.datatype
    block = build_mango_block(
        datatype=datatype,
        dataset_id=dataset_id,
        history=volume.history,
        voxel_size=volume.voxel_size,
        voxel_unit=volume.voxel_unit,
        dimension_names=volume.dimension_names,
        extra_attrs=volume.extra_attrs,
    )
    is_said = volume.is_discrete == (datatype is not None and datatype.is_discrete)
    facts = stored_facts(
        None if is_said else volume.is_discrete,
        volume.origin if options.ome_zarr_version is None else (),
        volume.voxel_size,
    )
    receipt = {"version": __version__, **facts}
    attributes: dict[str, Any] = {RECEIPT_ATTRIBUTE: receipt}
    # The reference reader requires a basename in every mango block. Without a data type the block
    # is kept in the receipt, so that other readers still open the store and nothing is lost.
    if datatype is None:
        receipt["dataset"] = block
    else:
        attributes["mango"] = block
    requested = {key: value for key, value in block.items() if key not in _NOT_REQUESTED}
    # An identifier that is made from the time is not asked for.
    requested |= facts | {"dataset_id": volume.dataset_id}
    if options.ome_zarr_version is not None:
        origin = list(volume.origin) if any(volume.origin) else None
        placement = options.scale_placement or "dataset"
        requested |= {"translation": origin, "scale_placement": placement, "image-label": None}
        if options.ome_zarr_version is not OMEZarrVersion.v05:
            requested["ome_zarr_version"] = options.ome_zarr_version.value
    return attributes, requested


def _levels_to_write(
    volume: Volume,
    dtype: np.dtype[Any],
    attributes: dict[str, Any],
    options: WriteOptions,
    levels: Sequence[Level] | None,
) -> tuple[PlannedLevel, ...]:
    layout = resolve_layout(volume.shape, options.chunks, options.shards)
    is_group = options.ome_zarr_version is not None
    path = "0" if is_group else ""
    make_document = partial(
        array_document,
        layout,
        dtype,
        fill_value=dtype.type(0) if volume.mask_value is None else volume.mask_value,
        dimension_names=volume.dimension_names,
        attributes={} if is_group else attributes,
        separator_threshold=options.dimension_separator_threshold,
    )
    document = document_with_codec(make_document, options.create_array_kwargs or {}, options.codec)
    if levels is None:
        ones = (1,) * len(layout.shape)
        finest = Level(path, layout.shape, ones, volume.voxel_size, volume.origin)
        levels = plan_levels(finest, 1 if options.levels is None else options.levels)
    if len(levels) > 1 and not is_group:
        raise InvalidArgumentError(
            "levels need an OME-Zarr group: a plain array (ome_zarr_version=None, --layout plain) "
            "has one level"
        )
    return planned_levels(levels, document, path)


def _documents(
    volume: Volume,
    levels: Sequence[PlannedLevel],
    attributes: dict[str, Any],
    options: WriteOptions,
    name: str,
    omero: Mapping[str, Any] | None,
    downsample: DownsampleMethod,
) -> tuple[Document, ...]:
    """Return the documents to put, leaf to root."""
    documents = [Document(key_in(level.path, ROOT_DOCUMENT), level.document) for level in levels]
    if options.ome_zarr_version is not None:
        ome = build_ome_attributes(
            version=options.ome_zarr_version,
            name=name,
            axes=volume.dimension_names,
            voxel_unit=volume.voxel_unit,
            levels=levels,
            scale_placement=options.scale_placement or "dataset",
            downsample=None if len(levels) == 1 else downsample,
        )
        shown = {"omero": omero} if omero else {}
        documents.append(Document(ROOT_DOCUMENT, group_document(attributes | {"ome": ome | shown})))
    return tuple(documents)


def planned_levels(levels: Sequence[Level], document: str, path: str) -> tuple[PlannedLevel, ...]:
    """Return levels with their arrays: `document` at `path` for the finest, others like it."""
    planned: list[PlannedLevel] = []
    text = document
    for number, level in enumerate(levels):
        if number:
            problem = levels_problem(planned[-1].layout, level.factors)
            if problem is not None:
                raise InvalidArgumentError(problem)
            text = document_of_shape(document, level_layout(planned[0].layout, level.shape))
        found = {**vars(level), "path": str(number) if number else path}
        planned.append(PlannedLevel(**found, document=text))
    return tuple(planned)


def resolve_destination(path: str | os.PathLike[str]) -> Destination:
    """Return where the store will be; ``.zarr`` is appended where it is missing."""
    found = storage_path(path)
    if found.startswith("http"):
        raise InvalidArgumentError(f"{found}: plain HTTP is read, not written")
    if os.path.basename(found) in ("", ".zarr"):
        raise InvalidArgumentError(f"{os.fspath(path)!r} is not a name for a store")
    if not found.endswith(".zarr"):
        found += ".zarr"
    if not is_url(found):
        # Staging has to lie beside the store itself, not beside a link to it. A link to nothing is
        # refused later.
        folder, name = os.path.split(found)
        real_folder = os.path.join(os.path.realpath(folder), name)
        found = os.path.realpath(found) if os.path.exists(found) else real_folder
    return Destination.at(found)


def existing_write(path: str | os.PathLike[str]) -> Destination:
    """Return the destination of what has begun, to commit it, look at it or give it up.

    ``IMAGE/labels/NAME`` names labels, which are staged beside their image.
    """
    stored = storage_path(path)
    folder, name = os.path.split(stored)
    image, kind = os.path.split(folder)
    if kind == "labels" and name:
        labels = Destination.at(stored, labels_of=image)
        if labels.files.kind(os.path.join(image, ROOT_DOCUMENT)) is not None:
            return labels
    exported = Destination.at(stored)
    if exported.can_rename and "export" in exported.staged_plan():
        return exported
    return resolve_destination(path)


def refuse_contradictions(resume: bool, restart: bool, part: tuple[int, int] | None = None) -> None:
    """Raise where arguments exclude one another; `part` is a number from 1, and of how many."""
    if resume and restart:
        raise InvalidArgumentError("resume and restart exclude one another: pass one of them")
    if part is None:
        return
    number, n_parts = part
    if restart:
        raise InvalidArgumentError(
            "restart would remove what the jobs of the other parts write: before the first of "
            "them starts, remove what an earlier write has left by `ctlab-zarr abort DESTINATION`"
        )
    if not 1 <= number <= n_parts:
        raise InvalidArgumentError(f"part {number} of {n_parts}: parts are counted from 1")


def _validated_dtype(volume: Volume) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(volume.dtype)
    datatype = volume.datatype
    if dtype.kind not in _DTYPE_KINDS or dtype.itemsize > 8:
        raise InvalidArgumentError(
            f"the data is of dtype {dtype}; volumes are of integers or floats up to 64 bits: "
            "convert it with data.astype(...)"
        )
    if datatype is not None and datatype.dtype != dtype.newbyteorder("="):
        raise InvalidArgumentError(
            f"data type {datatype} is {datatype.dtype} but the data is {dtype}: convert it with "
            "data.astype(...), or pass the data type that it is"
        )
    is_masked = isinstance(getattr(volume.data, "_meta", None), np.ma.MaskedArray)
    if is_masked and volume.mask_value is None:
        raise InvalidArgumentError(
            f"the data are masked arrays, and {f'data type {datatype}' if datatype else 'data'} "
            f"{'has' if datatype else 'without a data type have'} no value for masked voxels: pass "
            "a datatype that has one, or fill them by dask.array.ma.filled(data, ...)"
        )
    return dtype.newbyteorder("<")
