"""What the tasks of an export do: write files from slabs, or put blocks into their places."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.execution.graphs import Accept
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.export.kind import File, FlatKind, SlabKind
from ctlab_dask_zarr.export.staged import StagedExport
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.write.shards.array import LazyBlock

Key = Any
#: The file in the staging folder for blocks that make no slabs.
SCRATCH = "scratch"
#: Of a slab that is read again from there.
_SLAB_NBYTES = 64 << 20


def write_making(
    staged: StagedExport,
    accept: Accept,
    files: Sequence[File],
    recipes: Sequence[BlockRecipe],
    shared: Mapping[Key, Any],
    slice_nbytes: int,
    n_ahead: int,
) -> None:
    """Write a run of files from slabs that are made here, `n_ahead` of them at once."""

    def load(recipe: BlockRecipe) -> npt.NDArray[Any]:
        return accept(recipe.make(shared), recipe.start, recipe.shape)

    slabs = [LazyBlock(r.start, r.shape, partial(load, r)) for r in recipes]
    _write_files(staged, files, slabs, slice_nbytes, n_ahead)


def write_scratch(
    staged: StagedExport, files: Sequence[File], shape: Shape, dtype: np.dtype[Any], put: Any
) -> None:
    """Write files from the scratch file, after the blocks of these slices are there."""
    slice_nbytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(_SLAB_NBYTES // slice_nbytes, 1)

    def load(start: int, stop: int) -> npt.NDArray[Any]:
        n = (stop - start) * math.prod(shape[1:])
        path = staged.marks.path(SCRATCH)
        voxels = np.fromfile(path, dtype, n, offset=start * slice_nbytes)
        return voxels.reshape(stop - start, *shape[1:])

    slabs = [
        LazyBlock((z,), (min(z + step, files[-1].stop) - z,),
                  partial(load, z, min(z + step, files[-1].stop)))
        for z in range(files[0].start, files[-1].stop, step)
    ]  # fmt: skip
    _write_files(staged, files, slabs, slice_nbytes)


def _write_files(
    staged: StagedExport,
    files: Sequence[File],
    slabs: Sequence[LazyBlock],
    slice_nbytes: int,
    n_ahead: int = 0,
) -> None:
    """Write the files of a run that are not there yet."""
    reporter = Reporter(topic_of(staged.request.run_id[:8]))
    kind = cast(SlabKind, staged.request.kind)
    missing = [file for file in files if not staged.has(file.name)]
    n_there = sum(f.stop - f.start for f in files) - sum(f.stop - f.start for f in missing)
    reporter.add(n_there * slice_nbytes)
    reporter.finish()
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


def allocate(staged: StagedExport, name: str, dtype: np.dtype[Any]) -> tuple[str, int, Any]:
    """Make a file in which blocks have fixed places, if it is not there yet.

    Returns its path, the byte at which the voxels begin, and their dtype in the file.
    """
    files, facts = staged.request.destination.files, f"{name}.json"
    if name == SCRATCH:
        if not staged.marks.may_have(name):
            staged.marks.put(name, b"")
            files.sync_folder(staged.marks.root)
        return staged.marks.path(name), 0, dtype
    kind = staged.request.kind
    assert isinstance(kind, FlatKind)
    if not staged.has(name):
        # Another attempt may have been faster, and blocks are in its file.
        with suppress(FileExistsError), staged.new_file(name) as path:
            offset, stored = kind.allocate(path)
            staged.marks.put(facts, json.dumps([offset, np.dtype(stored).str]).encode())
            if staged.has(name):
                raise FileExistsError(path)
        # A mark of a block must not outlast the file in a power failure.
        files.sync_folder(staged.store.root)
    offset, stored = json.loads(staged.marks.get(facts))
    return staged.store.path(name), offset, np.dtype(stored)


def put_made(
    place: Any, staged: StagedExport, made: Any, recipe: BlockRecipe, shared: Mapping[Key, Any]
) -> None:
    """Make a block and put it into its place."""
    place(staged, made, recipe.start, recipe.shape, partial(recipe.make, shared))


def put_block(
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
    reporter = Reporter(topic_of(staged.request.run_id[:8]))
    if not staged.marks.may_have(mark):
        voxels = accept(block() if callable(block) else block, start, block_shape)
        put_region(path, offset, shape, start, np.ascontiguousarray(voxels, dtype))
        staged.request.destination.files.sync_folder(path)  # of a file, it syncs the content
        with staged.marks.create(mark, durable=False):
            pass
    reporter.add(math.prod(block_shape) * dtype.itemsize)
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
