"""What a write of slabs asks for, as the planner of this package cuts it into tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.queues import Stage, Work
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.rechunk import Rechunk, Resources, choose_rechunk

ITEMSIZE = 2
#: mango closes a file, and so a slab, at about this many voxels.
_SLAB_VOXELS = 2**28
#: Slices, rows and columns of a scan: 6,540 x 2,520 x 2,520, and others of these proportions.
_ASPECT, _EDGE = 6540 / 2520, 2520
#: Levels beyond the first hold a seventh of its voxels.
_COARSER = 1 / 7
#: Calls to the file system's metadata that a shard takes, and a band: made, and removed again. The
#: rows ``calls`` of the benchmarks count them.
_CALLS_SHARD, _CALLS_BAND = 6, 8


@dataclass(frozen=True)
class Costs:
    """What a byte of voxels costs one core, in seconds, and to what it shrinks.

    Attributes
    ----------
    make_s
        To make it: to inflate the source.
    encode_s
        To bring it into the order of chunks and compress it.
    level_s
        To make coarser levels of it, beyond that.
    merge_s
        To put a byte that is encoded already into its shard.
    move_s
        To send it from worker to worker.
    read_ratio, stored_ratio
        Bytes of the source, and of the store, for each.
    """

    make_s: float
    encode_s: float
    level_s: float = 0.0
    merge_s: float = 0.0
    move_s: float = 0.0
    read_ratio: float = 0.66
    stored_ratio: float = 0.66


def scan(nbytes: float) -> tuple[tuple[int, int, int], int]:
    """Return the shape of a scan of so many bytes, and how many slices one of its slabs has.

    Examples
    --------
    >>> scan(83e9)
    ((6537, 2519, 2519), 42)
    """
    edge = round((nbytes / ITEMSIZE / _ASPECT) ** (1 / 3))
    return (round(_ASPECT * edge), edge, edge), max(1, _SLAB_VOXELS // edge**2)


def planned(
    layout: Layout, slab: int, n_workers: int, thread_nbytes: int | None, *, bands: bool
) -> Rechunk:
    """Return how the planner has slabs become shards on so many threads.

    `bands` says whether a shard may be put together from several tasks: without, this is what was
    done before that was possible.
    """
    n_slices = layout.shape[0]
    lengths = [slab] * (n_slices // slab) + ([n_slices % slab] if n_slices % slab else [])
    chunks = [lengths, *([n] for n in layout.shape[1:])]
    return choose_rechunk(
        layout, chunks, ITEMSIZE, 0, independent=True, can_merge=bands,
        resources=Resources(n_workers, thread_nbytes),
    )  # fmt: skip


def slab_work(
    layout: Layout, slab: int, way: Rechunk, costs: Costs, *, levels: bool = False
) -> Work:
    """Return the tasks of a write of slabs in a way that the planner chose.

    A group is a row of shards: what is gathered, or put together, waits for its row.
    """
    nbytes = math.prod(layout.shape) * ITEMSIZE
    n_rows = layout.grid_shape[0]
    row = nbytes / n_rows
    shards = layout.n_tasks // n_rows
    encode_s = costs.encode_s * (1 + _COARSER * levels) + costs.level_s * levels
    stored = costs.stored_ratio * (1 + _COARSER * levels)
    useful_s = nbytes * (costs.make_s + encode_s)
    merge = Stage(
        shards,
        costs.merge_s * stored * row / shards,
        2 * stored * row / shards,
        n_calls=_CALLS_SHARD,
    )  # fmt: skip
    read = way.made * costs.read_ratio * row
    if way.method == "tasks":
        n = max(1, round(layout.shape[0] / slab / n_rows))
        make = Stage(n, costs.make_s * row / n, costs.read_ratio * row / n)
        n_bands = shards if way.band is None else max(1, math.ceil(_row_length(layout) / way.band))
        # Voxels go to whoever cuts, and on to whoever encodes; bands take whole slabs, once.
        moves, n_cuts = (2, n) if way.band is None else (1, 0)
        encode = Stage(
            n_bands, (encode_s + moves * costs.move_s) * row / n_bands, stored * row / n_bands,
            moves * row / n_bands, _CALLS_SHARD if way.band is None else _CALLS_BAND * shards,
            1 + n_cuts,
        )  # fmt: skip
        stages = (make, encode) if way.band is None else (make, encode, merge)
        return Work(n_rows, stages, useful_s)
    if way.band is None and way.method == "stream":
        compute_s = row * (way.made * costs.make_s + encode_s)
        direct = Stage(1, compute_s, read + stored * row, n_calls=_CALLS_SHARD * shards)
        return Work(n_rows, (direct,), useful_s)
    across = 1 if way.method == "stream" else shards
    n = across if way.band is None else across * max(1, math.ceil(_row_length(layout) / way.band))
    compute_s = row / n * (way.made * costs.make_s + encode_s)
    per_task = shards / across
    calls = (_CALLS_SHARD if way.band is None else _CALLS_BAND) * per_task
    first = Stage(n, compute_s, (read + stored * row) / n, n_calls=calls)
    return Work(n_rows, (first,) if way.band is None else (first, merge), useful_s)


def aligned_work(layout: Layout, costs: Costs) -> Work:
    """Return the tasks of a write whose blocks are shards; they cost what slabs do."""
    n = layout.n_tasks // layout.grid_shape[0]
    nbytes = math.prod(layout.shape) * ITEMSIZE
    a_shard = nbytes / layout.n_tasks
    compute_s = a_shard * (costs.make_s + costs.encode_s)
    files = a_shard * (costs.read_ratio + costs.stored_ratio)
    stage = Stage(n, compute_s, files, n_calls=_CALLS_SHARD)
    return Work(layout.grid_shape[0], (stage,), nbytes * (costs.make_s + costs.encode_s))


def _row_length(layout: Layout) -> int:
    return min(layout.task_shape[0], layout.shape[0])
