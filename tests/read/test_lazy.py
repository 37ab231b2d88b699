"""Index expressions become a region to read and what is then taken from it, as NumPy has it."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.read.lazy import split_index


@given(data=st.data())
def test_any_basic_index_takes_what_numpy_takes(data: Any) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=7))
    array = np.arange(np.prod(shape)).reshape(shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    region, rest = split_index(index, shape)
    assert all(part.step == 1 for part in region)
    assert all(0 <= p.start <= p.stop <= n for p, n in zip(region, shape, strict=True))
    np.testing.assert_array_equal(array[region][rest], array[index])


@given(st.integers(1, 9), st.slices(9))
def test_no_more_is_read_than_the_slice_spans(n: int, part: slice) -> None:
    (region,), _ = split_index(part, (n,))
    wanted = list(range(n))[part]
    assert region.stop - region.start == (max(wanted) - min(wanted) + 1 if wanted else 0)


@pytest.mark.parametrize(
    "index",
    [
        np.int64(2),
        (np.uint8(1), slice(None)),
        (Ellipsis, -1),
        (slice(None), Ellipsis),
        Ellipsis,
        (),
    ],
)
def test_numpy_integers_and_an_ellipsis(index: Any) -> None:
    array = np.arange(20).reshape(4, 5)
    region, rest = split_index(index, array.shape)
    np.testing.assert_array_equal(array[region][rest], array[index])


@pytest.mark.parametrize("index", [5, -6, (0, 0, 0), (slice(None), 7)])
def test_what_is_outside_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError):
        split_index(index, (5, 7))


@pytest.mark.parametrize("index", [1.5, "z", None, [0, 1]])
def test_what_is_no_index_is_a_type_error(index: Any) -> None:
    with pytest.raises(TypeError):
        split_index(index, (5, 7))
