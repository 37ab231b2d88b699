"""Filters on the valid voxels only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctlab_dask_zarr import InvalidArgumentError, dataset_from_zarr, dataset_to_zarr
from tests.builders import make_dataset

MASK = 65535


def masked_voxels(shape: tuple[int, ...] = (24, 30, 36)) -> np.ndarray:
    rng = np.random.default_rng(1)
    voxels = rng.integers(0, 4000, shape).astype("uint16")
    voxels[rng.random(shape) < 0.2] = MASK
    voxels[:6] = MASK
    return voxels


def test_a_gaussian_is_a_normalised_convolution_and_blocks_leave_no_seams() -> None:
    voxels = masked_voxels()
    dataset = make_dataset(voxels, blocks=(12, 10, 9))
    found = dataset.map_masked(ndimage.gaussian_filter, depth=4, sigma=1.0).data.compute()
    valid = voxels != MASK
    sums = ndimage.gaussian_filter(np.where(valid, voxels, 0).astype("float64"), 1.0)
    weights = ndimage.gaussian_filter(valid.astype("float64"), 1.0)
    assert np.array_equal(found != MASK, valid)
    expected = sums[valid] / weights[valid]
    assert np.abs(found[valid] - expected).max() <= 0.501


def test_without_masked_voxels_it_is_the_filter_itself() -> None:
    voxels = np.random.default_rng(0).random((10, 12, 14)).astype("float64")
    found = make_dataset(voxels, blocks=7).map_masked(ndimage.uniform_filter, depth=1, size=3)
    assert np.allclose(found.data.compute(), ndimage.uniform_filter(voxels, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9))
def test_no_masked_value_enters_a_mean(seed: int, block: int) -> None:
    """A constant stays one, however the mask lies: one part of 65535 would be seen."""
    rng = np.random.default_rng(seed)
    voxels = np.where(rng.random((9, 9, 9)) < rng.random(), MASK, 17).astype("uint16")
    dataset = make_dataset(voxels, blocks=block)
    found = dataset.map_masked(ndimage.uniform_filter, depth=2, size=5).data.compute()
    assert np.array_equal(found, voxels)


def test_a_median_that_knows_nan_leaves_the_mask_out() -> None:
    voxels = masked_voxels((6, 7, 8))
    voxels[:] = np.where(voxels == MASK, MASK, 5)
    dataset = make_dataset(voxels, blocks=4)
    found = dataset.map_masked(
        ndimage.generic_filter, method="nan", depth=1, function=np.nanmedian, size=3
    )
    assert np.array_equal(found.data.compute(), voxels)


def test_a_pointwise_function_sees_the_valid_voxels_alone() -> None:
    seen: list[Any] = []

    def calibrated(values: np.ndarray, slope: float) -> np.ndarray:
        seen.append(values.max())
        return values * slope

    voxels = masked_voxels()
    dataset = make_dataset(voxels, blocks=12)
    found = dataset.map_masked(calibrated, method="pointwise", datatype="tomo_float", slope=0.5)
    values = found.data.compute(scheduler="synchronous")
    assert max(seen) < MASK
    assert (values.dtype, str(found.datatype)) == (np.float32, "tomo_float")
    valid = voxels != MASK
    assert np.array_equal(values[valid], voxels[valid] * np.float32(0.5))
    assert (values[~valid] == np.float32(1e30)).all()


def test_a_value_that_is_the_masks_by_chance_stays_valid() -> None:
    voxels = np.array([[65000, MASK, 100]], "uint16")
    found = make_dataset(voxels).map_masked(lambda v: v + 9e4, method="pointwise").data.compute()
    assert found.tolist() == [[65534, 65535, 65534]]


@pytest.mark.parametrize("method", ["pointwise", "nan"])
def test_what_a_function_makes_nan_is_masked(method: str) -> None:
    dataset = make_dataset(np.array([[4, 9, MASK, 0]], "uint16"))

    def without_zero(values: np.ndarray) -> np.ndarray:
        return np.where(values == 0, np.nan, values)

    found = dataset.map_masked(without_zero, method=method).data.compute()
    assert found.tolist() == [[4, 9, MASK, MASK]]


def test_nan_where_integers_have_no_mask_value_is_an_error() -> None:
    dataset = make_dataset(np.arange(4, dtype="uint8").reshape(2, 2))
    result = dataset.map_masked(lambda v: np.where(v == 0, np.nan, v), method="pointwise")
    with pytest.raises(InvalidArgumentError, match="returned NaN, which uint8"):
        result.data.compute()


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize(
    "func",
    [
        ndimage.sobel,
        ndimage.prewitt,
        partial(ndimage.gaussian_laplace, sigma=1),
        partial(ndimage.gaussian_laplace, sigma=0.5),
        partial(ndimage.gaussian_filter, sigma=1, order=1),
        partial(ndimage.correlate1d, weights=[-0.5, 0, 0.5]),
    ],
)
def test_a_derivative_is_no_normalised_convolution_and_is_refused(
    func: Any, is_masked: bool
) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, (16, 16, 16)).astype("uint16")
    if is_masked:
        # The mask's border runs along the derivative, which sees nothing of it.
        voxels[:8] = MASK
    result = make_dataset(voxels).map_masked(func)
    with pytest.raises(InvalidArgumentError, match=r"does not smooth.*method='nan'"):
        result.data.compute()


def test_negative_weights_that_add_up_to_one_are_refused_where_there_is_a_mask() -> None:
    sharpen = partial(ndimage.correlate1d, weights=[-0.5, 2, -0.5])
    with pytest.raises(InvalidArgumentError, match=r"share of valid ones is -1 to 2"):
        make_dataset(masked_voxels()).map_masked(sharpen).data.compute()
    voxels = np.random.default_rng(0).random((10, 12, 14))
    found = make_dataset(voxels).map_masked(sharpen).data.compute()
    assert np.allclose(found, sharpen(voxels))


def test_a_derivative_leaves_out_what_its_window_does_not_see_whole() -> None:
    ramp = np.broadcast_to(10.0 * np.arange(12), (6, 7, 12)).astype("uint16")
    voxels = np.where(np.arange(12) == 5, MASK, ramp).astype("uint16")
    found = make_dataset(voxels, blocks=4).map_masked(
        ndimage.sobel, method="nan", depth=1, datatype="tomo_float"
    )
    values = found.data.compute()
    is_masked = values == np.float32(1e30)
    assert np.array_equal(is_masked[0, 0], np.isin(np.arange(12), (4, 5, 6)))
    assert (values[..., [1, 2, 3, 7, 8, 9, 10]] == 320).all()


def test_voxels_that_see_no_valid_neighbour_keep_their_value() -> None:
    """Weights that are zero in places are no derivative's."""
    voxels = np.full((5, 6, 7), MASK, "uint16")
    voxels[2, 2, 2] = 9
    neighbours = partial(ndimage.correlate1d, weights=[0.5, 0, 0.5])
    assert np.array_equal(make_dataset(voxels).map_masked(neighbours).data.compute(), voxels)


