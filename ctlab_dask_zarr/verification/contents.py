"""What a store holds, as far as it can be read.

Opening a store either works or fails. A verification goes on: a broken document must not hide what
else is wrong. So the store is walked once, each document is read by itself and through no link, and
everything else builds on the documents that could be read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from ctlab_dask_zarr.errors import CTLabError, MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.json_values import parse_json_object
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.ome import parse_ome_attributes, refuse_unscaled
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.zarr_array import StoredArray, key_in, parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.store.files import walk
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, contents_of, ome_of
from ctlab_dask_zarr.store.store import Store, is_temporary


@dataclass(frozen=True)
class Contents:
    """Everything in a store.

    Attributes
    ----------
    folders
        (folder, folders in it, everything else in it), from one walk.
    texts
        The documents that describe an array or a group, by key.
    broken
        What is wrong with the other documents, by key.
    problems
        What else is wrong, as it is found: what dead processes left, labels that are not listed,
        what is not part of the dataset.
    """

    store: Store
    folders: list[tuple[str, list[str], list[str]]]
    texts: dict[str, str] = field(default_factory=dict)
    broken: dict[str, Problem] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def document(self, key: str) -> dict[str, Any]:
        """Return a document; empty where it is broken or missing."""
        document: dict[str, Any] = json.loads(self.texts.get(key, "{}"))
        return document


@dataclass(frozen=True)
class Image:
    """The image or array that a store is, or labels in it.

    Attributes
    ----------
    prefix
        What its keys begin with in the store: ``''``, or ``'labels/phases/'``.
    document
        Of its root; empty where that is broken.
    metadata
        With only the levels whose documents can be read. Where the root does not say what the
        levels are, all arrays below it are taken for levels.
    problems
        What is missing or broken; keys are relative to the image.
    has_finest
        Whether the first array of `metadata` is known to be the finest level.
    """

    prefix: str
    document: dict[str, Any]
    metadata: StoreMetadata
    problems: tuple[Problem, ...]
    has_finest: bool

    def placed(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return problems whose keys are relative to the image, with keys of the store."""
        return [
            Problem(f"{self.prefix}{p.location}", p.kind, f"{self.prefix}{p.message}")
            for p in problems
        ]

    @property
    def arrays(self) -> list[tuple[str, StoredArray]]:
        """Path and metadata of each level."""
        return [(path, parse_array_document(text)) for path, text in self.metadata.arrays]


def document_key(path: str) -> str:
    """Return the key of the document of a node; '' is the root."""
    return key_in(path, ROOT_DOCUMENT)


def read_contents(store: Store) -> Contents:
    """Walk a store once, and read every document in it; links are not followed."""
    found = Contents(store, list(walk(store.files, store.root)))
    for folder, folders, names in found.folders:
        path = "" if folder == store.root else os.path.relpath(folder, store.root)
        prefix = f"{path}/".replace(os.sep, "/").lstrip("/")
        for name in filter(is_temporary, names):
            message = f"{prefix}{name} was left by a process that died: remove it"
            found.problems.append(Problem(f"{prefix}{name}", "leftover", message))
        if ROOT_DOCUMENT in (*folders, *names):
            key = f"{prefix}{ROOT_DOCUMENT}"
            try:
                found.texts[key] = _read_document(store, key)
            except (CTLabError, OSError) as error:
                found.broken[key] = Problem(key, "unreadable", f"{key} cannot be read: {error}")
    return found


def _read_document(store: Store, key: str) -> str:
    if store.files.kind(store.path(key)) == "link":
        raise UnsupportedFormatError(
            "it is a link, which is not followed: put the document itself there"
        )
    try:
        text = store.get(key).decode()
    except ValueError as error:
        raise MetadataError(f"it is not text: {error}") from error
    document = parse_json_object(text, "it")
    if document.get("zarr_format") != 3:
        raise UnsupportedFormatError(
            f"its zarr_format is {document.get('zarr_format')!r}; only 3 is read here"
        )
    if not isinstance(document.get("attributes") or {}, dict):
        raise MetadataError("its attributes are not an object")
    kind = document.get("node_type")
    if kind == "array":
        parse_array_document(text)
    elif kind == "group":
        try:
            zarr.open_group(in_memory({ROOT_DOCUMENT: text}), mode="r", zarr_format=3)
        except Exception as error:  # zarr raises a different class for each part it does not know
            raise MetadataError(f"zarr cannot open this group: {error}") from error
    else:
        raise MetadataError(f"its node_type is {kind!r}, neither 'group' nor 'array'")
    return text


def in_memory(texts: Mapping[str, str]) -> MemoryStore:
    """Return a store of documents alone, for readers that open whatever they like."""
    make = default_buffer_prototype().buffer.from_bytes
    return MemoryStore({key: make(text.encode()) for key, text in texts.items()})


