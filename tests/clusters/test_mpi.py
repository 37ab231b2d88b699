"""Ranks of MPI as scheduler, client and workers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.clusters import cluster_from_config

CONFIGS = Path(__file__).parents[2] / "cluster-configs"


@pytest.fixture
def mpirun(environment: Mapping[str, str]) -> list[str]:
    pytest.importorskip("mpi4py")
    pytest.importorskip("dask_mpi")
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed: openmpi-bin")
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", *as_root, "--oversubscribe"]


def test_ranks_write_a_dataset(
    mpirun: list[str],
    environment: Mapping[str, str],
    source: Path,
    tmp_path: Path,
    assert_equal: Callable[[Path], None],
) -> None:
    done = subprocess.run(
        [*mpirun, "-np", "4", "ctlab-zarr", "convert", source, "out.zarr", "--cluster", "mpi",
         "--chunks", "16,16,16", "--shards", "32,32,32"],
        env={**environment, "DASK_CONFIG": str(CONFIGS / "mpi.yaml")},
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " in 24 shards, " in done.stdout, "one rank tells, and no other"
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert_equal(tmp_path / "out.zarr")


@pytest.mark.cluster
def test_too_few_ranks_are_a_clear_error() -> None:
    pytest.importorskip("dask_mpi")
    try:
        from mpi4py import MPI  # noqa: F401
    except (ImportError, RuntimeError):
        pytest.skip("no MPI library is installed")
    with (
        pytest.raises(InvalidArgumentError, match="at least 3 are needed"),
        cluster_from_config("mpi"),
    ):
        pytest.fail("the cluster was given out")
