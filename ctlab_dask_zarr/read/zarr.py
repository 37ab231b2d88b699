"""The kind of source that is a Zarr store: OME-Zarr groups and plain arrays, of any writer."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ctlab_dask_zarr.errors import (
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Level, with_shapes
from ctlab_dask_zarr.formats.mango import MangoBlock, parse_mango_block
from ctlab_dask_zarr.formats.ome import OMEImage, parse_ome_attributes, refuse_unscaled
from ctlab_dask_zarr.formats.ome_shown import kept_colors, kept_omero
from ctlab_dask_zarr.formats.receipts import (
    N_ABSENT,
    is_of_this_package,
    level_entry,
    own_receipt,
    stored_discreteness,
    stored_origin,
)
from ctlab_dask_zarr.formats.units import (
    NOTHING_GIVEN,
    Given,
    VoxelUnit,
    common_unit,
    given_size,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray, is_key, parse_array_document
from ctlab_dask_zarr.formats.zarr_v2 import V2_DOCUMENTS
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.receipts import seal_of
from ctlab_dask_zarr.read.zarr_documents import read_array_document, read_root, refuse_old
from ctlab_dask_zarr.read.zarr_source import Version, ZarrSource
from ctlab_dask_zarr.store.files import LOCAL_FILES, Files
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import Store, files_to_read, storage_options_in_force
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

NAME = "zarr"
DESCRIPTION = "a Zarr store"
#: A petabyte in shards of 512**3 has 4 million.
_MAX_BLOCKS = 10_000_000


@dataclass(frozen=True)
class StoreMetadata:
    """What the documents of a store say; `attributes` and `root_hash` are of the root document."""

    path: str
    attributes: dict[str, Any]
    #: (path below the root, document) of each level, finest first.
    arrays: tuple[tuple[str, str], ...]
    #: None for a plain array.
    ome: OMEImage | None
    root_hash: str
    files: Files = LOCAL_FILES
    #: Of the documents as they were read, by the path of their node; '' is the root.
    versions: Mapping[str, Version] = field(default_factory=dict)
    #: What the user has said, so that it is not taken from here.
    given: Given = NOTHING_GIVEN
    zarr_format: int = 3

    @property
    def store(self) -> Store:
        """The store itself."""
        return Store(self.path, self.files)

    @property
    def is_labels(self) -> bool:
        """Whether the image says that it is labels of another."""
        return self.ome is not None and "image-label" in self.attributes["ome"]

    def refuse_changes(self) -> None:
        """Raise `UnsupportedFormatError` where the store is of a version that is only read."""
        refuse_old(self.path, self.zarr_format, self.ome.version if self.ome else None)

    def remarks(self) -> Iterator[str]:
        """Yield what the OME metadata say that is not taken as it stands, but for units."""
        if self.ome is not None and self.ome.not_applied:
            yield (
                f"{shown(self.path)} is placed by more than scale and translation "
                f"({shown('; '.join(self.ome.not_applied))}): that is not applied here, and not "
                "kept by a conversion"
            )
        if self.ome is not None and self.ome.unscaled:
            yield (
                f"{shown(self.path)} has a scale of 0 along {', '.join(self.ome.unscaled)}, where "
                "it has one element: 1 is taken. Say what it is when it is opened, as "
                "voxel_size=2.5 (--voxel-size 2.5um)"
            )

    @property
    def mango_block(self) -> Any:
        """The mango block as it stands there, or what this package keeps in its place."""
        carried = (own_receipt(self.attributes) or {}).get("dataset")
        return self.attributes.get("mango", carried or {})


def can_open(path: str) -> bool:
    """Whether a path is a Zarr store: every URL is, and a folder with one of Zarr's documents."""
    return is_url(path) or any(
        os.path.lexists(os.path.join(path, name)) for name in (ROOT_DOCUMENT, *V2_DOCUMENTS)
    )


def looks_like(path: str) -> bool:
    """Whether a path has the name of a store."""
    return path.endswith(".zarr")


def is_ours(path: str) -> bool:
    """Whether this package or mango wrote a store; the network is not asked about URLs."""
    if is_url(path):
        return False
    metadata = read_store_metadata(path)
    if is_of_this_package(metadata.attributes):
        return True
    mango = metadata.attributes.get("mango")
    if not isinstance(mango, dict) or "basename" not in mango:
        return False
    # Another program may use this attribute: it counts only if all of the store is understood.
    volume_of(metadata)
    return True


