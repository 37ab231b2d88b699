"""Remove what an interrupted write or copy has left; what was committed stays."""

from __future__ import annotations

from dataclasses import dataclass

from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import remove_tree
from ctlab_dask_zarr.store.objects import EndedUploads


@dataclass(frozen=True)
class AbortResult:
    """The result of an abort.

    Attributes
    ----------
    destination
        The destination of the write or copy.
    was_staged
        Whether there was something to remove.
    n_uploads
        Unfinished uploads to S3 that were ended.
    uploads_problem
        Why other unfinished uploads may be left; None if there are none.
    """

    destination: str
    was_staged: bool
    n_uploads: int = 0
    uploads_problem: str | None = None


def abort_write(destination: Destination) -> AbortResult:
    """Remove what an interrupted write or copy to `destination` has left: see `stores.abort`.

    This includes further levels of the image and of its labels that a commit has moved into the
    store but not named yet.
    """
    objects = destination.objects
    uploads = objects.abort_uploads(destination.path) if objects else EndedUploads(0)
    was_staged = bool(destination.staged_plan())
    if was_staged:
        destination.take_back_levels()
        destination.discard_staging()
    destination.sweep()
    for labels in destination.staged_labels():
        if labels.is_being_extended():
            was_staged = True
            labels.take_back_levels()
            labels.discard_staging()
        labels.sweep()
    # A commit that was killed between its renames has put the old dataset aside: that one stays.
    destination.finish_interrupted_replacement()
    incoming = destination.all_incoming()
    for folder in incoming:
        remove_tree(destination.files, folder)
    return AbortResult(
        destination.path, was_staged or bool(incoming), uploads.n_uploads, uploads.problem
    )
