"""Where few files may be open at once, commands say so or go on; none hangs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctlab_dask_zarr import Dataset
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.builders import random_voxels

#: Slabs of 100 shards, all of them under construction at once.
VOXELS = random_voxels((16, 160, 160))
SHARDS = ("--shards", "16,16,16", "--chunks", "8,8,8")


def run(*arguments: object, soft: int = 64, hard: int = 64) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, preexec_fn=limit, check=False
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomoSlab_nc"
    write_mango_netcdf(path, VOXELS, slices_per_block=16)
    return path


@pytest.mark.timeout(500)
def test_a_few_open_files_are_enough_for_a_scan(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    for command in (
        ("convert", source, store, "--levels", "2", "--workers", "1"),
        ("verify", store, "--source", source),
        ("preview", store, "-o", tmp_path / "a.png"),
    ):
        done = run(*command)
        assert done.returncode == 0, (command, done.stderr)
    np.testing.assert_array_equal(Dataset.from_path(store).data.compute(), VOXELS)


@pytest.mark.timeout(500)
def test_where_they_are_too_few_the_error_says_what_to_do_and_a_resume_goes_on(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    failed = run("convert", source, store, *SHARDS)
    assert failed.returncode == 1
    assert "Too many open files" in failed.stderr
    assert "ulimit -n" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not store.exists()
    # A limit that the command may raise itself is no limit.
    done = run("convert", source, store, *SHARDS, "--resume", "--json", soft=64, hard=1024)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_shards"] == 100
    np.testing.assert_array_equal(Dataset.from_path(store).data.compute(), VOXELS)


@pytest.mark.timeout(500)
def test_workers_that_cannot_start_for_it_are_told_without_a_traceback(
    source: Path, tmp_path: Path
) -> None:
    failed = run("convert", source, tmp_path / "a", "--workers", "12")
    assert failed.returncode == 1
    assert "workers could not be started" in failed.stderr
    assert "ulimit -n" in failed.stderr
    assert "Traceback" not in failed.stderr
