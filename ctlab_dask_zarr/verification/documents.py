"""The documents of a store, checked against the rules and against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.mango import parse_mango_block
from ctlab_dask_zarr.formats.ome import OMEZarrVersion
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    document_checksum,
    is_of_this_package,
    level_entry,
    own_receipt,
)
from ctlab_dask_zarr.formats.units import are_same_sizes, common_unit
from ctlab_dask_zarr.planning.plan import group_document
from ctlab_dask_zarr.store.documents import CONSOLIDATED
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, ome_of
from ctlab_dask_zarr.verification.contents import Contents, Image, document_key, in_memory

#: The document that lists the names of labels.
LABELS_LISTING = f"labels/{ROOT_DOCUMENT}"


def document_problems(contents: Contents, image: Image) -> Iterator[Problem]:
    """Yield what is wrong in the root document of an image and in those of its arrays."""
    yield from image.problems
    for check in (_rule_problems, _seal_problems, _mango_problems, _array_problems):
        yield from check(contents, image)


def _of_root(kind: str, text: str) -> Problem:
    return Problem(ROOT_DOCUMENT, kind, f"{ROOT_DOCUMENT}{text}")


def _rule_problems(contents: Contents, image: Image) -> Iterator[Problem]:
    """Check an image against its version of OME-Zarr, by the rules in ome-zarr-models."""
    if image.document.get("node_type") != "group" or "ome" not in image.metadata.attributes:
        return
    import zarr
    from pydantic import ValidationError

    ome = image.metadata.ome
    version = "0.6" if ome is not None and ome.version.startswith("0.6") else "0.5"
    try:
        model = import_module(f"ome_zarr_models.v{version.replace('.', '')}.image").Image
    except ModuleNotFoundError:
        return  # its releases for Python 3.11 have no rules of 0.6: it was parsed here, no more
    try:
        # In memory: in the store itself it would follow links, and wait for pipes.
        store = in_memory(contents.texts)
        model.from_zarr(zarr.open_group(store, path=image.prefix.rstrip("/"), mode="r"))
    except ValidationError as error:
        for found in error.errors():
            place = ".".join(map(str, found["loc"])) or "ome"
            yield _of_root("ome", f": {place} breaks OME-Zarr {version}: {found['msg']}")
    except Exception as error:  # it opens arrays with zarr, which may raise anything
        yield _of_root("ome", f" breaks OME-Zarr {version}: {error}")


def _seal_problems(contents: Contents, image: Image) -> Iterator[Problem]:
    """Check the root document against the checksum that the commit has put into it."""
    receipt = own_receipt(image.metadata.attributes) or {}
    committed = receipt.get("document_crc32c")
    if "document_crc32c" in receipt and committed != document_checksum(image.document):
        yield _of_root(
            "checksum",
            " is not as it was committed: it is damaged, or was edited by another program. "
            "Compare it with the source's metadata",
        )


def _mango_problems(contents: Contents, image: Image) -> Iterator[Problem]:
    """Check the mango block against the finest array and the OME metadata."""
    metadata = image.metadata
    block = metadata.attributes.get("mango")
    if block is None or not image.has_finest:
        return
    _, array = image.arrays[0]
    names = metadata.ome.axes if metadata.ome else ("z", "y", "x")[-len(array.shape) :]
    try:
        mango = parse_mango_block(block, names)
    except CTLabError as error:
        yield _of_root("mango", f": {error}")
        return
    if mango.datatype is not None and array.is_direct:
        wanted = np.dtype(mango.datatype.dtype)
        if wanted != array.dtype.newbyteorder("="):
            text = f": the data type {mango.datatype} is {wanted}, the array {array.dtype}"
            yield _of_root("mango", text)
    unknown = common_unit([block.get("voxel_unit")]).unknown
    if unknown:
        yield _of_root("mango", f": the unit {unknown[0]} of the mango block is not known")
    # The reference implementation writes the same list in two orders: only our blocks must agree.
    if (
        metadata.ome is None
        or mango.voxel_size is None
        or not is_of_this_package(metadata.attributes)
    ):
        return
    found = metadata.ome.levels[0].voxel_size
    if not are_same_sizes(found, mango.voxel_size):
        yield _of_root(
            "voxel-size",
            f": the voxel size is {found} in the OME metadata and {mango.voxel_size} in the mango "
            "block",
        )


def _array_problems(contents: Contents, image: Image) -> Iterator[Problem]:
    """Check the documents of the arrays against the root document."""
    metadata = image.metadata
    for path, array in image.arrays:
        key = document_key(path)
        if metadata.ome is not None and array.dimension_names != metadata.ome.array_axes:
            text = f"its dimensions {array.dimension_names} are not the image's axes"
            yield Problem(key, "ome", f"{key}: {text} {metadata.ome.array_axes}")
        committed = (level_entry(metadata.attributes, path) or {}).get("document_crc32c")
        if committed not in (None, google_crc32c.value(array.document.encode())):
            yield Problem(key, "checksum", f"{key} is not as it was committed: it is damaged")


def consolidated_problems(contents: Contents) -> Iterator[Problem]:
    """Yield the groups whose copies of the documents below them are out of date.

    Only what every program writes the same is compared.
    """
    for key, text in contents.texts.items():
        copies = contents.document(key).get(CONSOLIDATED) if CONSOLIDATED in text else None
        copies = copies.get("metadata") if isinstance(copies, dict) else None
        if not isinstance(copies, dict):
            continue
        prefix = key.removesuffix(ROOT_DOCUMENT)
        below = {
            other.removeprefix(prefix).removesuffix(f"/{ROOT_DOCUMENT}"): contents.document(other)
            for other in contents.texts
            if other.startswith(prefix) and other != key
        }
        stale = copies.keys() ^ below.keys() or {
            path for path, found in below.items() if _compared(copies[path]) != _compared(found)
        }
        if stale:
            message = (
                f"{key}: its copy of the document of {min(stale)} ({CONSOLIDATED}) is out of date, "
                "and zarr and xarray believe it: consolidate it again, or remove it"
            )
            yield Problem(key, "consolidated", message)


def _compared(document: Any) -> tuple[Any, ...]:
    found = document if isinstance(document, dict) else {}
    return found.get("node_type"), found.get("attributes") or {}, found.get("shape")


def has_unchecked_listing(contents: Contents) -> bool:
    """Whether the list of labels says more than their names, of which there is no checksum.

    The names are compared with the labels that are there, and we never write anything else.
    """
    if LABELS_LISTING not in contents.texts:
        return False
    found = contents.document(LABELS_LISTING)
    image = ome_of(contents.document(ROOT_DOCUMENT))
    version = image.get("version") or OMEZarrVersion.v05.value
    ours = {"version": version, "labels": ome_of(found).get("labels")}
    return bool(found != json.loads(group_document({"ome": ours})))
