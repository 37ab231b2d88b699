"""Where a graph runs: workers of this machine, of a batch system, of MPI, or of a scheduler.

Each kind of workers is one file with one class: it says what its workers have, and starts them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from typing import Any, Protocol

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta
from distributed import Client

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.jobs import BATCH_SYSTEMS, JobWorkers, import_jobqueue
from ctlab_dask_zarr.execution.local import local_workers
from ctlab_dask_zarr.execution.mpi import MPIWorkers
from ctlab_dask_zarr.execution.running import RunningWorkers
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.execution.versions import same_versions
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.settings import (
    KEYS_WITHOUT_DEFAULT,
    canonical_name,
    load_defaults,
    setting,
    wrong_keys,
)

#: Kinds of workers that have a name; dask's settings say the rest.
_KINDS = ("local", *BATCH_SYSTEMS, "mpi")
#: How long a write waits for jobs without any worker, unless dask's settings say it.
_WORKER_TIMEOUT = "1h"


class Workers(Protocol):
    """A kind of workers."""

    def resources(self) -> Resources:
        """Return what the workers have, or will have, together; nothing is started."""
        ...

    def start(self) -> AbstractContextManager[Any]:
        """Start the workers, yield a cluster or an address for a `Client`, and end them."""
        ...


@contextmanager
def cluster_from_config(
    config: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    *,
    worker_timeout: str | None = None,
    on_wait: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    threads: int | None = None,
    memory_limit: str | int | None = None,
) -> Iterator[Any]:
    """Start the cluster that a configuration describes, and stop it at the end.

    Workers need the same versions of this package, zarr, numpy, numcodecs, dask and distributed as
    this process.

    Parameters
    ----------
    config
        A YAML file in dask's own keys, which hold until the end, for all of this process and the
        workers; or ``local``, ``slurm``, ``pbs`` or ``mpi``, for what dask's own files and
        ``DASK_CONFIG`` say; or the address or the scheduler file (``.json``) of a running
        scheduler. By default the setting ``ctlab-zarr.cluster``, else ``local`` with the settings
        ``workers``, ``threads`` and ``memory-limit``.
    jobs
        How many jobs of the batch system, each replaced when it is lost; by default one. Of a local
        cluster: worker processes, by default one for each allocated CPU. Other clusters have their
        own number.
    worker_timeout
        How long to wait for a job to start, the first one or another if all are lost, as dask
        writes it: ``"30 minutes"``; by default dask's ``distributed.scheduler.no-workers-timeout``,
        and if that is not set an hour.
    on_wait
        Called now and then with what the queue says while no job has started.
    stop
        Ends that waiting before its time-out.
    threads
        Of a local cluster: threads in each worker process, by default one.
    memory_limit
        Of a local cluster: memory of one worker process, as ``"4GiB"`` or in bytes; by default its
        share of the allocation.

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
    with (
        _workers_for(config, jobs, threads, memory_limit, worker_timeout, on_wait, stop) as workers,
        workers.start() as cluster,
        # Not the default client: that is to be the caller's own.
        Client(cluster, set_as_default=False) as client,
        same_versions(client),
    ):
        yield cluster


def cluster_resources(
    config: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    *,
    threads: int | None = None,
    memory_limit: str | int | None = None,
) -> Resources:
    """Return what the workers of `cluster_from_config` would have together; nothing is started.

    A running scheduler tells what it has. The number of ranks of MPI is not known before they run:
    one thread stands for them.

    Examples
    --------
    >>> cluster_resources("local", 2, threads=2, memory_limit="4GiB")
    Resources(n_threads=4, thread_nbytes=2147483648)
    """
    with _workers_for(config, jobs, threads, memory_limit) as workers:
        return workers.resources()


@contextmanager
def _workers_for(
    config: str | os.PathLike[str] | None,
    jobs: int | None,
    threads: int | None = None,
    memory_limit: str | int | None = None,
    worker_timeout: str | None = None,
    on_wait: Callable[[str], None] | None = None,
    stop: Stop | None = None,
) -> Iterator[Workers]:
    """Put the settings of a configuration in force, and yield the workers that it describes."""
    _check_dask_config()
    if config is None and not (jobs or threads or memory_limit) and setting("cluster"):
        config, jobs = setting("cluster"), setting("jobs")
    if config is None:
        jobs, threads = jobs or setting("workers"), threads or setting("threads")
        memory_limit = memory_limit or setting("memory-limit")
    name = "local" if config is None else os.fspath(config)
    kind, settings, config_file = _read(name)
    if jobs is not None and kind in ("mpi", "running"):
        whose = "mpirun or srun" if kind == "mpi" else "the scheduler that runs already"
        raise InvalidArgumentError(f"the number of workers is that of {whose}: leave jobs out")
    if (threads or memory_limit) and kind != "local":
        raise InvalidArgumentError(
            f"cluster {name!r} says what its workers are: leave threads and memory_limit out"
        )
    merged = dask.config.merge(dask.config.config, settings)
    names = [dask.config.canonical_name(key, merged) for key in settings]
    with dask.config.set({key: merged[key] for key in names}):
        if kind == "local":
            nbytes = None if memory_limit is None else parse_bytes(memory_limit)
            yield local_workers(jobs, threads, nbytes)
        elif kind == "mpi":
            yield MPIWorkers()
        elif kind == "running":
            address = dask.config.get("scheduler-address") if config_file else name
            yield RunningWorkers(*((address, None) if _is_address(address) else (None, address)))
        else:
            configured = dask.config.get("distributed.scheduler.no-workers-timeout")
            timeout_s = float(parse_timedelta(worker_timeout or configured or _WORKER_TIMEOUT))
            told = on_wait or (lambda text: None)
            yield JobWorkers(kind, jobs or 1, config_file, timeout_s, told, stop or Stop())


