"""What a task leaves of the next level: its own voxels, at half the resolution.

A task downsamples each row of inner chunks while it has it in memory. What comes of it goes to a
file in the staging folder, the task's *piece* of the next level. So no level is read back, and none
is held in memory. This module makes and reads pieces of voxels. Where a piece consists of whole
inner chunks, it is encoded at once instead (`shard`).

A piece of voxels is a sequence of slabs, one for each row, each followed by its CRC-32C. It is not
durable. Where it is missing or damaged, its voxels are made again from the finer level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle, pairwise
from math import prod
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.codec.shard import ChunkRow, row_axis_of
from ctlab_dask_zarr.codec.values import ValueRange
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import new_memory
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray

#: Takes the slab that begins at a place in the next level.
AddSlab = Callable[[Shape, npt.NDArray[Any]], None]

_CRC_NBYTES = 4


def voxel_piece(staged: StagedArray, coords: Shape, stack: ExitStack) -> AddSlab:
    """Return what appends slabs to a task's piece of voxels, complete when `stack` ends."""
    assert staged.next_level is not None
    put = staged.next_level.store.create(staged.voxel_piece_key(coords), durable=False)
    writer = stack.enter_context(put)

    def add(start: Shape, slab: npt.NDArray[Any]) -> None:
        data = slab.reshape(-1).view(np.uint8)
        writer.write(data)
        writer.write(google_crc32c.value(data).to_bytes(_CRC_NBYTES, "little"))

    return add


class _Slab(NamedTuple):
    """What one row becomes: where it lies in the next level, and in a piece of voxels."""

    start: Shape
    shape: Shape
    offset: int
    nbytes: int


