"""From an array's shape and what the user asked for to concrete shard and inner-chunk shapes.

Pure integer arithmetic: no array, no store, no clock.

The defaults and the meaning of each form of ``chunks`` and ``shards`` follow the reference
implementation (``anu_ctlab_io.zarr``), so that the same call gives the same layout.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil, prod
from typing import Literal

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray

__all__ = ["ChunkSpec", "Layout", "Shape", "ShardSpec", "power_of_two_edge", "resolve_layout"]

ChunkSpec = Shape | int | Literal["auto"]
ShardSpec = Shape | int | Literal["auto"] | None

#: Target number of elements of an automatic inner chunk: an edge of 32 (3-D) or 256 (2-D).
_INNER_CHUNK_ELEMENTS = {3: 32**3, 2: 256**2}
#: Target number of elements of an automatic shard: an edge of 512 (3-D) or 8192 (2-D).
_SHARD_ELEMENTS = {3: 512**3, 2: 8192**2}


@dataclass(frozen=True)
class Layout:
    """How one array is cut into stored objects.

    Attributes
    ----------
    shape
        Shape of the array, in elements.
    inner_chunk_shape
        Shape of the unit of decoding.
    shard_shape
        Shape of the unit of storage, or None for an array without sharding, where every inner
        chunk is an object of its own.

    Examples
    --------
    >>> resolve_layout((40, 65, 97)).shard_shape
    (64, 96, 128)
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
        """Shape of the region that one write task owns.

        The shard, or without sharding a shard-sized multiple of the chunk.
        """
        if self.shard_shape is not None:
            return self.shard_shape
        target = _automatic_shape(self.shape, _SHARD_ELEMENTS[_effective_ndim(self.shape)])
        return tuple(
            -(-max(t, c) // c) * c for t, c in zip(target, self.inner_chunk_shape, strict=True)
        )

    @property
    def object_shape(self) -> Shape:
        """Shape of a stored object: the shard, or the chunk of an array without sharding."""
        return self.shard_shape or self.inner_chunk_shape

    @property
    def grid_shape(self) -> Shape:
        """Number of tasks along each axis."""
        return grid_of(self.shape, self.task_shape)

    @property
    def n_tasks(self) -> int:
        """Number of write tasks."""
        return prod(self.grid_shape)

    @property
    def n_objects(self) -> int:
        """Number of stored objects."""
        return prod(grid_of(self.shape, self.object_shape))

    def region(self, coords: Shape) -> tuple[slice, ...]:
        """Return the array slices that the task at `coords` owns, trimmed to the array."""
        return tuple(
            slice(c * t, min((c + 1) * t, n))
            for c, t, n in zip(coords, self.task_shape, self.shape, strict=True)
        )

    def n_elements(self, coords: Shape) -> int:
        """Return how many elements of the array the task at `coords` owns."""
        return prod(part.stop - part.start for part in self.region(coords))

    def object_coords(self, coords: Shape) -> Iterator[Shape]:
        """Yield the grid coordinates of the stored objects inside the task at `coords`."""
        ranges = []
        for c, t, o, n in zip(coords, self.task_shape, self.object_shape, self.shape, strict=True):
            ranges.append(range(c * (t // o), ceil(min((c + 1) * t, n) / o)))
        yield from product(*ranges)

    def task_coords(self) -> Iterator[Shape]:
        """Yield the coordinates of every task, in C order."""
        yield from product(*(range(n) for n in self.grid_shape))


def grid_of(shape: Sequence[int], cell: Sequence[int]) -> Shape:
    """Return how many cells cover `shape` along each axis."""
    return tuple(-(-n // c) for n, c in zip(shape, cell, strict=True))


def resolve_layout(
    shape: Sequence[int], chunks: ChunkSpec = "auto", shards: ShardSpec = "auto"
) -> Layout:
    """Make shapes out of the public ``chunks`` and ``shards`` arguments.

    Parameters
    ----------
    shape
        Shape of the array: two or three axes, none of length 0.
    chunks
        Inner chunk: a shape (0 spans the shard, or without sharding the array, along that
        axis), a target number of elements, or ``'auto'`` (32**3, or 256**2 for a 2-D array).
    shards
        Shard: a shape (0 spans the array along that axis, rounded up to a multiple of the
        chunk), a target number of elements, ``'auto'`` (512**3, or 8192**2), or None for no
        sharding.

    Raises
    ------
    InvalidArgumentError
        For a shape with the wrong number of dimensions, a negative size, a bool, 0 elements,
        an explicit shard shape beside ``chunks='auto'``, or a shard that chunks do not divide.

    Examples
    --------
    >>> resolve_layout((1, 600, 700)).shard_shape
    (1, 768, 768)
    >>> resolve_layout((1024, 1024, 1024), chunks=64**3 - 1).inner_chunk_shape
    (64, 64, 64)
    """
    shape = _validated_array_shape(shape)
    if isinstance(chunks, str) and chunks == "auto" and not _is_target(shards):
        raise InvalidArgumentError(
            f"shards={shards!r} is an explicit shape but chunks is 'auto': chunks have to divide "
            "shards, so pass an explicit chunks shape too, or an int for shards"
        )
    chunk = _parse_spec("chunks", chunks, shape, _INNER_CHUNK_ELEMENTS)
    if shards is None:
        inner = tuple(c or n for c, n in zip(chunk, shape, strict=True))
        return Layout(shape, inner, None)
    if _is_target(shards):
        target = _parse_spec("shards", shards, shape, _SHARD_ELEMENTS)
        shard = tuple(
            -(-max(s, c) // c) * c if c else s for s, c in zip(target, chunk, strict=True)
        )
    else:
        shard = _parse_spec("shards", shards, shape, _SHARD_ELEMENTS)
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


def power_of_two_edge(n_elements: int, ndim: int) -> int:
    """Return the power-of-two edge whose cube (or square) has nearest to `n_elements` elements.

    Examples
    --------
    >>> power_of_two_edge(64**3 - 1, 3)
    64
    """
    lower = 1
    while (2 * lower) ** ndim <= n_elements:
        lower *= 2
    upper = 2 * lower
    return upper if upper**ndim - n_elements < n_elements - lower**ndim else lower


def _is_target(spec: ShardSpec) -> bool:
    """Whether `spec` leaves the shape to us: 'auto', a number of elements, or no sharding."""
    return spec is None or isinstance(spec, str) or not hasattr(spec, "__len__")


def _effective_ndim(shape: Shape) -> int:
    return 2 if len(shape) == 2 or shape[0] == 1 else 3


def _automatic_shape(shape: Shape, n_elements: int) -> Shape:
    ndim = _effective_ndim(shape)
    edge = power_of_two_edge(n_elements, ndim)
    return tuple(min(edge, n) for n in shape)


def _parse_spec(name: str, spec: ChunkSpec, shape: Shape, defaults: dict[int, int]) -> Shape:
    """Return a shape that may still hold zeros, each of which spans its axis."""
    if isinstance(spec, str):
        if spec != "auto":
            raise InvalidArgumentError(
                f"{name}={spec!r} is not understood: pass a shape, a number of elements or 'auto'"
            )
        return _automatic_shape(shape, defaults[_effective_ndim(shape)])
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
    if any(size < 0 for size in sizes):
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


def _validated_array_shape(shape: Sequence[int]) -> Shape:
    sizes = tuple(_parse_integer("shape", n) for n in shape)
    if len(sizes) not in (2, 3):
        raise InvalidArgumentError(
            f"the array has {len(sizes)} axes {sizes}: a volume has three, an image two"
        )
    if min(sizes) < 1:
        raise InvalidArgumentError(f"the array {sizes} has an axis without elements")
    return sizes
