"""What a Zarr v3 array document says, as far as its stored objects are concerned.

The document is always made by zarr itself; this module only reads it, so that there is one
description of an array and the direct encoder and decoder are driven by it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import (
    CTLabError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)

__all__ = ["CodecSpec", "StoredArray", "is_key", "parse_array_document", "refuse_large_chunks"]

#: Bytes of one entry of a shard's index: offset and nbytes, each an unsigned 64-bit integer.
_INDEX_ENTRY_NBYTES = 16
#: Codecs between an inner chunk's bytes and the stored bytes that the direct way knows.
_DIRECT_CODECS = frozenset({"zstd", "blosc", "gzip", "crc32c", "numcodecs.lz4"})
#: The most bytes of a chunk that a codec takes; the others take as many as memory holds. Blosc's
#: BLOSC_MAX_BUFFERSIZE, LZ4's LZ4_MAX_INPUT_SIZE.
_MOST_NBYTES = {"blosc": 2**31 - 17, "numcodecs.blosc": 2**31 - 17, "numcodecs.lz4": 0x7E000000}
#: numpy dtypes of the Zarr data types that the direct way handles.
_DIRECT_DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64"]
)
#: Larger than any array here; a document beyond it is hostile or damaged.
_MAX_AXIS_LENGTH = 2**48
_NUMBER = re.compile("[0-9]+")
#: What names of objects do not have: control characters, half characters, Windows' separator.
_NO_KEY = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def is_key(text: Any) -> bool:
    """Whether a text names something inside a store, whatever kind of store that is.

    Examples
    --------
    >>> [is_key(text) for text in ("labels/cells/0", "../0", "/tmp/0", "a//b", "")]
    [True, False, False, False, False]
    """
    if not isinstance(text, str) or _NO_KEY.search(text):
        return False
    return not {"", ".", ".."}.intersection(text.split("/"))


@dataclass(frozen=True)
class CodecSpec:
    """Name and configuration (as canonical JSON) of one codec of a chain."""

    name: str
    configuration: str

    @property
    def options(self) -> dict[str, Any]:
        """The configuration as a dict."""
        options: dict[str, Any] = json.loads(self.configuration)
        return options


@dataclass(frozen=True)
class StoredArray:
    """One array as it is stored.

    Attributes
    ----------
    document
        The array's ``zarr.json``, as text.
    object_shape
        Shape of a stored object, in elements: a shard, or a chunk where there is no sharding.
    inner_chunk_shape
        Shape of the unit of decoding; equal to `object_shape` without sharding.
    codecs
        The chain after ``bytes``, for the direct way.
    index_checksum
        Whether the shard index ends in a crc32c.
    is_sharded, is_direct
        Whether objects are shards; whether the direct encoder and decoder understand them.
    """

    document: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_bytes: bytes
    object_shape: tuple[int, ...]
    inner_chunk_shape: tuple[int, ...]
    codecs: tuple[CodecSpec, ...]
    index_checksum: bool
    is_sharded: bool
    is_direct: bool
    key_encoding: str
    separator: str
    dimension_names: tuple[str | None, ...] | None

    @property
    def fill_value(self) -> Any:
        """The fill value, a NumPy scalar of the array's dtype."""
        return np.frombuffer(self.fill_bytes, self.dtype)[0]

    @property
    def chunks_per_object(self) -> tuple[int, ...]:
        """Number of inner chunks of an object along each axis."""
        return tuple(o // c for o, c in zip(self.object_shape, self.inner_chunk_shape, strict=True))

    @property
    def inner_chunk_nbytes(self) -> int:
        """Size of one decoded inner chunk, in bytes."""
        return prod(self.inner_chunk_shape) * self.dtype.itemsize

    @property
    def encoded_chunk_limit(self) -> int:
        """Size in bytes that no encoded inner chunk has, whatever its codecs add to it."""
        return 2 * self.inner_chunk_nbytes + (1 << 16)

    @property
    def object_limit(self) -> int:
        """Size in bytes that no stored object has."""
        return prod(self.chunks_per_object) * self.encoded_chunk_limit + self.index_nbytes

    @property
    def index_nbytes(self) -> int:
        """Size of the index at the end of a shard, in bytes."""
        n_chunks = prod(self.chunks_per_object)
        return n_chunks * _INDEX_ENTRY_NBYTES + (4 if self.index_checksum else 0)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of stored objects along each axis."""
        return tuple(-(-n // o) for n, o in zip(self.shape, self.object_shape, strict=True))

    def is_inside(self, coords: tuple[int, ...]) -> bool:
        """Whether there is an object at `coords`."""
        return all(c < n for c, n in zip(coords, self.grid_shape, strict=True))

    def object_region(self, coords: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the array slices of the object at `coords`, trimmed to the array."""
        return tuple(
            slice(c * o, min((c + 1) * o, n))
            for c, o, n in zip(coords, self.object_shape, self.shape, strict=True)
        )

    def key(self, coords: tuple[int, ...]) -> str:
        """Return the key of the object at `coords`, relative to the array.

        The only place where a chunk key is spelt (Zarr v3 core, "Chunk key encoding").

        Examples
        --------
        With the default encoding and ``/`` as separator, ``(1, 0, 2)`` is ``c/1/0/2``.
        """
        numbers = [str(c) for c in coords]
        if self.key_encoding == "v2":
            return self.separator.join(numbers) or "0"
        return self.separator.join(["c", *numbers])

    def coords(self, key: str) -> tuple[int, ...] | None:
        """Return the coordinates of the object with a key, inside the grid or not; None for none.

        The inverse of `key`.
        """
        numbers = _NUMBER.findall(key)
        coords = tuple(map(int, numbers)) if len(numbers) == len(self.shape) else ()
        return coords if len(coords) == len(self.shape) and self.key(coords) == key else None


@lru_cache(maxsize=256)
def parse_array_document(text: str) -> StoredArray:
    """Read an array's ``zarr.json``.

    Raises
    ------
    MetadataError
        The document lacks what the Zarr v3 core specification requires, or contradicts itself.
    UnsupportedFormatError
        A chunk grid or key encoding that is not read here.
    """
    try:
        document = json.loads(text)
        return _parse(document, text)
    except RecursionError:
        raise MetadataError("the array's zarr.json is nested too deeply to be metadata") from None
    except CTLabError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MetadataError(
            f"the array's zarr.json lacks or misspells a required part ({error!r})"
        ) from error


def _parse(document: dict[str, Any], text: str) -> StoredArray:
    if document.get("zarr_format") != 3 or document.get("node_type") != "array":
        raise MetadataError("this zarr.json does not describe a Zarr v3 array")
    shape = _lengths("shape", document["shape"], minimum=0)
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise UnsupportedFormatError(f"chunk grid {grid['name']!r} is not read here, only regular")
    object_shape = _lengths("chunk_shape", grid["configuration"]["chunk_shape"], minimum=1)
    if len(object_shape) != len(shape):
        raise MetadataError(f"chunk shape {object_shape} does not fit the array shape {shape}")
    sharding, chain, index_checksum, index_is_plain = _parse_codecs(document["codecs"])
    inner = _lengths("chunk_shape", sharding["chunk_shape"], 1) if sharding else object_shape
    if len(inner) != len(shape) or any(o % c for o, c in zip(object_shape, inner, strict=True)):
        raise MetadataError(f"inner chunks {inner} do not divide shards {object_shape}")
    dtype, fill_bytes = _parse_dtype(document["data_type"], document["fill_value"])
    is_direct = (
        dtype is not None
        and chain is not None
        and index_is_plain
        and not document.get("storage_transformers")
    )
    name, separator = _parse_key_encoding(document["chunk_key_encoding"])
    return StoredArray(
        document=text,
        shape=shape,
        dtype=dtype if dtype is not None else np.dtype("V1"),
        fill_bytes=fill_bytes,
        object_shape=object_shape,
        inner_chunk_shape=inner,
        codecs=chain or (),
        index_checksum=index_checksum,
        is_sharded=sharding is not None,
        is_direct=is_direct,
        key_encoding=name,
        separator=separator,
        dimension_names=_parse_names(document.get("dimension_names"), len(shape)),
    )


def _parse_names(names: Any, ndim: int) -> tuple[str | None, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != ndim:
        raise MetadataError(f"dimension_names {names!r} are not {ndim} names")
    if not all(name is None or isinstance(name, str) for name in names):
        raise MetadataError(f"dimension_names {names!r} are not all text")
    return tuple(names)


def _lengths(name: str, values: Any, minimum: int) -> tuple[int, ...]:
    lengths = tuple(values)
    for n in lengths:
        if isinstance(n, bool) or not isinstance(n, int) or not minimum <= n <= _MAX_AXIS_LENGTH:
            raise MetadataError(f"{name} {lengths} holds {n!r}, which is no possible length")
    return lengths


def _parse_codecs(
    codecs: list[dict[str, Any]],
) -> tuple[dict[str, Any] | None, tuple[CodecSpec, ...] | None, bool, bool]:
    """Return (sharding configuration, direct chain or None, index has crc32c, index is plain)."""
    if codecs[0]["name"] != "sharding_indexed":
        return None, _direct_chain(codecs), False, True
    configuration = codecs[0]["configuration"]
    index_names = [codec["name"] for codec in configuration["index_codecs"]]
    index_is_plain = (
        len(codecs) == 1
        and configuration.get("index_location", "end") == "end"
        and index_names in (["bytes"], ["bytes", "crc32c"])
        and configuration["index_codecs"][0].get("configuration", {}).get("endian") == "little"
    )
    return (
        configuration,
        _direct_chain(configuration["codecs"]),
        index_names[-1:] == ["crc32c"],
        index_is_plain,
    )


def _direct_chain(codecs: list[dict[str, Any]]) -> tuple[CodecSpec, ...] | None:
    if not codecs:
        raise MetadataError("a chain of codecs is empty: not even its bytes are described")
    first, *rest = codecs
    if first["name"] != "bytes":
        return None
    if (first.get("configuration") or {}).get("endian", "little") != "little":
        return None
    chain = []
    for codec in rest:
        if codec["name"] not in _DIRECT_CODECS:
            return None
        options = codec.get("configuration") or {}
        chain.append(CodecSpec(codec["name"], json.dumps(options, sort_keys=True)))
    return tuple(chain)


def _parse_dtype(name: Any, fill_value: Any) -> tuple[np.dtype[Any] | None, bytes]:
    """Return (dtype or None where the direct way does not know it, one element of fill)."""
    if not isinstance(name, str) or name not in _DIRECT_DTYPES:
        return None, b""
    dtype = np.dtype(name).newbyteorder("<")
    if isinstance(fill_value, str) and fill_value.startswith("0x"):
        # Zarr v3 core, "Fill value": floats may be given by their bits, most significant first.
        return dtype, int(fill_value, 16).to_bytes(dtype.itemsize, "little")
    special = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    value = special[fill_value] if isinstance(fill_value, str) else fill_value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MetadataError(f"fill value {fill_value!r} is no number")
    if dtype.kind in "iu":
        # A value that does not fit would wrap around without a word.
        limits = np.iinfo(dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise MetadataError(f"fill value {fill_value!r} is no {dtype.name}")
        value = int(value)
    return dtype, np.array(value).astype(dtype).tobytes()


def _parse_key_encoding(encoding: dict[str, Any]) -> tuple[str, str]:
    name = encoding["name"]
    default = {"default": "/", "v2": "."}
    if name not in default:
        raise UnsupportedFormatError(f"chunk key encoding {name!r} is not read here")
    separator = (encoding.get("configuration") or {}).get("separator", default[name])
    if separator not in ("/", "."):
        raise MetadataError(f"chunk key separator {separator!r} is neither '/' nor '.'")
    return name, separator


def refuse_large_chunks(text: str) -> None:
    """Raise `InvalidArgumentError` where a codec of an array cannot take its chunks."""
    codecs = json.loads(text)["codecs"]
    inner = [c for codec in codecs for c in codec.get("configuration", {}).get("codecs", ())]
    nbytes = parse_array_document(text).inner_chunk_nbytes
    for name in (codec["name"] for codec in (*codecs, *inner)):
        most = _MOST_NBYTES.get(name, nbytes)
        if nbytes > most:
            raise InvalidArgumentError(
                f"a chunk has {nbytes:,} bytes, and the codec {name} takes {most:,} at most: pass "
                "smaller chunks=..., or another codec"
            )
