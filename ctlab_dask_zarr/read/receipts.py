"""The receipts that a store keeps of its arrays, and objects held against them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import google_crc32c

from ctlab_dask_zarr.codec.region import object_crc32c
from ctlab_dask_zarr.errors import CTLabError, MetadataError, ShardDecodeError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    RECEIPTS_OBJECT,
    ReceiptTable,
    object_key,
    parse_receipts,
    receipts_limit,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.read.zarr_volume import Seal, seal_of
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, read_json_object
from ctlab_dask_zarr.store.store import Store

__all__ = ["array_receipts", "refuse_damaged"]


def array_receipts(
    store: Store, path: str, array: StoredArray, seal: Seal | None
) -> tuple[ReceiptTable | None, list[Problem]]:
    """Return the receipts of an array, if it has any, and what is wrong with them.

    Parameters
    ----------
    store, path, array
        The store of an image, and one of its arrays.
    seal
        What the root document says of them; None where that is nothing.
    """
    key = f"{path}/{RECEIPTS_OBJECT}".lstrip("/")
    try:
        text = store.get(key, receipts_limit(array))
    except FileNotFoundError:
        if seal is None:
            return None, []
        message = f"{key} is missing: damaged voxels may go unnoticed"
        return None, [Problem(key, "missing", message)]
    except (CTLabError, OSError) as error:
        message = f"{key} cannot be read: {error}: damaged voxels may go unnoticed"
        return None, [Problem(key, "unreadable", message)]
    problems = []
    if seal is None:
        message = (
            f"{key} is there, and {ROOT_DOCUMENT} says nothing of it: another program has written "
            "that anew, and the checksums of the commit are lost. Put it back from a copy, or "
            "write the dataset anew"
        )
        problems.append(Problem(key, "receipts", message))
    elif google_crc32c.value(text) != seal[0]:
        message = f"{key} is damaged: it is not as it was committed"
        return None, [Problem(key, "checksum", message)]
    try:
        return parse_receipts(text, array), problems
    except MetadataError as error:
        return None, [*problems, Problem(key, "receipts", f"{key}: {error}")]


def refuse_damaged(
    store: Store, path: str, array: StoredArray, grid_coords: Iterable[tuple[int, ...]]
) -> None:
    """Raise `ShardDecodeError` where an object is not what was committed, by its receipt.

    What has no receipts passes; receipts that are damaged themselves do not.
    """
    root = read_json_object(store.files, store.path(ROOT_DOCUMENT))
    seal = seal_of(root.get("attributes"), path)
    table = None if seal is None else _table(store, path, array, seal)
    if table is None:
        return
    for coords in grid_coords:
        key = object_key(path, array, coords)
        nbytes = store.nbytes(key)
        committed = int(table.nbytes[coords]), int(table.crc32c[coords])
        if (nbytes, object_crc32c(store, key, nbytes)) != committed:
            raise ShardDecodeError(
                f"{store.path(key)} is not the bytes that were committed, so nothing is made of "
                "it: put it back from a copy, or write the dataset anew"
            )


@lru_cache(maxsize=8)
def _table(store: Store, path: str, array: StoredArray, seal: Seal) -> ReceiptTable | None:
    """Return the receipts of an array, read once by a process; None where they are missing."""
    table, problems = array_receipts(store, path, array, seal)
    if any(problem.kind != "missing" for problem in problems):
        raise ShardDecodeError(f"{store.root}: {problems[0].message}")
    return table
