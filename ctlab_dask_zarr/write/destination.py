"""The destination of a write: what is there, and whether it may be replaced.

On a file system a write happens in a hidden sibling of the destination, ``.<name>.staging``::

    .scan.zarr.staging/plan.json     whose write this is, and of what
    .scan.zarr.staging/store-1f0c/   the dataset to be: shards under their final keys
    .scan.zarr.replaced              the old dataset, for the moment between two renames
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from typing import Any

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.runtime.storage import TEMPORARY_SUFFIX

__all__ = [
    "RECEIPT_ATTRIBUTE",
    "ROOT_DOCUMENT",
    "STAGED_PLAN",
    "committed_run_id",
    "destination_problem",
    "discard_committed_staging",
    "finish_interrupted_replacement",
    "read_staged_plan",
    "replaced_path",
    "staged_store_path",
    "staging_path",
]

#: Attribute of the root document in which this package says what it wrote.
RECEIPT_ATTRIBUTE = "ctlab_dask_zarr"
#: The document whose being there makes a store.
ROOT_DOCUMENT = "zarr.json"
#: In the staging folder: whose write it is, and of what.
STAGED_PLAN = "plan.json"
_STORE_PREFIX = "store-"


def staging_path(destination: str) -> str:
    """Return the staging folder of a destination: a hidden sibling, on the same file system."""
    folder, name = os.path.split(destination)
    return os.path.join(folder, f".{name}.staging")


def replaced_path(destination: str) -> str:
    """Return where the old dataset is kept between the two renames of a replacement."""
    folder, name = os.path.split(destination)
    return os.path.join(folder, f".{name}.replaced")


def staged_store_path(destination: str, fingerprint: str) -> str:
    """Return where the dataset of this fingerprint is put together.

    Named by its fingerprint: a task of an earlier write with other settings, which still runs
    somewhere, must not find a folder to put its shards into.
    """
    return os.path.join(staging_path(destination), f"{_STORE_PREFIX}{fingerprint[:16]}")


def _complete_staged_store(destination: str) -> str | None:
    """Return the staged store that has its root document, and so all of its shards."""
    staging = staging_path(destination)
    names = os.listdir(staging) if os.path.isdir(staging) else []
    stores = [os.path.join(staging, name) for name in names if name.startswith(_STORE_PREFIX)]
    complete = [path for path in stores if os.path.exists(os.path.join(path, ROOT_DOCUMENT))]
    return complete[0] if complete else None


def read_staged_plan(destination: str) -> dict[str, Any]:
    """Return what a staging folder says about its write; empty where it says nothing."""
    return _read_object(os.path.join(staging_path(destination), STAGED_PLAN))


def discard_committed_staging(destination: str) -> None:
    """Remove the staging folder of the write that is committed at `destination`.

    Never that of another write: a commit task that is repeated, or is slow, may find that the
    next write has staged meanwhile.
    """
    run_id = committed_run_id(destination)
    if run_id is not None and read_staged_plan(destination).get("run_id") == run_id:
        shutil.rmtree(staging_path(destination), ignore_errors=True)


def committed_run_id(destination: str) -> str | None:
    """Return the id of the run that wrote the dataset at `destination`, if this package did."""
    document = _root_document(destination)
    receipt = (document.get("attributes") or {}).get(RECEIPT_ATTRIBUTE)
    run_id = receipt.get("run_id") if isinstance(receipt, dict) else None
    return run_id if isinstance(run_id, str) else None


def _root_document(destination: str) -> dict[str, Any]:
    return _read_object(os.path.join(destination, ROOT_DOCUMENT))


def _read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def destination_problem(destination: str, *, overwrite: bool) -> str | None:
    """Return why nothing may be committed at `destination`, or None.

    Only a Zarr v3 store with the marks of a volume is ever replaced, and only if it holds nothing
    else: an unrelated file in it would be lost.
    """
    if not os.path.lexists(destination):
        return None
    if not overwrite:
        return (
            f"{destination} exists: choose another name, or replace it with overwrite=True "
            "(--overwrite)"
        )
    refusal = f"{destination} exists and is not replaced:"
    if os.path.islink(destination):
        return f"{refusal} it is a symbolic link, give the path that it points to"
    if not os.path.isdir(destination):
        return f"{refusal} it is no Zarr store but a file"
    attributes = _root_document(destination).get("attributes")
    if not isinstance(attributes, dict) or not {"ome", "mango"}.intersection(attributes):
        return f"{refusal} it is no OME-Zarr or mango store of Zarr v3"
    stranger = next(iter(_strangers(destination)), None)
    if stranger is not None:
        return f"{refusal} it holds {stranger!r}, which is no part of a Zarr store"
    return None


def _strangers(root: str) -> Iterable[str]:
    """Yield the files of a store, below its root, that are no part of a Zarr hierarchy.

    A part is a ``zarr.json``, and below an array whatever has the exact name of a chunk that its
    document describes. What killed attempts left counts as a part: it is nobody's data.
    """
    arrays: dict[str, re.Pattern[str] | None] = {}
    for folder, folders, names in os.walk(root):
        array = _chunk_names(_read_object(os.path.join(folder, ROOT_DOCUMENT)))
        if array is not None:
            arrays[folder] = array
        home = next((f for f in _with_parents(folder, root) if f in arrays), None)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*names, *links]:
            path = os.path.join(folder, name)
            if name == ROOT_DOCUMENT or name.endswith(TEMPORARY_SUFFIX):
                continue
            pattern = arrays[home] if home else None
            key = os.path.relpath(path, home).replace(os.sep, "/") if home else ""
            if pattern is None or not pattern.fullmatch(key):
                yield os.path.relpath(path, root)


def _with_parents(folder: str, root: str) -> Iterable[str]:
    """Yield a folder and those above it, up to the root."""
    yield folder
    while folder != root:
        folder = os.path.dirname(folder)
        yield folder


def _chunk_names(document: dict[str, Any]) -> re.Pattern[str] | None:
    """Return what the keys of an array's chunks look like; None for what is no array."""
    if document.get("node_type") != "array":
        return None
    try:
        array = parse_array_document(json.dumps(document))
    except CTLabError:
        return re.compile(r"(?!)")
    number = r"(0|[1-9]\d*)"
    numbers = [number] * len(array.shape)
    parts = numbers if array.key_encoding == "v2" else ["c", *numbers]
    return re.compile(re.escape(array.separator).join(parts))


def finish_interrupted_replacement(destination: str) -> None:
    """Repair what a commit left that died between its renames.

    The old dataset is aside and the new one complete in staging: the new one takes its place.
    If it is already there, the old one is only left to be removed.
    """
    replaced = replaced_path(destination)
    if not os.path.lexists(replaced):
        return
    if not os.path.lexists(destination):
        store = _complete_staged_store(destination)
        os.rename(store or replaced, destination)
        if store is None:
            return
    shutil.rmtree(replaced, ignore_errors=True)
    discard_committed_staging(destination)
