"""What the batch system, or else this machine, gives to this process: CPUs, memory, network, time.

SLURM and PBS say it in variables of the environment, and in what their commands print.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ctlab_dask_zarr.errors import InvalidArgumentError

#: The CPUs of this job on this node, by the batch systems that count them. PBS_NCPUS is left out:
#: on Gadi it counts the CPUs of all nodes.
_CPU_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS")
#: The usual name of the first InfiniBand interface.
_INFINIBAND = "ib0"
_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")
_UNITS_S = (86400, 3600, 60, 1)
#: Seconds for the batch system to answer.
_TIMEOUT_S = 60

Run = Callable[[Sequence[str]], str]


class Allocation(NamedTuple):
    """What this process may use: CPUs, memory in bytes, and a folder for spilled data."""

    n_cpus: int
    nbytes: int
    local_directory: str | None


def allocated_cpus(environment: Mapping[str, str] | None = None) -> int:
    """Return the CPUs that this job was given on this node, as `allocated_resources` does."""
    from dask.system import CPU_COUNT

    variables = os.environ if environment is None else environment
    return min(n for n in (CPU_COUNT, *(_number(variables, name) for name in _CPU_VARIABLES)) if n)


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    return int(text) if text.isdecimal() else 0


def allocated_resources(environment: Mapping[str, str] | None = None) -> Allocation:
    """Return what this job was given on this node.

    The least of what the affinity mask and cgroups say (by dask), and of what SLURM or PBS say in
    `environment`, by default that of the process. `os.cpu_count` counts the whole machine.
    """
    from distributed.system import MEMORY_LIMIT

    variables = os.environ if environment is None else environment
    n_cpus = allocated_cpus(variables)
    memory = (
        MEMORY_LIMIT,
        # SLURM counts in MiB.
        _number(variables, "SLURM_MEM_PER_NODE") * 2**20,
        _number(variables, "SLURM_MEM_PER_CPU") * 2**20 * n_cpus,
        _number(variables, "PBS_VMEM"),
    )
    directory = variables.get("PBS_JOBFS") or variables.get("TMPDIR")
    return Allocation(n_cpus, min(n for n in memory if n), directory)


def files_problem(error: BaseException) -> str | None:
    """Return what to do about an error that comes of too few open files; None for another one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            return (
                "a process may not have more files open: allow more (as by `ulimit -n 4096`), or "
                "use fewer workers and threads (--workers, --threads), or larger shards"
            )
        seen = seen.__cause__ or seen.__context__
    return None


def parse_duration(text: str) -> float:
    """Return the seconds in a duration, written with units or like the clocks of batch systems.

    Examples
    --------
    >>> parse_duration("1h50m"), parse_duration("1:50:00"), parse_duration("1-02:30:00")
    (6600.0, 6600.0, 95400.0)
    """
    match = _UNITS.fullmatch(text.strip())
    if match is not None and any(match.groups()):
        return _total_s(*match.groups())
    seconds = clock_seconds(text.strip())
    if seconds is None:
        raise InvalidArgumentError(
            f"{text!r} is not a duration: write it as 1h50m, 90m, 3600s or 1:50:00"
        )
    return seconds


