"""The write as a dask graph: stage, write each shard, record receipts in a tree, commit.

The strategy: a block that can be made from its own part of the source's graph is made *inside* the
task that writes it. The task carries that part, and runs it when the row under way needs the block.
So a write is one dask task a shard (or a row of shards), blocks never wait in a worker's memory,
and slabs are streamed in order. Parts of the graph that several blocks share stay dask tasks and
are passed in. Where blocks cannot be made inside (``tasks`` in `planning.rechunk`), they stay dask
tasks too and are cut at shard boundaries, and each shard's task gathers its cuts without joining
them first.

Building a graph has no side effect. Every task may be repeated, or run twice at once: a shard is
put whole under its final key, and staging and committing know their own run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, product
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.execution.graphs import (
    FAN_IN,
    Accept,
    Place,
    SourceGraph,
    accepted_block,
    add_blocks,
    add_closure,
    add_tree,
    results_of,
)
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import parent_coords
from ctlab_dask_zarr.planning.rechunk import (
    Method,
    are_wide,
    band_layout,
    block_ranges,
    group_axis_of,
    group_rows,
)
from ctlab_dask_zarr.write.bands import merge_bands, write_bands
from ctlab_dask_zarr.write.coarser import write_coarser
from ctlab_dask_zarr.write.sample import add_sample
from ctlab_dask_zarr.write.shards.array import LazyBlock, ShardTask
from ctlab_dask_zarr.write.staging.commit import CommitResult, commit
from ctlab_dask_zarr.write.staging.remaining import Remaining
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite

Key = Any
Group = Sequence[Shape]
#: Writes the shards, or bands, at the coordinates of a group.
Write = Callable[[Any, Group, Iterable[LazyBlock]], Any]
#: The most cuts that the task of a shard gathers.
_MAX_FAN_IN = 256


def build_graph(
    request: StageRequest,
    remaining: Remaining,
    source: SourceGraph | None = None,
    *,
    method: Method = "none",
    staged: StagedWrite | None = None,
) -> Delayed:
    """Return a Delayed that stages, writes the remaining shards and commits: a `CommitResult`.

    `source` has the blocks of level 0, which become shards, or bands where the request has them,
    by `method`; None where only coarser levels are written. `staged` is the write where it is
    staged already. A part is not committed.
    """
    graph = WriteGraph(request, remaining)
    if staged is None:
        sample = source and add_sample(graph.tasks, source, request, remaining.stored)
        graph.add(graph.staged.key, _stage, request, _refs(sample or ()))
    else:
        graph.tasks[graph.staged.key] = DataNode(graph.staged.key, staged)
    writers = graph.add_finest(source, method) if source else {}
    keys = [*dict.fromkeys(writers.values()), *graph.add_coarser(writers)]
    recorded = graph.add_recording(keys)
    if staged is not None or request.n_parts is None:
        end = f"commit-{graph.token}"
        volumes = DataNode(f"{end}-sources", source.volumes if source else ())
        graph.add(end, _commit, graph.staged, recorded, volumes)
    else:
        end = graph.add(f"part-{graph.token}", _end_part, graph.staged, recorded)
    return graph.ending(end)


def _refs(keys: Sequence[Key]) -> List:
    return List(*map(TaskRef, keys))


class WriteGraph:
    """The tasks of a write; the name of each ends in the token of the write."""

    def __init__(self, request: StageRequest, remaining: Remaining) -> None:
        self.tasks: dict[Key, GraphNode] = {}
        self.token = request.run_id[:8]
        self.staged = TaskRef(f"stage-{self.token}")
        self._request = request
        self._remaining = remaining

    def add(self, key: Key, function: Any, *arguments: Any, producer: bool = False) -> Key:
        """Add a task; one that is a `producer` of data goes to whichever worker is free."""
        self.tasks[key] = Task(key, function, *arguments, _data_producer=producer)
        return key

    def add_finest(self, source: SourceGraph, method: Method) -> dict[Shape, Key]:
        """Add the tasks that write the shards of level 0; return their keys by coordinates."""
        level, shards = self._request.levels[0], self._remaining.of_level(0)
        if self._request.band is None:
            return self.add_tasks("write-shard", source, method, level.layout, shards)
        layout = band_layout(level.layout, row_axis_of(level.array), self._request.band)
        made_of = {c: [*level.layout.cells(c, layout.task_shape)] for c in shards}
        bands = [band for shard in shards for band in made_of[shard]]
        writers = self.add_tasks("write-band", source, method, layout, bands)
        merging = {}
        for coords in shards:
            awaited = _refs([*dict.fromkeys(writers[band] for band in made_of[coords])])
            key = (f"write-shard-{self.token}", *coords)
            merging[coords] = self.add(key, _merge_bands, self.staged, coords, awaited)
        return merging

    def add_tasks(
        self,
        name: str,
        source: SourceGraph,
        method: Method,
        layout: Layout,
        coords: Group,
        write: Write | None = None,
    ) -> dict[Shape, Key]:
        """Add the tasks that write the cells of `layout`, shards or bands; return their keys.

        Another function than that of their name may `write` them, as one that compares.
        """
        write = write or _FUNCTIONS[name]
        is_band = name == "write-band"
        in_rows = method == "stream" or (
            method == "tasks" and is_band and are_wide(layout, source.chunks)
        )
        groups = list(group_rows(layout, coords)) if in_rows else [[c] for c in coords]
        makes_inside = source.is_independent and method in ("none", "stream")
        add = self._add_making if makes_inside else self._add_gathering
        keys = add(name, write, source, layout, groups)
        return {c: key for key, group in zip(keys, groups, strict=True) for c in group}

    def _add_making(
        self, name: str, write: Write, source: SourceGraph, layout: Layout, groups: Sequence[Group]
    ) -> list[Key]:
        """Add a task for each group of cells that makes its blocks inside itself."""
        used: set[Key] = set()
        keys = []
        for group, blocks in zip(groups, overlapping_blocks(source, layout, groups), strict=True):
            recipes = []
            inputs: dict[Key, None] = {}
            for block in blocks:
                recipe, needed = source.recipe(*block)
                recipes.append(recipe)
                inputs |= dict.fromkeys(needed)
            used.update(inputs)
            key = (f"{name}-{self.token}", *group[0])
            # Not a producer, a few of these tasks all go to the worker that staged the write.
            keys.append(
                self.add(
                    key, _write_making, write, self.staged, tuple(group), tuple(recipes),
                    results_of(inputs), producer=True,
                )
            )  # fmt: skip
        add_closure(self.tasks, source, used)
        return keys

    def _add_gathering(
        self, name: str, write: Write, source: SourceGraph, layout: Layout, groups: Sequence[Group]
    ) -> list[Key]:
        """Add a task for each group that gathers cuts of blocks, which are tasks of their own."""
        dtype, mask_value = self._request.levels[0].array.dtype, self._request.mask_value
        accept = partial(accepted_block, dtype=dtype, mask_value=mask_value)
        used: dict[Key, Place] = {}
        keys = []
        for group, blocks in zip(groups, overlapping_blocks(source, layout, groups), strict=True):
            coords = group[0]
            spans = [layout.region(c) for c in group]
            region = tuple(
                slice(min(s.start for s in axis), max(s.stop for s in axis))
                for axis in zip(*spans, strict=True)
            )
            cuts: list[tuple[Place, Key]] = []
            for index, start, shape in blocks:
                key: Key = (source.name, *index)
                used[key] = (start, shape)
                first = tuple(max(r.start, s) for r, s in zip(region, start, strict=True))
                cut = tuple(
                    slice(f - s, min(r.stop - s, n))
                    for r, f, s, n in zip(region, first, start, shape, strict=True)
                )
                lengths = tuple(part.stop - part.start for part in cut)
                if lengths != shape:
                    cut_key = (f"cut-block-{self.token}", *coords, *index)
                    key = self.add(cut_key, _cut, accept, (start, shape), cut, TaskRef(key))
                cuts.append(((first, lengths), key))
            cuts = self._add_joining(cuts, group_axis_of(layout), coords, accept)
            places, gathered = zip(*cuts, strict=True)
            key = (f"{name}-{self.token}", *coords)
            keys.append(
                self.add(
                    key, _write_gathering, write, self.staged, tuple(group), places, _refs(gathered)
                )
            )
        add_blocks(self.tasks, source, used, accept)
        return keys

    def _add_joining(
        self, cuts: list[tuple[Place, Key]], axis: int, coords: Shape, accept: Accept
    ) -> list[tuple[Place, Key]]:
        """Join very thin cuts along `axis`, so that no task depends on too many others."""
        if len(cuts) <= _MAX_FAN_IN:
            return cuts
        columns: dict[Shape, list[tuple[Place, Key]]] = {}
        for (start, shape), key in cuts:
            column = (*start[:axis], *start[axis + 1 :])
            columns.setdefault(column, []).append(((start, shape), key))
        joined = []
        for run in (c[n : n + FAN_IN] for c in columns.values() for n in range(0, len(c), FAN_IN)):
            places, keys = zip(*run, strict=True)
            start, shape = places[0]
            length = sum(shape[axis] for _, shape in places)
            key = (f"join-blocks-{self.token}", *coords, *start)
            self.add(key, _join, accept, places, axis, _refs(keys))
            joined.append(((start, (*shape[:axis], length, *shape[axis + 1 :])), key))
        return joined

    def add_making(
        self, key: Key, make: Callable[..., list[ShardReceipt]], *arguments: Any, awaited: Group
    ) -> Key:
        """Add a task that makes objects of the staged write after other tasks."""
        return self.add(key, make, self.staged, *arguments, _refs(awaited))

    def ending(self, end: Key) -> Delayed:
        """Return the graph with its last task, by its key."""
        return Delayed(end, HighLevelGraph({end: MaterializedLayer(self.tasks)}, {end: set()}))

    def add_coarser(self, writers: Mapping[Shape, Key]) -> list[Key]:
        """Add a task for each shard of the coarser levels; it waits for those it is made of.

        `writers` are the tasks that write shards of level 0, by coordinates; the other shards are
        there already.
        """
        keys: list[Key] = []
        levels = self._request.levels
        for number, level in enumerate(levels[1:], 1):
            finer = levels[number - 1].layout
            mine: dict[Shape, Key] = {}
            for coords in self._remaining.of_level(number):
                parents = parent_coords(finer, level.layout, level.factors, coords)
                awaited = dict.fromkeys(writers[p] for p in parents if p in writers)
                key = (f"downsample-{self.token}", number, *coords)
                task = ShardTask(number, coords)
                mine[coords] = self.add(key, _write_coarser, self.staged, task, _refs([*awaited]))
            writers = mine
            keys += mine.values()
        return keys

    def add_recording(self, keys: Sequence[Key]) -> TaskRef:
        """Add tasks that keep the receipts of a few shards each, and a tree above them.

        The tree only adds up, so that no task depends on more than a few dozen others. Returns its
        root.
        """
        name = f"record-receipts-{self.token}"
        parents = [
            self.add((name, n // FAN_IN), _record, self.staged, _refs(keys[n : n + FAN_IN]))
            for n in range(0, len(keys), FAN_IN)
        ]
        if self._remaining.found or not parents:
            found = [list(self._remaining.found)]
            parents.append(self.add((name, "found"), _record, self.staged, found))
        return TaskRef(add_tree(self.tasks, parents, _sums, f"count-receipts-{self.token}"))


def overlapping_blocks(
    source: SourceGraph, layout: Layout, groups: Sequence[Group]
) -> Iterator[list[tuple[Shape, Shape, Shape]]]:
    """Yield for each group (index, start, shape) of the blocks that overlap it, in C order.

    Blocks without voxels are left out.
    """
    starts = [(0, *accumulate(lengths)) for lengths in source.chunks]
    ranges = [
        block_ranges(lengths, cell)
        for lengths, cell in zip(source.chunks, layout.task_shape, strict=True)
    ]
    for group in groups:
        blocks = []
        corners = [(min(axis), max(axis)) for axis in zip(*group, strict=True)]
        spans = [
            range(r[low].start, r[high].stop)
            for r, (low, high) in zip(ranges, corners, strict=True)
        ]
        for index in product(*spans):
            bounds = [s[i : i + 2] for s, i in zip(starts, index, strict=True)]
            if all(a < b for a, b in bounds):
                blocks.append((index, tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)))
        yield blocks


def _stage(request: StageRequest, sample: Sequence[None]) -> StagedWrite:
    """Stage after the sample was found equal."""
    return stage(request)


def _write_shards(
    staged: StagedWrite, group: Group, blocks: Iterable[LazyBlock]
) -> list[ShardReceipt]:
    return staged.write(0, group, blocks)


#: What writes a group, by the name of the tasks.
_FUNCTIONS: dict[str, Write] = {"write-shard": _write_shards, "write-band": write_bands}


def _write_making(
    write: Write,
    staged: StagedWrite,
    group: Group,
    recipes: Sequence[BlockRecipe],
    shared: Mapping[Key, Any],
) -> Any:
    blocks = [LazyBlock(r.start, r.shape, partial(r.make, shared)) for r in recipes]
    return write(staged, group, blocks)


def _cut(accept: Accept, place: Place, cut: tuple[slice, ...], block: Any) -> npt.NDArray[Any]:
    part: npt.NDArray[Any] = accept(block, *place)[cut]
    return part


def _join(
    accept: Accept, places: Sequence[Place], axis: int, blocks: Sequence[Any]
) -> npt.NDArray[Any]:
    parts = [accept(block, *place) for place, block in zip(places, blocks, strict=True)]
    return np.concatenate(parts, axis)


def _write_gathering(
    write: Write,
    staged: StagedWrite,
    group: Group,
    places: Sequence[Place],
    gathered: Sequence[Any],
) -> Any:
    blocks = [LazyBlock(*place, partial(getitem, gathered, n)) for n, place in enumerate(places)]
    return write(staged, group, blocks)


def _merge_bands(staged: StagedWrite, coords: Shape, bands: Any) -> list[ShardReceipt]:
    """Put a shard together after its bands are there."""
    return merge_bands(staged, coords)


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
