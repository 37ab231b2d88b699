"""Micro-CT of others, from their file to OME-Zarr, out to every format, and back again.

The scans are data of the package spam (concrete and snow, 100 voxels along each axis), as the
index of Python packages has it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tifffile

from ctlab_dask_zarr import Dataset, dataset_from_zarr, verify, zarr_writer
from tests.builders import run_here as run

SCANS = ["snow/snow.tif", "concrete/concrete_x-ray-bin16.tif"]
SIZE: dict[str, Any] = {"voxel_size": "10um"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spam")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "spam==0.9.1"]
    done = subprocess.run(
        [*fetch, "--only-binary", ":all:", "-d", folder],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"no package index has spam for this Python: {done.stderr[-200:]}")
    (wheel,) = folder.glob("spam-*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    return folder / "spam" / "data"


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


def succeeds(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_is_converted_and_taken_to_every_format_and_back(
    scan: str, scans: Path, tmp_path: Path
) -> None:
    source, store = scans / scan, tmp_path / "scan.zarr"
    voxels = tifffile.imread(source)
    size = ("--voxel-size", "10um")
    assert "needs" not in run("plan", source, store, *size).stderr
    assert run("convert", source, store).returncode != 0, "it does not say its voxel size"
    assert "verified" in succeeds("convert", source, store, *size, "--levels", "2", "--verify")
    assert succeeds("verify", store, "--source", source, *size)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, voxels)
    for name in ("slices/", "one.tif", "a.ome.tif", "a.nhdr", "a.h5", "tomo_nc", "tomo.nc"):
        out = f"{tmp_path}/{name}"
        datatype = ("--datatype", "tomo") if "nc" in name else ()
        done = run("export", store, out, "--verify", *datatype)
        assert done.returncode == 0, (name, done.stderr)
        again = tmp_path / f"{name.strip('/')}.zarr"
        succeeds("convert", out.rstrip("/"), again, "--verify")
        found = dataset_from_zarr(again)
        np.testing.assert_array_equal(found.data, voxels, err_msg=name)
        np.testing.assert_allclose(found.voxel_size_with_unit("um"), (10, 10, 10), err_msg=name)


def test_a_part_of_a_scan_in_other_greys_is_exported(scans: Path, tmp_path: Path) -> None:
    source, store = scans / SCANS[0], tmp_path / "scan.zarr"
    part = ("--crop", "20:60,10:90,:", "--bin", "2", "--to", "uint8", "--window", "0.5:99.5")
    succeeds("convert", source, store, "--voxel-size", "10um", *part, "--verify")
    found = dataset_from_zarr(store)
    assert (found.shape, found.dtype) == ((20, 40, 50), np.uint8)
    assert found.voxel_size == (20, 20, 20)
    assert len(found.history) >= 3


def test_a_scan_that_comes_slice_by_slice_is_sealed_damaged_and_repaired(
    scans: Path, tmp_path: Path
) -> None:
    voxels = tifffile.imread(scans / SCANS[0])
    store = tmp_path / "scan.zarr"
    layout: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (48, 48, 48), "levels": 2}
    with zarr_writer(store, shape=voxels.shape, dtype=voxels.dtype, **SIZE, **layout) as writer:
        for z in range(0, len(voxels), 10):
            writer.write(z, voxels[z : z + 10])
    scan = Dataset.from_array(voxels, **SIZE)
    assert verify(store, scan) == []
    shard = next((store / "0").rglob("c*0*1*1"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("verify", store).returncode == 3
    succeeds("repair", store, "--source", scans / SCANS[0], "--voxel-size", "10um")
    assert verify(store, scan) == []
