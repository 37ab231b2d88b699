"""Encode and decode one inner chunk with a chain of the codecs in `formats.codecs`.

Contexts are kept per thread: distributed's nanny sets MALLOC_TRIM_THRESHOLD_ in its workers, and
there a codec that makes a context per chunk gives its memory back to the kernel every time, which
made the whole encoder three times as slow (docs/design/shard-codec.md).
"""

from __future__ import annotations

import threading

from ctlab_dask_zarr.errors import MetadataError, ShardDecodeError
from ctlab_dask_zarr.formats.codecs import CODECS, Buffer, Decode, Encode
from ctlab_dask_zarr.formats.zarr_array import CodecSpec

_thread = threading.local()


def chunk_codec(chain: tuple[CodecSpec, ...]) -> ChunkCodec:
    """Return this thread's codec for `chain`."""
    codecs: dict[tuple[CodecSpec, ...], ChunkCodec] = _thread.__dict__.setdefault("codecs", {})
    if chain not in codecs:
        codecs[chain] = ChunkCodec(chain)
    return codecs[chain]


class ChunkCodec:
    """A chain of codecs, for use by one thread."""

    def __init__(self, chain: tuple[CodecSpec, ...]) -> None:
        self._encoders: list[Encode] = []
        self._decoders: list[Decode] = []
        for spec in chain:
            try:
                encode, decode = CODECS[spec.name].make(spec.options)
            except Exception as error:  # the codecs' own errors have no common base
                raise MetadataError(
                    f"codec {spec.name} cannot be configured by {spec.configuration}: {error!r}"
                ) from error
            self._encoders.append(encode)
            self._decoders.insert(0, decode)

    def encode(self, chunk: Buffer) -> Buffer:
        """Encode the bytes of one chunk (C order, little-endian)."""
        data = chunk
        for encode in self._encoders:
            data = encode(data)
        return data

    def decode_within(self, data: Buffer, nbytes: int, memory: Buffer | None = None) -> Buffer:
        """Decode to at most `nbytes` bytes, or raise `ShardDecodeError`.

        `memory`, of `nbytes` bytes, may be used for the result; it is then what is returned.
        """
        # What a codec makes of a chunk may be a little larger than the chunk.
        n_inside = len(self._decoders)
        try:
            for decode in self._decoders:
                n_inside -= 1
                limit = nbytes + n_inside * (1024 + nbytes // 64)
                data = decode(data, limit, None if n_inside else memory)
        except ShardDecodeError:
            raise
        except Exception as error:  # the codecs' own errors have no common base
            raise ShardDecodeError(f"the codec rejects it: {error}") from error
        return data

    def decode(self, data: Buffer, nbytes: int, memory: Buffer | None = None) -> Buffer:
        """Decode to exactly `nbytes` bytes, or raise `ShardDecodeError`; as `decode_within`."""
        data = self.decode_within(data, nbytes, memory)
        if data is not memory and memoryview(data).nbytes != nbytes:
            raise ShardDecodeError(
                f"it decodes to {memoryview(data).nbytes} bytes instead of {nbytes}"
            )
        return data
