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
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask._task_spec import Dict, GraphNode, List, Task, TaskRef, convert_legacy_graph
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.write.commit import commit
from ctlab_dask_zarr.write.layout import Layout, Shape
from ctlab_dask_zarr.write.plan import WritePlan
from ctlab_dask_zarr.write.rechunk import block_ranges, group_axis_of, group_rows
from ctlab_dask_zarr.write.shard import Piece, ShardReceipt
from ctlab_dask_zarr.write.stage import StagedWrite, StageRequest, stage

__all__ = ["SourceGraph", "analyse_source", "build_graph"]

Key = Any
#: Receipts merged by one task, so that no task depends on more than a few dozen others.
_MERGE_FAN_IN = 32
#: Tasks that blocks may share and still count as independent: the opened source, a constant, a
#: calibration. Their results are held while blocks are made, so that there may be a few, and far
#: fewer than blocks: blocks that overlap share whole blocks.
_MAX_SHARED = 8
_BLOCKS_PER_SHARED = 8
#: Pieces that one shard's task may gather.
_MAX_FAN_IN = 256


@dataclass(frozen=True)
class SourceGraph:
    """The optimised graph of a dask array, and which tasks belong to one block alone.

    Attributes
    ----------
    nodes
        Every task, by key.
    name, chunks
        As of the dask array; block keys are ``(name, i, j, k)``.
    held
        Results that a cluster holds already (persisted blocks), by key.
    shared
        Tasks and held results that more than one block needs.
    is_independent
        Whether every block can be made from its own tasks and a few shared ones.
    """

    nodes: Mapping[Key, GraphNode]
    held: Mapping[Key, Any]
    name: str
    chunks: tuple[tuple[int, ...], ...]
    shared: frozenset[Key]
    is_independent: bool


