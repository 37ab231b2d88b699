"""Verifying from the command line, and what the command line knows better than the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from distributed import Client

from ctlab_dask_zarr import Dataset
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.demo import write_mango_netcdf

VOXELS = np.random.default_rng(0).integers(0, 4000, (20, 24, 28), dtype="uint16")
LAYOUT = ("--chunks", "4,8,8", "--shards", "8,16,16", "-q")
CORRECTIONS = (
    *("--voxel-size", "5um", "--datatype", "proju16"),
    *("--dataset-id", "20200101_000000_mine"),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(path, VOXELS, slices_per_block=5)
    return path


@pytest.fixture
def run(cluster: Client) -> Any:
    """Return a function that runs a command on the cluster of the tests."""

    def invoke(command: str, *arguments: object) -> Result:
        address = cluster.scheduler_info()["address"]
        words = [command, *map(str, arguments), "--scheduler", address]
        return CliRunner().invoke(main, words)

    return invoke


def damage_md5(block: Path) -> None:
    with h5py.File(block, "r+") as file:
        file["md5_checksum"][0] = (int(file["md5_checksum"][0]) + 1) % 100


def test_what_was_corrected_in_converting_is_corrected_in_verifying(
    run: Any, source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    done = run("convert", source, store, *LAYOUT, *CORRECTIONS, "--verify")
    assert done.exit_code == 0, done.stderr
    written = Dataset.from_path(store)
    assert (str(written.datatype), written.dataset_id) == ("proju16", "20200101_000000_mine")
    done = run("verify", store, "-q", "--source", source)
    assert done.exit_code == 3
    assert done.stderr.endswith(f"verification of {store} found 3 problems\n")
    done = run("verify", store, "-q", "--source", source, *CORRECTIONS)
    assert (done.exit_code, done.stderr) == (0, "")
    done = run("verify", store, "-q", *CORRECTIONS)
    assert done.exit_code == 2
    assert "--datatype is about the source: name the source by --source" in done.stderr


def test_a_voxel_size_on_the_command_line_helps_a_source_that_has_none(
    run: Any, source: Path, tmp_path: Path
) -> None:
    for block in source.iterdir():
        with h5py.File(block, "r+") as file:
            del file.attrs["voxel_size_xyz"]
            del file.attrs["voxel_unit"]
    store = tmp_path / "a.zarr"
    done = run("convert", source, store, *LAYOUT)
    assert done.exit_code == 1
    assert "does not say the voxel size" in done.stderr
    for size, found in (("2.5um", (2.5, 2.5, 2.5)), ("3,2,1um", (3.0, 2.0, 1.0))):
        done = run("convert", source, store, *LAYOUT, "--voxel-size", size, "--overwrite")
        assert done.exit_code == 0, done.stderr
        assert Dataset.from_path(store).voxel_size == found
        assert run("verify", store, "-q", "--source", source, "--voxel-size", size).exit_code == 0
    # Of a store the size is replaced, as ever.
    done = run(
        "convert", store, tmp_path / "b", *LAYOUT, "--voxel-size", "7nm", "--yes", "--verify"
    )
    assert done.exit_code == 0, done.stderr
    written = Dataset.from_path(tmp_path / "b.zarr")
    assert (written.voxel_size, str(written.voxel_unit)) == ((7.0, 7.0, 7.0), "nm")


def test_a_path_with_nothing_there_is_exit_1(run: Any, tmp_path: Path) -> None:
    done = run("verify", tmp_path / "nowhere.zarr", "-q")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"ctlab-zarr: {tmp_path / 'nowhere.zarr'} does not exist\n"


def test_convert_that_verifies_names_the_sources_block_and_prints_no_result(
    run: Any, source: Path, tmp_path: Path
) -> None:
    damage_md5(source / "block00000002.nc")
    for output in ((), ("--json",)):
        done = run("convert", source, tmp_path / "a", *LAYOUT, "--verify", "--overwrite", *output)
        assert done.exit_code == 3
        assert done.stdout == ""
        first, last = done.stderr.splitlines()
        assert first.startswith("source: block00000002.nc (z 10-14) is damaged")
        assert "found 1 problem. It stays in its place, but do not trust it" in last
        assert "--overwrite" in last
    assert (tmp_path / "a.zarr").exists()
    done = run("convert", source, tmp_path / "b", *LAYOUT, "--check-source")
    assert done.exit_code == 5
    assert "source: block00000002.nc" in done.stderr
    assert not (tmp_path / "b.zarr").exists()


def test_all_problems_are_told_and_counted(run: Any, source: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    assert run("convert", source, store, *LAYOUT, "--levels", "2").exit_code == 0
    assert json.loads(run("verify", store, "-q", "--json").stdout) == []
    (store / "0" / "zarr.json").write_text("{")
    shutil.rmtree(store / "1")
    done = run("verify", store, "-q", "--source", source)
    assert done.exit_code == 3
    places = {p["location"] for p in json.loads(run("verify", store, "-q", "--json").stdout)}
    assert {"0/zarr.json", "1/zarr.json"} <= places
    n_problems = len(done.stdout.splitlines())
    assert done.stderr.endswith(f"found {n_problems} problems\n")
