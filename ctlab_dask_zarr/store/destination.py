"""The destination of a write: what is there, what lies beside it, and what may be replaced.

On a file system a write happens in a hidden sibling of the destination, ``.<name>.staging``::

    .scan.zarr.staging/plan.json       whose write this is, and of what: enough to commit it
    .scan.zarr.staging/receipts-1f0c/  what was written so far, a few dozen shards an object
    .scan.zarr.staging/store-1f0c/     the dataset to be: shards under their final keys
    .scan.zarr.staging/pieces-1f0c/    what a level leaves for the next one, while levels are made
    .scan.zarr.replaced.1f0c           the old dataset, for the moment between two renames
    .scan.zarr.phases.labels-staging/  the same of its labels ``phases``

The folders are named by an id of this staging folder alone (16 digits): whoever still works for one
that was removed, and made anew by another write, finds nothing to put its shards into, or to
publish. Whole names tell what is hidden of which destination, and nothing is removed that holds
anything else.

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
from functools import partial
from typing import Any
from urllib.parse import unquote

from ctlab_dask_zarr.errors import DestinationExistsError, MetadataError
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.formats.zarr_array import is_key
from ctlab_dask_zarr.store.documents import discard_announced
from ctlab_dask_zarr.store.files import LOCAL_FILES, Files, remove_tree
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, read_json_object, read_ome
from ctlab_dask_zarr.store.objects import ObjectFiles, abort_uploads
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.staging_plan import (
    N_DIGITS,
    N_DIGITS_BESIDE,
    PIECES_PREFIX,
    RECEIPTS_PREFIX,
    STAGED,
    STAGED_PLAN,
    STORE_PREFIX,
    foreign_in,
    is_object_of,
    plan_problem,
)
from ctlab_dask_zarr.store.store import Store, files_at

__all__ = ["Destination"]


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

    def _hidden(self, kind: str) -> str:
        """Return the path of what lies beside this, by its kind.

        No two destinations have one: a name ends in its kind, and in that of labels is no dot.
        """
        if self.labels_of is None:
            folder, name = os.path.split(self.path)
            return os.path.join(folder, f".{name}.{kind}")
        folder, name = os.path.split(self.labels_of)
        labels = os.path.basename(self.path).replace("%", "%25").replace(".", "%2E")
        return os.path.join(folder, f".{name}.{labels}.labels-{kind}")

    def _all_hidden(self, kind: str, n_digits: int) -> dict[str, str]:
        """Return the folders beside this of a kind and an id, by their ids."""
        folder, name = os.path.split(self._hidden(kind))
        if not self.can_rename or self.files.kind(folder) != "folder":
            return {}
        names = re.compile(rf"{re.escape(name)}\.([0-9a-f]{{{n_digits}}})")
        found = [
            (names.fullmatch(e), e) for e, k in sorted(self.files.entries(folder)) if k == "folder"
        ]
        return {match[1]: os.path.join(folder, entry) for match, entry in found if match}

    @property
    def staging(self) -> str:
        """The staging folder: a hidden sibling, on the same file system."""
        return self._hidden("staging")

    def replaced(self, staging_id: str) -> str:
        """Return where a commit keeps the old dataset between its two renames.

        Of this commit alone: none removes, or puts back, what another has put aside.
        """
        return f"{self._hidden('replaced')}.{staging_id}"

    def incoming(self, identity: str) -> str:
        """Return where the copy of a dataset arrives."""
        return f"{self._hidden('incoming')}.{identity[:N_DIGITS]}"

    def all_replaced(self) -> dict[str, str]:
        """Return the old datasets that commits have put aside, by the ids of their stagings."""
        return self._all_hidden("replaced", N_DIGITS)

    def all_incoming(self) -> list[str]:
        """Return where copies have begun to arrive."""
        return list(self._all_hidden("incoming", N_DIGITS).values())

    @property
    def objects(self) -> ObjectFiles | None:
        """The object store that it is in, with the effects that only those have; else None."""
        return self.files if isinstance(self.files, ObjectFiles) else None

    @property
    def can_rename(self) -> bool:
        """Whether a dataset is put together elsewhere and renamed; object stores cannot."""
        return self.objects is None

    @property
    def store(self) -> Store:
        """The dataset that is here, or will be."""
        return Store(self.path, self.files)

    @property
    def notes(self) -> Store:
        """The staging folder as a store, for what is kept about the write."""
        return Store(self.staging, self.files)

    def staged_store(self, staging_id: str) -> Store:
        """Return where the dataset is put together."""
        if not self.can_rename:
            return self.store
        return Store(os.path.join(self.staging, f"{STORE_PREFIX}{staging_id}"), self.files)

    def staged_receipts(self, staging_id: str) -> Store:
        """Return where the receipts of what was written are kept meanwhile."""
        name = f"{RECEIPTS_PREFIX}{staging_id}"
        return Store(os.path.join(self.staging, name), self.files)

    def staged_pieces(self, staging_id: str) -> Store:
        """Return where the tasks of one level leave what those of the next need."""
        name = f"{PIECES_PREFIX}{staging_id}"
        return Store(os.path.join(self.staging, name), self.files)

    def staged_plan(self) -> dict[str, Any]:
        """Return what the staging folder says about its write; empty where it says nothing.

        Raises
        ------
        MetadataError
            It is not as this package makes it: whoever can write beside the destination may have
            put there what leads elsewhere.
        """
        plan = read_json_object(self.files, os.path.join(self.staging, STAGED_PLAN))
        problem = plan_problem(plan) if plan else None
        if self.can_rename:
            if self.files.kind(self.staging) not in ("folder", None):
                problem = "it is no folder"
            foreign = foreign_in(self.files, self.staging)
            if foreign is not None:
                problem = f"it holds {foreign!r}"
        if problem is not None:
            raise MetadataError(
                f"{self.staging} is no staging folder as this package makes it: {problem}. Nothing "
                "in it is believed, or removed: look what it is, and move it elsewhere"
            )
        return plan

    def committed(self) -> dict[str, Any]:
        """Return what the dataset that is there says about its write; empty where it is not ours.

        Its ``run_id`` tells which run wrote it, its ``fingerprint`` what.
        """
        document = read_json_object(self.files, os.path.join(self.path, ROOT_DOCUMENT))
        attributes = document.get("attributes")
        return (own_receipt(attributes) if isinstance(attributes, dict) else None) or {}

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
        plan = self.staged_plan()
        if not self.is_staging_committed():
            for level in self._uncommitted(plan, "levels"):
                path = self.store.path(level["path"]) if level["path"] else self.path
                objects.remove_all(path, partial(is_object_of, level["document"]))
                abort_uploads(path, objects.options)
            for document in self._uncommitted(plan, "documents"):
                self.store.remove(document["key"])
            abort_uploads(self.staging, objects.options)
        objects.remove_all(
            self.staging, lambda key: STAGED.fullmatch(key.split("/")[0]) is not None
        )
        self.notes.remove(STAGED_PLAN)

    def _uncommitted(self, plan: dict[str, Any], part: str) -> list[dict[str, Any]]:
        """Return the levels or documents of a write that no document at the destination lists."""
        found: list[dict[str, Any]] = plan.get(part, [])
        if plan.get("extends") is not None:
            return found[1:] if part == "levels" else []
        return [] if self.files.kind(self.store.path(ROOT_DOCUMENT)) is not None else found

    def _discard(self, folder: str, name: str = "") -> None:
        """Remove a folder that lies beside this; `name`: as what of a staging folder."""
        # Renamed first, so that nobody goes on in, or publishes, a folder that lacks parts.
        aside = self.beside_staging()
        if name:
            self.files.make_folder(aside)
        try:
            self.files.rename(folder, os.path.join(aside, name) if name else aside)
        except FileNotFoundError:
            remove_tree(self.files, aside)
            return
        # Never is the removal of a part durable without the rename.
        if name:
            self.files.sync_folder(aside)
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
            and self._is_level_of(level)
        ]
        # First what would name them: whoever changes the document next would make that change.
        discard_announced(self.store)
        for path in moved:
            self.files.rename(self.store.path(path), staged.path(path))
        if moved:
            # Never is the removal of the staging folder durable without this.
            self.files.sync_folder(staged.root)
            self.files.sync_folder(self.path)

    def _is_level_of(self, level: dict[str, Any]) -> bool:
        """Whether a folder of the store is a level that a commit has moved there, and not another.

        Its document was put before it was moved.
        """
        path = self.store.path(level["path"])
        if self.files.kind(path) != "folder":
            return False
        with suppress(OSError):
            text = str(level["document"]).encode()
            return self.files.read(os.path.join(path, ROOT_DOCUMENT)) == text
        return False

    def staged_labels(self) -> list[Destination]:
        """Return the labels of the image here beside which staging folders are, or their rests."""
        folder, name = os.path.split(self.path)
        # A bucket has nothing beside it.
        is_there = self.can_rename or is_url(folder)
        if not is_there or self.files.kind(folder) != "folder":
            return []
        beside = rf"(\.[0-9a-f]{{{N_DIGITS_BESIDE}}})?"
        staging = re.compile(rf"\.{re.escape(name)}\.([^.]+)\.labels-staging{beside}")
        found = [staging.fullmatch(entry) for entry, _ in self.files.entries(folder)]
        return [
            Destination(os.path.join(self.path, "labels", label), self.files, self.path)
            for label in sorted({unquote(match[1]) for match in found if match is not None})
            if is_key(label) and "/" not in label
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
        for folder in self._all_hidden("staging", N_DIGITS_BESIDE).values():
            if foreign_in(self.files, folder) is None:
                with suppress(OSError):
                    self._discard(folder)
        is_there = self.files.kind(self.staging) == "folder"
        has_plan = self.files.kind(os.path.join(self.staging, STAGED_PLAN)) is not None
        if is_there and not has_plan and foreign_in(self.files, self.staging) is None:
            self.discard_staging()

    def finish_interrupted_replacement(self) -> None:
        """Repair what a commit left that died between its renames.

        The old dataset is aside and the new one complete in staging: the new one takes its place.
        If it is already there, the old one is only left to be removed.

        Raises
        ------
        DestinationExistsError
            Something else took its place: the old dataset stays aside.
        """
        for staging_id, aside in self.all_replaced().items():
            store = self.staged_store(staging_id)
            if self.files.kind(self.path) is None:
                is_complete = self.files.kind(store.path(ROOT_DOCUMENT)) is not None
                with suppress(FileNotFoundError):
                    self.files.rename(store.root if is_complete else aside, self.path)
                self.files.sync_folder(os.path.dirname(self.path))
            if self.committed().get("staging_id") == staging_id:
                self._discard(aside, os.path.basename(store.root))
        problem = self.replacement_problem()
        if problem is not None:
            raise DestinationExistsError(problem)

    def replacement_problem(self) -> str | None:
        """Return that an old dataset is aside, and something else than its successor here."""
        asides = self.all_replaced()
        if not asides or self.files.kind(self.path) is None:
            return None
        others = asides.keys() - {self.committed().get("staging_id")}
        if not others:
            return None
        return (
            f"{self.path} came to be while the dataset that was there was being replaced, and is "
            f"not replaced itself. The old dataset is whole in {asides[min(others)]}: move what is "
            f"at {self.path} elsewhere, then `ctlab-zarr commit {self.path}` puts the new one in "
            "its place, or the old one back where the new one is not complete"
        )
