"""What a worker does: take the pieces of its shards, write each shard whole, return receipts.

One pass over the pieces, in the order of the row axis, feeds every shard of the task. A task has
one shard where blocks lie inside shards, and a whole row of shards where slabs are streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import Buffer, chunk_codec
from ctlab_dask_zarr.codec.region import object_crc32c, read_region, rows_of
from ctlab_dask_zarr.codec.shard import ChunkRow, ShardEncoder, row_axis_of
from ctlab_dask_zarr.codec.values import MIXED, UNIFORM, ValueRange
from ctlab_dask_zarr.codec.zarr_fallback import encode_object
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.execution.graphs import accepted_block
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number, ShardReceipt, object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.merge import piece_trailer
from ctlab_dask_zarr.write.shards.pieces import (
    Halver,
    Halving,
    Piece,
    ShardTask,
    VoxelPiece,
    piece_key,
)

__all__ = ["StagedArray", "receipt_of_stored", "write_shards"]


@dataclass(frozen=True)
class StagedArray:
    """One array of a write under way: where its objects go and what they look like.

    Attributes
    ----------
    store, path
        Where its objects go.
    layout, document
        What they look like.
    mask_value
        Of masked voxels, which do not count as data.
    level
        Its number.
    pieces, halving
        Where to leave what the next level is made of, and how it is; None where there is none.
    coarser
        The next level as it is cut into encoded pieces; None where pieces hold voxels.
    is_piece
        Whether the objects are such pieces, and not shards.
    """

    store: Store
    path: str
    layout: Layout
    document: str
    mask_value: Number | None = None
    level: int = 0
    pieces: Store | None = None
    halving: Halving | None = None
    coarser: StagedArray | None = None
    is_piece: bool = False

    @property
    def array(self) -> StoredArray:
        """The array's metadata."""
        array = parse_array_document(self.document)
        if not self.is_piece:
            return array
        return replace(
            array, object_shape=self.layout.object_shape, key_encoding="v2", separator="."
        )

    def key(self, coords: Shape) -> str:
        """Return the key, below the store's root, of the object at `coords`."""
        return object_key(self.path, self.array, coords)

    def next_level(self, task: ShardTask) -> _NextLevel | None:
        """Return what makes the task's piece of the next level."""
        return None if self.halving is None else _NextLevel(self, task)


