"""The record of a write: a receipt for every stored object, and checksums over everything.

zstd frames carry no checksum by default, so a flipped bit can decode to other voxels. Therefore the
commit keeps the CRC-32C of every byte of a dataset, as a chain that begins in the root document::

    zarr.json          attributes.ctlab_dask_zarr: its own checksum, and those of the two below
    0/zarr.json
    0/receipts.json    size and checksum of every shard of the array, in C order of the grid

``receipts.json`` is in the folder of its array, where Zarr readers look only for chunks; in a group
they would take it for an unknown node. It has about 20 bytes a shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.formats.units import validated_origin
from ctlab_dask_zarr.formats.zarr_array import StoredArray, key_in

#: Attribute of the root document in which this package says what it wrote.
RECEIPT_ATTRIBUTE = "ctlab_dask_zarr"
#: Fields of it: whether voxels name classes, where the data type does not say so, and the origin of
#: a plain array. The origin is in voxels, so that it follows when the voxel size is corrected.
_IS_DISCRETE, _ORIGIN = "is_discrete", "origin_voxels"
#: Field that says how a codec was chosen by measuring (`planning.codec`).
CODEC_CHOICE = "codec_choice"
#: Size of an object that is not there, as it is all fill value; only stores of others have those.
ABSENT = -1
#: Field of the record of a level that was sealed: when. And how many objects were absent then.
SEALED, N_ABSENT = "sealed", "n_absent"
#: Object below an array that holds its receipts.
RECEIPTS_OBJECT = "receipts.json"
#: Field of the root's attribute that holds the checksum of the root document itself.
_SEAL = "document_crc32c"
_FORMAT = "ctlab_dask_zarr receipts 1"

#: Upper limits, in bytes: of the text before the entries, of one entry's size and checksum, and of
#: all receipts of an array (a petabyte in shards of 512**3 has 4 million).
_HEAD_NBYTES, _ENTRY_NBYTES, _LARGEST_NBYTES = 1024, 32, 1 << 30

Number = int | float


class ShardReceipt(NamedTuple):
    """Key below the root, size and CRC-32C of a stored object, and the range of its voxels.

    The size is `ABSENT` for an object that is not stored. The range ignores masked voxels and
    non-finite ones; None if there are no others.
    """

    key: str
    nbytes: int
    crc32c: int
    minimum: Number | None = None
    maximum: Number | None = None


@dataclass(frozen=True)
class ReceiptTable:
    """Sizes (int64) and checksums (uint32) of an array's objects, in the shape of their grid.

    The size is `ABSENT` where there is no object.
    """

    nbytes: npt.NDArray[np.int64]
    crc32c: npt.NDArray[np.uint32]


def own_receipt(attributes: Any) -> dict[str, Any] | None:
    """Return the record of the write in a root's attributes; None if another program wrote it."""
    receipt = attributes.get(RECEIPT_ATTRIBUTE) if isinstance(attributes, dict) else None
    return receipt if isinstance(receipt, dict) else None


def is_of_this_package(attributes: Any) -> bool:
    """Whether this package wrote at least one level of an image: a sealed one may have none."""
    return (own_receipt(attributes) or {}).get("run_id") is not None


def stored_facts(
    is_discrete: bool | None, origin: Sequence[float], voxel_size: Sequence[float]
) -> dict[str, Any]:
    """Return the fields of a receipt for facts that have no other place in a store."""
    facts: dict[str, Any] = {} if is_discrete is None else {_IS_DISCRETE: is_discrete}
    if any(origin):
        facts[_ORIGIN] = [o / v for o, v in zip(origin, voxel_size, strict=True)]
    return facts


def stored_discreteness(receipt: Mapping[str, Any] | None) -> bool | None:
    """Return whether a receipt says that voxels name classes; None if it does not say."""
    said = (receipt or {}).get(_IS_DISCRETE)
    return said if isinstance(said, bool) else None


