"""How the blocks of a dask array become shards: decided from shapes alone.

Three ways, each with its place (docs/design/rechunking.md has the measurements):

``none``
    Every block lies inside one shard. One task makes the blocks of its shard and writes it.
``stream``
    Blocks are slabs that cross shards. One task owns a whole row of shards, makes the slabs one
    after the other and appends each to all of its shards. Memory is a slab or two; parallelism
    is the number of rows.
``tasks``
    Blocks are computed as tasks of their own, cut at shard boundaries, and each shard's task
    gathers its pieces. Full parallelism; a row of shards has to fit in the cluster's memory.
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

__all__ = [
    "Method",
    "Rechunk",
    "Resources",
    "block_ranges",
    "choose_rechunk",
    "group_axis_of",
    "group_rows",
]

#: Of the worker threads, at least this part has to be busy for rows of shards to be streamed:
#: gathering by tasks moves every voxel through the scheduler's workers twice and was measured at
#: half the speed of streaming.
_MIN_STREAM_EFFICIENCY = 0.5
#: Blocks that two rows of shards need are made twice when streamed; not at any price.
_MAX_STREAM_REPEATS = 1.5
#: Gathering holds the row of shards under way and the beginning of the next one.
_GATHERED_ROWS = 1.25

Method = Literal["none", "stream", "tasks"]


@dataclass(frozen=True)
class Resources:
    """Where the write will run: threads over all workers, memory of a thread in bytes if known."""

    n_threads: int
    thread_nbytes: int | None = None


@dataclass(frozen=True)
class Rechunk:
    """The way that was chosen.

    Attributes
    ----------
    method
        ``'none'``, ``'stream'`` or ``'tasks'``.
    reason
        Why, for people.
    n_tasks
        Number of dask tasks, besides staging, merging receipts and committing.
    peak_nbytes
        Memory of one worker thread above its start, in bytes.
    """

    method: Method
    reason: str
    n_tasks: int
    peak_nbytes: int


def block_ranges(lengths: Sequence[int], cell: int) -> list[range]:
    """Return, for each cell of the task grid along one axis, the blocks that overlap it.

    Examples
    --------
    >>> block_ranges((40, 40, 20), 64)
    [range(0, 2), range(1, 3)]
    """
    starts = (0, *accumulate(lengths))
    return [
        range(_block_at(starts, start), _block_at(starts, min(start + cell, starts[-1]) - 1) + 1)
        for start in range(0, starts[-1], cell)
    ]


def _block_at(starts: Sequence[int], position: int) -> int:
    return bisect_right(starts, position) - 1


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

    Parameters
    ----------
    layout
        Where shards lie.
    chunks
        Block lengths along each axis, as ``dask.array.Array.chunks``.
    itemsize
        Bytes of one voxel.
    row_axis
        The axis along which a shard is written row by row.
    independent
        Whether each block can be made from its own part of the graph, so that a task may make
        blocks inside itself.
    resources
        Threads and memory that the write will have.
    """
    block_nbytes = prod(max(lengths) for lengths in chunks) * itemsize
    row_nbytes = _row_elements(layout, row_axis) * itemsize
    if all(_inside(c, t) for c, t in zip(chunks, layout.task_shape, strict=True)):
        whole = prod(map(min, layout.task_shape, layout.shape)) * itemsize
        held = min(whole, _layer_elements(layout, chunks, row_axis) * itemsize)
        peak = (held if independent else whole) + row_nbytes
        return Rechunk("none", "every block lies inside one shard", layout.n_tasks, peak)
    group_axis = group_axis_of(layout)
    n_rows = layout.grid_shape[group_axis]
    stream = Rechunk(
        "stream",
        f"{n_rows} rows of shards, each fed slab by slab",
        n_rows,
        _slab_elements(layout, chunks, group_axis, row_axis) * itemsize + row_nbytes,
    )
    plane = prod(layout.shape) // layout.shape[group_axis]
    gathered = min(layout.task_shape[group_axis] * plane * _GATHERED_ROWS, prod(layout.shape))
    shard_nbytes = prod(map(min, layout.task_shape, layout.shape)) * itemsize
    per_thread = max(ceil(gathered * itemsize / resources.n_threads), shard_nbytes + block_nbytes)
    tasks = Rechunk(
        "tasks",
        "blocks are cut at shard boundaries and gathered",
        layout.n_tasks + _n_splits(layout, chunks),
        per_thread + row_nbytes,
    )
    if not independent or _repeats(layout, chunks, group_axis) > _MAX_STREAM_REPEATS:
        return tasks
    efficiency = n_rows / (ceil(n_rows / resources.n_threads) * resources.n_threads)
    memory = resources.thread_nbytes
    tasks_fit = memory is None or tasks.peak_nbytes <= memory
    return stream if efficiency >= _MIN_STREAM_EFFICIENCY or not tasks_fit else tasks


