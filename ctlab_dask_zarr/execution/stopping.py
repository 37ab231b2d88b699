"""Stopping a graph in time: on a signal, or before the time of the job is over.

No new shard is begun, shards under way get a limited time to be finished, and the staging folder
stays as it is, so that the write can be resumed.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import ClusterError, InvalidArgumentError, WriteStoppedError
from ctlab_dask_zarr.execution.workforce import Workforce
from ctlab_dask_zarr.text import duration_text

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

    from ctlab_dask_zarr.store.shared_folder import SharedFolder

#: Seconds for shards under way to be finished: SLURM kills 30 s after its SIGTERM.
_GRACE_S = 20.0
#: Seconds that a command needs after its last shard to close workers and scheduler.
_CLOSING_S = 10.0
#: A task is begun only if this many times the longest task's duration remains.
_TASK_MARGIN = 1.5
_POLL_S = 0.2
#: Seconds for the last reports of workers to arrive.
_REPORTS_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_TIME_IS_UP = "the time is nearly up"
#: The remedy for a run whose time was too short.
MORE_TIME = "more time (the walltime of the job, --deadline)"


class Stop:
    """Asks a write to stop, when somebody calls `ask` or when its deadline comes near.

    Parameters
    ----------
    deadline
        When everything has to be over: seconds from now, or text as ``"1h50m"`` or ``"1:50:00"``;
        ``"auto"`` for what is left of the SLURM or PBS job; None for no such time.

    Raises
    ------
    InvalidArgumentError
        The text is not a duration, or leaves no time for any work; or nobody tells how much of the
        job is left.

    Examples
    --------
    >>> stop = Stop("1h")
    >>> stop.saw(task_s=120)  # tasks take two minutes
    >>> stop.reason() is None  # so there is time for more of them
    True
    >>> stop.ask("SIGTERM")
    >>> stop.reason()
    'SIGTERM'
    """

    def __init__(self, deadline: float | str | None = None) -> None:
        self._start_s = time.monotonic()
        left_s = _seconds(deadline) if isinstance(deadline, str) else deadline
        self._deadline_s = self._start_s + (math.inf if left_s is None else left_s)
        self._longest_task_s = 0.0
        self._has_progress = False
        self._asked: str | None = None
        self.woken = threading.Event()

    def ask(self, reason: str) -> None:
        """Ask to stop soon; call this from other threads, but not from a signal handler."""
        self._asked = self._asked or reason
        self.woken.set()

    def saw(self, task_s: float) -> None:
        """Learn how many seconds a finished task took; 0 stands for a task under way."""
        self._longest_task_s = max(self._longest_task_s, task_s)
        self._has_progress |= task_s > 0

    def progressed(self) -> None:
        """Learn that something was done that the next run need not repeat."""
        self._has_progress = True

    def is_futile(self) -> bool:
        """Return whether the whole time passed without one finished shard.

        A retry with the same time is pointless then. SIGUSR1 is how batch systems warn of the end
        of a job that has a walltime; other signals may come at any time, and say nothing about it.
        """
        is_warned = self._asked == "SIGUSR1" and self._deadline_s < math.inf
        is_time_up = self._asked == _TIME_IS_UP or is_warned
        return is_time_up and not self._has_progress

    def time_spent(self) -> str:
        """Return the time since the beginning, as text."""
        return duration_text(time.monotonic() - self._start_s)

    def reason(self) -> str | None:
        """Return why to stop now, or None."""
        last_start_s = self._deadline_s - _CLOSING_S - _TASK_MARGIN * self._longest_task_s
        if self._asked is None and time.monotonic() >= last_start_s:
            self._asked = _TIME_IS_UP
        return self._asked

    def grace_s(self) -> float:
        """Return how many seconds shards under way have to be finished."""
        left_s = self._deadline_s - _CLOSING_S / 2 - time.monotonic()
        return max(0.0, left_s if self._asked == _TIME_IS_UP else min(left_s, _GRACE_S))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Stop on SIGINT, SIGTERM and SIGUSR1; a second SIGINT interrupts at once.

        A command does all its work within this context. Afterwards the process ignores the signals
        of batch systems: one that arrives while it ends would replace the exit code, which says
        that the write is done or can be resumed.
        """

        def ask(number: int, frame: Any) -> None:
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            # Not `self.ask`: waking the wait takes a lock, and this handler interrupts the main
            # thread, which may hold that lock in its wait.
            self._asked = self._asked or signal.Signals(number).name

        before = {number: signal.signal(number, ask) for number in _SIGNALS}
        try:
            yield
        finally:
            for number in _SIGNALS:
                is_ctrl_c = number == signal.SIGINT
                signal.signal(number, before[number] if is_ctrl_c else signal.SIG_IGN)


