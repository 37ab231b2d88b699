"""What a Zarr v3 array document says about the array's stored objects.

zarr makes the document and this module reads it; the encoder and the decoder follow what it says,
so that there is only one description of an array.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import CTLabError, MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.codecs import CODECS
from ctlab_dask_zarr.formats.level import Shape

#: Bytes of one entry of a shard's index: offset and nbytes, each an unsigned 64-bit integer.
_INDEX_ENTRY_NBYTES = 16
#: Zarr data types that are encoded and decoded here; NumPy has the same names.
_DIRECT_DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64"]
)
_V2_ARRAY = ".zarray"
#: A document with a longer axis is hostile or damaged.
_MAX_AXIS_LENGTH = 2**48
_NUMBER = re.compile("[0-9]+")
#: Characters that no key has: control characters, surrogates, the separator of Windows.
_NO_KEY = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def is_key(text: Any) -> bool:
    """Whether a text can be the name of something in a store, of any kind of store."""
    if not isinstance(text, str) or _NO_KEY.search(text):
        return False
    return not {"", ".", ".."}.intersection(text.split("/"))


def key_in(node: str, name: str) -> str:
    """Return the key of what lies in a node of a store; '' is the root."""
    return f"{node}/{name}" if node else name


def grid_of(shape: Shape, cell: Shape) -> Shape:
    """Return how many cells cover `shape` along each axis."""
    return tuple(-(-n // c) for n, c in zip(shape, cell, strict=True))


def region_of(coords: Shape, cell: Shape, shape: Shape) -> tuple[slice, ...]:
    """Return the array slices of the cell at `coords`, trimmed to an array of `shape`."""
    return tuple(
        slice(c * size, min((c + 1) * size, n))
        for c, size, n in zip(coords, cell, shape, strict=True)
    )


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
    """One array as it is stored: what its document says.

    `object_shape` is the shape of a shard, or of a chunk without sharding. `codecs` are the codecs
    after ``bytes``. `is_direct` says whether this package encodes and decodes the objects itself,
    without zarr.
    """

    document: str
    shape: Shape
    dtype: np.dtype[Any]
    fill_bytes: bytes
    object_shape: Shape
    inner_chunk_shape: Shape
    codecs: tuple[CodecSpec, ...]
    index_checksum: bool
    is_sharded: bool
    is_direct: bool
    key_encoding: str
    separator: str
    dimension_names: tuple[str | None, ...] | None
    zarr_format: int = 3

    @property
    def document_name(self) -> str:
        """The name of the array's document in the store."""
        return _V2_ARRAY if self.zarr_format == 2 else "zarr.json"

    @property
    def fill_value(self) -> Any:
        """The fill value, a NumPy scalar of the array's dtype."""
        return np.frombuffer(self.fill_bytes, self.dtype)[0]

    @cached_property
    def chunks_per_object(self) -> Shape:
        """Number of inner chunks of an object along each axis."""
        return grid_of(self.object_shape, self.inner_chunk_shape)

    @cached_property
    def inner_chunk_nbytes(self) -> int:
        """Size of one decoded inner chunk, in bytes."""
        return prod(self.inner_chunk_shape) * self.dtype.itemsize

    @property
    def encoded_chunk_limit(self) -> int:
        """Upper limit for the size of an encoded inner chunk, in bytes."""
        return 2 * self.inner_chunk_nbytes + (1 << 16)

    @property
    def object_limit(self) -> int:
        """Upper limit for the size of a stored object, in bytes."""
        return prod(self.chunks_per_object) * self.encoded_chunk_limit + self.index_nbytes

    @cached_property
    def index_nbytes(self) -> int:
        """Size of the index at the end of a shard, in bytes."""
        n_chunks = prod(self.chunks_per_object)
        return n_chunks * _INDEX_ENTRY_NBYTES + (4 if self.index_checksum else 0)

    @property
    def grid_shape(self) -> Shape:
        """Number of stored objects along each axis."""
        return grid_of(self.shape, self.object_shape)

    def is_inside(self, coords: Shape) -> bool:
        """Whether there is an object at `coords`."""
        return all(c < n for c, n in zip(coords, self.grid_shape, strict=True))

    def object_region(self, coords: Shape) -> tuple[slice, ...]:
        """Return the array slices of the object at `coords`, trimmed to the array."""
        return region_of(coords, self.object_shape, self.shape)

    def key(self, coords: Shape) -> str:
        """Return the key of the object at `coords`, below the array, such as ``c/1/0/2``.

        Keys are spelt here only (Zarr v3 core, "Chunk key encoding").
        """
        numbers = [str(c) for c in coords]
        if self.key_encoding == "v2":
            return self.separator.join(numbers) or "0"
        return self.separator.join(["c", *numbers])

    def coords(self, key: str) -> Shape | None:
        """Return the coordinates for which `key` gives this key; None if there are none."""
        numbers = _NUMBER.findall(key)
        coords = tuple(map(int, numbers)) if len(numbers) == len(self.shape) else ()
        return coords if len(coords) == len(self.shape) and self.key(coords) == key else None


