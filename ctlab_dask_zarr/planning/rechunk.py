"""How the blocks of a dask array become shards: decided from shapes alone.

There are three ways (docs/design/rechunking.md has the measurements):

``none``
    Every block lies inside one shard. One task makes the blocks of its shard and writes it.
``stream``
    Blocks are slabs that cross shards. One task owns a whole row of shards, makes the slabs one
    after the other and appends each to all of its shards. It needs the memory of a slab or two, and
    as many threads can work as there are rows.
``tasks``
    Blocks are computed as tasks of their own and cut at shard boundaries, and each shard's task
    gathers its cuts. All threads work; a row of shards has to fit in the cluster's memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod
from typing import Literal

from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.planning.layout import Layout

#: Streaming needs work for at least this part of the threads: gathering by tasks moves every voxel
#: twice through the workers, and was measured at half the speed.
_MIN_STREAM_EFFICIENCY = 0.5
#: Streaming makes a block twice that two rows of shards need; not more often than this, on average.
_MAX_STREAM_REPEATS = 1.5
#: Gathering holds the current row of shards and the beginning of the next one.
_GATHERED_ROWS = 1.25

Method = Literal["none", "stream", "tasks"]


@dataclass(frozen=True)
class Resources:
    """Where the write will run: threads over all workers, memory of a thread in bytes if known."""

    n_threads: int
    thread_nbytes: int | None = None


@dataclass(frozen=True)
class Rechunk:
    """The way that was chosen, and why.

    `n_tasks` leaves out staging, merging receipts and committing. `peak_nbytes` is the memory that
    one worker thread needs above what it has at its start.
    """

    method: Method
    reason: str
    n_tasks: int
    peak_nbytes: int


def choose_rechunk(
    layout: Layout,
    chunks: Sequence[Sequence[int]],
    itemsize: int,
    row_axis: int,
    *,
    independent: bool,
    resources: Resources,
) -> Rechunk:
    """Choose how blocks of the given `chunks` become the shards of `layout`.

    `row_axis` is the axis along which a shard is written row by row. `independent` says whether
    each block can be made from its own part of the graph, so that tasks may make blocks themselves.
    """
    whole = [min(t, n) for t, n in zip(layout.task_shape, layout.shape, strict=True)]
    shard_nbytes = prod(whole) * itemsize
    step = layout.inner_chunk_shape[row_axis]
    row_nbytes = prod(layout.object_shape) // layout.object_shape[row_axis] * step * itemsize
    if all(_are_inside(c, t) for c, t in zip(chunks, layout.task_shape, strict=True)):
        layer = _window(chunks[row_axis], step, layout.task_shape[row_axis])
        held = min(shard_nbytes, shard_nbytes // whole[row_axis] * layer)
        peak = (held if independent else shard_nbytes) + row_nbytes
        return Rechunk("none", "every block lies inside one shard", layout.n_tasks, peak)
    axis = group_axis_of(layout)
    n_rows = layout.grid_shape[axis]
    length = layout.task_shape[axis]
    plane_nbytes = prod(layout.shape) // layout.shape[axis] * itemsize
    slab = _window(chunks[axis], step if row_axis == axis else length, length)
    stream = Rechunk(
        "stream",
        f"{n_rows} rows of shards, each fed slab by slab",
        n_rows,
        slab * plane_nbytes + row_nbytes,
    )
    block_nbytes = prod(max(lengths) for lengths in chunks) * itemsize
    gathered = plane_nbytes * min(length * _GATHERED_ROWS, layout.shape[axis])
    per_thread = max(ceil(gathered / resources.n_threads), shard_nbytes + block_nbytes)
    tasks = Rechunk(
        "tasks",
        "blocks are cut at shard boundaries and gathered",
        layout.n_tasks + _n_blocks_and_cuts(layout, chunks),
        per_thread + row_nbytes,
    )
    needed = block_ranges(chunks[axis], length)
    n_made = sum(chunks[axis][block] for blocks in needed for block in blocks)
    if not independent or n_made / layout.shape[axis] > _MAX_STREAM_REPEATS:
        return tasks
    efficiency = n_rows / (ceil(n_rows / resources.n_threads) * resources.n_threads)
    memory = resources.thread_nbytes
    tasks_fit = memory is None or tasks.peak_nbytes <= memory
    return stream if efficiency >= _MIN_STREAM_EFFICIENCY or not tasks_fit else tasks


def block_ranges(lengths: Sequence[int], cell: int) -> list[range]:
    """Return, for each cell of the task grid along one axis, the blocks that overlap it."""
    starts = (0, *accumulate(lengths))
    return [
        range(_block_at(starts, start), _block_at(starts, min(start + cell, starts[-1]) - 1) + 1)
        for start in range(0, starts[-1], cell)
    ]


def group_axis_of(layout: Layout) -> int:
    """Return the axis along which rows of shards follow one another: the first with a length."""
    return next((axis for axis, n in enumerate(layout.shape) if n > 1), 0)


def group_rows(layout: Layout, shards: Iterable[Shape]) -> Iterator[list[Shape]]:
    """Yield the coordinates of `shards` for each row of shards, for streaming."""
    axis = group_axis_of(layout)
    rows: dict[int, list[Shape]] = {}
    for coords in shards:
        rows.setdefault(coords[axis], []).append(coords)
    yield from rows.values()


def _block_at(starts: Sequence[int], position: int) -> int:
    return bisect_right(starts, position) - 1


def _are_inside(lengths: Sequence[int], cell: int) -> bool:
    """Whether no block crosses a cell boundary along one axis."""
    starts = accumulate(lengths, initial=0)
    return all(
        not length or start // cell == (start + length - 1) // cell
        for start, length in zip(starts, lengths, strict=False)
    )


def _window(lengths: Sequence[int], step: int, row: int) -> int:
    """Return the largest extent, along one axis, of the blocks that one row of inner chunks needs.

    `row` is the length of a row of shards, in each of which rows of inner chunks begin anew.
    """
    largest = 0
    starts = (0, *accumulate(lengths))
    total = starts[-1]
    for shard_start in range(0, total, row):
        shard_stop = min(shard_start + row, total)
        for start in range(shard_start, shard_stop, step):
            stop = min(start + step, shard_stop)
            first, last = _block_at(starts, start), _block_at(starts, stop - 1)
            largest = max(largest, starts[last + 1] - starts[first])
    return largest


def _n_blocks_and_cuts(layout: Layout, chunks: Sequence[Sequence[int]]) -> int:
    n_cuts = prod(
        sum(map(len, block_ranges(lengths, cell)))
        for lengths, cell in zip(chunks, layout.task_shape, strict=True)
    )
    return n_cuts + prod(map(len, chunks))
