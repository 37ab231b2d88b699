"""Shards of the coarser levels, put together from pieces that are encoded already.

Where a task's part of the next level is made of whole inner chunks, the task encodes them itself,
as a small shard: its *encoded piece*. A shard of that level is then the pieces of its parents one
after another, under one index, so that no task at the end has to compress a whole shard alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.codec.chunk import crc32c
from ctlab_dask_zarr.codec.shard import ABSENT, parse_index
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number, ShardReceipt
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.store import Store

__all__ = ["DamagedPieceError", "EncodedPiece", "find_piece", "merge_pieces", "piece_trailer"]

#: Read at once: as much as stays in a processor's cache on the way from file to file.
_BLOCK_NBYTES = 2**20


class DamagedPieceError(Exception):
    """A piece is not what was written, or is gone."""

    def __init__(self, coords: Shape) -> None:
        super().__init__(f"the piece at {coords} is damaged")
        self.coords = coords


def _trailer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(
        [("has_values", "u1"), ("minimum", dtype), ("maximum", dtype), ("crc32c", "<u4")]
    )


def piece_trailer(receipt: ShardReceipt, dtype: np.dtype[Any]) -> bytes:
    """Return what follows a piece: what a receipt says of it, and the CRC-32C of all before."""
    trailer = np.zeros(1, _trailer_dtype(dtype))
    if receipt.minimum is not None:
        trailer["has_values"] = 1
        trailer["minimum"], trailer["maximum"] = receipt.minimum, receipt.maximum
    data = trailer.tobytes()[:-4]
    checksum: int = google_crc32c.extend(receipt.crc32c, data)
    return data + checksum.to_bytes(4, "little")


@dataclass(frozen=True)
class EncodedPiece:
    """A piece, as a file that was found.

    Attributes
    ----------
    coords, start
        Which of the pieces it is, and where it begins in the array, in elements.
    index
        Offsets and sizes of its inner chunks, shape (inner chunks along each axis, 2).
    minimum, maximum
        Of its valid voxels; None where there are none.
    nbytes
        Of the encoded inner chunks, with which the file begins.
    """

    store: Store
    key: str
    coords: Shape
    start: Shape
    index: np.ndarray[Any, np.dtype[np.uint64]]
    minimum: Number | None
    maximum: Number | None
    nbytes: int
    tail: bytes

    def blocks(self) -> Iterator[bytes]:
        """Yield the encoded inner chunks, and raise at the end if they were not those written."""
        checksum = 0
        for start in range(0, self.nbytes, _BLOCK_NBYTES):
            nbytes = min(_BLOCK_NBYTES, self.nbytes - start)
            try:
                block = self.store.get_range(self.key, start, nbytes)
            except FileNotFoundError:
                raise DamagedPieceError(self.coords) from None
            checksum = google_crc32c.extend(checksum, block)
            yield block
        checksum = google_crc32c.extend(checksum, self.tail[:-4])
        if checksum != int.from_bytes(self.tail[-4:], "little"):
            raise DamagedPieceError(self.coords)


def find_piece(store: Store, key: str, array: StoredArray, coords: Shape) -> EncodedPiece | None:
    """Return a piece, or None where it is missing or cut off.

    Parameters
    ----------
    store, key
        Where it is.
    array, coords
        The array whose objects are such pieces, and which of them.
    """
    dtype = _trailer_dtype(array.dtype)
    tail_nbytes = array.index_nbytes + dtype.itemsize
    try:
        nbytes = store.nbytes(key) - tail_nbytes
        if nbytes < 0:
            return None
        tail = store.get_range(key, nbytes, tail_nbytes)
        index = parse_index(tail[: array.index_nbytes], array, nbytes + array.index_nbytes)
    except (FileNotFoundError, ShardDecodeError):
        return None
    trailer = np.frombuffer(tail[array.index_nbytes :], dtype)[0]
    has_values = bool(trailer["has_values"])
    return EncodedPiece(
        store=store,
        key=key,
        coords=coords,
        start=tuple(part.start for part in array.object_region(coords)),
        index=index.reshape(*array.chunks_per_object, 2),
        minimum=trailer["minimum"].item() if has_values else None,
        maximum=trailer["maximum"].item() if has_values else None,
        nbytes=nbytes,
        tail=tail,
    )


def merge_pieces(
    store: Store, key: str, array: StoredArray, coords: Shape, pieces: Iterable[EncodedPiece]
) -> ShardReceipt:
    """Write the shard at `coords` of `array` from its pieces, each taken when it is needed.

    Raises
    ------
    DamagedPieceError
        A piece is not what was written; there is no shard then.
    """
    chunk = array.inner_chunk_shape
    origin = [part.start for part in array.object_region(coords)]
    index = np.full((*array.chunks_per_object, 2), ABSENT, "<u8")
    nbytes = checksum = 0
    lows: list[Number] = []
    highs: list[Number] = []
    with store.create(key) as writer:
        for piece in pieces:
            entries = piece.index.copy()
            offsets = entries[..., 0]
            offsets[offsets != ABSENT] += np.uint64(nbytes)
            first = [(a - o) // c for a, o, c in zip(piece.start, origin, chunk, strict=True)]
            where = (slice(f, f + n) for f, n in zip(first, entries.shape, strict=False))
            index[tuple(where)] = entries
            for block in piece.blocks():
                writer.write(block)
                checksum = google_crc32c.extend(checksum, block)
            nbytes += piece.nbytes
            if piece.minimum is not None and piece.maximum is not None:
                lows.append(piece.minimum)
                highs.append(piece.maximum)
        tail = index.tobytes()
        if array.index_checksum:
            tail += crc32c(tail)
        writer.write(tail)
    return ShardReceipt(
        key,
        nbytes + len(tail),
        google_crc32c.extend(checksum, tail),
        min(lows, default=None),
        max(highs, default=None),
    )
