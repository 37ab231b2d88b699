"""The commit: nothing is visible before it, nothing is lost after it.

It puts the receipts and the documents into the staged store, from leaf to root, and renames that
onto the destination. The same run may commit twice: the second time finds its own dataset there.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from typing import Any, NamedTuple

import google_crc32c

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.codec.region import sample_voxels
from ctlab_dask_zarr.codec.values import contrast_of
from ctlab_dask_zarr.errors import CTLabError, DestinationExistsError, IncompleteDatasetError
from ctlab_dask_zarr.formats.ome import build_omero
from ctlab_dask_zarr.formats.receipts import (
    CODEC_CHOICE,
    RECEIPT_ATTRIBUTE,
    RECEIPTS_OBJECT,
    Number,
    ShardReceipt,
    build_receipts,
    data_range,
    seal,
)
from ctlab_dask_zarr.formats.zarr_array import key_in
from ctlab_dask_zarr.planning.occupied import identity_of_occupant
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import discard_announced, drop_consolidated, swap_document
from ctlab_dask_zarr.store.files import Files, keep_permissions, walk
from ctlab_dask_zarr.store.folders import forget_folders
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.store import is_temporary
from ctlab_dask_zarr.text import command_text
from ctlab_dask_zarr.write.staging.labels import register_labels
from ctlab_dask_zarr.write.staging.remaining import part_of
from ctlab_dask_zarr.write.staging.stage import destination_problem
from ctlab_dask_zarr.write.staging.staged import StagedWrite

_SAME_MOMENT = "another write was committed to {} at the same moment"


class CommitResult(NamedTuple):
    """What was committed: where, how many stored objects besides metadata, their size in bytes."""

    destination: str
    n_objects: int
    nbytes: int


def commit(staged: StagedWrite, volumes: Iterable[Any] = ()) -> CommitResult:
    """Publish the dataset, if all of it was written and nothing came to be in its place.

    `volumes` are what it was read from: they must not have changed.
    """
    request = staged.request
    destination = request.destination
    if staged.is_committed or destination.committed().get("staging_id") == staged.staging_id:
        register_labels(destination)
        destination.discard_committed_staging()
        return committed_result(destination)
    for volume in volumes:
        volume.check_unchanged()
    receipts = staged.recorded()
    refuse_missing(staged, receipts, staged.planned_keys())
    documents = dict(_documents(staged, receipts))
    if request.extends is not None:
        _publish_levels(staged, documents)
    elif destination.objects is not None:
        _publish_objects(staged, documents, destination.objects)
    else:
        _publish(staged, documents)
    # The dataset is there. What cannot be tidied up now, the next write will.
    with suppress(OSError, CTLabError):
        destination.finish_interrupted_replacement()
        destination.discard_committed_staging()
    # A disk cannot be unmounted while a folder of it is open.
    forget_folders()
    nbytes = sum(receipt.nbytes for receipt in receipts.values())
    return CommitResult(destination.path, len(receipts), nbytes)


def committed_result(destination: Destination) -> CommitResult:
    """Return what the commit of the dataset that is there returned."""
    receipt = destination.committed()
    return CommitResult(destination.path, receipt["n_objects"], receipt["nbytes"])


def refuse_missing(
    staged: StagedWrite, receipts: Mapping[str, ShardReceipt], keys: Iterable[str]
) -> None:
    """Raise `IncompleteDatasetError`, with the parts by number, if an object has no receipt."""
    planned = list(keys)
    missing = [key for key in planned if key not in receipts]
    if not missing:
        return
    request = staged.request
    what = f"{len(missing)} of {len(planned)} objects were not written"
    advice = "go on by resume=True (--resume)"
    if request.n_parts is not None:
        array, absent = staged.array(0), set(missing)
        parts = {
            part_of(coords, array.layout, request.n_parts)
            for coords in array.layout.task_coords()
            if not absent.isdisjoint(map(array.key, array.layout.object_coords(coords)))
        }
        what += f" (of {request.n_parts} parts, not whole: {_ranges(sorted(parts))})"
        advice = "run them again, then commit"
    raise IncompleteDatasetError(
        f"{request.destination.path} is not committed: {what}, the first is {missing[0]}; {advice}"
    )


def _ranges(numbers: list[int]) -> str:
    """Return numbers for people: 1, 3-5."""
    found = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in found]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _documents(
    staged: StagedWrite, receipts: Mapping[str, ShardReceipt]
) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all that the commit puts, the root document last."""
    request = staged.request
    content = json.loads(next(d.text for d in request.documents if d.key == ROOT_DOCUMENT))
    attributes = content["attributes"]
    facts = attributes.setdefault(RECEIPT_ATTRIBUTE, {})
    entries = facts.get("levels") or []
    for number, level in list(enumerate(request.levels))[request.n_existing :]:
        text = build_receipts(level.path, staged.array(number).array, receipts)
        yield key_in(level.path, RECEIPTS_OBJECT), text
        entry = {
            "path": level.path,
            "shards": level.layout.shard_shape,
            "chunks": level.layout.inner_chunk_shape,
            "n_objects": level.layout.n_objects,
            "receipts_crc32c": google_crc32c.value(text.encode()),
        }
        if level.path:
            yield f"{level.path}/{ROOT_DOCUMENT}", level.document
            entry["document_crc32c"] = google_crc32c.value(level.document.encode())
        entries.append(entry)
    _add_facts(attributes, staged, receipts)
    facts["levels"] = entries
    # Another writer's document may hold NaN; it is kept as it stands.
    is_others = request.extends is not None
    yield ROOT_DOCUMENT, json.dumps(seal(content), indent=2, allow_nan=is_others)


