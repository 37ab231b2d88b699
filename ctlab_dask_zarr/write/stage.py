"""Staging: where a write happens before anything of it is visible.

Every step may be repeated by the same run, because a cluster may run a task twice: a run knows
its own staging folder, and its own committed dataset, by its id. What was written is kept in the
staging folder too, so that whoever goes on, or commits, needs nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ctlab_dask_zarr import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    MetadataError,
    StagingExistsError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.receipts import Number, ShardReceipt
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.runtime.files import remove_tree
from ctlab_dask_zarr.runtime.objects import ObjectFiles
from ctlab_dask_zarr.runtime.reporting import Reporter, topic_of
from ctlab_dask_zarr.runtime.storage import LocalStore, store_at
from ctlab_dask_zarr.write.destination import STAGED_PLAN, Destination
from ctlab_dask_zarr.write.difference import identity_difference, requested_difference
from ctlab_dask_zarr.write.layout import Layout, Shape
from ctlab_dask_zarr.write.pieces import Halving, Piece, ShardTask
from ctlab_dask_zarr.write.plan import Document, Level, WritePlan
from ctlab_dask_zarr.write.pyramid import DownsampleMethod, piece_layouts
from ctlab_dask_zarr.write.shard import StagedArray, receipt_of_stored, write_shards

__all__ = [
    "StageRequest",
    "StagedWrite",
    "destination_problem",
    "is_committed",
    "open_staged",
    "plain_mask_value",
    "stage",
    "staging_problem",
]


@dataclass(frozen=True)
class StageRequest:
    """Everything of a plan that staging, writing and committing need; plain values.

    Attributes
    ----------
    destination
        Where it will be.
    levels, documents
        As of the plan.
    overwrite, resume, restart
        As the user asked.
    identity, fingerprint
        What has to be the same to go on with an interrupted write.
    requested
        What was asked for of the metadata: a write of the same voxels that is committed, or shared
        with other jobs, is the same one only where this is too. None where it is not known.
    run_id
        Tells this write from every other one, in staging and in what is committed.
    mask_value
        Of masked voxels; None where the data type has none.
    downsample
        How a level becomes the next one.
    is_grey
        Whether voxels are grey values, for which viewers need a contrast, and not classes.
    n_parts
        Of how many jobs each writes a part; None for a write by one.
    resumes
        Id of the staging folder with the shards that are not written again; None where there are
        none.
    extends
        Hash of the root document of the store that gets further levels; None for a new store.
    """

    destination: Destination
    levels: tuple[Level, ...]
    documents: tuple[Document, ...]
    overwrite: bool
    resume: bool
    restart: bool
    identity: str
    fingerprint: str
    run_id: str
    mask_value: Number | None
    requested: dict[str, Any] | None = None
    downsample: DownsampleMethod = "mean"
    is_grey: bool = True
    n_parts: int | None = None
    resumes: str | None = None
    extends: str | None = None

    @property
    def n_existing(self) -> int:
        """Number of levels that are at the destination already."""
        return 0 if self.extends is None else 1

    @classmethod
    def of(
        cls,
        plan: WritePlan,
        run_id: str,
        *,
        resume: bool = False,
        restart: bool = False,
        n_parts: int | None = None,
        dataset_id: str | None = None,
    ) -> StageRequest:
        """Take from `plan` what is needed.

        `dataset_id` is the identifier that was given; None where it was made from the time.
        """
        return cls(
            destination=Destination.at(plan.destination, plan.labels_of),
            levels=plan.levels,
            documents=plan.documents,
            overwrite=plan.overwrite,
            resume=resume,
            restart=restart,
            identity=plan.identity,
            fingerprint=plan.fingerprint,
            run_id=run_id,
            requested={"dataset_id": dataset_id} | plan.requested,
            mask_value=plain_mask_value(plan.datatype),
            downsample=plan.downsample,
            is_grey=not plan.is_discrete,
            n_parts=n_parts,
        )

    def to_json(self, staging_id: str) -> str:
        """Return the text of the staging folder's plan, with the time at which it was staged."""
        content = {
            "staging_id": staging_id,
            "run_id": self.run_id,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "requested": self.requested,
            "overwrite": self.overwrite,
            "mask_value": self.mask_value,
            "downsample": self.downsample,
            "is_grey": self.is_grey,
            "n_parts": self.n_parts,
            "extends": self.extends,
            "started_s": time.time(),
            "version": __version__,
            "levels": [asdict(level) for level in self.levels],
            "documents": [asdict(document) for document in self.documents],
        }
        return json.dumps(content)

    @classmethod
    def from_plan(cls, destination: Destination, plan: dict[str, Any]) -> StageRequest:
        """Return what the plan of a staging folder asks for."""
        try:
            levels = tuple(
                Level(
                    level["path"],
                    _layout(level["layout"]),
                    level["document"],
                    tuple(level["factors"]),
                )
                for level in plan["levels"]
            )
            return cls(
                destination=destination,
                levels=levels,
                documents=tuple(Document(**document) for document in plan["documents"]),
                overwrite=plan["overwrite"],
                resume=True,
                restart=False,
                identity=plan["identity"],
                fingerprint=plan["fingerprint"],
                run_id=plan["run_id"],
                requested=plan.get("requested"),
                mask_value=plan["mask_value"],
                downsample=plan["downsample"],
                is_grey=plan["is_grey"],
                n_parts=plan["n_parts"],
                resumes=plan["staging_id"],
                extends=plan["extends"],
            )
        except (KeyError, TypeError) as error:
            raise MetadataError(
                f"{destination.staging} does not say what was being written ({error!r}): remove it "
                "by restart=True (--restart)"
            ) from error


