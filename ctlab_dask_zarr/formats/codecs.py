"""The codecs that are applied here, without zarr. A codec is added in this file alone: in `CODECS`.

Chunks are then encoded and decoded with it one by one, `--codec` and `codec` in the settings take
its short name, and chunks that it cannot take are refused in time. Arrays with other codecs are
left to zarr, which is slower and holds whole shards (`codec.zarr_fallback`).

Libraries are loaded when a codec is used first: settings need the names alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.errors import ShardDecodeError

Buffer = Any  # collections.abc.Buffer exists from Python 3.12
Encode = Callable[[Buffer], Buffer]
#: decode(data, limit) returns at most `limit` bytes, even of a damaged or hostile frame.
Decode = Callable[[Buffer, int], Buffer]

_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_GZIP_WBITS = 31


@dataclass(frozen=True)
class Codec:
    """A codec between the bytes of a chunk and those that are stored.

    Attributes
    ----------
    make
        Returns (encode, decode) for a configuration as in a ``zarr.json``, for one thread.
    short_name
        What users type; '' where they cannot.
    options
        What they may type after it, in this order: the default, and the values that there are.
    fixed
        The rest of the configuration.
    most_nbytes
        The most bytes of a chunk that it takes; None for as many as memory holds.
    """

    make: Callable[[dict[str, Any]], tuple[Encode, Decode]]
    short_name: str = ""
    options: Mapping[str, tuple[Any, Container[Any]]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    most_nbytes: int | None = None

    def configuration(self, *typed: str) -> dict[str, Any]:
        """Return the configuration for options that were typed, defaults for the others.

        Raises `ValueError` where one is wrong, or where there are too many.
        """
        found = {name: default for name, (default, _) in self.options.items()}
        for name, text in zip(list(found)[: len(typed)], typed, strict=True):
            found[name] = type(found[name])(text)
            if found[name] not in self.options[name][1]:
                raise ValueError(text)
        return found | dict(self.fixed)


def array_kwargs(codec: str) -> dict[str, Any]:
    """Return the arguments of `zarr.create_array` for a codec by its short name.

    Raises
    ------
    ValueError
        No codec has this name, or it does not take these options.

    Examples
    --------
    >>> array_kwargs("none")
    {'compressors': None}
    >>> array_kwargs("gzip:6")
    {'compressors': [{'name': 'gzip', 'configuration': {'level': 6}}]}
    """
    if codec == "none":
        return {"compressors": None}
    short_name, *typed = codec.split(":")
    for name, known in CODECS.items():
        if known.short_name == short_name != "":
            with suppress(ValueError):
                configuration = known.configuration(*typed)
                return {"compressors": [{"name": name, "configuration": configuration}]}
    raise ValueError(f"{codec!r} is not a codec, or has an option that it does not take")


def crc32c(data: Buffer) -> bytes:
    """Return the CRC-32C of `data` as the four little-endian bytes that Zarr stores."""
    # The C function refuses memoryviews; an array over the same memory it takes.
    return struct.pack("<I", google_crc32c.value(np.frombuffer(data, np.uint8)))


def _zstd(options: dict[str, Any]) -> tuple[Encode, Decode]:
    import zstandard

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


def _blosc(options: dict[str, Any]) -> tuple[Encode, Decode]:
    from numcodecs import blosc

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


def _gzip(options: dict[str, Any]) -> tuple[Encode, Decode]:
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


def _lz4(options: dict[str, Any]) -> tuple[Encode, Decode]:
    from numcodecs.lz4 import LZ4

    codec = LZ4(acceleration=options.get("acceleration", 1))

    def decode(data: Buffer, limit: int) -> Buffer:
        # numcodecs' framing: the decoded size, then one LZ4 block.
        if memoryview(data).nbytes < 4 or struct.unpack_from("<I", data)[0] > limit:
            raise ShardDecodeError(f"its LZ4 header claims more than {limit} bytes")
        return codec.decode(data)

    return codec.encode, decode


def _crc32c(_: dict[str, Any]) -> tuple[Encode, Decode]:
    def encode(data: Buffer) -> Buffer:
        return bytes(data) + crc32c(data)

    def decode(data: Buffer, limit: int) -> Buffer:
        content = memoryview(data)[:-4]
        if crc32c(content) != memoryview(data)[-4:]:
            raise ShardDecodeError("its crc32c does not match")
        return content

    return encode, decode


#: By their names in a ``zarr.json``. Sizes are Blosc's BLOSC_MAX_BUFFERSIZE and LZ4's
#: LZ4_MAX_INPUT_SIZE.
CODECS = {
    "zstd": Codec(_zstd, "zstd", {"level": (0, range(-131072, 23))}, {"checksum": False}),
    "blosc": Codec(
        _blosc,
        "blosc",
        # Without a type size: zarr takes it from the array's dtype.
        {
            "cname": ("zstd", ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")),
            "clevel": (5, range(10)),
            "shuffle": ("bitshuffle", _BLOSC_SHUFFLE),
        },
        most_nbytes=2**31 - 17,
    ),
    "gzip": Codec(_gzip, "gzip", {"level": (5, range(10))}),
    "numcodecs.lz4": Codec(_lz4, "lz4", fixed={"acceleration": 1}, most_nbytes=0x7E000000),
    "crc32c": Codec(_crc32c),
}
