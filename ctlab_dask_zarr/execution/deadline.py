"""How long a command may run: a time of the user's, or what is left of its batch job."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from ctlab_dask_zarr.errors import InvalidArgumentError

__all__ = ["parse_duration", "seconds_left"]

_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")
_UNITS_S = (86400, 3600, 60, 1)
#: Seconds for the batch system to answer.
_TIMEOUT_S = 60

Run = Callable[[Sequence[str]], str]


def parse_duration(text: str) -> float:
    """Return seconds.

    Examples
    --------
    >>> parse_duration("1h50m")
    6600.0
    >>> parse_duration("1-02:30:00")  # as SLURM writes it
    95400.0
    """
    match = _PARTS.fullmatch(text.strip())
    if match is not None and any(match.groups()):
        return float(
            sum(int(n or 0) * unit for n, unit in zip(match.groups(), _UNITS_S, strict=True))
        )
    days, _, clock = text.strip().rpartition("-")
    fields = clock.split(":")
    if (days or "0").isdecimal() and all(f.isdecimal() for f in fields) and 2 <= len(fields) <= 3:
        seconds = 0
        for field in fields:
            seconds = seconds * 60 + int(field)
        return float(seconds + 86400 * int(days or 0))
    raise InvalidArgumentError(f"{text!r} is no duration: write it as 1h50m, 90m, 3600s or 1:50:00")


def seconds_left(environment: Mapping[str, str] | None = None, run: Run | None = None) -> float:
    """Return how many seconds the batch job of this process has left; inf where it has no limit.

    SLURM says the end in a variable (from release 23.02) or is asked; PBS is asked.

    Raises
    ------
    InvalidArgumentError
        This is no job of SLURM or PBS, or neither variable nor command tells.
    """
    variables = os.environ if environment is None else environment
    ask = run or _run
    if "SLURM_JOB_ID" in variables:
        end_s = variables.get("SLURM_JOB_END_TIME", "")
        if end_s.isdecimal():
            return float(end_s) - time.time()
        job = variables["SLURM_JOB_ID"]
        if "SLURM_ARRAY_TASK_ID" in variables:
            # The number of one of the jobs is that of the array, which would name all of them.
            job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
        left = ask(["squeue", "--noheader", "--jobs", job, "--format", "%L"]).strip()
        if left in ("UNLIMITED", "NOT_SET"):
            return float("inf")
        return _parse_answer(left, "squeue")
    if "PBS_JOBID" in variables:
        answer = ask(["qstat", "-f", variables["PBS_JOBID"]])
        # Lines that were wrapped begin with a tab.
        fields = dict(re.findall(r"^\s*([\w.]+) = (.*)$", answer.replace("\n\t", ""), re.MULTILINE))
        if "Resource_List.walltime" not in fields:
            return float("inf")
        walltime_s = _parse_answer(fields["Resource_List.walltime"], "qstat")
        # What PBS says was used is minutes old; the start is exact.
        try:
            started = time.strptime(fields.get("stime", ""), "%a %b %d %H:%M:%S %Y")
        except ValueError:
            used = fields.get("resources_used.walltime", "0:00")
            return walltime_s - _parse_answer(used, "qstat")
        return walltime_s - (time.time() - time.mktime(started))
    raise InvalidArgumentError(
        "this is no job of SLURM or PBS, so that there is no end to find out: give a time, as 1h50m"
    )


def _parse_answer(text: str, command: str) -> float:
    try:
        return parse_duration(text)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{command} does not tell the end of this job ({text!r}): give a time, as 1h50m"
        ) from error


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidArgumentError(
            f"{command[0]} does not tell the end of this job ({error}): give a time, as 1h50m"
        ) from error
    return done.stdout
