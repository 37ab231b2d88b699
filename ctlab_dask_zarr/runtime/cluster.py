"""Where a write runs: a local cluster sized to what this job was given, or a running one."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import InvalidArgumentError

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Allocation",
    "LocalWorkers",
    "allocated_resources",
    "connect",
    "local_client",
    "local_workers",
]

#: Part of the memory that workers may use together; the rest is for the client and the scheduler.
_WORKERS_SHARE = 0.9
#: CPUs of this job on this node, by the batch systems that count them. PBS_NCPUS is not among
#: them: on Gadi it counts the CPUs of all nodes.
_CPU_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS")


@dataclass(frozen=True)
class Allocation:
    """What this process may use: CPUs, memory in bytes, and a folder for spilled data."""

    n_cpus: int
    nbytes: int
    local_directory: str | None


def allocated_resources(environment: Mapping[str, str] | None = None) -> Allocation:
    """Return what this job was given on this node.

    The least of what the affinity mask and cgroups say (by dask), and of what SLURM or PBS say in
    their variables. `os.cpu_count` counts the whole machine and is never asked.

    Parameters
    ----------
    environment
        Variables to look at; by default the process's own.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    variables = os.environ if environment is None else environment
    cpus = [CPU_COUNT, *(_number(variables, name) for name in _CPU_VARIABLES)]
    n_cpus = min(n for n in cpus if n)
    memory = [
        MEMORY_LIMIT,
        # SLURM counts in MiB.
        _number(variables, "SLURM_MEM_PER_NODE") * 2**20,
        _number(variables, "SLURM_MEM_PER_CPU") * 2**20 * n_cpus,
        _number(variables, "PBS_VMEM"),
    ]
    directory = variables.get("PBS_JOBFS") or variables.get("TMPDIR")
    return Allocation(n_cpus, min(n for n in memory if n), directory)


def _number(variables: Mapping[str, str], name: str) -> int:
    """Return the whole number in a variable, or 0 where it holds none."""
    text = variables.get(name, "")
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class LocalWorkers:
    """The size of a local cluster: processes, threads and bytes of memory in each."""

    n_workers: int
    n_threads: int
    nbytes: int


def local_workers(
    n_workers: int | None = None, n_threads: int = 1, nbytes: int | None = None
) -> LocalWorkers:
    """Return the local cluster that fills this job's allocation.

    Parameters
    ----------
    n_workers
        Worker processes; by default one for each allocated CPU and thread.
    n_threads
        Threads in each.
    nbytes
        Memory of one worker; by default its share of the allocation.

    Examples
    --------
    >>> local_workers(4, 2, 2**30)
    LocalWorkers(n_workers=4, n_threads=2, nbytes=1073741824)
    """
    allocation = allocated_resources()
    n_workers = n_workers or max(1, allocation.n_cpus // n_threads)
    share = int(allocation.nbytes * _WORKERS_SHARE / n_workers)
    return LocalWorkers(n_workers, n_threads, share if nbytes is None else nbytes)


@contextmanager
def local_client(
    n_workers: int | None = None, n_threads: int = 1, nbytes: int | None = None
) -> Iterator[Client]:
    """Start a local cluster on the loopback address, and stop it at the end.

    The parameters are those of `local_workers`. A ``temporary-directory`` of dask's own
    configuration comes before the job's folder.
    """
    import dask
    from distributed import Client, LocalCluster

    size = local_workers(n_workers, n_threads, nbytes)
    options: dict[str, Any] = {
        "n_workers": size.n_workers,
        "threads_per_worker": size.n_threads,
        "memory_limit": size.nbytes,
        "host": "127.0.0.1",
        # None would not mean none: the scheduler then takes port 8787, and warns where it is taken.
        "dashboard_address": "127.0.0.1:0",
        # A failed task is told once, by the exception that reaches the client.
        "silence_logs": logging.CRITICAL,
    }
    directory = dask.config.get("temporary-directory", None)
    with (
        dask.config.set(
            {"temporary-directory": directory or allocated_resources().local_directory}
        ),
        LocalCluster(**options) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def connect(address: str | None = None, scheduler_file: str | None = None) -> Iterator[Client]:
    """Connect to a running scheduler, by its address or by its scheduler file.

    Raises
    ------
    InvalidArgumentError
        Nobody answers there within dask's ``distributed.comm.timeouts.connect``.
    """
    from distributed import Client

    try:
        client = Client(address or _address_in(scheduler_file))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"no dask scheduler answers at {address or scheduler_file}: {error}"
        ) from error
    with client:
        yield client


def _address_in(scheduler_file: str | None) -> str | None:
    """Return the address that a scheduler wrote, waiting for one that is just starting.

    dask itself would wait for the file for ever.
    """
    import dask
    from dask.utils import parse_timedelta

    if scheduler_file is None:
        return None
    timeout_s = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    stop_s = time.monotonic() + timeout_s
    while True:
        try:
            with open(scheduler_file) as file:
                return str(json.load(file)["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() > stop_s:
                raise ValueError(f"no address in that file after {timeout_s:.0f} s") from error
        time.sleep(0.1)
