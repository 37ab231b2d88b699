"""What the tasks of one level leave for those of the next: their voxels at half the resolution.

A task halves each row of inner chunks while it has it in memory. What comes of it goes to a file in
the staging folder, the task's *piece* of the coarser level, so that no level is read back, and none
is held in memory. This module makes and reads pieces of voxels; where a piece is made of whole
inner chunks, it is encoded at once instead (`write.merge`).

A piece of voxels is a sequence of slabs, one a row, each followed by its CRC-32C. It is not made
durable, and may be missing altogether, or be damaged: its voxels are then made again from the
finer level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.codec.shard import ChunkRow, row_axis_of
from ctlab_dask_zarr.codec.values import ValueRange
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.store.store import Store, Writer

__all__ = [
    "FinerArray",
    "Halver",
    "Halving",
    "Piece",
    "ShardTask",
    "VoxelPiece",
    "piece_key",
    "pieces_of",
]

_CRC_NBYTES = 4


@dataclass(frozen=True, order=True)
class ShardTask:
    """One unit of writing: the objects of one cell of a level's task grid."""

    level: int
    coords: Shape


@dataclass(frozen=True)
class Piece:
    """A part of an array that can be had when it is needed.

    Attributes
    ----------
    start, shape
        Where it lies in the array, in elements.
    load
        Returns its voxels, if all is well (`write.blocks.accepted_block`), in memory that nobody
        changes afterwards.
    """

    start: Shape
    shape: Shape
    load: Callable[[], Any]


@dataclass(frozen=True)
class Halving:
    """How a level becomes the next one.

    Attributes
    ----------
    factors
        1 or 2 along each axis.
    method, mask_value
        As of `write.downsample`.
    """

    factors: Shape
    method: DownsampleMethod
    mask_value: Number | None


@dataclass(frozen=True)
class _Slab:
    """One row's part of the next level: where it lies there, and in the piece."""

    start: Shape
    shape: Shape
    offset: int
    nbytes: int


