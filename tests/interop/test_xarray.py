"""xarray: there and back, the engine, the tree, the accessor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DatasetNotFoundError,
    InvalidArgumentError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.xarray import from_xarray
from ctlab_dask_zarr.xarray_backend import CTLabBackendEntrypoint
from tests.builders import make_dataset, random_voxels

LAYOUT: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32)}
SHAPE = (64, 40, 70)


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset(
        random_voxels(SHAPE),
        32,
        datatype="tomo",
        voxel_size=(3.0, 2.0, 1.5),
        dataset_id="20200101_000000_rock",
        history={"scan": {"time": "1 s", "steps": [1, 2]}},
        extra_attrs={"sample": "rock"},
    )


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> Path:
    dataset_to_zarr(dataset, tmp_path / "rock.zarr", levels=2, **LAYOUT)
    return tmp_path / "rock.zarr"


def assert_same(found: Dataset, expected: Dataset) -> None:
    for name in (
        *("shape", "dtype", "dimension_names", "voxel_size", "voxel_unit", "datatype"),
        *("history", "dataset_id", "extra_attrs"),
    ):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.data.compute(), expected.data.compute())


def test_there_and_back_keeps_everything(dataset: Dataset) -> None:
    array = dataset.to_xarray()
    assert array.dims == ("z", "y", "x")
    assert array.name == "tomo"
    np.testing.assert_allclose(array.y.values[:3], [0, 2, 4])
    assert array.y.attrs["units"] == "um"
    assert array.chunks == dataset.data.chunks, "lazy, in the same blocks"
    assert_same(Dataset.from_xarray(array), dataset)


def test_what_netcdf_keeps_comes_back_too(dataset: Dataset, tmp_path: Path) -> None:
    dataset.to_xarray().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "a.nc", engine="h5netcdf") as array:
        assert_same(from_xarray(array.load()), dataset)


def test_a_part_in_physical_units_and_a_coarser_step(dataset: Dataset) -> None:
    array = dataset.to_xarray()
    part = from_xarray(array.sel(z=slice(9, 30), x=slice(0, 4.5)))
    assert part.shape == (8, 40, 4)
    assert part.voxel_size == dataset.voxel_size
    assert from_xarray(array.isel(z=slice(None, None, 2))).voxel_size == (6.0, 2.0, 1.5)
    assert from_xarray(array.isel(z=[7])).voxel_size == dataset.voxel_size
    assert from_xarray(array.isel(z=3)).shape == (40, 70)


def test_positions_of_a_coarser_level_are_right(store: Path) -> None:
    array = dataset_from_zarr(store, level=1).to_xarray()
    assert array.x.values[:2].tolist() == [0.75, 3.75]


def test_the_engine_opens_stores_and_netcdf(store: Path, dataset: Dataset, tmp_path: Path) -> None:
    opened = xr.open_dataset(store, engine="ctlab", chunks={})
    assert opened["tomo"].chunks == ((32, 32), (32, 8), (32, 32, 6)), "blocks are shards"
    assert_same(from_xarray(opened["tomo"]), dataset_from_zarr(store))
    unnamed = xr.open_dataset(store)["tomo"]
    np.testing.assert_array_equal(unnamed[3, :2].values, dataset.data[3, :2].compute())
    assert xr.open_dataset(store, engine="ctlab", level=1)["tomo"].shape == (64, 20, 35)
    write_mango_netcdf(tmp_path / "tomoSmall_nc", random_voxels(SHAPE), slices_per_block=16)
    netcdf = xr.open_dataset(tmp_path / "tomoSmall_nc", engine="ctlab")
    np.testing.assert_array_equal(netcdf["tomo"].values, random_voxels(SHAPE))


def test_a_tree_has_all_levels_and_labels(store: Path, dataset: Dataset) -> None:
    labels_to_zarr((dataset.data > 100).astype("uint8"), store, "phases")
    tree = xr.open_datatree(store, engine="ctlab")
    assert sorted(node.path for node in tree.leaves) == [
        "/0",
        "/1",
        "/labels/phases/0",
        "/labels/phases/1",
    ]
    assert tree["/1/tomo"].shape == (64, 20, 35)
    assert tree["/labels/phases/0/voxels"].dtype == "uint8"


def test_stores_of_others_are_left_to_others(tmp_path: Path, store: Path) -> None:
    backend = CTLabBackendEntrypoint()
    assert backend.guess_can_open(store)
    theirs = tmp_path / "theirs.zarr"
    xr.Dataset({"a": ("x", np.arange(4))}).to_zarr(theirs, zarr_format=3, consolidated=False)
    zarr.create_array(tmp_path / "plain.zarr", shape=(4, 4), dtype="u1")
    xr.Dataset({"a": ("x", np.arange(4))}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    for path in (theirs, tmp_path / "plain.zarr", tmp_path / "a.nc", tmp_path / "absent.zarr", 7):
        assert not backend.guess_can_open(path), path
    assert xr.open_dataset(theirs, consolidated=False)["a"].values.tolist() == [0, 1, 2, 3]


def test_the_accessor_writes(dataset: Dataset, tmp_path: Path) -> None:
    array = dataset.to_xarray() + np.uint16(1)
    array.ctlab.to_zarr(tmp_path / "b.zarr", datatype="tomo", **LAYOUT)
    written = dataset_from_zarr(tmp_path / "b.zarr")
    assert written.voxel_size == dataset.voxel_size
    np.testing.assert_array_equal(written.data.compute(), dataset.data.compute() + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.isel(z=[0, 1, 3]), "not regular"),
        (lambda a: a.isel(z=slice(None, None, -1)), "do not increase"),
        (lambda a: a.expand_dims(t=2), "two or three"),
        (lambda a: a.isel(z=0, y=0), "two or three"),
        (lambda a: a.drop_vars("y"), "'y' has no coordinates"),
        (lambda a: a.to_dataset(name="a"), "choose a variable"),
        (lambda a: a.assign_coords(z=("z", a.z.values, {"units": "s"})), "no lengths"),
        (lambda a: a.assign_coords(z=("z", a.z.values)), "no units"),
        (lambda a: a.assign_coords(z=("z", list(map(str, a.z.values)))), "not lengths"),
        (lambda a: a.assign_attrs(ctlab_history="{"), "no JSON"),
        (lambda a: a.assign_attrs(datatype="nonsense"), "nonsense"),
    ],
)
def test_what_is_no_volume_is_a_clear_error(dataset: Dataset, change: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        from_xarray(change(dataset.to_xarray()))


def test_arrays_without_coordinates_are_in_voxels() -> None:
    found = from_xarray(xr.DataArray(da.zeros((4, 5), dtype="u1"), dims=("y", "x")))
    assert (str(found.voxel_unit), found.voxel_size) == ("voxel", (1.0, 1.0))


def test_a_missing_store_is_an_error_of_this_package(tmp_path: Path) -> None:
    with pytest.raises(CTLabError, match="does not exist"):
        xr.open_dataset(tmp_path / "absent.zarr", engine="ctlab")


@pytest.mark.parametrize("strict", [True, False])
def test_a_store_that_is_renamed_while_it_is_open_is_told_so(store: Path, strict: bool) -> None:
    opened = Dataset.from_path(store, strict=strict)
    moved = store.rename(store.with_name("elsewhere.zarr"))
    with pytest.raises(DatasetNotFoundError, match="renamed or removed since it was opened"):
        opened.data.compute()
    assert Dataset.from_path(moved).data.compute().shape == opened.shape
    # Under a name that does not say what it is, it is still opened.
    plain = moved.rename(moved.with_name("volume"))
    assert xr.open_dataset(plain, engine="ctlab").sizes


def test_the_dask_command_has_this_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dask", "ctlab-zarr", "--help"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "convert tomoHiRes_nc scan.zarr" in done.stdout
