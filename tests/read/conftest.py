"""Volumes to read: real ones where they are present, and written ones of every form."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ctlab_dask_zarr.demo import write_mango_netcdf

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def real_folder() -> Path:
    """Return a folder of six blocks that mango wrote."""
    return _real("tomoHiRes_SS_nc")


@pytest.fixture
def real_file() -> Path:
    """Return a single file that mango wrote."""
    return _real("tomoLoRes_SS.nc")


def _real(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there: CTLab's sample files are not part of this repository")
    return path


@pytest.fixture(scope="session")
def voxels() -> npt.NDArray[np.uint16]:
    """Return 23 x 14 x 17 voxels over the whole range of their type."""
    return np.random.default_rng(1).integers(0, 2**16, (23, 14, 17), np.uint16)


@pytest.fixture
def folder(tmp_path: Path, voxels: npt.NDArray[np.uint16]) -> Path:
    """Return a folder of five blocks."""
    return Path(write_mango_netcdf(tmp_path / "tomoX_nc", voxels, slices_per_block=5))
