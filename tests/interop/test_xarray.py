"""xarray: there and back, the engine, the tree, the accessor."""

from __future__ import annotations

import socket
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
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.xarray import CTLabBackendEntrypoint, from_xarray
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
        *("history", "dataset_id", "extra_attrs", "origin", "is_discrete"),
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
    assert from_xarray(array.isel(z=3)).shape == (40, 70)


def test_one_position_tells_no_size_and_an_old_one_is_not_taken_for_it(dataset: Dataset) -> None:
    array = dataset.to_xarray()
    for part in (array.isel(z=[7]), array.coarsen(z=64).mean(), array.coarsen(z=64).max()):
        with pytest.raises(InvalidArgumentError, match=r"set array\.z\.attrs\['spacing'\]"):
            from_xarray(part)
    assert from_xarray(array.coarsen(z=32).max()).voxel_size == (96.0, 2.0, 1.5)
    slab = array.isel(z=[7])
    slab.z.attrs["spacing"] = 3.0
    thin = from_xarray(slab)
    assert (thin.shape, thin.voxel_size) == ((1, 40, 70), dataset.voxel_size)
    # A volume that has one slice to begin with says so itself.
    assert_same(from_xarray(thin.to_xarray()), thin)


@pytest.mark.parametrize("name", ["density", "tomo", None])
def test_name_and_attributes_of_others_come_back_from_a_store(
    dataset: Dataset, tmp_path: Path, name: str | None
) -> None:
    array = dataset.to_xarray().rename(name)
    array.attrs |= {
        "long_name": "grey",
        "history": "cut",
        "limits": np.array([1, 2]),
        "n": np.int8(3),
    }
    array.ctlab.to_zarr(tmp_path / "a.zarr", **LAYOUT)
    for found in (from_xarray(array), dataset_from_zarr(tmp_path / "a.zarr")):
        back = found.to_xarray()
        assert back.name == (name or "tomo")
        assert {key: back.attrs[key] for key in ("long_name", "history", "limits", "n")} == {
            "long_name": "grey",
            "history": "cut",
            "limits": [1, 2],
            "n": 3,
        }
        assert_same(from_xarray(back), found)
    variables = xr.open_dataset(tmp_path / "a.zarr", engine="ctlab").data_vars
    assert list(variables) == [name or "tomo"]


def test_attributes_that_no_store_can_keep_are_named(dataset: Dataset) -> None:
    array = dataset.to_xarray().assign_attrs(limit=np.nan, made=np.datetime64("2020-01-01"))
    with pytest.warns(UserWarning, match="left out the attributes limit, made"):
        assert_same(from_xarray(array), dataset)


@pytest.mark.parametrize("value", ["fruit", {"name": 3}, {"attributes": [1]}, {"colour": "red"}])
def test_a_field_called_xarray_of_somebody_else_is_a_field(dataset: Dataset, value: Any) -> None:
    theirs = make_dataset(dataset.data, extra_attrs={"xarray": value})
    assert_same(from_xarray(theirs.to_xarray()), theirs)


def test_numpy_values_become_plain_and_what_json_cannot_hold_is_named(dataset: Dataset) -> None:
    numpy = make_dataset(
        dataset.data,
        history={"scan": {"sigma": np.float32(0.5), "sizes": np.arange(3)}},
        extra_attrs={"sample": np.int64(7)},
    )
    back = from_xarray(numpy.to_xarray())
    assert back.history == {"scan": {"sigma": 0.5, "sizes": [0, 1, 2]}}
    assert back.extra_attrs == {"sample": 7}
    numpy.add_to_history("bad", {"sigma": float("nan")})
    with pytest.raises(MetadataError, match=r"history\['bad'\]\['sigma'\] is nan"):
        numpy.to_xarray()


