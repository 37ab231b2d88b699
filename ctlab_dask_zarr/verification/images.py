"""The images of a store, as far as its documents can be read.

Opening a store either works or fails. Here a document that is broken must not hide what else is
wrong: each is read by itself, once and through no link, and what follows is built on those that
could be read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from ctlab_dask_zarr.errors import CTLabError, MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.json_values import parse_json_object
from ctlab_dask_zarr.formats.ome import OMEImage, parse_ome_attributes
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.store.files import walk
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, ome_of
from ctlab_dask_zarr.store.store import Store, is_temporary

__all__ = ["Documents", "Image", "document_key", "read_documents", "read_images"]

_LABELS = "labels/"


@dataclass(frozen=True)
class Documents:
    """Every ``zarr.json`` of a store.

    Attributes
    ----------
    store
        The store.
    texts
        Those that describe an array or a group, by key.
    problems
        What is wrong with the others, by key, and with what dead processes left.
    """

    store: Store
    texts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)

    def parsed(self, key: str) -> dict[str, Any]:
        """Return a document; empty where it is broken, or there is none."""
        document: dict[str, Any] = json.loads(self.texts.get(key, "{}"))
        return document

    def in_memory(self) -> MemoryStore:
        """Return a store of the documents alone, for readers that look at what they like."""
        return _memory_store(self.texts)

    def arrays_below(self, prefix: str) -> list[str]:
        """Return the paths, relative to `prefix`, of all arrays of an image there."""
        ending = f"/{ROOT_DOCUMENT}"
        paths = [
            key.removeprefix(prefix).removesuffix(ending)
            for key in sorted(self.texts)
            if key.startswith(prefix)
            and key.endswith(ending)
            and self.parsed(key)["node_type"] == "array"
        ]
        return [path for path in paths if not path.startswith(_LABELS)]


@dataclass(frozen=True)
class Image:
    """The image that a store is, or labels in it, or the array that it is.

    Attributes
    ----------
    prefix
        Of its keys in the store: ``''``, or ``'labels/phases/'``.
    document
        Of its root; empty where that is broken.
    metadata
        With those levels alone whose documents can be read. Where the root does not say what the
        levels are, all arrays that are there are taken for levels.
    problems
        What is missing or broken; keys are relative to the image, as everywhere else here.
    has_finest
        Whether the first of `metadata.arrays` is known to be the finest level.
    """

    prefix: str
    document: dict[str, Any]
    metadata: StoreMetadata
    problems: tuple[Problem, ...]
    has_finest: bool

    @property
    def arrays(self) -> list[tuple[str, StoredArray]]:
        """Path and metadata of each level."""
        return [(path, parse_array_document(text)) for path, text in self.metadata.arrays]


def document_key(path: str) -> str:
    """Return the key of the document of a node; '' is the root."""
    return f"{path}/{ROOT_DOCUMENT}" if path else ROOT_DOCUMENT


def read_documents(store: Store) -> Documents:
    """Read every document of a store; links are not followed."""
    found = Documents(store)
    for folder, folders, names in walk(store.files, store.root):
        for name in names:
            if is_temporary(name):
                key = _key(store, folder, name)
                message = f"{key} was left by a process that died: remove it"
                found.problems[key] = Problem(key, "leftover", message)
        if ROOT_DOCUMENT in (*folders, *names):
            key = _key(store, folder, ROOT_DOCUMENT)
            try:
                found.texts[key] = _read_document(store, key)
            except (CTLabError, OSError) as error:
                found.problems[key] = Problem(key, "unreadable", f"{key} cannot be read: {error}")
    return found


def _key(store: Store, folder: str, name: str) -> str:
    return os.path.relpath(os.path.join(folder, name), store.root).replace(os.sep, "/")


def _read_document(store: Store, key: str) -> str:
    if store.files.kind(store.path(key)) == "link":
        raise UnsupportedFormatError(
            "it is a link, which is not followed: put the document itself there"
        )
    content = store.get(key)
    try:
        text = content.decode()
    except ValueError as error:
        raise MetadataError(f"it is no JSON: {error}") from error
    document = parse_json_object(text, "it")
    if document.get("zarr_format") != 3:
        raise UnsupportedFormatError(
            f"its zarr_format is {document.get('zarr_format')!r}; only 3 is read here"
        )
    if not isinstance(document.get("attributes") or {}, dict):
        raise MetadataError("its attributes are no object")
    if document.get("node_type") == "array":
        parse_array_document(text)
    elif document.get("node_type") == "group":
        _refuse_what_zarr_refuses(text)
    else:
        raise MetadataError(
            f"its node_type is {document.get('node_type')!r}, neither 'group' nor 'array'"
        )
    return text


def _refuse_what_zarr_refuses(text: str) -> None:
    try:
        zarr.open_group(_memory_store({ROOT_DOCUMENT: text}), mode="r", zarr_format=3)
    except Exception as error:  # zarr raises a different class for each part it does not know
        raise MetadataError(f"zarr cannot open this group: {error}") from error


def _memory_store(texts: dict[str, str]) -> MemoryStore:
    make = default_buffer_prototype().buffer.from_bytes
    return MemoryStore({key: make(text.encode()) for key, text in texts.items()})


def read_images(documents: Documents, problems: list[Problem]) -> Iterator[Image]:
    """Yield the image of a store, then its labels; add to `problems` what the list of them lacks.

    Labels are what is listed, and beyond that every image that says of itself that it is labels,
    or cannot say what it is.
    """
    yield _read_image(documents, "")
    listed = _listed_labels(documents)
    for name in sorted({*_label_folders(documents), *listed}):
        place = f"{_LABELS}{name}"
        key = document_key(place)
        is_labels = "image-label" in ome_of(documents.parsed(key))
        if name not in listed:
            if key in documents.texts and not is_labels:
                continue
            text = f"{_LABELS}{ROOT_DOCUMENT} does not list {name}"
            problems.append(Problem(place, "unlisted", text))
        elif not is_labels and key not in documents.problems:
            text = f"{place} is listed, but no image of labels"
            problems.append(Problem(place, "missing", text))
        yield _read_image(documents, f"{place}/")


def _listed_labels(documents: Documents) -> list[str]:
    listed = ome_of(documents.parsed(f"{_LABELS}{ROOT_DOCUMENT}")).get("labels")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def _label_folders(documents: Documents) -> Iterator[str]:
    for key in (*documents.texts, *documents.problems):
        folder, _, name = key.rpartition("/")
        below = folder.removeprefix(_LABELS)
        is_child = folder.startswith(_LABELS) and "/" not in below and not below.startswith(".")
        if is_child and name == ROOT_DOCUMENT:
            yield below


def _read_image(documents: Documents, prefix: str) -> Image:
    key = f"{prefix}{ROOT_DOCUMENT}"
    document = documents.parsed(key)
    problems: list[Problem] = []
    ome = None
    is_array = document.get("node_type") == "array"
    if document.get("node_type") == "group":
        try:
            ome = _parse_ome(document)
        except CTLabError as error:
            problems.append(Problem(ROOT_DOCUMENT, "ome", f"{ROOT_DOCUMENT}: {error}"))
    if ome is not None:
        paths = [level.path for level in ome.levels]
    else:
        paths = [""] if is_array else documents.arrays_below(prefix)
    arrays = tuple(_read_levels(documents, prefix, paths, problems))
    readable = {path for path, _ in arrays}
    metadata = StoreMetadata(
        path=documents.store.path(prefix.rstrip("/")) if prefix else documents.store.root,
        attributes=document.get("attributes") or {},
        arrays=arrays,
        ome=None if ome is None else _with_levels(ome, readable),
        root_hash=hashlib.sha256(documents.texts.get(key, "").encode()).hexdigest(),
        files=documents.store.files,
    )
    has_finest = (ome is not None or is_array) and paths[0] in readable
    return Image(prefix, document, metadata, tuple(problems), has_finest)


def _parse_ome(document: dict[str, Any]) -> OMEImage:
    attributes = document.get("attributes") or {}
    if "ome" not in attributes:
        raise UnsupportedFormatError(
            "it is a group without OME metadata: give the path of an array or an image inside it"
        )
    return parse_ome_attributes(attributes["ome"])


def _with_levels(ome: OMEImage, paths: set[str]) -> OMEImage:
    return replace(ome, levels=tuple(level for level in ome.levels if level.path in paths))


def _read_levels(
    documents: Documents, prefix: str, paths: list[str], problems: list[Problem]
) -> Iterator[tuple[str, str]]:
    """Yield (path, document) of each level that can be read.

    Only documents that were found by listing the store count, so that no path leads out of it.
    """
    for path in paths:
        key = document_key(path)
        if f"{prefix}{key}" in documents.problems:
            continue
        document = documents.parsed(f"{prefix}{key}")
        if document.get("node_type") == "array":
            yield path, documents.texts[f"{prefix}{key}"]
        else:
            what = "is a group, not an array" if document else "is missing"
            text = f"{key} {what}: its image lists the array {path!r}"
            problems.append(Problem(key, "missing", text))
