"""Open a Zarr store as a `Dataset`: OME-Zarr groups and plain arrays, ours and others'."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    IncompleteDatasetError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import parse_json_object
from ctlab_dask_zarr.formats.level import Level, with_shapes
from ctlab_dask_zarr.formats.mango import MangoBlock, parse_mango_block
from ctlab_dask_zarr.formats.ome import OMEImage, parse_ome_attributes
from ctlab_dask_zarr.formats.receipts import (
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
    lengths_along,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray, is_key, parse_array_document
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.receipts import seal_of
from ctlab_dask_zarr.read.zarr_source import (
    Version,
    ZarrSource,
    read_version,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import LOCAL_FILES, Files
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import Store, files_to_read, storage_options_in_force
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

__all__ = [
    "DESCRIPTION",
    "NAME",
    "StoreMetadata",
    "ZarrSource",
    "can_open",
    "is_ours",
    "looks_like",
    "open_volume",
    "read_store_metadata",
    "source_of",
    "volume_of",
]

NAME = "zarr"
DESCRIPTION = "a Zarr store"
#: The documents of Zarr v3 and v2; what is wrong with a v2 store is said when it is opened.
_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")

#: A petabyte in shards of 512**3 has 4 million.
_MAX_BLOCKS = 10_000_000


@dataclass(frozen=True)
class StoreMetadata:
    """What the documents of a store say.

    Attributes
    ----------
    path
        The root, a local folder.
    attributes
        Of the root document.
    arrays
        (path below the root, document) of each level, finest first.
    ome
        The OME metadata; None for a plain array.
    root_hash
        Of the root document.
    files
        Through what the store is reached.
    versions
        Of the documents as they were read, by the path of their node; '' is the root.
    given
        What is known from elsewhere, so that it is not taken from here.
    """

    path: str
    attributes: dict[str, Any]
    arrays: tuple[tuple[str, str], ...]
    ome: OMEImage | None
    root_hash: str
    files: Files = LOCAL_FILES
    versions: Mapping[str, Version] = field(default_factory=dict)
    given: Given = NOTHING_GIVEN

    @property
    def store(self) -> Store:
        """The store itself."""
        return Store(self.path, self.files)

    @property
    def is_labels(self) -> bool:
        """Whether the image says that it is labels of another."""
        return self.ome is not None and "image-label" in self.attributes["ome"]

    @property
    def mango_block(self) -> Any:
        """The mango block, or what this package keeps in place of one; as it stands there."""
        carried = (own_receipt(self.attributes) or {}).get("dataset")
        return self.attributes.get("mango", carried or {})

    @property
    def unknown_units(self) -> tuple[str, ...]:
        """The units of lengths, as they are shown, that are not known here."""
        if self.ome is not None:
            return self.ome.unknown_units
        return () if self.given.unit else common_unit([self.mango_block.get("voxel_unit")]).unknown


def can_open(path: str) -> bool:
    """Whether a path is a Zarr store: every URL is, and a folder with one of Zarr's documents."""
    return is_url(path) or any(os.path.lexists(os.path.join(path, name)) for name in _DOCUMENTS)


def looks_like(path: str) -> bool:
    """Whether a path has the name of a store."""
    return path.endswith(".zarr")


def is_ours(path: str) -> bool:
    """Whether this package or mango wrote a store; of a URL nobody asks the network."""
    if is_url(path):
        return False
    metadata = read_store_metadata(path)
    if own_receipt(metadata.attributes) is not None:
        return True
    mango = metadata.attributes.get("mango")
    if not isinstance(mango, dict) or "basename" not in mango:
        return False
    # The attribute may be somebody else's: it counts where all of the store can be understood.
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
    """Open a Zarr v3 store lazily: see `ctlab_dask_zarr.dataset_from_zarr`.

    `parse_history` has no meaning here: a store holds a history as it is.
    """
    given = Given(voxel_size is not None, voxel_unit is not None)
    with storage_options_in_force(storage_options):
        files = files_to_read(storage_path(path), follow_links)
        metadata = read_store_metadata(path, files, given=given)
    volume = volume_of(metadata, level, strict=strict, chunks=chunks, **kwargs)
    if metadata.unknown_units:
        warnings.warn(
            f"{shown(metadata.path)} has lengths in a unit that is not known here "
            f"({', '.join(metadata.unknown_units)}): they are taken for voxels. Say what they are "
            "when it is opened, as voxel_unit='um' (--voxel-unit um), or in the store itself "
            "(ctlab-zarr set-voxel)",
            stacklevel=4,
        )
    if given == NOTHING_GIVEN and datatype is None:
        return volume
    size = None if voxel_size is None else lengths_along(volume.data.ndim, voxel_size)
    return Volume.from_modified(volume, datatype=datatype, voxel_size=size, voxel_unit=voxel_unit)


