"""The commit: nothing is visible before it, nothing is lost after it.

The receipts and the documents are put, from leaf to root, into the staged store, which is then
renamed onto the destination. The same run may commit twice: the second time finds its own dataset
there.
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
from typing import Any, NamedTuple

import google_crc32c

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.codec.sample import contrast_of, sample_voxels
from ctlab_dask_zarr.errors import CTLabError, DestinationExistsError, IncompleteDatasetError
from ctlab_dask_zarr.formats.ome import build_omero
from ctlab_dask_zarr.formats.receipts import (
    RECEIPT_ATTRIBUTE,
    RECEIPTS_OBJECT,
    Number,
    ShardReceipt,
    build_receipts,
    data_range,
    seal,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import discard_announced, drop_consolidated, swap_document
from ctlab_dask_zarr.store.files import Files, keep_permissions, walk
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.occupied import identity_of_occupant
from ctlab_dask_zarr.store.store import is_temporary
from ctlab_dask_zarr.write.staging.labels import register_labels
from ctlab_dask_zarr.write.staging.remaining import part_of
from ctlab_dask_zarr.write.staging.stage import destination_problem
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["CommitResult", "commit", "committed_result", "refuse_missing"]


class CommitResult(NamedTuple):
    """What was committed: where, how many stored objects besides metadata, their size in bytes."""

    destination: str
    n_objects: int
    nbytes: int


def commit(staged: StagedWrite, volumes: Iterable[Any] = ()) -> CommitResult:
    """Publish the dataset: documents from leaf to root, then the rename onto the destination.

    `volumes` are what it was read from; they have to be still what was opened.

    Raises
    ------
    IncompleteDatasetError
        A shard of the plan has no receipt.
    IncompleteSourceError, DatasetNotFoundError
        A source is another one now, or not there any more.
    DestinationExistsError
        Something came to be at the destination meanwhile.
    """
    request = staged.request
    destination = request.destination
    if staged.is_committed or destination.committed().get("staging_id") == staged.staging_id:
        register_labels(destination)
        destination.discard_committed_staging()
        return committed_result(destination)
    for volume in volumes:
        volume.check_unchanged()
    receipts = staged.recorded(staged.sizes())
    refuse_missing(staged, receipts, staged.planned_keys())
    if request.extends is None:
        documents = dict(_documents(staged, receipts))
        if destination.objects is not None:
            _publish_objects(staged, documents, destination.objects)
        else:
            for key, text in documents.items():
                staged.store.put(key, text.encode())
            _settle_folders(destination.files, staged.store.root)
            _publish(staged)
    else:
        _publish_levels(staged, dict(_documents(staged, receipts)))
    nbytes = sum(receipt.nbytes for receipt in receipts.values())
    return CommitResult(destination.path, len(receipts), nbytes)


def committed_result(destination: Destination) -> CommitResult:
    """Return what the commit of the dataset that is there has told."""
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
    array, absent = staged.array(0), set(missing)
    if request.n_parts is not None:
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
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _documents(
    staged: StagedWrite, receipts: Mapping[str, ShardReceipt]
) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of all that the commit puts, the root document last."""
    request = staged.request
    (root,) = [document for document in request.documents if document.key == ROOT_DOCUMENT]
    content = json.loads(root.text)
    levels = content["attributes"].get(RECEIPT_ATTRIBUTE, {}).get("levels") or []
    for number, level in enumerate(request.levels):
        if number < request.n_existing:
            continue
        array = staged.array(number).array
        text = build_receipts(level.path, array, receipts)
        yield f"{level.path}/{RECEIPTS_OBJECT}".lstrip("/"), text
        levels.append(
            {
                "path": level.path,
                "shards": level.layout.shard_shape,
                "chunks": level.layout.inner_chunk_shape,
                "n_objects": level.layout.n_objects,
                "receipts_crc32c": google_crc32c.value(text.encode()),
            }
        )
    for document in request.documents:
        if document.key != ROOT_DOCUMENT:
            yield document.key, document.text
            (entry,) = [e for e in levels if f"{e['path']}/{ROOT_DOCUMENT}" == document.key]
            entry["document_crc32c"] = google_crc32c.value(document.text.encode())
    if request.extends is None:
        _add_facts(content["attributes"], staged, receipts)
    else:
        _add_facts_of_levels(content["attributes"], staged, receipts)
    content["attributes"][RECEIPT_ATTRIBUTE]["levels"] = levels
    # What another writer says that is no number is kept as it stands.
    may_be_nan = request.extends is not None
    yield ROOT_DOCUMENT, json.dumps(seal(content), indent=2, allow_nan=may_be_nan)


