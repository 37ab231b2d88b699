"""An export as a dask graph: stage, write each file, commit.

Slabs of whole slices are made inside the task that writes them, one after another, so that a task
holds one or two of them. A task writes a run of files, and a slab that two of its files share is
made once. Blocks that do not span the slices, or that depend on one another, are put first, in any
order, into a scratch file in the staging folder, where voxels have fixed places; so are those of a
file whose own voxels have fixed places, which then needs no scratch file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
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
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.export.kind import File, FlatKind, SlabKind
from ctlab_dask_zarr.export.staged import ExportRequest, ExportResult, StagedExport, commit, stage
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.write.shards.array import LazyBlock

if TYPE_CHECKING:
    from ctlab_dask_zarr.volume import Volume

Key = Any
#: Of a slab that is read again from the scratch file.
_SLAB_NBYTES = 64 << 20
#: Tasks for each thread, so that the last ones end at about the same time.
_TASKS_A_THREAD = 4
_SCRATCH = "scratch"


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
                key, _write_making, self.staged, self._blocks.accept, files, tuple(recipes),
                results_of(inputs), n_ahead, _data_producer=True,
            )  # fmt: skip
            keys.append(key)
        add_closure(self.tasks, source, used)
        return keys

    def add_placing(self, name: str) -> list[Key]:
        """Add tasks that put each block into its place in a file; return their keys."""
        blocks = self._blocks
        source, place = blocks.source, partial(_put_block, blocks.accept, name, blocks.shape)
        made = TaskRef(f"allocate-{self.token}")
        self.tasks[made.key] = Task(made.key, _allocate, self.staged, name, blocks.dtype)
        keys: list[Key] = []
        used: set[Key] = set()
        for index, start, shape in blocks.lie_at():
            key = (f"put-block-{self.token}", *index)
            if source.is_independent:
                recipe, needed = source.recipe(index, start, shape)
                used.update(needed)
                self.tasks[key] = Task(
                    key, _put_made, place, self.staged, made, recipe, results_of(needed),
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
        putting = dict(zip(places, self.add_placing(_SCRATCH), strict=True))
        keys: list[Key] = []
        for number, files in enumerate(self._runs(n_threads, 1)):
            awaited = [TaskRef(putting[place]) for place in _between(places, files)]
            key = (f"write-files-{self.token}", number)
            self.tasks[key] = Task(
                key, _write_scratch, self.staged, files, blocks.shape, blocks.dtype, List(*awaited)
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


def _write_making(
    staged: StagedExport,
    accept: Accept,
    files: Sequence[File],
    recipes: Sequence[BlockRecipe],
    shared: Mapping[Key, Any],
    n_ahead: int,
) -> None:
    def load(recipe: BlockRecipe) -> npt.NDArray[Any]:
        return accept(recipe.make(shared), recipe.start, recipe.shape)

    slabs = [LazyBlock(r.start, r.shape, partial(load, r)) for r in recipes]
    _write_files(staged, files, slabs, n_ahead)


def _write_scratch(
    staged: StagedExport, files: Sequence[File], shape: Shape, dtype: np.dtype[Any], put: Any
) -> None:
    """Write files from the scratch file, after the blocks of these slices are there."""
    slice_nbytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(_SLAB_NBYTES // slice_nbytes, 1)

    def load(start: int, stop: int) -> npt.NDArray[Any]:
        n = (stop - start) * math.prod(shape[1:])
        path = staged.marks.path(_SCRATCH)
        voxels = np.fromfile(path, dtype, n, offset=start * slice_nbytes)
        return voxels.reshape(stop - start, *shape[1:])

    slabs = [
        LazyBlock((z,), (min(z + step, files[-1].stop) - z,),
                  partial(load, z, min(z + step, files[-1].stop)))
        for z in range(files[0].start, files[-1].stop, step)
    ]  # fmt: skip
    _write_files(staged, files, slabs, 0)


def _write_files(
    staged: StagedExport, files: Sequence[File], slabs: Sequence[LazyBlock], n_ahead: int
) -> None:
    """Write the files of a run that are not there yet."""
    reporter = Reporter(topic_of(staged.request.run_id[:8]))
    kind = cast(SlabKind, staged.request.kind)
    missing = [file for file in files if not staged.has(file.name)]
    needed = [
        slab
        for slab in slabs
        if any(f.start < slab.start[0] + slab.shape[0] and slab.start[0] < f.stop for f in missing)
    ]
    made = _made_in_order(needed, n_ahead)
    first, voxels = 0, None
    for file in missing:

        def slices(file: File = file) -> Iterator[npt.NDArray[Any]]:
            nonlocal first, voxels
            at = file.start
            while at < file.stop:
                if voxels is None or first + len(voxels) <= at:
                    # The old one is let go before the next one is made.
                    voxels = None
                    first, voxels = next(made)
                    continue
                part = voxels[at - first : file.stop - first]
                at += len(part)
                reporter.add(part.nbytes)
                yield part

        with staged.new_file(file.name) as path:
            kind.write(path, file, slices())
        reporter.finish()


def _made_in_order(
    slabs: Sequence[LazyBlock], n_ahead: int
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the first slice and the voxels of slabs, with the next ones made meanwhile."""
    if n_ahead < 2:
        for slab in slabs:
            yield slab.start[0], slab.load()
        return
    with ThreadPoolExecutor(n_ahead) as pool:
        waiting: list[tuple[int, Future[npt.NDArray[Any]]]] = []
        todo = iter(slabs)
        try:
            while True:
                for slab in todo:
                    waiting.append((slab.start[0], pool.submit(slab.load)))
                    if len(waiting) >= n_ahead:
                        break
                if not waiting:
                    return
                start, future = waiting.pop(0)
                yield start, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _allocate(staged: StagedExport, name: str, dtype: np.dtype[Any]) -> tuple[str, int, Any]:
    """Make a file in which blocks have fixed places, if it is not there yet.

    Returns its path, the byte at which the voxels begin, and their dtype in the file.
    """
    facts = f"{name}.json"
    if name == _SCRATCH:
        return staged.marks.path(name), 0, dtype
    assert isinstance(staged.request.kind, FlatKind)
    if not staged.has(name):
        with staged.new_file(name) as path:
            offset, stored = staged.request.kind.allocate(path)
        staged.marks.put(facts, json.dumps([offset, np.dtype(stored).str]).encode())
    offset, stored = json.loads(staged.marks.get(facts))
    return staged.store.path(name), offset, np.dtype(stored)


