"""The group ``labels`` of an image, which tells readers what labels it has."""

from __future__ import annotations

import json
import os

from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT, label_names, read_json_object
from ctlab_dask_zarr.runtime.storage import store_at
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.plan import group_document

__all__ = ["register_labels"]


def register_labels(destination: Destination) -> None:
    """Name every labels image of the folder that a destination is in; nothing for an image.

    Done until nothing changes: two writers of different labels may end at the same moment.
    """
    if destination.labels_of is None:
        return
    files = destination.files
    folder = os.path.dirname(destination.path)
    while True:
        document = read_json_object(files, os.path.join(folder, ROOT_DOCUMENT))
        if not document:
            document = json.loads(group_document({"ome": {"version": OMEZarrVersion.v05.value}}))
        ome = document["attributes"].setdefault("ome", {"version": OMEZarrVersion.v05.value})
        found = list(label_names(files, folder))
        known = [name for name in ome.get("labels") or [] if name in found]
        names = known + [name for name in found if name not in known]
        if ome.get("labels") == names:
            return
        ome["labels"] = names
        store_at(folder, files).put(ROOT_DOCUMENT, json.dumps(document, indent=2).encode())
        files.sync_folder(folder)
