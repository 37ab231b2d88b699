"""An export under way, as workers see it: its folder beside the destination, and the commit.

The staging folder is that of `Destination`: ``plan.json`` says what is exported, ``store-<id>``
gets the files, each whole under its name or not there, and ``receipts-<id>`` has an empty file for
each block that was written into a file in which blocks have fixed places.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    MetadataError,
    StagingExistsError,
)
from ctlab_dask_zarr.export.kind import HeaderKind, JoinedKind, Kind
from ctlab_dask_zarr.planning.identity import requested_difference, source_difference
from ctlab_dask_zarr.planning.occupied import (
    refuse_long_name,
    refuse_missing_folder,
    store_around,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import is_left_by_system, remove_tree
from ctlab_dask_zarr.store.staging_plan import N_DIGITS, STAGED_PLAN
from ctlab_dask_zarr.store.store import Store, is_temporary
from ctlab_dask_zarr.text import command_text

#: A new staging folder may be swept away, as long as it is being made, by others who begin too.
_N_TRIES = 10


class ExportResult(NamedTuple):
    """What was exported: where, how many files, their size in bytes."""

    destination: str
    n_files: int
    nbytes: int


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for, and by which run."""

    destination: Destination
    kind: Kind
    #: What has to be the same to go on, plain JSON: the source, and what is made of it.
    source: Any
    settings: dict[str, Any]
    run_id: str
    overwrite: bool = False
    resume: bool = False
    restart: bool = False

    def refuse(self) -> None:
        """Raise where this export cannot begin; nothing is touched."""
        destination = self.destination
        refuse_missing_folder(destination)
        refuse_long_name(destination)
        if problem := occupied_problem(destination, self.kind, overwrite=self.overwrite):
            raise DestinationExistsError(problem)
        if problem := self._staging_problem(_plan_under_way(destination)):
            raise StagingExistsError(problem)

    def _staging_problem(self, found: dict[str, Any]) -> str | None:
        destination = self.destination
        if self.restart or not found or found.get("run_id") == self.run_id:
            return None
        by = f"restart=True (--restart), or by {command_text('abort', destination.path)}"
        if not self.resume:
            return (
                f"{destination.staging} is there: another export to {destination.path} is under "
                "way, or was interrupted. Go on with it by resume=True (--resume), or remove it by "
                f"{by}"
            )
        difference = requested_difference(found.get("settings"), self.settings)
        if found.get("export") != self.kind.name:
            difference = f"it is not one of {self.kind.name}"
        wanted = json.dumps({"source": self.source})
        difference = source_difference(found.get("source"), wanted) or difference
        return difference and (
            f"cannot resume in {destination.staging}: {difference}. Use the same dataset and "
            f"settings, or remove it by {by}"
        )

    def to_json(self, staging_id: str) -> bytes:
        """Return the plan that the staging folder keeps."""
        plan = {
            "export": self.kind.name,
            "settings": self.settings,
            "source": self.source,
            "run_id": self.run_id,
            "staging_id": staging_id,
            "version": __version__,
        }
        return json.dumps(plan).encode()


@dataclass(frozen=True)
class StagedExport:
    """An export under way."""

    request: ExportRequest
    staging_id: str

    @property
    def store(self) -> Store:
        """Where the files are put together."""
        return self.request.destination.staged_store(self.staging_id)

    @property
    def marks(self) -> Store:
        """Where the blocks that are written have marks."""
        return self.request.destination.staged("receipts", self.staging_id)

    @contextmanager
    def new_file(self, name: str) -> Iterator[str]:
        """Yield a path to write to; what is there at a clean exit becomes the file, durably."""
        files, path = self.request.destination.files, self.store.path(name)
        temporary = self.store.path(f".{name}.{uuid.uuid4().hex}.partial")
        try:
            yield temporary
            # Of a file, it syncs the content.
            files.sync_folder(temporary)
            files.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                files.remove_file(temporary)
            raise

    def has(self, name: str) -> bool:
        """Whether a file is there, and so whole."""
        return self.request.destination.files.kind(self.store.path(name)) == "file"


