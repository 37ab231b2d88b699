"""Staging: where a write happens before anything of it is visible.

Every step may be repeated by the same run, because a cluster may run a task twice: a run knows
its own staging folder, and its own committed dataset, by its id.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from dataclasses import replace
from typing import Any

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    StagingExistsError,
)
from ctlab_dask_zarr.planning.difference import (
    identity_difference,
    requested_difference,
    source_difference,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import remove_tree
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.occupied import (
    identity_of_occupant,
    occupied_problem,
    refuse_missing_folder,
)
from ctlab_dask_zarr.store.staging_plan import N_DIGITS, STAGED_PLAN
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.staging.labels import image_problem
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = [
    "destination_problem",
    "is_committed",
    "open_staged",
    "stage",
    "staging_problem",
]

#: More than writers who begin at one moment ever need.
_N_TRIES = 100


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
    refuse_missing_folder(destination)
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
    for _ in range(_N_TRIES):
        staged = None if request.resumes else _make_staging(request)
        staged = staged or _enter_existing(request)
        if staged is None and request.resumes is None:
            continue
        if staged is None or request.resumes not in (None, staged.staging_id):
            raise StagingExistsError(
                f"{destination.staging}, which was to be gone on with, was removed or committed "
                "meanwhile by another write: look whether that one is still under way, then try "
                "again"
            )
        # Never is a level in the store that it is added to durable without the staging folder,
        # which tells whose it is.
        destination.files.sync_folder(os.path.dirname(destination.staging))
        return staged
    raise StagingExistsError(
        f"{destination.staging} could not be made, nor gone on with, {_N_TRIES} times: other "
        "writes make and remove it again and again. Look what else writes there, then try again"
    )


def destination_problem(request: StageRequest) -> str | None:
    """Return why nothing may be committed to the destination, or None."""
    destination = request.destination
    if request.extends is None:
        return (
            image_problem(destination, request.image)
            or _other_request(request)
            or occupied_problem(destination, overwrite=request.overwrite)
        )
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
        image = destination.labels_of or destination.path
        advice = (
            "go on with the write that it is of, by resume=True (--resume), or undo it by "
            f"`ctlab-zarr abort {image}`"
        )
    for level in request.levels[request.n_existing :]:
        if destination.files.kind(os.path.join(destination.path, level.path)) is not None:
            return (
                f"{destination.path} holds {level.path!r}, where a further level would be, though "
                f"its metadata does not list it: {advice}"
            )
    return None


def _other_request(request: StageRequest) -> str | None:
    """Return how what is complete here differs from what a write would go on with, or None."""
    committed = request.destination.committed()
    if not request.resume or request.overwrite:
        return None
    if committed.get("fingerprint") != request.fingerprint:
        change = source_difference(committed.get("source"), request.identity)
        return change and (
            f"{request.destination.path} is complete, but of another source: {change}. Else write "
            "to another destination, or replace it by overwrite=True (--overwrite)"
        )
    difference = requested_difference(committed.get("requested"), request.requested)
    if not difference:
        return None
    return (
        f"{request.destination.path} is complete, but written with other metadata: {difference}. "
        "Change it in place (ctlab-zarr set-voxel, set-id), or write it anew with overwrite=True "
        "(--overwrite)"
    )


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
    if request.image is not None and (found.get("image") or request.image)[0] != request.image[0]:
        return (
            f"{destination.staging} holds labels of the image that was {destination.labels_of} "
            f"before: remove them by {by}"
        )
    if request.n_parts is not None and found.get("n_parts") is not None:
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
    for number in range(_N_TRIES):
        prepared = destination.beside_staging()
        try:
            files.make_folder(prepared)
            # Who may not look into what is replaced, or added to, may not look into this either.
            # Nor may who cannot look into an image look into its labels.
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
            if error.errno != errno.ENOENT or not _is_folder(destination):
                raise
            if number + 1 == _N_TRIES:
                raise OSError(
                    errno.ENOENT,
                    f"no folder can be made there, {_N_TRIES} times in a row: give another place",
                    os.path.dirname(prepared),
                ) from error
            # Another writer took it for what a dead process left. What was put there since is for
            # us to remove.
            destination.sweep()
        else:
            return staged
    return None


def _is_folder(destination: Destination) -> bool:
    return destination.files.kind(os.path.dirname(destination.path)) == "folder"


def _enter_existing(request: StageRequest) -> StagedWrite | None:
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
    if found.get("run_id") == request.run_id or _is_shared(request, found):
        return StagedWrite(replace(request, replaces=found.get("replaces")), staging_id)
    if request.overwrite:
        # Asked for anew: what is there now is to be replaced.
        request = replace(request, replaces=identity_of_occupant(destination))
    try:
        destination.notes.put(STAGED_PLAN, request.to_json(staging_id).encode())
        destination.files.sync_folder(destination.staging)
    except FileNotFoundError:
        return None
    return StagedWrite(request, staging_id)


def _is_shared(request: StageRequest, found: dict[str, Any]) -> bool:
    """Whether the staging folder is that of the jobs of which this is one."""
    return request.n_parts is not None and found.get("n_parts") == request.n_parts
