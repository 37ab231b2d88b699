"""Changes to what a store says about its volume: voxel size, identifier, history.

All of this is in the root document of an image, so a change replaces one object, wholly or not at
all. Labels are images of their own in it: their documents get the new voxel size one after another,
and are out of date until then. After an interruption, the same change corrects the labels that lag
behind.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

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
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata, volume_of
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import CONSOLIDATED, swap_document, until_done
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names, read_ome
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import Store, files_at, storage_options_in_force
from ctlab_dask_zarr.text import size_text
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import HistoryValue


class _Size(NamedTuple):
    lengths: tuple[float, ...]
    unit: VoxelUnit

    def __str__(self) -> str:
        return size_text(self.lengths, self.unit)

    def is_same(self, other: _Size) -> bool:
        return self.unit == other.unit and are_same_sizes(self.lengths, other.lengths)


class _NewDocument(NamedTuple):
    """The root document that a store will have, and the hash of the document that it replaces."""

    store: Store
    before: str
    text: str

    def is_planned(self) -> bool:
        """Whether the document is still the one that the change was planned from."""
        return hashlib.sha256(self.store.get(ROOT_DOCUMENT)).hexdigest() == self.before


@dataclass(frozen=True)
class MetadataEdit:
    """A planned change.

    Attributes
    ----------
    path
        The store.
    changes
        What will change, one line for each; empty if nothing has to change.
    """

    path: str
    changes: tuple[str, ...]
    _documents: tuple[_NewDocument, ...]

    def apply(self) -> None:
        """Make the change.

        Raises
        ------
        WriteFailedError
            Something else has changed the store since the change was planned.
        """
        left = [new for new in self._documents if not new.is_planned()] or self._put()
        if left:
            raise WriteFailedError(
                f"{left[0].store.path(ROOT_DOCUMENT)} was changed by something else at the same "
                "time: look at it, and repeat this change if it is still wanted"
            )

    def _put(self) -> Sequence[_NewDocument]:
        """Replace the documents in turn; return those left if one was changed meanwhile."""
        for number, new in enumerate(self._documents):
            if not swap_document(new.store, new.before, new.text.encode()):
                return self._documents[number:]
        return ()


def edit_metadata(
    path: str | os.PathLike[str],
    *,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    dataset_id: str | None = None,
    history: Mapping[str, HistoryValue] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Change the metadata of a store; no voxel is touched.

    One document is replaced, wholly or not at all, so every level and the mango block agree at any
    moment. The history records the change. Labels of the image have documents of their own, which
    then get its voxel size. After an interruption, the same call corrects the labels that lag
    behind.

    Parameters
    ----------
    path
        A store, written by any program.
    voxel_size
        Edge lengths of a voxel of the finest level: one for all axes, or one for each.
    voxel_unit
        Their unit, by default that of the store. Without `voxel_size`, only the unit changes.
    dataset_id
        The new identifier, in mango's form ``YYYYMMDD_HHMMSS_<name>``.
    history
        Entries to add, by their keys; existing entries are never replaced.
    storage_options
        As in `dataset_to_zarr`.

    Returns
    -------
    What was changed, one line for each; empty if nothing had to change.

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
    wanted = _Wanted(voxel_size, voxel_unit, dataset_id, history)
    changes: dict[str, None] = {}

    def step() -> bool:
        nonlocal wanted
        edit = _planned(path, datetime.now(), wanted)
        left = edit._put()
        done = edit._documents[: len(edit._documents) - len(left)]
        if done or not left:
            changes.update(dict.fromkeys(edit.changes))
        if any(new.store.root == edit.path for new in done):
            # Another program may change the image now: the labels follow its size at that time.
            wanted = _Wanted(labels_follow=True)
        return not left

    root = storage_path(path)
    with storage_options_in_force(storage_options):
        until_done(Store(root, files_at(root)), step)
    return tuple(changes)


def plan_edit(
    path: str | os.PathLike[str],
    *,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    dataset_id: str | None = None,
    history: Mapping[str, HistoryValue] | None = None,
    now: datetime | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> MetadataEdit:
    """Return what `edit_metadata` would change, to show it first and apply it then.

    Parameters
    ----------
    path, voxel_size, voxel_unit, dataset_id, history, storage_options
        As in `edit_metadata`.
    now
        Local time for the key of the entry in the history; by default the present time.

    Raises
    ------
    InvalidArgumentError
        As in `edit_metadata`.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, plan_edit
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr")
    ...     edit = plan_edit(folder + "/scan.zarr", voxel_size=2.37)
    ...     edit.apply()
    >>> edit.changes
    ('voxel size: 2.5 um -> 2.37 um',)
    """
    with storage_options_in_force(storage_options):
        wanted = _Wanted(voxel_size, voxel_unit, dataset_id, history)
        return _planned(path, now or datetime.now(), wanted)


class _Wanted(NamedTuple):
    """The wanted metadata; `labels_follow` means that labels get the image's voxel size."""

    voxel_size: Sequence[float] | float | None = None
    voxel_unit: VoxelUnit | str | None = None
    dataset_id: str | None = None
    history: Mapping[str, HistoryValue] | None = None
    labels_follow: bool = False


