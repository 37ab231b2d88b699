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
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT, object_key, own_receipt
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.read.receipts import array_receipts, seal_of
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names

__all__ = ["Inventory", "take_inventory"]


@dataclass(frozen=True)
class Inventory:
    """The objects of a store by their keys, without its root document.

    Attributes
    ----------
    nbytes
        Size of each object.
    crc32c
        CRC-32C of those of which the commit kept one.
    arrays
        Documents of the arrays of the image and of its labels, by their paths.
    """

    nbytes: dict[str, int]
    crc32c: dict[str, int]
    arrays: dict[str, str]


def take_inventory(metadata: StoreMetadata) -> Inventory:
    """Return what a store holds.

    Raises
    ------
    IncompleteDatasetError
        An object that was committed is missing, or the receipts are damaged.
    UnsupportedFormatError
        The store can only be read by plain HTTP, which lists nothing, and another program wrote it.
    """
    if metadata.path.startswith("http"):
        return _told_inventory(metadata)
    nbytes = {
        key: size for key, (size, _) in metadata.store.stats().items() if key != ROOT_DOCUMENT
    }
    shards = _shards(metadata)
    missing = sorted(shards.keys() - nbytes.keys())
    if missing:
        raise IncompleteDatasetError(f"{metadata.path} lacks {missing[0]}: it is not copied")
    arrays: dict[str, str] = {}
    # Labels that cannot be understood are copied all the same.
    with suppress(CTLabError):
        for prefix, image in _images(metadata):
            arrays |= {f"{prefix}{path}": text for path, text in image.arrays}
    return Inventory(nbytes, {key: crc32c for key, (_, crc32c) in shards.items()}, arrays)


def _told_inventory(metadata: StoreMetadata) -> Inventory:
    """Return what the documents of a store tell, and those of its labels."""
    nbytes: dict[str, int] = {}
    checksums: dict[str, int] = {}
    documents: list[str] = []
    arrays: dict[str, str] = {}
    for prefix, image in _images(metadata):
        shards = _shards(image)
        for path, text in image.arrays:
            arrays[f"{prefix}{path}"] = text
            array = parse_array_document(text)
            if object_key(path, array, (0,) * len(array.shape)) not in shards:
                raise UnsupportedFormatError(
                    f"{image.path} was not written by this package, so that its documents do not "
                    "tell what objects it has, and plain HTTP does not list them. Copy it by the "
                    f"URL of its object store (s3://), or its voxels by `ctlab-zarr convert "
                    f"{image.path} DESTINATION`"
                )
            below = f"{prefix}{path}/".lstrip("/")
            documents += [f"{below}{name}" for name in (ROOT_DOCUMENT, RECEIPTS_OBJECT)]
        nbytes |= {f"{prefix}{key}": size for key, (size, _) in shards.items()}
        checksums |= {f"{prefix}{key}": crc32c for key, (_, crc32c) in shards.items()}
        if prefix:
            documents += [f"{prefix}{ROOT_DOCUMENT}", f"labels/{ROOT_DOCUMENT}"]
    nbytes |= {key: metadata.store.nbytes(key) for key in {*documents} - {ROOT_DOCUMENT}}
    return Inventory(nbytes, checksums, arrays)


def _images(metadata: StoreMetadata) -> Iterator[tuple[str, StoreMetadata]]:
    """Yield an image and its labels; before each, what their keys begin with in the store."""
    yield "", metadata
    try:
        names = label_names(metadata.files, metadata.path, strict=True)
    except OSError as error:
        # A bucket that may not be listed does not say that something is not there: it refuses it.
        if error.errno != errno.EACCES:
            raise
        names = []
    for name in names:
        yield (
            f"labels/{name}/",
            read_store_metadata(os.path.join(metadata.path, "labels", name), metadata.files),
        )


def _shards(metadata: StoreMetadata) -> dict[str, tuple[int, int]]:
    """Return size and CRC-32C of every shard for which the commit of an image kept them."""
    found: dict[str, tuple[int, int]] = {}
    if own_receipt(metadata.attributes) is None:
        return found
    for path, text in metadata.arrays:
        array = parse_array_document(text)
        table, problems = array_receipts(
            metadata.store, path, array, seal_of(metadata.attributes, path)
        )
        if problems:
            raise IncompleteDatasetError(f"{metadata.path}: {problems[0].message}")
        if table is not None:
            for coords in np.ndindex(table.nbytes.shape):
                entry = int(table.nbytes[coords]), int(table.crc32c[coords])
                found[object_key(path, array, coords)] = entry
    return found