def plain_mask_value(datatype: DataType | None) -> Number | None:
    """Return the mask value of a data type as a plain number."""
    mask_value = None if datatype is None else datatype.mask_value
    return None if mask_value is None else mask_value.item()


def _layout(fields: dict[str, Any]) -> Layout:
    return Layout(**{name: value and tuple(value) for name, value in fields.items()})


@dataclass(frozen=True)
class StagedWrite:
    """A write under way, as workers see it."""

    request: StageRequest
    staging_id: str
    is_committed: bool = False

    @property
    def store(self) -> LocalStore:
        """Where the dataset is put together."""
        return self.request.destination.staged_store(self.staging_id)

    @property
    def receipts(self) -> LocalStore:
        """Where receipts are kept until the commit."""
        return self.request.destination.staged_receipts(self.staging_id)

    @property
    def pieces(self) -> LocalStore:
        """Where the tasks of one level leave what those of the next need."""
        return self.request.destination.staged_pieces(self.staging_id)

    def array(self, level: int) -> StagedArray:
        """Return one array of the write."""
        request = self.request
        chosen = request.levels[level]
        is_in_place = level < request.n_existing or self._is_moved(level)
        return StagedArray(
            store=request.destination.store if is_in_place else self.store,
            path=chosen.path,
            layout=chosen.layout,
            document=chosen.document,
            mask_value=request.mask_value,
            level=level,
            pieces=self.pieces,
            halving=self._halving(level),
            coarser=self._encoded_pieces(level + 1),
        )

    def _is_moved(self, level: int) -> bool:
        """Whether a commit has moved a level into the store that it is added to."""
        destination = self.request.destination
        if self.request.extends is None or not destination.can_rename:
            return False
        kind, path = destination.files.kind, self.request.levels[level].path
        is_staged = kind(self.store.path(path)) is not None
        return not is_staged and kind(destination.store.path(path)) == "folder"

    def _halving(self, level: int) -> Halving | None:
        """Return how a level becomes the next one; None for the last."""
        request = self.request
        if level + 1 == len(request.levels):
            return None
        factors = request.levels[level + 1].factors
        return Halving(factors, request.downsample, request.mask_value)

    def _encoded_pieces(self, level: int) -> StagedArray | None:
        """Return a level as it is cut into the encoded pieces that tasks of the finer one leave."""
        levels = self.request.levels
        if level == len(levels) or not all(level.array.is_direct for level in levels):
            return None
        layouts = piece_layouts([a.layout for a in levels], [a.factors for a in levels])
        if layouts is None:
            return None
        return StagedArray(
            store=self.pieces,
            path=f"{level - 1}",
            layout=layouts[level - 1],
            document=levels[level].document,
            mask_value=self.request.mask_value,
            level=level,
            pieces=self.pieces,
            halving=self._halving(level),
            is_piece=True,
        )

    def refuse_taken_over(self) -> None:
        """Raise where another write has the destination now.

        On a file system the folder of this write is gone then. In an object store shards have one
        place for all writes, so that whoever is late has to look, before each shard.
        """
        destination = self.request.destination
        if destination.can_rename:
            return
        if destination.staged_plan().get("staging_id") != self.staging_id:
            raise StagingExistsError(
                f"{destination.staging}, in which this write was staged, was removed or committed "
                "meanwhile by another write: look whether that one is still under way, then try "
                "again"
            )

    def write(
        self, level: int, group: Sequence[Shape], pieces: Iterable[Piece]
    ) -> list[ShardReceipt]:
        """Write the shards at the coordinates of `group`, but those that are there whole.

        An attempt that died with its worker may have finished some of a row of shards.
        """
        if self.is_committed:
            return []
        self.refuse_taken_over()
        staged = self.array(level)
        receipts: list[ShardReceipt] = []
        missing = []
        for coords in group:
            found = self.find(level, coords)
            if found is None:
                missing.append(ShardTask(level, coords))
            else:
                receipts += found
        if missing:
            reporter = Reporter(topic_of(self.request.run_id[:8]))
            receipts += write_shards(staged, missing, pieces, reporter.add)
            reporter.finish()
        return receipts

    def find(self, level: int, coords: Shape) -> list[ShardReceipt] | None:
        """Return receipts for the objects of a task, read back, if all are there whole.

        Those of the first level added to a store tell the range of the level before, which cannot
        be read back from them: they count as missing.
        """
        if level == self.request.n_existing > 0:
            return None
        staged = self.array(level)
        receipts = []
        for object_coords in staged.layout.object_coords(coords):
            receipt = receipt_of_stored(staged, object_coords)
            if receipt is None:
                return None
            receipts.append(receipt)
        return receipts

    def record(self, receipts: Sequence[ShardReceipt]) -> int:
        """Keep receipts in the staging folder; return how many."""
        if receipts and not self.is_committed:
            text = json.dumps([list(receipt) for receipt in receipts])
            self.receipts.put(f"{uuid.uuid4().hex}.json", text.encode())
        return len(receipts)

    def recorded(self, sizes: Mapping[str, int]) -> dict[str, ShardReceipt]:
        """Return the receipts that were kept, by key, of objects that have that size in `sizes`.

        Where two attempts disagree about an object, neither is believed.
        """
        kept = self.receipts
        found: dict[str, ShardReceipt] = {}
        doubtful = set()
        for name in kept.list():
            try:
                text = kept.get(name)
            except FileNotFoundError:
                # Somebody else removes, or has committed, this staging folder.
                continue
            for fields in json.loads(text):
                receipt = ShardReceipt(*fields)
                if found.setdefault(receipt.key, receipt) != receipt:
                    doubtful.add(receipt.key)
        return {
            key: receipt
            for key, receipt in found.items()
            if key not in doubtful and sizes.get(key) == receipt.nbytes
        }

    def sizes(self) -> dict[str, int]:
        """Return the size of every object of this write, by key."""
        return {key: nbytes for key, (nbytes, _) in self.stats().items()}

    def stats(self) -> dict[str, tuple[int, float]]:
        """Return size and time of every object of this write, by key."""
        found = self.store.stats()
        destination = self.request.destination.store
        for number, level in enumerate(self.request.levels):
            if number >= self.request.n_existing and self._is_moved(number):
                moved = store_at(destination.path(level.path), destination.files)
                found |= {f"{level.path}/{key}": facts for key, facts in moved.stats().items()}
        return found

    def planned_keys(self) -> Iterator[str]:
        """Yield the key of every object of the dataset."""
        for level in range(self.request.n_existing, len(self.request.levels)):
            yield from self.level_keys(level)

    def level_keys(self, level: int) -> Iterator[str]:
        """Yield the key of every object of one level."""
        array = self.array(level)
        for coords in array.layout.task_coords():
            yield from map(array.key, array.layout.object_coords(coords))


