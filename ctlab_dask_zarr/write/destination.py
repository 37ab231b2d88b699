"""The destination of a write: what is there, what lies beside it, and what may be replaced.

On a file system a write happens in a hidden sibling of the destination, ``.<name>.staging``::

    .scan.zarr.staging/plan.json       whose write this is, and of what: enough to commit it
    .scan.zarr.staging/receipts-1f0c/  what was written so far, a few dozen shards an object
    .scan.zarr.staging/store-1f0c/     the dataset to be: shards under their final keys
    .scan.zarr.staging/pieces-1f0c/    what a level leaves for the next one, while levels are made
    .scan.zarr.replaced.1f0c           the old dataset, for the moment between two renames

The three folders are named by an id of this staging folder alone: whoever still works for one that
was removed, and made anew by another write, finds nothing to put its shards into, or to publish.

Object stores cannot rename. There ``plan.json`` is put only where there is none, shards go under
their final keys at once, and the root document, which makes a dataset of them, is put last::

    scan.zarr/0/c/0/0/0                shards, while scan.zarr/zarr.json is not there
    .scan.zarr.staging/plan.json       and receipts and pieces, as above
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ctlab_dask_zarr.errors import StorageError
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT, read_json_object, read_ome, strangers
from ctlab_dask_zarr.runtime.documents import discard_announced
from ctlab_dask_zarr.runtime.files import LOCAL_FILES, Files, remove_tree
from ctlab_dask_zarr.runtime.objects import ObjectFiles
from ctlab_dask_zarr.runtime.storage import LocalStore, files_at, store_at
from ctlab_dask_zarr.runtime.uploads import abort_uploads

__all__ = ["STAGED_PLAN", "Destination"]

#: In the staging folder: whose write it is, and of what.
STAGED_PLAN = "plan.json"
_STORE_PREFIX = "store-"
_RECEIPTS_PREFIX = "receipts-"
_PIECES_PREFIX = "pieces-"


@dataclass(frozen=True)
class Destination:
    """Where a dataset will be, and the places beside it that its write uses.

    Attributes
    ----------
    path
        The store; absolute.
    files
        Through which everything is done.
    labels_of
        The image of which this will be labels: what lies beside labels while they are written lies
        beside their image, of which nobody is to see it.
    """

    path: str
    files: Files = LOCAL_FILES
    labels_of: str | None = None

    @classmethod
    def at(cls, path: str, labels_of: str | None = None) -> Destination:
        """Return the destination at a path or URL, reached with the storage options in force."""
        return cls(path, files_at(path), labels_of)

    @property
    def _hidden(self) -> tuple[str, str]:
        """Folder and name that what lies beside this is called by."""
        if self.labels_of is None:
            return os.path.split(self.path)
        folder, name = os.path.split(self.labels_of)
        return folder, f"{name}.labels.{os.path.basename(self.path)}"

    @property
    def staging(self) -> str:
        """The staging folder: a hidden sibling, on the same file system."""
        folder, name = self._hidden
        return os.path.join(folder, f".{name}.staging")

    def replaced(self, staging_id: str) -> str:
        """Return where a commit keeps the old dataset between its two renames.

        Of this commit alone: none removes, or puts back, what another has put aside.
        """
        return f"{self._replaced_prefix}{staging_id}"

    @property
    def _replaced_prefix(self) -> str:
        folder, name = self._hidden
        return os.path.join(folder, f".{name}.replaced.")

    def all_replaced(self) -> list[str]:
        """Return the old datasets that commits have put aside and not removed yet."""
        folder, prefix = os.path.split(self._replaced_prefix)
        if not self.can_rename:
            return []
        if self.files.kind(folder) != "folder":
            return []
        names = sorted(name for name, _ in self.files.entries(folder))
        return [os.path.join(folder, name) for name in names if name.startswith(prefix)]

    @property
    def objects(self) -> ObjectFiles | None:
        """The object store that it is in, with the effects that only those have; else None."""
        return self.files if isinstance(self.files, ObjectFiles) else None

    @property
    def can_rename(self) -> bool:
        """Whether a dataset is put together elsewhere and renamed; object stores cannot."""
        return self.objects is None

    @property
    def store(self) -> LocalStore:
        """The dataset that is here, or will be."""
        return store_at(self.path, self.files)

    @property
    def notes(self) -> LocalStore:
        """The staging folder as a store, for what is kept about the write."""
        return store_at(self.staging, self.files)

    def staged_store(self, staging_id: str) -> LocalStore:
        """Return where the dataset is put together."""
        if not self.can_rename:
            return self.store
        return store_at(os.path.join(self.staging, f"{_STORE_PREFIX}{staging_id}"), self.files)

    def staged_receipts(self, staging_id: str) -> LocalStore:
        """Return where the receipts of what was written are kept meanwhile."""
        name = f"{_RECEIPTS_PREFIX}{staging_id}"
        return store_at(os.path.join(self.staging, name), self.files)

    def staged_pieces(self, staging_id: str) -> LocalStore:
        """Return where the tasks of one level leave what those of the next need."""
        name = f"{_PIECES_PREFIX}{staging_id}"
        return store_at(os.path.join(self.staging, name), self.files)

    def staged_plan(self) -> dict[str, Any]:
        """Return what the staging folder says about its write; empty where it says nothing."""
        return read_json_object(self.files, os.path.join(self.staging, STAGED_PLAN))

    def committed(self) -> dict[str, Any]:
        """Return what the dataset that is there says about its write; empty where it is not ours.

        Its ``run_id`` tells which run wrote it, its ``fingerprint`` what.
        """
        document = read_json_object(self.files, os.path.join(self.path, ROOT_DOCUMENT))
        attributes = document.get("attributes")
        return (own_receipt(attributes) if isinstance(attributes, dict) else None) or {}

    def problem(self, *, overwrite: bool) -> str | None:
        """Return why nothing may be committed here, or None.

        Only a Zarr v3 store with the marks of a volume is ever replaced, and only if it holds
        nothing else: an unrelated file in it would be lost.
        """
        try:
            kind = self.files.kind(self.path)
        except StorageError:
            raise
        except OSError as error:
            return f"{self.path} cannot be looked at: {error.strerror}"
        if not self.can_rename:
            return self._problem_of_objects(overwrite=overwrite) if kind else None
        if kind is None:
            return None
        if not overwrite:
            return (
                f"{self.path} exists: choose another name, or replace it with overwrite=True "
                "(--overwrite)"
            )
        refusal = f"{self.path} exists and is not replaced:"
        if kind == "link":
            return f"{refusal} it is a symbolic link, give the path that it points to"
        if kind != "folder":
            return f"{refusal} it is no Zarr store but a file"
        document = read_json_object(self.files, os.path.join(self.path, ROOT_DOCUMENT))
        attributes = document.get("attributes")
        if not isinstance(attributes, dict) or not {"ome", "mango"}.intersection(attributes):
            return f"{refusal} it is no OME-Zarr or mango store of Zarr v3"
        if self.files.kind(os.path.join(self.path, "labels")) is not None:
            return f"{refusal} it has labels, which would be lost: move the folder labels elsewhere"
        stranger = next(strangers(self.files, self.path), None)
        if stranger is not None:
            return f"{refusal} it holds {stranger!r}, which is no part of a Zarr store"
        return None

    def _problem_of_objects(self, *, overwrite: bool) -> str | None:
        if self.files.kind(self.store.path(ROOT_DOCUMENT)) is not None:
            advice = "choose another name, or remove it first"
            if overwrite:
                advice = "an object store cannot replace it in one step: remove it first"
            return f"{self.path} exists: {advice}"
        if not self.staged_plan():
            return (
                f"{self.path} holds objects that are no dataset, nor the shards of a write that "
                "can be gone on with: remove them, or choose another name"
            )
        return None

    def is_staging_committed(self) -> bool:
        """Whether the dataset which is here was put together in the staging folder beside it.

        Its plan may name another run than the dataset: one that had gone on with it.
        """
        staging_id = self.committed().get("staging_id")
        return staging_id is not None and self.staged_plan().get("staging_id") == staging_id

    def is_being_extended(self) -> bool:
        """Whether the staging folder holds further levels for the store that is here.

        Not where they are committed, and the folder is what their commit has left.
        """
        is_for_more = self.staged_plan().get("extends") is not None
        return is_for_more and not self.is_staging_committed()

    def discard_committed_staging(self) -> None:
        """Remove the staging folder if it is that of the dataset which is here.

        Never that of another write: a commit task that is repeated, or is slow, may find that the
        next write has staged meanwhile.
        """
        if self.is_staging_committed():
            self.discard_staging()

    def discard_staging(self) -> None:
        """Remove the staging folder; from the first moment on it is there whole or not at all.

        On an object store, the plan goes last: until then the rest can be removed, or gone on with.
        """
        objects = self.objects
        if objects is None:
            self._discard(self.staging)
            return
        if not self.is_staging_committed():
            for path in self._uncommitted_paths():
                objects.remove_all(path)
                abort_uploads(path, objects.options)
            abort_uploads(self.staging, objects.options)
        for folder, kind in objects.entries(self.staging):
            if kind == "folder":
                objects.remove_all(os.path.join(self.staging, folder))
        objects.remove_all(self.staging)

    def _uncommitted_paths(self) -> list[str]:
        """Return below what the shards of the staged write are."""
        plan = self.staged_plan()
        if plan.get("extends") is None:
            is_dataset = self.files.kind(self.store.path(ROOT_DOCUMENT)) is not None
            return [] if is_dataset else [self.path]
        levels = plan.get("levels", [])[1:]
        return [self.store.path(level["path"]) for level in levels]

    def _discard(self, folder: str) -> None:
        # Renamed first, so that nobody goes on in, or publishes, a folder that lacks parts.
        aside = self.beside_staging()
        try:
            self.files.rename(folder, aside)
        except FileNotFoundError:
            return
        # Never is the removal of a part durable without the rename.
        self.files.sync_folder(os.path.dirname(aside))
        remove_tree(self.files, aside)

    def take_back_levels(self) -> None:
        """Move levels that a commit has moved into the store, and not named, back where they were.

        What it has left of a root document that would have named them is removed. Only for who
        knows that this commit is dead: it could be about to name them. Killed at any moment it
        leaves what the same write goes on with.
        """
        plan = self.staged_plan()
        if not self.can_rename or not self.is_being_extended():
            return
        multiscales = read_ome(self.files, self.path).get("multiscales")
        if not isinstance(multiscales, list):
            return
        named = {entry.get("path") for image in multiscales for entry in image.get("datasets", ())}
        staged = self.staged_store(plan["staging_id"])
        moved = [
            level["path"]
            for level in plan["levels"][1:]
            if level["path"] not in named
            and self.files.kind(staged.path(level["path"])) is None
            and self.files.kind(self.store.path(level["path"])) == "folder"
        ]
        # First what would name them: whoever changes the document next would make that change.
        discard_announced(self.store)
        for path in moved:
            self.files.rename(self.store.path(path), staged.path(path))
        if moved:
            # Never is the removal of the staging folder durable without this.
            self.files.sync_folder(staged.root)
            self.files.sync_folder(self.path)

    def staged_labels(self) -> list[Destination]:
        """Return the labels of the image here beside which staging folders are, or their rests."""
        folder, name = os.path.split(self.path)
        if not self.can_rename or self.files.kind(folder) != "folder":
            return []
        staging = re.compile(rf"\.{re.escape(name)}\.labels\.(.+?)\.staging(\.[0-9a-f]{{32}})?")
        found = [staging.fullmatch(entry) for entry, _ in self.files.entries(folder)]
        return [
            Destination(os.path.join(self.path, "labels", label), self.files, self.path)
            for label in sorted({match[1] for match in found if match is not None})
        ]

    def beside_staging(self) -> str:
        """Return a new name for a staging folder that is not yet, or no longer, the one."""
        return f"{self.staging}.{uuid.uuid4().hex}"

    def sweep(self) -> None:
        """Remove staging folders that were being made or removed when their process died.

        One that is being made at this moment is made again by its process. A staging folder
        without a plan is the rest of one whose removal a power failure has cut off.
        """
        if not self.can_rename:
            return
        folder, name = os.path.split(self.staging)
        for entry, _ in self.files.entries(folder):
            if entry.startswith(f"{name}."):
                with suppress(OSError):
                    self._discard(os.path.join(folder, entry))
        is_there = self.files.kind(self.staging) == "folder"
        if is_there and self.files.kind(os.path.join(self.staging, STAGED_PLAN)) is None:
            self.discard_staging()

    def finish_interrupted_replacement(self) -> None:
        """Repair what a commit left that died between its renames.

        The old dataset is aside and the new one complete in staging: the new one takes its place.
        If it is already there, the old one is only left to be removed.
        """
        for aside in self.all_replaced():
            if self.files.kind(self.path) is None:
                store = self.staged_store(aside.removeprefix(self._replaced_prefix))
                is_complete = self.files.kind(store.path(ROOT_DOCUMENT)) is not None
                with suppress(FileNotFoundError):
                    self.files.rename(store.root if is_complete else aside, self.path)
                self.files.sync_folder(os.path.dirname(self.path))
            if self.files.kind(self.path) is not None:
                remove_tree(self.files, aside)
