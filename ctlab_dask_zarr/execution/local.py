"""Workers as processes of this machine.

The module is preloaded in each of these workers too (`dask_setup`).
"""

from __future__ import annotations

import ast
import linecache
import logging
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import LocalCluster

from ctlab_dask_zarr.errors import ClusterError
from ctlab_dask_zarr.execution.allocation import allocated_resources, files_problem
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.text import counted_text
from ctlab_dask_zarr.waits import doing

#: Part of the memory that workers may use together; client and scheduler need the rest.
WORKERS_SHARE = 0.9
#: How long a write waits without any worker, unless dask's settings say it. A nanny gives up a
#: worker that dies while it starts, so that a write without this limit would wait for ever.
_NO_WORKERS_TIMEOUT = "5 minutes"


@dataclass(frozen=True)
class LocalWorkers:
    """Worker processes, the threads in each, and the bytes of memory of each."""

    n_workers: int
    n_threads: int
    nbytes: int

    def resources(self) -> Resources:
        """Return what these workers have together."""
        return Resources(self.n_workers * self.n_threads, self.nbytes // self.n_threads)

    @contextmanager
    def start(self) -> Iterator[LocalCluster]:
        """Start a cluster on the loopback address.

        dask's setting ``temporary-directory`` takes precedence over the folder of the job.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A worker is importing a script without a main guard; its parent says what is wrong.
            sys.exit(1)
        directory = dask.config.get("temporary-directory", None)
        timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
        # The cluster keeps these settings; they are not for others in this process.
        with (
            dask.config.set(
                {
                    "temporary-directory": directory or allocated_resources().local_directory,
                    "distributed.scheduler.no-workers-timeout": timeout or _NO_WORKERS_TIMEOUT,
                }
            ),
            doing(f"starting {counted_text(self.n_workers, 'worker')}"),
        ):
            cluster = self._started()
        with cluster:
            yield cluster

    def _started(self) -> LocalCluster:
        try:
            return LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=self.n_threads,
                memory_limit=self.nbytes,
                host="127.0.0.1",
                # With None the scheduler would take port 8787, and warn if it is taken.
                dashboard_address="127.0.0.1:0",
                # The exception that reaches the client tells of a failed task already.
                silence_logs=logging.CRITICAL,
                preload=[__name__],
            )
        except RuntimeError as error:
            if problem := files_problem(error):
                raise ClusterError(f"workers could not be started: {problem}") from error
            if not _is_unguarded_script():
                raise
            # Ends the script with these lines alone; a traceback would show dask's own code.
            raise SystemExit(
                "No worker could start: each begins by running this script, which starts workers "
                "again.\nPut what the script does, from the start of the cluster on, below a main "
                'guard:\n    if __name__ == "__main__":'
            ) from None


def local_workers(
    n_workers: int | None = None, n_threads: int | None = None, nbytes: int | None = None
) -> LocalWorkers:
    """Return local workers that fill this job's allocation, as far as nothing else is given.

    Examples
    --------
    >>> local_workers(4, 2, 2**30)
    LocalWorkers(n_workers=4, n_threads=2, nbytes=1073741824)
    """
    allocation = allocated_resources()
    n_threads = n_threads or 1
    n_workers = n_workers or max(1, allocation.n_cpus // n_threads)
    share = int(allocation.nbytes * WORKERS_SHARE / n_workers)
    return LocalWorkers(n_workers, n_threads, share if nbytes is None else nbytes)


def dask_setup(worker: Any) -> None:
    """Have a worker ignore what asks to stop; dask calls this in its main thread.

    Ctrl-C and a batch system's SIGTERM reach every process of a job. The command decides then,
    waits for the shards under way and closes its workers; a worker whose owner dies ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _is_unguarded_script() -> bool:
    """Whether the script that runs does this at its top level, without a main guard."""
    main = vars(sys.modules["__main__"])
    for frame, line in traceback.walk_stack(None):
        if frame.f_globals is main and frame.f_code.co_name == "<module>":
            source = "".join(linecache.getlines(frame.f_code.co_filename))
            return any(
                statement.lineno <= line <= (statement.end_lineno or line)
                and not isinstance(statement, ast.If)
                for statement in ast.parse(source).body
            )
    return False
