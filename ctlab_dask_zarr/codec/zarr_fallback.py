"""Stored objects with codecs that are not applied here: zarr's own pipeline, in memory.

A Zarr array of exactly one object, kept in a dict, is written or read through zarr's public API.
What it stores under its only chunk key is the object. So every codec that zarr accepts works, in
every release, at zarr's speed. zarr is loaded when the first such object comes: workers that see
none start without it.

zarr sets no limit to what compressed bytes become. So they are inflated here first, up to the size
that the array needs and no further.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.errors import ShardDecodeError, UnsupportedFormatError
from ctlab_dask_zarr.formats.codecs import CODECS
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import CodecSpec, StoredArray
from ctlab_dask_zarr.store.store import Store

#: The largest size of an element, in any dtype that filters convert a volume to.
_ELEMENT_NBYTES = 16
#: What codecs may add to a chunk.
_SURPLUS_NBYTES = 1 << 16
#: lzma allocates the dictionary that a stream asks for: that of its highest preset is 65 MiB.
_LZMA_NBYTES = 128 << 20
_ARRAY_TO_BYTES = ("bytes", "sharding_indexed")
#: Codecs of numcodecs whose decoded bytes are no larger than the encoded ones.
_NEVER_LARGER = ("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3", "shuffle")


def encode_object(array: StoredArray, block: npt.NDArray[Any]) -> bytes:
    """Encode one stored object from its voxels, shape ``array.object_shape``."""
    objects: dict[str, Any] = {}
    target, key = _open_single(array, objects)
    target[...] = block
    if key not in objects:
        # zarr 3.1 leaves out a shard that is all fill value, even with write_empty_chunks. Here
        # every object is written: with another fill value, its chunks are stored like any others.
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
    try:
        if array.zarr_format == 2:
            return _decoded_v2(array, data)
        source, key = _open_single(array, objects)
        objects[key] = _buffer(data)
        return np.asarray(source[...])
    except UnsupportedFormatError:
        raise
    except Exception as error:  # codecs raise what they like
        raise ShardDecodeError(f"zarr cannot decode it: {error}") from error


def _decoded_v2(array: StoredArray, data: bytes) -> npt.NDArray[Any]:
    """Decode a chunk of Zarr v2, which takes no array of zarr's: it costs more than a chunk."""
    from numcodecs.compat import ensure_ndarray

    chain, dtype, order = _chain_of_v2(array.document)
    chunk: Any = data
    for codec in chain:
        chunk = codec.decode(chunk)
    voxels = ensure_ndarray(chunk).reshape(-1, order="A").view(dtype)
    return np.asarray(voxels.reshape(array.object_shape, order=order))


@lru_cache(maxsize=256)
def _chain_of_v2(document: str) -> tuple[list[Any], np.dtype[Any], Literal["C", "F"]]:
    """Return what decodes a chunk, in this order, and the dtype and order of its voxels."""
    from numcodecs import get_codec

    said = json.loads(document)
    compressor = said.get("compressor")
    steps = [*(said.get("filters") or []), *([compressor] if compressor else [])]
    return (
        [get_codec(step) for step in reversed(steps)],
        np.dtype(said["dtype"]),
        said.get("order", "C"),
    )


def read_object(store: Store, key: str, array: StoredArray) -> npt.NDArray[Any]:
    """Read one stored object as voxels, shape ``array.object_shape``.

    Raises `ShardDecodeError` where it cannot be decoded, or would become larger than that.
    """
    return decode_bounded(array, store.get(key, encoded_limit(array)))


def encoded_limit(array: StoredArray) -> int:
    """Return the upper limit for the size of a stored object, in bytes, whatever its codecs are."""
    return _largest(array.object_shape) + array.index_nbytes


def decode_bounded(array: StoredArray, data: bytes) -> npt.NDArray[Any]:
    """Decode one stored object as `decode_object` does, unless it would become too large."""
    document = json.loads(array.document)
    if array.zarr_format == 2:
        from ctlab_dask_zarr.formats.zarr_v2 import array_document_of_v2

        document = array_document_of_v2(document)
    _refuse_inflated(document["codecs"], array.object_shape, data)
    return decode_object(array, data)


def dtype_in_zarr(array: StoredArray) -> np.dtype[Any]:
    """Return the NumPy dtype that zarr reads the array as, in the byte order of this machine."""
    opened, _ = _open_single(array, {})
    dtype: np.dtype[Any] = np.dtype(opened.dtype).newbyteorder("=")
    return dtype


