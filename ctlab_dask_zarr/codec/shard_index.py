"""The indexes of shards that were read: the next read of a shard need not read its index again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

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


class _KeptIndexes:
    """Indexes with the version of their shard, those that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, tuple[Hashable, npt.NDArray[np.uint64]]] = OrderedDict()
        self._nbytes = 0

    def get(self, name: Hashable) -> tuple[Hashable, npt.NDArray[np.uint64] | None]:
        with self._lock:
            if name not in self._found:
                return None, None
            self._found.move_to_end(name)
            return self._found[name]

    def put(self, name: Hashable, version: Hashable, index: npt.NDArray[np.uint64]) -> None:
        self.drop(name)
        with self._lock:
            self._found[name] = (version, index)
            self._nbytes += index.nbytes + _ENTRY_NBYTES
            while self._nbytes > _MAX_NBYTES:
                _, (_, oldest) = self._found.popitem(last=False)
                self._nbytes -= oldest.nbytes + _ENTRY_NBYTES

    def drop(self, name: Hashable) -> None:
        with self._lock:
            if name in self._found:
                _, index = self._found.pop(name)
                self._nbytes -= index.nbytes + _ENTRY_NBYTES


_kept = _KeptIndexes()


def open_shard(
    store: Store, key: str, array: StoredArray
) -> tuple[OpenedObject, npt.NDArray[np.uint64]]:
    """Open a shard, and return it with its index; `parse_index` says what that is."""
    name = _name(store, key, array)
    version, index = _kept.get(name)
    opened = store.open(key, version)
    if index is not None and opened.version == version:
        return opened, index
    tail = opened.read_end(array.index_nbytes)
    if opened.nbytes < array.index_nbytes:
        raise ShardDecodeError(f"it has {opened.nbytes} bytes, fewer than its index has alone")
    index = parse_index(tail, array, opened.nbytes)
    if opened.is_settled:
        _kept.put(name, opened.version, index)
    return opened, index


def forget_index(store: Store, key: str, array: StoredArray) -> None:
    """Keep nothing of a shard, which was found to be another one."""
    _kept.drop(_name(store, key, array))


def _name(store: Store, key: str, array: StoredArray) -> tuple[Any, ...]:
    """Return what tells a shard, and how its index is read, from others."""
    return store, key, array.index_nbytes, array.index_checksum, array.encoded_chunk_limit
