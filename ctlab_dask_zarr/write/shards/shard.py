"""What a worker does: take the blocks of its shards, write each shard whole, return receipts.

One pass over the blocks, in the order of the row axis, feeds every shard of the task. A task has
one shard where blocks lie inside shards, and a whole row of shards where slabs are streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import object_crc32c, read_region, rows_of
from ctlab_dask_zarr.codec.shard import ChunkRow, row_axis_of, row_encoder, strips_of
from ctlab_dask_zarr.codec.values import MIXED, UNIFORM, ValueRange
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.store.store import Writer
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.merge import piece_trailer
from ctlab_dask_zarr.write.shards.next_level import LevelDownsampler, voxel_piece
from ctlab_dask_zarr.write.shards.window import BlockWindow, Placed


def write_shards(
    staged: StagedArray,
    tasks: Sequence[Shape],
    blocks: Iterable[LazyBlock],
    on_encoded: Callable[[int], None] = lambda nbytes: None,
    on_written: Callable[[], None] = lambda: None,
) -> list[ShardReceipt]:
    """Write the objects of tasks, and their pieces of the next level; return the receipts.

    `tasks` are coordinates in the array's grid of tasks, at least one. The blocks cover their
    regions once, in any order. Each is loaded when the first row that needs it is reached, and
    dropped after its last. `on_encoded` is told, after each row, how many bytes of voxels it had;
    `on_written` is called when some of the tasks are done and others are not.
    """
    axis = row_axis_of(staged.array)
    step = staged.array.inner_chunk_shape[axis]
    spans = [staged.layout.region(task)[axis] for task in tasks]
    first, last = min(span.start for span in spans), max(span.stop for span in spans)
    window = BlockWindow(blocks, axis, staged.array.dtype, staged.mask_value)
    receipts: list[ShardReceipt] = []
    with ExitStack() as stack:
        downsamplers = [_downsampler(staged, task, stack) for task in tasks]
        targets = [
            _ObjectInProgress(staged, coords, downsampler, stack)
            for task, downsampler in zip(tasks, downsamplers, strict=True)
            for coords in staged.layout.object_coords(task)
        ]
        for row_start in range(first, last, step):
            row_stop = min(row_start + step, last)
            window.move_to(row_start, row_stop)
            for target in targets:
                if target.start[axis] <= row_start:
                    on_encoded(target.write_row(row_start, window.blocks))
                    if target.stop[axis] <= row_stop:
                        receipts.append(target.finish())
            targets = [target for target in targets if target.stop[axis] > row_stop]
            for span, downsampler in zip(spans, downsamplers, strict=True):
                # Where shards are one inner chunk thick, tasks follow one another along the axis.
                if downsampler is not None and span.start <= row_start < span.stop:
                    downsampler.end_row()
            if row_stop < last and any(span.stop == row_stop for span in spans):
                on_written()
    return receipts


def _downsampler(staged: StagedArray, coords: Shape, stack: ExitStack) -> LevelDownsampler | None:
    """Return what makes a task's piece of the next level, which ends with `stack`."""
    if staged.next_level is None:
        return None
    if staged.next_level.pieces is None:
        return LevelDownsampler(staged, coords, voxel_piece(staged, coords, stack))
    piece = _EncodedPiece(staged.next_level.pieces, coords, row_axis_of(staged.array), stack)
    return LevelDownsampler(staged, coords, piece.add_slab, piece.keep)