def _slabs(array: StoredArray, region: tuple[slice, ...], factors: Shape) -> list[_Slab]:
    """Return what each row of a task becomes, in order; some become nothing."""
    axis = row_axis_of(array)
    step, f = array.inner_chunk_shape[axis], factors[axis]
    first, last = region[axis].start, region[axis].stop
    start = [part.start // n for part, n in zip(region, factors, strict=True)]
    stop = [-(-part.stop // n) for part, n in zip(region, factors, strict=True)]
    # A pair of planes is complete with its second, at the end of the region with its first.
    row_stops = range(first + step, last + step, step)
    bounds = [first // f, *(stop[axis] if n >= last else n // f for n in row_stops)]
    shape = [b - a for a, b in zip(start, stop, strict=True)]
    slabs = []
    offset = 0
    for low, high in pairwise(bounds):
        start[axis], shape[axis] = low, high - low
        nbytes = prod(shape) * array.dtype.itemsize
        slabs.append(_Slab(tuple(start), tuple(shape), offset, nbytes))
        offset += nbytes + _CRC_NBYTES
    return slabs


def _n_kept(slabs: list[_Slab], axis: int, keep: int | None) -> int:
    """Return how many slabs have to stay valid for the last `keep` elements to do so."""
    thickness = [slab.shape[axis] for slab in slabs]
    thickest = max(thickness)
    if keep is None:
        n_kept = len(slabs)
    elif keep % thickest == 0 and set(thickness[:-1]) <= {thickest}:
        # What is kept ends with a slab, and is used before the next one is begun.
        n_kept = max(keep // thickest, 1)
    else:
        n_kept = 1 + -(-keep // thickest)
    return min(n_kept, len(slabs))


class LevelDownsampler:
    """Downsamples the rows of one task, and passes the slabs on to `add_slab`.

    `keep` is how many elements of earlier slabs, along the row axis, that still needs when it gets
    one; None for all.
    """

    def __init__(
        self, staged: StagedArray, coords: Shape, add_slab: AddSlab, keep: int | None = 0
    ) -> None:
        assert staged.next_level is not None
        array, self._factors = staged.array, staged.next_level.factors
        self._how = (self._factors, staged.next_level.method, staged.mask_value)
        self._add_slab = add_slab
        self._axis = row_axis_of(array)
        self._dtype = array.dtype
        region = staged.layout.region(coords)
        slabs = _slabs(array, region, self._factors)
        # Fresh memory for each slab would cost more than downsampling does, by its page faults.
        nbytes = max(slab.nbytes for slab in slabs)
        n_kept = _n_kept(slabs, self._axis, keep)
        self._memory = cycle([np.empty(nbytes, np.uint8) for _ in range(n_kept)])
        self._coming = iter(slabs)
        self._begin_slab()
        self._planes: npt.NDArray[Any] | None = None
        if any(
            f > 1 and c % f and c < n
            for f, c, n in zip(self._factors, array.inner_chunk_shape, array.shape, strict=True)
        ):
            # The two parents of a voxel may lie in two chunks: rows are put in array order first,
            # behind the planes that wait for their second one.
            shape = [part.stop - part.start for part in region]
            shape[self._axis] = array.inner_chunk_shape[self._axis] + self._factors[self._axis] - 1
            self._planes = np.empty(shape, array.dtype)
            self._planes_start = [part.start for part in region]
            self._n_planes = 0

    def add(self, row: ChunkRow, flags: npt.NDArray[np.uint8]) -> None:
        """Take one row of inner chunks of the task, or what one of its objects has of it.

        `flags` are what `ValueRange.add` has seen of its chunks.
        """
        from ctlab_dask_zarr.codec.downsample import halve_chunks

        if self._planes is None:
            extent = tuple(b - a for a, b in zip(row.start, row.stop, strict=True))
            places = zip(row.start, self._factors, self._slab.start, strict=True)
            origin = tuple(a // f - s for a, f, s in places)
            halve_chunks(row.blocks, flags, extent, *self._how, self._voxels, origin)
            return
        row.take(self._planes, tuple(self._planes_start))
        self._n_planes = row.stop[self._axis] - self._planes_start[self._axis]

    def end_row(self) -> None:
        """Pass on what has come since the last row ended, if anything."""
        from ctlab_dask_zarr.codec.downsample import halve

        if self._planes is not None:
            planes = np.moveaxis(self._planes, self._axis, 0)
            n_ready = min(self._slab.shape[self._axis] * self._factors[self._axis], self._n_planes)
            if n_ready:
                ready = np.moveaxis(planes[:n_ready], 0, self._axis)
                self._voxels[...] = halve(ready, *self._how)
            n_waiting = self._n_planes - n_ready
            planes[:n_waiting] = planes[n_ready : self._n_planes]
            self._planes_start[self._axis] += n_ready
        start, voxels = self._slab.start, self._voxels
        self._begin_slab()
        self._add_slab(start, voxels)

    def _begin_slab(self) -> None:
        slab = next(self._coming, None)
        if slab is not None:
            self._slab = slab
            memory = next(self._memory)[: slab.nbytes]
            self._voxels: npt.NDArray[Any] = memory.view(self._dtype).reshape(slab.shape)


def downsampled_blocks(
    staged: StagedArray, coords: Shape, source: StagedArray, values: ValueRange | None = None
) -> Iterator[LazyBlock]:
    """Yield what the task at `coords` has left of the next level, as voxels.

    Where the piece cannot be used, shards of `source` are read; `values` is told of their voxels.
    """
    following = staged.next_level
    assert following is not None
    key, region = staged.voxel_piece_key(coords), staged.layout.region(coords)

    def load(slab: _Slab) -> npt.NDArray[Any]:
        try:
            piece = following.store.open(key)
            data = piece.read(slab.offset, slab.nbytes + _CRC_NBYTES, new_memory)
        except FileNotFoundError:
            data = memoryview(b"")
        found = np.frombuffer(data, np.uint8)
        voxels, crc = found[: slab.nbytes], found[slab.nbytes :].tobytes()
        if len(crc) == _CRC_NBYTES and google_crc32c.value(voxels) == int.from_bytes(crc, "little"):
            return voxels.view(staged.array.dtype).reshape(slab.shape)
        from ctlab_dask_zarr.codec.downsample import halve

        places = zip(slab.start, slab.shape, following.factors, region, strict=True)
        parents = tuple(slice(a * f, min((a + n) * f, part.stop)) for a, n, f, part in places)
        finer = read_region(source.store, source.path, source.array, parents, strict=True)
        if values is not None:
            values.add(finer.reshape(finer.shape[0], -1))
        return halve(finer, following.factors, following.method, staged.mask_value)

    for slab in _slabs(staged.array, region, following.factors):
        if slab.nbytes:
            yield LazyBlock(slab.start, slab.shape, partial(load, slab))
