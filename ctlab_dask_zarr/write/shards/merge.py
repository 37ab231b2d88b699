"""Shards put together from pieces that are encoded already.

A task may encode its part of a shard that other tasks have parts of too. What it leaves is a small
shard of whole inner chunks, an *encoded piece*. The shard is then its pieces one after another
under one index: bytes are moved, and nothing is decoded. The shards of levels are made in this way,
so that no task at the end has to compress a whole shard alone.

A piece ends with a trailer: the range of its voxels, and the CRC-32C of all that comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.shard import ABSENT, index_bytes, parse_index
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number, ShardReceipt
from ctlab_dask_zarr.store.opened import OpenedObject
from ctlab_dask_zarr.write.shards.array import StagedArray

#: Read at once: as much as stays in a processor's cache on the way from file to file.
_BLOCK_NBYTES = 2**20


class _DamagedPieceError(Exception):
    """A piece is not what was written, or is gone."""


class _FoundPiece(NamedTuple):
    """A piece that is there."""

    #: Size of its inner chunks, with which it begins.
    nbytes: int
    #: Their offsets and sizes, shape (inner chunks along each axis, 2).
    entries: npt.NDArray[np.uint64]
    #: Least and largest voxel, if any is valid.
    range: tuple[Number, ...]
    #: What comes after the inner chunks.
    tail: bytes
    opened: OpenedObject


def _trailer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype([("has_values", "u1"), ("range", dtype, 2), ("crc32c", "<u4")])


def piece_trailer(receipt: ShardReceipt, dtype: np.dtype[Any]) -> bytes:
    """Return the trailer of a piece, made of what its receipt says."""
    trailer = np.zeros((), _trailer_dtype(dtype))
    if receipt.minimum is not None:
        trailer["has_values"] = 1
        trailer["range"] = receipt.minimum, receipt.maximum
    data = trailer.tobytes()[:-4]
    checksum: int = google_crc32c.extend(receipt.crc32c, data)
    return data + checksum.to_bytes(4, "little")


def merge_pieces(
    staged: StagedArray,
    coords: Shape,
    pieces: StagedArray,
    piece_coords: Sequence[Shape],
    make: Callable[[Shape], None] | None = None,
) -> ShardReceipt:
    """Write the shard at `coords` from its pieces, those at `piece_coords` of `pieces`.

    `make` makes a piece that is missing or damaged. Each piece is then removed as soon as its bytes
    are in the shard. The shard grows into the memory, or the disk, that its pieces leave: twice as
    fast where fresh memory is dear, as in virtual machines. If the shard does not come to its end,
    they are made again.

    Without `make` the pieces stay, and `IncompleteDatasetError` is raised for one that is missing
    or damaged; a damaged one is removed.
    """
    array, key = staged.array, staged.key(coords)
    per_shard, per_piece = array.chunks_per_object, pieces.array.chunks_per_object
    index = np.full((*per_shard, 2), ABSENT, "<u8")
    nbytes = checksum = 0
    values: list[Number] = []
    try:
        with staged.store.create(key) as writer:
            for at in piece_coords:
                piece = _found(pieces, at)
                if piece is None and make is not None:
                    make(at)
                    piece = _found(pieces, at)
                if piece is None:
                    raise _lost_piece(pieces, at)
                entries = piece.entries.copy()
                entries[..., 0] += np.uint64(nbytes) * (entries[..., 0] != ABSENT)
                places = zip(at, per_piece, coords, per_shard, strict=True)
                where = tuple(slice(a * p - c * n, (a + 1) * p - c * n) for a, p, c, n in places)
                index[where] = entries
                for block in _blocks(at, piece):
                    writer.write(block)
                    checksum = google_crc32c.extend(checksum, block)
                nbytes += piece.nbytes
                values += piece.range
                # Closed: while it is open, what is removed keeps its memory.
                del piece
                if make is not None:
                    pieces.store.remove(pieces.key(at))
            tail = index_bytes(index, array)
            writer.write(tail)
    except _DamagedPieceError as damage:
        pieces.store.remove(pieces.key(damage.args[0]))
        if make is None:
            raise _lost_piece(pieces, damage.args[0]) from None
        return merge_pieces(staged, coords, pieces, piece_coords, make)
    low, high = min(values, default=None), max(values, default=None)
    return ShardReceipt(key, nbytes + len(tail), google_crc32c.extend(checksum, tail), low, high)


def is_whole(pieces: StagedArray, coords: Shape) -> bool:
    """Whether a piece is there, as it was written; all of it is read."""
    piece = _found(pieces, coords)
    try:
        return piece is not None and all(True for _ in _blocks(coords, piece))
    except _DamagedPieceError:
        return False


def _lost_piece(pieces: StagedArray, coords: Shape) -> IncompleteDatasetError:
    path = pieces.store.path(pieces.key(coords))
    return IncompleteDatasetError(f"{path} cannot be read back")


def _found(pieces: StagedArray, coords: Shape) -> _FoundPiece | None:
    """Return a piece, or None where it is missing or cut off."""
    array, store, key = pieces.array, pieces.store, pieces.key(coords)
    dtype = _trailer_dtype(array.dtype)
    tail_nbytes = array.index_nbytes + dtype.itemsize
    try:
        opened = store.open(key)
        tail = bytes(opened.read_end(tail_nbytes))
        nbytes = opened.nbytes - tail_nbytes
        if nbytes < 0:
            return None
        index = parse_index(tail[: array.index_nbytes], array, nbytes + array.index_nbytes)
    except (FileNotFoundError, ShardDecodeError):
        return None
    trailer = np.frombuffer(tail[array.index_nbytes :], dtype)[0]
    values = tuple(trailer["range"].tolist()) if trailer["has_values"] else ()
    return _FoundPiece(nbytes, index.reshape(*array.chunks_per_object, 2), values, tail, opened)


def _blocks(coords: Shape, piece: _FoundPiece) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the encoded inner chunks, and raise at the end if they were not those written."""
    checksum = 0
    memory = memoryview(bytearray(min(_BLOCK_NBYTES, piece.nbytes)))
    for start in range(0, piece.nbytes, _BLOCK_NBYTES):
        nbytes = min(_BLOCK_NBYTES, piece.nbytes - start)
        try:
            data = piece.opened.read(start, nbytes, lambda n: memory[:n])
        except (FileNotFoundError, ShardDecodeError):
            raise _DamagedPieceError(coords) from None
        block = np.frombuffer(data, np.uint8)
        checksum = google_crc32c.extend(checksum, block)
        yield block
    checksum = google_crc32c.extend(checksum, piece.tail[:-4])
    if checksum != int.from_bytes(piece.tail[-4:], "little"):
        raise _DamagedPieceError(coords)
