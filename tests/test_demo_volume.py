"""The synthetic volume of the demonstration, and the mango netCDF it is written to."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from ctlab_dask_zarr.demo import synthetic_volume, write_mango_netcdf
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.read.netcdf import open_volume


def test_slabs_of_any_thickness_show_the_same_volume() -> None:
    volume = synthetic_volume((24, 48, 40), seed=3)
    whole = volume[:]
    assert whole.dtype == np.uint16
    assert np.array_equal(np.concatenate([volume[z : z + 7] for z in range(0, 24, 7)]), whole)
    assert np.array_equal(volume[5:9, 3, ::-2], whole[5:9, 3, ::-2])
    assert np.array_equal(synthetic_volume((24, 48, 40), seed=3)[:], whole)
    assert not np.array_equal(synthetic_volume((24, 48, 40), seed=4)[:], whole)


def test_it_has_grains_pores_noise_and_a_masked_rim() -> None:
    voxels = synthetic_volume((64, 128, 128))[:]
    assert (voxels[:, 0, 0] == 65535).all()
    inside = voxels[voxels < 65535]
    assert 0.7 < inside.size / voxels.size < 0.8
    pores = (inside < 22_000).mean()
    assert 0.1 < pores < 0.5
    levels, _ = np.histogram(inside, bins=[22_000, 29_000, 37_000, 65_535])
    assert (levels > 0).all()
    assert 400 < inside[inside < 18_000].std() < 600


def test_the_file_is_what_mango_writes(tmp_path: Path) -> None:
    volume = synthetic_volume((10, 16, 18))
    calls: list[tuple[int, int]] = []
    path = write_mango_netcdf(
        tmp_path / "tomoX_nc",
        volume,
        slices_per_block=4,
        history={"20250101_000000_synthetic": ("a 1\n", "")},
        on_block=lambda done, total: calls.append((done, total)),
    )
    assert sorted(p.name for p in Path(path).iterdir()) == [
        f"block{number:08d}.nc" for number in range(3)
    ]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    with h5py.File(Path(path) / "block00000000.nc") as file:
        variable = file["tomo"]
        assert variable.dtype == np.int16
        assert variable.chunks == variable.shape == (4, 16, 18)
        assert (variable.compression, variable.compression_opts) == ("gzip", 2)
        assert [dim[0].name for dim in variable.dims] == [
            *("/tomo_zdim", "/tomo_ydim", "/tomo_xdim"),
        ]
        assert file.attrs["zdim_range"].tolist() == [0, 3]
        assert file.attrs["total_grid_size_xyz"].tolist() == [18, 16, 10]
        assert isinstance(file.attrs["history_20250101_000000_synthetic_output"], h5py.Empty)
        assert file["md5_checksum"].dtype == np.int8
    with h5py.File(Path(path) / "block00000001.nc") as file:
        assert "dataset_id" not in file.attrs
    dataset = open_volume(path)
    assert np.array_equal(dataset.data.compute(), volume[:])
    assert [check() for check in dataset.source.checks().tasks] == [[]] * 3


def test_a_volume_of_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'labels' is int32 and the volume is uint16"):
        write_mango_netcdf(tmp_path / "x.nc", np.zeros((2, 3, 4), np.uint16), datatype="labels")
