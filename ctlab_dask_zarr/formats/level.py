"""One level of detail of an image, from the plan of a write to the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """One level of detail: where its array and its voxels lie.

    Attributes
    ----------
    path
        Path of the array below the root of the store; '' if the root is the array.
    shape
        Number of voxels along each axis; () if only the image's metadata was read.
    factors
        How many voxels of the next finer level one voxel spans along each axis; 1 for the finest.
        For stores of other writers, the nearest whole numbers.
    voxel_size, origin
        Edge lengths of a voxel, and position of the first voxel's centre, in the unit of the
        image's voxel size.
    """

    path: str
    shape: Shape = ()
    factors: Shape = ()
    voxel_size: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()


def with_shapes(levels: Sequence[Level], shapes: Sequence[Shape]) -> tuple[Level, ...]:
    """Return stored levels with the shapes of their arrays, and the factors that follow."""
    finer = [*shapes[:1], *shapes[:-1]]
    return tuple(
        replace(
            level,
            shape=shape,
            factors=tuple(round(f / max(n, 1)) or 1 for f, n in zip(larger, shape, strict=True)),
        )
        for level, shape, larger in zip(levels, shapes, finer, strict=True)
    )
