"""mango netCDF that is written here is what mango's own files are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import (
    Dataset,
    DataType,
    DestinationExistsError,
    InvalidArgumentError,
    StagingExistsError,
    check_source,
    dataset_from_netcdf,
    dataset_from_zarr,
    dataset_to_netcdf,
    dataset_to_zarr,
)
from ctlab_dask_zarr.formats.netcdf_output import slices_of_file
from tests.builders import make_dataset, random_voxels, write_without_commit

SHAPE = (23, 15, 18)
VOXELS = random_voxels(SHAPE)
#: What a history of the package has, by the form in which netCDF gives it back.
HISTORY: dict[str, Any] = {
    "20240108_085320_tomo": {"parameters": {"Run_00": {"a": "1"}}, "output": "done\nwell"}
}


def tomo(blocks: Any = (8, 15, 18), **options: Any) -> Dataset:
    return make_dataset(VOXELS, blocks, **({"dataset_id": "20240101_000000_tomo"} | options))


def five_a_block(dataset: Dataset, path: Path, **options: Any) -> None:
    dataset_to_netcdf(dataset, path, elements_per_file=5 * 15 * 18, **options)


def assert_same(found: Dataset, dataset: Dataset) -> None:
    np.testing.assert_array_equal(found.data.compute(), dataset.data.compute())
    assert found.dtype == dataset.dtype
    assert found.voxel_size == pytest.approx(dataset.voxel_size, rel=1e-7)
    for name in ("voxel_unit", "datatype", "dataset_id", "history", "dimension_names"):
        assert getattr(found, name) == getattr(dataset, name), name


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("datatype", ["tomo", "segmented", "labels", "tomo_float", "float64"])
def test_each_data_type_comes_back_as_it_was(tmp_path: Path, datatype: str, level: int) -> None:
    kind = DataType(datatype)
    voxels = np.random.default_rng(1).integers(0, 250, SHAPE).astype(kind.dtype)
    if kind.mask_value is not None:
        voxels[:3] = kind.mask_value
    dataset = make_dataset(
        voxels, (8, 15, 18), datatype=datatype, history=HISTORY, dataset_id="20240101_000000_a"
    )
    five_a_block(dataset, tmp_path / f"{datatype}_nc", compression_level=level)
    found = dataset_from_netcdf(tmp_path / f"{datatype}_nc")
    assert_same(found, dataset)
    assert check_source(tmp_path / f"{datatype}_nc") == []
    assert [*found.data.chunks[0]] == [5, 5, 5, 5, 3]


def test_a_file_is_as_those_of_mango(tmp_path: Path) -> None:
    """Names, types and values, as the lab's own files have them."""
    dataset = tomo(history=HISTORY, extra_attrs={"data_min_max": [0.0, 99.0], "machine": "m1"})
    five_a_block(dataset, tmp_path / "tomo_nc", operator="me")
    with h5py.File(tmp_path / "tomo_nc" / "block00000001.nc") as file:
        attributes = {key: file.attrs[key] for key in file.attrs}
        assert attributes.pop("_NCProperties").startswith(b"version=2,")
        expected: dict[str, Any] = {
            "zdim_total": np.int32([23]),
            "number_of_files": np.int32([5]),
            "zdim_range": np.int32([5, 9]),
            "data_description": b"Volume <uint16>",
            "voxel_size_xyz": np.float32([1.5, 2.0, 3.0]),
            "voxel_unit": b"um",
            "coord_transform": b"\n",
            "intensity_f2i_offset_scale": np.float32([0, 1]),
            "offset_to_coordinate_origin_xyz": np.float32([0, 0, 0]),
            "total_grid_size_xyz": np.int32([18, 15, 23]),
            "coordinate_origin_xyz": np.int32([0, 0, 0]),
            "machine": b"m1",
            "operator": b"me",
        }
        assert attributes.keys() == expected.keys()
        for key, value in expected.items():
            assert np.array_equal(attributes[key], value), key
            assert getattr(attributes[key], "dtype", None) == getattr(value, "dtype", None) or (
                isinstance(value, bytes)
            )
        voxels = file["tomo"]
        assert voxels.dtype == np.dtype("<i2")
        assert [scale[0].name for scale in voxels.dims] == [
            "/tomo_zdim",
            "/tomo_ydim",
            "/tomo_xdim",
        ]
        digest = hashlib.md5(VOXELS[5:10].tobytes(), usedforsecurity=False).digest()
        assert file["md5_checksum"][:].tobytes() == digest
    with h5py.File(tmp_path / "tomo_nc" / "block00000000.nc") as file:
        of_first = file.attrs.keys() - expected.keys() - {"_NCProperties"}
    assert of_first == {
        "dataset_id", "data_min_max", "history_20240108_085320_tomo",
        "history_20240108_085320_tomo_output",
    }  # fmt: skip


