"""Where a write runs: a local cluster, jobs of a batch system, ranks of MPI, or a running one."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import InvalidArgumentError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.planning.rechunk import Resources

__all__ = [
    "Allocation",
    "LocalWorkers",
    "allocated_resources",
    "client_from_config",
    "cluster_from_config",
    "configured_resources",
    "connect",
    "local_client",
    "local_workers",
]

#: Part of the memory that workers may use together; the rest is for the client and the scheduler.
_WORKERS_SHARE = 0.9
#: Clusters that have a name; all that they are is in dask's settings.
_KINDS = ("local", "slurm", "pbs", "mpi")
#: How long a write goes without any worker, where dask's settings do not say it.
_WORKER_TIMEOUT = "1h"
#: The same of local clusters, which start their workers at once.
_NO_WORKERS_TIMEOUT = "5 minutes"
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
    """Start a local cluster and a client of it, and stop both at the end.

    The parameters are those of `local_workers`.
    """
    from distributed import Client

    from ctlab_dask_zarr.execution.configuration import check_dask_config

    check_dask_config()
    with _local_cluster(n_workers, n_threads, nbytes) as cluster, Client(cluster) as client:
        yield client


@contextmanager
def _local_cluster(
    n_workers: int | None = None, n_threads: int = 1, nbytes: int | None = None
) -> Iterator[LocalCluster]:
    """Start a local cluster on the loopback address, and stop it at the end.

    A ``temporary-directory`` of dask's own configuration comes before the job's folder.
    """
    import dask

    from ctlab_dask_zarr.execution.main_guard import started_cluster

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
        "preload": ["ctlab_dask_zarr.execution.worker_signals"],
    }
    directory = dask.config.get("temporary-directory", None)
    # A nanny gives up a worker that dies while it starts: without any a write would wait for ever.
    timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    with ExitStack() as stack:
        # The cluster keeps what it was made with; nobody else in this process has to.
        with dask.config.set(
            {
                "temporary-directory": directory or allocated_resources().local_directory,
                "distributed.scheduler.no-workers-timeout": timeout or _NO_WORKERS_TIMEOUT,
            }
        ):
            cluster = stack.enter_context(started_cluster(options))
        yield cluster


@contextmanager
def cluster_from_config(
    config: str | os.PathLike[str],
    jobs: int | None = None,
    *,
    worker_timeout: str | None = None,
    on_wait: Callable[[str], None] | None = None,
    stop: Stop | None = None,
) -> Iterator[Any]:
    """Start the cluster that a configuration describes, and stop it at the end.

    Workers have to have the same versions of this package, zarr, numpy, numcodecs, dask and
    distributed as this process.

    Parameters
    ----------
    config
        A YAML file in dask's own keys, which hold until the end, for all of this process and the
        workers; or ``local``, ``slurm``, ``pbs`` or ``mpi``, for what dask's own files and
        ``DASK_CONFIG`` say; or the address or the scheduler file (``.json``) of a running
        scheduler. A file with a section ``jobqueue: slurm`` or ``jobqueue: pbs`` means that system,
        one with a ``scheduler-address`` the scheduler there, and any other a local cluster.
    jobs
        Jobs of the batch system, each replaced when it is lost, by default 1; on a local cluster
        worker processes, by default one for each allocated CPU. Other clusters have their own.
    worker_timeout
        How long to wait for a job to start, the first one or another when all are lost, as dask
        writes it: ``"30 minutes"``; by default dask's ``distributed.scheduler.no-workers-timeout``,
        and where that is not set an hour.
    on_wait
        Is told now and then what the queue says while no job has started.
    stop
        Ends that waiting before its time-out.

    Yields
    ------
    A cluster or an address, for dask's own `distributed.Client`.

    Raises
    ------
    InvalidArgumentError
        The configuration is not known, or says something wrong.
    ClusterError
        The queue refuses the jobs, no worker comes, then or later, or one has other versions.

    Examples
    --------
    >>> from distributed import Client
    >>> with cluster_from_config("local", jobs=1) as cluster, Client(cluster) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    import dask
    from dask.utils import parse_timedelta
    from distributed import Client

    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.execution.versions import same_versions

    with ExitStack() as stack:
        kind, config_file = stack.enter_context(_configured(os.fspath(config), jobs))
        if kind == "local":
            started: AbstractContextManager[Any] = _local_cluster(jobs)
        elif kind == "running":
            started = nullcontext(_running_address(None if config_file else os.fspath(config)))
        elif kind == "mpi":
            from ctlab_dask_zarr.execution.mpi import mpi_cluster

            allocation = allocated_resources()
            nbytes = int(allocation.nbytes * _WORKERS_SHARE)
            started = mpi_cluster(nbytes, allocation.local_directory)
        else:
            from ctlab_dask_zarr.execution.jobs import job_cluster

            configured = dask.config.get("distributed.scheduler.no-workers-timeout")
            timeout_s = float(parse_timedelta(worker_timeout or configured or _WORKER_TIMEOUT))
            tell = on_wait or (lambda _: None)
            started = job_cluster(kind, jobs or 1, config_file, timeout_s, tell, stop or Stop())
        cluster = stack.enter_context(started)
        # A client of its own, which is not the default one: the caller's own is to be that.
        client = stack.enter_context(Client(cluster, set_as_default=False))
        stack.enter_context(same_versions(client))
        yield cluster