def volume_of(
    metadata: StoreMetadata,
    level: int = 0,
    *,
    strict: bool | None = None,
    chunks: Any = None,
    **kwargs: Any,
) -> Volume:
    """Return the volume that the documents of a store describe: see `open_volume`."""
    number = _validated_level(level, metadata)
    source = source_of(metadata, number, strict=strict)
    names = _dimension_names(metadata.ome, source.stored)
    receipt = own_receipt(metadata.attributes)
    given = metadata.given if metadata.ome is None else Given(size=True, unit=True)
    mango = parse_mango_block(metadata.mango_block, names, given)
    levels, unit = _levels(metadata, mango, len(names))
    source = replace(source, levels=levels)
    blocks = tuple(map(min, _block_shape(source), source.shape))
    n_blocks = prod(-(-n // b) for n, b in zip(source.shape, blocks, strict=True) if n)
    if n_blocks > _MAX_BLOCKS and chunks is None:
        raise MetadataError(
            f"{metadata.path} would be {n_blocks:,} blocks, which no dask graph can hold: if that "
            "is meant, open it in larger ones, as chunks=(512, 4096, 4096)"
        )
    return Volume(
        lazy_array(source, "zarr", blocks if chunks is None else chunks, kwargs),
        dimension_names=names,
        voxel_unit=unit,
        voxel_size=levels[number].voxel_size,
        datatype=mango.datatype,
        history=mango.history,
        dataset_id=mango.dataset_id,
        extra_attrs=mango.extra_attrs,
        source=source,
        origin=levels[number].origin,
        is_discrete=metadata.is_labels or stored_discreteness(receipt),
    )


def source_of(metadata: StoreMetadata, number: int, *, strict: bool | None = None) -> ZarrSource:
    """Return the volume of a level; `strict` as of `dataset_from_zarr`."""
    array_path, document = metadata.arrays[number]
    seal = seal_of(metadata.attributes, array_path)
    return ZarrSource(
        metadata.path,
        array_path,
        document,
        metadata.root_hash,
        strict=_is_ours(metadata.attributes, array_path) if strict is None else strict,
        files=metadata.files,
        space=_space(metadata, document),
        seal=seal,
        version=metadata.versions.get(array_path if seal is None else ""),
    )


def read_store_metadata(
    path: str | os.PathLike[str],
    files: Files | None = None,
    *,
    given: Given = NOTHING_GIVEN,
) -> StoreMetadata:
    """Read the documents of a store, and nothing else of it.

    `files`: through what it is reached; by default with the storage options in force. `given`:
    what is known from elsewhere, so that it may be wrong here.
    """
    root = storage_path(path)
    files = files_to_read(root) if files is None else files
    store = Store(root, files)
    versions: dict[str, Version] = {}
    text = _read_root(store, versions)
    document = parse_json_object(text, os.path.join(root, ROOT_DOCUMENT))
    attributes = document.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise MetadataError(f"the attributes of {root} are no object")
    root_hash = hashlib.sha256(text.encode()).hexdigest()
    if document.get("zarr_format") != 3:
        raise UnsupportedFormatError(
            f"{root} is of Zarr format {document.get('zarr_format')!r}; only 3 is read here"
        )
    if document.get("node_type") == "array":
        arrays = (("", text),)
        return StoreMetadata(root, attributes, arrays, None, root_hash, files, versions, given)
    if "ome" not in attributes:
        raise UnsupportedFormatError(
            f"{root} is a Zarr group without OME metadata: give the path of an array or an image "
            "inside it"
        )
    ome = parse_ome_attributes(attributes["ome"], given)
    paths = [level.path for level in ome.levels]
    levels = tuple((path, _read_array_document(store, path, versions)) for path in paths)
    return StoreMetadata(root, attributes, levels, ome, root_hash, files, versions, given)


def _read(store: Store, node: str, versions: dict[str, Version]) -> str:
    """Return the document of a node; its version is noted first, so that it is never too new."""
    key = f"{node}/{ROOT_DOCUMENT}".lstrip("/")
    version = read_version(store.files, store.path(key))
    if version is not None:
        versions[node] = version
    return store.get(key).decode()


def _read_root(store: Store, versions: dict[str, Version]) -> str:
    root, files = store.root, store.files
    try:
        return _read(store, "", versions)
    except UnicodeDecodeError as error:
        raise MetadataError(f"{root}/{ROOT_DOCUMENT} is not text: {error}") from error
    except NotADirectoryError:
        raise UnsupportedFormatError(f"{root} is a file; a Zarr store is a folder") from None
    except FileNotFoundError:
        pass
    if any(files.kind(os.path.join(root, n)) for n in (".zgroup", ".zarray", ".zattrs")):
        array = root if files.kind(os.path.join(root, ".zarray")) else f"{root}/0"
        raise UnsupportedFormatError(
            f"{root} is a Zarr v2 store; only v3 is read here, and what converts one to the other "
            "loses the voxel size. Open its array with dask, and say what is known of it: Dataset("
            f"dask.array.from_zarr({array!r}), dimension_names=('z', 'y', 'x'), voxel_unit='um', "
            "voxel_size=(2.5, 2.5, 2.5))"
        )
    destination = Destination(root, files)
    is_staged = files.kind(destination.staging) == "folder"
    if files.kind(root) == "folder" and not (is_url(root) and is_staged):
        raise IncompleteDatasetError(
            f"{root} has no {ROOT_DOCUMENT}: it is no Zarr store, or one whose writing was not "
            "finished"
        )
    aside = list(destination.all_replaced().values())
    if aside:
        raise DatasetNotFoundError(
            f"{root} was being replaced when its commit died between two renames; the old dataset "
            f"is {aside[0]}. `ctlab-zarr commit {root}` puts the new one in its place, "
            "or the old one back where the new one is not complete"
        )
    if is_staged:
        raise DatasetNotFoundError(
            f"{root} does not exist yet: a write to it is under way or was interrupted (its "
            f"staging folder is {destination.staging})"
        )
    raise DatasetNotFoundError(f"{root} does not exist")


def _read_array_document(store: Store, array_path: str, versions: dict[str, Version]) -> str:
    root = store.root
    if not is_key(array_path):
        raise MetadataError(f"the dataset path {array_path!r} in {root} leads out of the store")
    try:
        return _read(store, array_path, versions)
    except ValueError as error:  # no UTF-8 inside, or a NUL or half a character in the path
        raise MetadataError(
            f"the array {array_path!r} in {root} cannot be read: {error}"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        raise IncompleteDatasetError(
            f"{root} lists the array {array_path!r}, but {array_path}/{ROOT_DOCUMENT} is missing: "
            "the dataset is incomplete"
        ) from None


def _block_shape(volume: ZarrSource) -> tuple[int, ...]:
    """Return the shape of a dask block: a shard, or without sharding as many chunks as make one.

    One block a chunk would be 262,144 tasks for 2048**3 voxels in chunks of 32**3.
    """
    stored = volume.stored
    shape = volume.along_space(stored.object_shape)
    if stored.is_sharded:
        return shape
    return Layout(volume.shape, shape, None).task_shape


def _dimension_names(ome: OMEImage | None, stored: StoredArray) -> tuple[str, ...]:
    ndim = len(stored.shape)
    if ome is not None:
        if len(ome.array_axes) != ndim:
            raise MetadataError(f"{len(ome.array_axes)} axes are named for an array with {ndim}")
        found = stored.dimension_names or ome.array_axes
        if any(name not in (None, axis) for name, axis in zip(found, ome.array_axes, strict=True)):
            raise MetadataError(
                f"the OME axes {ome.array_axes} are not the array's dimensions "
                f"{stored.dimension_names}"
            )
        return ome.axes
    if ndim not in (2, 3):
        raise UnsupportedFormatError(
            f"the array has {ndim} axes; volumes with three and images with two are read here"
        )
    names = stored.dimension_names
    if names is None or None in names or len(set(names)) != ndim:
        return ("z", "y", "x")[-ndim:]
    return tuple(str(name) for name in names)


def _space(metadata: StoreMetadata, document: str) -> tuple[int, ...] | None:
    """Return which axes of an array are of space; None for all of them.

    Raises
    ------
    UnsupportedFormatError
        Another axis has several elements.
    """
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


def _validated_level(level: Any, metadata: StoreMetadata) -> int:
    n_levels = len(metadata.arrays)
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < n_levels:
        there_is = "one level, 0" if n_levels == 1 else f"the levels 0 to {n_levels - 1}"
        raise InvalidArgumentError(f"level={level!r}: {metadata.path} has {there_is}")
    return level


def _is_ours(attributes: dict[str, Any], array_path: str) -> bool:
    """Whether this package has written every object of an array."""
    receipt = own_receipt(attributes)
    if receipt is None:
        return False
    is_listed = isinstance(receipt.get("levels"), list)
    return not is_listed or level_entry(attributes, array_path) is not None


def _levels(
    metadata: StoreMetadata, mango: MangoBlock, ndim: int
) -> tuple[tuple[Level, ...], VoxelUnit]:
    # The reference implementation writes one list to voxel_size_xyz and to the z, y, x scale, so
    # that its anisotropic groups contradict themselves: of a group, the OME scale is believed.
    if metadata.ome is None:
        size = mango.voxel_size or (1.0,) * ndim
        ((path, document),) = metadata.arrays
        origin = stored_origin(own_receipt(metadata.attributes), size)
        shape = parse_array_document(document).shape
        levels = with_shapes([Level(path, voxel_size=size, origin=origin)], [shape])
        return levels, mango.voxel_unit or VoxelUnit.VOXEL
    shapes = []
    for path, document in metadata.arrays:
        shape = parse_array_document(document).shape
        n_axes = len(metadata.ome.array_axes)
        if len(shape) != n_axes:
            raise MetadataError(f"the level {path!r} has {len(shape)} axes instead of {n_axes}")
        space = _space(metadata, document)
        shapes.append(shape if space is None else tuple(shape[axis] for axis in space))
    return with_shapes(metadata.ome.levels, shapes), metadata.ome.voxel_unit