def _planned(path: str | os.PathLike[str], now: datetime, wanted: _Wanted) -> MetadataEdit:
    metadata = read_store_metadata(path)
    refuse_level(metadata)
    refuse_unfinished(metadata)
    volume = volume_of(metadata)
    entries: dict[str, Any] = dict(wanted.history or {})
    _refuse_wrong_entries(entries, volume)
    new_id = wanted.dataset_id
    if new_id is not None and not (isinstance(new_id, str) and new_id.strip()):
        raise InvalidArgumentError(f"dataset_id={new_id!r} is not text")
    changes = [f"history: {key!r} is added" for key in entries]
    before = _Size(volume.voxel_size, volume.voxel_unit)
    size = before if wanted.labels_follow else _wanted_size(volume, wanted)
    new_size = None if size is None or size.is_same(before) else size
    if new_size is not None:
        levels = f" on {len(metadata.arrays)} levels" if len(metadata.arrays) > 1 else ""
        changes.append(f"voxel size{levels}: {before} -> {new_size}")
        entries |= _entry(now, "set_voxel", before, new_size, {*volume.history, *entries})
    new_id = None if new_id == volume.dataset_id else new_id
    if new_id is not None:
        changes.append(f"identifier: {volume.dataset_id} -> {new_id}")
        entries |= _entry(now, "set_id", volume.dataset_id, new_id, {*volume.history, *entries})
    documents = []
    if changes:
        documents.append(_changed_root(metadata, volume, new_size, new_id, entries))
    if size is not None:
        for change, document in _changes_of_labels(metadata, volume, size, now):
            if document is not None:
                documents.append(document)
            if document is not None or new_size is not None:
                changes.append(change)
    return MetadataEdit(metadata.path, tuple(changes), tuple(documents))


def refuse_level(metadata: StoreMetadata) -> None:
    """Raise for a level of an image: both would disagree, and its checksum would be wrong."""
    if metadata.ome is not None:
        return
    path = metadata.path if is_url(metadata.path) else os.path.realpath(metadata.path)
    image, name = os.path.split(path)
    levels: Sequence[Level] = ()
    with suppress(CTLabError):
        levels = parse_ome_attributes(read_ome(metadata.files, image)).levels
    if any(level.path == name for level in levels):
        raise InvalidArgumentError(
            f"{metadata.path} is a level of the image {image}, which has the metadata of all its "
            "levels: pass the path of the image"
        )


