"""Notices that a client has no workers while a graph waits for them, and says what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any

from ctlab_dask_zarr.errors import ClusterError
from ctlab_dask_zarr.waits import doing

#: Seconds between two questions to the scheduler.
_INTERVAL_S = 2.0
#: What dask calls workers of a local cluster that work, or will.
_ALIVE = ("undefined", "created", "init", "starting", "running", "partial", "paused")


class Workforce:
    """The workers of a client, as far as there are any; `problem` says that none will come."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._is_over = threading.Event()
        self.problem: ClusterError | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch until the context ends."""
        # With what the caller shows progress by. In a thread, since a scheduler may not answer.
        run = copy_context().run
        thread = threading.Thread(target=run, args=(self._watch,), name="workforce", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()

    def _watch(self) -> None:
        # If the scheduler is lost or closed, the computation itself says so.
        with suppress(Exception):
            while True:
                if not self._has_workers():
                    self._wait()
                if self.problem is not None or self._is_over.wait(_INTERVAL_S):
                    return

    def _has_workers(self) -> bool:
        return bool(self._client.scheduler_info(n_workers=1)["workers"])

    def _wait(self) -> None:
        """Wait for a worker, and say so; end that where all of a local cluster have ended."""
        address = self._client.scheduler.address
        advice = f"Start some, as by `dask worker {address}`, or look at their queue and their logs"
        with doing(f"waiting for workers: the scheduler at {address} has none", advice):
            while not self._has_workers():
                if self._have_ended():
                    self.problem = ClusterError(
                        "all workers of this cluster have ended, and it starts no others, as after "
                        "the interruption of a notebook's cell, which reaches them too: make a new "
                        "Client, as by Client(n_workers=2), and go on by resume=True"
                    )
                    return
                if self._is_over.wait(_INTERVAL_S):
                    return

    def _have_ended(self) -> bool:
        """Whether a cluster of this machine has lost all of its workers for good."""
        from distributed import LocalCluster

        cluster = self._client.cluster
        if not isinstance(cluster, LocalCluster):
            return False
        workers = list(cluster.workers.values())
        return bool(workers) and all(worker.status.name not in _ALIVE for worker in workers)