@lru_cache(maxsize=256)
def parse_array_document(text: str) -> StoredArray:
    """Read an array's ``zarr.json``, or its ``.zarray`` of Zarr v2.

    Raises `MetadataError` or `UnsupportedFormatError`.
    """
    name = "zarr.json"
    try:
        document = json.loads(text)
        if document.get("zarr_format") != 2:
            return _parse(document, text)
        # Not for workers, which rarely meet one.
        from ctlab_dask_zarr.formats.zarr_v2 import array_document_of_v2

        name = _V2_ARRAY
        described = array_document_of_v2(document)
        return replace(_parse(described, text), zarr_format=2)
    except RecursionError:
        raise MetadataError(f"the array's {name} is nested too deeply to be metadata") from None
    except CTLabError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MetadataError(
            f"the array's {name} lacks or misspells a required part ({error!r})"
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
    codecs = document["codecs"]
    is_sharded = codecs[0]["name"] == "sharding_indexed"
    sharding = codecs[0]["configuration"] if is_sharded else {"index_codecs": []}
    index_names = [codec["name"] for codec in sharding["index_codecs"]]
    inner = _lengths("chunk_shape", sharding["chunk_shape"], 1) if is_sharded else object_shape
    if len(inner) != len(shape) or any(o % c for o, c in zip(object_shape, inner, strict=True)):
        raise MetadataError(f"inner chunks {inner} do not divide shards {object_shape}")
    dtype, fill_bytes = _parse_dtype(document["data_type"], document["fill_value"])
    chain = _direct_chain(sharding["codecs"] if is_sharded else codecs)
    is_direct = (
        dtype is not None
        and chain is not None
        and not document.get("storage_transformers")
        and (not is_sharded or (len(codecs) == 1 and _has_plain_index(sharding, index_names)))
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
        index_checksum=index_names[-1:] == ["crc32c"],
        is_sharded=is_sharded,
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


def _lengths(name: str, values: Any, minimum: int) -> Shape:
    lengths = tuple(values)
    for n in lengths:
        if isinstance(n, bool) or not isinstance(n, int) or not minimum <= n <= _MAX_AXIS_LENGTH:
            raise MetadataError(f"{name} {lengths} holds {n!r}, which is not a possible length")
    return lengths


def _has_plain_index(sharding: dict[str, Any], index_names: list[str]) -> bool:
    return (
        sharding.get("index_location", "end") == "end"
        and index_names in (["bytes"], ["bytes", "crc32c"])
        and sharding["index_codecs"][0].get("configuration", {}).get("endian") == "little"
    )


def _direct_chain(codecs: list[dict[str, Any]]) -> tuple[CodecSpec, ...] | None:
    if not codecs:
        raise MetadataError("a chain of codecs is empty: not even its bytes are described")
    first, *rest = codecs
    if first["name"] != "bytes" or any(codec["name"] not in CODECS for codec in rest):
        return None
    if (first.get("configuration") or {}).get("endian", "little") != "little":
        return None
    return tuple(
        CodecSpec(codec["name"], json.dumps(codec.get("configuration") or {}, sort_keys=True))
        for codec in rest
    )


def _parse_dtype(name: Any, fill_value: Any) -> tuple[np.dtype[Any] | None, bytes]:
    """Return the dtype (None if only zarr knows it) and one element of fill."""
    if not isinstance(name, str) or name not in _DIRECT_DTYPES:
        return None, b""
    dtype = np.dtype(name).newbyteorder("<")
    if isinstance(fill_value, str) and fill_value.startswith("0x"):
        # Zarr v3 core, "Fill value": floats may be given by their bits, most significant first.
        return dtype, int(fill_value, 16).to_bytes(dtype.itemsize, "little")
    special = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    value = special[fill_value] if isinstance(fill_value, str) else fill_value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MetadataError(f"fill value {fill_value!r} is not a number")
    if dtype.kind in "iu":
        # NumPy would let a value that does not fit wrap around.
        limits = np.iinfo(dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise MetadataError(f"fill value {fill_value!r} is not a {dtype.name}")
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
