"""The indexes of shards that were read: the next read of a shard need not read its index again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.shard import parse_index
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import OpenedObject
from ctlab_dask_zarr.store.store import Store

#: Of a shard of 512**3 in chunks of 32**3 it has 64 KiB: so many are kept for 512 of them.
_MAX_NBYTES = 32 << 20
#: What an entry takes beside its index.
_ENTRY_NBYTES = 1 << 10


class _Kept(NamedTuple):
    version: Hashable
    entries: npt.NDArray[np.uint64]
    #: The dataset that the shard was found to belong to; None where nobody has looked.
    dataset: Hashable = None


class _KeptIndexes:
    """Indexes with the version of their shard, those that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._nbytes = 0

    def get(self, name: Hashable) -> _Kept | None:
        with self._lock:
            if name in self._found:
                self._found.move_to_end(name)
            return self._found.get(name)

    def put(self, name: Hashable, kept: _Kept) -> None:
        with self._lock:
            self._drop(name)
            self._found[name] = kept
            self._nbytes += kept.entries.nbytes + _ENTRY_NBYTES
            while self._nbytes > _MAX_NBYTES:
                self._drop(next(iter(self._found)))

    def drop(self, name: Hashable) -> None:
        with self._lock:
            self._drop(name)

    def _drop(self, name: Hashable) -> None:
        if name in self._found:
            self._nbytes -= self._found.pop(name).entries.nbytes + _ENTRY_NBYTES


_kept = _KeptIndexes()


class OpenedShard(NamedTuple):
    """A shard that is open, its index, and whether it is known to belong to a dataset."""

    opened: OpenedObject
    entries: npt.NDArray[np.uint64]
    is_confirmed: bool
    #: Bytes that came with its index, up to its end.
    tail: bytes | memoryview = b""


def open_shard(
    store: Store, key: str, array: StoredArray, dataset: Hashable = None, tail_nbytes: int = 0
) -> OpenedShard:
    """Open a shard and return it with its index (see `parse_index`).

    Where the index has to be read, up to `tail_nbytes` bytes before it are read by the same call.
    """
    name = _name(store, key, array)
    kept = _kept.get(name)
    opened = store.open(key, None if kept is None else kept.version)
    if kept is not None and opened.version == kept.version:
        return OpenedShard(opened, kept.entries, dataset is not None and kept.dataset == dataset)
    tail = opened.read_end(array.index_nbytes + tail_nbytes)
    if opened.nbytes < array.index_nbytes:
        raise ShardDecodeError(f"it has {opened.nbytes} bytes, fewer than its index has alone")
    # A copy, so that the rest is not kept with it.
    index = parse_index(bytes(tail[-array.index_nbytes :]), array, opened.nbytes)
    if opened.is_settled:
        _kept.put(name, _Kept(opened.version, index))
    return OpenedShard(opened, index, False, tail)


def confirm_shard(
    store: Store, key: str, array: StoredArray, version: Hashable, dataset: Hashable
) -> None:
    """Keep in mind that this version of a shard belongs to a dataset."""
    name = _name(store, key, array)
    kept = _kept.get(name)
    if kept is not None and kept.version == version:
        _kept.put(name, kept._replace(dataset=dataset))


def forget_index(store: Store, key: str, array: StoredArray) -> None:
    """Keep nothing of a shard, which was found to be another one."""
    _kept.drop(_name(store, key, array))


def _name(store: Store, key: str, array: StoredArray) -> tuple[Any, ...]:
    """Return what tells a shard, and how its index is read, from others."""
    return store, key, array.index_nbytes, array.index_checksum, array.encoded_chunk_limit
