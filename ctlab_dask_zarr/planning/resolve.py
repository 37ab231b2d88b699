"""From a dataset and the user's arguments to a plan: every default resolved, all validated.

Free of side effects: the clock and the scheduler's resources are given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
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
from ctlab_dask_zarr.formats.units import VoxelUnit, validated_axes, validated_origin
from ctlab_dask_zarr.planning.identity import plan_identity, source_identity
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec, resolve_layout
from ctlab_dask_zarr.planning.levels import (
    DownsampleMethod,
    LevelSpec,
    level_layout,
    levels_problem,
    plan_levels,
    resolve_downsample,
)
from ctlab_dask_zarr.planning.plan import (
    Document,
    PlannedLevel,
    WritePlan,
    array_document,
    document_of_shape,
    group_document,
    plan_notes,
)
from ctlab_dask_zarr.planning.rechunk import Resources, choose_rechunk
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.occupied import refuse_place
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import files_at

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.volume import Volume

__all__ = [
    "WriteOptions",
    "existing_write",
    "plan_write",
    "refuse_contradictions",
    "resolve_destination",
]

#: dtypes of volumes; bool and complex have no place in the formats.
_DTYPE_KINDS = "iuf"


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
    dimension_separator_threshold: int | None = 64
    overwrite: bool = False
    scale_placement: ScalePlacement | None = None
    levels: LevelSpec | None = None
    downsample: DownsampleMethod | None = None
    extra_attrs: Mapping[str, Any] = field(default_factory=dict)


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
) -> WritePlan:
    """Lay the whole write out.

    Parameters
    ----------
    dataset, path, options
        As given to `dataset_to_zarr`.
    block_lengths
        Of the source's blocks along each axis, in voxels.
    independent
        Whether each block can be made from its own part of the source's graph.
    resources
        What the write will have.
    now
        Local time, for a generated dataset id.
    levels
        Where they are given by something else than `options`.

    Raises
    ------
    InvalidArgumentError, MetadataError
        Something is wrong with the arguments or the metadata.
    """
    destination = resolve_destination(path)
    refuse_place(Destination(destination, files_at(destination)), getattr(dataset, "source", None))
    _refuse_wrong_types(options)
    kind = _resolve_datatype(dataset, options.datatype)
    dtype = _validated_dtype(dataset, kind)
    layout = resolve_layout(dataset.data.shape, options.chunks, options.shards)
    dataset_id = options.dataset_id or getattr(dataset, "dataset_id", None)
    if dataset_id is None and kind is not None:
        dataset_id = new_dataset_id(kind, now)
    names, voxel_size = validated_axes(
        dataset.dimension_names, dataset.voxel_size, dataset.data.ndim
    )
    voxel_unit = VoxelUnit.from_str(str(dataset.voxel_unit))
    mango = build_mango_block(
        datatype=kind,
        dataset_id=dataset_id,
        history={**dataset.history, **(options.history or {})},
        voxel_size=voxel_size,
        voxel_unit=voxel_unit,
        dimension_names=names,
        extra_attrs={**getattr(dataset, "extra_attrs", {}), **options.extra_attrs},
    )
    own_kind = getattr(dataset, "datatype", None)
    is_discrete = kind is not None and kind.is_discrete
    # Another data type that was asked for decides; else what the dataset says of itself.
    said = getattr(dataset, "is_discrete", is_discrete) if kind == own_kind else is_discrete
    origin = validated_origin(getattr(dataset, "origin", None), len(names))
    is_group = _is_group(options.ome_zarr_version)
    facts = stored_facts(
        None if said == is_discrete else said, () if is_group else origin, voxel_size
    )
    receipt: dict[str, Any] = {"version": __version__, **facts}
    # The reference reader requires a basename in every mango block. What a dataset without data
    # type carries is kept beside it, so that others still open the store and nothing is lost.
    attributes: dict[str, Any] = {RECEIPT_ATTRIBUTE: receipt}
    if kind is None:
        receipt["dataset"] = mango
    else:
        attributes["mango"] = mango
    mask_value = None if kind is None else kind.mask_value
    array_attributes = {} if is_group else attributes
    document = array_document(
        layout,
        dtype,
        fill_value=dtype.type(0) if mask_value is None else mask_value,
        dimension_names=names,
        attributes=array_attributes,
        separator_threshold=_validated_threshold(options.dimension_separator_threshold),
        create_array_kwargs=options.create_array_kwargs or {},
    )
    downsample = resolve_downsample(options.downsample, dtype.kind, is_discrete=said)
    path = "0" if is_group else ""
    if levels is None:
        finest = Level(path, layout.shape, (1,) * len(names), voxel_size, origin)
        levels = plan_levels(finest, 1 if options.levels is None else options.levels)
    if len(levels) > 1:
        _refuse_levels_of_an_array(is_group)
    planned = planned_levels(levels, document, path)
    documents = [
        Document(f"{level.path}/zarr.json".lstrip("/"), level.document) for level in planned
    ]
    if is_group:
        attributes["ome"] = build_ome_attributes(
            version=options.ome_zarr_version or OMEZarrVersion.v05,
            name=dataset_id or os.path.basename(destination).removesuffix(".zarr"),
            axes=names,
            voxel_unit=voxel_unit,
            levels=planned,
            scale_placement=_validated_placement(options.scale_placement or "dataset"),
            downsample=None if len(planned) == 1 else downsample,
        )
        documents.append(Document("zarr.json", group_document(attributes)))
    source = source_identity(dataset)
    rechunk = choose_rechunk(
        layout,
        block_lengths,
        dtype.itemsize,
        row_axis_of(planned[0].array),
        independent=independent,
        resources=resources,
    )
    return WritePlan(
        destination=destination,
        levels=planned,
        documents=tuple(documents),
        rechunk=rechunk,
        datatype=kind,
        dataset_id=dataset_id,
        overwrite=options.overwrite,
        identity=plan_identity(planned, kind, source.fields, downsample),
        notes=plan_notes(planned, rechunk) + source.notes,
        random_name=source.random_name,
        downsample=downsample,
        is_discrete=said,
    )


def planned_levels(levels: Sequence[Level], document: str, path: str) -> tuple[PlannedLevel, ...]:
    """Return levels with their arrays: of the finest, `document` at `path`, and others like it.

    Raises
    ------
    InvalidArgumentError
        The layout does not allow a level.
    """
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


def _refuse_levels_of_an_array(is_group: bool) -> None:
    if not is_group:
        raise InvalidArgumentError(
            "levels need an OME-Zarr group: a plain array (ome_zarr_version=None, --layout plain) "
            "has one level"
        )


def resolve_destination(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of the store to be made, ``.zarr`` appended where it is missing."""
    destination = storage_path(path)
    if destination.startswith("http"):
        raise InvalidArgumentError(f"{destination}: plain HTTP is read, not written")
    if os.path.basename(destination) in ("", ".zarr"):
        raise InvalidArgumentError(f"{os.fspath(path)!r} is no name for a store")
    if not destination.endswith(".zarr"):
        destination += ".zarr"
    if is_url(destination):
        return destination
    # Staging has to lie beside the store itself, not beside a link to it. A link to nothing stays
    # as it is, to be refused.
    if os.path.exists(destination):
        return os.path.realpath(destination)
    folder, name = os.path.split(destination)
    return os.path.join(os.path.realpath(folder), name)


