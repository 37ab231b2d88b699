"""Arrays of other packages: taken where nothing is missing, else the line that helps is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
import zarr

from ctlab_dask_zarr import (
    Dataset,
    InvalidArgumentError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((12, 20, 16))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


def data_array(**units: str) -> xr.DataArray:
    coords = {n: 2.5 * np.arange(s) for n, s in zip("zyx", VOXELS.shape, strict=True)}
    array = xr.DataArray(VOXELS, coords, ("z", "y", "x"))
    for name in "zyx":
        array[name].attrs["units"] = units.get(name, "um")
    return array


def of_h5py(tmp_path: Path) -> Any:
    file = h5py.File(tmp_path / "scan.h5", "w")
    return file.create_dataset("data", data=VOXELS, chunks=(4, 20, 16))


KINDS = {
    "numpy": lambda _: VOXELS,
    "dask": lambda _: da.from_array(VOXELS, chunks=(4, 20, 16)),
    "xarray": lambda _: xr.DataArray(VOXELS, dims=("z", "y", "x")),
    "h5py": of_h5py,
    "zarr": lambda path: zarr.array(VOXELS, store=path / "plain.zarr", chunks=(4, 20, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_becomes_a_dataset(kind: str, tmp_path: Path) -> None:
    array = KINDS[kind](tmp_path)
    for act in (
        lambda: dataset_to_zarr(array, tmp_path / "a"),
        lambda: plan(array, tmp_path / "a"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            act()
        assert "write Dataset.from_array(array, voxel_size='2.5um')" in str(caught.value)
    dataset = Dataset.from_array(array, voxel_size="2.5um", datatype="tomo")
    assert (dataset.voxel_size, str(dataset.voxel_unit)) == ((2.5,) * 3, "um")
    assert dataset.dimension_names == ("z", "y", "x")
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_of_labels_gets_the_voxels_of_its_image(kind: str, tmp_path: Path) -> None:
    image = make_dataset(VOXELS)
    dataset_to_zarr(image, tmp_path / "a", **LAYOUT)
    labels_to_zarr(KINDS[kind](tmp_path), tmp_path / "a.zarr", "phases", **LAYOUT)
    found = dataset_from_zarr(tmp_path / "a.zarr" / "labels" / "phases")
    assert (found.voxel_size, found.origin) == (image.voxel_size, image.origin)
    np.testing.assert_array_equal(found.data, VOXELS)


def test_an_array_with_coordinates_is_written_as_it_is(tmp_path: Path) -> None:
    array = data_array()
    assert plan(array, tmp_path / "a", **LAYOUT).n_shards == 2
    dataset_to_zarr(array, tmp_path / "a", **LAYOUT)
    assert verify(tmp_path / "a.zarr", array) == []
    labels_to_zarr(array, tmp_path / "a.zarr", "phases", **LAYOUT)
    assert dataset_from_zarr(tmp_path / "a.zarr").voxel_size == (2.5, 2.5, 2.5)
    with pytest.raises(InvalidArgumentError, match="are not lengths"):
        dataset_to_zarr(data_array(x="seconds"), tmp_path / "b", **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="are not lengths"):
        labels_to_zarr(data_array(x="seconds"), tmp_path / "a.zarr", "b", **LAYOUT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


@pytest.mark.parametrize(
    ("given", "size", "unit"),
    [
        ({"voxel_size": "2.5um"}, (2.5,) * 3, "um"),
        ({"voxel_size": "3, 2.5,2.5 micrometers"}, (3.0, 2.5, 2.5), "um"),
        ({"voxel_size": "2.5", "voxel_unit": "mm"}, (2.5,) * 3, "mm"),
        ({"voxel_size": "2.5mm", "voxel_unit": "mm"}, (2.5,) * 3, "mm"),
        ({"voxel_size": 4, "voxel_unit": "nm"}, (4.0,) * 3, "nm"),
        ({"voxel_size": np.float32(4), "voxel_unit": "nm"}, (4.0,) * 3, "nm"),
        ({"voxel_size": np.array([1, 2, 3]), "voxel_unit": "nm"}, (1.0, 2.0, 3.0), "nm"),
    ],
)
def test_ways_to_say_the_voxel_size(
    given: dict[str, Any], size: tuple[float, ...], unit: str, tmp_path: Path
) -> None:
    made = Dataset(VOXELS, **given)
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    for dataset in (
        made,
        Dataset.from_modified(make_dataset(VOXELS), **given),
        Dataset.from_path(tmp_path / "a.zarr", **given),
        dataset_from_zarr(tmp_path / "a.zarr", **given),
    ):
        assert (dataset.voxel_size, str(dataset.voxel_unit)) == (size, unit)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"voxel_size": 2.5}, r"has no unit: write voxel_size='2\.5um'"),
        ({"voxel_size": "2.5"}, "has no unit"),
        ({"voxel_size": "2.5 parsnips"}, "'2.5 parsnips' is not a voxel size"),
        ({"voxel_size": "um"}, "is not a voxel size"),
        ({"voxel_size": "1,2um"}, "has 2 values for 3 axes"),
        ({"voxel_size": "-1um"}, "not a length"),
        ({"voxel_size": "2.5um", "voxel_unit": "mm"}, "say two units"),
        ({"voxel_size": None, "voxel_unit": "mm"}, "pass one length"),
        ({"voxel_size": (1, "a", 2), "voxel_unit": "mm"}, "pass one length"),
    ],
)
def test_a_voxel_size_that_is_none_is_an_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Dataset.from_array(VOXELS, **given)


def test_what_is_no_array_is_an_error() -> None:
    for value in ("scan.nc", [[1, 2]], None, dask.delayed(VOXELS)):
        with pytest.raises(InvalidArgumentError, match="where an array is needed: write Dataset"):
            Dataset.from_array(value, voxel_size="1um")


def test_blocks_of_an_array_are_chosen() -> None:
    for array in (VOXELS, da.from_array(VOXELS)):
        made = Dataset.from_array(array, chunks=(5, -1, -1), voxel_size="1um")
        assert made.data.chunksize == (5, 20, 16)


def test_numpy_gets_the_voxels() -> None:
    dataset = make_dataset(VOXELS)
    np.testing.assert_array_equal(np.asarray(dataset), VOXELS)
    assert np.asarray(dataset, dtype="float32").dtype == np.float32
    assert np.mean(dataset) == VOXELS.mean()


@pytest.mark.parametrize("voxels", [VOXELS, VOXELS[3], VOXELS.astype("float32")], ids=str)
def test_a_dataset_draws_itself(voxels: np.ndarray, tmp_path: Path) -> None:
    mpl.use("agg")
    import matplotlib.pyplot as plt

    dataset = Dataset.from_modified(make_dataset(voxels), origin=(10.0,) * voxels.ndim)
    picture = dataset.preview(tmp_path / "a.png", size=64)
    assert picture.width >= 16
    assert (tmp_path / "a.png").exists()
    axes = dataset.plot(cmap="viridis")
    assert len(axes) == (3 if voxels.ndim == 3 else 1)
    image = axes[0].images[0]
    size_y, size_x = dataset.voxel_size[-2:]
    ny, nx = voxels.shape[-2:]
    left, right, bottom, top = image.get_extent()
    assert (left, top) == (10 - size_x / 2, 10 - size_y / 2)
    assert (right, bottom) == (left + nx * size_x, top + ny * size_y)
    assert axes[0].get_xlabel() == f"x ({dataset.voxel_unit})"
    middle = voxels[len(voxels) // 2] if voxels.ndim == 3 else voxels
    np.testing.assert_array_equal(image.get_array(), middle)
    with pytest.raises(InvalidArgumentError, match="slices"):
        dataset.plot(plt.subplots(1, 2)[1])
    plt.close("all")


def test_other_voxels_have_another_name() -> None:
    scan = make_dataset(VOXELS, dataset_id="20260101_000000_scan", history={"a": {"b": 1}})
    other = Dataset.from_modified(scan, data=scan.data + 1)
    assert other.dataset_id == "20260101_000000_scan_modified"
    (key,) = other.history.keys() - {"a"}
    assert key.endswith("_modification")
    assert other.history[key] == {"operation": "other voxels", "dataset_id": scan.dataset_id}
    named = Dataset.from_modified(
        scan, data=scan.data + 1, dataset_id="mine", history_entry={"plus": 1}, history_key="k"
    )
    assert (named.dataset_id, named.history["k"]) == ("mine", {"plus": 1})
    same = Dataset.from_modified(scan, voxel_size="3um")
    assert (same.dataset_id, same.history) == (scan.dataset_id, scan.history)
