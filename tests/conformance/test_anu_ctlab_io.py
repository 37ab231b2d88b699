"""The CTLab's own Python package reads what this one writes, and the other way round."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, OMEZarrVersion, dataset_from_zarr, dataset_to_zarr

if sys.version_info < (3, 12):
    pytest.skip("anu_ctlab_io needs Python 3.12", allow_module_level=True)
anu_ctlab_io = pytest.importorskip("anu_ctlab_io", reason="anu_ctlab_io is not installed")
anu_zarr = pytest.importorskip("anu_ctlab_io.zarr", reason="anu_ctlab_io lacks its zarr extra")

HISTORY = {"20240108_085320_tomo_RMG": {"parameters": {"a": {"b": "1"}}, "output": "log"}}
DATASET_ID = "20240108_085320_tomoA"
DTYPES = {"tomo": "uint16", "tomo_float": "float32", "segmented": "uint8", "labels": "int32"}
SHAPE = (40, 65, 97)
each_layout = pytest.mark.parametrize("layout", ["ome", "plain"])


def version(layout: str, enum: Any = OMEZarrVersion) -> Any:
    return enum.v05 if layout == "ome" else None


def theirs(datatype: str = "tomo", **changes: Any) -> Any:
    """Return a dataset of anu_ctlab_io whose blocks are the shards it will write."""
    voxels = np.random.default_rng(5).integers(0, 200, SHAPE).astype(DTYPES[datatype])
    described: dict[str, Any] = {
        "dimension_names": ("z", "y", "x"),
        "voxel_unit": anu_ctlab_io.VoxelUnit.UM,
        "voxel_size": (np.float32(2.5),) * 3,
        "datatype": anu_ctlab_io.DataType.from_basename(datatype),
        "history": HISTORY,
        "dataset_id": DATASET_ID,
    }
    return anu_ctlab_io.Dataset(
        da.from_array(voxels, chunks=(16, *SHAPE[1:])), **(described | changes)
    )


def assert_same_volume(ours: Dataset, other: Any) -> None:
    assert ours.data.dtype == other.data.dtype
    np.testing.assert_array_equal(ours.data.compute(), other.data.compute())
    assert ours.dimension_names == tuple(other.dimension_names)
    assert ours.voxel_size == pytest.approx(tuple(map(float, other.voxel_size)), rel=1e-7)
    assert str(ours.voxel_unit) == other.voxel_unit.value
    assert str(ours.datatype) == str(other._datatype)
    assert ours.dataset_id == other.dataset_id
    assert ours.history == other.history
    assert ours.mask_value == other.mask_value


def test_it_reads_every_form_of_volume_that_is_written_here(case: Any, written: Any) -> None:
    if len(case.shape) == 2 and case.layout == "ome":
        pytest.skip("anu_ctlab_io reads groups of three axes only")
    found = anu_ctlab_io.Dataset.from_path(written.path)
    written.assert_equal(found.data.compute())
    assert tuple(found.dimension_names) == written.dataset.dimension_names
    sizes = tuple(map(float, found.voxel_size))
    if case.layout == "plain":
        # It takes voxel_size_xyz for the order of the axes, which is right for cubic voxels only.
        sizes = sizes[: len(case.shape)][::-1]
    assert sizes == written.dataset.voxel_size
    assert found.voxel_unit.value == str(written.dataset.voxel_unit)
    assert str(found._datatype) == str(written.dataset.datatype)
    assert found.history == written.dataset.history
    assert found.dataset_id == written.dataset.dataset_id


@each_layout
@pytest.mark.parametrize("unit", ["m", "cm", "mm", "um", "nm", "angstrom", "voxel"])
def test_both_read_the_same_of_what_is_written_here(
    layout: str, unit: str, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset = make_dataset(voxel_unit=unit, voxel_size=(2.5, 2.5, 2.5))
    dataset_to_zarr(dataset, tmp_path / "scan.zarr", ome_zarr_version=version(layout))
    found = anu_ctlab_io.Dataset.from_path(tmp_path / "scan.zarr")
    assert_same_volume(dataset, found)
    assert_same_volume(dataset_from_zarr(tmp_path / "scan.zarr"), found)


def test_it_reads_a_voxel_size_that_stands_on_the_multiscales_entry(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset_to_zarr(make_dataset(), tmp_path / "scan.zarr", scale_placement="multiscales")
    found = anu_ctlab_io.Dataset.from_path(tmp_path / "scan.zarr")
    assert tuple(found.voxel_size) == (3.0, 2.0, 1.5)


@each_layout
@pytest.mark.parametrize("datatype", list(DTYPES))
@pytest.mark.parametrize("sharding", ["own choice", "several shards"])
def test_what_it_writes_is_read_here(
    layout: str, datatype: str, sharding: str, tmp_path: Path
) -> None:
    written = theirs(datatype)
    options: dict[str, Any] = {}
    if sharding == "several shards":
        options = {"chunks": (8, *SHAPE[1:]), "shards": (16, *SHAPE[1:])}
    else:
        written._data = written.data.rechunk(-1)
    written.to_path(
        tmp_path / "theirs.zarr",
        ome_zarr_version=version(layout, anu_zarr.OMEZarrVersion),
        **options,
    )
    assert_same_volume(dataset_from_zarr(tmp_path / "theirs.zarr"), written)
    assert_same_volume(Dataset.from_path(tmp_path / "theirs.zarr"), written)


def test_the_voxel_size_of_a_group_it_wrote_is_that_of_its_ome_scale(tmp_path: Path) -> None:
    # The same list stands in its voxel_size_xyz, which contradicts the scale.
    sizes = tuple(map(np.float32, (3.0, 2.0, 1.5)))
    theirs(voxel_size=sizes).to_path(tmp_path / "theirs.zarr")
    assert dataset_from_zarr(tmp_path / "theirs.zarr").voxel_size == (3.0, 2.0, 1.5)


def test_the_voxel_size_of_an_array_it_wrote_is_taken_as_x_y_z(tmp_path: Path) -> None:
    sizes = tuple(map(np.float32, (3.0, 2.0, 1.5)))
    theirs(voxel_size=sizes).to_path(tmp_path / "theirs.zarr", ome_zarr_version=None)
    assert dataset_from_zarr(tmp_path / "theirs.zarr").voxel_size == (1.5, 2.0, 3.0)


@each_layout
@pytest.mark.parametrize("datatype", list(DTYPES))
def test_its_dataset_is_written_as_it_is(layout: str, datatype: str, tmp_path: Path) -> None:
    dataset = theirs(datatype, voxel_size=tuple(map(np.float32, (3.0, 2.0, 1.5))))
    dataset_to_zarr(
        dataset,
        tmp_path / "ours.zarr",
        ome_zarr_version=version(layout),
        chunks=(16, 32, 32),
        shards=(32, 64, 64),
    )
    assert_same_volume(dataset_from_zarr(tmp_path / "ours.zarr"), dataset)


def test_its_dataset_without_a_data_type_is_written_with_its_metadata(tmp_path: Path) -> None:
    dataset = theirs()
    dataset._datatype = None
    dataset_to_zarr(dataset, tmp_path / "ours.zarr")
    found = dataset_from_zarr(tmp_path / "ours.zarr")
    assert (found.datatype, found.dataset_id, found.history) == (None, DATASET_ID, HISTORY)


@pytest.mark.parametrize("name", ["tomoHiRes_SS_nc", "tomoLoRes_SS.nc", "tomoLoRes.zarr"])
def test_a_real_volume_that_it_opened_is_written_as_it_is(
    name: str, tmp_path: Path, real: Callable[[str], Any]
) -> None:
    path, voxels = real(name)
    opened = anu_ctlab_io.Dataset.from_path(path)
    dataset_to_zarr(opened, tmp_path / "ours.zarr")
    found = dataset_from_zarr(tmp_path / "ours.zarr")
    np.testing.assert_array_equal(found.data.compute(), voxels)
    assert_same_volume(found, opened)


@pytest.mark.parametrize("name", ["tomoHiRes_SS_nc", "tomoLoRes_SS.nc", "tomoLoRes.zarr"])
def test_both_open_a_real_volume_with_the_same_voxels_size_and_id(
    name: str, real: Callable[[str], Any]
) -> None:
    path, voxels = real(name)
    ours, other = Dataset.from_path(path), anu_ctlab_io.Dataset.from_path(path)
    np.testing.assert_array_equal(ours.data.compute(), voxels)
    np.testing.assert_array_equal(other.data.compute(), voxels)
    assert ours.voxel_size == pytest.approx(tuple(map(float, other.voxel_size)), rel=1e-7)
    assert str(ours.voxel_unit) == other.voxel_unit.value
    assert str(ours.datatype) == str(other._datatype)
    assert ours.dataset_id == other.dataset_id