def test_other_programs_read_it(tmp_path: Path) -> None:
    import h5netcdf

    five_a_block(tomo(), tmp_path / "tomo_nc", compression_level=1)
    with h5netcdf.File(tmp_path / "tomo_nc" / "block00000000.nc") as file:
        assert file.variables["tomo"].dimensions == ("tomo_zdim", "tomo_ydim", "tomo_xdim")
        np.testing.assert_array_equal(file.variables["tomo"][...].view("uint16"), VOXELS[:5])


@pytest.mark.parametrize(
    ("name", "made", "options"),
    [
        ("tomo.nc", "tomo.nc", {}),
        ("tomo", "tomo.nc", {}),
        ("tomo_nc", "tomo_nc", {}),
        ("tomo.nc", "tomo_nc", {"max_file_size_mb": 0.001}),
        ("tomo", "tomo_nc", {"elements_per_file": 300}),
        ("tomo.nc", "tomo.nc", {"elements_per_file": None}),
    ],
)
def test_the_name_and_the_size_say_whether_it_is_a_folder(
    tmp_path: Path, name: str, made: str, options: dict[str, Any]
) -> None:
    dataset_to_netcdf(tomo(), tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == [made]
    assert_same(dataset_from_netcdf(tmp_path / made), tomo())


def test_as_many_slices_go_into_a_block_as_mango_puts_there() -> None:
    assert slices_of_file((2520, 2520, 2520), 2**28) == 40
    assert slices_of_file((2520, 2520, 2520), 2**28, rounds=False) == 43
    assert slices_of_file((100, 200, 300), 2**20) == 18
    assert slices_of_file((7, 2520, 2520), 2**28) == 7
    assert slices_of_file((9, 10, 10), 1) == 1


def test_a_log_of_any_length_is_kept(tmp_path: Path) -> None:
    """HDF5 keeps attributes above 64 KiB in another way."""
    history = {f"2024010{n}_000000_a": {"parameters": {}, "output": "x" * 200_000} for n in (1, 2)}
    dataset = tomo(history=history)
    dataset_to_netcdf(dataset, tmp_path / "tomo.nc")
    assert_same(dataset_from_netcdf(tmp_path / "tomo.nc"), dataset)


def test_to_path_goes_by_the_name(tmp_path: Path) -> None:
    dataset = tomo()
    for name in ("tomo.nc", "tomo_b_nc", "tomo_c"):
        dataset.to_path(tmp_path / name)
    dataset.to_path(tmp_path / "a.raw")
    dataset.to_path(tmp_path / "tomo_d", filetype="NetCDF", dataset_id=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.raw", "tomo.nc", "tomo_b_nc", "tomo_c.nc", "tomo_d.nc",
    ]  # fmt: skip
    for name in ("tomo.nc", "tomo_b_nc", "tomo_c.nc"):
        assert_same(Dataset.from_path(tmp_path / name), dataset)
    new = Dataset.from_path(tmp_path / "tomo_d.nc").dataset_id
    assert new is not None
    assert new.endswith("_tomo")
    assert new != dataset.dataset_id


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (tomo, {"datatype": "tomo_float"}, "float32 and the dataset is uint16"),
        (tomo, {"datatype": "jpeg"}, "not a mango data type"),
        (tomo, {"compression_level": 10}, "from 0 to 9"),
        (tomo, {"compression_level": "best"}, "from 0 to 9"),
        (tomo, {"elements_per_file": 0}, "above 0"),
        (tomo, {"max_file_size_mb": -1}, "above 0"),
        (tomo, {"zdim_range": [0, 1]}, "zdim_range"),
        (tomo, {"history_x": "y"}, "history_x"),
        (tomo, {"codec": "zstd"}, "dataset_to_zarr"),
        (tomo, {"compresion_level": 2}, "did you mean compression_level"),
        (tomo, {"resume": True, "restart": True}, "exclude"),
        (lambda: tomo(dimension_names=("x", "y", "z")), {}, "axes z, y, x"),
        (lambda: make_dataset(VOXELS[0]), {}, "axes z, y, x"),
        (lambda: make_dataset(VOXELS.astype("int64")), {"datatype": "labels"}, "int32"),
    ],
)
def test_what_mango_has_not_is_refused_and_nothing_is_touched(
    tmp_path: Path, dataset: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        dataset_to_netcdf(dataset(), tmp_path / "tomo.nc", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_volume_of_no_data_type_gets_that_of_its_name(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS.astype("uint8"))
    with pytest.raises(InvalidArgumentError, match="needs a data type"):
        dataset_to_netcdf(dataset, tmp_path / "scan.nc")
    dataset_to_netcdf(dataset, tmp_path / "segmented_a.nc")
    assert dataset_from_netcdf(tmp_path / "segmented_a.nc").datatype == "segmented"


def test_a_name_that_does_not_tell_the_type_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="does not begin with 'tomo'"):
        dataset_to_netcdf(tomo(), tmp_path / "scan.nc")
    assert_same(dataset_from_netcdf(tmp_path / "scan.nc"), tomo())


def test_further_attributes_of_any_form_are_kept(tmp_path: Path) -> None:
    extra = {"n": 3, "x": 0.5, "large": 2**40, "list": [1, 2], "text": "µ", "on": True}
    dataset = tomo(
        extra_attrs={"nested": {"a": [1]}, "none": None, "intensity_f2i_offset_scale": [1, 2]}
    )
    dataset_to_netcdf(dataset, tmp_path / "tomo.nc", **extra)
    found = dataset_from_netcdf(tmp_path / "tomo.nc").extra_attrs
    expected = {**extra, "on": 1, "nested": '{"a": [1]}', "intensity_f2i_offset_scale": [1.0, 2.0]}
    assert found.items() >= expected.items()
    assert "none" not in found


def test_blocks_that_are_whole_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "tomo_nc"
    graph = dataset_to_netcdf(tomo(), path, elements_per_file=5 * 15 * 18, compute=False)
    assert graph is not None
    write_without_commit(graph)
    (store,) = (tmp_path / ".tomo_nc.staging").glob("store-*")
    before = {file.name: file.stat().st_ino for file in store.iterdir()}
    (store / "block00000002.nc").unlink()
    (store / f".block00000003.nc.{'0' * 32}.partial").write_text("torn")
    with pytest.raises(StagingExistsError, match="n_slices"):
        dataset_to_netcdf(tomo(), path, resume=True)
    with pytest.raises(StagingExistsError, match="compression_level"):
        five_a_block(tomo(), path, resume=True, compression_level=1)
    with pytest.raises(StagingExistsError, match="attribute voxel_unit was 'um' and is now 'mm'"):
        five_a_block(tomo(voxel_unit="mm"), path, resume=True)
    with pytest.raises(StagingExistsError, match="dataset_id was '20240101_000000_tomo'"):
        five_a_block(tomo(), path, resume=True, dataset_id="another")
    five_a_block(tomo(), path, resume=True)
    assert_same(dataset_from_netcdf(path), tomo())
    after = {file.name: file.stat().st_ino for file in path.iterdir()}
    assert after.keys() == before.keys()
    same = {name for name in after if after[name] == before[name]}
    assert same >= after.keys() - {"block00000002.nc"}


def test_a_folder_with_a_note_is_not_replaced(tmp_path: Path) -> None:
    five_a_block(tomo(), tmp_path / "tomo_nc")
    (tmp_path / "tomo_nc" / "README").write_text("mine")
    with pytest.raises(DestinationExistsError, match="README"):
        five_a_block(tomo(), tmp_path / "tomo_nc", overwrite=True)


def test_a_volume_replaces_the_one_that_it_is_read_from(tmp_path: Path) -> None:
    path = tmp_path / "tomo_nc"
    five_a_block(tomo(), path)
    opened = dataset_from_netcdf(path)
    dataset_to_netcdf(opened, path, overwrite=True)
    assert [file.name for file in path.iterdir()] == ["block00000000.nc"]
    assert_same(dataset_from_netcdf(path), tomo())


def test_a_store_goes_back_to_netcdf_on_a_cluster(tmp_path: Path, cluster: Client) -> None:
    dataset_to_zarr(tomo(), tmp_path / "a.zarr", chunks=(4, 8, 8), shards=(8, 8, 16))
    five_a_block(
        dataset_from_zarr(tmp_path / "a.zarr"), tmp_path / "tomo_nc", client=cluster,
        compression_level=2,
    )  # fmt: skip
    assert_same(dataset_from_netcdf(tmp_path / "tomo_nc"), tomo())
    assert check_source(tmp_path / "tomo_nc") == []


def test_blocks_of_the_array_are_files_or_what_files_store_together(tmp_path: Path) -> None:
    five_a_block(tomo(), tmp_path / "tomo_nc")
    whole = dataset_from_netcdf(tmp_path / "tomo_nc", ignore_block_chunks=True)
    assert whole.data.chunks == ((5, 5, 5, 5, 3), (15,), (18,))
    stored = dataset_from_netcdf(tmp_path / "tomo_nc", ignore_block_chunks=False)
    assert stored.data.chunks == ((1,) * 23, (15,), (18,))
    np.testing.assert_array_equal(da.concatenate([whole.data, stored.data]), [*VOXELS, *VOXELS])
