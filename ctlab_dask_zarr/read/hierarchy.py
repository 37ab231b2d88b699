"""What a Zarr v3 store may hold, and what in it is a stranger."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.runtime.files import Files, walk
from ctlab_dask_zarr.runtime.storage import TEMPORARY_SUFFIX, is_url

__all__ = ["ROOT_DOCUMENT", "label_names", "read_json_object", "read_ome", "strangers"]

#: The document that makes a folder a store, a group or an array.
ROOT_DOCUMENT = "zarr.json"


def read_json_object(files: Files, path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none.

    An object store that does not answer is no absence.
    """
    try:
        document = json.loads(files.read(path))
    except (ValueError, RecursionError):
        return {}
    except OSError as error:
        if is_url(path) and not isinstance(error, FileNotFoundError):
            raise
        return {}
    return document if isinstance(document, dict) else {}


def strangers(files: Files, root: str) -> Iterator[str]:
    """Yield what a store holds, below its root, that is no part of a Zarr hierarchy.

    A part is a ``zarr.json``, and below an array its receipts and whatever has the exact name of
    a chunk that its document describes. What killed attempts left counts as a part: it is
    nobody's data.
    """
    arrays: dict[str, re.Pattern[str]] = {}
    for folder, _, names in walk(files, root):
        if ROOT_DOCUMENT in names:
            document = read_json_object(files, os.path.join(folder, ROOT_DOCUMENT))
            array = _object_names(document)
            if array is not None:
                arrays[folder] = array
        home = next((f for f in _with_parents(folder, root) if f in arrays), None)
        for name in names:
            path = os.path.join(folder, name)
            if name == ROOT_DOCUMENT or name.endswith(TEMPORARY_SUFFIX):
                continue
            key = os.path.relpath(path, home).replace(os.sep, "/") if home else ""
            if home is None or not arrays[home].fullmatch(key):
                yield os.path.relpath(path, root)


def label_names(files: Files, folder: str) -> Iterator[str]:
    """Yield, sorted, what in a group ``labels`` is an image of labels."""
    if files.kind(folder) != "folder":
        return
    for name, kind in sorted(files.entries(folder)):
        is_group = kind == "folder" and not name.startswith(".")
        if is_group and "image-label" in read_ome(files, os.path.join(folder, name)):
            yield name


def read_ome(files: Files, folder: str) -> dict[str, Any]:
    """Return the ``ome`` attribute of the group in a folder; empty where there is none."""
    attributes = read_json_object(files, os.path.join(folder, ROOT_DOCUMENT)).get("attributes")
    ome = attributes.get("ome") if isinstance(attributes, dict) else None
    return ome if isinstance(ome, dict) else {}


def _with_parents(folder: str, root: str) -> Iterator[str]:
    """Yield a folder and those above it, up to the root."""
    yield folder
    while folder != root:
        folder = os.path.dirname(folder)
        yield folder


def _object_names(document: dict[str, Any]) -> re.Pattern[str] | None:
    """Return what the keys of an array's objects look like; None for what is no array."""
    if document.get("node_type") != "array":
        return None
    try:
        array = parse_array_document(json.dumps(document))
    except CTLabError:
        return re.compile(r"(?!)")
    number = r"(0|[1-9]\d*)"
    numbers = [number] * len(array.shape)
    parts = numbers if array.key_encoding == "v2" else ["c", *numbers]
    chunk = re.escape(array.separator).join(parts)
    return re.compile(f"{chunk}|{re.escape(RECEIPTS_OBJECT)}")
