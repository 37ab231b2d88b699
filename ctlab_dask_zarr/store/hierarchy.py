"""What a Zarr v3 store holds: its documents, its labels, and what is foreign to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ctlab_dask_zarr.errors import CTLabError, MetadataError
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT
from ctlab_dask_zarr.formats.zarr_array import StoredArray, is_key, key_in, parse_array_document
from ctlab_dask_zarr.store.files import Files
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store, is_temporary

#: The document that makes a folder a store, a group or an array.
ROOT_DOCUMENT = "zarr.json"


def read_json_object(files: Files, path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none.

    An object store that does not answer is an error.
    """
    try:
        return json_object_or_empty(files.read(path))
    except ValueError:
        return {}
    except OSError as error:
        if is_url(path) and not isinstance(error, FileNotFoundError):
            raise
        return {}


def read_attributes(files: Files, folder: str) -> dict[str, Any]:
    """Return the attributes of the group or array in a folder; empty where there are none."""
    return _dict(read_json_object(files, os.path.join(folder, ROOT_DOCUMENT)), "attributes")


def read_ome(files: Files, folder: str) -> dict[str, Any]:
    """Return the ``ome`` attribute of the group in a folder; empty where there is none."""
    return _dict(read_attributes(files, folder), "ome")


def ome_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``ome`` attribute in the document of a group; empty where there is none."""
    return _dict(_dict(document, "attributes"), "ome")


def _dict(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = mapping.get(key)
    return found if isinstance(found, dict) else {}


def label_names(files: Files, image: str, *, strict: bool = False) -> list[str]:
    """Return the labels of an image: those that are listed, then others that say what they are.

    Names in the list that are no images are left out. With `strict` they are kept, and a list that
    is not as OME-Zarr 0.5 says is a MetadataError.
    """
    folder, document = os.path.join(image, "labels"), f"labels/{ROOT_DOCUMENT}"
    try:
        listed = ome_of(json_object_or_empty(Store(image, files).get(document))).get("labels")
    except (FileNotFoundError, NotADirectoryError):
        listed = []
    except MetadataError:
        if strict:
            raise
        listed = []
    names = [name for name in listed if is_key(name)] if isinstance(listed, list) else []
    if strict and names != listed:
        raise MetadataError(
            f"{image}/{document} does not list labels as OME-Zarr 0.5 says: it lists {listed!r}, "
            "not the names of groups below it"
        )
    if not strict:
        names = [n for n in names if "multiscales" in read_ome(files, os.path.join(folder, n))]
    if files.kind(folder) != "folder":
        return names
    return names + [
        name
        for name, kind in sorted(files.entries(folder))
        if kind == "folder" and not name.startswith(".") and name not in names
        if "image-label" in read_ome(files, os.path.join(folder, name))
    ]


def listed_arrays(files: Files, root: str) -> dict[str, StoredArray | None]:
    """Return the arrays that the document of an image lists, by their paths.

    None for one whose own document cannot be understood. An array itself is at ``''``.
    """
    document = read_json_object(files, os.path.join(root, ROOT_DOCUMENT))
    if document.get("node_type") == "array":
        return {"": _array(document)}
    return {
        path: _array(read_json_object(files, os.path.join(root, path, ROOT_DOCUMENT)))
        for path in dataset_paths(ome_of(document))
    }


def contents_of(
    root: str,
    walked: Iterable[tuple[str, list[str], list[str]]],
    arrays: Mapping[str, StoredArray | None],
) -> Iterator[tuple[str, str | None, tuple[int, ...] | None]]:
    """Yield the chunks of a store, and what is not part of a dataset: key, array, coordinates.

    What is foreign has no coordinates. Parts of a dataset are the documents on the way to its
    arrays, and below an array its receipts and whatever has the exact name of a chunk. What killed
    processes and operating systems leave is not foreign. Of a foreign node its folder is yielded,
    otherwise each file. `walked` is what `walk` yields; `arrays` are those of the dataset and of
    its labels, by their paths, and None for one that is not understood.
    """
    nodes = {"", "labels"}
    for path in arrays:
        nodes.update(_with_parents(path))
    foreign: set[str] = set()
    for folder, folders, names in walked:
        path = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/")
        above = [*_with_parents(path)]
        if not foreign.isdisjoint(above):
            continue
        home = next((p for p in above if p in arrays), None)
        if ROOT_DOCUMENT in (*folders, *names) and path not in nodes:
            foreign.add(path)
            yield path, home, None
            continue
        array = None if home is None else arrays[home]
        for name in names:
            if name == ROOT_DOCUMENT or is_temporary(name):
                continue
            key = key_in(path, name)
            below = key.removeprefix(f"{home}/") if home else key
            coords = None if array is None else array.coords(below)
            if coords is not None or array is None or below != RECEIPTS_OBJECT:
                yield key, home, coords


def _with_parents(path: str) -> Iterator[str]:
    """Yield a path in a store and those above it, up to the root."""
    yield path
    while path:
        path = path.rpartition("/")[0]
        yield path


def dataset_paths(ome: Mapping[str, Any]) -> list[str]:
    """Return the paths that an ``ome`` attribute lists, except those that lead out of it."""
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