def group_axis_of(layout: Layout) -> int:
    """Return the axis along which rows of shards follow one another: the first with a length."""
    return next((axis for axis, n in enumerate(layout.shape) if n > 1), 0)


def _inside(lengths: Sequence[int], cell: int) -> bool:
    """Whether no block crosses a cell boundary along one axis."""
    position = 0
    for length in lengths:
        if length and position // cell != (position + length - 1) // cell:
            return False
        position += length
    return True


def _row_elements(layout: Layout, axis: int) -> int:
    """Elements of one row of inner chunks."""
    shape = list(layout.object_shape)
    shape[axis] = layout.inner_chunk_shape[axis]
    return prod(shape)


def _window(lengths: Sequence[int], step: int, row: int) -> int:
    """Return the most elements of blocks that one row of inner chunks holds along its axis.

    `row` is the length of a row of shards; rows of inner chunks start anew at each.
    """
    worst = 0
    starts = (0, *accumulate(lengths))
    total = starts[-1]
    for shard_start in range(0, total, row):
        shard_stop = min(shard_start + row, total)
        for start in range(shard_start, shard_stop, step):
            stop = min(start + step, shard_stop)
            first, last = _block_at(starts, start), _block_at(starts, stop - 1)
            worst = max(worst, starts[last + 1] - starts[first])
    return worst


def _slab_elements(
    layout: Layout, chunks: Sequence[Sequence[int]], group_axis: int, row_axis: int
) -> int:
    """Elements of the slabs that a streamed row of shards holds at once."""
    length = layout.task_shape[group_axis]
    step = layout.inner_chunk_shape[group_axis] if row_axis == group_axis else length
    plane = prod(layout.shape) // layout.shape[group_axis]
    return plane * _window(chunks[group_axis], step, length)


def _layer_elements(layout: Layout, chunks: Sequence[Sequence[int]], axis: int) -> int:
    """Elements of the blocks inside one shard that one row of inner chunks needs at once."""
    shape = [min(t, n) for t, n in zip(layout.task_shape, layout.shape, strict=True)]
    shape[axis] = _window(chunks[axis], layout.inner_chunk_shape[axis], layout.task_shape[axis])
    return prod(shape)


def _repeats(layout: Layout, chunks: Sequence[Sequence[int]], axis: int) -> float:
    """How often a block is made on average when rows of shards are streamed."""
    lengths = chunks[axis]
    made = sum(
        sum(lengths[block] for block in blocks)
        for blocks in block_ranges(lengths, layout.task_shape[axis])
    )
    return made / layout.shape[axis]


def _n_splits(layout: Layout, chunks: Sequence[Sequence[int]]) -> int:
    """Count the pieces that blocks are cut into, and the blocks themselves."""
    n_pieces = prod(
        sum(len(blocks) for blocks in block_ranges(lengths, cell))
        for lengths, cell in zip(chunks, layout.task_shape, strict=True)
    )
    return n_pieces + prod(len(lengths) for lengths in chunks)


def group_rows(layout: Layout, shards: Iterable[Shape]) -> Iterator[list[Shape]]:
    """Yield the coordinates, of those in `shards`, of each row of shards, for streaming."""
    axis = group_axis_of(layout)
    rows: dict[int, list[Shape]] = {}
    for coords in shards:
        rows.setdefault(coords[axis], []).append(coords)
    yield from rows.values()