def test_the_mask_is_that_of_the_data_type() -> None:
    voxels = random_voxels((4, 5, 6))
    voxels[:, 0] = 65535
    array = make_dataset(voxels, 4).to_xarray()
    assert array.ctlab.mask_value == 65535
    assert array.ctlab.mask.chunks == array.chunks, "lazy"
    np.testing.assert_array_equal(array.ctlab.mask.values, voxels == 65535)
    half = (array // 2).where(~array.ctlab.mask, array.ctlab.mask_value)
    assert half.dtype == "uint16"
    np.testing.assert_array_equal(half.values, np.where(voxels == 65535, 65535, voxels // 2))
    unknown = array.assign_attrs(datatype=None).ctlab
    assert unknown.mask_value is None
    assert not unknown.mask.any()


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
    for options in ({"engine": "ctlab"}, {}):
        netcdf = xr.open_dataset(tmp_path / "tomoSmall_nc", **options)
        np.testing.assert_array_equal(netcdf["tomo"].values, random_voxels(SHAPE))
    for argument in ({"level": 1}, {"storage_options": {}}):
        with pytest.raises(InvalidArgumentError, match=f"netCDF: {next(iter(argument))}= is for"):
            xr.open_dataset(tmp_path / "tomoSmall_nc", engine="ctlab", **argument)


def test_a_tree_has_all_levels_and_labels(store: Path, dataset: Dataset) -> None:
    labels_to_zarr((dataset.data > 100).astype("uint8"), store, "phases")
    tree = xr.open_datatree(store)
    assert tree["/0/tomo"].attrs["ctlab_history"] == dataset.to_xarray().attrs["ctlab_history"]
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
    # Images, and arrays with an attribute that is called as the CTLab's is.
    image = foreign_image(tmp_path / "image.zarr", {})
    fruit = foreign_image(tmp_path / "fruit.zarr", {"mango": "fruit"})
    ripe = foreign_image(tmp_path / "ripe.zarr", {"mango": {"basename": "Ataulfo"}})
    attributes = {"mango": {"basename": "tomo", "voxel_size_xyz": "ripe"}}
    zarr.create_array(tmp_path / "b.zarr", shape=(4, 4), dtype="u1", attributes=attributes)
    for path in (
        *(theirs, image, fruit, ripe, 7),
        *(tmp_path / name for name in ("plain.zarr", "a.nc", "absent.zarr", "b.zarr")),
    ):
        assert not backend.guess_can_open(path), path
    assert backend.guess_can_open(
        foreign_image(tmp_path / "ours.zarr", {"mango": {"basename": "tomo"}})
    )
    assert xr.open_dataset(theirs, consolidated=False)["a"].values.tolist() == [0, 1, 2, 3]


def foreign_image(path: Path, attributes: dict[str, Any]) -> Path:
    """An OME-Zarr image as any other program makes it."""
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = [{"type": "scale", "scale": [2.0, 2.0]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    group = zarr.create_group(path, zarr_format=3, attributes={"ome": ome} | attributes)
    group.create_array("0", shape=(4, 4), dtype="u2", dimension_names=("y", "x"))
    return path


def test_of_a_url_nothing_is_guessed_and_nobody_asked(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CTLabBackendEntrypoint()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        for url in (f"{address}/x.zarr", "s3://bucket/x.zarr", "s3:/bucket/x.zarr"):
            assert not backend.guess_can_open(url)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert backend.guess_can_open(store.as_uri()), "which is a path"


def test_a_folder_of_blocks_that_lacks_one_is_opened_to_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(folder, random_voxels(SHAPE), slices_per_block=16)
    assert list(xr.open_datatree(folder).leaves[0].data_vars) == ["tomo"]
    (folder / "block00000001.nc").unlink()
    with pytest.raises(IncompleteSourceError, match="block 00000001"):
        xr.open_dataset(folder)


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
        (lambda a: drifting(a, 0.2), "not regular: one is 0.05 voxels"),
        (lambda a: turned(a, "u2"), "do not increase"),
        (lambda a: a.sel(z=slice(0.1, 0.2)), "empty along 'z'"),
        (lambda a: with_spacing(a, "wide"), "'wide', which is not a length"),
        (lambda a: with_spacing(a, [1, 2]), "not a length"),
        (lambda a: with_spacing(a, -1), "not a length"),
        (lambda a: a.isel(z=0).expand_dims(c=2), r"'c' is not spatial: .* array\.isel\(c=0\)"),
        (lambda a: a.rename(z="time"), "'time' is not spatial"),
        (lambda a: a.rename(z="t"), "'t' is not spatial"),
        (lambda a: a.rename(z="Channel"), "'Channel' is not spatial"),
        (lambda a: a.expand_dims(t=2), "two or three"),
        (lambda a: a.isel(z=0, y=0), "two or three"),
        (lambda a: a.drop_vars("y"), "'y' has no coordinates"),
        (lambda a: a.to_dataset(name="a"), "choose a variable"),
        (lambda a: a.assign_coords(z=("z", a.z.values, {"units": "s"})), "not lengths"),
        (lambda a: a.assign_coords(z=("z", a.z.values)), "no units"),
        (lambda a: a.assign_coords(z=("z", list(map(str, a.z.values)))), "not lengths"),
        (lambda a: a.assign_attrs(ctlab_history="{"), "not JSON"),
        (lambda a: a.assign_attrs(datatype="nonsense"), "nonsense"),
    ],
)
def test_what_is_no_volume_is_a_clear_error(dataset: Dataset, change: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        from_xarray(change(dataset.to_xarray()))


def drifting(array: xr.DataArray, voxels: float) -> xr.DataArray:
    """Steps that all differ little, and add up."""
    n = array.sizes["z"]
    drift = voxels * (np.arange(n) / (n - 1)) ** 2
    return array.assign_coords(z=("z", 3.0 * (np.arange(n) + drift), array.z.attrs))


def turned(array: xr.DataArray, dtype: str) -> xr.DataArray:
    n = array.sizes["z"]
    return array.assign_coords(z=("z", np.arange(n, 0, -1).astype(dtype), array.z.attrs))


def with_spacing(array: xr.DataArray, spacing: Any) -> xr.DataArray:
    return array.isel(z=[0]).assign_coords(z=("z", [0.0], {"units": "um", "spacing": spacing}))


def test_single_precision_positions_of_a_large_volume_are_regular() -> None:
    z = xr.Variable("z", (100.0 + 0.37 * np.arange(20_000)).astype("f4"), {"units": "um"})
    y = xr.Variable("y", np.arange(2.0), {"units": "um"})
    array = xr.DataArray(da.zeros((20_000, 2), dtype="u1"), {"z": z, "y": y}, ("z", "y"))
    assert from_xarray(array).voxel_size == pytest.approx((0.37, 1), rel=1e-6)


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
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "convert tomoHiRes_nc scan.zarr" in done.stdout


def test_classes_and_positions_go_there_and_back(tmp_path: Path) -> None:
    voxels = random_voxels((4, 5, 6), "uint8")
    ds = make_dataset(voxels, origin=(10.0, -4.0, 0.25), is_discrete=True)
    array = ds.to_xarray()
    assert array.z.values.tolist() == [10.0, 13.0, 16.0, 19.0]
    assert_same(Dataset.from_xarray(array), ds)
    # A part lies where it lay; netCDF of others keeps both; a data type that is asked for decides.
    assert Dataset.from_xarray(array.isel(z=slice(2, 4))).origin == (16.0, -4.0, 0.25)
    array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "a.nc", engine="h5netcdf") as opened:
        assert_same(Dataset.from_xarray(opened), ds)
    assert not Dataset.from_xarray(array, datatype="float16").is_discrete
    # Positions of axes in other units than the first one's are converted.
    array = array.assign_coords(x=("x", array.x.values / 1000, {"units": "mm"}))
    assert Dataset.from_xarray(array).origin == pytest.approx(ds.origin)


def test_the_engine_and_the_accessor_keep_classes_and_positions(tmp_path: Path) -> None:
    ds = make_dataset(random_voxels((6, 8, 8), "uint8"), origin=(1.0, 2.0, 3.0), is_discrete=True)
    dataset_to_zarr(ds, tmp_path / "a.zarr", levels=2)
    opened = xr.open_dataset(tmp_path / "a.zarr", engine="ctlab", level=1)["voxels"]
    coarser = dataset_from_zarr(tmp_path / "a.zarr", level=1)
    assert coarser.origin == (1.0, 3.0, 3.75)
    assert_same(opened.ctlab.to_dataset(), coarser)
    opened.ctlab.to_zarr(tmp_path / "b.zarr")
    assert_same(dataset_from_zarr(tmp_path / "b.zarr"), coarser)
