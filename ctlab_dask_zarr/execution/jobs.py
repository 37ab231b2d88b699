"""Workers as jobs of SLURM or PBS, by dask-jobqueue.

dask-jobqueue makes the job scripts, out of its own keys. What is added here are defaults that a
long write needs, each only where the configuration says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed import SchedulerPlugin, Status
from distributed.deploy.utils import nprocesses_nthreads

from ctlab_dask_zarr.errors import ClusterError, InvalidArgumentError, WriteStoppedError
from ctlab_dask_zarr.execution.interface import choose_interface, slurm_is_this_host
from ctlab_dask_zarr.execution.stopping import MORE_TIME

if TYPE_CHECKING:
    from distributed import Scheduler

    from ctlab_dask_zarr.execution.stopping import Stop

__all__ = [
    "BATCH_SYSTEMS",
    "import_jobqueue",
    "job_cluster",
    "job_options",
    "job_size",
    "walltime_seconds",
]

_logger = logging.getLogger(__name__)

#: Our names, which are those of dask-jobqueue's sections, and its classes.
BATCH_SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster"}
#: What to ask about jobs; their numbers follow.
_QUEUE_COMMANDS = {
    "slurm": ["squeue", "--noheader", "--format=%i %T (%r)", "--jobs"],
    "pbs": ["qstat"],
}
#: Expanded by the shell of the job, on its node: $PBS_JOBFS is Gadi's disk of the job.
_NODE_DISK = '"${PBS_JOBFS:-${TMPDIR:-/tmp}}"'
_LOG_DIRECTORY = "dask-worker-logs"
#: How squeue and qstat say that they know a job no more.
_UNKNOWN_JOB = ("Invalid job id", "Unknown Job", "has finished")
#: A worker leaves before its job ends, to hand over what it holds: this part of the walltime
#: before the end, but no more than these seconds.
_MARGIN_SHARE = 0.2
_MARGIN_S = 300.0
_POLL_S = 0.1
#: Seconds between two questions to the queue while no worker is there.
_ASK_INTERVAL_S = 30.0
#: Seconds after which a job that the queue refused is submitted again: its limits change as other
#: jobs end.
_RETRY_S = 30.0
#: So many answers in a row that it knows none of the jobs are believed: some queues list a new job
#: a moment late.
_N_GONE = 2
#: Of the end of a worker's log, what an error quotes.
_LOG_NBYTES = 2000
_LOG_LINES = 5


def import_jobqueue() -> ModuleType:
    """Import dask-jobqueue, or say how to get it."""
    # Its import takes Ctrl-C away from everyone else in the process.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise InvalidArgumentError(
            "workers as jobs of SLURM or PBS need dask-jobqueue: "
            "pip install 'ctlab-dask-zarr[jobqueue]'"
        ) from error
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
    module: ModuleType = dask_jobqueue
    return module


def job_size(system: str) -> tuple[int, int]:
    """Return cores and bytes of memory of one job, as configured."""
    section = dask.config.get(f"jobqueue.{system}")
    missing = [key for key in ("cores", "memory") if section[key] is None]
    if missing:
        raise InvalidArgumentError(
            f"jobqueue.{system} does not say the {' and '.join(missing)} of a job: begin with a "
            "file of cluster-configs/, or see the documentation of dask-jobqueue"
        )
    return int(section["cores"]), int(parse_bytes(section["memory"]))


def job_options(system: str, config_file: str | None = None) -> dict[str, Any]:
    """Return the arguments of the cluster of dask-jobqueue that stand in for missing settings.

    Parameters
    ----------
    system
        A section of dask's ``jobqueue`` settings: ``slurm`` or ``pbs``.
    config_file
        A YAML file whose settings hold for the workers too.
    """
    cores, _ = job_size(system)
    section = dask.config.get(f"jobqueue.{system}")
    options: dict[str, Any] = {
        # Named even where it is the default: only then does dask-jobqueue know the workers of a
        # job of several processes by their names, and notice when they are all gone.
        "processes": section["processes"] or nprocesses_nthreads(cores)[0],
        "worker_extra_args": _worker_arguments(section),
        "job_script_prologue": _prologue(section, config_file),
        "scheduler_options": {
            # dask's default is a port open to everyone on this node, and a warning if it is taken.
            "dashboard_address": "127.0.0.1:0",
            **(section["scheduler-options"] or {}),
        },
    }
    if section["local-directory"] is None:
        options["local_directory"] = _NODE_DISK
    if section["log-directory"] is None:
        options["log_directory"] = _LOG_DIRECTORY
    has_address = {"host", "interface"} & set(options["scheduler_options"])
    if section["interface"] is None and not has_address:
        options["interface"] = choose_interface(system == "slurm" and slurm_is_this_host())
    return options


def _worker_arguments(section: dict[str, Any]) -> list[str]:
    """Return the arguments of ``dask worker``, with a lifetime a little under the walltime."""
    given = [str(part) for part in section["worker-extra-args"] or section["extra"] or ()]
    text = " ".join(given)
    if "--dashboard-address" not in text:
        # dask's default is a port open to everyone who reaches the node.
        given += ["--dashboard-address", "127.0.0.1:0"]
    has_lifetime = "--lifetime" in text or dask.config.get("distributed.worker.lifetime.duration")
    if section["walltime"] is None or has_lifetime:
        return given
    walltime_s = walltime_seconds(section["walltime"])
    margin_s = min(_MARGIN_S, walltime_s * _MARGIN_SHARE)
    # Staggered, so that workers which started together do not leave together.
    lifetime = ["--lifetime", f"{walltime_s - margin_s:.0f}s"]
    return [*given, *lifetime, "--lifetime-stagger", f"{margin_s / 2:.0f}s"]


def walltime_seconds(walltime: object) -> int:
    """Return the seconds in a walltime as SLURM and PBS write it.

    Raises
    ------
    InvalidArgumentError
        It has another form; among them a number: YAML reads 10:00:00 without quotes as 36000, and
        36000 are minutes to SLURM.

    Examples
    --------
    >>> walltime_seconds("00:30:00"), walltime_seconds("1-12:00:00"), walltime_seconds("2-3")
    (1800, 129600, 183600)
    """
    text = walltime if isinstance(walltime, str) else ""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    # A single number would be minutes to SLURM and seconds to PBS.
    least = 1 if dash else 2
    if not (least <= len(parts) <= 3 and all(p.isdecimal() for p in (*parts, days or "0"))):
        raise InvalidArgumentError(
            f'walltime {walltime!r}: write it as text, in quotes: "HH:MM:SS" or "D-HH:MM:SS"'
        )
    numbers = [int(part) for part in parts]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = numbers + [0] * (3 - len(numbers))
    else:
        hours, (minutes, seconds) = 0, numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _prologue(section: dict[str, Any], config_file: str | None) -> list[str]:
    """Return the lines before the worker's own, which then reads the same settings as we do."""
    given = [str(line) for line in section["job-script-prologue"] or section["env-extra"] or ()]
    return (
        given if config_file is None else [f"export DASK_CONFIG={shlex.quote(config_file)}", *given]
    )


