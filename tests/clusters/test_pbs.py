"""PBS: the job script for Gadi, and PBSCluster on the qsub that SLURM has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import yaml
from distributed import Client

from ctlab_dask_zarr import Dataset, dataset_to_zarr
from ctlab_dask_zarr.execution.clusters import cluster_from_config, read_configuration
from ctlab_dask_zarr.execution.jobs import JobWorkers, import_jobqueue

CONFIGS = Path(__file__).parents[2] / "cluster-configs"


def test_the_job_script_for_gadi_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / "pbs-gadi.yaml"
    jobqueue = import_jobqueue()
    with dask.config.set(dask.config.merge(dask.config.config, read_configuration(path))):
        options = JobWorkers("pbs", config_file=str(path)).options()
        # A job alone: a cluster would start its scheduler on the interface ib0 of this machine.
        job = jobqueue.PBSCluster.job_cls(
            scheduler="tcp://10.6.0.1:40000", name="dask-0",
            **{key: value for key, value in options.items() if key != "scheduler_options"},
        )  # fmt: skip
    assert job.job_script().splitlines() == [
        "#!/usr/bin/env bash",
        "",
        "#PBS -N ctlab-zarr-worker",
        "#PBS -q normal",
        "#PBS -l ncpus=12,mem=48GB,jobfs=100GB,storage=gdata/xy12+scratch/xy12",
        "#PBS -l walltime=02:00:00",
        "#PBS -e dask-worker-logs/",
        "#PBS -o dask-worker-logs/",
        "#PBS -P xy12",
        "#PBS -l wd",
        "#PBS -j oe",
        "#PBS -V",
        f"export DASK_CONFIG={path}",
        f"{sys.executable} -m distributed.cli.dask_worker tcp://10.6.0.1:40000 --name dask-0 "
        "--nthreads 1 --memory-limit 3.50GiB --nworkers 12 --nanny --death-timeout 60 "
        "--local-directory $PBS_JOBFS --dashboard-address 127.0.0.1:0 "
        "--lifetime 6900s --lifetime-stagger 150s --interface ib0",
    ]


def test_the_script_for_gadi_asks_for_what_gadi_wants() -> None:
    text = (CONFIGS / "pbs-gadi.pbs").read_text()
    directives = re.findall(r"^#PBS (.*)$", text, re.MULTILINE)
    assert {"-P xy12", "-q normal", "-l wd", "-l storage=gdata/xy12+scratch/xy12"} <= set(
        directives
    )
    assert not any("select" in directive for directive in directives)
    assert 'wait "$command"; code=$?' in text


#: The qsub of PBS Pro as far as the script uses it: single quotes keep commas together in -v, and
#: the job begins at once.
QSUB = f"""#!{sys.executable}
import os, re, subprocess, sys
assert sys.argv[1] == "-v", sys.argv
items = re.findall(r"(\\w+)=('[^']*'|[^,']*)(?:,|$)", sys.argv[2])
variables = {{name: value.strip("'") for name, value in items}}
open("submitted", "a").write(sys.argv[2] + chr(10))
sys.exit(subprocess.run(["bash", sys.argv[3]], env=os.environ | variables).returncode)
"""
#: A command that the end of the time stops once, or, where it is told to wait, a signal.
CONVERT = """#!/bin/bash
printf '<%s>' "$@" >> arguments; echo >> arguments
[ -e wait ] && { trap 'exit 75' TERM; touch waits; while :; do sleep 0.1; done; }
[ -e stopped ] && exit 0
touch stopped; exit 75
"""


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command that submits the script for Gadi, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("qsub", QSUB), ("ctlab-zarr", CONVERT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER_CONFIGS", str(CONFIGS))
    variables = "SOURCE='my tomo_nc',DESTINATION=a.zarr,OPTIONS='--shards 32,32,32 --levels 2'"
    return ["qsub", "-v", variables, str(CONFIGS / "pbs-gadi.pbs")]


def test_a_job_of_pbs_submits_itself_again_with_the_same_options(
    pbs: list[str], tmp_path: Path
) -> None:
    subprocess.run(pbs, timeout=240)
    first, second = (tmp_path / "arguments").read_text().splitlines()
    assert first == second
    assert first.startswith("<convert><my tomo_nc><a.zarr><--shards><32,32,32><--levels><2><--clu")
    assert len((tmp_path / "submitted").read_text().splitlines()) == 2


def test_a_job_of_pbs_that_is_deleted_stays_away(
    pbs: list[str], tmp_path: Path, wait_until: Any
) -> None:
    (tmp_path / "wait").touch()
    variables = {"SOURCE": "tomo_nc", "DESTINATION": "a.zarr"}
    job = subprocess.Popen(["bash", pbs[-1]], env=os.environ | variables)
    wait_until(lambda: (tmp_path / "waits").exists(), "the command")
    job.terminate()
    assert job.wait(240) == 75
    assert not (tmp_path / "submitted").exists()


def test_jobs_of_pbs_write_a_dataset(on_slurm: Any, tmp_path: Path, voxels: np.ndarray) -> None:
    if shutil.which("qsub") is None:
        pytest.skip("qsub is not installed: slurm-wlm-torque")
    config = tmp_path / "pbs.yaml"
    section = {
        "cores": 1,
        "processes": 1,
        "memory": "1 GiB",
        "resource-spec": "nodes=1:ppn=1,mem=1200mb",
        "walltime": "00:10:00",
        # The nodes are this machine, which a PBS is not asked for.
        "interface": "lo",
        "job-extra-directives": ["-V"],
    }
    config.write_text(yaml.safe_dump({"jobqueue": {"pbs": section}}))
    import dask.array as da

    dataset = Dataset(
        da.from_array(voxels, chunks=(16, 96, 128)),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(1, 1, 1),
        datatype="tomo",
    )
    with cluster_from_config(config, jobs=2) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, 240)
        assert len(on_slurm.run("squeue", "-h").splitlines()) == 2
        dataset_to_zarr(dataset, tmp_path / "out", chunks=(16, 32, 32), shards=(16, 32, 32))
    written = Dataset.from_path(tmp_path / "out.zarr").data.compute(scheduler="sync")
    np.testing.assert_array_equal(written, voxels)