def test_blocks_without_depth_are_refused_and_told_how_much(tmp_path: Path) -> None:
    dataset = make_dataset(masked_voxels(), blocks=12)
    for method in ("linear", "nan"):
        with pytest.raises(InvalidArgumentError, match=r"2 x 3 x 3 blocks.*4 \* sigma"):
            dataset.map_masked(ndimage.gaussian_filter, method=method, sigma=1)
    dataset.map_masked(np.sqrt, method="pointwise")
    # A single block has no seams; slice by slice is said by the depth.
    make_dataset(masked_voxels()).map_masked(ndimage.gaussian_filter, sigma=1)
    found = dataset.map_masked(ndimage.uniform_filter, depth=(0, 1, np.int64(1)), size=(1, 3, 3))
    one = make_dataset(masked_voxels()).map_masked(ndimage.uniform_filter, size=(1, 3, 3))
    assert np.array_equal(found.data.compute(), one.data.compute())


@pytest.mark.parametrize("blocks", [(1, 10, 12), (2, 10, 12)])
def test_a_filter_may_look_further_than_there_are_slices(blocks: tuple[int, ...]) -> None:
    voxels = masked_voxels((12, 20, 24))[-2:]
    found = make_dataset(voxels, blocks).map_masked(ndimage.gaussian_filter, depth=4, sigma=1)
    whole = make_dataset(voxels).map_masked(ndimage.gaussian_filter, sigma=1)
    assert np.array_equal(found.data.compute(), whole.data.compute())


