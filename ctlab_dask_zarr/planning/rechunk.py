"""How the blocks of a dask array become shards: decided from shapes alone.

There are three ways (docs/design/rechunking.md has the measurements):

``none``
    Every block lies inside one shard. One task makes the blocks of its shard and writes it.
``stream``
    Blocks are slabs that cross shards. One task owns a whole row of shards, makes the slabs one
    after the other and appends each to all of its shards. It needs the memory of a slab or two.
``tasks``
    Blocks are computed as tasks of their own, and each writing task gathers what it needs of them.

Where there are fewer shards, or rows of them, than keep the threads busy, shards are cut into
*bands*: runs of rows of inner chunks. Each way then makes bands instead of shards. A band is
encoded by one task, and a shard is put together from its bands by moving bytes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, prod
from operator import floordiv
from typing import Literal

from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.planning.layout import Layout

#: A block that two tasks need is made twice; not more often than this, on average.
_MAX_REPEATS = 1.5
#: Gathering moves voxels between workers. Its speed beside that of tasks that make their blocks:
#: whole slabs for bands, and cuts for shards, of which a row has to be there before one is written.
_BAND_GATHERING_SPEED = 0.75
_SHARD_GATHERING_SPEED = 0.5
#: Gathering shards holds the current row of them and the beginning of the next one.
_GATHERED_ROWS = 1.25
#: Tasks do not take equally long: the last ones let the others wait for this part of one.
_WAIT = 0.25
#: Bands are moved once more, and are files of their own. They, and thinner ones, have to save this
#: much of the time.
_BAND_GAIN, _THINNER_GAIN = 1.1, 1.05
#: With so many tasks for each thread none waits long, and there is nothing to weigh.
_ENOUGH_TASKS = 8
#: The most bands of one shard: each is a file for a moment.
_MAX_BANDS = 64

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
    one worker thread needs above what it has at its start. `band` is the thickness of a band in
    voxels, along the row axis of a shard; None where tasks write shards at once. `made` is how
    often a voxel is made, on average.
    """

    method: Method
    reason: str
    n_tasks: int
    peak_nbytes: int
    band: int | None = None
    made: float = 1.0


def choose_rechunk(
    layout: Layout,
    chunks: Sequence[Sequence[int]],
    itemsize: int,
    row_axis: int,
    *,
    independent: bool,
    resources: Resources,
    can_merge: bool = False,
    n_jobs: int = 1,
) -> Rechunk:
    """Choose how blocks of the given `chunks` become the shards of `layout`.

    `row_axis` is the axis along which a shard is written row by row. `independent` says whether
    each block can be made from its own part of the graph, so that tasks may make blocks themselves.
    `can_merge` says whether shards can be put together from encoded bands. `n_jobs` share the
    write, each with such resources.
    """
    choice = _Choice(layout, chunks, itemsize, row_axis, resources.n_threads * n_jobs, can_merge)
    if choice.is_aligned:
        return choice.aligned(independent)
    if not independent:
        return choice.gathered()[1]
    timed = [found for found in (*choice.streamed(), choice.gathered()) if found is not None]
    memory = resources.thread_nbytes
    fitting = [found for found in timed if memory is None or found[1].peak_nbytes <= memory]
    # Where nothing fits, whoever reads the plan sees how little would be enough.
    by_memory = [min(timed, key=lambda found: found[1].peak_nbytes)]
    return min(fitting or by_memory, key=lambda found: found[0])[1]


#: How long something takes, in planes made by one thread, and what it is.
_Timed = tuple[float, Rechunk]