@contextmanager
def job_cluster(
    system: str,
    jobs: int,
    config_file: str | None,
    timeout_s: float,
    on_wait: Callable[[str], None],
    stop: Stop,
) -> Iterator[Any]:
    """Start a cluster of `jobs` jobs, each replaced when it is lost, and wait for its first worker.

    Parameters
    ----------
    system, config_file
        As in `job_options`.
    jobs
        Their number.
    timeout_s
        How long to wait for the first worker, and later for another one when all are lost.
    on_wait
        Is told now and then what the queue says about the jobs.
    stop
        Ends the waiting, too.

    Yields
    ------
    dask_jobqueue.JobQueueCluster

    Raises
    ------
    ClusterError
        The queue refused the jobs, they ended at once, or no worker came, or later none any more.
    """
    cluster_class = getattr(import_jobqueue(), BATCH_SYSTEMS[system])
    options = job_options(system, config_file)
    # One for each submission: the queue's refusal, or None.
    refusals: list[str | None] = []

    class RecordedJob(cluster_class.job_cls):  # type: ignore[misc, name-defined]
        """A job whose refusal by the queue is kept, and which is submitted again after a while.

        dask would log it, with a traceback, and trip over the job when the cluster is closed.
        """

        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                # Of a command, dask-jobqueue tells all it knows, and the reason last.
                reason = _in_one_line(str(error).rpartition("stderr:\n")[2])
                _logger.warning("%s refused a job: %s", system, reason)
                refusals.append(reason)
                self.status = Status.running
                asyncio.get_running_loop().call_later(_RETRY_S, self._forget)
            else:
                refusals.append(None)

        def _forget(self) -> None:
            # A job that is wanted, and not there, is made anew the next time the cluster adapts.
            self.status = Status.closed
            cluster = self._cluster()
            present = {} if cluster is None else cluster.workers
            for name in [name for name, job in present.items() if job is self]:
                del present[name]

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    with dask.config.set({"distributed.scheduler.no-workers-timeout": f"{timeout_s} s"}):
        try:
            cluster = cluster_class(job_cls=RecordedJob, **options)
        except ValueError as error:
            raise InvalidArgumentError(f"jobqueue.{system}: {error}") from error
    with cluster:
        cluster.scheduler.add_plugin(_ForgetLostJobs(cluster))
        # Scaled to a fixed number, a cluster does not replace what it loses.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        _wait_for_worker(cluster, system, jobs, refusals, timeout_s, on_wait, stop)
        try:
            yield cluster
        except Exception as error:
            if "NoWorkerError" not in f"{type(error).__name__} {error}":
                raise
            # dask knows only that nobody came; the queue knows why.
            refused = [reason for reason in refusals if reason is not None][-1:]
            raise ClusterError(
                f"no worker for {timeout_s:.0f} s. {_said_by_queue(cluster, system)}"
                + "".join(f"; {system} refused a job: {reason}" for reason in refused)
                + f". {_end_of_a_log(cluster)}. {error}"
            ) from error