def stage(request: ExportRequest) -> StagedExport:
    """Make the staging folder, or go on in the one that is there; raise where neither may be."""
    destination = request.destination
    destination.sweep()
    repair(destination)
    request.refuse()
    found = _plan_under_way(destination)
    if not found and destination.staged_plan():
        destination.discard_staging()
    if request.restart and found and found.get("run_id") != request.run_id:
        destination.discard_staging()
    for _ in range(_N_TRIES):
        staged = _made(request)
        if staged is not None:
            return staged
        found = destination.staged_plan()
        request.refuse()
        staging_id = str(found.get("staging_id"))
        if not re.fullmatch(f"[0-9a-f]{{{N_DIGITS}}}", staging_id):
            continue
        if found.get("run_id") != request.run_id:
            if request.restart:
                raise StagingExistsError(
                    f"another export to {destination.path} began at the same moment in "
                    f"{destination.staging}"
                )
            with suppress(FileNotFoundError):
                destination.notes.put(STAGED_PLAN, request.to_json(staging_id))
        staged = StagedExport(request, staging_id)
        _remove_temporary(staged)
        return staged
    raise MetadataError(
        f"{destination.staging} is no staging folder of an export: look what it is, and move it "
        "elsewhere"
    )


def _plan_under_way(destination: Destination) -> dict[str, Any]:
    """Return the plan in the staging folder; none if its files have been published."""
    plan = destination.staged_plan()
    root = destination.staged_store(str(plan.get("staging_id"))).root
    is_published = "export" in plan and destination.files.kind(root) is None
    return {} if is_published else plan


def _made(request: ExportRequest) -> StagedExport | None:
    """Make the staging folder, complete from the moment it is there; None if there is one."""
    destination, files = request.destination, request.destination.files
    if files.kind(destination.staging) is not None:
        return None
    staged = StagedExport(request, uuid.uuid4().hex[:N_DIGITS])
    prepared = destination.beside_staging()
    try:
        files.make_folder(prepared)
        for store in (staged.store, staged.marks):
            files.make_folder(os.path.join(prepared, os.path.basename(store.root)))
        Store(prepared, files).put(STAGED_PLAN, request.to_json(staged.staging_id))
        files.sync_folder(prepared)
        files.rename(prepared, destination.staging)
    except OSError as error:
        remove_tree(files, prepared)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return None
        raise
    return staged


def _remove_temporary(staged: StagedExport) -> None:
    """Remove what files under construction a dead process has left."""
    files, root = staged.request.destination.files, staged.store.root
    with suppress(OSError):
        for name, _ in files.entries(root):
            if is_temporary(name):
                staged.store.remove(name)


def repair(destination: Destination) -> None:
    """Put back what a commit has put aside that died before the new folder was in its place."""
    files = destination.files
    for staging_id, aside in destination.all_replaced().items():
        if files.kind(destination.path) is None:
            files.rename(aside, destination.path)
        elif files.kind(destination.staged_store(staging_id).root) is None:
            # The new one is in its place.
            remove_tree(files, aside)


def commit(staged: StagedExport, sources: Iterable[Any]) -> ExportResult:
    """Publish the files, if all are there and nothing came to be in their place."""
    request, store = staged.request, staged.store
    destination, kind, files = request.destination, request.kind, request.destination.files
    path, folder = destination.path, os.path.dirname(request.destination.path)
    names = [file.name for file in kind.files()]
    if files.kind(store.root) is not None:
        for source in sources:
            source.check_unchanged()
        missing = [name for name in names if not staged.has(name)]
        if missing:
            raise IncompleteDatasetError(
                f"{path} is not committed: {len(missing)} of {len(names)} files were not written, "
                f"the first is {missing[0]}; go on by resume=True (--resume)"
            )
        if problem := occupied_problem(destination, kind, overwrite=request.overwrite):
            raise DestinationExistsError(
                f"{problem}. This changed during the export; what was written is complete in "
                f"{store.root}"
            )
        _remove_temporary(staged)
        only_file = _joined(staged, names) if isinstance(kind, JoinedKind) else names[0]
        files.sync_folder(store.root)
        _publish(staged, store.path(only_file), folder)
    elif destination.staged_plan().get("run_id") not in (request.run_id, None):
        raise StagingExistsError(
            f"another export has removed {store.root}, in which this one was staged: check whether "
            "it is still running, then try again"
        )
    # It is there. What cannot be tidied up now, the next export will.
    with suppress(OSError):
        repair(destination)
        if destination.staged_plan().get("staging_id") == staged.staging_id:
            destination.discard_staging()
    return result_of(request)


