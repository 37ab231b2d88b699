"""The job scripts of cluster-configs/, submitted as they are to a real SLURM."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.conftest import OVER

CONFIGS = Path(__file__).parents[2] / "cluster-configs"
LAYOUT = ("--chunks", "16,16,16", "--shards", "32,32,32")
#: So many objects that a write can be stopped in its midst.
SMALL_SHARDS = ("--chunks", "16,16,16", "--shards", "16,16,16")
N_SMALL_SHARDS = 192
#: Root, and a node that has another name than this machine.
MPIRUN_OPTIONS = "--allow-run-as-root --oversubscribe --mca plm isolated --mca ras ^slurm"

Check = Callable[[Path], None]


def shards_of(folder: Path) -> list[Path]:
    """Return the objects of a write under way, or committed."""
    return [path for path in folder.rglob("c/**/*") if path.is_file() and path.suffix == ""]


def test_a_job_that_starts_worker_jobs(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check
) -> None:
    job = slurm.submit(
        tmp_path, CONFIGS / "slurm-jobqueue.sbatch", source, "out.zarr", *LAYOUT, JOBS="2"
    )
    slurm.wait(job, tmp_path)
    assert_equal(tmp_path / "out.zarr")
    workers = list((tmp_path / "dask-worker-logs").glob("*.err"))
    assert len(workers) == 2, "each worker is a job, with a log"


def test_a_job_of_several_nodes(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check
) -> None:
    job = slurm.submit(tmp_path, CONFIGS / "slurm-srun.sbatch", source, "out.zarr", *LAYOUT)
    slurm.wait(job, tmp_path)
    assert_equal(tmp_path / "out.zarr")
    assert slurm.job(job)["NumNodes"] == "2"
    assert len(list((tmp_path / "dask-worker-logs").glob("worker-*.log"))) == 2
    assert list(tmp_path.glob("scheduler-*.json")) == []


def test_an_array_of_parts_and_a_commit(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check
) -> None:
    array = slurm.submit(
        tmp_path, "--array=1-3", CONFIGS / "slurm-array.sbatch", source, "out.zarr", *LAYOUT
    )
    commit = slurm.submit(
        tmp_path, f"--dependency=afterok:{array}", CONFIGS / "slurm-commit.sbatch", "out.zarr"
    )
    assert not (tmp_path / "out.zarr").exists()
    slurm.wait(commit, tmp_path)
    assert_equal(tmp_path / "out.zarr")
    logs = "".join(path.read_text() for path in tmp_path.glob(f"ctlab-zarr-{array}-?.log"))
    assert all(f"part {part} of 3: 8 shards" in logs for part in (1, 2, 3))


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("slurm-jobqueue.sbatch", []),
        ("slurm-srun.sbatch", ["--cpus-per-task=1"]),
        ("mpi.sbatch", ["--nodes=1", "--ntasks=4", "--mem-per-cpu=1G"]),
    ],
)
def test_a_job_that_is_told_to_stop_puts_itself_into_the_queue_and_goes_on(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check, slow_disk: Any, wait_until: Any,
    script: str, options: list[str],
) -> None:  # fmt: skip
    if script == "mpi.sbatch":
        pytest.importorskip("dask_mpi")
        if shutil.which("mpirun") is None:
            pytest.skip("mpirun is not installed: openmpi-bin")
    job = slurm.submit(
        tmp_path, *options, CONFIGS / script, source, "out.zarr", *SMALL_SHARDS,
        JOBS="1", MPIRUN_OPTIONS=MPIRUN_OPTIONS, **slow_disk(0.1),
    )  # fmt: skip
    wait_until(lambda: len(shards_of(tmp_path)) > 10, "the first shards")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: slurm.job(job)["Restarts"] == "1", "its requeue")
    assert not (tmp_path / "out.zarr").exists()
    n_before = len(shards_of(tmp_path))
    assert 10 < n_before < N_SMALL_SHARDS
    slurm.wait(job, tmp_path)
    assert_equal(tmp_path / "out.zarr")
    (log,) = tmp_path.glob("ctlab-zarr-*.log")
    assert "stopped (SIGUSR1)" in log.read_text()
    assert f"{n_before} of them were there" in log.read_text()


# Told by the first, SLURM also kills what is not over in time.
@pytest.mark.parametrize("how", [[], ["--batch", "--signal=TERM"]])
def test_a_job_that_is_cancelled_stays_away(
    slurm: Any, source: Path, tmp_path: Path, slow_disk: Any, wait_until: Any, how: list[str]
) -> None:
    job = slurm.submit(
        tmp_path, CONFIGS / "local.sbatch", source, "out.zarr", *SMALL_SHARDS, **slow_disk(0.25)
    )
    wait_until(lambda: len(shards_of(tmp_path)) > 2, "the first shards")
    slurm.run("scancel", *how, job)
    wait_until(lambda: slurm.run("squeue", "-h", "-j", job) == "", "its end")
    assert slurm.job(job)["JobState"] in OVER
    assert slurm.job(job)["Restarts"] == "0"
    if how:
        assert "stopped (SIGTERM)" in (tmp_path / f"ctlab-zarr-{job}.log").read_text()


def test_parts_that_are_missing_are_sent_again_by_their_numbers(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check, wait_until: Any
) -> None:
    def send(array: str) -> str:
        script = CONFIGS / "slurm-array.sbatch"
        return slurm.submit(
            tmp_path, f"--array={array}", script, source, "out.zarr", *LAYOUT, PARTS="3"
        )

    def commit_after(array: str) -> str:
        script = CONFIGS / "slurm-commit.sbatch"
        return slurm.submit(tmp_path, f"--dependency=afterok:{array}", script, "out.zarr")

    first = commit_after(send("1,3"))
    wait_until(lambda: slurm.job(first)["JobState"] in OVER, "the commit of two parts")
    assert slurm.job(first)["ExitCode"] == "5:0"
    slurm.wait(commit_after(send("2")), tmp_path)
    assert_equal(tmp_path / "out.zarr")


def has_shards(log: Path) -> bool:
    """Whether a log tells of shards that are written, and not only that there will be some."""
    return log.exists() and re.search(r"\b[1-9]\d* of \d+ shards, ", log.read_text()) is not None


def test_a_commit_that_is_told_to_stop_puts_itself_into_the_queue_and_goes_on(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check, slow_disk: Any, wait_until: Any
) -> None:
    array = slurm.submit(
        tmp_path, "--array=1-2", CONFIGS / "slurm-array.sbatch", source, "out.zarr", *SMALL_SHARDS,
        "--levels", "3",
    )  # fmt: skip
    commit = slurm.submit(
        tmp_path, f"--dependency=afterok:{array}", CONFIGS / "slurm-commit.sbatch", "out.zarr",
        DASK_CTLAB_ZARR__PROGRESS_INTERVAL="1s", **slow_disk(0.25),
    )  # fmt: skip
    log = tmp_path / f"ctlab-zarr-commit-{commit}.log"
    wait_until(lambda: has_shards(log), "the first of its shards")
    slurm.run("scancel", "--batch", "--signal=USR1", commit)
    wait_until(lambda: slurm.job(commit)["Restarts"] == "1", "its requeue")
    assert not (tmp_path / "out.zarr").exists()
    slurm.wait(commit, tmp_path)
    assert "stopped (SIGUSR1)" in log.read_text()
    assert_equal(tmp_path / "out.zarr")


def test_one_job_of_an_array_is_stopped_and_goes_on_while_the_others_are_left_alone(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check, slow_disk: Any, wait_until: Any
) -> None:
    array = slurm.submit(
        tmp_path, "--array=1-2", CONFIGS / "slurm-array.sbatch", source, "out.zarr", *SMALL_SHARDS,
        DASK_CTLAB_ZARR__PROGRESS_INTERVAL="1s", **slow_disk(0.1),
    )  # fmt: skip
    commit = slurm.submit(
        tmp_path, f"--dependency=afterok:{array}", CONFIGS / "slurm-commit.sbatch", "out.zarr"
    )
    # The last job of an array has the array's own number.
    log = tmp_path / f"ctlab-zarr-{array}-2.log"
    wait_until(lambda: has_shards(log), "its first shards")
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_2")
    wait_until(lambda: slurm.job(f"{array}_2")["Restarts"] == "1", "its requeue")
    slurm.wait(commit, tmp_path, f"{array}_2")
    assert slurm.job(f"{array}_1")["Restarts"] == "0"
    assert "of them were there" in log.read_text()
    assert_equal(tmp_path / "out.zarr")


def test_a_job_whose_walltime_is_too_short_goes_on_until_it_is_done(
    slurm: Any, source: Path, tmp_path: Path, assert_equal: Check, slow_disk: Any
) -> None:
    # A minute is the least that SLURM gives. 192 shards take 48 s on such a disk, and none is begun
    # that would not be finished 10 s before the end. SLURM's warning, which comes up to half a
    # minute too soon, is left out (0 s before the end means never): it would stop the job before.
    job = slurm.submit(
        tmp_path,
        *("--time=00:01:00", "--signal=B:USR1@0", "--cpus-per-task=1", CONFIGS / "local.sbatch"),
        *(source, "out.zarr", *SMALL_SHARDS),
        **slow_disk(0.25),
    )
    slurm.wait(job, tmp_path, timeout_s=300)
    assert int(slurm.job(job)["Restarts"]) >= 1
    (log,) = tmp_path.glob("ctlab-zarr-*.log")
    assert "the time is nearly up" in log.read_text()
    assert_equal(tmp_path / "out.zarr")


@pytest.mark.parametrize("script", sorted(p.name for p in CONFIGS.glob("*.sbatch")))
def test_every_script_passes_signals_on_and_repeats_only_a_clean_stop(script: str) -> None:
    text = (CONFIGS / script).read_text()
    assert "#SBATCH --signal=B:USR1@" in text
    assert 'wait "$command"; code=$?' in text
    assert 'if [ "$code" -eq 75 ] && [ -n "$again" ]; then\n    scontrol requeue "$' in text
    assert "told=yes; again=; kill" in text, "a job that is cancelled stays away"
