"""The commit: nothing is visible before it, nothing is lost after it.

The documents are put from leaf to root into the staged store, which is then renamed onto the
destination. The same run may commit twice: the second time finds its own dataset there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctlab_dask_zarr.errors import DestinationExistsError, IncompleteDatasetError
from ctlab_dask_zarr.runtime.storage import TEMPORARY_SUFFIX
from ctlab_dask_zarr.write.destination import (
    RECEIPT_ATTRIBUTE,
    ROOT_DOCUMENT,
    committed_run_id,
    destination_problem,
    discard_committed_staging,
    replaced_path,
)
from ctlab_dask_zarr.write.shard import ShardReceipt
from ctlab_dask_zarr.write.stage import StagedWrite, StageRequest

__all__ = ["CommitResult", "commit"]


class CommitResult(NamedTuple):
    """What was committed: number of objects written, and their size in bytes."""

    destination: str
    n_objects: int
    nbytes: int


def commit(staged: StagedWrite, receipts: Sequence[ShardReceipt]) -> CommitResult:
    """Publish the dataset: documents from leaf to root, then the rename onto the destination.

    Raises
    ------
    IncompleteDatasetError
        A shard of the plan has no receipt.
    DestinationExistsError
        Something came to be at the destination meanwhile.
    """
    request = staged.request
    result = CommitResult(
        request.destination, len(receipts), sum(receipt.nbytes for receipt in receipts)
    )
    if staged.is_committed or committed_run_id(request.destination) == request.run_id:
        discard_committed_staging(request.destination)
        return result
    keys = {receipt.key for receipt in receipts}
    missing = [key for key in _planned_keys(staged) if key not in keys]
    if missing:
        raise IncompleteDatasetError(
            f"{len(missing)} of {request.n_objects} objects were not written, the first is "
            f"{missing[0]}: nothing was committed"
        )
    for document in request.documents:
        is_root = document.key == ROOT_DOCUMENT
        text = _with_receipt(document.text, request, result) if is_root else document.text
        staged.store.put(document.key, text.encode())
    _settle_folders(staged.store.root)
    _publish(staged)
    return result


def _with_receipt(text: str, request: StageRequest, result: CommitResult) -> str:
    """Add to the root document what was written, and by which run."""
    document = json.loads(text)
    receipt = document["attributes"].setdefault(RECEIPT_ATTRIBUTE, {})
    receipt["run_id"] = request.run_id
    receipt["fingerprint"] = request.fingerprint
    receipt["n_objects"] = result.n_objects
    receipt["nbytes"] = result.nbytes
    return json.dumps(document, indent=2, allow_nan=False)


def _planned_keys(staged: StagedWrite) -> Iterable[str]:
    for number in range(len(staged.request.levels)):
        array = staged.array(number)
        for coords in array.layout.task_coords():
            for object_coords in array.layout.object_coords(coords):
                yield array.key(object_coords)


def _publish(staged: StagedWrite) -> None:
    destination = staged.request.destination
    problem = destination_problem(destination, overwrite=staged.request.overwrite)
    if problem is not None:
        raise DestinationExistsError(
            f"{problem}. It came to be while the write was under way; the new dataset is complete "
            f"in {staged.store.root}"
        )
    if os.path.lexists(destination):
        os.rename(destination, replaced_path(destination))
    try:
        os.rename(staged.store.root, destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise DestinationExistsError(
                f"another write was committed to {destination} at the same moment"
            ) from error
        # The next writer may have found the old dataset aside and done this rename already.
        if committed_run_id(destination) != staged.request.run_id:
            raise
    _sync_folder(os.path.dirname(destination) or ".")
    shutil.rmtree(replaced_path(destination), ignore_errors=True)
    discard_committed_staging(destination)


def _settle_folders(root: str) -> None:
    """Remove what killed attempts left, and make every name durable."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                os.unlink(os.path.join(folder, name))
        _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the names in a folder durable (a file's fsync does not promise its name)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
