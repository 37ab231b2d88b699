"""Changes to what a store says about its volume: voxel size, identifier, history.

All of it stands in the root document, so that a change of an image is the replacement of one
object, which is there whole or not at all. Labels are images of their own below it and follow its
voxel size, a document each, after it: what is wrong meanwhile is what was wrong before. The same
change asked for again finds the labels that lag behind.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import (
    CTLabError,
    InvalidArgumentError,
    UnsupportedFormatError,
    WriteFailedError,
)
from ctlab_dask_zarr.formats.edit import edit_attributes
from ctlab_dask_zarr.formats.history import unused_key
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.ome import parse_ome_attributes
from ctlab_dask_zarr.formats.receipts import own_receipt, seal
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes, size_text, validated_axes
from ctlab_dask_zarr.read.zarr import StoreMetadata, dataset_of, read_store_metadata
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import CONSOLIDATED, swap_document, until_done
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names, listed_labels, read_ome
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import Store, files_at, storage_options_in_force
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import HistoryValue

__all__ = ["MetadataEdit", "build_edit", "edit_metadata"]

_Size = tuple[tuple[float, ...], VoxelUnit]


@dataclass(frozen=True)
class _NewDocument:
    """The root document of a store as it will be, and the hash of what it takes the place of."""

    store: Store
    before: str
    text: str

    @property
    def is_as_before(self) -> bool:
        return hashlib.sha256(self.store.get(ROOT_DOCUMENT)).hexdigest() == self.before

    def put(self) -> bool:
        return swap_document(self.store, self.before, self.text.encode())


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
        changed = [new for new in self._documents if not new.is_as_before]
        changed = changed or list(self._documents[self.put() :])
        if changed:
            raise WriteFailedError(
                f"{changed[0].store.path(ROOT_DOCUMENT)} was changed by something else at the same "
                "time: look at it, and do this again if it is still wanted"
            )

    def put(self) -> int:
        """Replace document after document, up to one that is another by now; return how many."""
        for number, new in enumerate(self._documents):
            if not new.put():
                return number
        return len(self._documents)


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

    One document is replaced, whole or not at all, so that every level and the mango block agree at
    any moment; the change is recorded in the history. Labels below the image have documents of
    their own, which follow its voxel size right after: where that was cut off, the same call again
    corrects those that lag behind.

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
        An argument is wrong, the path is a level of an image, or further levels or labels of the
        store are being written; nothing was touched.
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
    wanted: dict[str, Any] = {
        "voxel_size": voxel_size,
        "voxel_unit": voxel_unit,
        "dataset_id": dataset_id,
        "history": history,
    }
    changes: dict[str, None] = {}

    def step() -> bool:
        edit = build_edit(path, datetime.now(), **wanted)
        n_put = edit.put()
        is_done = n_put == len(edit._documents)
        if n_put or is_done:
            changes.update(dict.fromkeys(edit.changes))
        if any(new.store.root == edit.path for new in edit._documents[:n_put]):
            # The labels follow what the image says by now: somebody may have changed it again.
            wanted.clear()
            wanted["labels_follow"] = True
        return is_done

    with storage_options_in_force(storage_options):
        root = storage_path(path)
        until_done(Store(root, files_at(root)), step)
    return tuple(changes)


def build_edit(
    path: str | os.PathLike[str],
    now: datetime,
    *,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    dataset_id: str | None = None,
    history: Mapping[str, Any] | None = None,
    labels_follow: bool = False,
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
    labels_follow
        Give the labels the voxel size that the image has.
    """
    metadata = read_store_metadata(path)
    _refuse_level(metadata)
    _refuse_unfinished(metadata)
    dataset = dataset_of(metadata)
    entries = dict(history or {})
    _refuse_wrong_entries(entries, dataset)
    changes = [f"history: {key!r} is added" for key in entries]
    stamp = f"{now:%Y%m%d_%H%M%S}"
    before = dataset.voxel_size, dataset.voxel_unit
    wanted = before if labels_follow else _wanted_size(dataset, voxel_size, voxel_unit)
    new_size = None if wanted is None or _is_same(wanted, before) else wanted
    if new_size is not None:
        levels = f" on {len(metadata.arrays)} levels" if len(metadata.arrays) > 1 else ""
        changes.append(f"voxel size{levels}: {size_text(*before)} -> {size_text(*new_size)}")
        entries |= _size_entry(stamp, before, new_size, {*dataset.history, *entries})
    if dataset_id is not None and not (isinstance(dataset_id, str) and dataset_id.strip()):
        raise InvalidArgumentError(f"dataset_id={dataset_id!r} is no text")
    new_id = None if dataset_id == dataset.dataset_id else dataset_id
    if new_id is not None:
        changes.append(f"identifier: {dataset.dataset_id} -> {new_id}")
        entries[unused_key(f"{stamp}_set_id", {*dataset.history, *entries})] = {
            "operation": "set_id",
            "before": dataset.dataset_id,
            "after": new_id,
        }
    documents = []
    if changes:
        documents.append(_changed_root(metadata, dataset, new_size, new_id, entries))
    if wanted is not None:
        for change, document in _changes_of_labels(metadata, dataset, wanted, stamp):
            if document is not None:
                documents.append(document)
            if document is not None or new_size is not None:
                changes.append(change)
    return MetadataEdit(metadata.path, tuple(changes), tuple(documents))


