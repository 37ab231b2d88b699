"""Changes to what a store says about its volume: voxel size, identifier, history.

All of it stands in the root document, so that a change is the replacement of one object, which is
there whole or not at all. Labels are images of their own below it and follow their image's voxel
size; they are changed first, and a change that was cut off is done by doing it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.dataset import Dataset, validated_axes
from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError, WriteFailedError
from ctlab_dask_zarr.formats.mango import build_mango_block, edit_mango_block
from ctlab_dask_zarr.formats.ome import rename_ome, rescale_ome
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE, own_receipt, seal
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes, size_text
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT, label_names
from ctlab_dask_zarr.read.zarr import StoreMetadata, dataset_of, read_store_metadata
from ctlab_dask_zarr.runtime.storage import storage_options_in_force
from ctlab_dask_zarr.write.destination import Destination

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import HistoryValue

__all__ = ["MetadataEdit", "build_edit", "edit_metadata"]

_Size = tuple[tuple[float, ...], VoxelUnit]


@dataclass(frozen=True)
class _NewDocument:
    metadata: StoreMetadata
    text: str


@dataclass(frozen=True)
class MetadataEdit:
    """A change that is known and not made yet.

    Attributes
    ----------
    path
        The store.
    changes
        What will change, a line each; none where everything is so already.
    """

    path: str
    changes: tuple[str, ...]
    _documents: tuple[_NewDocument, ...]

    def apply(self) -> None:
        """Make the change.

        Raises
        ------
        WriteFailedError
            Something else has changed the store since the change was built.
        """
        for new in self._documents:
            store = new.metadata.store
            found = hashlib.sha256(store.get(ROOT_DOCUMENT)).hexdigest()
            if found != new.metadata.root_hash:
                raise WriteFailedError(
                    f"{store.root}/{ROOT_DOCUMENT} was changed by something else at the same time: "
                    "look at it, and do this again if it is still wanted"
                )
            store.put(ROOT_DOCUMENT, new.text.encode())
            store.files.sync_folder(store.root)


def edit_metadata(
    path: str | os.PathLike[str],
    *,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    dataset_id: str | None = None,
    history: Mapping[str, HistoryValue] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Change what a store says about its volume; no voxel is touched.

    The change is made at once or not at all, on every level, in the labels below the image and in
    the mango block alike, and is recorded in the history.

    Parameters
    ----------
    path
        A store, whoever wrote it.
    voxel_size
        Edge lengths of a voxel of the finest level: one for all axes, or one each.
    voxel_unit
        Their unit; by default the one that the store has. Alone it only changes the unit.
    dataset_id
        The identifier to be, in mango's form ``YYYYMMDD_HHMMSS_<name>``.
    history
        Entries to add, by their keys; none that is there is rewritten.
    storage_options
        As of `dataset_to_zarr`.

    Returns
    -------
    What was changed, a line each; none where everything was so already.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, or further levels of the store are being written; nothing was touched.
    WriteFailedError
        Something else changed the store at the same time.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, edit_metadata
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> dataset_to_zarr(ds, folder.name + "/scan.zarr", levels=2)
    >>> edit_metadata(folder.name + "/scan.zarr", voxel_size=2.37)
    ('voxel size on 2 levels: 2.5 um -> 2.37 um',)
    >>> dataset_from_zarr(folder.name + "/scan.zarr", level=1).voxel_size
    (4.74, 4.74, 4.74)
    >>> folder.cleanup()
    """
    with storage_options_in_force(storage_options):
        edit = build_edit(
            path,
            datetime.now(),
            voxel_size=voxel_size,
            voxel_unit=voxel_unit,
            dataset_id=dataset_id,
            history=history,
        )
        edit.apply()
    return edit.changes


def build_edit(
    path: str | os.PathLike[str],
    now: datetime,
    *,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    dataset_id: str | None = None,
    history: Mapping[str, Any] | None = None,
) -> MetadataEdit:
    """Find out what a change of metadata is; nothing is touched.

    Parameters
    ----------
    path
        A store, whoever wrote it.
    now
        When the change is made, for the key of its entry in the history; local time.
    voxel_size, voxel_unit, dataset_id, history
        As of `edit_metadata`.
    """
    metadata = read_store_metadata(path)
    dataset = dataset_of(metadata)
    _refuse_unfinished(metadata)
    entries = dict(history or {})
    _refuse_wrong_entries(entries, dataset)
    changes = [f"history: {key!r} is added" for key in entries]
    stamp = f"{now:%Y%m%d_%H%M%S}"
    size = _wanted_size(dataset, voxel_size, voxel_unit)
    new_size = None if _is_same(size, (dataset.voxel_size, dataset.voxel_unit)) else size
    documents = []
    if new_size is not None:
        labels = _label_documents(metadata, dataset, new_size)
        documents += labels
        before, after = size_text(dataset.voxel_size, dataset.voxel_unit), size_text(*new_size)
        levels = f" on {len(metadata.arrays)} levels" if len(metadata.arrays) > 1 else ""
        also = f" and of {len(labels)} label image(s)" if labels else ""
        changes.append(f"voxel size{also}{levels}: {before} -> {after}")
        entries[f"{stamp}_set_voxel"] = {
            "operation": "set_voxel",
            "before": before,
            "after": after,
        }
    if dataset_id is not None and not (isinstance(dataset_id, str) and dataset_id.strip()):
        raise InvalidArgumentError(f"dataset_id={dataset_id!r} is no text")
    new_id = None if dataset_id == dataset.dataset_id else dataset_id
    if new_id is not None:
        changes.append(f"identifier: {dataset.dataset_id} -> {new_id}")
        entries[f"{stamp}_set_id"] = {
            "operation": "set_id",
            "before": dataset.dataset_id,
            "after": new_id,
        }
    if changes:
        text = _changed_root(metadata, dataset, new_size, new_id, entries)
        documents.append(_NewDocument(metadata, text))
    return MetadataEdit(metadata.path, tuple(changes), tuple(documents))


