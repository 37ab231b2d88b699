"""An export as a dask graph: stage, write each file, commit.

Slabs of whole slices are made inside the task that writes them, one after another, so that a task
holds one or two of them. A task writes a run of files, and a slab that two of its files share is
made once. Blocks that do not span the slices, or that depend on one another, are put first, in any
order, into a scratch file in the staging folder, where voxels have fixed places; so are those of a
file whose own voxels have fixed places, which then needs no scratch file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any

import numpy as np
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.execution.graphs import (
    Accept,
    SourceGraph,
    accepted_block,
    add_closure,
    add_tree,
    results_of,
)
from ctlab_dask_zarr.export.kind import File, FlatKind
from ctlab_dask_zarr.export.staged import ExportRequest, ExportResult, StagedExport, commit, stage
from ctlab_dask_zarr.export.tasks import (
    SCRATCH,
    allocate,
    put_block,
    put_made,
    write_making,
    write_scratch,
)
from ctlab_dask_zarr.formats.level import Shape

if TYPE_CHECKING:
    from ctlab_dask_zarr.volume import Volume

Key = Any
#: Tasks for each thread, so that the last ones end at about the same time.
_TASKS_A_THREAD = 4


@dataclass(frozen=True)
class Blocks:
    """The blocks of a volume, and how they come into its files."""

    source: SourceGraph
    accept: Accept
    #: Whether files are written from slabs that are made inside their tasks.
    are_slabs: bool

    @property
    def shape(self) -> Shape:
        """Shape of the volume."""
        return tuple(self.source.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the volume, in the byte order of this machine."""
        dtype: np.dtype[Any] = self.source.data.dtype.newbyteorder("=")
        return dtype

    @classmethod
    def of(cls, volume: Volume, source: SourceGraph) -> Blocks:
        """Return the blocks of a volume as its graph has them."""
        accept = partial(accepted_block, dtype=source.data.dtype, mask_value=volume.mask_value)
        spans = all(len(lengths) == 1 for lengths in source.chunks[1:])
        return cls(source, accept, spans and source.is_independent)

    def lie_at(self) -> list[tuple[Shape, Shape, Shape]]:
        """Return (index, start, shape) of every block with voxels, in C order."""
        chunks = self.source.chunks
        starts = [(0, *accumulate(lengths)) for lengths in chunks]
        found = []
        for index in product(*map(range, map(len, chunks))):
            start = tuple(s[i] for s, i in zip(starts, index, strict=True))
            shape = tuple(c[i] for c, i in zip(chunks, index, strict=True))
            if 0 not in shape:
                found.append((index, start, shape))
        return found


def build_graph(request: ExportRequest, blocks: Blocks, n_threads: int) -> Delayed:
    """Return a Delayed that stages, writes the files and commits: an `ExportResult`."""
    graph = _ExportGraph(request, blocks)
    if isinstance(request.kind, FlatKind):
        keys = graph.add_placing(request.kind.files()[0].name)
    elif blocks.are_slabs:
        keys = graph.add_streaming(n_threads)
    else:
        keys = graph.add_from_scratch(n_threads)
    end = f"commit-{graph.token}"
    written = TaskRef(add_tree(graph.tasks, keys, len, f"count-files-{graph.token}"))
    sources = DataNode(f"{end}-sources", blocks.source.volumes)
    graph.tasks[end] = Task(end, _commit, graph.staged, written, sources)
    return Delayed(end, HighLevelGraph({end: MaterializedLayer(graph.tasks)}, {end: set()}))


