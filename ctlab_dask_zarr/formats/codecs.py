"""The codecs that are applied here, without zarr, and how users write them: ``zstd:3``.

A codec that zarr knows is added in this file alone: in `CODECS` (CONTRIBUTING.md says how). Chunks
are then encoded and decoded with it one by one, ``codec=``, `--codec` and the settings take its
short name, help and messages list it, and chunks that it cannot take are refused in time. Arrays
with other codecs are left to zarr, which is slower and holds whole shards (`codec.zarr_fallback`).

Libraries are loaded when a codec is used first: settings need the names alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.errors import ShardDecodeError

Buffer = Any  # collections.abc.Buffer exists from Python 3.12
Encode = Callable[[Buffer], Buffer]
#: decode(data, limit, memory) returns at most `limit` bytes, even of a damaged or hostile frame.
#: What has just that many may be put into `memory` and returned there; None for no such memory.
Decode = Callable[[Buffer, int, Buffer | None], Buffer]

#: What users write to have a codec chosen by measuring (`planning.codec`).
AUTO_CODECS = ("auto", "auto:small", "auto:fast")
_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
#: zlib's `wbits`: the window, and 16 more for the header of gzip.
_ZLIB_WBITS, _GZIP_WBITS = 15, 31


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
        What they may type after it, in this order: the default, and the values that there are. The
        names are those of the configuration, which zarr has to accept as it is.
    fixed
        The rest of the configuration.
    most_nbytes
        The most bytes of a chunk that it takes; None for as many as memory holds.
    """

    make: Callable[[dict[str, Any]], tuple[Encode, Decode]]
    short_name: str = ""
    options: Mapping[str, tuple[Any, Collection[Any]]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    most_nbytes: int | None = None

    def configuration(self, *typed: str) -> dict[str, Any]:
        """Return the configuration for options that were typed, defaults for the others.

        Raises `ValueError`, which says what there is, where one is wrong or there are too many.
        """
        found = {name: default for name, (default, _) in self.options.items()}
        if len(typed) > len(found):
            raise ValueError(f"it has more options than {self.syntax}")
        for name, text in zip(found, typed, strict=False):
            default, known = self.options[name]
            try:
                found[name] = type(default)(text)
            except ValueError:
                found[name] = None
            if found[name] not in known:
                values = f"one of {', '.join(map(str, known))}"
                if isinstance(known, range):
                    values = f"a number from {known[0]} to {known[-1]}"
                raise ValueError(f"its {name} is {values}, and not {text!r}")
        return found | dict(self.fixed)

    @property
    def syntax(self) -> str:
        """What users may type: ``gzip[:LEVEL]``."""
        options = "".join(f":{name.upper()}" for name in self.options)
        return f"{self.short_name}[{options}]" if options else self.short_name


def array_kwargs(codec: str) -> dict[str, Any]:
    """Return the arguments of `zarr.create_array` for a codec as users write it.

    Raises
    ------
    ValueError
        No codec has this name, or it does not take these options; the message says what there is.

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
            try:
                configuration = known.configuration(*typed)
            except ValueError as error:
                raise ValueError(f"{codec!r} is not a codec: {error}") from None
            return {"compressors": [{"name": name, "configuration": configuration}]}
    problem = "is chosen by a write" if codec in AUTO_CODECS else f"write {codec_syntax()}"
    raise ValueError(f"{codec!r} is not a codec: {problem}")


def codec_syntax() -> str:
    """Return what users may write for a codec, as a list for messages."""
    known = [codec.syntax for codec in CODECS.values() if codec.short_name]
    return f"{', '.join(known)} or none; or {', '.join(AUTO_CODECS)}, chosen by measuring"


def codec_text(chain: Iterable[tuple[str, Mapping[str, Any]]]) -> str | None:
    """Return what a user would write for a chain of codecs; None where it cannot be written.

    The chain is of names and configurations, as in a ``zarr.json`` after ``bytes``.

    Examples
    --------
    >>> codec_text([("gzip", {"level": 6})])
    'gzip:6'
    >>> codec_text([])
    'none'
    """
    links = list(chain)
    if not links:
        return "none"
    (name, configuration), *more = links
    known = CODECS.get(name)
    if more or known is None or not known.short_name or known.options.keys() - configuration.keys():
        return None
    if any(configuration.get(field) != value for field, value in known.fixed.items()):
        return None
    values = [configuration[option] for option in known.options]
    if len(values) == 1 and values[0] == known.options[next(iter(known.options))][0]:
        values = []
    return ":".join([known.short_name, *map(str, values)])


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

    def decode(data: Buffer, limit: int, memory: Buffer | None) -> Buffer:
        # A frame states its size, and the library allocates that much: look before.
        nbytes = zstandard.frame_content_size(data)
        if nbytes > limit:
            raise ShardDecodeError(f"its zstd frame claims more than {limit} bytes")
        if nbytes == limit and memory is not None:
            if decompressor.stream_reader(data).readinto(memory) != limit:
                raise ShardDecodeError("its zstd frame is cut off")
            return memory
        return decompressor.decompress(data, max_output_size=limit)

    return compressor.compress, decode


def _blosc(options: dict[str, Any]) -> tuple[Encode, Decode]:
    from numcodecs import blosc

    cname = options["cname"].encode()
    clevel, blocksize = options["clevel"], options.get("blocksize", 0)
    shuffle, typesize = _BLOSC_SHUFFLE[options["shuffle"]], options.get("typesize") or 1

    def encode(data: Buffer) -> Buffer:
        return blosc.compress(data, cname, clevel, shuffle, blocksize, typesize)

    def decode(data: Buffer, limit: int, memory: Buffer | None) -> Buffer:
        if memoryview(data).nbytes < 16:
            raise ShardDecodeError("it is too short to be a blosc frame")
        nbytes, _, compressed_nbytes = struct.unpack_from("<III", data, 4)
        if nbytes > limit or compressed_nbytes != memoryview(data).nbytes:
            raise ShardDecodeError("its blosc header does not fit its size")
        return blosc.decompress(data, memory if nbytes == limit else None)

    return encode, decode


def _deflated(wbits: int, options: dict[str, Any]) -> tuple[Encode, Decode]:
    level = options["level"]

    def encode(data: Buffer) -> Buffer:
        return zlib.compress(data, level, wbits)

    def decode(data: Buffer, limit: int, memory: Buffer | None) -> Buffer:
        inflater = zlib.decompressobj(wbits)
        decoded = inflater.decompress(data, limit + 1)
        if not inflater.eof:
            raise ShardDecodeError(f"its deflated stream is cut off or longer than {limit} bytes")
        return decoded

    return encode, decode


def _zlib(options: dict[str, Any]) -> tuple[Encode, Decode]:
    # The level that numcodecs takes where none is said; gzip has to say its own.
    return _deflated(_ZLIB_WBITS, {"level": 1} | options)


def _lz4(options: dict[str, Any]) -> tuple[Encode, Decode]:
    from numcodecs.lz4 import LZ4

    codec = LZ4(acceleration=options.get("acceleration", 1))

    def decode(data: Buffer, limit: int, memory: Buffer | None) -> Buffer:
        # numcodecs' framing: the decoded size, then one LZ4 block.
        if memoryview(data).nbytes < 4 or struct.unpack_from("<I", data)[0] > limit:
            raise ShardDecodeError(f"its LZ4 header claims more than {limit} bytes")
        return codec.decode(data)

    return codec.encode, decode


def _crc32c(_: dict[str, Any]) -> tuple[Encode, Decode]:
    def encode(data: Buffer) -> Buffer:
        return bytes(data) + crc32c(data)

    def decode(data: Buffer, limit: int, memory: Buffer | None) -> Buffer:
        content = memoryview(data)[:-4]
        if crc32c(content) != memoryview(data)[-4:]:
            raise ShardDecodeError("its crc32c does not match")
        return content

    return encode, decode


#: By their names in a ``zarr.json``, for which zarr has to have a codec too: it makes the document.
#: Sizes are Blosc's BLOSC_MAX_BUFFERSIZE and LZ4's LZ4_MAX_INPUT_SIZE.
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
    "gzip": Codec(partial(_deflated, _GZIP_WBITS), "gzip", {"level": (5, range(10))}),
    "numcodecs.lz4": Codec(_lz4, "lz4", fixed={"acceleration": 1}, most_nbytes=0x7E000000),
    # Of arrays of Zarr v2, where it is usual.
    "numcodecs.zlib": Codec(_zlib),
    "crc32c": Codec(_crc32c),
}
