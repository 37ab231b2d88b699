"""Give an interrupted write or copy up: nothing stays but what was committed."""

from __future__ import annotations

from ctlab_dask_zarr.manage.transfer import discard_incoming
from ctlab_dask_zarr.store.destination import Destination

__all__ = ["discard_write"]


def discard_write(destination: Destination) -> bool:
    """Remove what an interrupted write or copy has left; return whether there was any.

    Further levels that a commit has moved into the store, and not named, are part of it, and so are
    those of its labels.
    """
    is_found = bool(destination.staged_plan())
    if is_found:
        destination.take_back_levels()
        destination.discard_staging()
    destination.sweep()
    for labels in destination.staged_labels():
        if labels.is_being_extended():
            is_found = True
            labels.take_back_levels()
            labels.discard_staging()
        labels.sweep()
    # Died between the renames of its commit, the old dataset is aside: it is what stays.
    destination.finish_interrupted_replacement()
    return discard_incoming(destination) or is_found
