"""The dask scheduler in force: what it has to offer, and what it has to hold for a graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
from dask._task_spec import TaskRef
from dask.system import CPU_COUNT

from ctlab_dask_zarr.errors import ClusterError, InvalidArgumentError
from ctlab_dask_zarr.planning.rechunk import Resources

if TYPE_CHECKING:
    from dask.delayed import Delayed


def scheduler_resources() -> Resources:
    """Return the threads of all workers, and the memory of one thread, of the scheduler in force.

    A cluster without workers yet (a batch queue) counts as unknown: one thread for every CPU here.
    """
    client = current_client()
    if client is not None:
        known = client.scheduler_info(n_workers=-1)
        workers = known["workers"].values()
        n_threads = sum(worker["nthreads"] for worker in workers)
        if not workers and known.get("total_threads"):
            # An asynchronous client knows only these totals without waiting.
            n_threads = known["total_threads"]
            return Resources(n_threads, known.get("total_memory", 0) // n_threads or None)
        if n_threads:
            # Jobs that still wait in a queue count as if they had started.
            n_planned = len(getattr(client.cluster, "plan", ()))
            n_threads = max(n_threads, n_planned * n_threads // len(workers))
            limits = [w["memory_limit"] // w["nthreads"] for w in workers if w["memory_limit"]]
            return Resources(n_threads, min(limits, default=None))
    if dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded"):
        return Resources(1)
    return Resources(dask.config.get("num_workers", None) or CPU_COUNT)


def current_client() -> Any:
    """Return the client that a plain ``compute()`` would use, without importing distributed.

    Within a task it is a client of the worker.
    """
    scheduler = dask.config.get("scheduler", None)
    if "distributed" not in sys.modules:
        return None
    from distributed import Client, get_client

    if isinstance(scheduler, Client):
        return scheduler
    if scheduler is not None and str(scheduler).lower() not in ("dask.distributed", "distributed"):
        return None
    try:
        return get_client()
    except ValueError:
        return None


@contextmanager
def waiting_for(graph: Delayed, client: Any) -> Iterator[None]:
    """Check that `graph` can be waited for here; enter this before anything is touched.

    `client` is None where no cluster computes it.

    Raises
    ------
    InvalidArgumentError
        The client runs in the event loop that would wait.
    ClusterError
        The graph needs results that a cluster holds and this scheduler cannot get.
    """
    if client is not None and client.asynchronous:
        raise InvalidArgumentError(
            "the dask client in force is asynchronous: waiting here would block the event loop "
            "that it runs in. Have it compute what compute=False returns, as in `await "
            "client.compute(dataset_to_zarr(dataset, path, compute=False))`, or call the function "
            "in a thread, as in `await asyncio.to_thread(verify, path)`"
        )
    held = [
        task
        for layer in graph.dask.layers.values()
        for task in layer.values()
        if isinstance(task, TaskRef)
    ]
    lost = [task for task in held if getattr(task, "status", None) in ("cancelled", "lost")]
    if lost:
        raise _cannot_get(lost, "their client was closed, or they were cancelled")
    if held and client is None:
        raise _cannot_get(held, "the scheduler in force is another one")
    try:
        yield
    except Exception as error:
        if held and "lost dependencies" in str(error):
            why = "the cluster in force does not know them: it is another one, or has lost them"
            raise _cannot_get(held, why) from error
        raise


def _cannot_get(held: Sequence[TaskRef], why: str) -> ClusterError:
    return ClusterError(
        "the array is made from results that a dask cluster holds (persisted blocks, or Futures as "
        f"arguments; the first of {len(held)} is {held[0].key!r}), and the scheduler in force "
        f"cannot get them: {why}. Keep the client of that cluster open and in force, with no other "
        "scheduler in dask's configuration; or make the array anew"
    )
