"""Encode and decode one inner chunk with the codecs of the common chains.

Contexts are kept per thread: distributed's nanny sets MALLOC_TRIM_THRESHOLD_ in its workers, and
there a codec that makes a context per chunk gives its memory back to the kernel every time, which
made the whole encoder three times as slow (docs/design/shard-codec.md).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
import zstandard
from numcodecs import blosc
from numcodecs.lz4 import LZ4

from ctlab_dask_zarr.errors import MetadataError, ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import CodecSpec

__all__ = ["ChunkCodec", "chunk_codec", "crc32c"]

Buffer = Any  # collections.abc.Buffer exists from Python 3.12
Transform = Callable[[Buffer], Buffer]
#: decode(data, nbytes): `nbytes` bounds what a damaged or hostile frame can make us allocate.
BoundedTransform = Callable[[Buffer, int], Buffer]

_thread = threading.local()
_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_GZIP_WBITS = 31


def crc32c(data: Buffer) -> bytes:
    """Return the CRC-32C of `data` as the four little-endian bytes that Zarr stores."""
    # The C function refuses memoryviews; an array over the same memory it takes.
    return struct.pack("<I", google_crc32c.value(np.frombuffer(data, np.uint8)))


class ChunkCodec:
    """A chain of codecs, for use by one thread."""

    def __init__(self, chain: tuple[CodecSpec, ...]) -> None:
        steps = [_step(spec) for spec in chain]
        self._encoders = [encode for encode, _ in steps]
        self._decoders = [decode for _, decode in reversed(steps)]
        # How much larger than the chunk the input of each decoder may be, outermost first.
        self._n_wrapped = list(range(len(steps) - 1, -1, -1))

    def encode(self, chunk: Buffer) -> Buffer:
        """Encode the bytes of one chunk (C order, little-endian)."""
        data = chunk
        for encode in self._encoders:
            data = encode(data)
        return data

    def decode_within(self, data: Buffer, nbytes: int) -> Buffer:
        """Decode to at most `nbytes` bytes, or raise `ShardDecodeError`."""
        try:
            for decode, depth in zip(self._decoders, self._n_wrapped, strict=True):
                data = decode(data, nbytes + depth * (1024 + nbytes // 64))
        except ShardDecodeError:
            raise
        except Exception as error:  # the codecs' own errors have no common base
            raise ShardDecodeError(f"the codec rejects it: {error}") from error
        return data

    def decode(self, data: Buffer, nbytes: int) -> Buffer:
        """Decode to exactly `nbytes` bytes, or raise `ShardDecodeError`."""
        data = self.decode_within(data, nbytes)
        if memoryview(data).nbytes != nbytes:
            raise ShardDecodeError(
                f"it decodes to {memoryview(data).nbytes} bytes instead of {nbytes}"
            )
        return data


def _step(spec: CodecSpec) -> tuple[Transform, BoundedTransform]:
    try:
        return _FACTORIES[spec.name](spec.options)
    except Exception as error:  # the codecs' own errors have no common base
        raise MetadataError(
            f"codec {spec.name} cannot be configured by {spec.configuration}: {error!r}"
        ) from error


def chunk_codec(chain: tuple[CodecSpec, ...]) -> ChunkCodec:
    """Return this thread's codec for `chain`."""
    codecs: dict[tuple[CodecSpec, ...], ChunkCodec] | None = getattr(_thread, "codecs", None)
    if codecs is None:
        codecs = _thread.codecs = {}
    if chain not in codecs:
        codecs[chain] = ChunkCodec(chain)
    return codecs[chain]


def _zstd(options: dict[str, Any]) -> tuple[Transform, BoundedTransform]:
    compressor = zstandard.ZstdCompressor(
        level=options["level"], write_checksum=options.get("checksum", False)
    )
    decompressor = zstandard.ZstdDecompressor()

    def decode(data: Buffer, limit: int) -> Buffer:
        # A frame states its size, and the library allocates that much: look before.
        if zstandard.frame_content_size(data) > limit:
            raise ShardDecodeError(f"its zstd frame claims more than {limit} bytes")
        return decompressor.decompress(data, max_output_size=limit)

    return compressor.compress, decode


def _blosc(options: dict[str, Any]) -> tuple[Transform, BoundedTransform]:
    cname = options["cname"].encode()
    clevel, blocksize = options["clevel"], options.get("blocksize", 0)
    shuffle, typesize = _BLOSC_SHUFFLE[options["shuffle"]], options.get("typesize") or 1

    def encode(data: Buffer) -> Buffer:
        return blosc.compress(data, cname, clevel, shuffle, blocksize, typesize)

    def decode(data: Buffer, limit: int) -> Buffer:
        if memoryview(data).nbytes < 16:
            raise ShardDecodeError("it is too short to be a blosc frame")
        nbytes, _, compressed_nbytes = struct.unpack_from("<III", data, 4)
        if nbytes > limit or compressed_nbytes != memoryview(data).nbytes:
            raise ShardDecodeError("its blosc header does not fit its size")
        return blosc.decompress(data)

    return encode, decode


def _gzip(options: dict[str, Any]) -> tuple[Transform, BoundedTransform]:
    level = options["level"]

    def encode(data: Buffer) -> Buffer:
        return zlib.compress(data, level, _GZIP_WBITS)

    def decode(data: Buffer, limit: int) -> Buffer:
        inflater = zlib.decompressobj(_GZIP_WBITS)
        decoded = inflater.decompress(data, limit + 1)
        if not inflater.eof:
            raise ShardDecodeError(f"its gzip stream is cut off or longer than {limit} bytes")
        return decoded

    return encode, decode


def _lz4(options: dict[str, Any]) -> tuple[Transform, BoundedTransform]:
    codec = LZ4(acceleration=options.get("acceleration", 1))

    def decode(data: Buffer, limit: int) -> Buffer:
        # numcodecs' framing: the decoded size, then one LZ4 block.
        if memoryview(data).nbytes < 4 or struct.unpack_from("<I", data)[0] > limit:
            raise ShardDecodeError(f"its LZ4 header claims more than {limit} bytes")
        return codec.decode(data)

    return codec.encode, decode


def _crc32c(_: dict[str, Any]) -> tuple[Transform, BoundedTransform]:
    def encode(data: Buffer) -> Buffer:
        return bytes(data) + crc32c(data)

    def decode(data: Buffer, limit: int) -> Buffer:
        content = memoryview(data)[:-4]
        if crc32c(content) != memoryview(data)[-4:]:
            raise ShardDecodeError("its crc32c does not match")
        return content

    return encode, decode


_FACTORIES: dict[str, Callable[[dict[str, Any]], tuple[Transform, BoundedTransform]]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "gzip": _gzip,
    "numcodecs.lz4": _lz4,
    "crc32c": _crc32c,
}