def read_images(contents: Contents) -> Iterator[Image]:
    """Yield the image of a store, then its labels.

    Labels are what is listed, and every other image that says that it is labels, or whose document
    is broken.
    """
    yield _read_image(contents, "")
    listing = f"labels/{ROOT_DOCUMENT}"
    listed = ome_of(contents.document(listing)).get("labels")
    names = {str(name) for name in listed} if isinstance(listed, list) else set()
    nodes = [os.path.split(os.path.dirname(key)) for key in (*contents.texts, *contents.broken)]
    there = {name for folder, name in nodes if folder == "labels" and not name.startswith(".")}
    for name in sorted(there | names):
        place = f"labels/{name}"
        key = document_key(place)
        is_labels = "image-label" in ome_of(contents.document(key))
        if name not in names:
            if key in contents.texts and not is_labels:
                continue
            text = f"{listing} does not list {name}"
            contents.problems.append(Problem(place, "unlisted", text))
        elif not is_labels and key not in contents.broken:
            text = f"{place} is listed, but is not an image of labels"
            contents.problems.append(Problem(place, "missing", text))
        yield _read_image(contents, f"{place}/")


def _read_image(contents: Contents, prefix: str) -> Image:
    key = f"{prefix}{ROOT_DOCUMENT}"
    document = contents.document(key)
    attributes = document.get("attributes") or {}
    is_array = document.get("node_type") == "array"
    problems: list[Problem] = []
    ome = None
    if document.get("node_type") == "group":
        try:
            if "ome" not in attributes:
                raise UnsupportedFormatError(
                    "it is a group without OME metadata: give the path of an array or an image "
                    "inside it"
                )
            ome = parse_ome_attributes(attributes["ome"])
        except CTLabError as error:
            problems.append(Problem(ROOT_DOCUMENT, "ome", f"{ROOT_DOCUMENT}: {error}"))
    paths = [""] if is_array else _arrays_below(contents, prefix)
    if ome is not None:
        paths = [level.path for level in ome.levels]
    arrays = tuple(_read_levels(contents, prefix, paths, problems))
    readable = {path for path, _ in arrays}
    if ome is not None:
        try:
            refuse_unscaled(ome, (parse_array_document(text).shape for _, text in arrays))
        except CTLabError as error:
            problems.append(Problem(ROOT_DOCUMENT, "ome", f"{ROOT_DOCUMENT}: {error}"))
    if ome is not None:
        ome = replace(ome, levels=tuple(level for level in ome.levels if level.path in readable))
    metadata = StoreMetadata(
        path=contents.store.path(prefix.rstrip("/")) if prefix else contents.store.root,
        attributes=attributes,
        arrays=arrays,
        ome=ome,
        root_hash=hashlib.sha256(contents.texts.get(key, "").encode()).hexdigest(),
        files=contents.store.files,
    )
    has_finest = (ome is not None or is_array) and paths[0] in readable
    return Image(prefix, document, metadata, tuple(problems), has_finest)


def _arrays_below(contents: Contents, prefix: str) -> list[str]:
    """Return the paths of all arrays of an image, without those of its labels."""
    below = [key.removeprefix(prefix) for key in sorted(contents.texts) if key.startswith(prefix)]
    return [
        os.path.dirname(key)
        for key in below
        if contents.document(f"{prefix}{key}")["node_type"] == "array"
        if os.path.dirname(key) and not key.startswith("labels/")
    ]


def _read_levels(
    contents: Contents, prefix: str, paths: list[str], problems: list[Problem]
) -> Iterator[tuple[str, str]]:
    """Yield (path, document) of each level that can be read.

    Only documents that the walk has found count, so that no path leads out of the store.
    """
    for path in paths:
        key = document_key(path)
        if f"{prefix}{key}" in contents.broken:
            continue
        document = contents.document(f"{prefix}{key}")
        if document.get("node_type") == "array":
            yield path, contents.texts[f"{prefix}{key}"]
        else:
            what = "is a group, not an array" if document else "is missing"
            text = f"{key} {what}; its image lists the array {path!r}"
            problems.append(Problem(key, "missing", text))


def stored_objects(contents: Contents, images: Sequence[Image]) -> dict[str, set[Shape]]:
    """Return the coordinates of the objects of each array, by its path in the store.

    Whatever is not part of an array is a problem, except what lies below a broken document: it may
    be a part of that array.
    """
    of_levels = {f"{i.prefix}{p.location}" for i in images for p in i.problems if p.kind != "ome"}
    broken = {os.path.dirname(key) for key in (*contents.broken, *of_levels)}
    arrays: dict[str, StoredArray | None] = dict.fromkeys(broken)
    arrays |= {i.prefix.rstrip("/"): None for i in images if i.document}
    arrays |= {f"{i.prefix}{path}": array for i in images for path, array in i.arrays}
    found: dict[str, set[Shape]] = {path: set() for path, array in arrays.items() if array}
    for key, home, coords in contents_of(contents.store.root, contents.folders, arrays):
        array = None if home is None else arrays[home]
        if home is not None and array is not None and coords is not None:
            if array.is_inside(coords):
                found[home].add(coords)
                continue
            message = f"{key} lies outside the array: remove it"
        elif home in broken:
            continue
        elif contents.store.files.kind(contents.store.path(key)) == "link":
            message = f"{key} is a link, which is not followed: put what it leads to there"
        else:
            message = f"{key} is not part of the dataset: move it elsewhere"
        contents.problems.append(Problem(key, "stray", message))
    return found
