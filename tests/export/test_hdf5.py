"""HDF5 that is exported is NeXus: our reader, h5py and nexusformat find voxels, axes and units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest

from ctlab_dask_zarr import (
    Dataset,
    IncompleteDatasetError,
    InvalidArgumentError,
    VoxelSizeError,
    export_dataset,
)
from ctlab_dask_zarr.export import hdf5
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((23, 40, 50))
ARRAY = "entry/data/data"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four slices, in files of two chunks."""
    monkeypatch.setattr(hdf5, "_CHUNK_NBYTES", 4 * 40 * 50 * 2 + 1)
    monkeypatch.setattr(hdf5, "_PIECE_NBYTES", 8 * 40 * 50 * 2)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", ">u2", "int32", "int64", "float16", "float32"]
)
@pytest.mark.usefixtures("small_chunks")
def test_voxels_size_and_unit_come_back(tmp_path: Path, level: int, dtype: str) -> None:
    voxels, blocks = VOXELS.astype(dtype), (8, 40, 25) if dtype == "uint16" else (5, 40, 50)
    path = tmp_path / "a.h5"
    result = export_dataset(make_dataset(voxels, blocks), path, compression_level=level)
    assert result == (str(path), 1, path.stat().st_size)
    found = Dataset.from_path(path)
    np.testing.assert_array_equal(found.data.compute(), voxels)
    assert (found.voxel_size, str(found.voxel_unit)) == ((3.0, 2.0, 1.5), "um")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[ARRAY][...], voxels)
        assert file[ARRAY].dtype == voxels.dtype.newbyteorder("<")
        assert file[ARRAY].compression == ("gzip" if level else None)
        assert (file[ARRAY].chunks is None) == (level == 0)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_are_whole_slices_and_shuffled(tmp_path: Path) -> None:
    for dtype, height in (("uint16", 4), ("uint8", 8)):
        path = tmp_path / f"{dtype}.h5"
        export_dataset(make_dataset(VOXELS.astype(dtype)), path, compression_level=1)
        with h5py.File(path) as file:
            assert file[ARRAY].chunks == (height, 40, 50)
            assert file[ARRAY].shuffle == (dtype == "uint16")
            assert file[ARRAY].id.get_num_chunks() == -(-23 // height)


def test_nexus_finds_signal_axes_and_units(tmp_path: Path) -> None:
    nexus = pytest.importorskip("nexusformat.nexus")
    scan = make_dataset(VOXELS, origin=(6.0, 4.0, -3.0), dataset_id="20250101_000000_tomo")
    export_dataset(scan, tmp_path / "a.nxs")
    with nexus.nxload(tmp_path / "a.nxs") as root:
        data = root.plottable_data
        assert data.nxsignal.shape == VOXELS.shape
        assert [axis.nxname for axis in data.nxaxes] == ["z", "y", "x"]
        assert {axis.attrs["units"] for axis in data.nxaxes} == {"um"}
        assert [axis.nxdata[0] for axis in data.nxaxes] == [6.0, 4.0, -3.0]
        assert np.allclose(np.diff(data.nxaxes[0].nxdata), 3.0)
        assert root["entry/entry_identifier"].nxdata == b"20250101_000000_tomo"


def test_facts_of_the_volume_are_attributes(tmp_path: Path) -> None:
    scan = make_dataset(VOXELS, history={"20250101_000000_tomo": {"kept": "yes"}})
    export_dataset(scan, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        attributes = dict(file[ARRAY].attrs)
        history = file["entry/history/data"].asstr()[()]
    assert attributes.pop("element_size_um").tolist() == [3.0, 2.0, 1.5]
    assert attributes == {"long_name": "tomo", "mask_value": 65535}
    assert history == '{"20250101_000000_tomo": {"kept": "yes"}}'


@pytest.mark.parametrize("names", [("data", "y", "x"), ("a/b", "y", "x"), ("..", "y", "x")])
def test_axes_with_names_that_hdf5_takes_otherwise_are_z_y_x(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    export_dataset(make_dataset(VOXELS, dimension_names=names), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/data"].attrs["axes"].tolist() == ["z", "y", "x"]
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.h5").data.compute(), VOXELS)


@pytest.mark.parametrize("level", [0, 1])
def test_an_image_and_a_size_in_voxels(tmp_path: Path, level: int) -> None:
    image = make_dataset(VOXELS[0], voxel_unit="voxel")
    export_dataset(image, tmp_path / "a.h5", compression_level=level)
    path = f"{tmp_path}/a.h5::/{ARRAY}"
    with pytest.raises(VoxelSizeError):
        Dataset.from_path(path)
    found = Dataset.from_path(path, voxel_size=1, voxel_unit="um")
    np.testing.assert_array_equal(found.data.compute(), VOXELS[0])


@pytest.mark.parametrize("level", [-1, 10, 1.5, "9", None])
def test_a_level_that_gzip_does_not_have(tmp_path: Path, level: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="none of 0 to 9"):
        export_dataset(make_dataset(VOXELS), tmp_path / "a.h5", compression_level=level)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_chunks")
def test_chunks_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    """The last block fails once; then only files of chunks that were not complete are written."""
    made: list[int] = []
    is_broken = True

    def fragile(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        number = block_info[0]["chunk-location"][0]
        if number == 2 and is_broken:
            raise OSError("no more")
        made.append(number)
        return block

    data = make_dataset(VOXELS, (8, 40, 50)).data.map_blocks(fragile, dtype="uint16", name="f")
    path, options = tmp_path / "a.h5", {"compression_level": 1}
    with dask.config.set(scheduler="sync"):
        with pytest.raises(Exception, match="no more"):
            export_dataset(make_dataset(data), path, **options)
        is_broken = False
        expected = {0, 1, 2}.difference(made)
        made.clear()
        with pytest.raises(Exception, match="compression_level was 1 and is now 2"):
            export_dataset(make_dataset(data), path, compression_level=2, resume=True)
        export_dataset(make_dataset(data), path, **options, resume=True)
    assert set(made) == expected
    np.testing.assert_array_equal(Dataset.from_path(path).data.compute(), VOXELS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.usefixtures("small_chunks")
def test_a_commit_that_died_while_it_put_chunks_together_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scan = tmp_path / "a.h5", make_dataset(VOXELS, (8, 40, 50))
    real = hdf5.CompressedHDF5Kind.join

    def dies(self: Any, paths: Any, path: str) -> None:
        real(self, paths[:-1], path)
        raise IncompleteDatasetError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(hdf5.CompressedHDF5Kind, "join", dies)
        with pytest.raises(IncompleteDatasetError, match="killed"):
            export_dataset(scan, path, compression_level=1)
    assert not path.exists()
    export_dataset(scan, path, compression_level=1, resume=True)
    np.testing.assert_array_equal(Dataset.from_path(path).data.compute(), VOXELS)