def _refuse_unfinished(metadata: StoreMetadata) -> None:
    if metadata.path.startswith("http"):
        raise UnsupportedFormatError(f"{metadata.path}: plain HTTP is read, not changed")
    if Destination(metadata.path, metadata.files).is_being_extended():
        raise InvalidArgumentError(
            f"{metadata.path} is being given further levels, which would undo the change: let that "
            "end, or resume it, first"
        )


def _refuse_wrong_entries(entries: Mapping[str, Any], dataset: Dataset) -> None:
    for key in entries:
        if not isinstance(key, str) or not key.strip():
            raise InvalidArgumentError(f"{key!r} is no name for an entry of the history")
        if key in dataset.history:
            raise InvalidArgumentError(
                f"the history has an entry {key!r} already, and nothing in a history is rewritten: "
                "choose another name"
            )


def _wanted_size(
    dataset: Dataset, voxel_size: Sequence[float] | float | None, unit: VoxelUnit | str | None
) -> _Size:
    """Return the voxel size to be, of as many axes as the volume has."""
    try:
        voxel_unit = dataset.voxel_unit if unit is None else VoxelUnit.from_str(str(unit))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    if voxel_size is None and unit is None:
        return dataset.voxel_size, voxel_unit
    if voxel_unit is VoxelUnit.VOXEL:
        raise InvalidArgumentError("a voxel is no length: give the size a unit, as um")
    if voxel_size is None:
        return dataset.voxel_size, voxel_unit
    sizes = [voxel_size] if isinstance(voxel_size, int | float) else list(voxel_size)
    if len(sizes) == 1:
        sizes *= len(dataset.shape)
    _, size = validated_axes(dataset.dimension_names, sizes, len(dataset.shape))
    return size, voxel_unit


def _is_same(one: _Size, other: _Size) -> bool:
    return one[1] == other[1] and are_same_sizes(one[0], other[0])


def _label_documents(
    metadata: StoreMetadata, image: Dataset, new_size: _Size
) -> list[_NewDocument]:
    folder = metadata.store.path("labels")
    documents = []
    for name in label_names(metadata.files, folder):
        found = read_store_metadata(os.path.join(folder, name), metadata.files)
        labels = dataset_of(found)
        size = new_size
        if labels.shape != image.shape:
            # Labels of others may be coarser than their image: they keep that.
            factors = zip(labels.voxel_size, image.voxel_size, new_size[0], strict=True)
            size = tuple(v / b * a for v, b, a in factors), new_size[1]
        documents.append(_NewDocument(found, _changed_root(found, labels, size, None, {})))
    return documents


def _changed_root(
    metadata: StoreMetadata,
    dataset: Dataset,
    size: _Size | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
) -> str:
    """Return the text of the root document with what is given changed."""
    document = json.loads(metadata.store.get(ROOT_DOCUMENT))
    attributes = document.setdefault("attributes", {})
    names = dataset.dimension_names
    if "ome" in attributes and size is not None:
        attributes["ome"] = rescale_ome(attributes["ome"], dataset.voxel_size, *size)
    if "ome" in attributes and dataset_id is not None and dataset.dataset_id is not None:
        attributes["ome"] = rename_ome(attributes["ome"], dataset.dataset_id, dataset_id)
    # A dataset without data type has its block beside those of this package's receipt; a store of
    # another writer, which has neither, is given one there.
    home = (
        attributes
        if "mango" in attributes
        else attributes.setdefault(RECEIPT_ATTRIBUTE, {"levels": []})
    )
    key = "mango" if "mango" in attributes else "dataset"
    block = home.get(key) or build_mango_block(
        datatype=None,
        dataset_id=None,
        history={},
        voxel_size=dataset.voxel_size,
        voxel_unit=dataset.voxel_unit,
        dimension_names=names,
        extra_attrs={},
    )
    home[key] = edit_mango_block(
        block,
        dataset_id=dataset_id,
        history=history,
        voxel_size=None if size is None else (*size, names),
    )
    if own_receipt(attributes) is not None:
        document = seal(document)
    return json.dumps(document, indent=2, allow_nan=False)
