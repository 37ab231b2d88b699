"""Stored objects whose codecs the direct way does not know: zarr's own pipeline, in memory.

A Zarr array of exactly one object, kept in a dict, is written to or read from through zarr's
public API; what it stores under its only chunk key is the object. So every codec that zarr
accepts works, in every release, at zarr's speed. zarr is loaded when such an object comes: workers
that write and read the others start without it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import ShardDecodeError, UnsupportedFormatError
from ctlab_dask_zarr.formats.zarr_array import StoredArray

__all__ = ["decode_object", "encode_object", "odd_dtype"]

_DOCUMENT_KEY = "zarr.json"


def encode_object(array: StoredArray, block: npt.NDArray[Any]) -> bytes:
    """Encode one stored object from its voxels, shape ``array.object_shape``."""
    objects: dict[str, Any] = {}
    target, key = _open_single(array, objects)
    target[...] = block
    if key not in objects:
        # zarr 3.1 leaves out a shard that is all fill value, whatever it is asked. Here every
        # object is written: with another fill value, its chunks are stored like any others.
        other = 1 if array.fill_value == 0 else 0
        target, key = _open_single(array, objects, fill_value=other)
        target[...] = block
    return bytes(objects[key].to_bytes())


def decode_object(array: StoredArray, data: bytes) -> npt.NDArray[Any]:
    """Decode one stored object to its voxels, shape ``array.object_shape``."""
    if array.is_sharded and len(data) < array.index_nbytes:
        # zarr 3.1 would read an empty object as fill values.
        raise ShardDecodeError(f"it has {len(data)} bytes, fewer than its index has alone")
    objects: dict[str, Any] = {}
    source, key = _open_single(array, objects)
    objects[key] = _buffer(data)
    try:
        return np.asarray(source[...])
    except Exception as error:  # zarr's codecs raise what they like
        raise ShardDecodeError(f"zarr cannot decode it: {error}") from error


def _buffer(data: bytes) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(data)


def _open_single(array: StoredArray, objects: dict[str, Any], **changes: Any) -> tuple[Any, str]:
    import zarr
    from zarr.storage import MemoryStore

    document = json.loads(array.document) | changes
    document["shape"] = list(array.object_shape)
    text = json.dumps(document).encode()
    objects[_DOCUMENT_KEY] = _buffer(text)
    try:
        opened = zarr.open_array(
            MemoryStore(objects), mode="r+", zarr_format=3, config={"write_empty_chunks": True}
        )
    except Exception as error:  # zarr raises a different class for each part it does not know
        raise UnsupportedFormatError(
            f"zarr does not accept the array's zarr.json: {error}"
        ) from error
    return opened, array.key((0,) * len(array.object_shape))


def odd_dtype(array: StoredArray) -> np.dtype[Any]:
    """Return the NumPy dtype that zarr reads the array as."""
    opened, _ = _open_single(array, {})
    dtype: np.dtype[Any] = np.dtype(opened.dtype)
    return dtype
