"""What a store's documents say, against the rules and against each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.errors import CTLabError, MetadataError
from ctlab_dask_zarr.formats.mango import parse_mango_block
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    RECEIPTS_OBJECT,
    ReceiptTable,
    document_checksum,
    own_receipt,
    parse_receipts,
)
from ctlab_dask_zarr.formats.units import are_same_sizes
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT, strangers
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.runtime.files import walk
from ctlab_dask_zarr.runtime.objects import ObjectFiles
from ctlab_dask_zarr.runtime.storage import TEMPORARY_SUFFIX

__all__ = ["array_receipts", "document_problems", "stray_problems"]


def document_problems(metadata: StoreMetadata) -> Iterator[Problem]:
    """Yield what is wrong in the root document and those of the arrays."""
    yield from _rule_problems(metadata)
    yield from _seal_problems(metadata)
    yield from _mango_problems(metadata)
    for path, document in metadata.arrays:
        yield from _array_problems(metadata, path, document)


def _rule_problems(metadata: StoreMetadata) -> Iterator[Problem]:
    """Hold an image against OME-Zarr 0.5, as ome-zarr-models has its rules."""
    if metadata.ome is None:
        return
    import zarr
    from ome_zarr_models.v05.image import Image
    from pydantic import ValidationError

    try:
        files = metadata.files
        if isinstance(files, ObjectFiles):
            store, path = files.zarr_location(metadata.path)
            group = zarr.open_group(store, path=path, mode="r")
        else:
            group = zarr.open_group(metadata.path, mode="r")
        Image.from_zarr(group)
    except ValidationError as error:
        for found in error.errors():
            place = ".".join(str(part) for part in found["loc"]) or "ome"
            message = f"{ROOT_DOCUMENT}: {place} breaks OME-Zarr 0.5: {found['msg']}"
            yield Problem(ROOT_DOCUMENT, "ome", message)
    except Exception as error:  # it reads arrays by zarr, which raises what it likes
        yield Problem(ROOT_DOCUMENT, "ome", f"{ROOT_DOCUMENT} breaks OME-Zarr 0.5: {error}")


def _seal_problems(metadata: StoreMetadata) -> Iterator[Problem]:
    receipt = own_receipt(metadata.attributes)
    if receipt is None or "document_crc32c" not in receipt:
        return
    root = json.loads(metadata.store.get(ROOT_DOCUMENT))
    if receipt["document_crc32c"] != document_checksum(root):
        yield Problem(
            ROOT_DOCUMENT,
            "checksum",
            f"{ROOT_DOCUMENT} is not as it was committed: it is damaged, or was edited by another "
            "program. Compare it with the source's metadata",
        )


def _mango_problems(metadata: StoreMetadata) -> Iterator[Problem]:
    block = metadata.attributes.get("mango")
    if block is None:
        return
    array = parse_array_document(metadata.arrays[0][1])
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
    # The reference implementation writes one list in two orders: only our own have to agree.
    if metadata.ome is None or mango.voxel_size is None or own_receipt(metadata.attributes) is None:
        return
    scale = metadata.ome.levels[0].scale
    if not are_same_sizes(scale, mango.voxel_size):
        yield Problem(
            ROOT_DOCUMENT,
            "voxel-size",
            f"{ROOT_DOCUMENT}: the voxel size is {scale} in the OME metadata and "
            f"{mango.voxel_size} in the mango block",
        )


def _array_problems(metadata: StoreMetadata, path: str, document: str) -> Iterator[Problem]:
    key = f"{path}/{ROOT_DOCUMENT}".lstrip("/")
    try:
        array = parse_array_document(document)
    except CTLabError as error:
        yield Problem(key, "array", f"{key}: {error}")
        return
    if metadata.ome is not None and array.dimension_names != metadata.ome.axes:
        yield Problem(
            key,
            "ome",
            f"{key}: its dimensions {array.dimension_names} are not the image's axes "
            f"{metadata.ome.axes}",
        )
    entry = _entry(metadata, path)
    committed = None if entry is None else entry.get("document_crc32c")
    if committed is not None and committed != google_crc32c.value(document.encode()):
        yield Problem(key, "checksum", f"{key} is not as it was committed: it is damaged")


def _entry(metadata: StoreMetadata, path: str) -> dict[str, Any] | None:
    """Return what the root's receipt says about one array."""
    entries = (own_receipt(metadata.attributes) or {}).get("levels")
    if not isinstance(entries, list):
        return None
    return next((e for e in entries if isinstance(e, dict) and e.get("path") == path), None)


def array_receipts(
    metadata: StoreMetadata, path: str, array: StoredArray
) -> tuple[ReceiptTable | None, list[Problem]]:
    """Return the receipts of an array, if it has any, and what is wrong with them."""
    entry = _entry(metadata, path)
    if entry is None:
        return None, []
    key = f"{path}/{RECEIPTS_OBJECT}".lstrip("/")
    try:
        text = metadata.store.get(key)
    except FileNotFoundError:
        message = f"{key} is missing: damaged voxels may go unnoticed"
        return None, [Problem(key, "missing", message)]
    if google_crc32c.value(text) != entry.get("receipts_crc32c"):
        message = f"{key} is damaged: it is not as it was committed"
        return None, [Problem(key, "checksum", message)]
    try:
        return parse_receipts(text, array), []
    except MetadataError as error:
        return None, [Problem(key, "receipts", f"{key}: {error}")]


def stray_problems(metadata: StoreMetadata) -> Iterator[Problem]:
    """Yield what lies in the store and is no part of it."""
    for name in strangers(metadata.files, metadata.path):
        yield Problem(name, "stray", f"{name} is no part of the dataset: move it elsewhere")
    for folder, _, names in walk(metadata.files, metadata.path):
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                path = os.path.relpath(os.path.join(folder, name), metadata.path)
                yield Problem(
                    path, "leftover", f"{path} was left by a process that died: remove it"
                )
    for path, text in metadata.arrays:
        yield from _outside_problems(metadata, path, parse_array_document(text))


def _outside_problems(metadata: StoreMetadata, path: str, array: StoredArray) -> Iterator[Problem]:
    """Yield objects with the name of a chunk that lies outside the array's grid."""
    store = metadata.store
    prefix = f"{path}/" if path else ""
    for key in store.list(path):
        parts = key.removeprefix(prefix).replace(array.separator, "/").split("/")
        numbers = parts[1:] if array.key_encoding == "default" else parts
        if len(numbers) != len(array.shape) or not all(n.isdecimal() for n in numbers):
            continue
        coords = tuple(map(int, numbers))
        inside = all(c < n for c, n in zip(coords, array.grid_shape, strict=True))
        if not inside and array.key(coords) == key.removeprefix(prefix):
            yield Problem(key, "stray", f"{key} lies outside the array: remove it")
