"""Whether stored objects are there, are the bytes that were committed, and decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.region import object_crc32c
from ctlab_dask_zarr.codec.shard import ABSENT, parse_index
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import CTLabError, ShardDecodeError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import ReceiptTable, object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.store import Store

__all__ = ["Expected", "expected_objects", "object_problems"]


#: Objects that one task looks at, where they are small: chunks of an array without sharding.
_TASK_NBYTES = 256 << 20


@dataclass(frozen=True)
class Expected:
    """One object that has to be there; size in bytes and CRC-32C where they are known."""

    coords: tuple[int, ...]
    nbytes: int | None = None
    crc32c: int | None = None


def expected_objects(
    array: StoredArray, objects: Iterable[tuple[int, ...]], table: ReceiptTable | None
) -> Iterator[tuple[Expected, ...]]:
    """Yield the objects that one task looks at: one shard, or as many chunks as make one."""
    object_nbytes = prod(array.object_shape) * array.dtype.itemsize
    n_objects = max(1, _TASK_NBYTES // max(object_nbytes, 1))
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


def object_problems(
    store: Store,
    path: str,
    array: StoredArray,
    expected: Sequence[Expected],
    *,
    read: bool,
    decode: bool = True,
) -> list[Problem]:
    """Return everything that is wrong with some objects of an array.

    Parameters
    ----------
    store, path
        Where the array is.
    expected
        The objects.
    read
        Whether to read them whole: compare checksums and decode every inner chunk. Else only
        presence, size and the index are looked at.
    decode
        False does not decode what is read, where somebody else does.
    """
    problems = []
    for one in expected:
        key = object_key(path, array, one.coords)
        try:
            found = list(_problems(store, key, array, one, read=read, decode=decode))
        except FileNotFoundError:
            found = [("missing", "is missing")]
        except (OSError, CTLabError) as error:
            found = [("unreadable", f"cannot be read: {error}")]
        problems += [Problem(key, kind, f"{key} {text}") for kind, text in found]
    return problems


def _problems(
    store: Store, key: str, array: StoredArray, expected: Expected, *, read: bool, decode: bool
) -> Iterator[tuple[str, str]]:
    nbytes = store.nbytes(key)
    if expected.nbytes is not None and nbytes != expected.nbytes:
        yield "size", f"has {nbytes} bytes, {expected.nbytes} were committed"
    elif (
        read
        and expected.crc32c is not None
        and object_crc32c(store, key, nbytes) != expected.crc32c
    ):
        yield "checksum", "is not the bytes that were committed: its CRC-32C differs"
    if not decode:
        return
    if not array.is_direct:
        if read:
            yield from _decode_errors(lambda: read_object(store, key, array))
    elif not array.is_sharded:
        if read:
            codec = chunk_codec(array.codecs)
            yield from _decode_errors(
                lambda: codec.decode(store.get(key, array.object_limit), array.inner_chunk_nbytes)
            )
    else:
        yield from _shard_problems(store, key, array, nbytes, read=read)


def _decode_errors(decode: Callable[[], Any]) -> Iterator[tuple[str, str]]:
    try:
        decode()
    except CTLabError as error:
        yield "decode", f"cannot be decoded: {error}"


def _shard_problems(
    store: Store, key: str, array: StoredArray, nbytes: int, *, read: bool
) -> Iterator[tuple[str, str]]:
    n_index = min(array.index_nbytes, nbytes)
    try:
        index = parse_index(store.get_range(key, nbytes - n_index, n_index), array, nbytes)
    except ShardDecodeError as error:
        yield "index", f"has no whole index: {error}"
        return
    stored = index[index[:, 0] != ABSENT]
    order = stored[np.argsort(stored[:, 0], kind="stable")]
    if (order[1:, 0] < order[:-1].sum(axis=1)).any():
        yield "index", "has inner chunks that overlap"
    if not read:
        return
    codec = chunk_codec(array.codecs)
    for number, (offset, size) in enumerate(index.tolist()):
        if offset == ABSENT:
            continue
        try:
            codec.decode(store.get_range(key, offset, size), array.inner_chunk_nbytes)
        except ShardDecodeError as error:
            coords = tuple(int(c) for c in np.unravel_index(number, array.chunks_per_object))
            yield "decode", f"has an inner chunk {coords} that cannot be decoded: {error}"
