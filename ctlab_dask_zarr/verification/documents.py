"""What a store's documents say, against the rules and against each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.errors import CTLabError, UnsupportedFormatError
from ctlab_dask_zarr.formats.mango import parse_mango_block
from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    document_checksum,
    level_entry,
    own_receipt,
)
from ctlab_dask_zarr.formats.units import are_same_sizes, common_unit
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.plan import group_document
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.store.documents import CONSOLIDATED
from ctlab_dask_zarr.store.files import DOCUMENT_NBYTES, LocalFiles
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, foreign_files
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.images import Documents, Image, document_key

#: Objects that are missing, by name; how many more there are is told in one line.
_MAX_MISSING = 1000

#: Where the names of labels stand.
LABELS_LISTING = f"labels/{ROOT_DOCUMENT}"

__all__ = [
    "LABELS_LISTING",
    "consolidated_problems",
    "document_problems",
    "has_unchecked_listing",
    "objects_to_check",
    "stored_objects",
    "stray_problems",
]


def document_problems(documents: Documents, image: Image) -> Iterator[Problem]:
    """Yield what is wrong in the root document and those of the arrays."""
    yield from image.problems
    yield from _rule_problems(documents, image)
    yield from _seal_problems(image)
    yield from _mango_problems(image)
    for path, array in image.arrays:
        yield from _array_problems(image.metadata, path, array)


def has_unchecked_listing(documents: Documents) -> bool:
    """Whether the document that lists labels holds what nothing says to be right.

    It has no checksum. Its list is compared with the labels that are there, and whatever else we
    write into it is always the same.
    """
    if LABELS_LISTING not in documents.texts:
        return False
    found = documents.parsed(LABELS_LISTING)
    ome = (found.get("attributes") or {}).get("ome") or {}
    ours = {"version": OMEZarrVersion.v05.value, "labels": ome.get("labels")}
    return bool(found != json.loads(group_document({"ome": ours})))


def _rule_problems(documents: Documents, image: Image) -> Iterator[Problem]:
    """Hold an image against OME-Zarr 0.5, as ome-zarr-models has its rules."""
    if image.document.get("node_type") != "group" or "ome" not in image.metadata.attributes:
        return
    import zarr
    from ome_zarr_models.v05.image import Image as ImageModel
    from pydantic import ValidationError

    try:
        # In memory: in the store itself it would follow links, and wait for pipes.
        store = documents.in_memory()
        ImageModel.from_zarr(zarr.open_group(store, path=image.prefix.rstrip("/"), mode="r"))
    except ValidationError as error:
        for found in error.errors():
            place = ".".join(str(part) for part in found["loc"]) or "ome"
            message = f"{ROOT_DOCUMENT}: {place} breaks OME-Zarr 0.5: {found['msg']}"
            yield Problem(ROOT_DOCUMENT, "ome", message)
    except Exception as error:  # it reads arrays by zarr, which raises what it likes
        yield Problem(ROOT_DOCUMENT, "ome", f"{ROOT_DOCUMENT} breaks OME-Zarr 0.5: {error}")


def _seal_problems(image: Image) -> Iterator[Problem]:
    receipt = own_receipt(image.metadata.attributes)
    if receipt is None or "document_crc32c" not in receipt:
        return
    if receipt["document_crc32c"] != document_checksum(image.document):
        yield Problem(
            ROOT_DOCUMENT,
            "checksum",
            f"{ROOT_DOCUMENT} is not as it was committed: it is damaged, or was edited by another "
            "program. Compare it with the source's metadata",
        )


def _mango_problems(image: Image) -> Iterator[Problem]:
    metadata = image.metadata
    block = metadata.attributes.get("mango")
    if block is None or not image.has_finest:
        return
    _, array = image.arrays[0]
    names = metadata.ome.axes if metadata.ome else ("z", "y", "x")[-len(array.shape) :]
    try:
        mango = parse_mango_block(block, names)
    except CTLabError as error:
        yield Problem(ROOT_DOCUMENT, "mango", f"{ROOT_DOCUMENT}: {error}")
        return
    if mango.datatype is not None and array.is_direct:
        wanted = np.dtype(mango.datatype.dtype)
        if wanted != array.dtype.newbyteorder("="):
            yield Problem(
                ROOT_DOCUMENT,
                "mango",
                f"{ROOT_DOCUMENT}: the data type {mango.datatype} is {wanted}, the array "
                f"{array.dtype}",
            )
    unknown = common_unit([block.get("voxel_unit")]).unknown
    if unknown:
        message = f"{ROOT_DOCUMENT}: the mango block has the unit {unknown[0]}, which is not known"
        yield Problem(ROOT_DOCUMENT, "mango", message)
    # The reference implementation writes one list in two orders: only our own have to agree.
    if metadata.ome is None or mango.voxel_size is None or own_receipt(metadata.attributes) is None:
        return
    scale = metadata.ome.levels[0].voxel_size
    if not are_same_sizes(scale, mango.voxel_size):
        yield Problem(
            ROOT_DOCUMENT,
            "voxel-size",
            f"{ROOT_DOCUMENT}: the voxel size is {scale} in the OME metadata and "
            f"{mango.voxel_size} in the mango block",
        )


def _array_problems(metadata: StoreMetadata, path: str, array: StoredArray) -> Iterator[Problem]:
    key = document_key(path)
    if metadata.ome is not None and array.dimension_names != metadata.ome.array_axes:
        yield Problem(
            key,
            "ome",
            f"{key}: its dimensions {array.dimension_names} are not the image's axes "
            f"{metadata.ome.array_axes}",
        )
    entry = level_entry(metadata.attributes, path)
    committed = None if entry is None else entry.get("document_crc32c")
    if committed is not None and committed != google_crc32c.value(array.document.encode()):
        yield Problem(key, "checksum", f"{key} is not as it was committed: it is damaged")


@dataclass(frozen=True)
class _UnlinkedFiles(LocalFiles):
    """Files that are read where they are, and not through a link."""

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return the content of a file."""
        if self.kind(path) == "link":
            raise UnsupportedFormatError(f"{path} is a link")
        return super().read(path, limit)


