"""Shard and inner chunk shapes, from an array's shape and what the user asked for.

The defaults and the meaning of each form of ``chunks`` and ``shards`` follow the reference
implementation (``anu_ctlab_io.zarr``), so that the same call gives the same layout.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, isqrt, prod
from typing import Literal

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray, grid_of, region_of

ChunkSpec = Shape | int | Literal["auto"]
ShardSpec = Shape | int | Literal["auto"] | None

#: Target number of elements of an automatic inner chunk: an edge of 32 (3-D) or 256 (2-D).
_INNER_CHUNK_ELEMENTS = {3: 32**3, 2: 256**2}
#: Target number of elements of an automatic shard: an edge of 512 (3-D) or 8192 (2-D).
_SHARD_ELEMENTS = {3: 512**3, 2: 8192**2}


@dataclass(frozen=True)
class Layout:
    """How one array is cut into stored objects, and these into inner chunks.

    `shard_shape` is None for an array without sharding: every inner chunk is an object then. A task
    writes a shard, or without sharding as many chunks as make about one.
    """

    shape: Shape
    inner_chunk_shape: Shape
    shard_shape: Shape | None

    @classmethod
    def of(cls, array: StoredArray) -> Layout:
        """Return the layout of a stored array."""
        shard = array.object_shape if array.is_sharded else None
        return cls(array.shape, array.inner_chunk_shape, shard)

    @cached_property
    def task_shape(self) -> Shape:
        """Shape of the region that one task writes."""
        if self.shard_shape is not None:
            return self.shard_shape
        return _rounded_up(_automatic_shape(self.shape, _SHARD_ELEMENTS), self.inner_chunk_shape)

    @property
    def object_shape(self) -> Shape:
        """Shape of a stored object: a shard, or a chunk of an array without sharding."""
        return self.shard_shape or self.inner_chunk_shape

    @property
    def grid_shape(self) -> Shape:
        """Number of tasks along each axis."""
        return grid_of(self.shape, self.task_shape)

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return prod(self.grid_shape)

    @property
    def n_objects(self) -> int:
        """Number of stored objects."""
        return prod(grid_of(self.shape, self.object_shape))

    def region(self, coords: Shape) -> tuple[slice, ...]:
        """Return the array slices that the task at `coords` writes, trimmed to the array."""
        return region_of(coords, self.task_shape, self.shape)

    def n_elements(self, coords: Shape) -> int:
        """Return how many elements of the array the task at `coords` writes."""
        return prod(part.stop - part.start for part in self.region(coords))

    def object_coords(self, coords: Shape) -> Iterator[Shape]:
        """Yield the grid coordinates of the stored objects of the task at `coords`."""
        yield from self.cells(coords, self.object_shape)

    def cells(self, coords: Shape, cell: Shape) -> Iterator[Shape]:
        """Yield the grid coordinates of the cells, which divide it, of the task at `coords`."""
        ranges = []
        for c, t, o, n in zip(coords, self.task_shape, cell, self.shape, strict=True):
            ranges.append(range(c * (t // o), ceil(min((c + 1) * t, n) / o)))
        yield from product(*ranges)

    def task_coords(self) -> Iterator[Shape]:
        """Yield the coordinates of every task, in C order."""
        yield from product(*map(range, self.grid_shape))


def resolve_layout(
    shape: Sequence[int], chunks: ChunkSpec = "auto", shards: ShardSpec = "auto"
) -> Layout:
    """Return the layout that the public arguments ``chunks`` and ``shards`` ask for.

    The array has two or three axes, none of length 0. ``chunks`` is a shape (0 spans the shard, or
    without sharding the array), a target number of elements, or ``'auto'``: 32**3, or 256**2 for
    two axes. ``shards`` is a shape (0 spans the array, rounded up to whole chunks), a target number
    of elements, ``'auto'`` (512**3 or 8192**2), or None for no sharding.
    """
    shape = tuple(_parse_integer("shape", n) for n in shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InvalidArgumentError(
            f"the array has the shape {shape}: a volume has three axes, an image two, and none is "
            "without elements"
        )
    if isinstance(chunks, str) and chunks == "auto" and not _is_target(shards):
        raise InvalidArgumentError(
            f"shards={shards!r} (--shards {_as_option(shards)}) is a shape, and chunks is 'auto': "
            "give a shape of chunks that divides it, as chunks=(32, 32, 32) (--chunks 32,32,32)"
        )
    chunk = _parse_spec("chunks", chunks, shape, _INNER_CHUNK_ELEMENTS)
    if shards is None:
        return Layout(shape, tuple(c or n for c, n in zip(chunk, shape, strict=True)), None)
    shard = _parse_spec("shards", shards, shape, _SHARD_ELEMENTS)
    if _is_target(shards):
        shard = _rounded_up(shard, tuple(c or s for c, s in zip(chunk, shard, strict=True)))
    span = tuple(s or n for s, n in zip(shard, shape, strict=True))
    inner = tuple(c or s for c, s in zip(chunk, span, strict=True))
    shard = tuple(s or -(-n // c) * c for s, n, c in zip(shard, shape, inner, strict=True))
    for axis, (s, c) in enumerate(zip(shard, inner, strict=True)):
        if s % c:
            raise InvalidArgumentError(
                f"chunks {inner} do not divide shards {shard} along axis {axis} "
                f"({s} is not a multiple of {c}): change one of them"
            )
    return Layout(shape, inner, shard)


def _as_option(spec: ShardSpec) -> str:
    return ",".join(map(str, spec)) if isinstance(spec, tuple | list) else str(spec).lower()


def align_specs(
    blocks: Sequence[Sequence[int]], chunks: ChunkSpec = "auto", shards: ShardSpec = "auto"
) -> tuple[ChunkSpec, ShardSpec]:
    """Return shapes, as `resolve_layout` takes them, by which each block is whole stored objects.

    `blocks` are the lengths of the blocks along each axis: equal, the last may be shorter. Of what
    is left open, the shard, or without sharding the chunk, is a block, and the inner chunk has
    along each axis the divisor of the shard that is nearest to the automatic one. A long axis that
    has one block gets whole automatic chunks instead.
    """
    block = tuple(_regular_length(axis, lengths) for axis, lengths in enumerate(blocks))
    shape = tuple(map(sum, blocks))
    is_one = tuple(map(int.__eq__, block, shape))
    if shards is None:
        return _aligned("chunks", chunks, shape, block, is_one), None
    target = _parse_spec("chunks", chunks, shape, _INNER_CHUNK_ELEMENTS)
    if not isinstance(shards, str):
        shard = _aligned("shards", shards, shape, block, is_one)
    else:
        edges = _parse_spec("shards", shards, shape, _SHARD_ELEMENTS)
        shard = tuple(
            -(-b // t) * t if one and t and b > edge else b
            for b, t, edge, one in zip(block, target, edges, is_one, strict=True)
        )
    if not _is_target(chunks):
        return target, shard
    return tuple(map(_nearest_divisor, shard, target)), shard


def _regular_length(axis: int, lengths: Sequence[int]) -> int:
    """Return the length of blocks along an axis, of which the last may be shorter."""
    first = lengths[0]
    if any(n != first for n in lengths[:-1]) or lengths[-1] > first:
        shown = ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")
        raise InvalidArgumentError(
            f"input_aligned_chunks=True needs regular aligned chunks, and along axis {axis} the "
            f"blocks of the data have the lengths {shown}: rechunk the data, or leave it out"
        )
    return first


def _aligned(
    name: str, spec: ChunkSpec, shape: Shape, block: Shape, is_one: Sequence[bool]
) -> Shape:
    """Return the shape of stored objects of which each block has a whole number."""
    if isinstance(spec, str) and spec == "auto":
        return block
    wanted = _parse_spec(name, spec, shape, _SHARD_ELEMENTS)
    if _is_target(spec):
        return tuple(map(_nearest_divisor, block, wanted))
    found = tuple(n or b for n, b in zip(wanted, block, strict=True))
    for axis, (n, b, one) in enumerate(zip(found, block, is_one, strict=True)):
        if b % n and not (one and n > b):
            raise InvalidArgumentError(
                f"{name}={found} do not evenly divide the blocks of the data, {block}, along axis "
                f"{axis}, as input_aligned_chunks=True asks: change one of them, or leave it out"
            )
    return found


def _nearest_divisor(length: int, wanted: int) -> int:
    """Return the divisor of a length whose ratio to the wanted one is nearest to 1."""
    small = [n for n in range(1, isqrt(length) + 1) if length % n == 0]
    return min(
        {*small, *(length // n for n in small)}, key=lambda n: (max(n / wanted, wanted / n), n)
    )


def _rounded_up(shape: Shape, multiple: Shape) -> Shape:
    return tuple(-(-max(s, m) // m) * m for s, m in zip(shape, multiple, strict=True))


def _is_target(spec: ShardSpec) -> bool:
    """Whether `spec` gives no shape: it is 'auto', a number of elements, or no sharding."""
    return spec is None or isinstance(spec, str) or not hasattr(spec, "__len__")


def _automatic_shape(shape: Shape, n_elements: int | dict[int, int]) -> Shape:
    """Return a cube or square of about `n_elements`, given once or by the number of axes.

    Its edge is the power of two for which its number of elements is nearest.
    """
    ndim = 2 if len(shape) == 2 or shape[0] == 1 else 3
    wanted = n_elements if isinstance(n_elements, int) else n_elements[ndim]
    edge = 1
    while (2 * edge) ** ndim <= wanted:
        edge *= 2
    if (2 * edge) ** ndim - wanted < wanted - edge**ndim:
        edge *= 2
    return tuple(min(edge, n) for n in shape)


def _parse_spec(name: str, spec: ChunkSpec, shape: Shape, defaults: dict[int, int]) -> Shape:
    """Return a shape that may still hold zeros, each of which spans its axis."""
    if isinstance(spec, str):
        if spec != "auto":
            raise InvalidArgumentError(
                f"{name}={spec!r} is not understood: pass a shape, a number of elements or 'auto'"
            )
        return _automatic_shape(shape, defaults)
    if _is_target(spec):
        n_elements = _parse_integer(name, spec)
        if n_elements < 1:
            raise InvalidArgumentError(
                f"{name}={n_elements} is a number of elements and has to be at least 1"
            )
        return _automatic_shape(shape, n_elements)
    sizes = tuple(_parse_integer(name, size) for size in spec)  # type: ignore[union-attr]
    if len(sizes) != len(shape):
        raise InvalidArgumentError(
            f"{name}={sizes} has {len(sizes)} dimensions but the array has {len(shape)}: {shape}"
        )
    if min(sizes) < 0:
        raise InvalidArgumentError(f"{name}={sizes} has a negative size; 0 spans an axis")
    return sizes


def _parse_integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise InvalidArgumentError(f"{name} holds the bool {value}: sizes are integers")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(
            f"{name} holds {value!r}: sizes are integers, as in {name}=(512, 512, 512)"
        ) from None
