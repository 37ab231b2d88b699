"""What anu_ctlab_io's own writers of netCDF and raw do, these do too, and its reader reads it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, dataset_from_netcdf, dataset_to_netcdf, dataset_to_raw

if sys.version_info < (3, 12):
    pytest.skip("anu_ctlab_io needs Python 3.12", allow_module_level=True)
anu_ctlab_io = pytest.importorskip("anu_ctlab_io", reason="anu_ctlab_io is not installed")
anu_netcdf = pytest.importorskip(
    "anu_ctlab_io.netcdf", reason="anu_ctlab_io lacks its netcdf extra"
)
# It says so of every file that is opened.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPE = (50, 20, 30)
#: As `parameters` of a history are read by both, and logs by it alone.
PARAMETERS: dict[str, Any] = {
    "base": "parms_1",
    "is_on": True,
    "empty": "",
    "Run_00": {"threshold": [0.5, 1.5], "Subset": {"size_x": "300"}, "comment": "a b"},
}
HISTORY = {
    "20250314_012913_tomo": {"parameters": PARAMETERS, "output": "machine: m1\nstart time: today"}
}


def theirs(dtype: str = "uint16", chunks: Any = (10, 20, 30), **changes: Any) -> Any:
    voxels = np.random.default_rng(2).integers(0, 60000, SHAPE).astype(dtype)
    described: dict[str, Any] = {
        "dimension_names": ("z", "y", "x"),
        "voxel_unit": anu_ctlab_io.VoxelUnit.MM,
        "voxel_size": (np.float32(0.05),) * 3,
        "datatype": anu_ctlab_io.DataType.TOMO,
    }
    return anu_ctlab_io.Dataset(da.from_array(voxels, chunks=chunks), **(described | changes))


def ours(**changes: Any) -> Dataset:
    voxels = np.random.default_rng(2).integers(0, 60000, SHAPE).astype("uint16")
    described: dict[str, Any] = {
        "dimension_names": ("z", "y", "x"), "voxel_unit": "mm", "voxel_size": (0.05,) * 3,
        "datatype": "tomo", "history": HISTORY, "dataset_id": "20250314_012913_tomo",
    }  # fmt: skip
    return Dataset(da.from_array(voxels, chunks=(16, 20, 30)), **(described | changes))


def assert_they_read(path: Path, dataset: Any, **options: Any) -> Any:
    found = anu_ctlab_io.Dataset.from_path(path, **options)
    assert found.data.dtype == dataset.data.dtype
    np.testing.assert_array_equal(found.data.compute(), dataset.data.compute())
    assert found.voxel_unit.value == str(getattr(dataset.voxel_unit, "value", dataset.voxel_unit))
    assert tuple(map(str, found.dimension_names)) == ("z", "y", "x")
    np.testing.assert_allclose(found.voxel_size, dataset.voxel_size, rtol=1e-7)
    return found


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("chunks", [SHAPE, (10, 10, 7)])
@pytest.mark.parametrize(
    ("name", "made", "options"),
    [
        ("tomo_a.nc", "tomo_a.nc", {}),
        ("tomo_a.nc", "tomo_a.nc", {"max_file_size_mb": None}),
        ("tomo_a.nc", "tomo_a_nc", {"max_file_size_mb": 0.02}),
        ("tomo_a", "tomo_a_nc", {"max_file_size_mb": 0.02}),
        ("tomo_a", "tomo_a.nc", {}),
    ],
)
def test_its_datasets_are_written_to_the_names_it_gives_and_it_reads_them(
    tmp_path: Path, level: int, chunks: Any, name: str, made: str, options: dict[str, Any]
) -> None:
    dataset = theirs(chunks=chunks)
    with dask.config.set(num_workers=8, scheduler="threads"):
        dataset_to_netcdf(
            dataset, tmp_path / name, dataset_id="given", compression_level=level, **options
        )
    assert [path.name for path in tmp_path.iterdir()] == [made]
    found = assert_they_read(tmp_path / made, dataset)
    assert found.dataset_id == "given"
    if made.endswith("_nc"):
        names = sorted(path.name for path in (tmp_path / made).iterdir())
        assert names == [f"block{n:08d}.nc" for n in range(3)]


@pytest.mark.parametrize("chunks", [SHAPE, (10, 20, 30), (8, 10, 4)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_its_datasets_are_written_raw_as_it_does(tmp_path: Path, chunks: Any, dtype: str) -> None:
    dataset = theirs(dtype, chunks, datatype=None)
    dataset_to_raw(dataset, tmp_path / "ours.raw")
    dataset.to_path(tmp_path / "theirs.raw")
    assert (tmp_path / "ours.raw").read_bytes() == (tmp_path / "theirs.raw").read_bytes()


def test_two_deferred_exports_are_computed_together(tmp_path: Path) -> None:
    dataset = theirs()
    halves = [theirs().data[:25], theirs().data[25:]]
    graphs = []
    for n, half in enumerate(halves):
        part = anu_ctlab_io.Dataset.from_modified(dataset, data=half)
        graphs += [
            dataset_to_netcdf(part, tmp_path / f"tomo_{n}", max_file_size_mb=0.01, compute=False),
            dataset_to_raw(part, tmp_path / f"{n}.raw", compute=False),
        ]
    assert list(tmp_path.iterdir()) == []
    dask.compute(*graphs)
    for n, half in enumerate(halves):
        voxels = half.compute()
        found = anu_ctlab_io.Dataset.from_path(tmp_path / f"tomo_{n}_nc")
        np.testing.assert_array_equal(found.data.compute(), voxels)
        assert (tmp_path / f"{n}.raw").read_bytes() == voxels.tobytes()


@pytest.mark.parametrize("is_folder", [False, True])
def test_both_read_the_same_history_of_what_is_written_here(
    tmp_path: Path, is_folder: bool
) -> None:
    path = tmp_path / ("tomo_nc" if is_folder else "tomo.nc")
    dataset_to_netcdf(ours(), path, elements_per_file=10_000 if is_folder else None)
    found = assert_they_read(path, ours())
    assert found.dataset_id == ours().dataset_id
    # It has parameters and output as two entries.
    assert found.history == {
        "20250314_012913_tomo": PARAMETERS,
        "20250314_012913_tomo_output": {"machine": "m1", "start time": "today"},
    }
    assert dataset_from_netcdf(path).history == HISTORY


def test_a_history_that_it_has_read_goes_through_it_and_back(tmp_path: Path) -> None:
    """Its own round trip: what it has read is written here, and it reads the same."""
    dataset_to_netcdf(ours(), tmp_path / "tomo_a.nc")
    read = anu_ctlab_io.Dataset.from_path(tmp_path / "tomo_a.nc")
    dataset_to_netcdf(read, tmp_path / "tomo_b.nc")
    assert anu_ctlab_io.Dataset.from_path(tmp_path / "tomo_b.nc").history == read.history
    read.add_to_history("20260128_crop", {"operation": "crop", "z_range": [10, 50]})
    dataset_to_netcdf(read, tmp_path / "tomo_c.nc")
    again = anu_ctlab_io.Dataset.from_path(tmp_path / "tomo_c.nc").history
    assert again == read.history
    written = {"operation": "crop", "z_range": [10, 50]}
    found = dataset_from_netcdf(tmp_path / "tomo_c.nc").history["20260128_crop"]
    assert found == {"parameters": written, "output": ""}


def test_voxels_that_are_no_cubes_are_in_the_order_x_y_z(tmp_path: Path) -> None:
    """It writes and reads them in the order of the axes, so that it takes z for x."""
    size = (0.03, 0.02, 0.01)
    dataset_to_netcdf(ours(voxel_size=size), tmp_path / "tomo_ours.nc")
    assert dataset_from_netcdf(tmp_path / "tomo_ours.nc").voxel_size == pytest.approx(size)
    found = anu_ctlab_io.Dataset.from_path(tmp_path / "tomo_ours.nc")
    np.testing.assert_allclose(found.voxel_size, size[::-1], rtol=1e-6)
    anu_netcdf.dataset_to_netcdf(theirs(voxel_size=size), tmp_path / "tomo_theirs.nc")
    assert dataset_from_netcdf(tmp_path / "tomo_theirs.nc").voxel_size == pytest.approx(size[::-1])


def test_what_it_writes_is_read_here(tmp_path: Path) -> None:
    anu_netcdf.dataset_to_netcdf(theirs(), tmp_path / "tomo_a", max_file_size_mb=0.02)
    found = dataset_from_netcdf(tmp_path / "tomo_a_nc")
    np.testing.assert_array_equal(found.data.compute(), theirs().data.compute())
    assert str(found.datatype) == "tomo"
