"""The receipts that a store keeps of its arrays, and objects compared with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import google_crc32c

from ctlab_dask_zarr.codec.region import object_crc32c
from ctlab_dask_zarr.errors import CTLabError, MetadataError, ShardDecodeError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    ABSENT,
    RECEIPTS_OBJECT,
    ReceiptTable,
    level_entry,
    object_key,
    parse_receipts,
    receipts_limit,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray, key_in
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, read_json_object
from ctlab_dask_zarr.store.store import Store

#: Checksums that our commit keeps of an array: of its receipts, and of its document.
Seal = tuple[int, int | None]

#: Objects that one task looks at, where they are small: chunks of an array without sharding.
TASK_NBYTES = 256 << 20
#: What is said of an object whose checksum is another one.
CHECKSUM_TEXT = "is not the bytes that were committed: its CRC-32C differs"


class Expected(NamedTuple):
    """One object that has to be there; size in bytes and CRC-32C where they are known.

    The size is `ABSENT` if the object must not be there.
    """

    coords: tuple[int, ...]
    nbytes: int | None = None
    crc32c: int | None = None

    @property
    def is_absent(self) -> bool:
        """Whether there was no object when the receipts were made."""
        return self.nbytes == ABSENT


def seal_of(attributes: Any, array_path: str) -> Seal | None:
    """Return what a root's attributes say of an array's bytes, where this package wrote them."""
    entry = level_entry(attributes, array_path) or {}
    receipts, document = entry.get("receipts_crc32c"), entry.get("document_crc32c")
    return (receipts, document) if isinstance(receipts, int) else None


def array_receipts(
    store: Store, path: str, array: StoredArray, seal: Seal | None
) -> tuple[ReceiptTable | None, list[Problem]]:
    """Return the receipts of an array, None where it has none, and what is wrong with them.

    `seal` is what the root document says of them, None where that is nothing.
    """
    key = key_in(path, RECEIPTS_OBJECT)
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
            f"{key} is there, but {ROOT_DOCUMENT} says nothing of it: another program rewrote that "
            "document, and the checksums of the commit are lost. Put it back from a copy, or let "
            "`ctlab-zarr seal` compare every object with this, and note it again"
        )
        problems.append(Problem(key, "receipts", message))
    elif google_crc32c.value(text) != seal[0]:
        message = f"{key} is damaged: it is not as it was committed"
        return None, [Problem(key, "checksum", message)]
    try:
        return parse_receipts(text, array), problems
    except MetadataError as error:
        return None, [*problems, Problem(key, "receipts", f"{key}: {error}")]


def expected_objects(
    array: StoredArray,
    objects: Iterable[tuple[int, ...]],
    table: ReceiptTable | None,
    task_nbytes: int = TASK_NBYTES,
) -> Iterator[tuple[Expected, ...]]:
    """Yield the objects that one task looks at: one, or as many as have `task_nbytes` bytes."""
    object_nbytes = prod(array.object_shape) * array.dtype.itemsize
    n_objects = max(1, task_nbytes // max(object_nbytes, 1))
    group: list[Expected] = []
    for coords in objects:
        if table is None:
            group.append(Expected(coords))
        else:
            group.append(Expected(coords, int(table.nbytes[coords]), int(table.crc32c[coords])))
        if len(group) >= n_objects:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def object_change(
    store: Store, key: str, nbytes: int, expected: Expected, *, read: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield, as kind and text, how an object of `nbytes` bytes differs from what was committed.

    Without `read` its size alone is compared, and not its checksum.
    """
    if expected.is_absent:
        yield "stray", "is there, but was absent when the receipts were made: remove it"
    elif expected.nbytes is not None and nbytes != expected.nbytes:
        yield "size", f"has {nbytes} bytes, {expected.nbytes} were committed"
    elif read and expected.crc32c not in (None, object_crc32c(store, key, nbytes)):
        yield "checksum", CHECKSUM_TEXT


def object_problems(
    path: str,
    array: StoredArray,
    expected: Sequence[Expected],
    look: Callable[[str, Expected], Iterable[tuple[str, str]]],
) -> list[Problem]:
    """Return what `look` finds, as kind and text, at each of some objects of an array."""
    problems = []
    for one in expected:
        key = object_key(path, array, one.coords)
        try:
            found = list(look(key, one))
        except FileNotFoundError:
            found = [] if one.is_absent else [("missing", "is missing")]
        except (OSError, CTLabError) as error:
            found = [("unreadable", f"cannot be read: {error}")]
        problems += [Problem(key, kind, f"{key} {text}") for kind, text in found]
    return problems


def refuse_damaged(
    store: Store, path: str, array: StoredArray, grid_coords: Iterable[tuple[int, ...]]
) -> None:
    """Raise `ShardDecodeError` where an object is not what was committed, by its receipt.

    An array without receipts passes; receipts that are damaged themselves do not.
    """
    root = read_json_object(store.files, store.path(ROOT_DOCUMENT))
    seal = seal_of(root.get("attributes"), path)
    table = None if seal is None else _table(store, path, array, seal)
    if table is None:
        return
    for coords in grid_coords:
        key = object_key(path, array, coords)
        one = Expected(coords, int(table.nbytes[coords]), int(table.crc32c[coords]))
        try:
            is_damaged = any(object_change(store, key, store.nbytes(key), one))
        except FileNotFoundError:
            if not one.is_absent:
                raise
            is_damaged = False
        if is_damaged:
            raise ShardDecodeError(
                f"{store.path(key)} is not the bytes that were committed, so nothing is made of "
                "it: put it back from a copy, or write the dataset again"
            )


@lru_cache(maxsize=8)
def _table(store: Store, path: str, array: StoredArray, seal: Seal) -> ReceiptTable | None:
    """Return the receipts of an array, read once by a process; None where they are missing."""
    table, problems = array_receipts(store, path, array, seal)
    if any(problem.kind != "missing" for problem in problems):
        raise ShardDecodeError(f"{store.root}: {problems[0].message}")
    return table
