"""The code blocks of the documentation that need a batch system, or MPI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.clusters.conftest import CONFIGS, ROOT, Slurm
from tests.documentation.blocks import make_sources, pages_that_need, run_page

#: Submits and waits as `sbatch --wait` does, but asks the queue oftener than every half minute.
_SUBMIT = """#!/bin/bash
submitted=$(sbatch --parsable "$@") || exit
while [ -n "$(squeue --noheader --jobs "$submitted" 2>/dev/null)" ]; do sleep 0.2; done
scontrol show job "$submitted" | grep JobState= | grep -v COMPLETED >&2 && exit 1
echo "$submitted"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in CONFIGS.iterdir():
        shutil.copy(path, tmp_path)
    make_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", pages_that_need("slurm"), ids=lambda page: str(page.relative_to(ROOT))
)
def test_blocks_run_on_slurm(
    page: Path, folder: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {k: v for k, v in slurm.variables.items() if k != "CLUSTER_CONFIGS"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # A reader looks at the queue; a test waits, and the cluster of the tests has three small nodes.
    (folder / "submit").write_text(_SUBMIT)
    (folder / "submit").chmod(0o755)
    replaced = {"$ sbatch ": "$ ./submit ", "$(sbatch ": "$(./submit "}
    replaced |= {"=1-8": "=1-3", "--jobs 8": "--jobs 2", "jobs=8": "jobs=2"}
    assert run_page(page, "slurm", replaced, environment) > 0
    assert list(folder.glob("*.zarr")) or list(folder.glob(".*.staging"))


@pytest.mark.cluster
@pytest.mark.parametrize(
    "page", pages_that_need("mpi"), ids=lambda page: str(page.relative_to(ROOT))
)
def test_blocks_run_under_mpi(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    pytest.importorskip("dask_mpi")
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed: openmpi-bin")
    as_root = " --allow-run-as-root" if os.geteuid() == 0 else ""
    replaced = {"mpirun ": f"mpirun{as_root} --oversubscribe "}
    assert run_page(page, "mpi", replaced, dict(environment)) > 0
    assert (folder / "scan.zarr").exists()