def _add_facts(
    attributes: dict[str, Any], staged: StagedWrite, receipts: Mapping[str, ShardReceipt]
) -> None:
    """Add to the root's attributes what was written, from what, when and by which run."""
    request = staged.request
    facts = attributes[RECEIPT_ATTRIBUTE]
    started_s = request.destination.staged_plan().get("started_s")
    circumstances = {
        "version": __version__,
        "zarr_version": version("zarr"),
        "committed": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": None if started_s is None else round(time.time() - started_s, 3),
    }
    values = data_range([receipts[key] for key in staged.level_keys(request.n_existing)])
    has_others_contrast = "omero" in attributes.get("ome", {}) and "run_id" not in facts
    if request.extends is None:
        facts |= circumstances
        facts |= {"requested": request.requested, "data_min_max": values}
        facts["source"] = json.loads(request.identity)["source"]
        if request.codec_choice is not None:
            facts[CODEC_CHOICE] = request.codec_choice
        if "mango" in attributes and values is not None:
            # Drishti takes its first contrast from here.
            attributes["mango"]["data_min_max"] = values
    else:
        facts.setdefault("version", __version__)
        facts["further_levels"] = circumstances
        values = facts.get("data_min_max") or values
    nbytes = sum(receipt.nbytes for receipt in receipts.values())
    facts |= {
        "run_id": request.run_id,
        "staging_id": staged.staging_id,
        "fingerprint": request.fingerprint,
        "n_objects": facts.get("n_objects", 0) + len(receipts),
        "nbytes": facts.get("nbytes", 0) + nbytes,
    }
    needs_contrast = not request.is_discrete and not has_others_contrast
    if "ome" in attributes and needs_contrast and values is not None:
        attributes["ome"]["omero"] = _omero(staged, attributes["ome"], *values)


def _omero(
    staged: StagedWrite, ome: Mapping[str, Any], minimum: Number, maximum: Number
) -> dict[str, Any]:
    coarsest = staged.array(len(staged.request.levels) - 1)
    voxels = sample_voxels(coarsest.store, coarsest.path, coarsest.array)
    contrast = contrast_of(voxels, staged.request.mask_value)
    # An image of another writer need not have a name.
    name = ome["multiscales"][0].get("name") or os.path.basename(staged.request.destination.path)
    return build_omero(str(name), (minimum, maximum), contrast)


def _publish(staged: StagedWrite, documents: dict[str, str]) -> None:
    """Put the documents into the staged store, then rename it onto the destination."""
    request, destination = staged.request, staged.request.destination
    files, path = destination.files, destination.path
    folder = os.path.dirname(path)
    for key, text in documents.items():
        staged.store.put(key, text.encode())
    _settle_folders(files, staged.store.root)
    _refuse_problem(
        staged,
        f". This changed during the write; the new dataset is complete in {staged.store.root}",
    )
    is_replacement = request.overwrite and files.kind(path) is not None
    if is_replacement:
        _refuse_another(staged)
        keep_permissions(files, staged.store.root, path)
    if destination.labels_of is not None:
        with suppress(FileExistsError):
            files.make_folder(folder)
        files.sync_folder(destination.labels_of)
    drop_consolidated(files, destination.labels_of or folder)
    aside = destination.replaced(staged.staging_id)
    if is_replacement and files.kind(path) is not None:
        files.stat(staged.store.path(ROOT_DOCUMENT))  # still there: nobody took it over
        files.rename(path, aside)
        # The second rename must not outlast the first in a power failure.
        files.sync_folder(folder)
    try:
        _rename(files, staged.store.root, path, _SAME_MOMENT.format(path))
    except OSError:
        # The next writer may have found the old dataset aside and done this rename already.
        if destination.committed().get("staging_id") != staged.staging_id:
            if files.kind(path) is None and files.kind(aside) is not None:
                files.rename(aside, path)
            raise
    files.sync_folder(folder)
    register_labels(destination)


