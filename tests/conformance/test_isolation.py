"""Neither a reader, nor a viewer, nor a network is needed to write and to read."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

# Not zarrs: zarr itself imports every codec pipeline that is installed.
UNWANTED = {
    "anu_ctlab_io", "bioio_ome_zarr", "neuroglancer", "ngff_zarr", "ome_zarr", "ome_zarr_models",
    "osgeo", "rasterio", "tensorstore",
}


class Refusal(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in UNWANTED:
            raise AssertionError(f"{name} was imported")
        return None


def refuse_network(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"):
        raise AssertionError(f"{event} {arguments}")


sys.meta_path.insert(0, Refusal())
sys.addaudithook(refuse_network)

import dask.array as da
import numpy as np

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr

voxels = np.random.default_rng(0).integers(0, 2**12, (40, 65, 97)).astype("uint16")
dataset = Dataset(
    da.from_array(voxels, chunks=16), dimension_names=("z", "y", "x"), voxel_unit="um",
    voxel_size=(3.0, 2.0, 1.5), datatype="tomo",
)
for version in ({}, {"ome_zarr_version": None}):
    path = f"{sys.argv[1]}/scan{len(version)}.zarr"
    dataset_to_zarr(dataset, path, **version)
    np.testing.assert_array_equal(dataset_from_zarr(path).data.compute(), voxels)
print("equal")
"""


def test_writing_and_reading_need_no_viewer_no_gdal_and_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr
