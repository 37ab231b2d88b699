"""Where a write runs: a local cluster sized to what this job was given, or a running one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import InvalidArgumentError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Allocation", "allocated_resources", "connect", "local_client"]

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


@contextmanager
def local_client(
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: str | None = None,
) -> Iterator[Client]:
    """Start a local cluster on the loopback address, and stop it at the end.

    Parameters
    ----------
    n_workers
        Worker processes; by default one for each allocated CPU and thread.
    threads_per_worker
        Threads in each.
    memory_limit
        Of one worker, for example ``"4GiB"``; by default its share of the allocation.
    """
    import dask
    from distributed import Client, LocalCluster

    allocation = allocated_resources()
    n_workers = n_workers or max(1, allocation.n_cpus // threads_per_worker)
    options: dict[str, Any] = {
        "n_workers": n_workers,
        "threads_per_worker": threads_per_worker,
        "memory_limit": memory_limit or int(allocation.nbytes * _WORKERS_SHARE / n_workers),
        "host": "127.0.0.1",
        # None would not mean none: the scheduler then takes port 8787, and warns where it is taken.
        "dashboard_address": "127.0.0.1:0",
        # A failed task is told once, by the exception that reaches the client.
        "silence_logs": logging.CRITICAL,
    }
    with (
        dask.config.set({"temporary-directory": allocation.local_directory}),
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
        Nobody answers there.
    """
    from distributed import Client

    try:
        client = Client(address, scheduler_file=scheduler_file)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"no dask scheduler answers at {address or scheduler_file}: {error}"
        ) from error
    with client:
        yield client
