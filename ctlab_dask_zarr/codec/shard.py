"""The shard, encoded and decoded one row of inner chunks at a time.

A *row* holds all inner chunks of a shard at one place along the row axis: the first axis along
which a shard has more than one of them. So rows follow one another in the order of the index.

Neither the compressed shard nor a padded copy of the block is ever in memory: a row is copied into
chunk order strip by strip, and compressed chunk by chunk and passed on. A *strip* is a run of
chunks of a row that a core's cache holds. The format is the "sharding_indexed" codec of Zarr v3,
version 1.0.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import prod
from operator import sub
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.zarr_fallback import encode_object
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.codecs import Buffer, crc32c
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray

#: Offset and nbytes of an inner chunk that is not stored because it is all fill value.
ABSENT = np.iinfo(np.uint64).max

#: A strip has no more bytes than this, unless one chunk has: caches near a core have about as many,
#: and whole rows along the last axis of a shard of 512^3, which are read fastest, are not cut. Half
#: of it is as fast for one thread, but two wait for each other's calls more often.
_STRIP_NBYTES = 4 << 20
#: Most copies from a block into a strip, for one row: each takes 30 us, whatever its size.
_COPIES_A_ROW = 64
#: A source is read in order by so many bytes before these are copied.
_READ_AHEAD_NBYTES = 512 << 10
#: Row buffers of more than this are not kept by a thread for its next task.
_KEPT_NBYTES = 64 << 20

_thread = threading.local()


def row_axis_of(array: StoredArray) -> int:
    """Return the first axis along which an object has more than one inner chunk (else 0)."""
    return next((axis for axis, n in enumerate(array.chunks_per_object) if n > 1), 0)


def strips_of(array: StoredArray, row_start: Shape, n_blocks: int) -> Iterator[ChunkRow]:
    """Yield the strips of the row that begins at `row_start`, in the order of the index.

    The more blocks a row comes from, the larger its strips. Each is valid until the next one.
    """
    n_chunks = prod(array.chunks_per_object[row_axis_of(array) + 1 :])
    n_strips = min(
        -(-n_chunks * array.inner_chunk_nbytes // _STRIP_NBYTES),
        max(1, _COPIES_A_ROW // max(1, n_blocks)),
    )
    n_left = max(1, n_chunks // n_strips)
    axis = row_axis_of(array)
    grid = tuple(1 if i <= axis else n for i, n in enumerate(array.chunks_per_object))
    counts: list[int] = []
    for n in reversed(grid):
        counts.insert(0, min(n, n_left))
        n_left = max(1, n_left // n)
    for place in product(*map(range, (0,) * len(grid), grid, counts)):
        yield ChunkRow(
            array,
            tuple(map(_at, row_start, place, array.inner_chunk_shape)),
            tuple(map(min, counts, map(sub, grid, place))),
        )


class ChunkRow:
    """One row of inner chunks in chunk order, or a strip of it, of so many chunks (`counts`).

    It is the part of the array from `start` to `stop`; its chunks hold fill value beyond that. Its
    memory belongs to the thread and is used again: a row is valid until the next one is begun.
    """

    def __init__(self, array: StoredArray, start: Shape, counts: Shape | None = None) -> None:
        if counts is None:
            axis = row_axis_of(array)
            counts = tuple(1 if i == axis else n for i, n in enumerate(array.chunks_per_object))
        self._chunk_shape = array.inner_chunk_shape
        self.start = start
        ends = tuple(map(_at, start, counts, self._chunk_shape))
        #: Nowhere before `start`: a strip may lie outside of the array.
        self.stop = tuple(map(max, start, map(min, ends, array.shape)))
        #: Shape (chunks along each axis, edges of a chunk), contiguous.
        self.blocks = _row_memory(array.dtype, (*counts, *self._chunk_shape))
        #: The same, shape (number of chunks, elements of a chunk).
        self.chunks = self.blocks.reshape(prod(counts), prod(self._chunk_shape))
        ndim = len(counts)
        # (n0, n1, n2, c0, c1, c2) seen as (n0, c0, n1, c1, n2, c2)
        self._view = self.blocks.transpose([i + k * ndim for i in range(ndim) for k in (0, 1)])
        self.is_padded = self.stop != ends
        if self.is_padded:
            self.blocks[...] = array.fill_value

    @property
    def n_elements(self) -> int:
        """How many elements lie in the array."""
        return prod(map(sub, self.stop, self.start))

    def unpadded(self) -> npt.NDArray[Any]:
        """Return a copy of the row's elements that lie in the array, in array order."""
        elements = np.empty(tuple(map(sub, self.stop, self.start)), self.blocks.dtype)
        self.take(elements, self.start)
        return elements

    def put(self, block: npt.NDArray[Any], start: Shape) -> int:
        """Copy what `block`, which begins at `start`, has of this row; return how many elements."""
        n_elements = 0
        for mine, part in self._shared_parts(block, start):
            _copy_in_order(part, mine)
            n_elements += part.size
        return n_elements

    def take(self, block: npt.NDArray[Any], start: Shape) -> None:
        """Copy what this row has of `block` into it."""
        for mine, part in self._shared_parts(block, start):
            copy_runs(mine, part)

    def _shared_parts(
        self, block: npt.NDArray[Any], block_start: Shape
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield views of the row and of `block`, of the same shape and of the same elements."""
        axes = []
        crop = []
        for start, stop, chunk, b_start, b_len in zip(
            self.start, self.stop, self._chunk_shape, block_start, block.shape, strict=True
        ):
            first, last = max(start, b_start), min(stop, b_start + b_len)
            if first >= last:
                return
            crop.append(slice(first - b_start, last - b_start))
            axes.append(_segments(first - start, last - start, chunk))
        shared = block[tuple(crop)]
        for segments in product(*axes):
            mine = tuple(s for grid, inside, _, _ in segments for s in (grid, inside))
            part = shared[tuple(part for _, _, part, _ in segments)]
            split = tuple(n for _, _, _, lengths in segments for n in lengths)
            # Splitting axes never copies: this is a view of the block.
            yield self._view[mine], part.reshape(split)


def _at(start: int, n_chunks: int, chunk: int) -> int:
    return start + n_chunks * chunk


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
        n_whole = (last - position) // chunk if inside == 0 else 0
        n, length = (n_whole, chunk) if n_whole else (1, min(chunk - inside, last - position))
        source = slice(position - first, position - first + n * length)
        segments.append(
            (slice(grid, grid + n), slice(inside, inside + length), source, (n, length))
        )
        position += n * length
    return segments


def copy_runs(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy `source` into `target`, runs along the last axis as one item where they are whole.

    A third faster than element by element: an inner chunk's run is only 64 bytes of uint16.
    """
    strides = source.strides[-1], target.strides[-1]
    if source.dtype == target.dtype and strides == (source.itemsize, source.itemsize):
        item = np.dtype((np.void, source.shape[-1] * source.itemsize))
        source, target = source.view(item), target.view(item)
    target[...] = source


def _copy_in_order(source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Copy as `copy_runs` does, so many planes at a time, each read in the order of memory before.

    Copying takes the runs of one chunk and then those of the next one, which lie beside them. Out
    of the cache that is slow; a pass that brings them there in their order takes a third of that.
    """
    # The first axis with more than one element inside of chunks.
    axis = next((i for i in range(1, source.ndim, 2) if source.shape[i] > 1), 1)
    n_planes = source.shape[axis]
    step = max(1, n_planes * _READ_AHEAD_NBYTES // max(1, source.nbytes))
    bits = source.view(f"u{source.itemsize}") if source.strides[-1] == source.itemsize else None
    before = (slice(None),) * axis
    for first in range(0, n_planes, step):
        planes = (*before, slice(first, first + step))
        if bits is not None:
            bits[planes].max()
        copy_runs(source[planes], target[planes])


def _row_memory(dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return this thread's memory for rows, made new only when more is needed.

    Large memory lasts only as long as a row that is in it.
    """
    nbytes = prod(shape) * dtype.itemsize
    kept: Callable[[], npt.NDArray[np.uint8] | None] = getattr(_thread, "memory", lambda: None)
    memory = kept()
    if memory is None or memory.nbytes < nbytes:
        made = memory = np.empty(nbytes, np.uint8)
        _thread.memory = weakref.ref(made) if nbytes > _KEPT_NBYTES else lambda: made
    return memory[:nbytes].view(dtype).reshape(shape)


def row_encoder(array: StoredArray) -> _DirectEncoder | _ZarrEncoder:
    """Return what makes bytes of the rows of one object, to be appended as they come."""
    return _DirectEncoder(array) if array.is_direct else _ZarrEncoder(array)


class _DirectEncoder:
    """A shard, or one chunk of an array without sharding; rows that never come are fill value."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._codec = chunk_codec(array.codecs)
        self._index = np.full((prod(array.chunks_per_object), 2), ABSENT, "<u8")
        self._n_chunks = 0
        self._nbytes = 0

    def encode_row(
        self, row: ChunkRow, uniform: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[Buffer]:
        """Yield the bytes of the next row.

        `uniform` tells which chunks hold one number alone; None where that is not known.
        """
        chunks = row.chunks.view(np.uint8)
        stored = np.arange(len(chunks))
        if self._array.is_sharded:
            # Only a shard can say that a chunk is not there.
            stored = stored[~is_fill(row.chunks, self._array, uniform)]
        index = self._index[self._n_chunks :]
        self._n_chunks += len(chunks)
        if not self._array.codecs:
            # What is not encoded goes as it lies, as many chunks at once as follow one another.
            for run in np.split(stored, np.flatnonzero(np.diff(stored) > 1) + 1):
                if run.size:
                    data = chunks[run[0] : run[-1] + 1].reshape(-1)
                    index[run, 0] = self._nbytes + np.arange(run.size) * chunks.shape[1]
                    index[run, 1] = chunks.shape[1]
                    self._nbytes += data.nbytes
                    yield data
            return
        for n in stored.tolist():
            data = self._codec.encode(chunks[n])
            nbytes = len(data)
            index[n] = (self._nbytes, nbytes)
            self._nbytes += nbytes
            yield data

    def finish(self) -> bytes:
        """Return the bytes that end the object."""
        return index_bytes(self._index, self._array) if self._array.is_sharded else b""


class _ZarrEncoder:
    """An object with other codecs: put together in memory, and encoded by zarr at the end."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._block: npt.NDArray[Any] | None = None

    def encode_row(self, row: ChunkRow, _: object = None) -> Iterable[Buffer]:
        """Keep the row."""
        if self._block is None:
            self._block = np.full(
                self._array.object_shape, self._array.fill_value, self._array.dtype
            )
            self._start = row.start
        row.take(self._block, self._start)
        return ()

    def finish(self) -> bytes:
        """Return the bytes of the object."""
        assert self._block is not None
        return encode_object(self._array, self._block)


def is_fill(
    chunks: npt.NDArray[Any], array: StoredArray, uniform: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Return which chunks hold nothing but the fill value, to the bit.

    Bits and not values are compared, so that -0.0 and every NaN come back as they were. Where it
    is known which chunks are `uniform`, those of a value that has one pattern of bits need no
    second look.
    """
    bits = chunks.view(f"u{array.dtype.itemsize}")
    fill = np.frombuffer(array.fill_bytes, bits.dtype)[0]
    candidates: npt.NDArray[np.bool_] = (bits[:, 0] == fill) & (bits[:, -1] == fill)
    value = array.fill_value
    if uniform is not None and (array.dtype.kind in "iu" or (value == value and value != 0)):
        return candidates & uniform
    for n in np.flatnonzero(candidates):
        candidates[n] = (bits[n] == fill).all()
    return candidates


def index_bytes(index: npt.NDArray[np.uint64], array: StoredArray) -> bytes:
    """Return the index that ends a shard, with its checksum where the array has one."""
    data = index.tobytes()
    return data + crc32c(data) if array.index_checksum else data


def parse_index(data: Buffer, array: StoredArray, object_nbytes: int) -> npt.NDArray[np.uint64]:
    """Read the index that ends a shard of `object_nbytes` bytes, or raise `ShardDecodeError`.

    Returns offsets and sizes in bytes, shape (number of inner chunks, 2), C order of the shard's
    chunks; both are `ABSENT` for an inner chunk that is all fill value. No entry points outside the
    shard, or to more than a chunk can have.
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