def write_shards(
    staged: StagedArray,
    tasks: Sequence[ShardTask],
    pieces: Iterable[Piece],
    on_encoded: Callable[[int], None] = lambda nbytes: None,
    on_written: Callable[[], None] = lambda: None,
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
    on_written
        Told when some of the tasks are done and others are not.

    Returns
    -------
    One receipt for each object, in no particular order.
    """
    array = staged.array
    axis = row_axis_of(array)
    spans = [staged.layout.region(task.coords)[axis] for task in tasks]
    first, last = min(span.start for span in spans), max(span.stop for span in spans)
    step = array.inner_chunk_shape[axis]
    window = _Window(pieces, axis, array.dtype, staged.mask_value)
    receipts: list[ShardReceipt] = []
    under_way: list[_ObjectInProgress] = []
    with ExitStack() as on_failure, ExitStack() as coarser:
        halved = [(task, staged.next_level(task)) for task in tasks]
        halving = [
            (span, coarser.enter_context(level))
            for span, (_, level) in zip(spans, halved, strict=True)
            if level is not None
        ]
        waiting = sorted(
            (
                _ObjectInProgress(staged, coords, level)
                for task, level in halved
                for coords in staged.layout.object_coords(task.coords)
            ),
            key=lambda target: target.start[axis],
            reverse=True,
        )
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
            for span, level in halving:
                # A row of shards that are one inner chunk thick has tasks that come one after the
                # other along the row axis.
                if span.start <= row_start < span.stop:
                    level.end_row()
            if row_stop < last and any(span.stop == row_stop for span in spans):
                on_written()
    return receipts


class _Window:
    """The loaded pieces that the row under way needs, and no others.

    Attributes
    ----------
    blocks
        (start, voxels) of each. Nobody else may keep them: a slab that is still referred to while
        the next is loaded doubles the memory of a write.
    """

    def __init__(
        self, pieces: Iterable[Piece], axis: int, dtype: np.dtype[Any], mask_value: Number | None
    ) -> None:
        self._axis = axis
        self._declared = (dtype, mask_value)
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
            block = accepted_block(piece.load(), piece.start, piece.shape, *self._declared)
            self.blocks.append((piece.start, block))
            del block
            self._next = next(self._coming, None)


class _ObjectInProgress:
    """One stored object while its rows come in; leaving the context unfinished discards it."""

    def __init__(self, staged: StagedArray, coords: Shape, coarser: _NextLevel | None) -> None:
        self._array = staged.array
        self._coarser = coarser
        self._is_piece = staged.is_piece
        self._key = staged.key(coords)
        self._put = staged.store.create(self._key, durable=not staged.is_piece)
        self._finished = False
        self._nbytes = 0
        self._crc32c = 0
        self._values = ValueRange(staged.mask_value)
        self._padding_counts = self._array.fill_value != staged.mask_value
        region = self._array.object_region(coords)
        self.start = tuple(part.start for part in region)
        self.stop = tuple(part.stop for part in region)
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
        # Kept for its memory, which the next one may use again.
        row = self._row = ChunkRow(self._array, tuple(start))
        n_elements = sum(row.put(block, block_start) for block_start, block in blocks)
        if n_elements != prod(b - a for a, b in zip(row.start, row.stop, strict=True)):
            raise RuntimeError(
                f"{self._key}: the pieces do not cover the row at {row.start} exactly once"
            )
        if row.is_padded and self._padding_counts:
            self._values.add(row.unpadded().reshape(1, -1))
            flags, uniform = np.full(len(row.chunks), MIXED, np.uint8), None
        else:
            flags = self._values.add(row.chunks)
            uniform = flags == UNIFORM
        if self._coarser is not None:
            self._coarser.add(row, flags)
        self._append(self._encoding.encode_row(row.chunks, uniform))
        return n_elements * self._array.dtype.itemsize

    def finish(self) -> ShardReceipt:
        """Complete the object; from here on it is there whole."""
        self._append([self._encoding.finish()])
        receipt = ShardReceipt(
            self._key, self._nbytes, self._crc32c, self._values.minimum, self._values.maximum
        )
        if self._is_piece:
            self._writer.write(piece_trailer(receipt, self._array.dtype))
        # Marked first: when the closing itself fails, it has cleaned up after itself.
        self._finished = True
        self._put.__exit__(None, None, None)
        return receipt

    def _append(self, parts: Iterable[Buffer]) -> None:
        for data in parts:
            self._writer.write(data)
            self._nbytes += len(data)
            self._crc32c = google_crc32c.extend(self._crc32c, data)


class _NextLevel:
    """What a task leaves for the next level, made row by row of its own rows; a context."""

    def __init__(self, staged: StagedArray, task: ShardTask) -> None:
        assert staged.halving is not None
        assert staged.pieces is not None
        axis = row_axis_of(staged.array)
        self._piece: VoxelPiece | _EncodedPiece
        if staged.coarser is None:
            self._piece = VoxelPiece(staged.pieces, piece_key(task, staged.level + 1))
        else:
            self._piece = _EncodedPiece(staged.coarser, task, axis)
        self._halver = Halver(
            staged.array, staged.layout, task.coords, staged.halving, self._piece.keep
        )

    def __enter__(self) -> _NextLevel:
        self._piece.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._piece.__exit__(*exception)

    def add(self, row: ChunkRow, flags: npt.NDArray[np.uint8]) -> None:
        """Halve a row of inner chunks, of which `ValueRange.add` has seen `flags`."""
        self._halver.add(row, flags)

    def end_row(self) -> None:
        """Pass on what has come since the last row ended."""
        self._piece.add(*self._halver.end_row())


class _EncodedPiece:
    """One task's part of the next level as a shard of its own, to be merged with others.

    Attributes
    ----------
    keep
        Elements that it needs at once along the axis along which slabs come; None for all.
    """

    def __init__(self, staged: StagedArray, task: ShardTask, slab_axis: int) -> None:
        self._next = staged.next_level(task)
        self._object = _ObjectInProgress(staged, task.coords, self._next)
        self._slab_axis = slab_axis
        self._axis = row_axis_of(staged.array)
        self._step = staged.array.inner_chunk_shape[self._axis]
        self.keep = self._step if slab_axis == self._axis else None
        self._row_start = self._object.start[self._axis]
        self._slabs: list[tuple[Shape, npt.NDArray[Any]]] = []
        self._stack = ExitStack()

    def __enter__(self) -> _EncodedPiece:
        with ExitStack() as stack:
            stack.enter_context(self._object)
            if self._next is not None:
                stack.enter_context(self._next)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def add(self, start: Shape, slab: npt.NDArray[Any]) -> None:
        """Take a slab, and encode the rows of inner chunks that are complete with it."""
        self._slabs.append((start, slab))
        axis, last = self._axis, self._object.stop[self._axis]
        reached = start[self._slab_axis] + slab.shape[self._slab_axis]
        is_complete = reached == self._object.stop[self._slab_axis]
        while self._row_start < last:
            row_stop = min(self._row_start + self._step, last)
            if not is_complete and (axis != self._slab_axis or reached < row_stop):
                break
            self._object.write_row(self._row_start, self._slabs)
            if row_stop == last:
                self._object.finish()
            if self._next is not None:
                self._next.end_row()
            self._slabs = [(at, s) for at, s in self._slabs if at[axis] + s.shape[axis] > row_stop]
            self._row_start = row_stop


def receipt_of_stored(staged: StagedArray, coords: Shape) -> ShardReceipt | None:
    """Read an object back; return its receipt if it is there whole, else None."""
    array = staged.array
    key = staged.key(coords)
    region = array.object_region(coords)
    values = ValueRange(staged.mask_value)
    try:
        nbytes = staged.store.nbytes(key)
        crc32c = object_crc32c(staged.store, key, nbytes)
        for row in rows_of(region, array) if array.is_direct else [region]:
            voxels = read_region(staged.store, staged.path, array, row, strict=True)
            values.add(voxels.reshape(voxels.shape[0], -1))
    except (FileNotFoundError, IncompleteDatasetError, ShardDecodeError):
        return None
    return ShardReceipt(key, nbytes, crc32c, values.minimum, values.maximum)


class _Encoding(Protocol):
    """Rows of inner chunks in, bytes to append out."""

    def encode_row(
        self, chunks: npt.NDArray[Any], uniform: npt.NDArray[np.bool_] | None, /
    ) -> Iterable[Buffer]: ...

    def finish(self) -> bytes: ...


class _PlainChunk:
    """An object that is one encoded chunk: an array without sharding."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array

    def encode_row(self, chunks: npt.NDArray[Any], _: object) -> Iterator[Buffer]:
        yield chunk_codec(self._array.codecs).encode(chunks[0].view(np.uint8))

    def finish(self) -> bytes:
        return b""


class _ByZarr:
    """An object with odd codecs: assembled whole in memory, then encoded by zarr."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._rows: list[npt.NDArray[Any]] = []

    def encode_row(self, chunks: npt.NDArray[Any], _: object) -> Iterable[Buffer]:
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
