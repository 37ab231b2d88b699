"""The shard, encoded and decoded one row of inner chunks at a time.

A *row* is what one step along the row axis covers: all inner chunks of a shard whose grid index
along that axis is the same. The row axis is the first axis along which a shard has more than one
inner chunk, so that rows follow one another in C order, the order of the shard's index.

Neither the compressed shard nor a padded copy of the block is ever held in memory: a row is
copied into chunk order in one go (16 MiB of a 256 MiB shard), compressed chunk by chunk and
passed on. Binary layout: Zarr v3 "sharding_indexed" codec, version 1.0.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import Buffer, chunk_codec, crc32c
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import StoredArray

__all__ = [
    "ABSENT",
    "ChunkRow",
    "ShardEncoder",
    "copy_runs",
    "is_fill",
    "parse_index",
    "row_axis_of",
]

#: Offset and nbytes of an inner chunk that is not stored because it is all fill value.
ABSENT = np.iinfo(np.uint64).max

#: Row buffers of more than this are not kept by a thread for its next task.
_KEPT_NBYTES = 64 << 20

_thread = threading.local()


def row_axis_of(array: StoredArray) -> int:
    """Return the first axis along which an object has more than one inner chunk (else 0)."""
    return next((axis for axis, n in enumerate(array.chunks_per_object) if n > 1), 0)


class ChunkRow:
    """One row of inner chunks in chunk order, filled from pieces of the array.

    The buffer belongs to the thread and is used again for every row, so a row is valid until
    the next one is begun on the same thread.

    Parameters
    ----------
    array
        The array as it is stored.
    start
        Index, in elements of the array, of the row's first element along each axis.
    """

    def __init__(self, array: StoredArray, start: tuple[int, ...]) -> None:
        axis = row_axis_of(array)
        counts = list(array.chunks_per_object)
        counts[axis] = 1
        self.start = start
        self.counts = tuple(counts)
        self.chunk_shape = array.inner_chunk_shape
        self.shape = tuple(n * c for n, c in zip(self.counts, self.chunk_shape, strict=True))
        self._array_shape = array.shape
        self._fill = array.fill_value
        self._buffer = _row_buffer(array.dtype, self.counts + self.chunk_shape)
        ndim = len(counts)
        # (n0, n1, n2, c0, c1, c2) seen as (n0, c0, n1, c1, n2, c2)
        self._view = self._buffer.transpose([i + k * ndim for i in range(ndim) for k in (0, 1)])
        self.is_padded = any(
            s + n > a for s, n, a in zip(start, self.shape, array.shape, strict=True)
        )
        if self.is_padded:
            self._buffer[...] = self._fill

    @property
    def stop(self) -> tuple[int, ...]:
        """Index of the element after the row's last along each axis, within the array."""
        return tuple(
            min(s + n, a) for s, n, a in zip(self.start, self.shape, self._array_shape, strict=True)
        )

    @property
    def blocks(self) -> npt.NDArray[Any]:
        """The row's inner chunks, shape (chunks along each axis, edges of a chunk), contiguous."""
        return self._buffer

    @property
    def chunks(self) -> npt.NDArray[Any]:
        """The row's inner chunks, shape (number of chunks, elements of a chunk), contiguous."""
        return self._buffer.reshape(prod(self.counts), prod(self.chunk_shape))

    def unpadded(self) -> npt.NDArray[Any]:
        """Return a copy of the row's elements that lie in the array, in array order."""
        elements = self._view.reshape(self.shape)
        lengths = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return np.ascontiguousarray(elements[tuple(slice(n) for n in lengths)])

    def put(self, piece: npt.NDArray[Any], piece_start: tuple[int, ...]) -> int:
        """Copy what `piece`, whose first element is at `piece_start`, has of this row.

        Returns the number of elements copied.
        """
        n_elements = 0
        for mine, part in self._shared_parts(piece, piece_start):
            copy_runs(part, mine)
            n_elements += part.size
        return n_elements

    def take(self, piece: npt.NDArray[Any], piece_start: tuple[int, ...]) -> None:
        """Copy what this row has of `piece` into it."""
        for mine, part in self._shared_parts(piece, piece_start):
            copy_runs(mine, part)

    def _shared_parts(
        self, piece: npt.NDArray[Any], piece_start: tuple[int, ...]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield views of the row and of `piece`, of the same shape and of the same elements."""
        axes = []
        crop = []
        for start, stop, chunk, p_start, p_len in zip(
            self.start, self.stop, self.chunk_shape, piece_start, piece.shape, strict=True
        ):
            first, last = max(start, p_start), min(stop, p_start + p_len)
            if first >= last:
                return
            crop.append(slice(first - p_start, last - p_start))
            axes.append(_segments(first - start, last - start, chunk))
        block = piece[tuple(crop)]
        for segments in product(*axes):
            mine = tuple(s for grid, inside, _, _ in segments for s in (grid, inside))
            part = block[tuple(part for _, _, part, _ in segments)]
            split = tuple(n for _, _, _, lengths in segments for n in lengths)
            # Splitting axes never copies: this is a view of the piece.
            yield self._view[mine], part.reshape(split)


def _segments(
    first: int, last: int, chunk: int
) -> list[tuple[slice, slice, slice, tuple[int, int]]]:
    """Cut ``first:last`` where chunks begin: at most a part, whole chunks, and a part.

    Each segment is (slice of the chunk grid, slice inside the chunk, slice of the source,
    (number of chunks, elements in each)).
    """
    segments = []
    position = first
    while position < last:
        grid, inside = divmod(position, chunk)
        whole = (last - position) // chunk if inside == 0 else 0
        length = whole * chunk or min(chunk - inside, last - position)
        segments.append(
            (
                slice(grid, grid + max(whole, 1)),
                slice(inside, inside + (chunk if whole else length)),
                slice(position - first, position - first + length),
                (max(whole, 1), chunk if whole else length),
            )
        )
        position += length
    return segments


def copy_runs(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy `source` into `target`, runs along the last axis as one item where they are whole.

    A third faster than element by element: an inner chunk's run is only 64 bytes of uint16.
    """
    run_nbytes = source.shape[-1] * source.itemsize
    contiguous = source.itemsize
    if source.dtype == target.dtype and source.strides[-1] == target.strides[-1] == contiguous:
        item = np.dtype((np.void, run_nbytes))
        source, target = source.view(item), target.view(item)
    target[...] = source


def _same(memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return memory


def _row_buffer(dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return this thread's buffer for rows, made new only when a larger one is needed.

    A large one lasts as long as a row that is in it.
    """
    nbytes = prod(shape) * dtype.itemsize
    kept: Callable[[], npt.NDArray[np.uint8] | None] | None = getattr(_thread, "memory", None)
    memory = None if kept is None else kept()
    if memory is None or memory.nbytes < nbytes:
        memory = np.empty(nbytes, np.uint8)
        _thread.memory = weakref.ref(memory) if nbytes > _KEPT_NBYTES else partial(_same, memory)
    return memory[:nbytes].view(dtype).reshape(shape)


class ShardEncoder:
    """Turns rows of inner chunks into the bytes of one shard, to be appended as they come."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._codec = chunk_codec(array.codecs)
        self._index = np.full((prod(array.chunks_per_object), 2), ABSENT, "<u8")
        self._n_chunks = 0
        self._nbytes = 0

    def encode_row(
        self, chunks: npt.NDArray[Any], uniform: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[Buffer]:
        """Yield the encoded chunks of the next row; those that are all fill value are left out.

        Parameters
        ----------
        chunks
            Shape (number of chunks in the row, elements of a chunk), C-contiguous.
        uniform
            Which of them hold one number alone; None where that is not known.
        """
        absences = is_fill(chunks, self._array, uniform)
        for chunk, absent in zip(chunks.view(np.uint8), absences, strict=True):
            if not absent:
                data = self._codec.encode(chunk)
                nbytes = len(data)
                self._index[self._n_chunks] = (self._nbytes, nbytes)
                self._nbytes += nbytes
                yield data
            self._n_chunks += 1

    def finish(self) -> bytes:
        """Return the index, which ends the shard. Rows that never came are fill value."""
        index = self._index.tobytes()
        return index + crc32c(index) if self._array.index_checksum else index


def is_fill(
    chunks: npt.NDArray[Any], array: StoredArray, uniform: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Return which chunks hold nothing but the fill value, to the bit.

    Bits and not values are compared, so that -0.0 and every NaN come back as they were. Where it
    is known which chunks are `uniform`, those of integers need no second look.
    """
    bits = chunks.view(f"u{array.dtype.itemsize}")
    fill = np.frombuffer(array.fill_bytes, bits.dtype)[0]
    candidates: npt.NDArray[np.bool_] = (bits[:, 0] == fill) & (bits[:, -1] == fill)
    if uniform is not None and array.dtype.kind in "iu":
        return candidates & uniform
    for n in np.flatnonzero(candidates):
        candidates[n] = (bits[n] == fill).all()
    return candidates


def parse_index(data: Buffer, array: StoredArray, object_nbytes: int) -> npt.NDArray[np.uint64]:
    """Read a shard's index.

    Parameters
    ----------
    data
        The last ``array.index_nbytes`` bytes of the shard.
    object_nbytes
        Size of the whole shard, against which every entry is held.

    Returns
    -------
    Offsets and sizes in bytes, shape (number of inner chunks, 2), C order of the shard's chunks;
    both are 2**64 - 1 for an inner chunk that is all fill value.

    Raises
    ------
    ShardDecodeError
        The checksum does not match, or an entry points outside the shard, or to more than a chunk
        can have.
    """
    view = memoryview(data)
    if view.nbytes != array.index_nbytes:
        raise ShardDecodeError(
            f"the shard has {object_nbytes} bytes, too few for its index of {array.index_nbytes}"
        )
    if array.index_checksum:
        if crc32c(view[:-4]) != view[-4:]:
            raise ShardDecodeError("the crc32c of the shard's index does not match")
        view = view[:-4]
    index = np.frombuffer(view, "<u8").reshape(-1, 2)
    limit = object_nbytes - array.index_nbytes
    offset, nbytes = index[:, 0], index[:, 1]
    stored = ~((offset == ABSENT) & (nbytes == ABSENT))
    inside = (offset <= limit) & (nbytes <= min(limit, array.encoded_chunk_limit))
    inside &= offset + nbytes * inside <= limit
    if not inside[stored].all():
        raise ShardDecodeError(
            "an entry of the shard's index points outside the shard, or to more than a chunk"
        )
    return index