def _add_facts(
    attributes: dict[str, Any], staged: StagedWrite, receipts: Mapping[str, ShardReceipt]
) -> None:
    """Add to the root's attributes what was written, from what, by which run."""
    request = staged.request
    facts = attributes.setdefault(RECEIPT_ATTRIBUTE, {})
    values = data_range([receipts[key] for key in staged.level_keys(0)])
    facts.update(
        **_circumstances(staged),
        run_id=request.run_id,
        staging_id=staged.staging_id,
        fingerprint=request.fingerprint,
        requested=request.requested,
        source=json.loads(request.identity)["source"],
        n_objects=len(receipts),
        nbytes=sum(receipt.nbytes for receipt in receipts.values()),
        data_min_max=values,
    )
    if values is None:
        return
    if "mango" in attributes:
        # Drishti takes its first contrast from here.
        attributes["mango"]["data_min_max"] = values
    if "ome" in attributes and request.is_grey:
        attributes["ome"]["omero"] = _omero(staged, attributes["ome"], values)


def _circumstances(staged: StagedWrite) -> dict[str, Any]:
    """Return by what, when and in how many seconds it was written."""
    started_s = staged.request.destination.staged_plan().get("started_s")
    return {
        "version": __version__,
        "zarr_version": version("zarr"),
        "committed": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": None if started_s is None else round(time.time() - started_s, 3),
    }


def _add_facts_of_levels(
    attributes: dict[str, Any], staged: StagedWrite, receipts: Mapping[str, ShardReceipt]
) -> None:
    """Add to the attributes of a store what was added to it, by which run."""
    request = staged.request
    facts = attributes[RECEIPT_ATTRIBUTE]
    is_ours = "run_id" in facts
    nbytes = sum(receipt.nbytes for receipt in receipts.values())
    facts.setdefault("version", __version__)
    facts.update(
        run_id=request.run_id,
        staging_id=staged.staging_id,
        fingerprint=request.fingerprint,
        n_objects=facts.get("n_objects", 0) + len(receipts),
        nbytes=facts.get("nbytes", 0) + nbytes,
        further_levels=_circumstances(staged),
    )
    if request.is_grey and (is_ours or "omero" not in attributes["ome"]):
        first_added = [receipts[key] for key in staged.level_keys(request.n_existing)]
        values = facts.get("data_min_max") or data_range(first_added)
        if values is not None:
            attributes["ome"]["omero"] = _omero(staged, attributes["ome"], tuple(values))


def _omero(
    staged: StagedWrite, ome: Mapping[str, Any], values: tuple[Number, Number]
) -> dict[str, Any]:
    coarsest = staged.array(len(staged.request.levels) - 1)
    voxels = sample_voxels(coarsest.store, coarsest.path, coarsest.array)
    contrast = contrast_of(voxels, staged.request.mask_value)
    # Others' images need not have a name.
    name = ome["multiscales"][0].get("name") or os.path.basename(staged.request.destination.path)
    return build_omero(str(name), values, contrast)


