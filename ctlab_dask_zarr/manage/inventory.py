"""What a committed store holds: its objects, and the checksums that the commit kept of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ctlab_dask_zarr.errors import (
    CTLabError,
    IncompleteDatasetError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.receipts import ABSENT, RECEIPTS_OBJECT, object_key, own_receipt
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.read.receipts import array_receipts, seal_of
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names


@dataclass(frozen=True)
class Inventory:
    """The objects of a store by their keys, without its root document.

    `crc32c` has the checksums that the commit kept; `arrays` are the documents of the arrays of the
    image and of its labels, by their paths.
    """

    nbytes: dict[str, int]
    crc32c: dict[str, int]
    arrays: dict[str, str]


def take_inventory(metadata: StoreMetadata) -> Inventory:
    """Return what a store holds; raise if an object that was committed is missing.

    Plain HTTP cannot list. There the documents of this package say which objects there are.
    """
    if metadata.path.startswith("http"):
        return _inventory_from_documents(metadata)
    nbytes = {
        key: size for key, (size, _) in metadata.store.stats().items() if key != ROOT_DOCUMENT
    }
    shards = _shards(metadata)
    arrays: dict[str, str] = {}
    # Labels that cannot be parsed are copied anyway.
    with suppress(CTLabError):
        for prefix, image in _images(metadata):
            arrays |= {f"{prefix}{path}": text for path, text in image.arrays}
            if prefix:
                shards |= {f"{prefix}{key}": facts for key, facts in _shards(image).items()}
    missing = min(shards.keys() - nbytes.keys(), default=None)
    if missing is not None:
        raise IncompleteDatasetError(f"{metadata.path} lacks {missing}: it is not copied")
    return Inventory(nbytes, {key: crc32c for key, (_, crc32c) in shards.items()}, arrays)


def _inventory_from_documents(metadata: StoreMetadata) -> Inventory:
    """Return what a store and its labels hold according to their documents."""
    found: dict[str, tuple[int, int]] = {}
    documents: set[str] = set()
    arrays: dict[str, str] = {}
    for prefix, image in _images(metadata):
        shards = _shards(image)
        for path, text in image.arrays:
            if seal_of(image.attributes, path) is None:
                raise UnsupportedFormatError(
                    f"{image.path} was neither written nor sealed by this package: its documents "
                    "do not say which objects it has, and plain HTTP cannot list them. Copy it by "
                    "the URL of its object store (s3://), or copy its voxels by `ctlab-zarr "
                    f"convert {image.path} DESTINATION`"
                )
            arrays[f"{prefix}{path}"] = text
            below = f"{prefix}{path}/".lstrip("/")
            documents |= {f"{below}{ROOT_DOCUMENT}", f"{below}{RECEIPTS_OBJECT}"}
        found |= {f"{prefix}{key}": facts for key, facts in shards.items()}
        if prefix:
            documents |= {f"{prefix}{ROOT_DOCUMENT}", f"labels/{ROOT_DOCUMENT}"}
    nbytes = {key: size for key, (size, _) in found.items()}
    nbytes |= {key: metadata.store.nbytes(key) for key in documents - {ROOT_DOCUMENT}}
    return Inventory(nbytes, {key: crc32c for key, (_, crc32c) in found.items()}, arrays)


def _images(metadata: StoreMetadata) -> Iterator[tuple[str, StoreMetadata]]:
    """Yield an image and its labels, each with the prefix of its keys in the store."""
    yield "", metadata
    try:
        names = label_names(metadata.files, metadata.path, strict=True)
    except OSError as error:
        # A bucket without permission to list refuses access to keys that do not exist.
        if error.errno != errno.EACCES:
            raise
        names = []
    for name in names:
        path = os.path.join(metadata.path, "labels", name)
        yield f"labels/{name}/", read_store_metadata(path, metadata.files)


def _shards(metadata: StoreMetadata) -> dict[str, tuple[int, int]]:
    """Return the size and CRC-32C that the commit kept of every shard of an image."""
    found: dict[str, tuple[int, int]] = {}
    for path, text in metadata.arrays if own_receipt(metadata.attributes) else ():
        array, seal = parse_array_document(text), seal_of(metadata.attributes, path)
        table, problems = array_receipts(metadata.store, path, array, seal)
        if problems:
            raise IncompleteDatasetError(f"{metadata.path}: {problems[0].message}")
        if table is not None:
            for coords in map(tuple, np.argwhere(table.nbytes != ABSENT).tolist()):
                entry = int(table.nbytes[coords]), int(table.crc32c[coords])
                found[object_key(path, array, coords)] = entry
    return found