def _read(name: str) -> tuple[str, dict[str, Any], str | None]:
    """Return the kind of a cluster, its settings, and the path of its file if it is one."""
    kind, settings, config_file = name, {}, None
    if name.endswith((".yaml", ".yml")):
        settings = read_configuration(name)
        kind, config_file = configured_kind(settings, name), os.path.abspath(name)
    elif _is_address(name) or name.endswith(".json") or os.path.isabs(name):
        # A scheduler file may have any name, and may not be there yet.
        kind = "running"
    elif name not in _KINDS:
        near = get_close_matches(name, _KINDS, 1)
        raise InvalidArgumentError(
            f"cluster {name!r} is not one of {', '.join(_KINDS)}, a YAML file (.yaml), an address "
            f"(tcp://HOST:PORT) or a scheduler file (.json){f': {near[0]}?' if near else ''}"
        )
    if kind in BATCH_SYSTEMS:
        # Its defaults are settings, too.
        import_jobqueue()
    return kind, settings, config_file


def _is_address(name: str) -> bool:
    return "://" in name or re.fullmatch(r"[\w.-]+:\d+", name) is not None


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a YAML file of dask's keys says; refuse keys that dask would silently ignore."""
    name = os.fspath(path)
    try:
        with open(name) as file:
            loaded = yaml.safe_load(file)
    except OSError as error:
        raise InvalidArgumentError(f"cluster configuration {name}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"cluster configuration {name} is not YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InvalidArgumentError(
            f"cluster configuration {name} holds {type(loaded).__name__}: it has to hold keys, as "
            "`jobqueue:` or `distributed:`"
        )
    if "jobqueue" in loaded:
        import_jobqueue()
    problems = [*wrong_keys(loaded, _known_settings()), *_misplaced_keys(loaded)]
    if problems:
        raise InvalidArgumentError(f"cluster configuration {name}: {'; '.join(problems)}")
    return loaded


def _check_dask_config() -> None:
    """Raise an error if a file that ``DASK_CONFIG`` names is wrong: dask itself says nothing."""
    path = os.environ.get("DASK_CONFIG")
    if not path:
        return
    files = [path]
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        files = [os.path.join(path, name) for name in names if name.endswith((".yaml", ".yml"))]
    for file in files:
        read_configuration(file)


def _known_settings() -> dict[str, Any]:
    """Return all settings that have a default: dask's, ours, and dask-jobqueue's if imported."""
    load_defaults()
    return dask.config.merge(*dask.config.defaults)


def _misplaced_keys(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key on the first level that belongs into ``jobqueue``.

    It would count as the section of some other package, and the cluster as a local one.
    """
    names = {canonical_name(key): key for key in given}
    unknown = names.keys() - _known_settings().keys() - set(KEYS_WITHOUT_DEFAULT)
    if not unknown:
        return
    # Without dask-jobqueue the keys of its sections are not known.
    sections: Mapping[str, Any] = dict.fromkeys(BATCH_SYSTEMS, ())
    try:
        import_jobqueue()
        sections = {system: _known_settings()["jobqueue"][system] for system in BATCH_SYSTEMS}
    except InvalidArgumentError:
        pass
    for name in unknown:
        near = get_close_matches(name, sections, 1, cutoff=0.75)
        places = [f"jobqueue.{near[0]}"] if near else []
        places += [f"jobqueue.{system}.{name}" for system in sections if name in sections[system]]
        if places:
            yield f"{names[name]} is not a setting of its own; is {' or '.join(places)} meant?"


def configured_kind(settings: Mapping[str, Any], name: str) -> str:
    """Return what kind of workers a configuration describes, by default local ones."""
    systems = list(settings.get("jobqueue") or {})
    if len(systems) == 1 and systems[0] in BATCH_SYSTEMS:
        return str(systems[0])
    if systems:
        raise InvalidArgumentError(
            f"cluster configuration {name} has jobqueue sections {', '.join(map(str, systems))}: "
            f"it has to have one, {' or '.join(BATCH_SYSTEMS)}"
        )
    if any(canonical_name(key) == "scheduler-address" for key in settings):
        return "running"
    return "local"