def stage(request: StageRequest) -> StagedWrite:
    """Make the staging folder, or find this run's own.

    Raises
    ------
    DestinationExistsError
        There is something at the destination that may not be replaced.
    StagingExistsError
        Another write is under way there, or left its staging folder.
    """
    destination = request.destination
    _make_parents(destination)
    destination.sweep()
    destination.finish_interrupted_replacement()
    if is_committed(request):
        return StagedWrite(request, "", is_committed=True)
    destination.discard_committed_staging()
    problem = destination_problem(request)
    if problem is not None:
        raise DestinationExistsError(problem)
    if request.restart and destination.staged_plan().get("run_id") != request.run_id:
        destination.discard_staging()
    while True:
        staging_id = None if request.resumes else _make_staging(request)
        staging_id = staging_id or _enter_existing(request)
        if request.resumes not in (None, staging_id):
            raise StagingExistsError(
                f"{destination.staging}, which was to be gone on with, was removed or committed "
                "meanwhile by another write: look whether that one is still under way, then try "
                "again"
            )
        if staging_id is not None:
            # Never is a level in the store that it is added to durable without the staging folder,
            # which tells whose it is.
            destination.files.sync_folder(os.path.dirname(destination.staging))
            return StagedWrite(request, staging_id)


def destination_problem(request: StageRequest) -> str | None:
    """Return why nothing may be committed to the destination, or None."""
    destination = request.destination
    if request.extends is None:
        return _other_request(request) or destination.problem(overwrite=request.overwrite)
    try:
        root = destination.files.read(os.path.join(destination.path, ROOT_DOCUMENT))
    except OSError:
        return f"{destination.path}, which was to get further levels, is no longer there"
    if hashlib.sha256(root).hexdigest() != request.extends:
        return (
            f"{destination.path} was changed since its further levels were planned: plan them anew "
            "by restart=True (--restart)"
        )
    found = destination.staged_plan()
    is_being_extended = found.get("extends") is not None
    begins_anew = request.restart and found.get("run_id") != request.run_id
    if is_being_extended and not (begins_anew and destination.can_rename):
        return None
    # Nobody removes what a commit has moved there: it may be about to name it in the root document.
    advice = "move it elsewhere"
    if is_being_extended:
        advice = "go on with the write that it is of, by resume=True (--resume)"
    for level in request.levels[request.n_existing :]:
        if destination.files.kind(os.path.join(destination.path, level.path)) is not None:
            return (
                f"{destination.path} holds {level.path!r}, where a further level would be, though "
                f"its metadata does not list it: {advice}"
            )
    return None


