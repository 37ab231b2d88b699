"""Whether stored objects are there, are the bytes that were committed, and decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, parse_index
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import CTLabError, ShardDecodeError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.receipts import Expected, object_change, object_problems
from ctlab_dask_zarr.store.store import Store


def whole_object_problems(
    store: Store, path: str, document: str, expected: Sequence[Expected], read: bool
) -> list[Problem]:
    """Return everything that is wrong with some objects of the array at `path`.

    With `read` they are read whole: checksums are compared, and every inner chunk is decoded.
    Otherwise only presence, size and the index are looked at.
    """
    array = parse_array_document(document)
    return object_problems(path, array, expected, partial(_problems, store, array, read))


def _problems(
    store: Store, array: StoredArray, read: bool, key: str, expected: Expected
) -> Iterator[tuple[str, str]]:
    nbytes = store.nbytes(key)
    yield from object_change(store, key, nbytes, expected, read=read)
    if array.is_direct and array.is_sharded:
        yield from _shard_problems(store, key, array, nbytes, read=read)
    elif read:
        try:
            if array.is_direct:
                chunk = store.get(key, array.object_limit)
                chunk_codec(array.codecs).decode(chunk, array.inner_chunk_nbytes)
            else:
                read_object(store, key, array)
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