def open_volume(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    strict: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    follow_links: bool | None = None,
    **kwargs: Any,
) -> Volume:
    """Open a Zarr store lazily: see `ctlab_dask_zarr.dataset_from_zarr`.

    `parse_history` has no meaning here: a store holds a history as it is.
    """
    voxel_size, voxel_unit = given_size(voxel_size, voxel_unit)
    given = Given(voxel_size is not None, voxel_unit is not None)
    with storage_options_in_force(storage_options):
        files = files_to_read(storage_path(path), follow_links)
        metadata = read_store_metadata(path, files, given=given)
    volume = volume_of(metadata, level, strict=strict, chunks=chunks, **kwargs)
    for text in metadata.remarks():
        warnings.warn(text, stacklevel=4)
    unknown = metadata.ome.unknown_units if metadata.ome else ()
    if not (metadata.ome or given.unit):
        unknown = common_unit([metadata.mango_block.get("voxel_unit")]).unknown
    if unknown:
        warnings.warn(
            f"{shown(metadata.path)} has lengths in a unit that is not known here "
            f"({', '.join(unknown)}): they are taken for voxels. Say what they are when it is "
            "opened, as voxel_unit='um' (--voxel-unit um), or in the store itself (ctlab-zarr "
            "set-voxel)",
            stacklevel=4,
        )
    if given == NOTHING_GIVEN and datatype is None:
        return volume
    return Volume.from_modified(
        volume, datatype=datatype, voxel_size=voxel_size, voxel_unit=voxel_unit
    )


def volume_of(
    metadata: StoreMetadata,
    level: int = 0,
    *,
    strict: bool | None = None,
    chunks: Any = None,
    **kwargs: Any,
) -> Volume:
    """Return the volume that the documents of a store describe: see `open_volume`."""
    n_levels = len(metadata.arrays)
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < n_levels:
        there_is = "one level, 0" if n_levels == 1 else f"the levels 0 to {n_levels - 1}"
        raise InvalidArgumentError(f"level={level!r}: {metadata.path} has {there_is}")
    source = source_of(metadata, level, strict=strict)
    names = _dimension_names(metadata, source.stored)
    given = metadata.given if metadata.ome is None else Given(size=True, unit=True)
    mango = parse_mango_block(metadata.mango_block, names, given)
    levels, unit = _levels(metadata, mango, len(names))
    source = replace(source, levels=levels)
    blocks = _default_blocks(source) if chunks is None else chunks
    return Volume(
        lazy_array(source, "zarr", blocks, kwargs, reads_together=True),
        dimension_names=names,
        voxel_unit=unit,
        voxel_size=levels[level].voxel_size,
        datatype=mango.datatype,
        history=mango.history,
        dataset_id=mango.dataset_id,
        extra_attrs=mango.extra_attrs,
        source=source,
        origin=levels[level].origin,
        is_discrete=metadata.is_labels or stored_discreteness(own_receipt(metadata.attributes)),
    )


def source_of(metadata: StoreMetadata, number: int, *, strict: bool | None = None) -> ZarrSource:
    """Return the source of a level; `strict` as of `dataset_from_zarr`."""
    path, document = metadata.arrays[number]
    attributes = metadata.attributes
    if strict is None:
        # Where this package wrote the array, it wrote every object; others leave some out.
        receipt = own_receipt(attributes) or {"levels": []}
        entry = level_entry(attributes, path)
        is_listed = isinstance(receipt.get("levels"), list)
        strict = not is_listed or (entry is not None and not entry.get(N_ABSENT))
    seal = seal_of(attributes, path)
    return ZarrSource(
        metadata.store,
        path,
        document,
        metadata.root_hash,
        strict=strict,
        space=_space(metadata, document),
        seal=seal,
        ome_version=metadata.ome.version if metadata.ome else None,
        shown_as=json.dumps(_shown_as(metadata)),
        version=metadata.versions.get(path if seal is None else ""),
    )


def _shown_as(metadata: StoreMetadata) -> dict[str, Any]:
    """Return name and contrast, but not of our own images, and the colours of labels."""
    if metadata.ome is None:
        return {}
    ome = metadata.attributes["ome"]
    found: dict[str, Any] = {"colors": kept_colors(ome)}
    # A write finds those of our own images again.
    if own_receipt(metadata.attributes) is None:
        found |= {"name": metadata.ome.name, "omero": kept_omero(ome)}
    return {key: value for key, value in found.items() if value}