def _put_made(
    place: Any, staged: StagedExport, made: Any, recipe: BlockRecipe, shared: Mapping[Key, Any]
) -> None:
    place(staged, made, recipe.start, recipe.shape, partial(recipe.make, shared))


def _put_block(
    accept: Accept,
    name: str,
    shape: Shape,
    staged: StagedExport,
    made: tuple[str, int, Any],
    start: Shape,
    block_shape: Shape,
    block: Any,
) -> None:
    """Put a block into its place in a file, unless it has a mark."""
    path, offset, dtype = made
    mark = f"{'-'.join(map(str, start))}.{name}"
    if staged.marks.may_have(mark):
        return
    reporter = Reporter(topic_of(staged.request.run_id[:8]))
    voxels = accept(block() if callable(block) else block, start, block_shape)
    voxels = np.ascontiguousarray(voxels, dtype)
    put_region(path, offset, shape, start, voxels)
    staged.request.destination.files.sync_folder(path)  # of a file, it syncs the content
    with staged.marks.create(mark, durable=False):
        pass
    reporter.add(voxels.nbytes)
    reporter.finish()


def put_region(
    path: str, offset: int, shape: Shape, start: Shape, voxels: npt.NDArray[Any]
) -> None:
    """Write a block of an array to its places in a file that has the array in C order."""
    # As many axes as possible in one piece: the last ones that the block spans, and one more.
    n_whole = 0
    while n_whole < len(shape) - 1 and voxels.shape[-1 - n_whole] == shape[-1 - n_whole]:
        n_whole += 1
    n_outer = len(shape) - 1 - n_whole
    strides = [math.prod(shape[axis + 1 :]) * voxels.itemsize for axis in range(len(shape))]
    base = offset + sum(s * n for s, n in zip(strides, start, strict=True))
    content = memoryview(np.ascontiguousarray(voxels)).cast("B")
    nbytes = len(content) // math.prod(voxels.shape[:n_outer])
    # Listed at once: of lines of a block, there are hundreds of thousands.
    places = np.full(voxels.shape[:n_outer], base, np.int64)
    for axis in range(n_outer):
        steps = np.arange(voxels.shape[axis], dtype=np.int64) * strides[axis]
        places += np.expand_dims(steps, tuple(n for n in range(n_outer) if n != axis))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        for number, at in enumerate(places.reshape(-1).tolist()):
            part = content[number * nbytes : (number + 1) * nbytes]
            n = os.pwrite(file, part, at)
            # A file system may take less than it is given.
            while n < nbytes:
                n += os.pwrite(file, part[n:], at + n)
    finally:
        os.close(file)


def _commit(staged: StagedExport, written: int, sources: Sequence[Any]) -> ExportResult:
    """Commit after everything is written."""
    return commit(staged, sources)