def clock_seconds(text: str) -> float | None:
    """Return the seconds in ``[HH:]MM:SS`` or ``D-HH[:MM[:SS]]``; None for anything else.

    A single number is refused: SLURM takes it for minutes, and PBS for seconds.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    is_clock = (1 if dash else 2) <= len(parts) <= 3
    if not (is_clock and all(part.isdecimal() for part in ([days] if dash else []) + parts)):
        return None
    missing = ["0"] * (3 - len(parts))
    return _total_s(days, *(parts + missing if dash else missing + parts))


def _total_s(*parts: str | None) -> float:
    """Return the seconds in days, hours, minutes and seconds."""
    return float(sum(int(n or 0) * unit for n, unit in zip(parts, _UNITS_S, strict=True)))


def seconds_left(environment: Mapping[str, str] | None = None, run: Run | None = None) -> float:
    """Return how many seconds the batch job of this process has left; inf if it has no limit.

    SLURM tells the end in a variable (from release 23.02) or by a command, PBS by a command.

    Raises
    ------
    InvalidArgumentError
        This is not a job of SLURM or PBS, or neither variable nor command tells the end.
    """
    variables = os.environ if environment is None else environment

    def ask(*command: str) -> str:
        try:
            return (run or _run)(command)
        except (OSError, subprocess.SubprocessError) as error:
            raise _is_silent(command[0], error) from error

    if "SLURM_JOB_ID" in variables:
        end_s = variables.get("SLURM_JOB_END_TIME", "")
        if end_s.isdecimal():
            return float(end_s) - time.time()
        job = variables["SLURM_JOB_ID"]
        if "SLURM_ARRAY_TASK_ID" in variables:
            # One of the jobs has the number of the array, which would name all of them.
            job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
        left = ask("squeue", "--noheader", "--jobs", job, "--format", "%L").strip()
        return float("inf") if left in ("UNLIMITED", "NOT_SET") else _parse_answer(left, "squeue")
    if "PBS_JOBID" in variables:
        answer = ask("qstat", "-f", variables["PBS_JOBID"])
        # qstat wraps lines, and continues them with a tab.
        fields = dict(re.findall(r"^\s*([\w.]+) = (.*)$", answer.replace("\n\t", ""), re.MULTILINE))
        if "Resource_List.walltime" not in fields:
            return float("inf")
        walltime_s = _parse_answer(fields["Resource_List.walltime"], "qstat")
        # The time used that PBS tells is minutes old; the start is exact.
        try:
            started = time.strptime(fields.get("stime", ""), "%a %b %d %H:%M:%S %Y")
        except ValueError:
            used = fields.get("resources_used.walltime", "0:00")
            return walltime_s - _parse_answer(used, "qstat")
        return walltime_s - (time.time() - time.mktime(started))
    raise InvalidArgumentError(
        "this is not a job of SLURM or PBS, whose end could be found out: give a time, as 1h50m"
    )


def _parse_answer(text: str, command: str) -> float:
    try:
        return parse_duration(text)
    except InvalidArgumentError as error:
        raise _is_silent(command, repr(text)) from error


def _is_silent(command: str, why: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{command} does not tell the end of this job ({why}): give a time, as 1h50m"
    )


def _run(command: Sequence[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    ).stdout


def choose_interface(
    *,
    only_this_host: bool,
    addresses: Mapping[str, str] | None = None,
    routes: str = "/proc/net/route",
) -> str | None:
    """Return the network interface for scheduler and workers if the configuration names none.

    Loopback if the whole cluster is this host; else ``ib0`` if it is up; else the interface of the
    default route in `routes`, Linux's table; else None: dask decides. `addresses` are by interface.
    """
    known = _ipv4_addresses() if addresses is None else addresses
    if only_this_host:
        return next((name for name, ip in known.items() if ip.startswith("127.")), None)
    if _INFINIBAND in known:
        return _INFINIBAND
    if not os.path.exists(routes):
        return None
    with open(routes) as file:
        rows = [line.split() for line in file][1:]
    route = next((row[0] for row in rows if row[1] == "00000000"), None)
    return route if route in known else None


def _ipv4_addresses() -> Mapping[str, str]:
    """Return the IPv4 address of each interface that is up and has one."""
    import psutil

    states = psutil.net_if_stats()
    return {
        name: info.address
        for name, infos in psutil.net_if_addrs().items()
        if name in states and states[name].isup
        for info in infos
        if info.family == socket.AF_INET
    }


def slurm_is_this_host() -> bool:
    """Return whether every node of this SLURM has a loopback address: a test cluster."""
    try:
        addresses = _run(["sinfo", "--noheader", "--Node", "--format=%o"]).split()
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(addresses) and all(map(_is_loopback, addresses))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