def _open_single(array: StoredArray, objects: dict[str, Any], **changes: Any) -> tuple[Any, str]:
    """Return zarr's array of one object, which is kept in `objects`, and the object's key."""
    import zarr
    from zarr.storage import MemoryStore

    document = json.loads(array.document) | changes
    document["shape"] = list(array.object_shape)
    objects[array.document_name] = _buffer(json.dumps(document).encode())
    try:
        opened = zarr.open_array(
            MemoryStore(objects),
            mode="r+",
            zarr_format=2 if array.zarr_format == 2 else 3,
            config={"write_empty_chunks": True},
        )
    except Exception as error:  # zarr raises a different class for each part it does not know
        raise UnsupportedFormatError(
            f"zarr does not accept the array's {array.document_name}: {error}"
        ) from error
    return opened, array.key((0,) * len(array.object_shape))


def _buffer(data: bytes) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(data)


def _largest(shape: Shape) -> int:
    return prod(shape) * _ELEMENT_NBYTES + _SURPLUS_NBYTES


def _refuse_inflated(codecs: list[Any], shape: Shape, data: Any) -> None:
    """Raise where a codec would make more of an object than an array of `shape` needs.

    A codec that is not known here, and those before it in the chain, are left to zarr.
    """
    steps = [(str(step["name"]), step.get("configuration") or {}) for step in codecs]
    place = next((n for n, (name, _) in enumerate(steps) if name in _ARRAY_TO_BYTES), None)
    if place is None:
        return
    limit = _largest(shape)
    for name, options in reversed(steps[place + 1 :]):
        data = _inflated(name, options, data, limit)
        if data is None:
            return
    name, options = steps[place]
    if name == "sharding_indexed":
        _refuse_inflated_chunks(options, shape, data)


def _refuse_inflated_chunks(sharding: Any, shape: Shape, data: Any) -> None:
    names = [codec["name"] for codec in sharding["index_codecs"]]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return
    chunk_shape = tuple(sharding["chunk_shape"])
    n_chunks = prod(n // c for n, c in zip(shape, chunk_shape, strict=True))
    endian = sharding["index_codecs"][0].get("configuration", {}).get("endian", "little")
    n_bytes = n_chunks * 16 + 4 * (len(names) - 1)
    if len(data) < n_bytes:
        raise ShardDecodeError(f"it has {len(data)} bytes, fewer than its index has alone")
    start = 0 if sharding.get("index_location") == "start" else len(data) - n_bytes
    dtype = "<u8" if endian == "little" else ">u8"
    index = np.frombuffer(data, dtype, n_chunks * 2, start).reshape(-1, 2)
    for offset, nbytes in index.tolist():
        if offset + nbytes <= len(data):
            chunk = memoryview(data)[offset : offset + nbytes]
            _refuse_inflated(sharding["codecs"], chunk_shape, chunk)


def _inflated(name: str, options: dict[str, Any], data: Any, limit: int) -> Any:
    """Return what a codec makes of bytes, at most `limit`; None where that is not known here."""
    plain = name.removeprefix("numcodecs.")
    if plain in _INFLATERS:
        return _read_streams(lambda: _INFLATERS[plain](options), data, limit)
    if name != plain and plain in _NEVER_LARGER:
        import numcodecs

        return numcodecs.get_codec({"id": plain, **options}).decode(data)
    known = plain if plain in CODECS else f"numcodecs.{plain}"
    if known not in CODECS:
        return None
    # Decoding takes no options, but making the codec does.
    spec = CodecSpec(known, json.dumps(CODECS[known].configuration()))
    return chunk_codec((spec,)).decode_within(data, limit)


def _read_streams(make: Callable[[], Any], data: Any, limit: int) -> bytes:
    """Return what compressed streams that follow one another hold."""
    parts: list[bytes] = []
    n_left = limit
    while len(data):
        inflater = make()
        try:
            parts.append(inflater.decompress(data, n_left + 1))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ShardDecodeError(f"the codec rejects it: {error}") from error
        n_left -= len(parts[-1])
        if n_left < 0:
            raise ShardDecodeError(f"it would become more than {limit:,} bytes")
        data = inflater.unused_data if inflater.eof else b""
    return b"".join(parts)


def _lzma_inflater(options: dict[str, Any]) -> Any:
    form = options.get("format", lzma.FORMAT_XZ)
    if form == lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(format=form, filters=options.get("filters"))
    return lzma.LZMADecompressor(format=form, memlimit=_LZMA_NBYTES)


_INFLATERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bz2": lambda _: bz2.BZ2Decompressor(),
    "zlib": lambda _: zlib.decompressobj(),
    "gzip": lambda _: zlib.decompressobj(31),
    "lzma": _lzma_inflater,
}
