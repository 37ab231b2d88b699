"""Labels and their image: which image labels fit, and how readers find the labels."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.planning.plan import ImageIdentity, group_document
from ctlab_dask_zarr.read.receipts import seal_of
from ctlab_dask_zarr.read.zarr_source import read_version
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import CONSOLIDATED, change_document
from ctlab_dask_zarr.store.files import Files
from ctlab_dask_zarr.store.hierarchy import (
    ROOT_DOCUMENT,
    label_names,
    read_attributes,
    read_json_object,
    read_ome,
)
from ctlab_dask_zarr.store.store import Store

_GEOMETRY = ("axes", "datasets", "coordinateTransformations")
_SYSTEMS = "coordinateSystems"


def image_identity(files: Files, path: str) -> ImageIdentity:
    """Return what tells an image from every other one, as far as its labels are concerned.

    The voxels of our own images are known by the checksums of their commit, those of another
    writer by the documents of the arrays and when these were written. A name, a history or an
    identifier makes no other image.
    """
    attributes = read_attributes(files, path)
    multiscale = (read_ome(files, path).get("multiscales") or [{}])[0]
    voxels: list[Any] = []
    for dataset in multiscale.get("datasets") or ():
        array_path = str(dataset.get("path"))
        seal = seal_of(attributes, array_path)
        document = os.path.join(path, array_path, ROOT_DOCUMENT)
        if seal is None and files.kind(document) is not None:
            text = json.dumps(read_json_object(files, document))
            voxels.append((array_path, text, read_version(files, document)))
        else:
            voxels.append((array_path, seal))
    # Where 0.6 has its axes.
    systems = [multiscale[_SYSTEMS]] if _SYSTEMS in multiscale else []
    return _hash(voxels), _hash([*(multiscale.get(key) for key in _GEOMETRY), *systems])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def image_problem(destination: Destination, wanted: ImageIdentity | None) -> str | None:
    """Return why labels do not fit the image that is there, or None; None too for an image."""
    if destination.labels_of is None or wanted is None:
        return None
    folder = os.path.dirname(destination.path)
    # The end of a path with a slash follows a link.
    kinds = [destination.files.kind(place) for place in (folder, os.path.join(folder, ""))]
    if destination.can_rename and kinds[0] is not None and kinds[1] != "folder":
        return f"{folder} is not a folder, and labels would be in it: move it elsewhere"
    listing = os.path.join(folder, ROOT_DOCUMENT)
    problem = _list_problem(read_json_object(destination.files, listing))
    if problem is not None:
        return f"{listing} {problem}"
    voxels, geometry = image_identity(destination.files, destination.labels_of)
    if voxels != wanted[0]:
        return (
            f"{destination.labels_of} is another image than the one for which these labels were "
            "planned. Make labels of the new one, by restart=True (--restart) where some were begun"
        )
    if geometry != wanted[1]:
        return (
            f"the voxel size or position of {destination.labels_of} was changed since its labels "
            "were planned. Plan them again; resume=True (--resume) goes on with what was written"
        )
    return None


def register_labels(destination: Destination) -> None:
    """Name every labels image in the folder of a destination that is labels.

    The names that are there stay, since only their writers know what they mean: ``cells/0`` lies
    in a folder, and some labels do not say that they are.
    """
    if destination.labels_of is None:
        return
    folder = os.path.dirname(destination.path)
    found = label_names(destination.files, destination.labels_of)
    image = read_ome(destination.files, destination.labels_of)
    version = image.get("version") or OMEZarrVersion.v05.value

    def listing_all(document: dict[str, Any] | None) -> dict[str, Any]:
        problem = _list_problem(document or {})
        if problem is not None:
            raise MetadataError(f"{os.path.join(folder, ROOT_DOCUMENT)} {problem}")
        changed = document or json.loads(group_document({}))
        attributes = dict(changed.get("attributes") or {})
        ome = {"version": version} | (attributes.get("ome") or {})
        known = list(ome.get("labels") or [])
        ome["labels"] = known + [name for name in found if name not in known]
        changed = {name: value for name, value in changed.items() if name != CONSOLIDATED}
        return {**changed, "attributes": {**attributes, "ome": ome}}

    change_document(Store(folder, destination.files), listing_all)


def _list_problem(document: dict[str, Any]) -> str | None:
    """Return why no names can be added to the document of a group ``labels``, or None."""
    attributes = document.get("attributes") or {}
    ome = (isinstance(attributes, dict) and attributes.get("ome")) or {}
    labels = (isinstance(ome, dict) and ome.get("labels")) or []
    if all((isinstance(attributes, dict), isinstance(ome, dict), isinstance(labels, list))):
        return None
    return "does not list labels as OME-Zarr does, so that none can be added: repair it"
