"""Which levels an image gets: how many, of what shape, where their voxels lie.

Level 0 is the data. Each further level has half as many voxels, rounded up, along every axis that
is halved:

- one with voxels less than the square root of 2 times as long as the shortest edge of a voxel:
  halving it brings the edges nearer to each other, or keeps them equal;
- but not a short one: at most 32 voxels, and less than an eighth of the longest axis.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import sqrt
from typing import Any, Literal

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.level import Level, Shape
from ctlab_dask_zarr.formats.zarr_array import grid_of
from ctlab_dask_zarr.planning.layout import Layout

DownsampleMethod = Literal["mean", "mode", "nearest", "max"]
LevelSpec = int | Literal["auto"]

#: ``'auto'`` ends where the longest axis has no more voxels: a picture at a glance.
_VIEW_LENGTH = 256
#: Voxels count as equally long up to this ratio; beyond it, halving the shorter edge is better.
_EQUAL_RATIO = sqrt(2)
_SHORT_LENGTH, _SHORT_PART = 32, 8


def plan_levels(finest: Level, levels: LevelSpec) -> tuple[Level, ...]:
    """Return level 0 and those that follow from it.

    `levels` is how many there are in all, or ``'auto'``: until the longest axis has 256 voxels.
    """
    n_levels = _validated_levels(levels)
    found = [finest]
    while n_levels is None or len(found) < n_levels:
        last = found[-1]
        if n_levels is None and max(last.shape) <= _VIEW_LENGTH:
            break
        if max(last.shape) == 1:
            raise InvalidArgumentError(
                f"levels={levels}: level {len(found) - 1} has one voxel, so there can be "
                f"{len(found)} levels; 'auto' makes as many as viewers need"
            )
        found.append(_next_level(last, str(len(found))))
    return tuple(found)


def refuse_other_factors(levels: Sequence[Level]) -> None:
    """Raise `InvalidArgumentError` where a stored level is not the one before it, halved."""
    for number, (finer, level) in enumerate(pairwise(levels), 1):
        is_halved = level.shape == grid_of(finer.shape, level.factors)
        if not is_halved or not {1, 2}.issuperset(level.factors):
            raise InvalidArgumentError(
                f"level {number} has the shape {level.shape}, which is not half of {finer.shape}, "
                "rounded up, along any axes: only such levels can be made here"
            )


def _validated_levels(levels: Any) -> int | None:
    """Return how many levels are asked for; None for ``'auto'``."""
    if isinstance(levels, str) and levels == "auto":
        return None
    try:
        if isinstance(levels, bool):
            raise TypeError
        n_levels = operator.index(levels)
    except TypeError:
        raise InvalidArgumentError(
            f"levels={levels!r} is neither a number of levels nor 'auto'"
        ) from None
    if n_levels < 1:
        raise InvalidArgumentError(f"levels={n_levels}: level 0, the data itself, is the first")
    return n_levels


def _next_level(level: Level, path: str) -> Level:
    longest = max(level.shape)
    can_be = [n > 1 and not (n <= _SHORT_LENGTH and n * _SHORT_PART < longest) for n in level.shape]
    finest = min(v for v, can in zip(level.voxel_size, can_be, strict=True) if can)
    factors = tuple(
        2 if can and v < finest * _EQUAL_RATIO else 1
        for v, can in zip(level.voxel_size, can_be, strict=True)
    )
    return Level(
        path,
        shape=grid_of(level.shape, factors),
        factors=factors,
        voxel_size=tuple(v * f for v, f in zip(level.voxel_size, factors, strict=True)),
        # The centre of a voxel is in the middle of its parents.
        origin=tuple(
            o + v * (f - 1) / 2
            for o, v, f in zip(level.origin, level.voxel_size, factors, strict=True)
        ),
    )


def level_layout(finest: Layout, shape: Shape) -> Layout:
    """Return the layout of a level of `shape`: the finest one's, cut down to the level."""
    chunk = tuple(map(min, finest.inner_chunk_shape, shape))
    shard = None
    if finest.shard_shape is not None:
        covering = tuple(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
        shard = tuple(
            min(s // c0 * c, cover)
            for s, c0, c, cover in zip(
                finest.shard_shape, finest.inner_chunk_shape, chunk, covering, strict=True
            )
        )
    return Layout(shape, chunk, shard)


def piece_layouts(layouts: Sequence[Layout], factors: Sequence[Shape]) -> tuple[Layout | None, ...]:
    """Return how each level after the finest is cut into what single tasks of the finer one make.

    None where a piece would not be made of whole inner chunks, or would lie in two shards. The
    levels before that one have none either: a task that puts a shard together from encoded pieces
    encodes what it leaves of the next level.
    """
    pieces: list[Layout | None] = []
    for number in range(len(layouts) - 1, 0, -1):
        piece = _piece_layout(layouts[number - 1], layouts[number], factors[number])
        if pieces and piece and (pieces[0] is None or levels_problem(piece, factors[number + 1])):
            piece = None
        pieces.insert(0, piece)
    return tuple(pieces)


def _piece_layout(finer: Layout, coarser: Layout, factors: Shape) -> Layout | None:
    if coarser.shard_shape is None:
        return None
    edges = []
    for shard, chunk, n, task, f, n_tasks in zip(
        coarser.shard_shape, coarser.inner_chunk_shape, coarser.shape,
        finer.task_shape, factors, finer.grid_shape, strict=True,
    ):  # fmt: skip
        edge = task // f if n_tasks > 1 else -(-n // chunk) * chunk
        if edge % chunk or task % f or shard % edge:
            return None
        edges.append(edge)
    return Layout(coarser.shape, coarser.inner_chunk_shape, tuple(edges))


def parent_coords(finer: Layout, coarser: Layout, factors: Shape, coords: Shape) -> Iterator[Shape]:
    """Yield the tasks of the finer level from which a task of the coarser one is made."""
    ranges = [
        range(part.start * f // t, -(-min(part.stop * f, n) // t))
        for part, f, t, n in zip(
            coarser.region(coords), factors, finer.task_shape, finer.shape, strict=True
        )
    ]
    yield from product(*ranges)


def child_coords(finer: Layout, coarser: Layout, factors: Shape, coords: Shape) -> Iterator[Shape]:
    """Yield the tasks of the coarser level that are made from a task of the finer one."""
    ranges = []
    for part, f, t in zip(finer.region(coords), factors, coarser.task_shape, strict=True):
        stop = -(-part.stop // f)
        ranges.append(range(part.start // f // t, -(-stop // t)))
    yield from product(*ranges)


def resolve_downsample(
    method: str | None, dtype_kind: str, *, is_discrete: bool
) -> DownsampleMethod:
    """Return the method to use, by default that of the kind of data, or refuse it."""
    if method is None:
        # Others store classes as floats, for which there is no mode here.
        return "mean" if not is_discrete else "nearest" if dtype_kind == "f" else "mode"
    if method not in ("mean", "mode", "nearest", "max"):
        raise InvalidArgumentError(
            f"downsample={method!r} is none of 'mean', 'mode', 'nearest', 'max'"
        )
    if is_discrete and method in ("mean", "max"):
        raise InvalidArgumentError(
            f"downsample={method!r} makes no sense for segmentations and labels, whose values name "
            "classes: use 'mode' or 'nearest'"
        )
    if method == "mode" and dtype_kind == "f":
        raise InvalidArgumentError(
            "downsample='mode' makes no sense for floats, since hardly two of them are equal: use "
            "'mean', 'max' or 'nearest'"
        )
    return method  # type: ignore[return-value]


def levels_problem(layout: Layout, factors: Shape) -> str | None:
    """Return why no level can be made from one with this layout; None where one can.

    The two parents of a voxel have to lie in the same shard, so that one worker has both.
    """
    for axis, (f, t, n) in enumerate(
        zip(factors, layout.task_shape, layout.grid_shape, strict=True)
    ):
        if f == 2 and n > 1 and t % 2:
            what = "shards" if layout.shard_shape else "chunks"
            return (
                f"levels need {what} with an even edge along axis {axis}, which is halved: "
                f"{layout.object_shape} has {t}"
            )
    return None
