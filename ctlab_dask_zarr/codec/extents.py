"""Which chunks a region touches, where each goes, and what of an object is read for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.level import Shape

Region = tuple[slice, ...]


def cells(region: Region, cell: Shape) -> Iterator[tuple[Shape, Region, Region]]:
    """Yield (coords, what is wanted of it, where in the region) of each cell that is touched."""
    axes = [along_axis(part, size) for part, size in zip(region, cell, strict=True)]
    for parts in product(*axes):
        coords, wanted, at = zip(*parts, strict=True)
        yield coords, wanted, at


def along_axis(part: slice, size: int) -> list[tuple[int, slice, slice]]:
    """Return, of cells along an axis, the number, what is wanted of it, and where in the part."""
    found = []
    for n in range(part.start // size, -(-part.stop // size)):
        first, last = max(part.start, n * size), min(part.stop, (n + 1) * size)
        wanted = slice(first - n * size, last - n * size)
        found.append((n, wanted, slice(first - part.start, last - part.start)))
    return found


class Touched(NamedTuple):
    """The inner chunks that a region of a shard touches, and how they become the region.

    They lie in a grid, as one array with the axes of the grid and then those of a chunk. Of this
    `before` takes what is wanted along axes with one chunk; the axes are put in an `order`, so that
    it is the `shape` of the joined chunks; and `after` takes the rest of what is wanted.
    """

    numbers: npt.NDArray[np.intp]
    grid: Shape
    before: tuple[slice, ...]
    order: tuple[int, ...]
    shape: Shape
    after: Region


@lru_cache(maxsize=64)
def touched_chunks(wanted: tuple[tuple[int, int], ...], chunk: Shape, chunks: Shape) -> Touched:
    """Return the chunks of a region, (start, stop) along each axis; of most shards it is one."""
    axes = [np.arange(a // n, -(-b // n)) for (a, b), n in zip(wanted, chunk, strict=True)]
    numbers = np.ravel_multi_index(np.ix_(*axes), chunks).ravel()
    numbers.setflags(write=False)
    grid, ndim = tuple(map(len, axes)), len(axes)
    before, after, shape = [slice(None)] * ndim, [slice(None)] * ndim, []
    for axis, ((a, b), n) in enumerate(zip(wanted, chunk, strict=True)):
        at_once = grid[axis] == 1
        (before if at_once else after)[axis] = slice(a % n, a % n + b - a)
        shape.append(b - a if at_once else grid[axis] * n)
    order = tuple(axis for n in range(ndim) for axis in (n, ndim + n))
    every = (slice(None),) * ndim
    return Touched(numbers, grid, (*every, *before), order, tuple(shape), tuple(after))


@dataclass(frozen=True)
class Extent:
    """Bytes of a shard that are read together, and the chunks in them."""

    start: int
    stop: int
    #: Number in the shard, offset and size of each, shape (n, 3).
    chunks: npt.NDArray[np.int64]


def extents_of(
    chunks: npt.NDArray[np.int64], gap_nbytes: int, together_nbytes: int
) -> list[Extent]:
    """Return what to read for chunks in the order of a shard: those with small gaps together."""
    start, stop = chunks[:, 1], np.maximum.accumulate(chunks[:, 1] + chunks[:, 2])
    is_first = np.append(True, start[1:] - stop[:-1] > gap_nbytes)
    begins = start[is_first][np.cumsum(is_first) - 1]
    # Of about that size, so that no small one is left at the end of a run.
    ends = stop[np.append(np.flatnonzero(is_first)[1:], len(chunks)) - 1]
    nbytes = np.maximum(1, ends - start[is_first])[np.cumsum(is_first) - 1]
    piece = (
        (start - begins) * np.maximum(1, np.rint(nbytes / together_nbytes).astype(int)) // nbytes
    )
    is_first[1:] |= piece[1:] != piece[:-1]
    cuts = [*np.flatnonzero(is_first).tolist(), len(chunks)]
    return [Extent(int(start[a]), int(stop[b - 1]), chunks[a:b]) for a, b in pairwise(cuts)]


def groups_of(extents: list[Extent], enough_nbytes: int) -> Iterator[list[Extent]]:
    """Yield what one step reads: one request, or reads of a file up to a size."""
    group: list[Extent] = []
    nbytes = 0
    for extent in extents:
        group.append(extent)
        nbytes += extent.stop - extent.start
        if nbytes >= enough_nbytes:
            yield group
            group, nbytes = [], 0
    if group:
        yield group
