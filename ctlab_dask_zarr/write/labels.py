"""The group ``labels`` of an image, which tells readers what labels it has."""

from __future__ import annotations

import json
import os
from typing import Any

from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.read.hierarchy import label_names
from ctlab_dask_zarr.runtime.documents import CONSOLIDATED, change_document
from ctlab_dask_zarr.runtime.storage import store_at
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.plan import group_document

__all__ = ["register_labels"]


def register_labels(destination: Destination) -> None:
    """Name every labels image of the folder that a destination is in; nothing for an image.

    Names are added to those that are there, of which nobody but their writers knows the meaning:
    ``cells/0`` lies in a folder, and some labels do not say that they are.
    """
    if destination.labels_of is None:
        return
    folder = os.path.dirname(destination.path)
    found = list(label_names(destination.files, folder))

    def listing_all(document: dict[str, Any] | None) -> dict[str, Any]:
        changed = document or json.loads(group_document({}))
        attributes = dict(changed.get("attributes") or {})
        ome = {"version": OMEZarrVersion.v05.value} | (attributes.get("ome") or {})
        known = list(ome.get("labels") or [])
        ome["labels"] = known + [name for name in found if name not in known]
        changed = {name: value for name, value in changed.items() if name != CONSOLIDATED}
        return {**changed, "attributes": {**attributes, "ome": ome}}

    change_document(store_at(folder, destination.files), listing_all)
