"""A write that is planned and built is run: its graph is computed, and a failure is explained."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.threaded
from dask.delayed import delayed
from dask.system import CPU_COUNT

from ctlab_dask_zarr.errors import (
    BlockError,
    CTLabError,
    StorageError,
    WriteFailedError,
    WriteStoppedError,
)
from ctlab_dask_zarr.execution.resources import current_client, waiting_for
from ctlab_dask_zarr.execution.stopping import Stop, compute_until
from ctlab_dask_zarr.planning.plan import WritePlan
from ctlab_dask_zarr.store.shared_folder import SharedFolder
from ctlab_dask_zarr.write.staging.commit import committed_result
from ctlab_dask_zarr.write.staging.remaining import Remaining
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import is_committed

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

__all__ = ["Completion", "Write", "run_or_return", "run_write"]


class Write(NamedTuple):
    """A write that is planned and built: compute `graph`, and it is done.

    Attributes
    ----------
    graph
        Stages, writes every shard and commits; of a part, everything but the commit.
    plan
        Of the whole write.
    remaining
        What of it this graph does.
    request
        What its staging is asked for.
    """

    graph: Delayed
    plan: WritePlan
    remaining: Remaining
    request: StageRequest


class Completion(NamedTuple):
    """What is still to do before a dataset can be committed: compute `graph`, and it is."""

    graph: Delayed
    request: StageRequest
    remaining: Remaining


def run_or_return(write: Write, *, compute: bool) -> Delayed | None:
    """Run a write at once, or return its graph, which does the same wherever it is computed."""
    if compute:
        run_write(write)
        return None
    graph: Delayed = write.graph
    return graph


def run_write(
    write: Write | Completion, client: Client | None = None, stop: Stop | None = None
) -> Any:
    """Compute a write, on `client` or on the scheduler in force, and wait for its end.

    Returns the `CommitResult`; of a part, how many objects it has.

    Raises
    ------
    WriteStoppedError
        `stop` was asked for.
    InvalidArgumentError
        The client is asynchronous; nothing was touched.
    ClusterError
        A worker does not see the folder of the destination, or the source is held by a cluster
        where it cannot be had; nothing was touched, or where the worker came later, what others
        have written stays.
    WriteFailedError
        A task failed.
    """
    running = client or current_client()
    if running is None or not write.request.destination.can_rename:
        with waiting_for(write.graph, running):
            return _run_write(write, client, stop)
    folder = os.path.dirname(write.request.destination.staging)
    with waiting_for(write.graph, running), SharedFolder(running, folder) as shared:
        shared.check()
        try:
            result = _run_write(write, running, stop, shared)
        except WriteStoppedError:
            raise
        except CTLabError:
            # On such a worker tasks fail, for want of what others have written.
            shared.check_late()
            raise
        if not is_committed(write.request):
            # Of a part, or committed where it is not seen here.
            shared.check_late()
        return result


def _run_write(
    write: Write | Completion,
    client: Client | None,
    stop: Stop | None,
    shared: SharedFolder | None = None,
) -> Any:
    try:
        if client is None:
            return _compute_here(write.graph)
        if shared is not None and not client.scheduler_info(n_workers=-1)["workers"]:
            # Staged by a worker that does not see the folder, all of it would be there alone.
            reading = "no worker was there, and nothing is begun; give the same command again"
            compute_until(delayed(len)(()), client, stop, reading=reading)
            shared.check()
        return compute_until(write.graph, client, stop, shared=shared)
    except WriteStoppedError:
        # The commit itself may have been what was finished.
        if write.request.destination.committed().get("run_id") == write.request.run_id:
            return committed_result(write.request.destination)
        raise
    except Exception as error:
        if isinstance(error, CTLabError) and not isinstance(error, BlockError | StorageError):
            raise
        destination = write.request.destination
        message = (
            f"writing {destination.path} failed: {type(error).__name__}: {error}. "
            f"{_state_after_failure(write)}"
        )
        raise WriteFailedError(message) from error


def _compute_here(graph: Delayed) -> Any:
    """Compute on the scheduler in force; a failure in threads is told when all of them are done.

    One that went on would put its shard beside those of the next write that goes on here, which
    may have other voxels.
    """
    get = dask.base.get_scheduler(collections=[graph])
    if get is not dask.threaded.get or dask.config.get("pool", None) is not None:
        return graph.compute()
    pool = ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT)
    try:
        return graph.compute(pool=pool)
    except Exception:
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _state_after_failure(write: Write | Completion) -> str:
    """Say what is at the destination after a write that failed, and how to go on."""
    destination = write.request.destination
    try:
        aside = list(destination.all_replaced().values())
        is_there = destination.files.kind(destination.path) is not None
        if destination.committed().get("run_id") == write.request.run_id:
            return "The new dataset is at the destination, but may not outlast a power failure yet"
        if aside and not is_there:
            return (
                f"The old dataset is whole in {aside[0]}; `ctlab-zarr commit {destination.path}`, "
                "or the next write, puts the new one or the old one in its place"
            )
        is_staged = bool(destination.staged_plan())
    except OSError as error:
        return f"What is at the destination cannot be looked at: {error}"
    if not is_staged:
        return "The destination is as it was"
    name = write.plan.random_name if isinstance(write, Write) else None
    where = (
        ""
        if name is None
        else " in this process; in another one, where dask names the source anew, say that it is "
        f"the same by Dataset(..., identity={name!r}) too"
    )
    return (
        f"The destination is as it was; the shards written so far are in {destination.staging}. Go "
        f"on by resume=True (--resume){where}, or start anew by restart=True (--restart)"
    )
