"""The write as a dask graph: stage, write each shard, merge receipts in a tree, commit.

The strategy in one paragraph. Blocks that can be made from their own part of the source's graph
are made *inside* the task that writes them: the task carries that part and runs it when the row
under way needs the block. So a write is one dask task a shard (or a row of shards), the block
never waits in a worker's memory, and slabs are streamed in order. Parts of the graph that several
blocks share stay dask tasks and are passed in. Where blocks cannot be made inside (``tasks`` in
`write.rechunk`), they stay dask tasks too, are cut at shard boundaries, and each shard's task
gathers its pieces without putting them together first.

Building a graph has no side effect. Every task is harmless when repeated or raced: a shard is
put whole under its final key, staging and committing know their own run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, product
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, Dict, GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.execution.graphs import (
    FAN_IN,
    Accept,
    Place,
    SourceGraph,
    accepted_block,
    add_blocks,
    add_closure,
    add_tree,
    private_tasks,
)
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import parent_coords
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.planning.rechunk import Method, block_ranges, group_axis_of, group_rows
from ctlab_dask_zarr.write.coarser import write_coarser
from ctlab_dask_zarr.write.sample import add_sample, stage_after
from ctlab_dask_zarr.write.shards.array import LazyBlock, ShardTask
from ctlab_dask_zarr.write.staging.commit import CommitResult, commit
from ctlab_dask_zarr.write.staging.remaining import Remaining
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["build_graph"]

Key = Any
#: Pieces that one shard's task may gather.
_MAX_FAN_IN = 256


def build_graph(
    request: StageRequest,
    remaining: Remaining,
    source: SourceGraph | None = None,
    *,
    method: Method = "none",
    staged: StagedWrite | None = None,
    publish: bool = True,
) -> Delayed:
    """Return a Delayed that stages, writes the remaining shards and commits: a `CommitResult`.

    Parameters
    ----------
    request
        What the staging folder keeps.
    remaining
        The shards to write.
    source
        The blocks of level 0; None where only coarser levels are written.
    method
        How blocks become shards.
    staged
        The write, where it is staged already.
    publish
        Whether to commit at the end.
    """
    token = request.run_id[:8]
    key = f"stage-{token}"
    graph: dict[Key, GraphNode] = {}
    ref = TaskRef(key)
    keys: list[Key] = []
    writers: dict[Shape, Key] = {}
    if source is not None:
        sample = List(*map(TaskRef, add_sample(graph, source, request, remaining.stored)))
        graph[key] = Task(key, stage_after, request, sample)
        keys, writers = _add_finest(graph, source, request, remaining, method, ref, token)
    elif staged is not None:
        graph[key] = DataNode(key, staged)
    else:
        graph[key] = Task(key, stage, request)
    keys += _add_coarser(graph, request.levels, remaining, writers, ref, token)
    recorded = TaskRef(_add_recording(graph, keys, remaining.found, ref, token))
    end = f"{'commit' if publish else 'part'}-{token}"
    if publish:
        volumes = DataNode(f"{end}-sources", () if source is None else source.volumes)
        graph[end] = Task(end, _commit, ref, recorded, volumes)
    else:
        graph[end] = Task(end, _end_part, ref, recorded)
    return Delayed(end, HighLevelGraph({end: MaterializedLayer(graph)}, {end: set()}))


def _add_finest(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    request: StageRequest,
    remaining: Remaining,
    method: Method,
    staged: TaskRef,
    token: str,
) -> tuple[list[Key], dict[Shape, Key]]:
    """Add the tasks that write shards of level 0; return their keys, also by coordinates."""
    level = request.levels[0]
    coords = remaining.of_level(0)
    is_streamed = method == "stream"
    groups = list(group_rows(level.layout, coords)) if is_streamed else [[c] for c in coords]
    if source.is_independent and method in ("none", "stream"):
        keys = _add_making(graph, source, level.layout, groups, staged, token)
    else:
        dtype = level.array.dtype
        accept = partial(accepted_block, dtype=dtype, mask_value=request.mask_value)
        keys = _add_gathering(graph, source, level.layout, groups, staged, token, accept)
    writers = {coords: key for key, group in zip(keys, groups, strict=True) for coords in group}
    return keys, writers


def _add_coarser(
    graph: dict[Key, GraphNode],
    levels: Sequence[PlannedLevel],
    remaining: Remaining,
    writers: dict[Shape, Key],
    staged: TaskRef,
    token: str,
) -> list[Key]:
    """Add a task for each shard of the coarser levels; it waits for those that it is made of.

    `writers` are the tasks that write shards of level 0, by their coordinates; what no task writes
    is there.
    """
    keys: list[Key] = []
    for number, level in enumerate(levels[1:], 1):
        finer = levels[number - 1].layout
        mine: dict[Shape, Key] = {}
        for coords in remaining.of_level(number):
            key = (f"downsample-{token}", number, *coords)
            parents = parent_coords(finer, level.layout, level.factors, coords)
            awaited = dict.fromkeys(writers[p] for p in parents if p in writers)
            graph[key] = Task(
                key, _write_coarser, staged, ShardTask(number, coords), List(*map(TaskRef, awaited))
            )
            mine[coords] = key
        writers = mine
        keys += mine.values()
    return keys


def _add_making(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    layout: Layout,
    groups: Iterable[Sequence[Shape]],
    staged: TaskRef,
    token: str,
) -> list[Key]:
    """Add a task for each group of shards that makes its blocks inside itself."""
    blocks = _Blocks(source, layout)
    used: set[Key] = set()
    keys = []
    for group in groups:
        recipes = []
        inputs: dict[Key, TaskRef] = {}
        for index, start, shape in blocks.overlapping(group):
            nodes, needed = private_tasks(source.nodes, (source.name, *index), source.shared)
            recipes.append(BlockRecipe(start, shape, nodes))
            inputs.update((key, TaskRef(key)) for key in needed)
        used.update(inputs)
        key = (f"write-shard-{token}", *group[0])
        shared = Dict(inputs) if inputs else {}
        # Marked as a producer of data, so that the scheduler deals these tasks out one by one to
        # free workers. Otherwise a few of them all go to the worker that staged the write.
        graph[key] = Task(
            key, _write_making, staged, tuple(group), tuple(recipes), shared, _data_producer=True
        )
        keys.append(key)
    add_closure(graph, source, used)
    return keys


def _add_gathering(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    layout: Layout,
    groups: Iterable[Sequence[Shape]],
    staged: TaskRef,
    token: str,
    accept: Accept,
) -> list[Key]:
    """Add a task for each shard that gathers pieces of blocks, which are tasks of their own."""
    blocks = _Blocks(source, layout)
    used: dict[Key, Place] = {}
    keys = []
    for group in groups:
        (coords,) = group
        region = layout.region(coords)
        pieces: list[tuple[Place, Key]] = []
        for index, start, shape in blocks.overlapping(group):
            first = tuple(max(r.start, s) for r, s in zip(region, start, strict=True))
            last = tuple(min(r.stop, s + n) for r, s, n in zip(region, start, shape, strict=True))
            cut = tuple(slice(f - s, e - s) for f, e, s in zip(first, last, start, strict=True))
            key: Key = (source.name, *index)
            used[key] = (start, shape)
            lengths = tuple(c.stop - c.start for c in cut)
            if lengths != shape:
                cut_key = (f"cut-block-{token}", *coords, *index)
                graph[cut_key] = Task(cut_key, _cut, accept, (start, shape), cut, TaskRef(key))
                key = cut_key
            pieces.append(((first, lengths), key))
        pieces = _add_joining(graph, pieces, group_axis_of(layout), (*coords,), accept, token)
        key = (f"write-shard-{token}", *coords)
        places = tuple(place for place, _ in pieces)
        gathered = List(*(TaskRef(piece) for _, piece in pieces))
        graph[key] = Task(key, _write_gathering, staged, (coords,), places, gathered)
        keys.append(key)
    add_blocks(graph, source, used, accept)
    return keys


def _add_joining(
    graph: dict[Key, GraphNode],
    pieces: list[tuple[Place, Key]],
    axis: int,
    coords: Shape,
    accept: Accept,
    token: str,
) -> list[tuple[Place, Key]]:
    """Join very thin pieces along `axis`, so that no task depends on more than a few hundred."""
    if len(pieces) <= _MAX_FAN_IN:
        return pieces
    columns: dict[Shape, list[tuple[Place, Key]]] = {}
    for (start, shape), key in pieces:
        column = (*start[:axis], *start[axis + 1 :])
        columns.setdefault(column, []).append(((start, shape), key))
    joined = []
    for run in (c[n : n + FAN_IN] for c in columns.values() for n in range(0, len(c), FAN_IN)):
        places = tuple(place for place, _ in run)
        start, shape = places[0]
        length = sum(shape[axis] for _, shape in places)
        key = (f"join-blocks-{token}", *coords, *start)
        refs = List(*(TaskRef(piece) for _, piece in run))
        graph[key] = Task(key, _join, accept, places, axis, refs)
        joined.append(((start, (*shape[:axis], length, *shape[axis + 1 :])), key))
    return joined


def _add_recording(
    graph: dict[Key, GraphNode],
    keys: list[Key],
    found: Sequence[ShardReceipt],
    staged: TaskRef,
    token: str,
) -> Key:
    """Add tasks that keep the receipts of some shards each, and a tree above them.

    The tree only counts, so that no task depends on more than a few dozen others. Returns its
    root.
    """
    parents: list[Key] = []
    for n in range(0, len(keys), FAN_IN):
        key: Key = (f"record-receipts-{token}", n // FAN_IN)
        parts = List(*(TaskRef(child) for child in keys[n : n + FAN_IN]))
        graph[key] = Task(key, _record, staged, parts)
        parents.append(key)
    if found or not parents:
        key = (f"record-receipts-{token}", "found")
        graph[key] = Task(key, _record, staged, [list(found)])
        parents.append(key)
    return add_tree(graph, parents, _sums, f"count-receipts-{token}")


class _Blocks:
    """Which blocks of the source overlap which tasks of the layout."""

    def __init__(self, source: SourceGraph, layout: Layout) -> None:
        self._starts = [(0, *accumulate(lengths)) for lengths in source.chunks]
        self._ranges = [
            block_ranges(lengths, cell)
            for lengths, cell in zip(source.chunks, layout.task_shape, strict=True)
        ]

    def overlapping(self, group: Sequence[Shape]) -> Iterator[tuple[Shape, Shape, Shape]]:
        """Yield (index, start, shape) of each block that overlaps the group, in C order.

        Those without voxels are left out.
        """
        spans = []
        for axis, ranges in enumerate(self._ranges):
            low = min(coords[axis] for coords in group)
            high = max(coords[axis] for coords in group)
            spans.append(range(ranges[low].start, ranges[high].stop))
        for index in product(*spans):
            bounds = [s[i : i + 2] for s, i in zip(self._starts, index, strict=True)]
            if all(a < b for a, b in bounds):
                yield index, tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)


def _write_making(
    staged: StagedWrite,
    group: Sequence[Shape],
    recipes: Sequence[BlockRecipe],
    shared: Mapping[Key, Any],
) -> list[ShardReceipt]:
    blocks = [LazyBlock(r.start, r.shape, partial(r.make, shared)) for r in recipes]
    return staged.write(0, group, blocks)


def _cut(accept: Accept, place: Place, cut: tuple[slice, ...], block: Any) -> npt.NDArray[Any]:
    part: npt.NDArray[Any] = accept(block, *place)[cut]
    return part


def _join(
    accept: Accept, places: Sequence[Place], axis: int, blocks: Sequence[Any]
) -> npt.NDArray[Any]:
    parts = [accept(block, *place) for place, block in zip(places, blocks, strict=True)]
    return np.concatenate(parts, axis)


def _write_gathering(
    staged: StagedWrite,
    group: Sequence[Shape],
    places: Sequence[Place],
    blocks: Sequence[Any],
) -> list[ShardReceipt]:
    lazy = [LazyBlock(*place, partial(getitem, blocks, n)) for n, place in enumerate(places)]
    return staged.write(0, group, lazy)


def _write_coarser(staged: StagedWrite, task: ShardTask, parents: Any) -> list[ShardReceipt]:
    """Write a shard after its parents, which have left what it is made of."""
    return write_coarser(staged, task)


def _record(staged: StagedWrite, parts: Sequence[Sequence[ShardReceipt]]) -> tuple[int, int]:
    """Keep the receipts; return how many objects they are of, and their size in bytes."""
    receipts = [receipt for part in parts for receipt in part]
    return staged.record(receipts), sum(receipt.nbytes for receipt in receipts)


def _sums(recorded: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(n for n, _ in recorded), sum(nbytes for _, nbytes in recorded)


def _end_part(staged: StagedWrite, recorded: tuple[int, int]) -> CommitResult:
    return CommitResult(staged.request.destination.path, *recorded)


def _commit(staged: StagedWrite, recorded: tuple[int, int], volumes: Sequence[Any]) -> CommitResult:
    """Commit after everything is recorded; the receipts themselves are in the staging folder."""
    return commit(staged, volumes)
