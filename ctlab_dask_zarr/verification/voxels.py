"""Stored voxels compared with those of their source, bit by bit; this is what workers do.

Where blocks of the source lie inside shards, or are slabs of them, a task goes through rows of
inner chunks as the write did: it makes each block once and brings its voxels into the order of the
inner chunks, and reads each byte of its shards once, for its checksum and to be decoded and
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.shard import ChunkRow, is_fill, row_axis_of
from ctlab_dask_zarr.codec.values import Differences, have_same_bits, voxel_difference
from ctlab_dask_zarr.errors import BlockError, CTLabError
from ctlab_dask_zarr.execution.graphs import accepted_block
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.receipts import Expected
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.comparison import of_source
from ctlab_dask_zarr.verification.objects import Finding, ShardCheck
from ctlab_dask_zarr.verification.scan import all_rows
from ctlab_dask_zarr.volume import Source
from ctlab_dask_zarr.write.shards.array import LazyBlock
from ctlab_dask_zarr.write.shards.window import BlockWindow

#: Compares voxels with a checksum that their source keeps, or reads them if none are given.
VoxelCheck = Callable[..., list[Problem]]


def block_problems(
    stored: Source, mask_value: Number | None, start: Shape, shape: Shape, block: Any
) -> list[Problem]:
    """Compare a block of the source with the same region of the dataset, bit by bit.

    The dataset has its `mask_value` where a masked array is masked.
    """
    region = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    place = place_text(start, shape)
    try:
        wanted = accepted_block(block, start, shape, stored.dtype, mask_value)
    except BlockError as error:
        return [of_source(Problem(place, "source", str(error)))]
    try:
        found = stored[region]
    except (CTLabError, OSError) as error:
        return [Problem(place, "unreadable", f"{place} cannot be read: {error}")]
    difference = voxel_difference(found, wanted, start)
    return [] if difference is None else [Problem(place, "voxels", difference)]


def place_text(start: Shape, shape: Shape) -> str:
    """Return how messages name a region.

    Examples
    --------
    >>> place_text((0, 8), (4, 2))
    'voxels 0:4, 8:10'
    """
    return f"voxels {', '.join(f'{s}:{s + n}' for s, n in zip(start, shape, strict=True))}"


@dataclass(frozen=True)
class ComparedRows:
    """Rows of inner chunks of some shards of one array, which one task compares."""

    store: Store
    path: str
    document: str
    mask_value: Number | None
    shards: Sequence[Expected]
    rows: range

    @property
    def array(self) -> StoredArray:
        """What the array's document says."""
        return parse_array_document(self.document)

    def compare(
        self,
        recipes: Sequence[tuple[BlockRecipe, VoxelCheck | None]],
        shared: Mapping[Any, Any],
        on_compared: Callable[[int], None],
    ) -> list[Finding]:
        """Compare the shards with the blocks that overlap them, and with their receipts.

        A block may come with what compares its voxels with a checksum that the source keeps.
        `shared` are results that the recipes need. `on_compared` is told, after each row, how many
        bytes of voxels it had.
        """
        found: list[Finding] = []
        blocks = [
            LazyBlock(r.start, r.shape, partial(self._make, r, shared, check, found))
            for r, check in recipes
        ]
        array, axis = self.array, row_axis_of(self.array)
        step = array.inner_chunk_shape[axis]
        coming = [_ShardRows(self, expected) for expected in reversed(self.shards)]
        coming.sort(key=lambda shard: shard.start[axis], reverse=True)
        window = BlockWindow(blocks, axis, array.dtype, self.mask_value)
        differences = {block.start: Differences() for block in blocks}
        under_way: list[_ShardRows] = []
        while coming or under_way:
            row_start = under_way[0].next_start if under_way else coming[-1].next_start
            _move(window, row_start, row_start + step)
            while coming and coming[-1].next_start == row_start:
                under_way.append(coming.pop())
            for shard in under_way:
                on_compared(shard.compare_row(window, differences))
            found += [f for shard in under_way if shard.is_done for f in shard.end()]
            under_way = [shard for shard in under_way if not shard.is_done]
        for block in blocks:
            start, stop = self._shared_with(block)
            shape = tuple(b - a for a, b in zip(start, stop, strict=True))
            text = differences[block.start].told(start, shape)
            if text is not None:
                found.append(Problem(place_text(start, shape), "voxels", text))
        return found

    def _make(
        self,
        recipe: BlockRecipe,
        shared: Mapping[Any, Any],
        check: VoxelCheck | None,
        found: list[Finding],
    ) -> npt.NDArray[Any]:
        block = recipe.make(shared)
        place = recipe.start, recipe.shape
        try:
            voxels = accepted_block(block, *place, self.array.dtype, self.mask_value)
        except BlockError as error:
            found.append(of_source(Problem(place_text(*place), "source", str(error))))
            raise
        if check is not None:
            found += map(of_source, check(voxels))
        return voxels

    def _shared_with(self, block: LazyBlock) -> tuple[Shape, Shape]:
        """Return the corners of what a block and these rows share."""
        axis = row_axis_of(self.array)
        regions = [self.array.object_region(shard.coords) for shard in self.shards]
        lows = [min(r[a].start for r in regions) for a in range(len(block.start))]
        highs = [max(r[a].stop for r in regions) for a in range(len(block.start))]
        step = self.array.inner_chunk_shape[axis]
        if len(self.rows) < len(all_rows(self.array)):
            highs[axis] = min(highs[axis], lows[axis] + self.rows.stop * step)
            lows[axis] += self.rows.start * step
        ends = (s + n for s, n in zip(block.start, block.shape, strict=True))
        return tuple(map(max, block.start, lows)), tuple(map(min, ends, highs))