def read_store_metadata(
    path: str | os.PathLike[str], files: Files | None = None, *, given: Given = NOTHING_GIVEN
) -> StoreMetadata:
    """Read the documents of a store, and nothing else of it.

    `files` is how it is reached, by default with the storage options in force. `given` is what the
    user has said: it may be wrong here.
    """
    root = storage_path(path)
    files = files_to_read(root) if files is None else files
    store = Store(root, files)
    versions: dict[str, Version] = {}
    found = read_root(store, versions)
    attributes, ome = found.attributes, None
    if found.array is not None:
        arrays: tuple[tuple[str, str], ...] = (("", found.array),)
    else:
        if "ome" not in attributes:
            raise UnsupportedFormatError(
                f"{root} is a Zarr group without OME metadata: give the path of an array or an "
                "image inside it"
            )
        ome = parse_ome_attributes(attributes["ome"], given)
        for level in ome.levels:
            if not is_key(level.path):
                raise MetadataError(f"the path {level.path!r} in {root} leads out of the store")
        arrays = tuple(
            (lv.path, read_array_document(store, lv.path, found.zarr_format, versions))
            for lv in ome.levels
        )
    root_hash = hashlib.sha256(found.text.encode()).hexdigest()
    return StoreMetadata(
        *(root, attributes, arrays, ome, root_hash, files, versions, given, found.zarr_format)
    )


def _default_blocks(source: ZarrSource) -> tuple[int, ...]:
    """Return the shape of a dask block: a shard, or without sharding as many chunks as make one.

    One block a chunk would be 262,144 tasks for 2048**3 voxels in chunks of 32**3.
    """
    shape = source.along_space(source.stored.object_shape)
    if not source.stored.is_sharded:
        shape = Layout(source.shape, shape, None).task_shape
    blocks = tuple(map(min, shape, source.shape))
    n_blocks = prod(-(-n // b) for n, b in zip(source.shape, blocks, strict=True) if n)
    if n_blocks > _MAX_BLOCKS:
        raise MetadataError(
            f"{source.location} would be {n_blocks:,} blocks, which no dask graph can hold: if "
            "that is meant, open it in larger ones, as chunks=(512, 4096, 4096)"
        )
    return blocks


def _dimension_names(metadata: StoreMetadata, stored: StoredArray) -> tuple[str, ...]:
    ome, ndim, names = metadata.ome, len(stored.shape), stored.dimension_names
    of_xarray = metadata.attributes.get("_ARRAY_DIMENSIONS")
    if ome is None and isinstance(of_xarray, list) and len(of_xarray) == ndim:
        names = tuple(map(str, of_xarray))
    if ome is not None:
        axes = ome.array_axes
        if len(axes) != ndim:
            raise MetadataError(f"{len(axes)} axes are named for an array with {ndim}")
        if any(name not in (None, axis) for name, axis in zip(names or axes, axes, strict=True)):
            raise MetadataError(f"the OME axes {axes} are not the array's dimensions {names}")
        return ome.axes
    if ndim not in (2, 3):
        raise UnsupportedFormatError(
            f"the array has {ndim} axes; volumes with three and images with two are read here"
        )
    if names is None or None in names or len(set(names)) != ndim:
        return ("z", "y", "x")[-ndim:]
    return tuple(str(name) for name in names)


def _space(metadata: StoreMetadata, document: str) -> tuple[int, ...] | None:
    """Return which axes of an array are of space, None for all; refuse others with elements."""
    ome, shape = metadata.ome, parse_array_document(document).shape
    if ome is None or ome.array_axes == ome.axes or len(ome.array_axes) != len(shape):
        return None
    for name, n in zip(ome.array_axes, shape, strict=True):
        if name not in ome.axes and n != 1:
            raise UnsupportedFormatError(
                f"{metadata.path} has {n} elements along its axis {name!r}; images of one channel "
                "and one time are read here"
            )
    return tuple(ome.array_axes.index(name) for name in ome.axes)


def _levels(
    metadata: StoreMetadata, mango: MangoBlock, ndim: int
) -> tuple[tuple[Level, ...], VoxelUnit]:
    shapes = []
    for path, document in metadata.arrays:
        shape = parse_array_document(document).shape
        n_axes = len(shape) if metadata.ome is None else len(metadata.ome.array_axes)
        if len(shape) != n_axes:
            raise MetadataError(f"the level {path!r} has {len(shape)} axes instead of {n_axes}")
        space = _space(metadata, document)
        shapes.append(shape if space is None else tuple(shape[axis] for axis in space))
    # The reference implementation writes one list to voxel_size_xyz and to the z, y, x scale, so
    # that its anisotropic groups contradict themselves: of a group, the OME scale is believed.
    if metadata.ome is not None:
        every = [parse_array_document(document).shape for _, document in metadata.arrays]
        refuse_unscaled(metadata.ome, every)
        return with_shapes(metadata.ome.levels, shapes), metadata.ome.voxel_unit
    size = mango.voxel_size or (1.0,) * ndim
    origin = stored_origin(own_receipt(metadata.attributes), size)
    level = Level("", voxel_size=size, origin=origin)
    return with_shapes([level], shapes), mango.voxel_unit or VoxelUnit.VOXEL