class _ObjectInProgress:
    """One stored object while its rows come in; discarded if `stack` ends before it is finished."""

    def __init__(
        self,
        staged: StagedArray,
        coords: Shape,
        downsampler: LevelDownsampler | None,
        stack: ExitStack,
    ) -> None:
        self._staged, self._array, self._key = staged, staged.array, staged.key(coords)
        self._downsampler = downsampler
        self._put = stack.enter_context(ExitStack())
        self._writer: Writer | None = None
        self._nbytes = self._crc32c = 0
        self._values = ValueRange(staged.mask_value)
        self._padding_counts = self._array.fill_value != staged.mask_value
        region = self._array.object_region(coords)
        self.start = tuple(part.start for part in region)
        self.stop = tuple(part.stop for part in region)
        self._encoder = row_encoder(self._array)

    def write_row(self, row_start: int, blocks: Sequence[Placed]) -> int:
        """Append the row that begins at `row_start`; return its voxels' size in bytes."""
        start = list(self.start)
        start[row_axis_of(self._array)] = row_start
        n_elements = 0
        for strip in strips_of(self._array, tuple(start), len(blocks)):
            # Kept for its memory, which the next one may use again.
            self._strip = strip
            if sum(strip.put(block, at) for at, block in blocks) != strip.n_elements:
                raise RuntimeError(
                    f"{self._key}: the blocks do not cover the row at {start} exactly once"
                )
            n_elements += strip.n_elements
            self._write_strip(strip)
        return n_elements * self._array.dtype.itemsize

    def _write_strip(self, strip: ChunkRow) -> None:
        if strip.is_padded and self._padding_counts:
            flags, uniform = np.full(len(strip.chunks), MIXED, np.uint8), None
            if strip.n_elements:
                self._values.add(strip.unpadded().reshape(1, -1))
        else:
            flags = self._values.add(strip.chunks)
            uniform = flags == UNIFORM
        if self._downsampler is not None and strip.n_elements:
            self._downsampler.add(strip, flags)
        self._append(self._encoder.encode_row(strip, uniform))

    def finish(self) -> ShardReceipt:
        """Complete the object; from here on it is there whole."""
        self._append([self._encoder.finish()])
        receipt = ShardReceipt(
            self._key, self._nbytes, self._crc32c, self._values.minimum, self._values.maximum
        )
        if self._staged.is_piece:
            self._append([piece_trailer(receipt, self._array.dtype)])
        self._put.close()
        return receipt

    def _append(self, parts: Iterable[Any]) -> None:
        if self._writer is None:
            # Not before: a task of an array without sharding has thousands of objects.
            put = self._staged.store.create(self._key, durable=not self._staged.is_piece)
            self._writer = self._put.enter_context(put)
        for data in parts:
            self._writer.write(data)
            self._nbytes += len(data)
            self._crc32c = google_crc32c.extend(self._crc32c, data)


class _EncodedPiece:
    """One task's piece of the next level, encoded from slabs that come along `slab_axis`.

    `keep` is as of `LevelDownsampler`.
    """

    def __init__(
        self, staged: StagedArray, coords: Shape, slab_axis: int, stack: ExitStack
    ) -> None:
        self._downsampler = _downsampler(staged, coords, stack)
        self._object = _ObjectInProgress(staged, coords, self._downsampler, stack)
        self._slab_axis, self._axis = slab_axis, row_axis_of(staged.array)
        self._step = staged.array.inner_chunk_shape[self._axis]
        self.keep = self._step if slab_axis == self._axis else None
        self._row_start = self._object.start[self._axis]
        self._slabs: list[Placed] = []

    def add_slab(self, start: Shape, slab: npt.NDArray[Any]) -> None:
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
            if self._downsampler is not None:
                self._downsampler.end_row()
            self._slabs = [(at, s) for at, s in self._slabs if at[axis] + s.shape[axis] > row_stop]
            self._row_start = row_stop


def receipt_of_stored(staged: StagedArray, coords: Shape) -> ShardReceipt | None:
    """Read an object back; return its receipt if it is there whole, else None."""
    array, store, key = staged.array, staged.store, staged.key(coords)
    region = array.object_region(coords)
    values = ValueRange(staged.mask_value)
    try:
        nbytes = store.nbytes(key)
        crc32c = object_crc32c(store, key, nbytes)
        for row in rows_of(region, array) if array.is_direct else [region]:
            voxels = read_region(store, staged.path, array, row, strict=True)
            values.add(voxels.reshape(voxels.shape[0], -1))
    except (FileNotFoundError, IncompleteDatasetError, ShardDecodeError):
        return None
    return ShardReceipt(key, nbytes, crc32c, values.minimum, values.maximum)
