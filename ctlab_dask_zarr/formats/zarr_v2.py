"""Documents of Zarr v2, said in the words of Zarr v3, so that both are read by the same code.

Specification: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html . What v2 calls order, byte
order, filters and compressor is one chain of codecs in v3, and a chunk is the same bytes in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError

#: The documents of a node: its attributes stand beside what makes it a group or an array.
V2_GROUP, V2_ARRAY, V2_ATTRIBUTES = ".zgroup", ".zarray", ".zattrs"
V2_DOCUMENTS = (V2_GROUP, V2_ARRAY, V2_ATTRIBUTES)

_BLOSC_SHUFFLE = {-1: "shuffle", 0: "noshuffle", 1: "shuffle", 2: "bitshuffle"}


def array_document_of_v2(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array whose ``.zarray`` is given.

    Filters stand before ``bytes``, where zarr would not take all of them: what has some is read by
    zarr, as v2.

    Raises
    ------
    UnsupportedFormatError
        The elements are not numbers.
    """
    shape, dtype = document["shape"], _dtype(document["dtype"])
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": document["chunks"]}},
        "chunk_key_encoding": {
            "name": "v2",
            "configuration": {"separator": document.get("dimension_separator") or "."},
        },
        "fill_value": _fill_value(document["fill_value"], dtype),
        "codecs": list(_codecs(document, len(shape), dtype)),
        "attributes": {},
    }


def _dtype(name: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise UnsupportedFormatError(
            f"the array's elements are {name!r}; volumes are of integers or floats"
        )
    return dtype


def _fill_value(found: Any, dtype: np.dtype[Any]) -> Any:
    """Return the fill value as v3 spells it: what was never written is zero where none is said."""
    if dtype.kind == "b":
        return bool(found)
    is_whole = isinstance(found, float) and found.is_integer()
    return 0 if found is None else int(found) if is_whole and dtype.kind in "iu" else found


def _codecs(
    document: Mapping[str, Any], ndim: int, dtype: np.dtype[Any]
) -> Iterator[dict[str, Any]]:
    order = document.get("order", "C")
    if order not in ("C", "F"):
        raise MetadataError(f"the order {order!r} of the array is neither 'C' nor 'F'")
    if order == "F" and ndim > 1:
        yield {"name": "transpose", "configuration": {"order": [*reversed(range(ndim))]}}
    yield from map(_named, document.get("filters") or [])
    endian = "big" if dtype.str.startswith(">") else "little"
    yield {"name": "bytes", "configuration": {"endian": endian}}
    compressor = document.get("compressor")
    if compressor is not None:
        yield _compressor(compressor, dtype.itemsize)


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a codec of numcodecs, by the name that zarr has for it in v3."""
    options = {key: value for key, value in found.items() if key != "id"}
    return {"name": f"numcodecs.{found['id']}", "configuration": options}


def _compressor(found: Mapping[str, Any], itemsize: int) -> dict[str, Any]:
    match found["id"]:
        case "blosc":
            configuration = {
                "cname": found["cname"],
                "clevel": found["clevel"],
                "shuffle": _BLOSC_SHUFFLE[found.get("shuffle", 1)],
                "typesize": itemsize,
                "blocksize": found.get("blocksize", 0),
            }
        case "zstd":
            configuration = {"level": found["level"], "checksum": found.get("checksum", False)}
        case "gzip":
            configuration = {"level": found["level"]}
        case _:
            return _named(found)
    return {"name": found["id"], "configuration": configuration}