def _other_request(request: StageRequest) -> str | None:
    """Return what was asked for otherwise when the same voxels were written here, or None."""
    committed = request.destination.committed()
    goes_on = request.resume and not request.overwrite
    if not goes_on or committed.get("fingerprint") != request.fingerprint:
        return None
    difference = requested_difference(committed.get("requested"), request.requested)
    if not difference:
        return None
    return (
        f"{request.destination.path} is complete, but written with other metadata: {difference}. "
        "Change it in place (ctlab-zarr set-voxel, set-id), or write it anew with overwrite=True "
        "(--overwrite)"
    )


def _make_parents(destination: Destination) -> None:
    missing = []
    folder = os.path.dirname(destination.staging)
    while destination.files.kind(folder) is None:
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            destination.files.make_folder(folder)


def is_committed(request: StageRequest) -> bool:
    """Whether this run, or one that it would have resumed, has written what is there."""
    committed = request.destination.committed()
    if committed.get("run_id") == request.run_id:
        return True
    if requested_difference(committed.get("requested"), request.requested):
        return False
    if request.resumes is not None and committed.get("staging_id") == request.resumes:
        # What was to be gone on with was complete: repairing has published it.
        return True
    if not request.resume or committed.get("fingerprint") != request.fingerprint:
        return False
    return not (request.overwrite and _is_being_replaced(request))


def _is_being_replaced(request: StageRequest) -> bool:
    """Whether the dataset is being replaced by the same one anew, as one that was damaged is."""
    if request.resumes is not None:
        return True
    destination = request.destination
    is_same = destination.staged_plan().get("fingerprint") == request.fingerprint
    return is_same and not destination.is_staging_committed()


def staging_problem(request: StageRequest) -> str | None:
    """Return why the write could not be staged beside what is there, or None."""
    destination = request.destination
    if request.restart or destination.files.kind(destination.staging) is None:
        return None
    found = destination.staged_plan()
    if found.get("run_id") == request.run_id or destination.is_staging_committed():
        return None
    # Of its own accord no part removes what others write.
    by = "restart=True (--restart)"
    if request.n_parts is not None:
        by = f"`ctlab-zarr abort {destination.path}`"
        if found.get("n_parts") is not None:
            return _part_problem(request, found, by)
    if not request.resume:
        return (
            f"{destination.staging} is there: another write to {destination.path} is under way, or "
            f"was interrupted. Go on with it by resume=True (--resume), or remove it by {by}"
        )
    if found.get("fingerprint") != request.fingerprint:
        return (
            f"cannot resume in {destination.staging}: "
            f"{identity_difference(found.get('identity'), request.identity)}. Use the same source "
            f"and settings, or remove it by {by}"
        )
    return None


