"""Which levels there are, and where their voxels lie."""

from __future__ import annotations

from typing import Any

import pytest

from ctlab_dask_zarr import InvalidArgumentError
from ctlab_dask_zarr.formats.level import Level, with_shapes
from ctlab_dask_zarr.planning.layout import resolve_layout
from ctlab_dask_zarr.planning.levels import (
    child_coords,
    level_layout,
    parent_coords,
    piece_layouts,
    plan_levels,
    resolve_downsample,
)


def planned(shape: Any, voxel_size: Any, levels: Any) -> tuple[Level, ...]:
    ndim = len(shape)
    return plan_levels(Level("0", shape, (1,) * ndim, voxel_size, (0.0,) * ndim), levels)


@pytest.mark.parametrize(
    ("shape", "voxel_size", "levels", "expected"),
    [
        ((1024, 1024, 1024), (1, 1, 1), "auto", [1024, 512, 256]),
        ((257, 3, 5), (1, 1, 1), "auto", [257, 129]),
        ((256, 256, 256), (1, 1, 1), "auto", [256]),
        ((1001, 77, 99), (1, 1, 1), 3, [1001, 501, 251]),
    ],
)
def test_the_number_of_levels(
    shape: Any, voxel_size: Any, levels: Any, expected: list[int]
) -> None:
    found = planned(shape, voxel_size, levels)
    assert [level.shape[0] for level in found] == expected


@pytest.mark.parametrize(
    ("shape", "voxel_size", "factors"),
    [
        ((512, 512, 512), (1, 1, 1), (2, 2, 2)),
        ((512, 512, 512), (1.4, 1, 1), (2, 2, 2)),
        ((512, 512, 512), (1.5, 1, 1), (1, 2, 2)),
        ((512, 512, 512), (10, 1, 1), (1, 2, 2)),
        ((512, 512, 512), (1, 1, 3), (2, 2, 1)),
        ((20, 4096, 4096), (1, 1, 1), (1, 2, 2)),
        ((20, 100, 100), (1, 1, 1), (2, 2, 2)),
        ((1, 600, 700), (1, 1, 1), (1, 2, 2)),
        ((600, 700), (1, 1), (2, 2)),
    ],
)
def test_which_axes_are_halved(shape: Any, voxel_size: Any, factors: Any) -> None:
    assert planned(shape, voxel_size, 2)[1].factors == factors


def test_a_coarse_axis_is_halved_once_the_others_have_caught_up() -> None:
    found = planned((1024, 4096, 4096), (4.0, 1.0, 1.0), 4)
    assert [level.factors for level in found[1:]] == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert found[-1].voxel_size == (8.0, 8.0, 8.0)


def test_stored_levels_have_the_factors_that_their_shapes_say() -> None:
    found = with_shapes([Level("0"), Level("1"), Level("2")], [(5, 8), (3, 8), (2, 2)])
    assert [level.factors for level in found] == [(1, 1), (2, 1), (2, 4)]


def test_positions_are_those_of_the_centres() -> None:
    _, first, second = planned((100, 100, 100), (2.0, 2.0, 2.0), 3)
    assert first.origin == (1.0, 1.0, 1.0)
    # Four voxels of 2 um: their middle is 3 um from the centre of the first.
    assert second.origin == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("levels", [0, -1, 1.5, "many", None, True, [2]])
def test_what_is_no_number_of_levels_is_refused(levels: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="levels="):
        planned((64, 64, 64), (1.0,) * 3, levels)


def test_more_levels_than_there_can_be_are_refused() -> None:
    assert planned((9, 3, 3), (1.0,) * 3, 5)[-1].shape == (1, 1, 1)
    with pytest.raises(InvalidArgumentError, match="there can be 5 levels"):
        planned((9, 3, 3), (1.0,) * 3, 6)


def test_a_level_has_the_shards_of_the_finest_cut_down_to_its_length() -> None:
    finest = resolve_layout((1024,) * 3)
    assert level_layout(finest, (20, 200, 512)).shard_shape == (20, 224, 512)


def test_pieces_of_levels_are_what_one_task_of_the_finer_one_makes() -> None:
    finest = resolve_layout((2048, 2048, 2048))
    layouts = [finest, level_layout(finest, (1024,) * 3), level_layout(finest, (512,) * 3)]
    pieces = piece_layouts(layouts, [(1, 1, 1), (2, 2, 2), (2, 2, 2)])
    assert pieces is not None
    assert [piece.shard_shape for piece in pieces] == [(256, 256, 256), (256, 256, 256)]


def test_a_task_of_a_level_is_made_from_all_tasks_that_it_covers() -> None:
    finer = resolve_layout((1024, 1024, 600))
    coarser = level_layout(finer, (512, 512, 300))
    assert list(parent_coords(finer, coarser, (2, 2, 2), (0, 0, 0)))[-1] == (1, 1, 1)


def test_parents_and_children_are_each_others() -> None:
    finer = resolve_layout((1500, 600, 513), chunks=(32,) * 3, shards=(128, 256, 64))
    factors = (2, 2, 1)
    coarser = level_layout(finer, (750, 300, 513))
    pairs = {
        (parent, child)
        for child in coarser.task_coords()
        for parent in parent_coords(finer, coarser, factors, child)
    }
    assert pairs == {
        (parent, child)
        for parent in finer.task_coords()
        for child in child_coords(finer, coarser, factors, parent)
    }
    assert {parent for parent, _ in pairs} == set(finer.task_coords())


@pytest.mark.parametrize(
    ("method", "is_discrete", "kind", "expected"),
    [
        (None, True, "f", "nearest"),
        (None, False, "u", "mean"),
        (None, True, "u", "mode"),
        (None, False, "f", "mean"),
        ("nearest", True, "i", "nearest"),
        ("max", False, "u", "max"),
    ],
)
def test_the_method_follows_the_data(
    method: Any, is_discrete: bool, kind: str, expected: str
) -> None:
    assert resolve_downsample(method, kind, is_discrete=is_discrete) == expected


@pytest.mark.parametrize(
    ("method", "is_discrete", "kind"),
    [("median", False, "u"), ("mean", True, "u"), ("max", True, "i"), ("mode", False, "f")],
)
def test_a_method_that_does_not_fit_is_refused(method: Any, is_discrete: bool, kind: str) -> None:
    with pytest.raises(InvalidArgumentError, match="downsample="):
        resolve_downsample(method, kind, is_discrete=is_discrete)
