"""The destination of a write: what is there, what lies beside it, and how either is tidied up.

``docs/design/commit.md`` shows the hidden folders. Their names hold the id of one staging folder,
16 digits, so that a process that still works for a staging folder which was removed, and made anew
by another write, finds no place for its shards, and nothing to publish. Only whole names tell what
is hidden beside which destination, and nothing is removed that holds anything else.

Object stores cannot rename. There ``plan.json`` is put only where there is none, shards go under
their final keys at once, and the root document, which makes a dataset of them, is put last.
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import unquote

from ctlab_dask_zarr.errors import DestinationExistsError, MetadataError
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.formats.zarr_array import is_key
from ctlab_dask_zarr.store.documents import discard_announced
from ctlab_dask_zarr.store.files import LOCAL_FILES, Files, remove_tree
from ctlab_dask_zarr.store.hierarchy import (
    ROOT_DOCUMENT,
    dataset_paths,
    read_attributes,
    read_json_object,
    read_ome,
)
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.staging_plan import (
    N_DIGITS,
    N_DIGITS_BESIDE,
    STAGED,
    STAGED_PLAN,
    foreign_in,
    is_object_of,
    plan_problem,
)
from ctlab_dask_zarr.store.store import Store, files_at
from ctlab_dask_zarr.text import command_text

#: So often an old dataset is put into a new folder, which others sweep away as long as it is empty.
_N_TRIES = 10


@dataclass(frozen=True)
class Destination:
    """Where a dataset will be, and the places beside it that its write uses.

    Labels have the image `labels_of`: while they are written, they are staged beside it, so that
    nobody sees them in it.
    """

    path: str
    files: Files = LOCAL_FILES
    labels_of: str | None = None

    @classmethod
    def at(cls, path: str, labels_of: str | None = None) -> Destination:
        """Return the destination at a path or URL, reached with the storage options in force."""
        return cls(path, files_at(path), labels_of)

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
    def staging(self) -> str:
        """The staging folder: a hidden sibling, on the same file system."""
        return self._hidden("staging")

    @property
    def notes(self) -> Store:
        """The staging folder as a store, for what is kept about the write."""
        return Store(self.staging, self.files)

    def staged_store(self, staging_id: str) -> Store:
        """Return where the dataset is put together."""
        return self.staged("store", staging_id) if self.can_rename else self.store

    def staged(self, kind: Literal["store", "receipts", "pieces"], staging_id: str) -> Store:
        """Return where that is kept meanwhile: pieces are what tasks leave for the next level."""
        return Store(os.path.join(self.staging, f"{kind}-{staging_id}"), self.files)

    def replaced(self, staging_id: str) -> str:
        """Return where one commit, and no other, keeps the old dataset between its two renames."""
        return f"{self._hidden('replaced')}.{staging_id}"

    def all_replaced(self) -> dict[str, str]:
        """Return the old datasets that commits have put aside, by the ids of their stagings."""
        return self._all_hidden("replaced", N_DIGITS)

    def incoming(self, identity: str) -> str:
        """Return where the copy of a dataset arrives."""
        return f"{self._hidden('incoming')}.{identity[:N_DIGITS]}"

    def all_incoming(self) -> list[str]:
        """Return where copies have begun to arrive."""
        return list(self._all_hidden("incoming", N_DIGITS).values())

    def beside_staging(self) -> str:
        """Return a new name for a staging folder that is being made or removed."""
        return f"{self.staging}.{uuid.uuid4().hex}"

    def _hidden(self, kind: str) -> str:
        """Return a path beside this, of this alone: names end in a kind, which has no dot."""
        folder, name = os.path.split(self.labels_of or self.path)
        if self.labels_of is None:
            return os.path.join(folder, f".{name}.{kind}")
        labels = os.path.basename(self.path).replace("%", "%25").replace(".", "%2E")
        return os.path.join(folder, f".{name}.{labels}.labels-{kind}")

    def _all_hidden(self, kind: str, n_digits: int) -> dict[str, str]:
        """Return the folders beside this of a kind and an id, by their ids."""
        folder, name = os.path.split(self._hidden(kind))
        if not self.can_rename or self.files.kind(folder) != "folder":
            return {}
        pattern = re.compile(rf"{re.escape(name)}\.([0-9a-f]{{{n_digits}}})")
        names = [name for name, kind in sorted(self.files.entries(folder)) if kind == "folder"]
        found = [match for match in map(pattern.fullmatch, names) if match]
        return {match[1]: os.path.join(folder, match[0]) for match in found}

    def staged_plan(self) -> dict[str, Any]:
        """Return the plan in the staging folder, if this package can have made it; empty for none.

        Whoever can write beside the destination may have put there what leads elsewhere.
        """
        plan = read_json_object(self.files, os.path.join(self.staging, STAGED_PLAN))
        problem = plan_problem(plan) if plan else None
        if self.can_rename:
            if self.files.kind(self.staging) not in ("folder", None):
                problem = "it is not a folder"
            foreign = foreign_in(self.files, self.staging)
            if foreign is not None:
                problem = f"it holds {foreign!r}"
        if problem is not None:
            raise MetadataError(
                f"{self.staging} is not a staging folder as this package makes it: {problem}. "
                "Nothing in it is used or removed: look what it is, and move it elsewhere"
            )
        return plan

    def committed(self) -> dict[str, Any]:
        """Return what the dataset here says about its write; empty if it is not of this package."""
        return own_receipt(read_attributes(self.files, self.path)) or {}

    def is_staging_committed(self) -> bool:
        """Whether the dataset here is from the staging folder beside it, by whichever run."""
        staging_id = self.committed().get("staging_id")
        return staging_id is not None and self.staged_plan().get("staging_id") == staging_id

    def is_being_extended(self) -> bool:
        """Whether the staging folder holds further levels for the store here, not committed yet."""
        is_for_more = self.staged_plan().get("extends") is not None
        return is_for_more and not self.is_staging_committed()

    def discard_committed_staging(self) -> None:
        """Remove the staging folder if the dataset here is from it; it may be of the next write."""
        if self.is_staging_committed():
            self.discard_staging()

    def discard_staging(self) -> None:
        """Remove the staging folder; at every moment it is there whole or not at all.

        In an object store the plan goes last: as long as it is there, the rest can be removed.
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
                objects.abort_uploads(path)
            for document in self._uncommitted(plan, "documents"):
                self.store.remove(document["key"])
            objects.abort_uploads(self.staging)
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
        """Remove a folder beside this; with `name`, aside as a part of a staging folder."""
        # Renamed first, so that nobody goes on in, or publishes, a folder that lacks parts.
        for _ in range(_N_TRIES):
            aside = self.beside_staging()
            if name:
                self.files.make_folder(aside)
            try:
                self.files.rename(folder, os.path.join(aside, name) if name else aside)
                break
            except FileNotFoundError:
                remove_tree(self.files, aside)
                if self.files.kind(folder) is None:
                    return
        else:
            return
        # fsync first, so that a crash cannot keep deletions but lose the rename.
        if name:
            self.files.sync_folder(aside)
        self.files.sync_folder(os.path.dirname(aside))
        remove_tree(self.files, aside)

    def take_back_levels(self) -> None:
        """Move levels that a commit has moved into the store, but not named, back to the staging.

        Call only if that commit's process is known to be dead: it could be about to name them.
        Killed at any moment, this leaves what the same write can go on with.
        """
        plan = self.staged_plan()
        if not self.can_rename or not self.is_being_extended():
            return
        named = dataset_paths(read_ome(self.files, self.path))
        if not named:
            return
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
            # fsync first, so that a crash cannot lose the levels with the staging folder.
            self.files.sync_folder(staged.root)
            self.files.sync_folder(self.path)

    def _is_level_of(self, level: dict[str, Any]) -> bool:
        """Whether a commit has moved a level into the store: it puts the document there first."""
        path = self.store.path(level["path"])
        with suppress(OSError):
            found = self.files.read(os.path.join(path, ROOT_DOCUMENT))
            return self.files.kind(path) == "folder" and found == level["document"].encode()
        return False

    def staged_labels(self) -> list[Destination]:
        """Return the labels of the image here that have a staging folder, or the rest of one."""
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

    def sweep(self) -> None:
        """Remove staging folders that were being made or removed when their process died.

        A process makes its folder again if this removes it. A staging folder without a plan is the
        rest of one whose removal a power failure has cut off.
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

        The old dataset is aside. If the new one is complete in the staging folder, it takes the
        place, otherwise the old one is put back. If the new one is in its place already, the old
        one is removed. Raises DestinationExistsError where something else took the place.
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
            f"{self.path} came to be while the dataset that was there was being replaced. The old "
            f"dataset is whole in {asides[min(others)]}: move what is at {self.path} elsewhere, "
            f"then {command_text('commit', self.path)} puts the new one there, or the old one back"
        )
