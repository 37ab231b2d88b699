"""Staging: where a write happens before anything of it is visible.

A cluster may run a task twice, so the same run may repeat every step: it knows its own staging
folder, and its own committed dataset, by its id.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from dataclasses import replace
from typing import Any

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    StagingExistsError,
)
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.planning.identity import (
    identity_difference,
    requested_difference,
    same_but_codec,
    source_difference,
)
from ctlab_dask_zarr.planning.occupied import (
    identity_of_occupant,
    occupied_problem,
    refuse_missing_folder,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import remove_tree
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.staging_plan import N_DIGITS, STAGED_PLAN
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.text import command_text
from ctlab_dask_zarr.write.staging.labels import image_problem
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.runner import run_state
from ctlab_dask_zarr.write.staging.staged import StagedWrite, taken_over

#: More than writers that begin at the same moment ever need.
_N_TRIES = 100


def stage(request: StageRequest) -> StagedWrite:
    """Make the staging folder, or enter the one that is there; raise where neither may be done."""
    destination = request.destination
    refuse_missing_folder(destination)
    lost: OSError | None = None
    for number in range(_N_TRIES):
        # Each try looks again: other writers may have put something there, or left it.
        destination.sweep()
        destination.finish_interrupted_replacement()
        if is_committed(request):
            return StagedWrite(request, "", is_committed=True)
        destination.discard_committed_staging()
        if problem := destination_problem(request):
            raise DestinationExistsError(problem)
        found = destination.staged_plan().get("run_id")
        if request.restart and number == 0 and found != request.run_id:
            destination.discard_staging()
        try:
            staged = None if request.resumes else _make_staging(request)
            staged = staged or _enter_existing(request)
        except FileNotFoundError as error:
            if destination.files.kind(os.path.dirname(destination.path)) != "folder":
                raise
            # Another writer took the new folder for one that a dead process has left.
            lost = error
            continue
        if request.resumes and (staged is None or staged.staging_id != request.resumes):
            raise taken_over(destination)
        if staged is not None:
            # Levels that a commit moves into a store must not outlast the staging folder in a power
            # failure: it tells whose they are.
            destination.files.sync_folder(os.path.dirname(destination.staging))
            return staged
    raise OSError(
        errno.ENOENT,
        f"no folder can be made there, {_N_TRIES} times in a row: look whether others make and "
        "remove it, or give another place",
        os.path.dirname(destination.staging),
    ) from lost


def _make_staging(request: StageRequest) -> StagedWrite | None:
    """Make the staging folder, complete from the moment it is there; None if there is one."""
    destination = request.destination
    files, objects = destination.files, destination.objects
    if request.overwrite:
        request = replace(request, replaces=identity_of_occupant(destination))
    staged = StagedWrite(request, uuid.uuid4().hex[:N_DIGITS])
    text = request.to_json(staged.staging_id).encode()
    if objects is not None:
        try:
            objects.create(destination.notes.path(STAGED_PLAN), text)
        except FileExistsError:
            return None
        return staged
    prepared = destination.beside_staging()
    try:
        _make_first_folder(destination, prepared)
        # Whoever may not look into what is replaced or added to, or into the image of labels, may
        # not look into this either.
        places = (destination.path, destination.labels_of or destination.path)
        found = [bits for bits in map(files.permissions, places) if bits is not None]
        if found:
            files.set_permissions(prepared, found[0] & found[-1] | 0o700)
        for store in (staged.store, staged.receipts, staged.pieces):
            files.make_folder(os.path.join(prepared, os.path.basename(store.root)))
        Store(prepared, files).put(STAGED_PLAN, text)
        files.sync_folder(prepared)
        files.rename(prepared, destination.staging)
    except OSError as error:
        remove_tree(files, prepared)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return None
        raise
    return staged


def _make_first_folder(destination: Destination, folder: str) -> None:
    """Make a folder; raise at once where the file system makes none, as that of /proc."""
    try:
        destination.files.make_folder(folder)
    except FileNotFoundError as error:
        parent = os.path.dirname(folder)
        if destination.files.kind(parent) != "folder":
            raise
        raise OSError(
            errno.EROFS,
            f"no folder can be made in it, though it is there ({error.strerror}): it holds no "
            "files of users; give another place",
            parent,
        ) from error


def _enter_existing(request: StageRequest) -> StagedWrite | None:
    """Go on in the staging folder if this run may; None if the folder is gone."""
    destination = request.destination
    request = with_staged_codec(request)
    found = destination.staged_plan()
    if request.restart and found.get("run_id") not in (None, request.run_id):
        raise StagingExistsError(
            f"another write to {destination.path} began at the same moment in {destination.staging}"
        )
    if problem := staging_problem(request):
        raise StagingExistsError(problem)
    staging_id: str | None = found.get("staging_id")
    if staging_id is None:
        return None
    is_shared = request.n_parts is not None and found.get("n_parts") == request.n_parts
    if found.get("run_id") == request.run_id or is_shared:
        return StagedWrite(replace(request, replaces=found.get("replaces")), staging_id)
    if request.overwrite:
        # This run asks again, for what is there now.
        request = replace(request, replaces=identity_of_occupant(destination))
    try:
        destination.notes.put(STAGED_PLAN, request.to_json(staging_id).encode())
        destination.files.sync_folder(destination.staging)
    except FileNotFoundError:
        return None
    return StagedWrite(request, staging_id)


def with_staged_codec(request: StageRequest) -> StageRequest:
    """Return the request of a part with the codec that the first part has chosen by measuring."""
    if request.n_parts is None or request.codec_choice is None:
        return request
    found = request.destination.staged_plan()
    is_shared = found.get("n_parts") == request.n_parts and found.get("codec_choice") is not None
    if not (is_shared and same_but_codec(found.get("identity"), request.identity)):
        return request
    staged = StageRequest.from_plan(request.destination, found)
    names = ("levels", "documents", "identity", "codec_choice")
    return replace(request, **{name: getattr(staged, name) for name in names})


def open_staged(destination: Destination) -> StagedWrite:
    """Return the write that is staged beside `destination`, to look at or to commit."""
    plan = destination.staged_plan()
    if plan and "export" not in plan and not is_repair(plan):
        return StagedWrite(StageRequest.from_plan(destination, plan), plan["staging_id"])
    problem = "does not say what was being written; remove it by --restart"
    if is_repair(plan):
        problem = f"holds a repair, which {command_text('repair', destination.path)} goes on with"
    elif plan:
        problem = "holds an export, which the same call goes on with by resume=True (--resume)"
    elif destination.files.kind(destination.staging) is None:
        problem = "does not exist"
    raise IncompleteDatasetError(
        f"no write to {destination.path} is under way: {destination.staging} {problem}"
    )


def is_repair(plan: dict[str, Any]) -> bool:
    """Whether a staged plan is that of a repair."""
    return "repair" in json_object_or_empty(plan.get("identity", ""))


def is_committed(request: StageRequest) -> bool:
    """Whether this run, or one that it would have resumed, has written what is there."""
    destination = request.destination
    committed = destination.committed()
    if committed.get("run_id") == request.run_id:
        return True
    if requested_difference(committed.get("requested"), request.requested):
        return False
    if request.resumes is not None and committed.get("staging_id") == request.resumes:
        # The staging folder was complete: repairing has published it.
        return True
    if not request.resume or committed.get("fingerprint") != request.fingerprint:
        return False
    # The same dataset may be replaced by itself, as one that was damaged.
    is_same = destination.staged_plan().get("fingerprint") == request.fingerprint
    is_being_replaced = is_same and not destination.is_staging_committed()
    return not (request.overwrite and (request.resumes is not None or is_being_replaced))


def destination_problem(request: StageRequest) -> str | None:
    """Return why nothing may be committed to the destination, or None."""
    destination = request.destination
    if request.extends is not None:
        return _extension_problem(request)
    return (
        image_problem(destination, request.image)
        or _other_request(request)
        or occupied_problem(destination, overwrite=request.overwrite)
    )


def _other_request(request: StageRequest) -> str | None:
    """Return how the complete dataset differs from the one that a resumed write makes, or None."""
    destination = request.destination
    committed = destination.committed()
    if not request.resume or request.overwrite:
        return None
    if committed.get("fingerprint") != request.fingerprint:
        change = source_difference(committed.get("source"), request.identity)
        return change and (
            f"{destination.path} is complete, but was made from another source: {change}. "
            "Otherwise write to another destination, or replace it by overwrite=True (--overwrite)"
        )
    difference = requested_difference(committed.get("requested"), request.requested)
    return difference and (
        f"{destination.path} is complete, but written with other metadata: {difference}. Change it "
        "in place (ctlab-zarr set-voxel, set-id), or write it again with overwrite=True "
        "(--overwrite)"
    )


def _extension_problem(request: StageRequest) -> str | None:
    """Return why a store cannot get its further levels, or None."""
    destination = request.destination
    try:
        root = destination.files.read(os.path.join(destination.path, ROOT_DOCUMENT))
    except OSError:
        return f"{destination.path} is no longer there, and cannot get further levels"
    if hashlib.sha256(root).hexdigest() != request.extends:
        return (
            f"{destination.path} was changed since its further levels were planned: plan them "
            "again by restart=True (--restart)"
        )
    found = destination.staged_plan()
    is_being_extended = found.get("extends") is not None
    is_restart = request.restart and found.get("run_id") != request.run_id
    if is_being_extended and not (is_restart and destination.can_rename):
        return None
    # A level that a commit has moved there is never removed: the commit may be about to name it in
    # the root document.
    advice = "move it elsewhere"
    if is_being_extended:
        image = destination.labels_of or destination.path
        advice = (
            "resume the write that it belongs to by resume=True (--resume), or undo it by "
            f"{command_text('abort', image)}"
        )
    for level in request.levels[request.n_existing :]:
        if destination.files.kind(os.path.join(destination.path, level.path)) is not None:
            return (
                f"{destination.path} holds {level.path!r}, where a further level would be, though "
                f"its metadata does not list it: {advice}"
            )
    return None


def _how_it_is(destination: Destination) -> str:
    """Say whether the write that is staged goes on or has stopped, as far as that is known."""
    found = run_state(destination)
    if found.state == "unknown":
        return "is under way, or was interrupted"
    if found.state == "running":
        return f"is under way, by {found.runner}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since_s))
    return f"was interrupted at {since} ({found.why}; {found.runner})"


def staging_problem(request: StageRequest) -> str | None:
    """Return why the write cannot use the staging folder that is there, or None."""
    destination, by = request.destination, request.how_to_remove
    if request.restart or destination.files.kind(destination.staging) is None:
        return None
    found = destination.staged_plan()
    if found.get("run_id") == request.run_id or destination.is_staging_committed():
        return None
    place = destination.staging
    if request.image is not None and (found.get("image") or request.image)[0] != request.image[0]:
        return (
            f"{place} holds labels of another image, which was at {destination.labels_of} before: "
            f"remove them by {by}"
        )
    is_same = found.get("fingerprint") == request.fingerprint
    difference = "" if is_same else identity_difference(found.get("identity"), request.identity)
    n_parts = found.get("n_parts")
    if request.n_parts is None or n_parts is None:
        if not request.resume:
            return (
                f"{place} is there: another write to {destination.path} {_how_it_is(destination)}. "
                f"Go on with it by resume=True (--resume), or remove it by {by}"
            )
        return difference and (
            f"cannot resume in {place}: {difference}. Use the same source and settings, or remove "
            f"it by {by}"
        )
    if n_parts != request.n_parts:
        return (
            f"the parts in {place} are {n_parts} in all, and this would be one of "
            f"{request.n_parts}: run it as one of {n_parts}, or remove them by {by}"
        )
    if is_same:
        difference = requested_difference(found.get("requested"), request.requested)
    if difference:
        return (
            f"the parts in {place} are of another write: {difference}. Run all parts with the same "
            f"source and settings, or remove them by {by}"
        )
    version = found.get("version", __version__)
    return (
        None
        if version == __version__
        else (
            f"the parts in {place} are written by ctlab-dask-zarr {version}, and this is "
            f"{__version__}: run all parts with one version"
        )
    )