def _refuse_problem(staged: StagedWrite, state: str = "") -> None:
    if problem := destination_problem(staged.request):
        raise DestinationExistsError(problem + state)


def _refuse_another(staged: StagedWrite) -> None:
    """Raise if the dataset at the destination is not the one that was there at the staging."""
    destination = staged.request.destination
    if identity_of_occupant(destination) != staged.request.replaces:
        raise DestinationExistsError(
            f"{destination.path} is not the dataset that was to be replaced: it appeared or was "
            "changed during the write, and is left as it is. The new dataset is complete in "
            f"{staged.store.root}: move the other one elsewhere, then "
            f"{command_text('commit', destination.path)}; with --overwrite that replaces what is "
            "there now"
        )


def _publish_objects(staged: StagedWrite, documents: dict[str, str], objects: ObjectFiles) -> None:
    """Put the documents beside the shards, which are in their places; the root document last."""
    destination = staged.request.destination
    _refuse_problem(staged)
    root = documents.pop(ROOT_DOCUMENT)
    for key, text in documents.items():
        staged.store.put(key, text.encode())
    drop_consolidated(objects, destination.labels_of or os.path.dirname(destination.path))
    try:
        objects.create(staged.store.path(ROOT_DOCUMENT), root.encode())
    except FileExistsError as error:
        if destination.committed().get("staging_id") != staged.staging_id:
            raise DestinationExistsError(_SAME_MOMENT.format(destination.path)) from error
    register_labels(destination)


def _publish_levels(staged: StagedWrite, documents: dict[str, str]) -> None:
    """Move further levels into the store, then replace its root document by one that names them.

    Killed at any point, it goes on when it is called again.
    """
    request, destination = staged.request, staged.request.destination
    files, store = destination.files, destination.store
    _refuse_problem(staged)
    for level in request.levels[request.n_existing :]:
        folder, place = staged.store.path(level.path), store.path(level.path)
        if files.kind(folder) == "folder":
            for key in [key for key in documents if key.startswith(f"{level.path}/")]:
                staged.store.put(key, documents[key].encode())
            if destination.can_rename:
                keep_permissions(files, folder, destination.path)
                _settle_folders(files, folder)
                _rename(
                    files, folder, place,
                    f"{place}, which no metadata lists, appeared while a further level was "
                    "written: move it elsewhere, then go on by resume=True (--resume)",
                )  # fmt: skip
        elif files.kind(place) != "folder":
            raise IncompleteDatasetError(
                f"{destination.path} gets no further levels: {folder} was removed by another write"
            )
    if destination.can_rename:
        discard_announced(store)
        names = [name for name, kind in files.entries(destination.path) if kind == "file"]
        _settle_folder(files, destination.path, names)
    is_ours = swap_document(store, request.extends, documents[ROOT_DOCUMENT].encode())
    if not is_ours and destination.committed().get("staging_id") != staged.staging_id:
        _refuse_problem(staged)
        raise DestinationExistsError(
            f"{destination.path} was changed at the same moment: commit again"
        )


def _rename(files: Files, source: str, target: str, problem: str) -> None:
    """Rename a folder; where something is in its place, this is the `problem`."""
    try:
        files.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DestinationExistsError(problem) from error
        raise


def _settle_folders(files: Files, root: str) -> None:
    """Remove what killed attempts left, and make every name durable, leaf to root."""
    for folder, _, names in reversed(list(walk(files, root))):
        _settle_folder(files, folder, names)


def _settle_folder(files: Files, folder: str, names: Iterable[str]) -> None:
    for name in names:
        if is_temporary(name):
            with suppress(FileNotFoundError):
                files.remove_file(os.path.join(folder, name))
    files.sync_folder(folder)
