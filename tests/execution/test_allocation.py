"""What a batch job was given, and what is left of it, from what SLURM and PBS say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ctlab_dask_zarr import InvalidArgumentError
from ctlab_dask_zarr.execution.allocation import (
    allocated_resources,
    choose_interface,
    parse_duration,
    seconds_left,
)
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
        ({}, "", "not a job of SLURM or PBS"),
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


def test_the_allocation_of_a_slurm_job_counts_and_not_the_machine() -> None:
    here = allocated_resources({})
    job = allocated_resources({"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "1024"})
    assert job.n_cpus == 1
    assert job.nbytes == 2**30
    assert here.n_cpus >= 1
    assert here.nbytes > 2**30


def test_memory_by_cpu_counts_the_job_s_cpus() -> None:
    job = allocated_resources({"SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_CPU": "512"})
    assert job.nbytes == 512 * 2**20


def test_a_pbs_job_spills_to_its_own_disk() -> None:
    variables = {"NCPUS": "1", "PBS_VMEM": str(2**30), "PBS_JOBFS": "/jobfs/1", "TMPDIR": "/tmp"}
    job = allocated_resources(variables)
    assert (job.n_cpus, job.nbytes, job.local_directory) == (1, 2**30, "/jobfs/1")


def test_variables_that_hold_no_number_are_left_out() -> None:
    # SLURM writes "72(x2),36" for jobs over several nodes.
    assert allocated_resources({"SLURM_CPUS_ON_NODE": "72(x2)"}) == allocated_resources({})


def test_the_interface_is_loopback_infiniband_or_the_default_route(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    routes.write_text("Iface Destination\neth1 0000A8C0 0\neth0 00000000 0102A8C0\n")
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.1", "ib0": "10.6.0.1"}

    def chosen(*, only_this_host: bool = False) -> str | None:
        return choose_interface(
            only_this_host=only_this_host, addresses=addresses, routes=str(routes)
        )

    assert chosen(only_this_host=True) == "lo"
    assert chosen() == "ib0"
    del addresses["ib0"]
    assert chosen() == "eth0"
    del addresses["eth0"]
    assert chosen() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", 5400),
        ("9min", 540),
        ("2d1h", 176400),
        ("3600s", 3600),
        ("00:30:00", 1800),
        # As SLURM reads it: after days come hours.
        ("2-3", 183600),
        ("2-3:30", 185400),
    ],
)
def test_a_duration_has_units_or_is_a_clock(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "90", "1 parsec", "a:b", "1-", "-1:00", "1:2:3:4"])
def test_a_duration_that_may_mean_anything_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="write it as 1h50m"):
        parse_duration(text)
