"""Workers as jobs of SLURM or PBS, by dask-jobqueue.

dask-jobqueue makes the job scripts, out of its own keys. This adds defaults that a long write
needs, each only if the configuration says nothing.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed import Scheduler, SchedulerPlugin, Status
from distributed.deploy.spec import ProcessInterface
from distributed.deploy.utils import nprocesses_nthreads

from ctlab_dask_zarr.errors import ClusterError, InvalidArgumentError, WriteStoppedError
from ctlab_dask_zarr.execution.allocation import (
    choose_interface,
    clock_seconds,
    slurm_is_this_host,
)
from ctlab_dask_zarr.execution.stopping import MORE_TIME, Stop
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.text import duration_text, install_text
from ctlab_dask_zarr.waits import LONG_S, doing

_logger = logging.getLogger(__name__)

#: Our names, which are those of dask-jobqueue's sections, and its classes.
BATCH_SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster"}
#: Commands that tell about jobs; the numbers of the jobs follow.
_QUEUE_COMMANDS = {
    "slurm": ["squeue", "--noheader", "--format=%i %T (%r)", "--jobs"],
    "pbs": ["qstat"],
}
#: The shell of the job expands it on its node; $PBS_JOBFS is Gadi's disk of the job.
_NODE_DISK = '"${PBS_JOBFS:-${TMPDIR:-/tmp}}"'
_LOG_DIRECTORY = "dask-worker-logs"
#: squeue and qstat say this of a job that they no longer know.
_UNKNOWN_JOB = ("Invalid job id", "Unknown Job", "has finished")
#: A worker leaves this part of the walltime before its job ends, but at most so many seconds.
_MARGIN_SHARE = 0.2
_MARGIN_S = 300.0
_POLL_S = 0.1
#: Seconds between two questions to the queue while no worker is there.
ASK_INTERVAL_S = 30.0
#: Seconds until a job that the queue refused is submitted again: limits change as other jobs end.
RETRY_S = 30.0
#: The jobs have ended if the queue says so this many times in a row: some queues list a new job a
#: moment late.
_N_GONE = 2
#: An error quotes so much of the end of a worker's log.
_LOG_NBYTES = 2000
_LOG_LINES = 5


def import_jobqueue() -> ModuleType:
    """Import dask-jobqueue, or say how to get it."""
    # Its import takes Ctrl-C away from everybody else in the process.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise InvalidArgumentError(
            f"workers as jobs of SLURM or PBS need dask-jobqueue: {install_text('jobqueue')}"
        ) from error
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
    module: ModuleType = dask_jobqueue
    return module


@dataclass(frozen=True)
class JobWorkers:
    """Jobs of a batch system, each replaced when it is lost."""

    #: A section of dask's ``jobqueue`` settings.
    system: str
    n_jobs: int = 1
    #: A YAML file whose settings hold for the workers too.
    config_file: str | None = None
    #: For the first worker to come, and later for another one if all are lost.
    timeout_s: float = 3600.0
    #: Called now and then with what the queue says while no worker is there.
    on_wait: Callable[[str], None] = lambda text: None
    stop: Stop = field(default_factory=Stop)

    def resources(self) -> Resources:
        """Return what all jobs have together, as configured."""
        section = self._section()
        cores = int(section["cores"])
        return Resources(self.n_jobs * cores, int(parse_bytes(section["memory"])) // cores)

    def _section(self) -> dict[str, Any]:
        section: dict[str, Any] = dask.config.get(f"jobqueue.{self.system}")
        missing = [key for key in ("cores", "memory") if section[key] is None]
        if missing:
            raise InvalidArgumentError(
                f"jobqueue.{self.system} does not say the {' and '.join(missing)} of a job: begin "
                "with a file of cluster-configs/, or see the documentation of dask-jobqueue"
            )
        return section

    def options(self) -> dict[str, Any]:
        """Return arguments for dask-jobqueue's cluster in place of missing settings."""
        section = self._section()
        prologue = [*map(str, section["job-script-prologue"] or section["env-extra"] or ())]
        if self.config_file is not None:
            prologue.insert(0, f"export DASK_CONFIG={shlex.quote(self.config_file)}")
        options: dict[str, Any] = {
            # Named even if it is the default: only then does dask-jobqueue know the workers of a
            # job of several processes by their names, and notice when they are all gone.
            "processes": section["processes"] or nprocesses_nthreads(int(section["cores"]))[0],
            "worker_extra_args": _worker_arguments(section),
            "job_script_prologue": prologue,
            # dask's default is a port open to everybody on this node.
            "scheduler_options": {
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
            options["interface"] = choose_interface(
                only_this_host=self.system == "slurm" and slurm_is_this_host()
            )
        return options

    @contextmanager
    def start(self) -> Iterator[Any]:
        """Submit the jobs, wait for the first worker, and yield dask-jobqueue's cluster.

        Raises
        ------
        ClusterError
            The queue refused the jobs, they ended at once, or no worker came, or none any more.
        """
        cluster_class = getattr(import_jobqueue(), BATCH_SYSTEMS[self.system])
        options = self.options()
        job_class = type("RecordedJob", (_RecordedJob, cluster_class.job_cls), {"refusals": []})
        timeout = {"distributed.scheduler.no-workers-timeout": f"{self.timeout_s} s"}
        with dask.config.set(timeout):
            try:
                cluster = cluster_class(job_cls=job_class, **options)
            except ValueError as error:
                raise InvalidArgumentError(f"jobqueue.{self.system}: {error}") from error
        with cluster:
            cluster.scheduler.add_plugin(_ForgetLostJobs(cluster))
            # `scale` to a fixed number would not replace lost jobs.
            cluster.adapt(minimum_jobs=self.n_jobs, maximum_jobs=self.n_jobs)
            queue = _Queue(self.system, cluster)
            self._wait_for_worker(queue)
            try:
                yield cluster
            except Exception as error:
                if "NoWorkerError" not in f"{type(error).__name__} {error}":
                    raise
                # dask knows only that no worker came; the queue knows why.
                refused = [reason for reason in queue.refusals if reason is not None][-1:]
                raise ClusterError(
                    f"no worker for {self.timeout_s:.0f} s. {queue.ask()[0]}"
                    + "".join(f"; {self.system} refused a job: {reason}" for reason in refused)
                    + f". {queue.end_of_a_log()}. {error}"
                ) from error

    def _wait_for_worker(self, queue: _Queue) -> None:
        """Wait for the first worker, and say now and then what the queue says."""
        longest = duration_text(self.timeout_s)
        advice = f"It waits for {longest} at most; fewer or shorter jobs start sooner"
        with doing(f"waiting for workers: {self.n_jobs} jobs of {self.system}", advice) as show:
            self._await_worker(queue, show)

    def _await_worker(self, queue: _Queue, show: Callable[[str], None]) -> None:
        start_s = time.monotonic()
        # The first question comes sooner.
        asked_s = start_s - max(0.0, ASK_INTERVAL_S - LONG_S)
        n_gone = 0
        while not queue.cluster.scheduler_info["workers"]:
            if len(queue.refusals) >= self.n_jobs and all(queue.refusals):
                raise ClusterError(f"{self.system} refused the job: {queue.refusals[0]}")
            reason = self.stop.reason()
            now_s = time.monotonic()
            is_late = now_s - start_s > self.timeout_s
            is_time_to_ask = now_s - asked_s > ASK_INTERVAL_S
            if reason is not None or is_late or is_time_to_ask:
                said, are_gone = queue.ask()
            if reason is not None and self.stop.is_futile():
                raise ClusterError(
                    f"stopped ({reason}): no worker came in the {self.stop.time_spent()} that "
                    f"there were: {said}. Nothing was written; give it {MORE_TIME}, or ask for "
                    "workers that the queue starts sooner"
                )
            if reason is not None:
                raise WriteStoppedError(
                    f"stopped ({reason}) before a worker came: {said}. Nothing was written; go on "
                    "by resume=True (--resume)"
                )
            if is_late:
                raise ClusterError(
                    f"no worker after {self.timeout_s:.0f} s. {said}. {queue.end_of_a_log()}"
                )
            if is_time_to_ask:
                asked_s = now_s
                show(f"waiting for workers: {said}")
                self.on_wait(f"waiting for workers: {said}")
                n_gone = n_gone + 1 if are_gone else 0
                if n_gone == _N_GONE:
                    raise ClusterError(
                        f"all jobs ended before a worker came. {said}. {queue.end_of_a_log()}"
                    )
            self.stop.woken.wait(_POLL_S)


def _worker_arguments(section: dict[str, Any]) -> list[str]:
    """Return the arguments of ``dask worker``, with a lifetime a little below the walltime.

    A worker leaves before its job ends, to hand over its results.
    """
    given = [str(part) for part in section["worker-extra-args"] or section["extra"] or ()]
    text = " ".join(given)
    if "--dashboard-address" not in text:
        # dask's default is a port open to everybody who reaches the node.
        given += ["--dashboard-address", "127.0.0.1:0"]
    walltime = section["walltime"]
    has_lifetime = "--lifetime" in text or dask.config.get("distributed.worker.lifetime.duration")
    if walltime is None or has_lifetime:
        return given
    # A number is ambiguous: YAML reads 10:00:00 without quotes as 36000, minutes to SLURM.
    walltime_s = clock_seconds(walltime) if isinstance(walltime, str) else None
    if walltime_s is None:
        raise InvalidArgumentError(
            f'walltime {walltime!r}: write it as text, in quotes: "HH:MM:SS" or "D-HH:MM:SS"'
        )
    margin_s = min(_MARGIN_S, walltime_s * _MARGIN_SHARE)
    # Staggered, so that workers that started together do not leave together.
    lifetime = ["--lifetime", f"{walltime_s - margin_s:.0f}s"]
    return [*given, *lifetime, "--lifetime-stagger", f"{margin_s / 2:.0f}s"]


_Job: Any = ProcessInterface


class _RecordedJob(_Job):  # type: ignore[misc]
    """A job of dask-jobqueue that records a refusal by the queue, and is submitted again later.

    dask would log the refusal, with a traceback, and fail on the job when it closes the cluster.
    """

    #: For each submission of any job of the cluster: why the queue refused it, or None.
    refusals: list[str | None]

    async def start(self) -> None:
        try:
            await super().start()
        except (OSError, RuntimeError, ValueError) as error:
            # dask-jobqueue quotes the command and its output; the reason comes last.
            reason = _in_one_line(str(error).rpartition("stderr:\n")[2])
            _logger.warning("the queue refused a job: %s", reason)
            self.refusals.append(reason)
            self.status = Status.running
            asyncio.get_running_loop().call_later(RETRY_S, self._forget)
        else:
            self.refusals.append(None)

    def _forget(self) -> None:
        # When the cluster adapts next, it makes each job anew that is wanted and not there.
        self.status = Status.closed
        cluster = self._cluster()
        present = {} if cluster is None else cluster.workers
        for name in [name for name, job in present.items() if job is self]:
            del present[name]

    async def close(self) -> None:
        await super().close()
        self.status = Status.closed


class _ForgetLostJobs(SchedulerPlugin):
    """Forgets a job of several processes when all of them are gone, so that it is replaced.

    dask does so for jobs of one process only; a nanny replaces a single process of several.
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


class _Queue:
    """What the batch system, and the logs, say about the jobs of a cluster."""

    def __init__(self, system: str, cluster: Any) -> None:
        self.system = system
        self.cluster = cluster
        self.refusals: list[str | None] = cluster.job_cls.refusals

    def ask(self) -> tuple[str, bool]:
        """Return what the queue says about the jobs, and whether it knows none of them any more."""
        numbers = self._job_numbers()
        if not numbers:
            return f"{self.system} has been given no job yet", False
        command = _QUEUE_COMMANDS[self.system]
        listed = [",".join(numbers)] if self.system == "slurm" else numbers
        try:
            asked = subprocess.run([*command, *listed], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{command[0]} does not answer: {error}", False
        said = _in_one_line(asked.stdout) or _in_one_line(asked.stderr) or f"no job {numbers}"
        # A queue that is down fails as well, but with other words.
        is_answer = asked.returncode == 0 or any(words in asked.stderr for words in _UNKNOWN_JOB)
        return f"{command[0]} says: {said}", is_answer and not asked.stdout.strip()

    def _job_numbers(self) -> list[str]:
        jobs = list(self.cluster.workers.values())
        return sorted(str(job.job_id) for job in jobs if job.job_id)

    def end_of_a_log(self) -> str:
        """Return where the logs of the jobs are, and how the newest of them ends."""
        jobs = list(self.cluster.workers.values())
        if not jobs:
            return "No job is left"
        directory = Path(jobs[0].log_directory).absolute()
        where = f"Logs of the jobs are in {directory}"
        # PBS appends the name of its server to a job's number; the names of files may lack it.
        numbers = {number.partition(".")[0] for number in self._job_numbers()}
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


def _in_one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