def test_the_history_has_the_arguments_of_a_partial_and_an_entry_for_each_step() -> None:
    dataset = make_dataset(masked_voxels(), dataset_id="20250101_120000_tomo")
    smooth = partial(ndimage.gaussian_filter, sigma=1.0)
    result = dataset.map_masked(smooth, truncate=3).map_masked(smooth)
    assert result.dataset_id == "20250101_120000_tomo_gaussian_filter_gaussian_filter"
    first, second = result.history.values()
    assert first["function"] == "scipy.ndimage._filters.gaussian_filter"
    assert first["arguments"] == {"sigma": 1.0, "truncate": 3}
    assert second["arguments"] == {"sigma": 1.0}
    nan = dataset.map_masked(ndimage.generic_filter, method="nan", function=np.nanmedian, size=3)
    (entry,) = nan.history.values()
    assert " at 0x" not in entry["arguments"]["function"]


def test_the_result_is_lazy_has_a_history_and_can_be_written(tmp_path: Path) -> None:
    dataset = make_dataset(masked_voxels(), blocks=12, dataset_id="20250101_120000_tomo")
    result = dataset.map_masked(
        ndimage.gaussian_filter, depth=4, history_key="smooth", sigma=np.float64(1)
    )
    assert isinstance(result.data, da.Array)
    assert dataset.history == {}
    dataset_to_zarr(result, tmp_path / "smooth.zarr")
    written = dataset_from_zarr(tmp_path / "smooth.zarr")
    assert written.dataset_id == "20250101_120000_tomo_gaussian_filter"
    entry = written.history["smooth"]
    assert entry["function"].endswith("gaussian_filter")
    assert (entry["method"], entry["arguments"]) == ("linear", {"sigma": 1.0})
    assert np.array_equal(written.data.compute(), result.data.compute())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "not one of 'linear'"),
        ({"depth": (1, 2)}, "pass a whole number of voxels"),
        ({"depth": -1}, "pass a whole number of voxels"),
        ({"depth": 4.0}, "pass a whole number of voxels"),
        ({"depth": True}, "pass a whole number of voxels"),
        ({"method": "pointwise", "depth": 1}, "sees no neighbours"),
        ({"datatype": "tomograph"}, "not a mango data type"),
        ({"datatype": "proju16"}, "no mask value"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    dataset = make_dataset(masked_voxels())
    with pytest.raises(InvalidArgumentError, match=message):
        dataset.map_masked(ndimage.gaussian_filter, **options)
    with pytest.raises(InvalidArgumentError, match="cannot be called"):
        dataset.map_masked("gaussian")  # type: ignore[arg-type]


def test_a_function_that_changes_the_shape_is_told_so() -> None:
    result = make_dataset(masked_voxels()).map_masked(lambda block: block[1:])
    with pytest.raises(InvalidArgumentError, match="keep the shape"):
        result.data.compute()


def test_voxels_of_masked_arrays_never_enter_a_value() -> None:
    voxels = np.random.default_rng(1).integers(0, 4000, (24, 30, 36)).astype("uint16")
    masked = da.ma.masked_less(da.from_array(voxels, chunks=(12, 10, 9)), 500)
    filled = make_dataset(np.where(voxels < 500, MASK, voxels).astype("u2"), blocks=(12, 10, 9))
    filters = {"depth": 4, "sigma": 1.0}
    expected = filled.map_masked(ndimage.gaussian_filter, **filters).data.compute()
    found = make_dataset(masked).map_masked(ndimage.gaussian_filter, **filters).data.compute()
    np.testing.assert_array_equal(found, expected)
    unfit = make_dataset(masked, datatype=None).map_masked(ndimage.gaussian_filter, **filters)
    with pytest.raises(InvalidArgumentError, match="no value for masked voxels"):
        unfit.data.compute(scheduler="sync")
