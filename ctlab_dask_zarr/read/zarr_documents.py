"""The documents of a Zarr store, of version 3 or 2, as they are read; nothing else of it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ctlab_dask_zarr.errors import (
    CTLabError,
    DatasetNotFoundError,
    IncompleteDatasetError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.json_values import parse_json_object
from ctlab_dask_zarr.formats.ome_versions import OLD_VERSIONS, with_ome
from ctlab_dask_zarr.formats.zarr_array import is_key, key_in
from ctlab_dask_zarr.formats.zarr_v2 import V2_ARRAY, V2_ATTRIBUTES, V2_GROUP
from ctlab_dask_zarr.read.zarr_source import Version, read_version
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import Files
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.text import command_text


class RootDocument(NamedTuple):
    """What the root of a store says; `text` is what tells it from another."""

    text: str
    #: The OME metadata stand below ``ome``, wherever their version has them.
    attributes: dict[str, Any]
    #: The document of an array, None for a group.
    array: str | None
    zarr_format: int


def read_root(store: Store, versions: dict[str, Version]) -> RootDocument:
    """Read the root of a store; versions of documents are noted by the path of their node."""
    root = store.root
    try:
        text = _read(store, "", ROOT_DOCUMENT, versions)
    except (FileNotFoundError, NotADirectoryError) as error:
        found = _read_v2_root(store, versions)
        if found is None:
            raise _no_store(root, store.files, error) from None
        return found
    document = parse_json_object(text, os.path.join(root, ROOT_DOCUMENT))
    attributes = document.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise MetadataError(f"the attributes of {root} are not an object")
    if document.get("zarr_format") != 3:
        raise UnsupportedFormatError(
            f"{root} is of Zarr format {document.get('zarr_format')!r}; 3 and 2 are read here"
        )
    if document.get("node_type") == "array":
        return RootDocument(text, attributes, text, 3)
    return RootDocument(text, with_ome(attributes), None, 3)


def _read_v2_root(store: Store, versions: dict[str, Version]) -> RootDocument | None:
    """Return the root of a store of Zarr v2; None where there is none."""
    texts = {}
    for name in (V2_ARRAY, V2_GROUP, V2_ATTRIBUTES):
        try:
            texts[name] = _read(store, "", name, versions if name == V2_ARRAY else {})
        except (FileNotFoundError, NotADirectoryError):
            continue
    if not texts:
        return None
    place = os.path.join(store.root, V2_ATTRIBUTES)
    attributes = parse_json_object(texts[V2_ATTRIBUTES], place) if V2_ATTRIBUTES in texts else {}
    array = texts.get(V2_ARRAY)
    text = "\n".join(texts.values())
    return RootDocument(text, with_ome(attributes) if array is None else attributes, array, 2)


def read_array_document(
    store: Store, node: str, zarr_format: int, versions: dict[str, Version]
) -> str:
    """Return the document of an array that the root lists, or raise `IncompleteDatasetError`."""
    name = V2_ARRAY if zarr_format == 2 else ROOT_DOCUMENT
    try:
        return _read(store, node, name, versions)
    except (FileNotFoundError, NotADirectoryError):
        raise IncompleteDatasetError(
            f"{store.root} lists the array {node!r}, but {key_in(node, name)} is missing: the "
            "dataset is incomplete"
        ) from None


def refuse_old(path: str, zarr_format: int, ome_version: str | None = None) -> None:
    """Raise `UnsupportedFormatError` for a store that is read here, and not changed or copied."""
    if zarr_format == 3 and (ome_version is None or ome_version not in OLD_VERSIONS):
        return
    said = f"OME-Zarr {ome_version} in Zarr v{zarr_format}" if ome_version else "Zarr v2"
    raise UnsupportedFormatError(
        f"{path} is {said}, which is only read here: "
        f"{command_text('convert', path, 'NEW.zarr')} makes OME-Zarr 0.5 of it, with which "
        "this works"
    )


def read_label_names(store: Store, *, strict: bool = False) -> list[str]:
    """Return the labels of an image: see `store.hierarchy.label_names`."""
    if store.files.kind(store.path(ROOT_DOCUMENT)) is not None:
        return label_names(store.files, store.root, strict=strict)
    key = key_in("labels", V2_ATTRIBUTES)
    try:
        listed = parse_json_object(store.get(key).decode(), store.path(key)).get("labels") or []
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [name for name in listed if is_key(name)] if isinstance(listed, list) else []
    if strict and names != listed:
        raise MetadataError(
            f"{store.path(key)} does not list labels as OME-Zarr 0.4 says: it lists {listed!r}, "
            "not the names of groups below it"
        )
    return names


def _read(store: Store, node: str, name: str, versions: dict[str, Version]) -> str:
    """Return a document of a node; its version is noted first, so that it is never too new."""
    key = key_in(node, name)
    try:
        version = read_version(store.files, store.path(key))
        if version is not None:
            versions[node] = version
        return store.get(key).decode()
    except CTLabError:
        raise
    except ValueError as error:  # no UTF-8 inside, or a NUL or half a character in the path
        raise MetadataError(f"{key!r} in {store.root} cannot be read as text: {error}") from error


def _no_store(root: str, files: Files, error: OSError) -> Exception:
    """Return the error for a place without a root document: it says what is there instead."""
    if isinstance(error, NotADirectoryError):
        return UnsupportedFormatError(f"{root} is a file; a Zarr store is a folder")
    destination = Destination(root, files)
    is_staged = files.kind(destination.staging) == "folder"
    if files.kind(root) == "folder" and not (is_url(root) and is_staged):
        return IncompleteDatasetError(
            f"{root} has no {ROOT_DOCUMENT}: it is not a Zarr store, or one whose writing was not "
            "finished"
        )
    aside = list(destination.all_replaced().values())
    if aside:
        return DatasetNotFoundError(
            f"{root} was being replaced when its commit died between two renames; the old dataset "
            f"is {aside[0]}. {command_text('commit', root)} puts the new one in its place, or "
            "the old one back where the new one is not complete"
        )
    if is_staged:
        return DatasetNotFoundError(
            f"{root} does not exist yet: a write to it is under way or was interrupted (its "
            f"staging folder is {destination.staging})"
        )
    return DatasetNotFoundError(f"{root} does not exist")
