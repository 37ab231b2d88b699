"""TIFF that is exported is read by our reader and by tifffile, with size and unit for ImageJ."""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    InvalidArgumentError,
    MissingExtraError,
    VoxelUnit,
    dataset_to_tiff,
)
from ctlab_dask_zarr.export import tiff
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((6, 40, 50))
NAMES = ["slices", "a.tif", "a.ome.tif"]
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [*TYPES, ">u2"])
def test_voxels_size_and_unit_come_back(tmp_path: Path, name: str, dtype: str) -> None:
    voxels = VOXELS.astype(dtype)
    dataset_to_tiff(make_dataset(voxels, (4, 20 if dtype == "uint16" else 40, 50)), tmp_path / name)
    found = Dataset.from_path(tmp_path / name)
    np.testing.assert_array_equal(found.data.compute(), voxels)
    assert found.dtype == voxels.dtype.newbyteorder("=")
    assert (found.voxel_size, str(found.voxel_unit)) == ((3.0, 2.0, 1.5), "um")
    path = tmp_path / name
    pages = sorted(path.iterdir()) if path.is_dir() else path
    np.testing.assert_array_equal(tifffile.imread(pages), voxels)


def test_imagej_finds_unit_spacing_and_pixels_per_unit(tmp_path: Path) -> None:
    dataset_to_tiff(make_dataset(VOXELS), tmp_path / "a.tif")
    dataset_to_tiff(make_dataset(VOXELS), tmp_path / "slices")
    for path, n in [(tmp_path / "a.tif", 6), (tmp_path / "slices" / "slice_0005.tif", 1)]:
        with tifffile.TiffFile(path) as file:
            assert file.is_imagej
            assert file.byteorder == "<"
            assert not file.is_bigtiff
            assert len(file.pages) == n
            found = file.imagej_metadata
            assert (found["unit"], found["spacing"]) == ("um", 3.0)
            assert found["images"] == n
            tags = file.pages[0].tags
            assert tags["XResolution"].value == (2, 3)
            assert tags["YResolution"].value == (1, 2)
            assert tags["ResolutionUnit"].value == 1


def test_ome_has_the_lengths_of_all_axes(tmp_path: Path) -> None:
    dataset_to_tiff(make_dataset(VOXELS.astype("int32")), tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        assert file.series[0].axes == "ZYX"
        (pixels,) = [
            image["Pixels"] for image in [tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]]
        ]
    sizes = {axis: pixels[f"PhysicalSize{axis}"] for axis in "XYZ"}
    assert sizes == {"X": 1.5, "Y": 2.0, "Z": 3.0}
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"µm"}
    assert pixels["Type"] == "int32"


def test_more_than_4_gib_is_a_bigtiff_with_size_and_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "_MAX_NBYTES", VOXELS.nbytes - 1)
    dataset_to_tiff(make_dataset(VOXELS), tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.is_ome
        assert len(file.pages) == 6
    found = Dataset.from_path(tmp_path / "a.tif")
    assert (found.voxel_size, str(found.voxel_unit)) == ((3.0, 2.0, 1.5), "um")
    np.testing.assert_array_equal(found.data.compute(), VOXELS)


def test_the_pages_of_a_volume_of_30_gib_are_all_there(tmp_path: Path) -> None:
    """The file has holes in place of voxels, so that it takes no space."""
    volume = Dataset(
        da.zeros((2520, 2520, 2520), dtype="uint16", chunks=(40, -1, -1)),
        dimension_names="zyx", voxel_unit="um", voxel_size=(2.37, 2.37, 2.37),
    )  # fmt: skip
    kind = tiff.TiffStackKind.of(volume, ome=False)
    path = tmp_path / "a.tif"
    begins, dtype = kind.allocate(str(path))
    assert dtype == np.dtype("<u2")
    if os.stat(path).st_blocks * 512 > 100e6:
        path.unlink()
        pytest.fail("the file takes its whole size at once")
    found = Dataset.from_path(path)
    assert (found.shape, found.voxel_size) == ((2520, 2520, 2520), (2.37, 2.37, 2.37))
    assert path.stat().st_size >= begins + volume.data.nbytes
    assert int(found.data[2519, 2519, 2519]) == 0


@pytest.mark.parametrize("unit", list(VoxelUnit))
@pytest.mark.parametrize("length", [1e-7, 2.37, 0.123456789, 5e5])
@pytest.mark.parametrize("ome", [False, True])
def test_any_length_in_any_unit(tmp_path: Path, unit: VoxelUnit, length: float, ome: bool) -> None:
    size = (2 * length, length, 3 * length)
    scan = make_dataset(VOXELS[:2], voxel_size=size, voxel_unit=unit)
    tiff.TiffStackKind.of(scan, ome=ome).allocate(str(tmp_path / "a.tif"))
    is_known = unit is not VoxelUnit.VOXEL
    given: dict[str, Any] = {} if is_known else {"voxel_size": size, "voxel_unit": unit}
    found = Dataset.from_path(tmp_path / "a.tif", **given)
    assert found.voxel_size_with_unit(unit) == pytest.approx(size, rel=1e-9)


def test_numbers_have_as_many_digits_as_they_need(tmp_path: Path) -> None:
    long = make_dataset(np.zeros((10_002, 1, 1), "uint8"))
    names = [file.name for file in tiff.TiffSlicesKind.of(long).files()]
    assert names == sorted(names)
    assert names[-1] == "slice_10001.tif"


def test_an_image_of_two_axes(tmp_path: Path) -> None:
    image = make_dataset(VOXELS[0])
    dataset_to_tiff(image, tmp_path / "a.tif")
    found = Dataset.from_path(tmp_path / "a.tif", voxel_size=1, voxel_unit="um")
    np.testing.assert_array_equal(found.data.compute(), VOXELS[0])
    with pytest.raises(InvalidArgumentError, match="no slices for a folder"):
        dataset_to_tiff(image, tmp_path / "slices")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "int64", "uint64"])
def test_a_type_that_programs_do_not_read_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"TIFF of {dtype}.*float32"):
        dataset_to_tiff(make_dataset(VOXELS.astype(dtype)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_tifffile_the_extra_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"ctlab-dask-zarr\[tiff\]"):
        dataset_to_tiff(make_dataset(VOXELS), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_slices_are_written_where_tifffile_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of slices needs no tifffile: the header of all slices comes with the task."""
    kind = tiff.TiffSlicesKind.of(make_dataset(VOXELS))
    imported: list[str] = []
    real = builtins.__import__

    def watched(name: str, *rest: Any, **more: Any) -> Any:
        imported.append(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    kind.write(str(tmp_path / "a.tif"), kind.files()[2], iter([VOXELS[2:3]]))
    assert "tifffile" not in imported
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), VOXELS[2])


def test_a_folder_with_slices_of_another_program_is_not_replaced(
    tmp_path: Path, snapshot: Any
) -> None:
    (tmp_path / "slices").mkdir()
    tifffile.imwrite(tmp_path / "slices" / "rec_0000.tif", VOXELS[0])
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"holds 'rec_0000\.tif'"):
        dataset_to_tiff(make_dataset(VOXELS), tmp_path / "slices", overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("n", [3, 4])
def test_a_few_slices_are_not_taken_for_colours(n: int, tmp_path: Path) -> None:
    voxels = random_voxels((n, 5, 6))
    dataset_to_tiff(make_dataset(voxels), tmp_path / "a.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").reshape(n, 5, 6), voxels)
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.tif").data, voxels)
