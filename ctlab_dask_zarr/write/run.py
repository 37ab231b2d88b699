"""Compute the graph of a prepared write, and explain where it stopped or failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import dask
import dask.threaded
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.system import CPU_COUNT

from ctlab_dask_zarr.errors import (
    BlockError,
    CTLabError,
    StorageError,
    WriteFailedError,
    WriteStoppedError,
)
from ctlab_dask_zarr.execution.allocation import files_problem
from ctlab_dask_zarr.execution.progress import Progress, counted
from ctlab_dask_zarr.execution.scheduler import current_client, waiting_for
from ctlab_dask_zarr.execution.stopping import MORE_TIME, Stop, compute_until
from ctlab_dask_zarr.store.shared_folder import SharedFolder
from ctlab_dask_zarr.text import command_text
from ctlab_dask_zarr.waits import doing
from ctlab_dask_zarr.write.prepared import PreparedWrite
from ctlab_dask_zarr.write.staging.commit import CommitResult, committed_result
from ctlab_dask_zarr.write.staging.runner import signs_of_life
from ctlab_dask_zarr.write.staging.stage import is_committed

#: Threads of calls that were interrupted; tasks may be under way in them.
_interrupted: set[ThreadPoolExecutor] = set()

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


def run(
    prepared: PreparedWrite,
    *,
    client: Client | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
) -> CommitResult:
    """Compute a prepared write and wait for its end; for a part, the result tells of the part.

    By default the scheduler in force computes. `progress` is called before the first shard and
    then as shards are written, from one thread at a time. Without a cluster, `stop` is heard
    between two shards.

    Raises
    ------
    WriteStoppedError
        `stop` asked; the shards that were under way are finished.
    InvalidArgumentError, ClusterError
        The client is asynchronous; a worker does not see the destination; or a cluster holds the
        source and it cannot be had. Nothing was touched, unless the worker came late.
    WriteFailedError
        A task failed; the destination is as it was, the staging folder is kept.
    """
    if not prepared.needs_workers:
        committed: CommitResult = prepared.graph.compute(scheduler="sync")
        return committed
    running = client or current_client()
    tasks, request = prepared.remaining.tasks, prepared.request
    total = Progress(len(tasks), prepared.nbytes, 0)
    with (
        waiting_for(prepared.graph, running),
        counted(prepared.graph, total, running, tell=progress, stop=stop) as told,
        signs_of_life(request.destination, request.run_id),
    ):
        if stop is None:
            return _run(prepared, running, None)
        try:
            result = _run(prepared, running, stop)
        except WriteStoppedError as error:
            if stop.is_futile():
                # Not the exit code of a stop: job scripts would repeat it for ever.
                raise WriteFailedError(_futile(prepared, stop)) from error
            raise WriteStoppedError(_stopped(prepared, stop, told())) from error
    if tasks or request.destination.committed().get("run_id") == request.run_id:
        stop.progressed()
    return result


def _run(prepared: PreparedWrite, client: Client | None, stop: Stop | None) -> CommitResult:
    """Compute; on a cluster only if its workers see the folder of the destination."""
    destination = prepared.request.destination
    if client is None or not destination.can_rename:
        return _compute(prepared, client, stop)
    with SharedFolder(client, os.path.dirname(destination.staging)) as shared:
        shared.check()
        try:
            result = _compute(prepared, client, stop, shared)
        except WriteStoppedError:
            raise
        except CTLabError:
            # Tasks fail on a worker that does not see what the others have written.
            shared.check_late()
            raise
        if not is_committed(prepared.request):
            # A part, or a commit that is not seen from here.
            shared.check_late()
        return result


def _compute(
    prepared: PreparedWrite,
    client: Client | None,
    stop: Stop | None,
    shared: SharedFolder | None = None,
) -> CommitResult:
    graph, destination = prepared.graph, prepared.request.destination
    result: CommitResult
    try:
        if client is None:
            result = compute_here(graph, stop)
            return result
        if shared is not None and not client.scheduler_info(n_workers=-1)["workers"]:
            # The first worker may not see the folder, and would stage in one of its own.
            reading = "no worker was there, and nothing is begun; give the same command again"
            compute_until(delayed(len)(()), client, stop, reading=reading)
            shared.check()
        result = compute_until(graph, client, stop, shared=shared)
        return result
    except WriteStoppedError:
        # The commit may have been what was finished last.
        if destination.committed().get("run_id") == prepared.request.run_id:
            return committed_result(destination)
        raise
    except Exception as error:
        if isinstance(error, CTLabError) and not isinstance(error, BlockError | StorageError):
            raise
        problem = files_problem(error)
        message = (
            f"writing {destination.path} failed: {type(error).__name__}: {error}"
            f"{f' ({problem})' if problem else ''}. {_state_after_failure(prepared)}"
        )
        raise WriteFailedError(message) from error


def compute_here(graph: Delayed, stop: Stop | None) -> Any:
    """Compute on the scheduler in force; a failure in threads is told when all of them are done.

    A thread that still ran could put its shard beside the shards of the next write, which may have
    other voxels.
    """

    def refuse_to_begin(key: Any, *state: Any) -> None:
        # dask calls this for whatever this process computes meanwhile.
        if stop is not None and key in graph.dask and stop.reason() is not None:
            raise WriteStoppedError(f"stopped ({stop.reason()})")

    _finish_what_was_interrupted()
    get = dask.base.get_scheduler(collections=[graph])
    is_ours = get is dask.threaded.get and dask.config.get("pool", None) is None
    with Callback(pretask=refuse_to_begin) if stop is not None else nullcontext():
        if not is_ours:
            return graph.compute()
        pool = ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT)
        try:
            return graph.compute(pool=pool)
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            _interrupted.add(pool)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finish_what_was_interrupted() -> None:
    """Wait for the tasks that were under way when a call was interrupted, as of a notebook's cell.

    Nothing can interrupt their threads, and what they write belongs to no later call.
    """
    while _interrupted:
        pool = _interrupted.pop()
        with doing(
            "waiting for the tasks that an interrupted call has left under way",
            "If they do not end, restart this process and go on by resume=True",
            is_usually_short=True,
        ):
            pool.shutdown()


def _stopped(prepared: PreparedWrite, stop: Stop, told: Progress) -> str:
    """Return what to say after a stop; the reports of the workers say how far it came.

    To list the shards could take longer than a job has left.
    """
    n_done = prepared.remaining.n_done
    n_written = n_done + told.n_tasks * told.nbytes_done // max(told.nbytes, 1)
    return (
        f"stopped ({stop.reason()}): about {n_written} of {n_done + told.n_tasks} shards are "
        f"written, and the destination is as it was; {prepared.how_to_go_on}"
    )


def _futile(prepared: PreparedWrite, stop: Stop) -> str:
    """Return what to say where the time was too short for a single shard."""
    request, remaining = prepared.request, prepared.remaining
    n_shards = remaining.n_done + len(remaining.tasks)
    what = "no shard was finished"
    advice = f"{MORE_TIME} or more workers"
    if not remaining.tasks:
        what = "all shards are there, but their commit was not finished"
        advice = MORE_TIME
    elif prepared.plan is not None:
        anew = "--restart"
        if request.n_parts is not None:
            anew = f"{command_text('abort', request.destination.path)} and all parts again"
        advice = f"{MORE_TIME}, more workers, or smaller --shards, which begin anew ({anew})"
    return (
        f"stopped ({stop.reason()}): {what} in the {stop.time_spent()} that there were, "
        f"{remaining.n_done} of {n_shards} shards were there before, and the destination is as it "
        f"was. With as much time it would get no further: give it {advice}"
    )


def _state_after_failure(prepared: PreparedWrite) -> str:
    """Say what is at the destination after a write that failed, and how to go on."""
    destination = prepared.request.destination
    try:
        aside = list(destination.all_replaced().values())
        is_there = destination.files.kind(destination.path) is not None
        if destination.committed().get("run_id") == prepared.request.run_id:
            return "The new dataset is at the destination, but may not outlast a power failure yet"
        if aside and not is_there:
            return (
                f"The old dataset is whole in {aside[0]}; "
                f"{command_text('commit', destination.path)}, or the next write, puts the new one "
                "or the old one in its place"
            )
        is_staged = bool(destination.staged_plan())
    except OSError as error:
        return f"What is at the destination cannot be looked at: {error}"
    if not is_staged:
        return "The destination is as it was"
    name = prepared.plan and prepared.plan.random_name
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
