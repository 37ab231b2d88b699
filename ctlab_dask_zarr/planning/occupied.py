"""What is at a destination already, and whether it may be replaced, or written beside."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
from contextlib import suppress
from typing import Any

from ctlab_dask_zarr.errors import InvalidArgumentError, StorageError
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE
from ctlab_dask_zarr.planning.plan import Overwrite, WritePlan
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import Kind, walk
from ctlab_dask_zarr.store.hierarchy import (
    ROOT_DOCUMENT,
    contents_of,
    label_names,
    listed_arrays,
    read_attributes,
    read_ome,
)
from ctlab_dask_zarr.text import nbytes_text, path_text

#: The most bytes that file systems take for the name of a file or a folder.
_MAX_NAME_NBYTES = 255
#: Attributes of volumes, and of groups of many images.
_MARKS = {"ome", "mango", RECEIPT_ATTRIBUTE}
_MARKS_OF_MANY = {"plate", "well", "bioformats2raw.layout"}


def refuse_long_name(destination: Destination) -> None:
    """Raise where the name leaves no room for the names of what is hidden beside it."""
    name = os.path.basename(destination.beside_staging())
    n_over = len(os.fsencode(name)) - _MAX_NAME_NBYTES
    if n_over > 0 and destination.can_rename:
        raise InvalidArgumentError(
            f"the name {os.path.basename(destination.path)!r} is too long by {n_over} bytes: a "
            f"hidden folder with a longer name ({name[:16]}...) lies beside it while it is "
            f"written, and no name has more than {_MAX_NAME_NBYTES} bytes"
        )


def refuse_place(destination: Destination, source: Any) -> None:
    """Raise where no store can be, whatever is there."""
    refuse_long_name(destination)
    folder = getattr(source, "folder", "")
    is_folder_of_blocks = folder.endswith("_nc") or len(getattr(source, "blocks", ())) > 1
    if is_folder_of_blocks and destination.path.startswith(
        os.path.join(os.path.realpath(folder), "")
    ):
        raise InvalidArgumentError(
            f"{destination.path} would be inside its source {folder}, and be lost with it: give a "
            "place outside of it"
        )


def refuse_missing_folder(destination: Destination) -> None:
    """Raise where the folder of a destination is not there: none is made unless asked for."""
    problem = _missing_folder(destination)
    if problem is not None:
        raise InvalidArgumentError(problem)


def folder_problem(destination: Destination) -> str | None:
    """Return why nothing can be written into the folder of a destination, or None."""
    problem = _missing_folder(destination)
    folder = os.path.dirname(destination.staging)
    if problem is None and destination.can_rename and not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} cannot be written to: choose another, or ask who owns it"
    return problem


def _missing_folder(destination: Destination) -> str | None:
    folder = os.path.dirname(destination.staging)
    if destination.can_rename and destination.files.kind(folder) is None:
        return (
            f"the folder {folder}, in which {os.path.basename(destination.path)} would be, does "
            "not exist: if that is the place you mean, make it by "
            f"`mkdir -p {path_text(folder)}` (--mkdir), or in Python by os.makedirs({folder!r})"
        )
    return None


def place_problem(destination: Destination, *, overwrite: Overwrite, is_new: bool) -> str | None:
    """Return why a write could not begin, or None; `is_new` unless it goes on or starts anew."""
    problem = occupied_problem(destination, overwrite=overwrite) or folder_problem(destination)
    if problem is not None or not (is_new and destination.staged_plan()):
        return problem
    return (
        f"{destination.staging} is there: another write to {destination.path} has begun. Go on "
        "with it by resume=True (--resume), or remove it by restart=True (--restart)"
    )


def space_problem(destination: Destination, nbytes: int) -> str | None:
    """Return a note if a file system has less space left than voxels take uncompressed."""
    folder = os.path.dirname(destination.staging)
    if not destination.can_rename or destination.files.kind(folder) is None:
        return None
    free = shutil.disk_usage(folder).free
    if free >= nbytes:
        return None
    return (
        f"{folder} has {nbytes_text(free)} left, and the voxels take {nbytes_text(nbytes)} before "
        "compression: it may not be enough"
    )


def open_files_problem(plan: WritePlan) -> str | None:
    """Return a note if tasks that write a row of shards at once may not open that many files."""
    if plan.rechunk.method != "stream" or plan.rechunk.band is not None:
        return None
    layout = plan.levels[0].layout
    n_files = layout.n_tasks // layout.grid_shape[0]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or n_files < limit:
        return None
    return (
        f"a task writes {n_files:,} shards at once, each a file, and here a process may open "
        f"{limit:,} (ulimit -n): larger shards make fewer"
    )


def occupied_problem(destination: Destination, *, overwrite: Overwrite) -> str | None:
    """Return why nothing may be committed to a destination, or None.

    Only a Zarr v3 store with the marks of a volume is ever replaced, and only if it holds nothing
    else: an unrelated file in it would be lost.
    """
    try:
        return _problem(destination, overwrite=overwrite)
    except StorageError:
        raise
    except OSError as error:
        return f"{destination.path} cannot be looked at: {error}"


def _problem(destination: Destination, *, overwrite: Overwrite) -> str | None:
    path = destination.path
    kind = destination.files.kind(path)
    store = None if destination.labels_of else store_around(destination)
    if store is not None:
        return (
            f"{path} would be inside {store}, which is a Zarr store: no document of it would list "
            "it. Choose a place outside of it; labels are written by labels_to_zarr (`ctlab-zarr "
            "add-labels`)"
        )
    if kind is None:
        return None
    if not destination.can_rename:
        return _problem_of_objects(destination, overwrite=overwrite)
    lost = destination.replacement_problem()
    if lost is not None:
        return lost
    if not overwrite:
        return (
            f"{path} exists: choose another name, or replace it with overwrite=True (--overwrite)"
        )
    problem = _not_replaceable(destination, kind, drops_labels=overwrite == "drop_labels")
    return None if problem is None else f"{path} exists and is not replaced: {problem}"


def _problem_of_objects(destination: Destination, *, overwrite: Overwrite) -> str | None:
    path = destination.path
    if destination.files.kind(destination.store.path(ROOT_DOCUMENT)) is not None:
        advice = "choose another name, or remove it first"
        if overwrite:
            advice = "an object store cannot replace it in one step: remove it first"
        return f"{path} exists: {advice}"
    if not destination.staged_plan():
        return (
            f"{path} holds objects that are not a dataset, nor the shards of a write that can be "
            "resumed: remove them, or choose another name"
        )
    return None


def _not_replaceable(destination: Destination, kind: Kind, *, drops_labels: bool) -> str | None:
    """Return what is there, and would be lost if a dataset took its place."""
    files, path = destination.files, destination.path
    if kind == "link":
        return "it is a symbolic link, give the path that it points to"
    if kind != "folder":
        return "it is not a Zarr store but a file"
    attributes = read_attributes(files, path)
    if not _MARKS & attributes.keys():
        return "it is not an OME-Zarr or mango store of Zarr v3"
    of_many = _MARKS_OF_MANY & {*attributes, *read_ome(files, path)}
    if of_many:
        return f"it is a collection of images ({min(of_many)}), and not one: move it elsewhere"
    arrays = listed_arrays(files, path)
    if files.kind(os.path.join(path, "labels")) is not None:
        if not drops_labels:
            return (
                "it has labels, which would be lost: move the folder labels elsewhere, or give "
                "them up by overwrite='drop_labels' (--overwrite --drop-labels)"
            )
        for name in (f"labels/{name}" for name in label_names(files, path)):
            found = listed_arrays(files, os.path.join(path, name)).items()
            arrays |= {f"{name}/{array}".rstrip("/"): stored for array, stored in found}
    contents = contents_of(path, walk(files, path), arrays)
    foreign = next((key for key, _, coords in contents if coords is None), None)
    if foreign is not None:
        return f"it holds {foreign!r}, which is not part of the dataset: move it elsewhere"
    return None


def identity_of_occupant(destination: Destination) -> str | None:
    """Return what tells the dataset that is there from any other one; None for none.

    For a dataset of this package it stays the same when the metadata is edited.
    """
    staging_id = destination.committed().get("staging_id")
    if isinstance(staging_id, str):
        return staging_id
    try:
        root = destination.files.read(os.path.join(destination.path, ROOT_DOCUMENT))
    except OSError:
        return None
    return hashlib.sha256(root).hexdigest()


def store_around(destination: Destination) -> str | None:
    """Return the Zarr store in which a destination would be, or None."""
    below, folder = destination.path, os.path.dirname(destination.path)
    while folder != below and not folder.endswith(":"):
        for name in (ROOT_DOCUMENT, ".zgroup", ".zarray"):
            # Some may write in a folder and not look at those above it.
            with suppress(OSError):
                if destination.files.kind(os.path.join(folder, name)) is not None:
                    return folder
        below, folder = folder, os.path.dirname(folder)
    return None