def _move(window: BlockWindow, start: int, stop: int) -> None:
    """Move a window; blocks that cannot be compared are left out."""
    while True:
        with suppress(BlockError):
            window.move_to(start, stop)
            return


class _ShardRows:
    """The rows of one shard, compared one after the other."""

    def __init__(self, work: ComparedRows, expected: Expected) -> None:
        self._array, self._rows = work.array, work.rows
        self._axis = row_axis_of(work.array)
        self._step = work.array.inner_chunk_shape[self._axis]
        region = work.array.object_region(expected.coords)
        self.start: Shape = tuple(part.start for part in region)
        self._stop: int = region[self._axis].stop
        self._row = work.rows.start
        self._make = partial(ShardCheck, work.store, work.path, work.array, expected, work.rows)
        self._check: ShardCheck | None = None

    @property
    def next_start(self) -> int:
        """Where the next row begins, along the row axis."""
        return self.start[self._axis] + self._row * self._step

    @property
    def is_done(self) -> bool:
        """Whether all rows that have voxels were compared."""
        return self._row >= self._rows.stop or self.next_start >= self._stop

    def compare_row(self, window: BlockWindow, differences: dict[Shape, Differences]) -> int:
        """Compare the next row with the blocks in a window; return its voxels' size in bytes."""
        array, number = self._array, self._row
        # Not before: a task may have many shards.
        check = self._check = self._check or self._make()
        start = list(self.start)
        start[self._axis] = self.next_start
        wanted = ChunkRow(array, tuple(start))
        n_wanted = sum(wanted.put(block, at) for at, block in window.blocks)
        n_voxels = prod(b - a for a, b in zip(wanted.start, wanted.stop, strict=True))
        # Part of a row stays as it was where a block could not be had.
        is_whole = n_wanted == n_voxels
        first = number * len(wanted.chunks)
        for n, chunk in check.chunks(range(number, number + 1)):
            if not (is_whole and have_same_bits(chunk, wanted.chunks[n - first])):
                self._look_closer(n, chunk, window, differences)
        absent = np.flatnonzero(check.absent[first : first + len(wanted.chunks)])
        if is_whole and len(absent):
            absent = absent[~is_fill(wanted.chunks, array)[absent]]
        for n in absent.tolist():
            fill = np.full(array.inner_chunk_shape, array.fill_value, array.dtype)
            self._look_closer(first + n, fill, window, differences)
        self._row += 1
        return n_voxels * array.dtype.itemsize

    def end(self) -> list[Finding]:
        """Return what was found, after all rows."""
        assert self._check is not None
        # Rows beyond the array have no voxels; their bytes belong to the checksum.
        for _ in self._check.chunks(range(self._row, self._rows.stop)):
            pass
        return self._check.end()

    def _look_closer(
        self,
        number: int,
        chunk: npt.NDArray[Any],
        window: BlockWindow,
        differences: dict[Shape, Differences],
    ) -> None:
        """Find out which voxels of an inner chunk differ; beyond the array all may."""
        shape = self._array.inner_chunk_shape
        place = np.unravel_index(number, self._array.chunks_per_object)
        start = tuple(s + int(p) * c for s, p, c in zip(self.start, place, shape, strict=True))
        found = chunk.reshape(shape)
        for at, block in window.blocks:
            low = tuple(map(max, start, at))
            ends = zip(start, shape, at, block.shape, strict=True)
            high = [min(s + n, a + m) for s, n, a, m in ends]
            if all(a < b for a, b in zip(low, high, strict=True)):
                mine, theirs = (
                    tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
                    for origin in (start, at)
                )
                differences[at].add(found[mine], block[theirs], low)
