"""Staging: where a write happens before anything of it is visible.

Every step may be repeated by the same run, because a cluster may run a task twice: a run knows
its own staging folder, and its own committed dataset, by its id.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c

from ctlab_dask_zarr.codec.shard import parse_index
from ctlab_dask_zarr.errors import DestinationExistsError, ShardDecodeError, StagingExistsError
from ctlab_dask_zarr.runtime.reporting import Reporter, topic_of
from ctlab_dask_zarr.runtime.storage import LocalStore
from ctlab_dask_zarr.write.destination import (
    STAGED_PLAN,
    committed_run_id,
    destination_problem,
    finish_interrupted_replacement,
    read_staged_plan,
    staged_store_path,
    staging_path,
)
from ctlab_dask_zarr.write.layout import Shape
from ctlab_dask_zarr.write.plan import Document, Level, WritePlan
from ctlab_dask_zarr.write.shard import (
    Piece,
    ShardReceipt,
    ShardTask,
    StagedArray,
    write_shards,
)

__all__ = ["StageRequest", "StagedWrite", "existing_receipts", "stage"]


@dataclass(frozen=True)
class StageRequest:
    """Everything of a plan that staging, writing and committing need; plain values."""

    destination: str
    levels: tuple[Level, ...]
    documents: tuple[Document, ...]
    overwrite: bool
    resume: bool
    restart: bool
    identity: str
    fingerprint: str
    run_id: str
    n_objects: int

    @classmethod
    def of(
        cls, plan: WritePlan, run_id: str, *, resume: bool = False, restart: bool = False
    ) -> StageRequest:
        """Take from `plan` what is needed."""
        return cls(
            destination=plan.destination,
            levels=plan.levels,
            documents=plan.documents,
            overwrite=plan.overwrite,
            resume=resume,
            restart=restart,
            identity=plan.identity,
            fingerprint=plan.fingerprint,
            run_id=run_id,
            n_objects=plan.n_objects,
        )


@dataclass(frozen=True)
class StagedWrite:
    """A write under way, as workers see it."""

    request: StageRequest
    is_committed: bool = False

    @property
    def store(self) -> LocalStore:
        """Where the dataset is put together."""
        return LocalStore(staged_store_path(self.request.destination, self.request.fingerprint))

    def array(self, level: int) -> StagedArray:
        """Return one array of the write."""
        chosen = self.request.levels[level]
        return StagedArray(self.store, chosen.path, chosen.layout, chosen.document)

    def write(
        self, level: int, group: Sequence[Shape], pieces: Iterable[Piece]
    ) -> list[ShardReceipt]:
        """Write the shards at the coordinates of `group`, but those that are there whole."""
        if self.is_committed:
            return []
        staged = self.array(level)
        receipts: list[ShardReceipt] = []
        missing = []
        for coords in group:
            found = existing_receipts(staged, coords) if self.request.resume else None
            if found is None:
                missing.append(ShardTask(level, coords))
            else:
                receipts += found
        if missing:
            reporter = Reporter(topic_of(self.request.run_id[:8]))
            receipts += write_shards(staged, missing, pieces, reporter.add)
            reporter.flush()
        return receipts


def stage(request: StageRequest) -> StagedWrite:
    """Make the staging folder, or find this run's own.

    Raises
    ------
    DestinationExistsError
        There is something at the destination that may not be replaced.
    StagingExistsError
        Another write is under way there, or left its staging folder.
    """
    finish_interrupted_replacement(request.destination)
    if committed_run_id(request.destination) == request.run_id:
        return StagedWrite(request, is_committed=True)
    problem = destination_problem(request.destination, overwrite=request.overwrite)
    if problem is not None:
        raise DestinationExistsError(problem)
    folder = staging_path(request.destination)
    staged_run_id = read_staged_plan(request.destination).get("run_id")
    if request.restart and staged_run_id != request.run_id:
        shutil.rmtree(folder, ignore_errors=True)
    if not _make_staging(request, folder):
        _enter_existing(request, folder)
    return StagedWrite(request)


def _make_staging(request: StageRequest, folder: str) -> bool:
    """Make the staging folder, complete from the moment it is there; False if there is one."""
    prepared = f"{folder}.{uuid.uuid4().hex}"
    store = staged_store_path(request.destination, request.fingerprint)
    os.makedirs(os.path.join(prepared, os.path.basename(store)))
    _write_plan_file(request, prepared)
    try:
        os.rename(prepared, folder)
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _enter_existing(request: StageRequest, folder: str) -> None:
    """Go on in a staging folder that is there, if it is this run's or may be resumed."""
    found = read_staged_plan(request.destination)
    if found.get("run_id") == request.run_id:
        return
    if not request.resume:
        raise StagingExistsError(
            f"{folder} is there: another write to {request.destination} is under way, or was "
            "interrupted. Go on with it by resume=True (--resume), or remove it by restart=True "
            "(--restart)"
        )
    if found.get("fingerprint") != request.fingerprint:
        raise StagingExistsError(
            f"cannot resume in {folder}: {_difference(found.get('identity'), request.identity)}. "
            "Use the same source and settings, or remove it by restart=True (--restart)"
        )
    _write_plan_file(request, folder)


def _write_plan_file(request: StageRequest, folder: str) -> None:
    content = {
        "run_id": request.run_id,
        "fingerprint": request.fingerprint,
        "identity": request.identity,
        "destination": request.destination,
        "n_objects": request.n_objects,
    }
    LocalStore(folder).put(STAGED_PLAN, json.dumps(content).encode())


def _difference(found: Any, wanted: str) -> str:
    """Name the first thing in which two identities differ."""
    if not isinstance(found, str):
        return "it does not say what was being written"
    place, before, now = _first_difference(json.loads(found), json.loads(wanted), "")
    return f"{place or 'everything'} was {before!r} and is now {now!r}"


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return _first_difference(
                    before.get(key), now.get(key), f"{place}.{key}".lstrip(".")
                )
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for n, (b, w) in enumerate(zip(before, now, strict=True)):
            if b != w:
                return _first_difference(b, w, f"{place}[{n}]")
    return place, before, now


def existing_receipts(staged: StagedArray, coords: Shape) -> list[ShardReceipt] | None:
    """Return receipts for the objects of a task if all of them are there whole, else None."""
    receipts = []
    for object_coords in staged.layout.object_coords(coords):
        receipt = _existing_receipt(staged, staged.key(object_coords))
        if receipt is None:
            return None
        receipts.append(receipt)
    return receipts


def _existing_receipt(staged: StagedArray, key: str) -> ShardReceipt | None:
    array = staged.array
    try:
        data = staged.store.get(key)
    except FileNotFoundError:
        return None
    if array.is_sharded and array.is_direct:
        try:
            parse_index(memoryview(data)[-array.index_nbytes :], array, len(data))
        except ShardDecodeError:
            return None
    return ShardReceipt(key, len(data), google_crc32c.value(data))
