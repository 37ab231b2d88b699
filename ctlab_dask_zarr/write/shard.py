"""What a worker does: take the pieces of its shards, write each shard whole, return receipts.

One pass over the pieces, in the order of the row axis, feeds every shard of the task. A task has
one shard where blocks lie inside shards, and a whole row of shards where slabs are streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import Buffer, chunk_codec
from ctlab_dask_zarr.codec.odd import encode_object
from ctlab_dask_zarr.codec.shard import ChunkRow, ShardEncoder, row_axis_of
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.runtime.storage import Store
from ctlab_dask_zarr.write.layout import Layout, Shape

__all__ = ["Piece", "ShardReceipt", "ShardTask", "StagedArray", "write_shards"]


@dataclass(frozen=True)
class ShardTask:
    """One unit of writing: the objects of one cell of a level's task grid."""

    level: int
    coords: Shape


class ShardReceipt(NamedTuple):
    """What was stored: key below the store's root, size in bytes, CRC-32C of the bytes."""

    key: str
    nbytes: int
    crc32c: int


@dataclass(frozen=True)
class Piece:
    """A part of the array that can be had when it is needed.

    Attributes
    ----------
    start, shape
        Where it lies in the array, in elements.
    load
        Returns its voxels.
    """

    start: Shape
    shape: Shape
    load: Callable[[], npt.NDArray[Any]]


@dataclass(frozen=True)
class StagedArray:
    """One array of a write under way: where its objects go and what they look like."""

    store: Store
    path: str
    layout: Layout
    document: str

    @property
    def array(self) -> StoredArray:
        """The array's metadata."""
        return parse_array_document(self.document)

    def key(self, coords: Shape) -> str:
        """Return the key, below the store's root, of the object at `coords`."""
        key = self.array.key(coords)
        return f"{self.path}/{key}" if self.path else key


def write_shards(
    staged: StagedArray,
    tasks: Sequence[ShardTask],
    pieces: Iterable[Piece],
    on_encoded: Callable[[int], None] = lambda nbytes: None,
) -> list[ShardReceipt]:
    """Write the objects of `tasks` from `pieces`.

    Parameters
    ----------
    staged
        The array under way.
    tasks
        Cells of the task grid, at least one.
    pieces
        Cover the tasks' regions once, in any order. Each is loaded once, when the first row that
        needs it is reached, and dropped after its last.
    on_encoded
        Told, after each row, how many bytes of voxels it had.

    Returns
    -------
    One receipt for each object, in no particular order.
    """
    array = staged.array
    axis = row_axis_of(array)
    spans = [staged.layout.region(task.coords)[axis] for task in tasks]
    first, last = min(span.start for span in spans), max(span.stop for span in spans)
    step = array.inner_chunk_shape[axis]
    window = _Window(pieces, axis)
    waiting = sorted(
        (
            _ObjectInProgress(staged, coords)
            for task in tasks
            for coords in staged.layout.object_coords(task.coords)
        ),
        key=lambda target: target.start[axis],
        reverse=True,
    )
    receipts: list[ShardReceipt] = []
    under_way: list[_ObjectInProgress] = []
    with ExitStack() as on_failure:
        for row_start in range(first, last, step):
            row_stop = min(row_start + step, last)
            window.move_to(row_start, row_stop)
            while waiting and waiting[-1].start[axis] <= row_start:
                under_way.append(on_failure.enter_context(waiting.pop()))
            for target in under_way:
                on_encoded(target.write_row(row_start, window.blocks))
                if target.stop[axis] <= row_stop:
                    receipts.append(target.finish())
            under_way = [target for target in under_way if target.stop[axis] > row_stop]
    return receipts


class _Window:
    """The loaded pieces that the row under way needs, and no others.

    Attributes
    ----------
    blocks
        (start, voxels) of each. Nobody else may keep them: a slab that is still referred to while
        the next is loaded doubles the memory of a write.
    """

    def __init__(self, pieces: Iterable[Piece], axis: int) -> None:
        self._axis = axis
        # Blocks come in C order, which is not the row axis's where an object is one inner chunk
        # thick along the axes before it.
        self._coming = iter(sorted(pieces, key=lambda piece: piece.start[axis]))
        self._next = next(self._coming, None)
        self.blocks: list[tuple[Shape, npt.NDArray[Any]]] = []

    def move_to(self, start: int, stop: int) -> None:
        """Have every piece that has elements in ``start:stop``, and drop those before."""
        axis = self._axis
        self.blocks = [(at, b) for at, b in self.blocks if at[axis] + b.shape[axis] > start]
        while self._next is not None and self._next.start[self._axis] < stop:
            piece = self._next
            block = np.asarray(piece.load())
            if block.shape != piece.shape:
                raise ValueError(
                    f"the block at {piece.start} has shape {block.shape} instead of {piece.shape}: "
                    "the dask array does not compute what its chunks say"
                )
            self.blocks.append((piece.start, block))
            del block
            self._next = next(self._coming, None)


