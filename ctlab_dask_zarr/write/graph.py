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

from ctlab_dask_zarr.execution.blocks import (
    Accept,
    Place,
    SourceGraph,
    accepted_block,
    add_blocks,
    add_closure,
    private_tasks,
)
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.execution.trees import FAN_IN, add_tree
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout, Shape
from ctlab_dask_zarr.planning.levels import parent_coords
from ctlab_dask_zarr.planning.plan import Level, WritePlan
from ctlab_dask_zarr.planning.rechunk import block_ranges, group_axis_of, group_rows
from ctlab_dask_zarr.write.coarser import write_coarser
from ctlab_dask_zarr.write.sample import add_sample, stage_after
from ctlab_dask_zarr.write.shards.pieces import Piece, ShardTask
from ctlab_dask_zarr.write.staging.commit import CommitResult, commit
from ctlab_dask_zarr.write.staging.remaining import Remaining
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["build_completion", "build_graph"]

Key = Any
#: Pieces that one shard's task may gather.
_MAX_FAN_IN = 256


def build_graph(
    plan: WritePlan,
    source: SourceGraph,
    request: StageRequest,
    remaining: Remaining,
    *,
    publish: bool = True,
) -> Delayed:
    """Return a Delayed whose computing stages, writes every shard, and commits.

    Parameters
    ----------
    plan
        What to do.
    source
        The blocks of the finest level.
    request
        What staging is asked for.
    remaining
        The shards to write.
    publish
        Whether to commit at the end; else the result is the number of objects written.
    """
    token = request.run_id[:8]
    stage_key = f"stage-{token}"
    graph: dict[Key, GraphNode] = {}
    sample = List(*map(TaskRef, add_sample(graph, source, request, remaining.stored)))
    graph[stage_key] = Task(stage_key, stage_after, request, sample)
    staged = TaskRef(stage_key)
    layout = plan.levels[0].layout
    coords = remaining.of_level(0)
    is_streamed = plan.rechunk.method == "stream"
    groups = list(group_rows(layout, coords)) if is_streamed else [[c] for c in coords]
    if source.is_independent and _makes(plan):
        keys = _add_making(graph, source, layout, groups, staged, token)
    else:
        accept = partial(accepted_block, dtype=plan.dtype, mask_value=request.mask_value)
        keys = _add_gathering(graph, source, layout, groups, staged, token, accept)
    writers = {coords: key for key, group in zip(keys, groups, strict=True) for coords in group}
    keys += _add_coarser(graph, plan.levels, remaining, writers, staged, token)
    last = _add_recording(graph, keys, remaining.found, staged, token)
    volumes = source.volumes if publish else ()
    return _ending(graph, last, staged, token, publish=publish, volumes=volumes)


def build_completion(first: StagedWrite | StageRequest, remaining: Remaining) -> Delayed:
    """Return a Delayed that writes what remains of the coarser levels, and commits.

    What is staged already is given as it is, else what staging is asked for.
    """
    request = first if isinstance(first, StageRequest) else first.request
    token = request.run_id[:8]
    key = f"stage-{token}"
    staging = Task(key, stage, first) if isinstance(first, StageRequest) else DataNode(key, first)
    graph: dict[Key, GraphNode] = {key: staging}
    ref = TaskRef(key)
    keys = _add_coarser(graph, request.levels, remaining, {}, ref, token)
    last = _add_recording(graph, keys, remaining.found, ref, token)
    return _ending(graph, last, ref, token, publish=True)


def _ending(
    graph: dict[Key, GraphNode],
    last: Key,
    staged: TaskRef,
    token: str,
    *,
    publish: bool,
    volumes: tuple[Any, ...] = (),
) -> Delayed:
    if publish:
        end = f"commit-{token}"
        graph[end] = Task(end, _commit, staged, TaskRef(last), DataNode(f"{end}-sources", volumes))
    else:
        end = f"part-{token}"
        graph[end] = Task(end, int, TaskRef(last))
    return Delayed(end, HighLevelGraph({end: MaterializedLayer(graph)}, {end: set()}))


def _add_coarser(
    graph: dict[Key, GraphNode],
    levels: Sequence[Level],
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


def _makes(plan: WritePlan) -> bool:
    return plan.rechunk.method in ("none", "stream")


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
    return add_tree(graph, parents, sum, f"count-receipts-{token}")


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
    pieces = [Piece(r.start, r.shape, partial(r.make, shared)) for r in recipes]
    return staged.write(0, group, pieces)


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
    pieces = [Piece(*place, partial(getitem, blocks, n)) for n, place in enumerate(places)]
    return staged.write(0, group, pieces)


def _write_coarser(staged: StagedWrite, task: ShardTask, parents: Any) -> list[ShardReceipt]:
    """Write a shard after its parents, which have left what it is made of."""
    return write_coarser(staged, task)


def _record(staged: StagedWrite, parts: Sequence[Sequence[ShardReceipt]]) -> int:
    return staged.record([receipt for part in parts for receipt in part])


def _commit(staged: StagedWrite, n_recorded: int, volumes: Sequence[Any]) -> CommitResult:
    """Commit after everything is recorded; the receipts themselves are in the staging folder."""
    return commit(staged, volumes)