def _part_problem(request: StageRequest, found: dict[str, Any], by: str) -> str | None:
    """Return why a part is none of those in the staging folder, or None."""
    parts = f"the parts in {request.destination.staging}"
    if found["n_parts"] != request.n_parts:
        return (
            f"{parts} are {found['n_parts']} in all, and this would be one of {request.n_parts}: "
            f"run it as one of {found['n_parts']}, or remove them by {by}"
        )
    if found.get("fingerprint") == request.fingerprint:
        difference = requested_difference(found.get("requested"), request.requested)
    else:
        difference = identity_difference(found.get("identity"), request.identity)
    if difference:
        return (
            f"{parts} are of another write: {difference}. Run all parts with the same source and "
            f"settings, or remove them by {by}"
        )
    version = found.get("version", __version__)
    if version != __version__:
        return (
            f"{parts} are written by ctlab-dask-zarr {version}, and this is {__version__}: run all "
            "parts with one version"
        )
    return None


def open_staged(destination: Destination) -> StagedWrite:
    """Return the write that is staged beside `destination`, to look at or to commit.

    Raises
    ------
    IncompleteDatasetError
        Nothing is staged there.
    """
    plan = destination.staged_plan()
    if not plan:
        raise IncompleteDatasetError(
            f"no write to {destination.path} is under way: {destination.staging} "
            + (
                "does not exist"
                if destination.files.kind(destination.staging) is None
                else "does not say what was being written; remove it by --restart"
            )
        )
    return StagedWrite(StageRequest.from_plan(destination, plan), plan["staging_id"])


def _make_staging(request: StageRequest) -> str | None:
    """Make the staging folder, complete from the moment it is there; None if there is one."""
    destination = request.destination
    files = destination.files
    if isinstance(files, ObjectFiles):
        staging_id = uuid.uuid4().hex[:16]
        try:
            files.create(destination.notes.path(STAGED_PLAN), request.to_json(staging_id).encode())
        except FileExistsError:
            return None
        return staging_id
    while True:
        staging_id = uuid.uuid4().hex[:16]
        prepared = destination.beside_staging()
        try:
            files.make_folder(prepared)
            for store in (
                destination.staged_store(staging_id),
                destination.staged_receipts(staging_id),
                destination.staged_pieces(staging_id),
            ):
                files.make_folder(os.path.join(prepared, os.path.basename(store.root)))
            store_at(prepared, files).put(STAGED_PLAN, request.to_json(staging_id).encode())
            files.sync_folder(prepared)
            files.rename(prepared, destination.staging)
        except OSError as error:
            remove_tree(files, prepared)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            if error.errno == errno.ENOENT and _is_folder(destination):
                # Another writer took it for what a dead process left. What was put there since is
                # for us to remove.
                destination.sweep()
                continue
            raise
        return staging_id


def _is_folder(destination: Destination) -> bool:
    return destination.files.kind(os.path.dirname(destination.path)) == "folder"


def _enter_existing(request: StageRequest) -> str | None:
    """Go on in a staging folder that is there, if it is this run's or may be resumed.

    Returns None if it is gone meanwhile.
    """
    destination = request.destination
    found = destination.staged_plan()
    if request.restart and found.get("run_id") not in (None, request.run_id):
        raise StagingExistsError(
            f"another write to {destination.path} began at the same moment in {destination.staging}"
        )
    problem = staging_problem(request)
    if problem is not None:
        raise StagingExistsError(problem)
    staging_id: str | None = found.get("staging_id")
    if staging_id is None:
        return None
    if found.get("run_id") != request.run_id and not _is_shared(request, found):
        try:
            destination.notes.put(STAGED_PLAN, request.to_json(staging_id).encode())
            destination.files.sync_folder(destination.staging)
        except FileNotFoundError:
            return None
    return staging_id


def _is_shared(request: StageRequest, found: dict[str, Any]) -> bool:
    """Whether the staging folder is that of the jobs of which this is one."""
    return request.n_parts is not None and found.get("n_parts") == request.n_parts