def stray_problems(documents: Documents, images: Sequence[Image]) -> Iterator[Problem]:
    """Yield what lies in the store and is no part of it.

    What lies below an array whose document is broken may well be a part of it.
    """
    store = documents.store
    files = _UnlinkedFiles() if isinstance(store.files, LocalFiles) else store.files
    of_levels = {f"{i.prefix}{p.location}" for i in images for p in i.problems if p.kind != "ome"}
    broken = documents.problems.keys() | of_levels
    keys = documents.texts.keys() | broken
    arrays: dict[str, StoredArray | None] = {os.path.dirname(key): None for key in broken}
    arrays |= {f"{i.prefix}{path}": array for i in images for path, array in i.arrays}
    for name in foreign_files(files, store.root, arrays):
        if _document_of(name, keys) in broken:
            continue
        message = f"{name} is no part of the dataset: move it elsewhere"
        if files.kind(os.path.join(store.root, name)) == "link":
            message = f"{name} is a link, which is not followed: put what it leads to there"
        yield Problem(name, "stray", message)


def consolidated_problems(documents: Documents) -> Iterator[Problem]:
    """Yield the groups whose copies of the documents below them are not as these are.

    What zarr writes otherwise than others is not compared.
    """
    for key, text in documents.texts.items():
        if CONSOLIDATED not in text:
            continue
        copies = documents.parsed(key).get(CONSOLIDATED)
        copies = copies.get("metadata") if isinstance(copies, dict) else None
        if not isinstance(copies, dict):
            continue
        prefix = key.removesuffix(ROOT_DOCUMENT)
        below = {
            other.removeprefix(prefix).removesuffix(f"/{ROOT_DOCUMENT}"): other
            for other in documents.texts
            if other.startswith(prefix) and other != key
        }
        stale = copies.keys() ^ below.keys() or {
            path for path, other in below.items()
            if _told(copies[path]) != _told(documents.parsed(other))
        }  # fmt: skip
        if stale:
            message = (
                f"{key}: its copy of what {min(stale)} says ({CONSOLIDATED}) is out of date, and "
                "zarr and xarray believe it: consolidate it again, or remove it"
            )
            yield Problem(key, "consolidated", message)


def _told(document: Any) -> tuple[Any, ...]:
    """Return of a document what every program writes the same."""
    told = document if isinstance(document, dict) else {}
    return told.get("node_type"), told.get("attributes") or {}, told.get("shape")


def _document_of(name: str, keys: Set[str]) -> str | None:
    """Return the key of the document of the innermost node that something lies in."""
    folder = name
    while folder:
        folder = os.path.dirname(folder)
        if document_key(folder) in keys:
            return document_key(folder)
    return None


def objects_to_check(
    store: Store, path: str, array: StoredArray
) -> tuple[list[tuple[int, ...]], list[Problem]]:
    """Return which objects of an array to look at, and what listing has shown to be wrong.

    They are all that are there, and the first of those that are not: how many more are missing is
    one problem, so that a claim of millions does not fill the memory.
    """
    there, problems = stored_objects(store, path, array)
    n_missing = prod(array.grid_shape) - len(there)
    every = product(*map(range, array.grid_shape))
    named = islice((c for c in every if c not in there), min(n_missing, _MAX_MISSING))
    if n_missing > _MAX_MISSING:
        place = path or ROOT_DOCUMENT
        text = f"{place}: and {n_missing - _MAX_MISSING:,} more objects are missing"
        problems.append(Problem(place, "missing", text))
    return sorted([*there, *named]), problems


def stored_objects(
    store: Store, path: str, array: StoredArray
) -> tuple[set[tuple[int, ...]], list[Problem]]:
    """Return which objects of an array are there, and those that lie outside its grid."""
    prefix = f"{path}/" if path else ""
    there: set[tuple[int, ...]] = set()
    problems = []
    for key in store.list(path):
        coords = array.coords(key.removeprefix(prefix))
        if coords is None:
            continue
        if array.is_inside(coords):
            there.add(coords)
        else:
            problems.append(Problem(key, "stray", f"{key} lies outside the array: remove it"))
    return there, problems