@contextmanager
def client_from_config(
    config: str | os.PathLike[str], jobs: int | None = None, **options: Any
) -> Iterator[Client]:
    """Start the cluster of a configuration and a client of it: see `cluster_from_config`."""
    from distributed import Client

    with cluster_from_config(config, jobs, **options) as cluster, Client(cluster) as client:
        yield client


def configured_resources(config: str | os.PathLike[str], jobs: int | None = None) -> Resources:
    """Return what the workers of a configuration will have together; nothing is started.

    The number of ranks of MPI is not known before they are: one thread stands for them.
    """
    from ctlab_dask_zarr.execution.jobs import job_size
    from ctlab_dask_zarr.execution.scheduler import scheduler_resources
    from ctlab_dask_zarr.planning.rechunk import Resources

    with _configured(os.fspath(config), jobs) as (kind, config_file):
        if kind == "local":
            local = local_workers(jobs)
            return Resources(local.n_workers * local.n_threads, local.nbytes // local.n_threads)
        if kind == "running":
            with connect(_running_address(None if config_file else os.fspath(config))):
                return scheduler_resources()
        if kind == "mpi":
            return Resources(1)
        cores, memory = job_size(kind)
        return Resources((jobs or 1) * cores, memory // cores)


@contextmanager
def _configured(config: str, jobs: int | None) -> Iterator[tuple[str, str | None]]:
    """Put the settings of a configuration in force; yield its kind, and its file if it is one."""
    import dask

    from ctlab_dask_zarr.execution.configuration import (
        check_dask_config,
        configured_kind,
        read_configuration,
    )
    from ctlab_dask_zarr.execution.jobs import BATCH_SYSTEMS, import_jobqueue

    check_dask_config()
    kind, settings, config_file = config, {}, None
    if "://" in config or config.endswith(".json"):
        kind = "running"
    elif config.endswith((".yaml", ".yml")):
        settings = read_configuration(config)
        kind, config_file = configured_kind(settings, config), os.path.abspath(config)
    elif config not in _KINDS:
        near = get_close_matches(config, _KINDS, 1)
        raise InvalidArgumentError(
            f"cluster {config!r} is none of {', '.join(_KINDS)}, a YAML file (.yaml), an address "
            f"(tcp://HOST:PORT) or a scheduler file (.json){f': {near[0]}?' if near else ''}"
        )
    if jobs is not None and kind in ("mpi", "running"):
        whose = "mpirun or srun" if kind == "mpi" else "the scheduler that runs already"
        raise InvalidArgumentError(f"the number of workers is that of {whose}: leave jobs out")
    if kind in BATCH_SYSTEMS:
        import_jobqueue()
    merged = dask.config.merge(dask.config.config, settings)
    names = [dask.config.canonical_name(key, merged) for key in settings]
    with dask.config.set({name: merged[name] for name in names}):
        yield kind, config_file


def _running_address(config: str | None) -> str:
    """Return the address of a running scheduler that answers; None asks dask's settings for it."""
    import dask

    address = dask.config.get("scheduler-address") if config is None else config
    is_file = address.endswith(".json")
    with connect(None if is_file else address, address if is_file else None) as client:
        return str(client.scheduler_info()["address"])


@contextmanager
def connect(address: str | None = None, scheduler_file: str | None = None) -> Iterator[Client]:
    """Connect to a running scheduler, by its address or by its scheduler file.

    Raises
    ------
    InvalidArgumentError
        Nobody answers there within dask's ``distributed.comm.timeouts.connect``.
    ClusterError
        A worker there has other versions than this process.
    """
    from distributed import Client

    from ctlab_dask_zarr.execution.versions import same_versions

    try:
        client = Client(address or _address_in(scheduler_file))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"no dask scheduler answers at {address or scheduler_file}: {error}"
        ) from error
    with client, same_versions(client):
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