class _Choice:
    """What there is to choose from for one array."""

    def __init__(
        self,
        layout: Layout,
        chunks: Sequence[Sequence[int]],
        itemsize: int,
        row_axis: int,
        n_threads: int,
        can_merge: bool,
    ) -> None:
        self.layout, self.chunks, self.n_threads = layout, chunks, n_threads
        self.row_axis, self.axis = row_axis, group_axis_of(layout)
        self.is_aligned = all(map(_are_inside, chunks, layout.task_shape))
        self.step = layout.inner_chunk_shape[row_axis]
        self.whole = tuple(map(min, layout.task_shape, layout.shape))
        self.shard_length = self.whole[row_axis]
        self.shard_nbytes = prod(self.whole) * itemsize
        self.itemsize, n_rows = itemsize, layout.object_shape[row_axis] // self.step
        self.row_nbytes = prod(layout.object_shape) // n_rows * itemsize
        self.plane_nbytes = prod(layout.shape) // layout.shape[self.axis] * itemsize
        self.block_nbytes = prod(max(lengths) for lengths in chunks) * itemsize
        can_merge = can_merge and layout.shard_shape is not None
        #: Thickness of possible bands, thick ones first. An even one can be halved for levels.
        self.bands = [
            n * self.step
            for n in range(min(n_rows // 2, -(-self.shard_length // self.step) - 1), 0, -1)
            if can_merge
            and n_rows % n == 0
            and n * self.step % 2 == 0
            and -(-self.shard_length // (n * self.step)) <= _MAX_BANDS
        ]

    def aligned(self, independent: bool) -> Rechunk:
        """Return how blocks that lie inside shards are written."""
        layout, axis = self.layout, self.row_axis
        layer = _window(self.chunks[axis], self.step, layout.task_shape[axis])
        held = min(self.shard_nbytes, self.shard_nbytes // self.shard_length * layer)
        peak = (held if independent else self.shard_nbytes) + self.row_nbytes
        direct = Rechunk("none", "every block lies inside one shard", layout.n_tasks, peak)
        across = layout.n_tasks // layout.grid_shape[axis]
        found = self._in_bands(across, layout.n_tasks) if independent else None
        if found is None:
            return direct
        _, band, made, n_bands = found
        peak = self._peak_of(band, self.whole)
        reason = (
            f"every block lies inside one shard; {_many(layout.n_tasks, 'shard')} in "
            f"{n_bands} bands of {band} voxels, for {self.n_threads} threads{_repeated(made)}"
        )
        return Rechunk("none", reason, n_bands + layout.n_tasks, peak, band, made)

    def streamed(self) -> Iterator[_Timed]:
        """Yield the ways in which a task makes slabs for a row of shards, or of bands."""
        layout, axis = self.layout, self.axis
        n_rows, length = layout.grid_shape[axis], layout.task_shape[axis]
        costs = _made(self.chunks[axis], length)
        made = sum(costs) / layout.shape[axis]
        slab = _window(self.chunks[axis], self.step if self.row_axis == axis else length, length)
        peak = slab * self.plane_nbytes + self.row_nbytes
        found = self._in_bands(1, n_rows) if self.row_axis == axis else None
        if found is not None:
            time, band, made, n_bands = found
            reason = (
                f"{_many(n_rows, 'row')} of shards in {n_bands} bands of {band} slices, each fed "
                f"slab by slab, for {self.n_threads} threads{_repeated(made)}"
            )
            peak = self._peak_of(band, layout.shape)
            yield time, Rechunk("stream", reason, n_bands + layout.n_tasks, peak, band, made)
        elif made <= _MAX_REPEATS:
            reason = f"{_many(n_rows, 'row')} of shards, each fed slab by slab{_repeated(made)}"
            time = _duration(costs, self.n_threads)
            yield time, Rechunk("stream", reason, n_rows, peak, None, made)

    def gathered(self) -> _Timed:
        """Return how blocks that are tasks of their own are gathered."""
        layout, axis = self.layout, self.axis
        n_rows, length = layout.grid_shape[axis], layout.task_shape[axis]
        n_blocks = prod(sum(map(bool, lengths)) for lengths in self.chunks)
        time = ceil(n_blocks / self.n_threads) * layout.shape[axis] / n_blocks
        wide = are_wide(layout, self.chunks)
        if self.row_axis == axis and wide and self.bands and n_rows < 4 * self.n_threads:
            counts = {band: ceil(layout.shape[axis] / band) for band in self.bands}
            enough = [band for band in self.bands if counts[band] >= 4 * self.n_threads]
            band = (enough or self.bands[-1:])[0]
            window = max(_made(self.chunks[axis], band))
            peak = window * self.plane_nbytes + self.block_nbytes + self._row_of(band)
            reason = (
                f"blocks are gathered for {_many(n_rows, 'row')} of shards in {counts[band]} bands "
                f"of {band} slices, for {self.n_threads} threads"
            )
            n_tasks = n_blocks + counts[band] + layout.n_tasks
            return time / _BAND_GATHERING_SPEED, Rechunk("tasks", reason, n_tasks, peak, band)
        gathered = self.plane_nbytes * min(length * _GATHERED_ROWS, layout.shape[axis])
        peak = max(ceil(gathered / self.n_threads), self.shard_nbytes + self.block_nbytes)
        reason = "blocks are cut at shard boundaries and gathered"
        n_tasks = layout.n_tasks + _n_blocks_and_cuts(layout, self.chunks)
        found = Rechunk("tasks", reason, n_tasks, peak + self.row_nbytes)
        return time / _SHARD_GATHERING_SPEED, found

    def _row_axis_of(self, band: int) -> int:
        """Return the axis along which a band is written row by row; a thin one has another."""
        counts = map(floordiv, self.layout.object_shape, self.layout.inner_chunk_shape)
        of_band = [band // self.step if a == self.row_axis else n for a, n in enumerate(counts)]
        return next((axis for axis, n in enumerate(of_band) if n > 1), 0)

    def _row_of(self, band: int) -> int:
        """Return the size of a row of a band."""
        shape = list(self.layout.object_shape)
        shape[self.row_axis] = band
        axis = self._row_axis_of(band)
        shape[axis] = self.layout.inner_chunk_shape[axis]
        return prod(shape) * self.itemsize

    def _peak_of(self, band: int, extent: Shape) -> int:
        """Return the memory of a task that makes the blocks of a band, across `extent`."""
        held, axis = list(extent), self._row_axis_of(band)
        held[self.row_axis] = max(_made(self.chunks[self.row_axis], band))
        cell = band if axis == self.row_axis else self.layout.task_shape[axis]
        step = self.layout.inner_chunk_shape[axis]
        held[axis] = min(held[axis], _window(self.chunks[axis], step, cell))
        return prod(held) * self.itemsize + self._row_of(band)

    def _in_bands(self, across: int, n_direct: int) -> tuple[float, int, float, int] | None:
        """Return (time, band, how often a voxel is made, number of bands); None if not worth it.

        Along the row axis, `across` tasks lie side by side; without bands there are `n_direct`.
        """
        lengths, shape = self.chunks[self.row_axis], self.layout.shape[self.row_axis]
        if not self.bands or n_direct >= _ENOUGH_TASKS * self.n_threads:
            return None
        found = []
        for band in self.bands:
            costs = _made(lengths, band)
            made = sum(costs) / shape
            if made <= _MAX_REPEATS:
                time = _duration(costs * across, self.n_threads) + _WAIT * max(costs)
                found.append((time, band, made, len(costs) * across))
        if not found:
            return None
        least = min(found)[0]
        chosen = next(f for f in found if f[0] <= least * _THINNER_GAIN)
        direct = _made(lengths, self.layout.task_shape[self.row_axis])
        may_be_direct = sum(direct) / shape <= _MAX_REPEATS
        time = _duration(direct * across, self.n_threads)
        return None if may_be_direct and time <= chosen[0] * _BAND_GAIN else chosen


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _repeated(made: float) -> str:
    """Say how much is made twice, if it is worth a word."""
    return f"; {made - 1:.0%} of the voxels are made twice" if made >= 1.005 else ""


def _made(lengths: Sequence[int], cell: int) -> list[int]:
    """Return, for each cell along one axis, the length of all blocks that overlap it."""
    starts = (0, *accumulate(lengths))
    return [starts[blocks.stop] - starts[blocks.start] for blocks in block_ranges(lengths, cell)]


def _duration(costs: Sequence[int], n_threads: int) -> float:
    """Return how long threads take for tasks that are begun in order."""
    if len(costs) >= _ENOUGH_TASKS * _ENOUGH_TASKS * n_threads:
        return sum(costs) / n_threads
    ends = [0] * min(n_threads, len(costs))
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def band_layout(layout: Layout, row_axis: int, band: int) -> Layout:
    """Return the layout of the same array whose shards are the bands of this one's."""
    assert layout.shard_shape is not None
    shard = list(layout.shard_shape)
    shard[row_axis] = band
    return Layout(layout.shape, layout.inner_chunk_shape, tuple(shard))


def are_wide(layout: Layout, chunks: Sequence[Sequence[int]]) -> bool:
    """Whether a row of shards has no more blocks side by side than shards."""
    axis = group_axis_of(layout)
    n_blocks = prod(len(lengths) for a, lengths in enumerate(chunks) if a != axis)
    return n_blocks <= prod(n for a, n in enumerate(layout.grid_shape) if a != axis)


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
