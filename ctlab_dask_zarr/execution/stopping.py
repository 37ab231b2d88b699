"""Stopping a write in time: on a signal, or before the time of the job is over.

No new shard is begun, those under way are finished within a bound, and the staging folder stays
as it is, to be resumed.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import ClusterError, WriteStoppedError
from ctlab_dask_zarr.text import duration_text

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

    from ctlab_dask_zarr.store.shared_folder import SharedFolder

__all__ = ["CLOSING_S", "MORE_TIME", "Stop", "compute_until"]

#: Seconds that shards under way get to be finished: SLURM kills 30 s after its SIGTERM.
_GRACE_S = 20.0
#: Seconds for the end of a command after its last shard: workers and scheduler are closed.
CLOSING_S = 10.0
#: Of the longest task so far, this much is left before the deadline when the last is begun.
_TASK_MARGIN = 1.5
_POLL_S = 0.2
#: Seconds for what workers have told last to arrive.
_TELLING_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_TIME_IS_UP = "the time is nearly up"
#: What to give a run whose time did not do.
MORE_TIME = "more time (the walltime of the job, --deadline)"


class Stop:
    """Asks a write to stop.

    Parameters
    ----------
    deadline_s
        Seconds from now at which everything has to be over; None for no such time.

    Examples
    --------
    >>> stop = Stop(deadline_s=3600)
    >>> stop.saw(task_s=120)  # tasks take two minutes
    >>> stop.reason() is None  # so there is time for more of them
    True
    >>> stop.ask("SIGTERM")
    >>> stop.reason()
    'SIGTERM'
    """

    def __init__(self, deadline_s: float | None = None) -> None:
        self._start_s = time.monotonic()
        self._deadline_s = None if deadline_s is None else self._start_s + deadline_s
        self._longest_task_s = 0.0
        self._has_progress = False
        self._asked: str | None = None
        self.woken = threading.Event()

    def ask(self, reason: str) -> None:
        """Stop as soon as may be; for other threads, and not for handlers of signals."""
        self._asked = self._asked or reason
        self.woken.set()

    def saw(self, task_s: float) -> None:
        """Learn how long a task took, so that none is begun that could not be finished.

        0 for one that is under way.
        """
        self._longest_task_s = max(self._longest_task_s, task_s)
        self._has_progress |= task_s > 0

    def progressed(self) -> None:
        """Learn that something was done which another run need not do."""
        self._has_progress = True

    def is_futile(self) -> bool:
        """Return whether all the time there was did not do for a shard: nor will it another time.

        SIGUSR1 is how batch systems warn of the end, where there is one; other signals may come
        at any time, and say nothing about it.
        """
        has_end = self._deadline_s is not None and self._deadline_s < math.inf
        is_time_up = self._asked == _TIME_IS_UP or (self._asked == "SIGUSR1" and has_end)
        return is_time_up and not self._has_progress

    def time_spent(self) -> str:
        """Return how long it is since the beginning, as text."""
        return duration_text(time.monotonic() - self._start_s)

    def reason(self) -> str | None:
        """Return why to stop now, or None."""
        if self._asked is None and self._deadline_s is not None:
            last_start_s = self._deadline_s - CLOSING_S - _TASK_MARGIN * self._longest_task_s
            if time.monotonic() >= last_start_s:
                self._asked = _TIME_IS_UP
        return self._asked

    def grace_s(self) -> float:
        """Return how many seconds the shards under way have to be finished."""
        if self._deadline_s is None:
            return _GRACE_S
        left_s = self._deadline_s - CLOSING_S / 2 - time.monotonic()
        return max(0.0, left_s if self._asked == _TIME_IS_UP else min(left_s, _GRACE_S))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Stop on SIGINT, SIGTERM and SIGUSR1; a second SIGINT interrupts at once.

        For all that a command does. Afterwards the signals of batch systems are ignored to the end
        of the process: one that comes while it ends would replace its exit code, which says that
        the write is done, or that it can be resumed.
        """

        def ask(number: int, frame: Any) -> None:
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            # Nothing that takes a lock, as to wake a wait does: this interrupts the main thread,
            # which may hold that lock, in its wait.
            self._asked = self._asked or signal.Signals(number).name

        before = {number: signal.signal(number, ask) for number in _SIGNALS}
        try:
            yield
        finally:
            for number in _SIGNALS:
                is_ctrl_c = number == signal.SIGINT
                signal.signal(number, before[number] if is_ctrl_c else signal.SIG_IGN)


def compute_until(
    graph: Delayed,
    client: Client,
    stop: Stop | None,
    *,
    reading: str | None = None,
    shared: SharedFolder | None = None,
) -> Any:
    """Compute `graph` on `client`, unless `stop` asks to end before.

    Parameters
    ----------
    graph
        Of a write, or of something that only reads.
    client
        Where it runs.
    stop
        None: it is not asked to end.
    reading
        For something that only reads: what it means that it is stopped, and what to do. Nothing
        has to be finished then.
    shared
        The folder that workers have to see, watched meanwhile.

    Raises
    ------
    WriteStoppedError
        `stop` asked; the shards under way are finished, or their grace is over.
    ClusterError
        `stop` asked while something only read, for which the time is too short; or a worker came
        that does not see the folder.
    """
    stop = stop or Stop()
    if stop.reason() is not None:
        # Nothing is begun that could not be finished.
        raise _stopped(stop, reading)
    done = threading.Event()
    future = client.compute(graph)
    future.add_done_callback(lambda _: done.set())
    try:
        with _thread_given_back():
            while not future.done():
                reason = stop.reason()
                if reason is not None:
                    # The scheduler forgets what is not running; what is running ends by itself.
                    future.cancel(reason=reason)
                    if reading is None:
                        _wait_for_running_tasks(client, stop.grace_s())
                        _wait_for_telling(stop)
                    raise _stopped(stop, reading)
                if shared is not None and shared.problem is not None:
                    future.cancel(reason=str(shared.problem))
                    _wait_for_running_tasks(client, stop.grace_s())
                    raise shared.problem
                done.wait(_POLL_S)
            return future.result()
    finally:
        # An error keeps this frame alive, as in a notebook, and with it the future and its failed
        # tasks: the same write, gone on with, would get their errors again.
        future.release()


@contextmanager
def _thread_given_back() -> Iterator[None]:
    """Let a worker use this thread for other tasks meanwhile, where it is one of a worker's.

    What is waited for may need it; dask's own ``compute()`` within a task does the same.
    """
    from distributed import rejoin, secede

    try:
        secede()
    except Exception:
        # It is no worker's, or was given back before, as by `distributed.worker_client`.
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

    def ask() -> None:
        # Where the cluster is lost, or closed since, nothing is left to wait for.
        with suppress(Exception):
            while time.monotonic() < stop_s:
                if not any(client.run(_n_running, on_error="ignore").values()):
                    break
                time.sleep(_POLL_S)
        has_ended.set()

    # A worker that compiles does not answer until it has done that, which may be after the end.
    threading.Thread(target=ask, name="running tasks", daemon=True).start()
    has_ended.wait(timeout_s)


def _wait_for_telling(stop: Stop) -> None:
    """Do not take for futile what has only not been told of yet."""
    stop_s = time.monotonic() + _TELLING_S
    while stop.is_futile() and time.monotonic() < stop_s:
        time.sleep(_POLL_S)


def _n_running(dask_worker: Any) -> int:
    # Cancelled tasks among them: a thread cannot be interrupted.
    return len(dask_worker.state.all_running_tasks)