def stored_origin(
    receipt: Mapping[str, Any] | None, voxel_size: Sequence[float]
) -> tuple[float, ...]:
    """Return the origin of a plain array, in the unit of its voxel size."""
    try:
        voxels = validated_origin((receipt or {}).get(_ORIGIN), len(voxel_size))
    except InvalidArgumentError as error:
        raise MetadataError(f"{RECEIPT_ATTRIBUTE}: {_ORIGIN}: {error}") from error
    return tuple(n * size for n, size in zip(voxels, voxel_size, strict=True))


def stored_codec_choice(receipt: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return how the codec was chosen, where a receipt or a staged plan says it whole."""
    said = (receipt or {}).get(CODEC_CHOICE)
    has_all = isinstance(said, dict) and {"asked", "codec", "reason", "measured"} <= said.keys()
    return said if has_all else None


def level_entry(attributes: Any, array_path: str) -> dict[str, Any] | None:
    """Return the record of one array in a root's attributes; None if another program wrote it."""
    entries = (own_receipt(attributes) or {}).get("levels")
    listed = entries if isinstance(entries, list) else []
    return next((e for e in listed if isinstance(e, dict) and e.get("path") == array_path), None)


def object_key(path: str, array: StoredArray, coords: tuple[int, ...]) -> str:
    """Return the key, below the root, of an object of the array at `path` ('' for the root)."""
    return key_in(path, array.key(coords))


def build_receipts(path: str, array: StoredArray, receipts: Mapping[str, ShardReceipt]) -> str:
    """Return the text of an array's receipts; there must be one for every object."""
    keys = [object_key(path, array, c) for c in product(*map(range, array.grid_shape))]
    content = {
        "format": _FORMAT,
        "grid_shape": list(array.grid_shape),
        "nbytes": [receipts[key].nbytes for key in keys],
        "crc32c": [receipts[key].crc32c for key in keys],
    }
    return json.dumps(content, separators=(",", ":"))


def parse_receipts(text: bytes, array: StoredArray) -> ReceiptTable:
    """Read an array's receipts; `MetadataError` if they are damaged or of another array."""
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT or content["grid_shape"] != list(array.grid_shape):
            raise ValueError(f"they are {content['format']!r} of {content['grid_shape']} objects")
        return ReceiptTable(
            np.array(content["nbytes"], np.int64).reshape(array.grid_shape),
            np.array(content["crc32c"], np.uint32).reshape(array.grid_shape),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise MetadataError(f"{RECEIPTS_OBJECT} cannot be understood: {error!r}") from error


def receipts_limit(array: StoredArray) -> int:
    """Return the upper limit for the size of an array's receipts, in bytes."""
    return min(_HEAD_NBYTES + prod(array.grid_shape) * _ENTRY_NBYTES, _LARGEST_NBYTES)


def data_range(receipts: Sequence[ShardReceipt]) -> tuple[Number, Number] | None:
    """Return the smallest and the largest voxel; None if all are masked."""
    lows = [receipt.minimum for receipt in receipts if receipt.minimum is not None]
    highs = [receipt.maximum for receipt in receipts if receipt.maximum is not None]
    return (min(lows), max(highs)) if lows and highs else None


def document_checksum(document: Mapping[str, Any]) -> int:
    """Return the CRC-32C of a root document, as canonical JSON without its own checksum.

    It is canonical because another program may rewrite the document with the same content. Copies
    of other documents that zarr keeps in it (``consolidated_metadata``) do not count.
    """
    attributes = dict(document.get("attributes") or {})
    receipt = dict(attributes.get(RECEIPT_ATTRIBUTE) or {})
    receipt.pop(_SEAL, None)
    content = {**document, "attributes": {**attributes, RECEIPT_ATTRIBUTE: receipt}}
    content.pop("consolidated_metadata", None)
    return int(google_crc32c.value(json.dumps(content, sort_keys=True).encode()))


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root document with its own checksum in it."""
    attributes = dict(document["attributes"])
    receipt = dict(attributes[RECEIPT_ATTRIBUTE])
    receipt[_SEAL] = document_checksum(document)
    return {**document, "attributes": {**attributes, RECEIPT_ATTRIBUTE: receipt}}