class _ObjectInProgress:
    """One stored object while its rows come in; leaving the context unfinished discards it."""

    def __init__(self, staged: StagedArray, coords: Shape) -> None:
        self._array = staged.array
        self._key = staged.key(coords)
        self._put = staged.store.create(self._key)
        self._finished = False
        self._nbytes = 0
        self._crc32c = 0
        self.start = tuple(c * n for c, n in zip(coords, self._array.object_shape, strict=True))
        self.stop = tuple(
            min(s + o, n)
            for s, o, n in zip(self.start, self._array.object_shape, self._array.shape, strict=True)
        )
        self._encoding = _ENCODINGS[self._array.is_direct, self._array.is_sharded](self._array)

    def __enter__(self) -> _ObjectInProgress:
        self._writer = self._put.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._finished:
            self._put.__exit__(*exception)

    def write_row(self, row_start: int, blocks: Sequence[tuple[Shape, npt.NDArray[Any]]]) -> int:
        """Append the row that begins at `row_start`; return its voxels' size in bytes."""
        start = list(self.start)
        start[row_axis_of(self._array)] = row_start
        row = ChunkRow(self._array, tuple(start))
        n_elements = sum(row.put(block, block_start) for block_start, block in blocks)
        if n_elements != prod(b - a for a, b in zip(row.start, row.stop, strict=True)):
            raise RuntimeError(
                f"{self._key}: the pieces do not cover the row at {row.start} exactly once"
            )
        self._append(self._encoding.encode_row(row.chunks))
        return n_elements * self._array.dtype.itemsize

    def finish(self) -> ShardReceipt:
        """Complete the object; from here on it is there whole."""
        self._append([self._encoding.finish()])
        # Marked first: when the closing itself fails, it has cleaned up after itself.
        self._finished = True
        self._put.__exit__(None, None, None)
        return ShardReceipt(self._key, self._nbytes, self._crc32c)

    def _append(self, parts: Iterable[Buffer]) -> None:
        for data in parts:
            self._writer.write(data)
            self._nbytes += len(data)
            self._crc32c = google_crc32c.extend(self._crc32c, data)


class _Encoding(Protocol):
    """Rows of inner chunks in, bytes to append out."""

    def encode_row(self, chunks: npt.NDArray[Any], /) -> Iterable[Buffer]: ...

    def finish(self) -> bytes: ...


class _PlainChunk:
    """An object that is one encoded chunk: an array without sharding."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array

    def encode_row(self, chunks: npt.NDArray[Any]) -> Iterator[Buffer]:
        yield chunk_codec(self._array.codecs).encode(chunks[0].view(np.uint8))

    def finish(self) -> bytes:
        return b""


class _ByZarr:
    """An object with odd codecs: assembled whole in memory, then encoded by zarr."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._rows: list[npt.NDArray[Any]] = []

    def encode_row(self, chunks: npt.NDArray[Any]) -> Iterable[Buffer]:
        self._rows.append(chunks.copy())
        return ()

    def finish(self) -> bytes:
        return encode_object(self._array, unpack_rows(self._array, self._rows))


#: By (codecs are direct, array is sharded).
_ENCODINGS: dict[tuple[bool, bool], Callable[[StoredArray], _Encoding]] = {
    (True, True): ShardEncoder,
    (True, False): _PlainChunk,
    (False, True): _ByZarr,
    (False, False): _ByZarr,
}


def unpack_rows(array: StoredArray, rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Put rows in chunk order back together as one object in array order, edges filled."""
    block = np.full(array.object_shape, array.fill_value, array.dtype)
    axis = row_axis_of(array)
    counts = list(array.chunks_per_object)
    counts[axis] = 1
    ndim = len(counts)
    order = [i + k * ndim for i in range(ndim) for k in (0, 1)]
    for n, chunks in enumerate(rows):
        row = chunks.reshape(*counts, *array.inner_chunk_shape).transpose(order)
        where = [slice(None)] * ndim
        size = array.inner_chunk_shape[axis]
        where[axis] = slice(n * size, (n + 1) * size)
        target = block[tuple(where)]
        target[...] = row.reshape(target.shape)
    return block