def _refuse_level(metadata: StoreMetadata) -> None:
    """Raise for a level: what an image says of it would differ, and its checksum be wrong."""
    if metadata.ome is not None:
        return
    path = metadata.path if is_url(metadata.path) else os.path.realpath(metadata.path)
    image, name = os.path.split(path)
    ome = read_ome(metadata.files, image)
    levels: tuple[Level, ...] = ()
    with suppress(CTLabError):
        levels = parse_ome_attributes(ome).levels
    if name in [level.path for level in levels]:
        raise InvalidArgumentError(
            f"{metadata.path} is a level of the image {image}, whose metadata is that of all its "
            "levels: give the path of the image"
        )


def _refuse_unfinished(metadata: StoreMetadata) -> None:
    if metadata.path.startswith("http"):
        raise UnsupportedFormatError(f"{metadata.path}: plain HTTP is read, not changed")
    if Destination(metadata.path, metadata.files).is_being_extended():
        raise InvalidArgumentError(
            f"{metadata.path} is being given further levels, which would undo the change: let that "
            "end, or resume it, first"
        )
    for labels in Destination(metadata.path, metadata.files).staged_labels():
        if labels.files.kind(labels.staging) is None or labels.is_staging_committed():
            continue
        raise InvalidArgumentError(
            f"{labels.path} is being written and keeps what the image says now (its staging folder "
            f"is {labels.staging}): let that end, resume it, or remove that folder, first"
        )


def _refuse_wrong_entries(entries: Mapping[str, Any], dataset: Volume) -> None:
    for key in entries:
        if not isinstance(key, str) or not key.strip():
            raise InvalidArgumentError(f"{key!r} is no name for an entry of the history")
        if key in dataset.history:
            raise InvalidArgumentError(
                f"the history has an entry {key!r} already, and nothing in a history is rewritten: "
                "choose another name"
            )


def _wanted_size(
    dataset: Volume, voxel_size: Sequence[float] | float | None, unit: VoxelUnit | str | None
) -> _Size | None:
    """Return the voxel size to be, of as many axes as the volume has; None where none is asked."""
    if voxel_size is None and unit is None:
        return None
    try:
        voxel_unit = dataset.voxel_unit if unit is None else VoxelUnit.from_str(str(unit))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
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


def _size_entry(
    stamp: str, before: _Size, after: _Size, taken: Container[str]
) -> dict[str, dict[str, str]]:
    entry = {
        "operation": "set_voxel",
        "before": size_text(*before),
        "after": size_text(*after),
    }
    return {unused_key(f"{stamp}_set_voxel", taken): entry}


def _changes_of_labels(
    metadata: StoreMetadata, image: Volume, wanted: _Size, stamp: str
) -> Iterator[tuple[str, _NewDocument | None]]:
    """Yield what changes in the labels that are not as an image of the wanted size has them.

    Without a document: labels of which nobody can tell how they follow.
    """
    folder = metadata.store.path("labels")
    files = metadata.files
    for name in sorted({*label_names(files, folder), *listed_labels(files, folder)}):
        if "multiscales" not in read_ome(files, os.path.join(folder, name)):
            continue
        found = read_store_metadata(os.path.join(folder, name), metadata.files)
        labels = dataset_of(found)
        before = labels.voxel_size, labels.voxel_unit
        # Labels of others may be coarser than their image. What they say now is no measure of how
        # much: a change that was cut off may have reached them or not.
        sizes = [level.voxel_size for level in image.levels if level.shape == labels.shape]
        if not sizes:
            advice = f"no level has their shape, give {found.path} its size by itself"
            yield f"labels {name!r} stay at {size_text(*before)}: {advice}", None
            continue
        factors = zip(sizes[0], image.voxel_size, wanted[0], strict=True)
        after = tuple(v / b * a for v, b, a in factors), wanted[1]
        if not _is_same(after, before):
            entry = _size_entry(stamp, before, after, labels.history)
            document = _changed_root(found, labels, after, None, entry)
            change = f"voxel size of labels {name!r}: {size_text(*before)} -> {size_text(*after)}"
            yield change, document


def _changed_root(
    metadata: StoreMetadata,
    dataset: Volume,
    size: _Size | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
) -> _NewDocument:
    """Return the root document with what is given changed."""
    before = metadata.store.get(ROOT_DOCUMENT)
    document = json.loads(before)
    document.pop(CONSOLIDATED, None)
    document["attributes"] = edit_attributes(
        document.get("attributes") or {},
        (dataset.voxel_size, dataset.voxel_unit, dataset.dimension_names),
        dataset.dataset_id,
        size,
        dataset_id,
        history,
    )
    if own_receipt(document["attributes"]) is not None:
        document = seal(document)
    text = json.dumps(document, indent=2)
    return _NewDocument(metadata.store, hashlib.sha256(before).hexdigest(), text)
