"""A real SLURM of three nodes on this machine, volumes to convert, and how to wait for jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import yaml

from ctlab_dask_zarr import Dataset, verify
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.reliability.faults import listens

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "cluster-configs"
SLURM = ROOT.parent / "shared" / "realparts" / "slurm"
SHAPE = (64, 96, 128)
#: Where slurmctld of the test cluster listens.
PORT = 6817
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 180) -> Any:
    """Return what `condition` does as soon as it is true; fail after the time-out."""
    stop_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > stop_s:
            pytest.fail(f"{what}: not within {timeout_s} s")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return variables for jobs: this checkout, and the commands of this environment."""
    commands = tmp_path_factory.mktemp("commands")
    # The command line of this checkout, which may not be the one that is installed.
    for name, module in (("ctlab-zarr", "ctlab_dask_zarr.cli"), ("dask", "dask")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    # Not those of a batch job that the tests themselves may run in.
    kept = {k: v for k, v in os.environ.items() if not re.match("SLURM_|SBATCH_|PBS_|DASK_", k)}
    return kept | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "CLUSTER_CONFIGS": str(CONFIGS),
        "INTERFACE": "lo",
    }


@pytest.fixture
def slow_disk(tmp_path: Path, environment: Mapping[str, str]) -> Callable[[float], dict[str, str]]:
    """Return a function that gives variables under which each fsync takes so many seconds."""

    def variables(fsync_s: float) -> dict[str, str]:
        folder = tmp_path / "slow"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import os, time\n"
            "fsync = os.fsync\n"
            f"os.fsync = lambda file: (time.sleep({fsync_s}), fsync(file))[1]\n"
        )
        return {"PYTHONPATH": f"{folder}:{environment['PYTHONPATH']}"}

    return variables


@pytest.fixture(scope="session")
def slurm(
    tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]
) -> Iterator[Slurm]:
    if not (SLURM / "start.sh").exists():
        pytest.skip("no ../shared/realparts/slurm/start.sh beside the checkout")
    if os.geteuid() != 0:
        pytest.skip("starting SLURM needs root")
    for command in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: slurmctld slurmd slurm-client munge")
    if listens(PORT):
        pytest.skip(f"port {PORT} is taken: a SLURM runs here already")
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Slurm({**environment, "SLURM_CONF": str(folder / "slurm.conf")})
    # Into a file: the daemons keep what they inherit open.
    with open(folder / "start.log", "w") as log:
        started = subprocess.run(
            ["bash", SLURM / "start.sh", folder], env=cluster.variables, stdout=log, stderr=log,
            timeout=240,
        )  # fmt: skip
    pids = [int(file.read_text()) for file in folder.glob("*.pid") if file.read_text().strip()]
    try:
        if started.returncode or cluster.run("sinfo", "-h", "-t", "idle", "-o", "%D") != "3":
            pytest.fail(f"SLURM did not start: {(folder / 'start.log').read_text()}")
        yield cluster
        cluster.run("scancel", "--user=root")
        wait_until(lambda: not cluster.run("squeue", "-h"), "the end of all jobs")
    finally:
        subprocess.run(["bash", SLURM / "stop.sh", folder], timeout=240, check=True)
        wait_until(lambda: not any(Path(f"/proc/{n}").exists() for n in pids), "SLURM's end")


class Slurm:
    """The commands of a running SLURM."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = dict(variables)

    def run(self, *command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), env=self.variables, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, folder: Path, *arguments: object, **variables: str) -> str:
        """Submit in `folder`; return the number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)], env=self.variables | variables,
            cwd=folder, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def wait(self, number: str, folder: Path, *others: str, timeout_s: float = 240) -> None:
        """Wait for the success of a job; it, and the others, do not wait after a requeue."""

        def is_over() -> bool:
            for name in (number, *others):
                self.shorten_wait(name)
            return self.job(number)["JobState"] in OVER

        wait_until(is_over, f"end of job {number}", timeout_s)
        logs = "".join(path.read_text() for path in folder.glob("ctlab-zarr*.log"))
        assert self.job(number)["JobState"] == "COMPLETED", logs

    def shorten_wait(self, number: str) -> None:
        """Begin a requeued job soon: SLURM would let it wait for two minutes."""
        job = self.job(number)
        if (job["JobState"], job["Reason"]) != ("PENDING", "BeginTime"):
            return
        if job["StartTime"] == "Unknown":
            # Not decided yet, for a moment after the requeue.
            return
        begin = time.strptime(job["StartTime"], "%Y-%m-%dT%H:%M:%S")
        if time.mktime(begin) > time.time() + 10:
            # Not now: its node takes what begins in the second of its end for the old job.
            self.run("scontrol", "update", f"JobId={number}", "StartTime=now+2")


@pytest.fixture
def on_slurm(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Slurm:
    """Make this process one of a user of the cluster, in a folder of its own."""
    for name in ("SLURM_CONF", "PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, slurm.variables[name])
    monkeypatch.chdir(tmp_path)
    return slurm


@pytest.fixture(scope="session")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE, dtype="uint16")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomoSmall_nc"
    write_mango_netcdf(path, voxels, slices_per_block=16)
    return path


@pytest.fixture
def assert_equal(voxels: np.ndarray) -> Callable[[Path], None]:
    """Return a check that a store holds the voxels of `source`."""

    def check(store: Path) -> None:
        written = Dataset.from_path(store).data.compute(scheduler="sync")
        np.testing.assert_array_equal(written, voxels)
        with dask.config.set(scheduler="sync"):
            assert verify(store) == []

    return check


@pytest.fixture
def slurm_yaml(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes slurm.yaml with other values of its jobqueue section."""

    def write(terminate: Any = 0.95, allowed_failures: int = 3, **changed: Any) -> Path:
        settings = yaml.safe_load((CONFIGS / "slurm.yaml").read_text())
        section = settings["jobqueue"]["slurm"]
        section.update({key.replace("_", "-"): value for key, value in changed.items()})
        settings["distributed"]["worker"]["memory"]["terminate"] = terminate
        settings["distributed"]["scheduler"]["allowed-failures"] = allowed_failures
        # dask takes a worker for lost after this time, by default 15 s.
        settings["distributed"]["deploy"] = {"lost-worker-timeout": "1s"}
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., Any]:
    return wait_until
