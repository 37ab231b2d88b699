"""What the dask scheduler in force has to offer, for the plan."""

from __future__ import annotations

import sys
from typing import Any

import dask
from dask.system import CPU_COUNT

from ctlab_dask_zarr.write.rechunk import Resources

__all__ = ["current_client", "scheduler_resources"]


def scheduler_resources() -> Resources:
    """Return threads over all workers, and memory of one thread, of the scheduler in force.

    A cluster without workers yet (a batch queue) counts as unknown: one thread for every CPU here.
    """
    client = current_client()
    if client is not None:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        n_threads = sum(worker["nthreads"] for worker in workers)
        if n_threads:
            # Jobs that still wait in a queue are counted as if they were there already.
            n_planned = len(getattr(client.cluster, "plan", ()))
            n_threads = max(n_threads, n_planned * n_threads // len(workers))
            limits = [w["memory_limit"] // w["nthreads"] for w in workers if w["memory_limit"]]
            return Resources(n_threads, min(limits, default=None))
    if dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded"):
        return Resources(1)
    return Resources(dask.config.get("num_workers", None) or CPU_COUNT)


def current_client() -> Any:
    """Return the client that a plain ``compute()`` would use, without importing distributed."""
    if "distributed" not in sys.modules or dask.config.get("scheduler", None) not in (
        None,
        "dask.distributed",
        "distributed",
    ):
        return None
    from distributed.client import default_client

    try:
        return default_client()
    except ValueError:
        return None