def result_of(request: ExportRequest) -> ExportResult:
    """Return what an export has put in its place."""
    kind, path, files = request.kind, request.destination.path, request.destination.files
    places = [path]
    if kind.is_folder:
        places = [os.path.join(path, file.name) for file in kind.files()]
    if isinstance(kind, HeaderKind):
        places.append(os.path.join(os.path.dirname(path), kind.header_file()[0]))
    return ExportResult(path, len(places), sum(files.stat(place)[0] for place in places))


def _joined(staged: StagedExport, names: Sequence[str]) -> str:
    """Make one file of all, unless a commit that died has made it, and return its name."""
    kind, joined = staged.request.kind, "joined"
    if isinstance(kind, JoinedKind) and not staged.has(joined):
        with staged.new_file(joined) as path:
            kind.join([staged.store.path(name) for name in names], path)
    return joined


def _publish(staged: StagedExport, only_file: str, folder: str) -> None:
    destination, files = staged.request.destination, staged.request.destination.files
    path = destination.path
    kind = staged.request.kind
    if not kind.is_folder:
        if isinstance(kind, HeaderKind):
            # Before the voxels, so that these are never there without it.
            Store(folder, files).put(*kind.header_file())
        files.rename(only_file, path)
        files.sync_folder(folder)
        remove_tree(files, staged.store.root)
        return
    aside = destination.replaced(staged.staging_id)
    if files.kind(path) is not None:
        files.rename(path, aside)
        # The second rename must not outlast the first in a power failure.
        files.sync_folder(folder)
    try:
        files.rename(staged.store.root, path)
    except OSError as error:
        if files.kind(path) is None and files.kind(aside) is not None:
            files.rename(aside, path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DestinationExistsError(
                f"{path} came to be at the moment of the commit; the export is complete in "
                f"{staged.store.root}"
            ) from error
        raise
    files.sync_folder(folder)


def occupied_problem(destination: Destination, kind: Kind, *, overwrite: bool) -> str | None:
    """Return why nothing may be put at a destination, or None.

    Only files of the same kind are replaced, and only if a folder holds nothing else.
    """
    path, files = destination.path, destination.files
    store = store_around(destination)
    if store is not None:
        return (
            f"{path} would be inside {store}, which is a Zarr store: choose a place outside of it"
        )
    advice = "choose another name, or replace it with overwrite=True (--overwrite)"
    if isinstance(kind, HeaderKind):
        name, content = kind.header_file()
        header = os.path.join(os.path.dirname(path), name)
        there = files.kind(header)
        # A commit may have died after it put the header.
        is_own = there == "file" and files.stat(header)[0] == len(content)
        if there is not None and not (is_own and files.read(header) == content):
            if not overwrite:
                return f"{header} exists: {advice}"
            if there != "file":
                return f"{header} exists and is not replaced: it is no file"
    found = files.kind(path)
    if found is None:
        return None
    if not overwrite:
        return f"{path} exists: {advice}"
    why = None
    if found == "link":
        why = "it is a symbolic link, give the path that it points to"
    elif found != ("folder" if kind.is_folder else "file"):
        why = f"it is a {'folder' if found == 'folder' else 'file'}"
    elif kind.is_folder:
        entries = [(n, k) for n, k in files.entries(path) if not is_left_by_system(n)]
        foreign = min((n for n, k in entries if k != "file" or not kind.is_own(n)), default=None)
        if foreign is not None:
            why = f"it holds {foreign!r}, which is not part of {kind.name}: move it elsewhere"
    return why and f"{path} exists and is not replaced: {why}"