def _slabs(array: StoredArray, region: tuple[slice, ...], halving: Halving) -> list[_Slab]:
    """Return what each row of a task adds to its piece, in order; some add nothing."""
    axis = row_axis_of(array)
    step, f = array.inner_chunk_shape[axis], halving.factors[axis]
    first, last = region[axis].start, region[axis].stop
    start = [part.start // n for part, n in zip(region, halving.factors, strict=True)]
    stop = [-(-part.stop // n) for part, n in zip(region, halving.factors, strict=True)]
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


def _n_kept(slabs: list[_Slab], axis: int, keep: int) -> int:
    """Return how many slabs have to stay valid for the last `keep` elements to do so."""
    thickness = [slab.shape[axis] for slab in slabs]
    thickest = max(thickness)
    if keep % thickest == 0 and set(thickness[:-1]) <= {thickest}:
        # What is kept ends with a slab, and is used before the next one is begun.
        return max(keep // thickest, 1)
    return 1 + -(-keep // thickest)


def piece_key(task: ShardTask, level: int) -> str:
    """Return the key under which a task leaves voxels of its part of `level`."""
    return f"{task.level}/{'.'.join(map(str, task.coords))}.of-level-{level}"


class Halver:
    """Halves the rows of one task.

    Parameters
    ----------
    array, layout, coords
        Of the task.
    halving
        How.
    keep
        Elements along the row axis of what was made last that stay valid; None for all.
    """

    def __init__(
        self,
        array: StoredArray,
        layout: Layout,
        coords: Shape,
        halving: Halving,
        keep: int | None = 0,
    ) -> None:
        self._region = layout.region(coords)
        self._axis = row_axis_of(array)
        self._halving = halving
        self._dtype = array.dtype
        slabs = _slabs(array, self._region, halving)
        self._slabs = iter(slabs)
        self._slab = next(self._slabs)
        # Both parents of a voxel in one chunk: chunks are halved as they are.
        self._is_even = all(
            f == 1 or c % 2 == 0 or c >= n
            for f, c, n in zip(halving.factors, array.inner_chunk_shape, array.shape, strict=True)
        )
        # Fresh memory for each slab would cost more than halving does, by its page faults.
        nbytes = max(slab.nbytes for slab in slabs)
        n_kept = len(slabs) if keep is None else min(_n_kept(slabs, self._axis, keep), len(slabs))
        self._memory = cycle([np.empty(nbytes, np.uint8) for _ in range(n_kept)])
        self._row = self._new_row()
        self._planes: npt.NDArray[Any] | None = None

    def add(self, row: ChunkRow, flags: npt.NDArray[np.uint8]) -> None:
        """Take one row of inner chunks, or one chunk of a row, of the task's region.

        `flags` are what `ValueRange.add` has seen of its chunks.
        """
        from ctlab_dask_zarr.codec.downsample import halve_chunks

        extent = tuple(b - a for a, b in zip(row.start, row.stop, strict=True))
        if not self._is_even:
            self._assemble(row, extent)
            return
        halving = self._halving
        origin = tuple(
            a // f - s for a, f, s in zip(row.start, halving.factors, self._slab.start, strict=True)
        )
        halve_chunks(
            row.blocks, flags, extent, halving.factors, halving.method, halving.mask_value,
            self._row, origin,
        )  # fmt: skip

    def _assemble(self, row: ChunkRow, extent: Shape) -> None:
        """Put a row in array order beside the plane that waits for its second one."""
        axis = self._axis
        if self._planes is None:
            self._planes = self._waiting_from(row.start[axis])
        first = self._planes_start
        where = [
            slice(a - part.start, a - part.start + n)
            for a, n, part in zip(row.start, extent, self._region, strict=True)
        ]
        where[axis] = slice(row.start[axis] - first, row.start[axis] - first + extent[axis])
        missing = where[axis].stop - self._planes.shape[axis]
        if missing > 0:
            widths = [(0, 0)] * self._planes.ndim
            widths[axis] = (0, missing)
            self._planes = np.pad(self._planes, widths)
        self._planes[tuple(where)] = row.unpadded()

    def _waiting_from(self, start: int) -> npt.NDArray[Any]:
        self._planes_start = start
        shape = [part.stop - part.start for part in self._region]
        shape[self._axis] = 0
        return np.empty(shape, self._dtype)

    def end_row(self) -> tuple[Shape, npt.NDArray[Any]]:
        """Return where the slab begins that has come since the last row ended, and its voxels.

        They are valid as long as `keep` says, and may be none.
        """
        from ctlab_dask_zarr.codec.downsample import halve

        if self._planes is not None:
            axis, f = self._axis, self._halving.factors[self._axis]
            n_planes = min(self._slab.shape[axis] * f, self._planes.shape[axis])
            ready, rest = np.split(self._planes, [n_planes], axis)
            if ready.shape[axis]:
                self._row[...] = halve(
                    np.ascontiguousarray(ready), self._halving.factors, self._halving.method,
                    self._halving.mask_value,
                )  # fmt: skip
            self._planes = np.ascontiguousarray(rest)
            self._planes_start += n_planes
        start, voxels = self._slab.start, self._row
        following = next(self._slabs, None)
        if following is not None:
            self._slab = following
            self._row = self._new_row()
        return start, voxels

    def _new_row(self) -> npt.NDArray[Any]:
        return next(self._memory)[: self._slab.nbytes].view(self._dtype).reshape(self._slab.shape)


class VoxelPiece:
    """Writes slabs as a piece; a context.

    Attributes
    ----------
    keep
        Elements of earlier slabs that it needs.
    """

    keep = 0

    def __init__(self, store: Store, key: str) -> None:
        self._put: AbstractContextManager[Writer] = store.create(key, durable=False)

    def __enter__(self) -> VoxelPiece:
        self._writer = self._put.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._put.__exit__(*exception)

    def add(self, start: Shape, slab: npt.NDArray[Any]) -> None:
        """Append a slab."""
        data = slab.reshape(-1).view(np.uint8)
        self._writer.write(data)
        self._writer.write(google_crc32c.value(data).to_bytes(_CRC_NBYTES, "little"))


@dataclass(frozen=True)
class FinerArray:
    """The shards of a level, of which voxels are made that no piece has.

    `values` is told of every voxel that is read of them, where somebody wants to know.
    """

    store: Store
    path: str
    array: StoredArray
    values: ValueRange | None = None


def pieces_of(
    store: Store,
    key: str,
    array: StoredArray,
    region: tuple[slice, ...],
    halving: Halving,
    finer: FinerArray,
) -> Iterator[Piece]:
    """Yield the slabs of a piece of voxels.

    Parameters
    ----------
    store, key
        Where the piece is kept.
    array, region
        The array whose rows were halved, and what of it the piece is made of.
    halving
        How they were.
    finer
        Of which a slab is made where the piece cannot be used.
    """
    for slab in _slabs(array, region, halving):
        if slab.nbytes:
            load = partial(_load, store, key, slab, finer, region, halving)
            yield Piece(slab.start, slab.shape, load)


def _load(
    store: Store,
    key: str,
    slab: _Slab,
    finer: FinerArray,
    region: tuple[slice, ...],
    halving: Halving,
) -> npt.NDArray[Any]:
    try:
        found = np.frombuffer(
            store.get_range(key, slab.offset, slab.nbytes + _CRC_NBYTES), np.uint8
        )
    except FileNotFoundError:
        found = np.empty(0, np.uint8)
    data, crc = found[: slab.nbytes], found[slab.nbytes :].tobytes()
    if len(crc) == _CRC_NBYTES and google_crc32c.value(data) == int.from_bytes(crc, "little"):
        return data.view(finer.array.dtype).reshape(slab.shape)
    from ctlab_dask_zarr.codec.downsample import halve

    parents = tuple(
        slice(a * f, min((a + n) * f, part.stop))
        for a, n, f, part in zip(slab.start, slab.shape, halving.factors, region, strict=True)
    )
    voxels = read_region(finer.store, finer.path, finer.array, parents, strict=True)
    if finer.values is not None:
        finer.values.add(voxels.reshape(voxels.shape[0], -1))
    return halve(voxels, halving.factors, halving.method, halving.mask_value)