class _ExportGraph:
    """The tasks of an export; the name of each ends in the token of its run."""

    def __init__(self, request: ExportRequest, blocks: Blocks) -> None:
        self.token = request.run_id[:8]
        self.tasks: dict[Key, GraphNode] = {}
        self.staged = TaskRef(f"stage-{self.token}")
        self.tasks[self.staged.key] = Task(self.staged.key, stage, request)
        self._blocks = blocks
        self._files = request.kind.files()

    def add_streaming(self, n_threads: int) -> list[Key]:
        """Add tasks that make their slabs themselves; return their keys."""
        source = self._blocks.source
        places = self._blocks.lie_at()
        runs = self._runs(n_threads, max(shape[0] for _, _, shape in places))
        # Where there are fewer files than threads, a task has its next slabs made by others.
        n_ahead = n_threads // len(runs)
        slice_nbytes = math.prod(self._blocks.shape[1:]) * self._blocks.dtype.itemsize
        keys: list[Key] = []
        used: set[Key] = set()
        for number, files in enumerate(runs):
            recipes = []
            inputs: dict[Key, None] = {}
            for index, start, shape in _between(places, files):
                recipe, needed = source.recipe(index, start, shape)
                recipes.append(recipe)
                inputs |= dict.fromkeys(needed)
            used.update(inputs)
            key = (f"write-files-{self.token}", number)
            self.tasks[key] = Task(
                key, write_making, self.staged, self._blocks.accept, files, tuple(recipes),
                results_of(inputs), slice_nbytes, n_ahead, _data_producer=True,
            )  # fmt: skip
            keys.append(key)
        add_closure(self.tasks, source, used)
        return keys

    def add_placing(self, name: str) -> list[Key]:
        """Add tasks that put each block into its place in a file; return their keys."""
        blocks = self._blocks
        source, place = blocks.source, partial(put_block, blocks.accept, name, blocks.shape)
        made = TaskRef(f"allocate-{self.token}")
        self.tasks[made.key] = Task(made.key, allocate, self.staged, name, blocks.dtype)
        keys: list[Key] = []
        used: set[Key] = set()
        for index, start, shape in blocks.lie_at():
            key = (f"put-block-{self.token}", *index)
            if source.is_independent:
                recipe, needed = source.recipe(index, start, shape)
                used.update(needed)
                self.tasks[key] = Task(
                    key, put_made, place, self.staged, made, recipe, results_of(needed),
                    _data_producer=True,
                )  # fmt: skip
            else:
                block: Key = (source.name, *index)
                used.add(block)
                self.tasks[key] = Task(key, place, self.staged, made, start, shape, TaskRef(block))
            keys.append(key)
        add_closure(self.tasks, source, used)
        return keys

    def add_from_scratch(self, n_threads: int) -> list[Key]:
        """Add tasks that put blocks into a scratch file, and files from there; return the keys."""
        blocks = self._blocks
        places = blocks.lie_at()
        putting = dict(zip(places, self.add_placing(SCRATCH), strict=True))
        keys: list[Key] = []
        for number, files in enumerate(self._runs(n_threads, 1)):
            awaited = [TaskRef(putting[place]) for place in _between(places, files)]
            key = (f"write-files-{self.token}", number)
            self.tasks[key] = Task(
                key, write_scratch, self.staged, files, blocks.shape, blocks.dtype, List(*awaited)
            )
            keys.append(key)
        return keys

    def _runs(self, n_threads: int, height: int) -> list[tuple[File, ...]]:
        """Return the files in runs, one for each task, that begin with a slab of `height`."""
        n_slices = self._files[-1].stop
        step = math.ceil(n_slices / (_TASKS_A_THREAD * n_threads))
        step = math.ceil(step / height) * height
        runs: dict[int, list[File]] = {}
        for file in self._files:
            runs.setdefault(file.start // step, []).append(file)
        return [tuple(run) for run in runs.values()]


def _between(
    places: Sequence[tuple[Shape, Shape, Shape]], files: Sequence[File]
) -> Iterator[tuple[Shape, Shape, Shape]]:
    """Yield the blocks that hold slices of a run of files."""
    for place in places:
        _, start, shape = place
        if start[0] < files[-1].stop and files[0].start < start[0] + shape[0]:
            yield place


def _commit(staged: StagedExport, written: int, sources: Sequence[Any]) -> ExportResult:
    """Commit after everything is written."""
    return commit(staged, sources)