def _publish(staged: StagedWrite) -> None:
    destination = staged.request.destination
    files = destination.files
    folder = os.path.dirname(destination.path)
    problem = destination_problem(staged.request)
    if problem is not None:
        raise DestinationExistsError(
            f"{problem}. It came to be while the write was under way; the new dataset is complete "
            f"in {staged.store.root}"
        )
    if staged.request.overwrite and files.kind(destination.path) is not None:
        _refuse_another(staged)
        keep_permissions(files, staged.store.root, destination.path)
    aside = destination.replaced(staged.staging_id)
    if destination.labels_of is not None:
        with suppress(FileExistsError):
            files.make_folder(folder)
        files.sync_folder(destination.labels_of)
    drop_consolidated(files, destination.labels_of or folder)
    if staged.request.overwrite and files.kind(destination.path) is not None:
        files.stat(staged.store.path(ROOT_DOCUMENT))  # still there: nobody took it over
        files.rename(destination.path, aside)
        # Never is the second rename durable without the first.
        files.sync_folder(folder)
    try:
        files.rename(staged.store.root, destination.path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DestinationExistsError(
                f"another write was committed to {destination.path} at the same moment"
            ) from error
        # The next writer may have found the old dataset aside and done this rename already.
        if destination.committed().get("staging_id") != staged.staging_id:
            if files.kind(destination.path) is None and files.kind(aside) is not None:
                files.rename(aside, destination.path)
            raise
    files.sync_folder(folder)
    register_labels(destination)
    # The dataset is there: what cannot be tidied up now, the next write will.
    with suppress(OSError, CTLabError):
        destination.finish_interrupted_replacement()
        destination.discard_committed_staging()


def _refuse_another(staged: StagedWrite) -> None:
    """Raise where what is at the destination is not what was there when the write was staged."""
    destination = staged.request.destination
    if identity_of_occupant(destination) != staged.request.replaces:
        raise DestinationExistsError(
            f"{destination.path} is not the dataset that was to be replaced: it came to be, or was "
            "changed, while the write was under way, and is left as it is. The new one is complete "
            f"in {staged.store.root}: move what is there elsewhere, then `ctlab-zarr commit "
            f"{destination.path}`; with --overwrite that replaces what is there now"
        )


def _publish_objects(staged: StagedWrite, documents: dict[str, str], objects: ObjectFiles) -> None:
    """Put the documents beside the shards, which are in their places: the root's last, once."""
    destination = staged.request.destination
    problem = destination_problem(staged.request)
    if problem is not None:
        raise DestinationExistsError(problem)
    root = documents.pop(ROOT_DOCUMENT)
    for key, text in documents.items():
        staged.store.put(key, text.encode())
    drop_consolidated(objects, destination.labels_of or os.path.dirname(destination.path))
    try:
        objects.create(staged.store.path(ROOT_DOCUMENT), root.encode())
    except FileExistsError as error:
        if destination.committed().get("staging_id") != staged.staging_id:
            raise DestinationExistsError(
                f"another write was committed to {destination.path} at the same moment"
            ) from error
    register_labels(destination)
    with suppress(OSError, CTLabError):
        destination.discard_committed_staging()


def _publish_levels(staged: StagedWrite, documents: dict[str, str]) -> None:
    """Move further levels into the store, then replace its root document by one that names them.

    Done again after it has died at any point, it goes on.
    """
    destination = staged.request.destination
    files = destination.files
    problem = destination_problem(staged.request)
    if problem is not None:
        raise DestinationExistsError(problem)
    root = documents.pop(ROOT_DOCUMENT)
    store = destination.store
    for level in staged.request.levels[staged.request.n_existing :]:
        folder, place = staged.store.path(level.path), store.path(level.path)
        if files.kind(folder) == "folder":
            for key in [key for key in documents if key.startswith(f"{level.path}/")]:
                staged.store.put(key, documents[key].encode())
            if destination.can_rename:
                keep_permissions(files, folder, destination.path)
                _settle_folders(files, folder)
                _move_level(files, folder, place)
        elif files.kind(place) != "folder":
            raise IncompleteDatasetError(
                f"{destination.path} gets no further levels: {folder} was removed by another write"
            )
    if destination.can_rename:
        discard_announced(store)
        names = [name for name, kind in files.entries(destination.path) if kind == "file"]
        _settle_folder(files, destination.path, names)
    is_ours = swap_document(store, staged.request.extends, root.encode())
    if not is_ours and destination.committed().get("staging_id") != staged.staging_id:
        raise DestinationExistsError(
            destination_problem(staged.request)
            or f"{destination.path} was changed at the same moment: commit again"
        )
    with suppress(OSError, CTLabError):
        destination.discard_committed_staging()


def _move_level(files: Files, folder: str, place: str) -> None:
    try:
        files.rename(folder, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DestinationExistsError(
                f"{place}, which no metadata lists, came to be while a further level was written: "
                "move it elsewhere, then go on by resume=True (--resume)"
            ) from error
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