def _wait_for_worker(
    cluster: Any,
    system: str,
    jobs: int,
    refusals: Sequence[str | None],
    timeout_s: float,
    on_wait: Callable[[str], None],
    stop: Stop,
) -> None:
    start_s = asked_s = time.monotonic()
    n_gone = 0
    while not cluster.scheduler_info["workers"]:
        if len(refusals) >= jobs and all(refusals):
            raise ClusterError(f"{system} refused the job: {refusals[0]}")
        reason = stop.reason()
        if reason is not None and stop.is_futile():
            raise ClusterError(
                f"stopped ({reason}): no worker came in the {stop.time_spent()} that there were: "
                f"{_said_by_queue(cluster, system)}. Nothing was written; give it {MORE_TIME}, or "
                "ask for workers that the queue starts sooner"
            )
        if reason is not None:
            raise WriteStoppedError(
                f"stopped ({reason}) before a worker came: {_said_by_queue(cluster, system)}. "
                "Nothing was written; go on by resume=True (--resume)"
            )
        now_s = time.monotonic()
        if now_s - start_s > timeout_s:
            raise ClusterError(
                f"no worker after {timeout_s:.0f} s. {_said_by_queue(cluster, system)}. "
                f"{_end_of_a_log(cluster)}"
            )
        if now_s - asked_s > _ASK_INTERVAL_S:
            asked_s = now_s
            said = _said_by_queue(cluster, system)
            on_wait(f"waiting for workers: {said}")
            n_gone = n_gone + 1 if _are_all_gone(cluster, system) else 0
            if n_gone == _N_GONE:
                raise ClusterError(
                    f"all jobs ended before a worker came. {said}. {_end_of_a_log(cluster)}"
                )
        stop.woken.wait(_POLL_S)


def _said_by_queue(cluster: Any, system: str) -> str:
    """Return what the queue says about the jobs of a cluster."""
    if not _job_numbers(cluster):
        return f"{system} has been given no job yet"
    command = _QUEUE_COMMANDS[system][0]
    try:
        asked = _ask_queue(cluster, system)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command} does not answer: {error}"
    said = _in_one_line(asked.stdout) or _in_one_line(asked.stderr)
    return f"{command} says: {said or f'no job {_job_numbers(cluster)}'}"


def _are_all_gone(cluster: Any, system: str) -> bool:
    """Return whether the queue answers that it has none of the jobs any more."""
    if not _job_numbers(cluster):
        return False
    try:
        asked = _ask_queue(cluster, system)
    except (OSError, subprocess.SubprocessError):
        return False
    # A queue that is down fails as well, with other words.
    is_unknown = any(words in asked.stderr for words in _UNKNOWN_JOB)
    is_answer = asked.returncode == 0 or is_unknown
    return is_answer and not asked.stdout.strip()


def _ask_queue(cluster: Any, system: str) -> subprocess.CompletedProcess[str]:
    numbers = _job_numbers(cluster)
    command = [*_QUEUE_COMMANDS[system]]
    command += [",".join(numbers)] if system == "slurm" else numbers
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def _job_numbers(cluster: Any) -> list[str]:
    return sorted(str(job.job_id) for job in list(cluster.workers.values()) if job.job_id)


def _in_one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _end_of_a_log(cluster: Any) -> str:
    """Return where the logs of the jobs are, and how the newest of them ends."""
    jobs = list(cluster.workers.values())
    if not jobs:
        return "No job is left"
    directory = Path(jobs[0].log_directory).absolute()
    where = f"Logs of the jobs are in {directory}"
    # A number of PBS goes on with the name of its server, and files may lack that.
    numbers = {number.partition(".")[0] for number in _job_numbers(cluster)}
    logs = [
        path
        for path in (directory.iterdir() if directory.is_dir() else ())
        if numbers & set(re.findall(r"\d+", path.name)) and path.stat().st_size
    ]
    if not logs:
        return where
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    text = newest.read_bytes()[-_LOG_NBYTES:].decode(errors="replace")
    end = "\n".join(text.splitlines()[-_LOG_LINES:])
    return f"{where}; {newest.name} ends with:\n{end}"


class _ForgetLostJobs(SchedulerPlugin):
    """Forgets a job of several processes when all of them are gone, so that it is replaced.

    dask does so for jobs of one process only. A single process is replaced by its nanny.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._seen: set[str] = set()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._seen.add(str(scheduler.workers[worker].name))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        timeout = dask.config.get("distributed.deploy.lost-worker-timeout")
        scheduler.loop.call_later(parse_timedelta(timeout), self._forget, scheduler)

    async def _forget(self, scheduler: Scheduler) -> None:
        present = {str(worker.name) for worker in scheduler.workers.values()}
        for name, job in list(self._cluster.workers.items()):
            suffixes = self._cluster.worker_spec.get(name, {}).get("group", ())
            names = {f"{name}{suffix}" for suffix in suffixes}
            if names & self._seen and not names & present:
                self._seen -= names
                self._cluster.workers.pop(name, None)
                await job.close()