def analyse_source(data: da.Array) -> SourceGraph:
    """Optimise the array's graph and find what its blocks share. Computes nothing."""
    keys = [(data.name, *index) for index in product(*map(range, data.numblocks))]
    graph = data.__dask_graph__()
    nodes = convert_legacy_graph(dict(data.__dask_optimize__(graph, keys)))
    held = _held_results(graph)
    owner: dict[Key, int] = {}
    shared = set(held)
    for block, key in enumerate(keys):
        todo = [key]
        while todo:
            node = todo.pop()
            if node in shared:
                continue
            if owner.setdefault(node, block) != block:
                shared.add(node)
            else:
                todo += [d for d in nodes[node].dependencies if owner.get(d) != block]
    inputs: set[Key] = set()
    for key in keys:
        if key not in shared and nodes[key].dependencies:
            inputs.update(_private(nodes, key, shared)[1])
    n_allowed = min(_MAX_SHARED, max(1, len(keys) // _BLOCKS_PER_SHARED))
    is_independent = shared.isdisjoint(keys) and len(inputs) <= n_allowed
    return SourceGraph(nodes, held, data.name, data.chunks, frozenset(shared), is_independent)


def _held_results(graph: Any) -> dict[Key, Any]:
    """Return the futures that stand in a graph for blocks which a cluster has computed.

    dask drops them when it optimises, since the scheduler knows their keys; the graph that is
    submitted has to hold them all the same, or they could be forgotten meanwhile.
    """
    if not isinstance(graph, HighLevelGraph):
        return {}
    return {
        key: value
        for layer in graph.layers.values()
        if isinstance(layer, MaterializedLayer)
        for key, value in layer.items()
        if isinstance(value, TaskRef)
    }


def _private(nodes: Mapping[Key, GraphNode], key: Key, shared: set[Key] | frozenset[Key]) -> Any:
    """Return (the tasks of `key` alone, dependencies first; the shared tasks they need)."""
    order: dict[Key, GraphNode] = {}
    inputs: dict[Key, None] = {}
    todo = [key]
    while todo:
        node = todo[-1]
        waiting = [d for d in nodes[node].dependencies if d not in shared and d not in order]
        if waiting:
            todo += waiting
            continue
        todo.pop()
        if node not in order:
            order[node] = nodes[node]
            inputs.update(dict.fromkeys(d for d in nodes[node].dependencies if d in shared))
    return tuple(order.values()), tuple(inputs)


@dataclass(frozen=True)
class _BlockRecipe:
    """One block: where it lies, and the tasks that make it inside the task that writes it."""

    start: Shape
    shape: Shape
    nodes: tuple[GraphNode, ...]

    def make(self, shared: Mapping[Key, Any]) -> npt.NDArray[Any]:
        """Run the tasks and return the block's voxels."""
        values = dict(shared)
        for node in self.nodes:
            values[node.key] = node({d: values[d] for d in node.dependencies})
        block: npt.NDArray[Any] = values[self.nodes[-1].key]
        return block


def build_graph(
    plan: WritePlan,
    source: SourceGraph,
    run_id: str,
    *,
    resume: bool = False,
    restart: bool = False,
) -> Delayed:
    """Return a Delayed whose computing stages, writes every shard, and commits.

    Parameters
    ----------
    plan
        What to do.
    source
        The blocks of the finest level.
    run_id
        Tells this write from every other one, in staging and in what is committed.
    resume
        Whether to go on from the staging folder of an interrupted write of the same plan.
    restart
        Whether to remove the staging folder of an interrupted write first.
    """
    token = run_id[:8]
    stage_key, commit_key = f"stage-{token}", f"commit-{token}"
    request = StageRequest.of(plan, run_id, resume=resume, restart=restart)
    graph: dict[Key, GraphNode] = {stage_key: Task(stage_key, stage, request)}
    layout = plan.levels[0].layout
    groups = (
        group_rows(layout)
        if plan.rechunk.method == "stream"
        else ([coords] for coords in layout.task_coords())
    )
    add_writes = _add_making if source.is_independent and _makes(plan) else _add_gathering
    writes = add_writes(graph, source, layout, groups, TaskRef(stage_key), token)
    merged = _add_merging(graph, writes, token)
    graph[commit_key] = Task(commit_key, commit, TaskRef(stage_key), TaskRef(merged))
    layers = {commit_key: MaterializedLayer(graph)}
    return Delayed(commit_key, HighLevelGraph(layers, {commit_key: set()}))


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
            nodes, needed = _private(source.nodes, (source.name, *index), source.shared)
            recipes.append(_BlockRecipe(start, shape, nodes))
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
    _add_closure(graph, source, used)
    return keys


def _add_gathering(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    layout: Layout,
    groups: Iterable[Sequence[Shape]],
    staged: TaskRef,
    token: str,
) -> list[Key]:
    """Add a task for each shard that gathers pieces of blocks, which are tasks of their own."""
    blocks = _Blocks(source, layout)
    used: set[Key] = set()
    keys = []
    for group in groups:
        (coords,) = group
        region = layout.region(coords)
        pieces: list[tuple[Shape, Key]] = []
        for index, start, shape in blocks.overlapping(group):
            first = tuple(max(r.start, s) for r, s in zip(region, start, strict=True))
            last = tuple(min(r.stop, s + n) for r, s, n in zip(region, start, shape, strict=True))
            cut = tuple(slice(f - s, e - s) for f, e, s in zip(first, last, start, strict=True))
            key: Key = (source.name, *index)
            used.add(key)
            if any(c.stop - c.start < n for c, n in zip(cut, shape, strict=True)):
                cut_key = (f"cut-block-{token}", *coords, *index)
                graph[cut_key] = Task(cut_key, getitem, TaskRef(key), cut)
                key = cut_key
            pieces.append((first, key))
        pieces = _add_joining(graph, pieces, group_axis_of(layout), (*coords,), token)
        key = (f"write-shard-{token}", *coords)
        starts = tuple(start for start, _ in pieces)
        gathered = List(*(TaskRef(piece) for _, piece in pieces))
        graph[key] = Task(key, _write_gathering, staged, (coords,), starts, gathered)
        keys.append(key)
    _add_closure(graph, source, used)
    return keys


def _add_joining(
    graph: dict[Key, GraphNode],
    pieces: list[tuple[Shape, Key]],
    axis: int,
    coords: Shape,
    token: str,
) -> list[tuple[Shape, Key]]:
    """Join very thin pieces along `axis`, so that no task depends on more than a few hundred."""
    if len(pieces) <= _MAX_FAN_IN:
        return pieces
    columns: dict[Shape, list[tuple[Shape, Key]]] = {}
    for start, key in pieces:
        columns.setdefault((*start[:axis], *start[axis + 1 :]), []).append((start, key))
    joined = []
    for column in columns.values():
        for n in range(0, len(column), _MERGE_FAN_IN):
            run = column[n : n + _MERGE_FAN_IN]
            start = run[0][0]
            key = (f"join-blocks-{token}", *coords, *start)
            refs = List(*(TaskRef(piece) for _, piece in run))
            graph[key] = Task(key, np.concatenate, refs, axis)
            joined.append((start, key))
    return joined


def _add_closure(graph: dict[Key, GraphNode], source: SourceGraph, keys: Iterable[Key]) -> None:
    """Add `keys` of the source, and all they depend on, to the graph."""
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key in source.held:
            graph[key] = source.held[key]
        elif key not in graph:
            graph[key] = source.nodes[key]
            todo += source.nodes[key].dependencies


def _add_merging(graph: dict[Key, GraphNode], keys: list[Key], token: str) -> Key:
    """Add a tree that puts all receipts into one list; return its root."""
    height = 0
    while len(keys) > 1 or height == 0:
        parents: list[Key] = []
        for n in range(0, len(keys), _MERGE_FAN_IN):
            key = (f"merge-receipts-{token}", height, n // _MERGE_FAN_IN)
            refs = List(*(TaskRef(child) for child in keys[n : n + _MERGE_FAN_IN]))
            graph[key] = Task(key, _merge_receipts, refs)
            parents.append(key)
        keys = parents
        height += 1
    return keys[0]


class _Blocks:
    """Which blocks of the source overlap which tasks of the layout."""

    def __init__(self, source: SourceGraph, layout: Layout) -> None:
        self._starts = [(0, *accumulate(lengths)) for lengths in source.chunks]
        self._ranges = [
            block_ranges(lengths, cell)
            for lengths, cell in zip(source.chunks, layout.task_shape, strict=True)
        ]

    def overlapping(self, group: Sequence[Shape]) -> Iterator[tuple[Shape, Shape, Shape]]:
        """Yield (index, start, shape) of each block that overlaps the group, in C order."""
        spans = []
        for axis, ranges in enumerate(self._ranges):
            low = min(coords[axis] for coords in group)
            high = max(coords[axis] for coords in group)
            spans.append(range(ranges[low].start, ranges[high].stop))
        for index in product(*spans):
            bounds = [s[i : i + 2] for s, i in zip(self._starts, index, strict=True)]
            yield index, tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)


def _write_making(
    staged: StagedWrite,
    group: Sequence[Shape],
    recipes: Sequence[_BlockRecipe],
    shared: Mapping[Key, Any],
) -> list[ShardReceipt]:
    pieces = [Piece(r.start, r.shape, partial(r.make, shared)) for r in recipes]
    return staged.write(0, group, pieces)


def _write_gathering(
    staged: StagedWrite,
    group: Sequence[Shape],
    starts: Sequence[Shape],
    blocks: Sequence[npt.NDArray[Any]],
) -> list[ShardReceipt]:
    pieces = [
        Piece(start, block.shape, partial(np.asarray, block))
        for start, block in zip(starts, blocks, strict=True)
    ]
    return staged.write(0, group, pieces)


def _merge_receipts(parts: Sequence[Sequence[ShardReceipt]]) -> list[ShardReceipt]:
    return [receipt for part in parts for receipt in part]