def existing_write(path: str | os.PathLike[str]) -> Destination:
    """Return the destination of a write that was begun: to commit it, look at it or give it up.

    ``IMAGE/labels/NAME`` names labels, which are staged beside their image.
    """
    stored = storage_path(path)
    folder, name = os.path.split(stored)
    image, kind = os.path.split(folder)
    if kind == "labels" and name:
        labels = Destination.at(stored, labels_of=image)
        if labels.files.kind(os.path.join(image, ROOT_DOCUMENT)) is not None:
            return labels
    return Destination.at(resolve_destination(path))


def refuse_contradictions(resume: bool, restart: bool, part: tuple[int, int] | None = None) -> None:
    """Raise where a write is asked to begin in ways that exclude one another.

    `part` is a number from 1, and of how many.
    """
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


def _resolve_datatype(dataset: Volume, datatype: DataType | str | None) -> DataType | None:
    if datatype is None:
        # An anu_ctlab_io.Dataset keeps its data type in a private attribute.
        datatype = getattr(dataset, "datatype", None) or getattr(dataset, "_datatype", None)
    if datatype is None:
        return None
    try:
        return DataType.from_basename(str(datatype))
    except ValueError as error:
        raise InvalidArgumentError(f"datatype: {error}") from error


def _validated_dtype(dataset: Volume, datatype: DataType | None) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(dataset.data.dtype)
    if dtype.kind not in _DTYPE_KINDS or dtype.itemsize > 8:
        raise InvalidArgumentError(
            f"the data is of dtype {dtype}; volumes are of integers or floats up to 64 bits: "
            "convert it with data.astype(...)"
        )
    if datatype is not None and np.dtype(datatype.dtype) != dtype.newbyteorder("="):
        raise InvalidArgumentError(
            f"data type {datatype} is {np.dtype(datatype.dtype)} but the data is {dtype}: convert "
            "it with data.astype(...), or pass the data type that it is"
        )
    is_masked = isinstance(getattr(dataset.data, "_meta", None), np.ma.MaskedArray)
    if is_masked and (datatype is None or datatype.mask_value is None):
        raise InvalidArgumentError(
            f"the data are masked arrays, and {f'data type {datatype}' if datatype else 'data'} "
            f"{'has' if datatype else 'without a data type have'} no value for masked voxels: pass "
            "a datatype that has one, or fill them by dask.array.ma.filled(data, ...)"
        )
    return np.dtype(dtype.newbyteorder("<"))


def _refuse_wrong_types(options: WriteOptions) -> None:
    expected: dict[str, tuple[Any, str]] = {
        "dataset_id": (str, "a text"),
        "history": (Mapping, "a mapping of entries by their key"),
        "create_array_kwargs": (Mapping, "a mapping of arguments by their name"),
    }
    for name, (kind, description) in expected.items():
        value = getattr(options, name)
        if not isinstance(value, kind | None):
            raise InvalidArgumentError(f"{name}={value!r} is not {description}")


def _is_group(version: OMEZarrVersion | None) -> bool:
    if version is not None and not isinstance(version, OMEZarrVersion):
        raise InvalidArgumentError(
            f"ome_zarr_version={version!r}: pass OMEZarrVersion.v05, or None for a plain array"
        )
    return version is not None


def _validated_threshold(threshold: int | None) -> int | None:
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int)):
        raise InvalidArgumentError(
            f"dimension_separator_threshold={threshold!r} is no number of objects"
        )
    return threshold


def _validated_placement(placement: str) -> ScalePlacement:
    if placement not in ("dataset", "multiscales"):
        raise InvalidArgumentError(
            f"scale_placement={placement!r} is neither 'dataset' nor 'multiscales'"
        )
    return placement  # type: ignore[return-value]
