"""What a Zarr v3 store may hold, and what in it is a stranger."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT
from ctlab_dask_zarr.formats.zarr_array import StoredArray, is_key, parse_array_document
from ctlab_dask_zarr.store.files import Files, walk
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import is_temporary

__all__ = [
    *(
        "ROOT_DOCUMENT",
        "label_names",
        "listed_arrays",
        "listed_labels",
        "read_json_object",
        "read_ome",
    ),
    "strangers",
]

#: The document that makes a folder a store, a group or an array.
ROOT_DOCUMENT = "zarr.json"


def read_json_object(files: Files, path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none.

    An object store that does not answer is no absence.
    """
    try:
        return json_object_or_empty(files.read(path))
    except ValueError:
        return {}
    except OSError as error:
        if is_url(path) and not isinstance(error, FileNotFoundError):
            raise
        return {}


def listed_arrays(files: Files, root: str) -> dict[str, StoredArray | None]:
    """Return the arrays that the documents of an image and of its labels list, by their paths.

    None for one whose own document cannot be understood. An array itself is at ``''``.
    """
    document = read_json_object(files, os.path.join(root, ROOT_DOCUMENT))
    if document.get("node_type") == "array":
        return {"": _array(document)}
    found: dict[str, StoredArray | None] = {}
    folder = os.path.join(root, "labels")
    names = {*listed_labels(files, folder), *label_names(files, folder)}
    for image in ("", *(f"labels/{name}/" for name in names)):
        for path in _dataset_paths(read_ome(files, os.path.join(root, image))):
            document = read_json_object(files, os.path.join(root, image, path, ROOT_DOCUMENT))
            found[f"{image}{path}"] = _array(document)
    return found


def strangers(files: Files, root: str, arrays: Mapping[str, StoredArray | None]) -> Iterator[str]:
    """Yield what a store holds, below its root, that is no part of a dataset.

    A part is a document on the way to one of its arrays, and below an array its receipts and
    whatever has the exact name of a chunk. What killed attempts and operating systems left is
    nobody's data. Of a node that is foreign its folder is yielded, of all else each file.

    Parameters
    ----------
    arrays
        Of the dataset and of its labels, by their paths; None for one that is not understood.
    """
    nodes = {"", "labels"}
    for path in arrays:
        nodes.update(_with_parents(path))
    for folder, folders, names in walk(files, root):
        path = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/")
        if ROOT_DOCUMENT in (*folders, *names) and path not in nodes:
            yield path
            folders.clear()
            continue
        home = next((p for p in _with_parents(path) if p in arrays), None)
        array = None if home is None else arrays[home]
        for name in names:
            key = f"{path}/{name}".lstrip("/")
            if name == ROOT_DOCUMENT or is_temporary(name):
                continue
            below = key.removeprefix(f"{home}/") if home else key
            if array is None or (below != RECEIPTS_OBJECT and array.coords(below) is None):
                yield key


def label_names(files: Files, folder: str) -> Iterator[str]:
    """Yield, sorted, what in a group ``labels`` is an image of labels."""
    if files.kind(folder) != "folder":
        return
    for name, kind in sorted(files.entries(folder)):
        is_group = kind == "folder" and not name.startswith(".")
        if is_group and "image-label" in read_ome(files, os.path.join(folder, name)):
            yield name


def listed_labels(files: Files, folder: str) -> list[str]:
    """Return what the document of a group ``labels`` lists, by keys below the group."""
    labels = read_ome(files, folder).get("labels")
    return [name for name in labels if is_key(name)] if isinstance(labels, list) else []


def read_ome(files: Files, folder: str) -> dict[str, Any]:
    """Return the ``ome`` attribute of the group in a folder; empty where there is none."""
    attributes = read_json_object(files, os.path.join(folder, ROOT_DOCUMENT)).get("attributes")
    ome = attributes.get("ome") if isinstance(attributes, dict) else None
    return ome if isinstance(ome, dict) else {}


def _with_parents(path: str) -> Iterator[str]:
    """Yield a path in a store and those above it, up to the root."""
    yield path
    while path:
        path = path.rpartition("/")[0]
        yield path


def _dataset_paths(ome: Mapping[str, Any]) -> list[str]:
    """Return the paths that an ``ome`` attribute lists, those alone that are inside its group."""
    images = ome.get("multiscales")
    images = images if isinstance(images, list) else []
    lists = [image.get("datasets") for image in images if isinstance(image, dict)]
    entries = [entry for listed in lists if isinstance(listed, list) for entry in listed]
    paths: list[Any] = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    return [path for path in paths if is_key(path)]


def _array(document: dict[str, Any]) -> StoredArray | None:
    try:
        return parse_array_document(json.dumps(document))
    except CTLabError:
        return None
