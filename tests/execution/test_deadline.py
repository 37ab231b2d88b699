"""What is left of a batch job, from what SLURM and PBS say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ctlab_dask_zarr import InvalidArgumentError
from ctlab_dask_zarr.execution.deadline import seconds_left
from tests.builders import run_here

SLURM = {"SLURM_JOB_ID": "12"}
ARRAY = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
PBS = {"PBS_JOBID": "12.gadi-pbs"}

#: A job of 2:00:00, of which PBS counts a quarter as used.
QSTAT = """Job Id: 12.gadi-pbs
    Job_Name = ctlab-zarr
    resources_used.walltime = 00:30:00
    Resource_List.mem = 4gb
    Resource_List.walltime = 02:00:00
    {start}Variable_List = PBS_O_HOME=/home/me,PBS_O_WORKDIR=/scratch/a/very/long/na
\tme,walltime = 99:99:99
"""


@pytest.mark.parametrize(
    ("environment", "asked", "answer", "expected"),
    [
        # SLURM writes days-hours:minutes:seconds, and leaves out what is zero from the left.
        (SLURM, "squeue --noheader --jobs 12 --format %L", "1:50:00\n", 6600),
        (SLURM, "squeue", "2-00:00:10\n", 172810),
        (SLURM, "squeue", "9:59\n", 599),
        (SLURM, "squeue", "UNLIMITED\n", float("inf")),
        (SLURM, "squeue", "NOT_SET\n", float("inf")),
        # The job's own number would be that of the whole array for one of its jobs.
        (ARRAY, "squeue --noheader --jobs 9_3 --format %L", "10:00\n", 600),
        (SLURM | {"SLURM_JOB_END_TIME": "{end}"}, None, "", 1234),
        (SLURM | {"SLURM_JOB_END_TIME": "no number"}, "squeue", "10:00\n", 600),
        # The start is exact; what was used is minutes old.
        (PBS, "qstat -f 12.gadi-pbs", QSTAT.format(start="stime = AN_HOUR_AGO\n    "), 3600),
        (PBS, "qstat", QSTAT.format(start=""), 5400),
        (PBS, "qstat", QSTAT.format(start="stime = gestern\n    "), 5400),
        (PBS, "qstat", QSTAT.replace("Resource_List.walltime", "x").format(start=""), float("inf")),
    ],
)
def test_what_is_left_of_a_job(
    environment: Mapping[str, str], asked: str | None, answer: str, expected: float
) -> None:
    commands = []

    def run(command: Sequence[str]) -> str:
        commands.append(" ".join(command))
        return answer.replace("AN_HOUR_AGO", time.ctime(time.time() - 3600))

    end = str(int(time.time()) + 1234)
    variables = {name: value.format(end=end) for name, value in environment.items()}
    assert seconds_left(variables, run) == pytest.approx(expected, abs=5)
    assert [command.startswith(asked or "-") for command in commands] == [True] * bool(asked)


@pytest.mark.parametrize(
    ("environment", "answer", "message"),
    [
        ({}, "", "no job of SLURM or PBS"),
        (SLURM, "slurm_load_jobs error: Invalid job id\n", "squeue does not tell"),
        (SLURM, "", "squeue does not tell"),
        (PBS, "    Resource_List.walltime = soon\n", "qstat does not tell"),
    ],
)
def test_where_nobody_tells_a_time_has_to_be_given(
    environment: Mapping[str, str], answer: str, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{message}.*give a time, as 1h50m"):
        seconds_left(environment, lambda command: answer)


@pytest.mark.parametrize("command", ["convert", "commit", "pyramid", "add-labels"])
@pytest.mark.parametrize("deadline", ["5s", "10s", "0:00:07", "0s"])
def test_a_deadline_that_leaves_no_time_for_work_is_a_usage_error(
    deadline: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job script would go into the queue again for ever."""
    monkeypatch.chdir(tmp_path)
    places = {"convert": ["source_nc", "a.zarr"], "add-labels": ["a.zarr", "source_nc"]}
    words = [command, *places.get(command, ["a.zarr"]), "--deadline", deadline]
    done = run_here(*words)
    assert done.returncode == 2, done.stderr
    assert "leaves no time for any work" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())
