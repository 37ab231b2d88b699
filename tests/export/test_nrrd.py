"""Raw voxels with a header are read by our reader, pynrrd and ITK, with size, unit and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    UnsupportedFormatError,
    export_dataset,
)
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((6, 40, 50))
TYPES = ["uint8", "int8", "uint16", ">u2", "int32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(6, 40, 50), (40, 50)])
def test_voxels_size_unit_and_origin_come_back(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    voxels = random_voxels(shape, dtype)
    origin = (6.0, 4.0, -3.0)[-len(shape) :]
    path = tmp_path / "my scan.nhdr"
    result = export_dataset(make_dataset(voxels, origin=origin), path)
    assert result.destination == str(tmp_path / "my scan.raw")
    assert result.n_files == 2
    found = Dataset.from_path(path)
    np.testing.assert_array_equal(found.data.compute(), voxels)
    assert found.voxel_size == (3.0, 2.0, 1.5)[-len(shape) :]
    assert (str(found.voxel_unit), found.origin) == ("um", origin)
    theirs, header = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(theirs, voxels)
    assert header["space units"] == ["um"] * len(shape)
    assert header["space origin"].tolist() == list(origin[::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_itk_finds_voxels_spacing_and_origin(tmp_path: Path, dtype: str) -> None:
    """3D Slicer reads by the same library."""
    itk = pytest.importorskip("SimpleITK")
    voxels = VOXELS.astype(dtype)
    export_dataset(make_dataset(voxels, origin=(6.0, 4.0, -3.0)), tmp_path / "a.nhdr")
    image = itk.ReadImage(str(tmp_path / "a.nhdr"))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), voxels)
    assert image.GetSpacing() == (1.5, 2.0, 3.0)
    assert image.GetOrigin() == (-3.0, 4.0, 6.0)
    assert np.reshape(image.GetDirection(), (3, 3)).tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("there", ["a.raw", "a.nhdr"])
def test_neither_file_is_replaced_unless_that_is_asked_for(
    tmp_path: Path, there: str, snapshot: Any
) -> None:
    (tmp_path / there).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match=f"{there} exists"):
        export_dataset(make_dataset(VOXELS), tmp_path / "a.nhdr")
    assert snapshot(tmp_path) == before
    export_dataset(make_dataset(VOXELS), tmp_path / "a.nhdr", overwrite=True)
    found = Dataset.from_path(tmp_path / "a.nhdr")
    np.testing.assert_array_equal(found.data.compute(), VOXELS)


def test_a_folder_in_the_place_of_the_header_stays(tmp_path: Path) -> None:
    (tmp_path / "a.nhdr").mkdir()
    with pytest.raises(DestinationExistsError, match="it is no file"):
        export_dataset(make_dataset(VOXELS), tmp_path / "a.nhdr", overwrite=True)


def test_a_type_that_nrrd_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="NRRD has no voxels of type float16"):
        export_dataset(make_dataset(VOXELS.astype("float16")), tmp_path / "a.nhdr")
    assert list(tmp_path.iterdir()) == []
