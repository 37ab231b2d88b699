"""The range of valid voxels, held against the plainest way to find it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctlab_dask_zarr.codec.values import MIXED, PLAIN, UNIFORM, ValueRange


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u8", "f4"])
@pytest.mark.parametrize("where", ["none", "least", "largest", "between"])
def test_the_range_is_that_of_the_voxels_that_are_not_masked(dtype: str, where: str) -> None:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    values = [3, 40, 41, 90, 120]
    mask = {"none": None, "least": values[0], "largest": values[-1], "between": values[2]}[where]
    for _ in range(200):
        # Few values, so that chunks are often uniform, masked, or both.
        chosen = rng.choice(values, rng.integers(1, 4))
        rows = rng.choice(chosen, (rng.integers(1, 4), rng.integers(1, 6))).astype(kind)
        if kind.kind == "f":
            rows[rng.random(rows.shape) < 0.2] = np.nan
            rows[rng.random(rows.shape) < 0.05] = rng.choice([np.inf, -np.inf])
        found = ValueRange(mask)
        flags = found.add(rows)
        valid = [v for v in rows.ravel().tolist() if v != mask and math.isfinite(v)]
        expected = (min(valid), max(valid)) if valid else (None, None)
        assert (found.minimum, found.maximum) == expected
        for flag, row in zip(flags, rows, strict=True):
            is_uniform = len(set(row.tolist())) == 1 and not np.isnan(row).any()
            assert (flag == UNIFORM) == is_uniform
            has_invalid = bool(np.isnan(row).any() or (mask is not None and (row == mask).any()))
            assert flag != PLAIN or not has_invalid
            assert flag != MIXED or not is_uniform


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i8", "u8"])
def test_a_mask_at_the_end_of_a_type_hides_no_extreme(dtype: str) -> None:
    limits = np.iinfo(dtype)
    for mask, others in (
        (limits.max, [limits.min, limits.max - 1]),
        (limits.min, [limits.min + 1, limits.max]),
    ):
        rows = np.array([[mask, *others], [mask, mask, others[0]]], dtype)
        found = ValueRange(mask)
        assert found.add(rows).tolist() == [MIXED, MIXED]
        assert (found.minimum, found.maximum) == (min(others), max(others))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("mask", [-4.0, -0.0, 0.0, 4.0])
def test_a_float_mask_at_the_end_of_a_chunk_hides_no_extreme(dtype: str, mask: float) -> None:
    rng = np.random.default_rng(0)
    side = mask or 4.0
    for values in ([side / 2, side / 4], [-side / 2, side / 4], [-side, -side / 2], [0.0, -0.0]):
        for _ in range(50):
            rows = rng.choice(np.array([mask, *values], dtype), (3, 5))
            rows[0, 0] = rng.choice(np.array([np.nan, np.inf, -np.inf, mask], dtype))
            found = ValueRange(mask)
            found.add(rows)
            valid = rows[np.isfinite(rows) & (rows != mask)].tolist()
            expected = (min(valid), max(valid)) if valid else (None, None)
            assert (found.minimum, found.maximum) == expected


def test_a_range_grows_and_keeps_python_numbers() -> None:
    found = ValueRange(255)
    found.add(np.full((2, 4), 255, "u1"))
    assert (found.minimum, found.maximum) == (None, None)
    found.add(np.array([[7, 255]], "u1"))
    found.add(np.array([[9, 9], [8, 8]], "u1"))
    assert (found.minimum, found.maximum) == (7, 9)
    assert type(found.minimum) is int


def test_a_chunk_of_which_eight_voxels_cannot_be_added_up_is_not_plain() -> None:
    values = ValueRange(None)
    assert values.add(np.array([[1.0, 2.0], [1.6e308, 2.0], [-1.6e308, 2.0]])).tolist() == [
        PLAIN, MIXED, MIXED,
    ]  # fmt: skip
    assert (values.minimum, values.maximum) == (-1.6e308, 1.6e308)
    largest = np.finfo("f4").max
    assert values.add(np.array([[largest, 1]], "f4")).tolist() == [PLAIN]