def refuse_unfinished(metadata: StoreMetadata) -> None:
    """Raise while something is written that has the present root document, and over plain HTTP."""
    metadata.refuse_changes()
    if metadata.path.startswith("http"):
        raise UnsupportedFormatError(f"{metadata.path}: plain HTTP is read, not changed")
    destination = Destination(metadata.path, metadata.files)
    if destination.is_being_extended():
        raise InvalidArgumentError(
            f"{metadata.path} is being repaired or given further levels, which would undo the "
            "change: first let that end, or resume it"
        )
    for labels in destination.staged_labels():
        if labels.files.kind(labels.staging) is not None and not labels.is_staging_committed():
            raise InvalidArgumentError(
                f"{labels.path} is being written with the present metadata of the image (its "
                f"staging folder is {labels.staging}): first let that end, resume it, or remove "
                "the folder"
            )


def _refuse_wrong_entries(entries: Mapping[str, Any], volume: Volume) -> None:
    for key in entries:
        if not isinstance(key, str) or not key.strip():
            raise InvalidArgumentError(f"{key!r} is not a name for an entry of the history")
        if key in volume.history:
            raise InvalidArgumentError(
                f"the history has an entry {key!r} already, and entries are never replaced: "
                "choose another name"
            )


def _wanted_size(volume: Volume, wanted: _Wanted) -> _Size | None:
    if wanted.voxel_size is None and wanted.voxel_unit is None:
        return None
    changed = Volume.from_modified(
        volume, voxel_size=wanted.voxel_size, voxel_unit=wanted.voxel_unit
    )
    if changed.voxel_unit is VoxelUnit.VOXEL:
        raise InvalidArgumentError("a voxel is not a length: give the size a unit, as um")
    return _Size(changed.voxel_size, changed.voxel_unit)


def _entry(
    now: datetime, operation: str, before: object, after: object, taken: Collection[str]
) -> dict[str, Any]:
    """Return an entry of the history with a key that is not taken."""
    key = unused_key(f"{now:%Y%m%d_%H%M%S}_{operation}", taken)
    return {key: {"operation": operation, "before": before and str(before), "after": str(after)}}


def _changes_of_labels(
    metadata: StoreMetadata, image: Volume, wanted: _Size, now: datetime
) -> Iterator[tuple[str, _NewDocument | None]]:
    """Yield the changes to labels whose voxel size does not fit the image's wanted size.

    For labels whose size relative to the image is not known, there is no document.
    """
    folder = metadata.store.path("labels")
    for name in sorted(label_names(metadata.files, metadata.path)):
        found = read_store_metadata(os.path.join(folder, name), metadata.files)
        labels = volume_of(found)
        before = _Size(labels.voxel_size, labels.voxel_unit)
        # Labels of other programs may be coarser than their image. The level with their shape tells
        # by how much; their own size does not, because an interrupted change may have reached them.
        sizes = [level.voxel_size for level in image.levels if level.shape == labels.shape]
        if not sizes:
            advice = f"no level has their shape, so set the voxel size of {found.path} itself"
            yield f"labels {name!r} stay at {before}: {advice}", None
            continue
        factors = zip(sizes[0], image.voxel_size, wanted.lengths, strict=True)
        after = _Size(tuple(v / b * a for v, b, a in factors), wanted.unit)
        if not after.is_same(before):
            entry = _entry(now, "set_voxel", before, after, labels.history)
            document = _changed_root(found, labels, after, None, entry)
            yield f"voxel size of labels {name!r}: {before} -> {after}", document


def _changed_root(
    metadata: StoreMetadata,
    volume: Volume,
    size: _Size | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
) -> _NewDocument:
    document = json.loads(metadata.store.get(ROOT_DOCUMENT))
    document.pop(CONSOLIDATED, None)
    document["attributes"] = edit_attributes(
        document.get("attributes") or {},
        (volume.voxel_size, volume.voxel_unit, volume.dimension_names),
        volume.dataset_id,
        size,
        dataset_id,
        history,
    )
    if own_receipt(document["attributes"]) is not None:
        document = seal(document)
    # The hash is of the document that the change was planned from: if another program has changed
    # it since, it is not replaced.
    return _NewDocument(metadata.store, metadata.root_hash, json.dumps(document, indent=2))