def _seconds(deadline: str) -> float:
    from ctlab_dask_zarr.execution.allocation import parse_duration, seconds_left

    if deadline == "auto":
        # However little that is: the run itself says whether it is enough for a shard.
        return seconds_left()
    seconds = parse_duration(deadline)
    if seconds <= _CLOSING_S:
        raise InvalidArgumentError(
            f"{deadline!r} leaves no time for any work: the last {_CLOSING_S:.0f} s are for "
            "closing the cluster. Give more, as 1h50m"
        )
    return seconds


def compute_until(
    graph: Delayed,
    client: Client,
    stop: Stop | None,
    *,
    reading: str | None = None,
    shared: SharedFolder | None = None,
) -> Any:
    """Compute `graph` on `client`, unless `stop` asks to end before.

    After a stop, shards under way get some time to be finished. A graph that only reads needs none:
    `reading` says for it what the stop means, and what to do. `shared` is the folder that all
    workers have to see, which is watched meanwhile.
    """
    stop = stop or Stop()
    if stop.reason() is not None:
        raise _stopped(stop, reading)
    done = threading.Event()
    future = client.compute(graph)
    future.add_done_callback(lambda _: done.set())
    try:
        workforce = Workforce(client)
        with _thread_given_back(), workforce.watched():
            while not future.done():
                reason = stop.reason()
                if reason is not None:
                    # The scheduler forgets tasks that wait; running tasks go on to their end.
                    future.cancel(reason=reason)
                    if reading is None:
                        _wait_for_running_tasks(client, stop.grace_s())
                        _wait_for_reports(stop)
                    raise _stopped(stop, reading)
                if shared is not None and shared.problem is not None:
                    future.cancel(reason=str(shared.problem))
                    _wait_for_running_tasks(client, stop.grace_s())
                    raise shared.problem
                if workforce.problem is not None:
                    future.cancel(reason=str(workforce.problem))
                    raise workforce.problem
                done.wait(_POLL_S)
            return future.result()
    finally:
        # The traceback of an error keeps this frame alive, as in a notebook, and with it the
        # future and its failed tasks: a resumed write would get their errors again.
        future.release()


@contextmanager
def _thread_given_back() -> Iterator[None]:
    """Let the worker use this thread meanwhile, if this runs in a task of a worker.

    The graph may need the thread; dask's own ``compute()`` within a task does the same.
    """
    from distributed import rejoin, secede

    try:
        secede()
    except Exception:
        # No worker's thread, or one given back before, as by `distributed.worker_client`.
        yield
        return
    try:
        yield
    finally:
        rejoin()


def _stopped(stop: Stop, reading: str | None) -> ClusterError | WriteStoppedError:
    if reading is not None and stop.is_futile():
        return ClusterError(
            f"stopped ({stop.reason()}): {reading}. It was not done in the {stop.time_spent()} "
            f"that there were, and begins anew each time: give it {MORE_TIME} or more workers"
        )
    advice = "the destination is as it was; go on by resume=True (--resume)"
    return WriteStoppedError(f"stopped ({stop.reason()}): {reading or advice}")


def _wait_for_running_tasks(client: Client, timeout_s: float) -> None:
    stop_s = time.monotonic() + timeout_s
    has_ended = threading.Event()

    def n_running(dask_worker: Any) -> int:
        # With cancelled tasks, since nothing can interrupt a thread.
        return len(dask_worker.state.all_running_tasks)

    def poll() -> None:
        # If the cluster is lost or closed, there is nothing to wait for.
        with suppress(Exception):
            while time.monotonic() < stop_s:
                if not any(client.run(n_running, on_error="ignore").values()):
                    break
                time.sleep(_POLL_S)
        has_ended.set()

    # In a thread, because a worker that compiles answers only when it has finished that.
    threading.Thread(target=poll, name="running tasks", daemon=True).start()
    has_ended.wait(timeout_s)


def _wait_for_reports(stop: Stop) -> None:
    """Wait for reports of workers that are still on their way before a run counts as futile."""
    stop_s = time.monotonic() + _REPORTS_S
    while stop.is_futile() and time.monotonic() < stop_s:
        time.sleep(_POLL_S)
