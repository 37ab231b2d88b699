"""How far a run is: reported by the workers while they work, and shown to people.

A task that streams a row of shards runs for minutes, so counting finished tasks says little.
Instead each worker reports now and then how many bytes of voxels it has encoded: on a cluster as an
event on a topic of dask.distributed, within one process to a listener. A lost report never fails a
run, and a task that runs twice is counted twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from dask.delayed import Delayed
from dask.utils import parse_timedelta

from ctlab_dask_zarr.text import duration_text, nbytes_text

if TYPE_CHECKING:
    from ctlab_dask_zarr.execution.stopping import Stop

#: Seconds between two reports of one task.
_REPORT_INTERVAL_S = 0.5
_BAR_INTERVAL = "200ms"
_BAR_WIDTH = 24
#: Seconds for an update under way to end.
_JOIN_S = 1.0

#: Called with the bytes encoded since the last call, and with the seconds that a task has taken
#: until now if it has just finished a shard, else 0.
Listener = Callable[[int, float], None]
_listeners: dict[str, Listener] = {}


class Progress(NamedTuple):
    """How far a write, a check or a copy is.

    Attributes
    ----------
    n_tasks
        Number of shards to write or of checks to make; 1 for a copy.
    nbytes, nbytes_done
        Size in bytes of all there is to do, and of what is done: voxels before compression, or
        stored bytes for a copy.
    """

    n_tasks: int
    nbytes: int
    nbytes_done: int


class Reporter:
    """Reports how many bytes one task has encoded, and how long a shard took."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._nbytes = 0
        self._start_s = time.monotonic()
        self._next_s = self._start_s + _REPORT_INTERVAL_S

    def add(self, nbytes: int) -> None:
        """Count `nbytes` more bytes of voxels."""
        self._nbytes += nbytes
        if time.monotonic() >= self._next_s:
            self._report(0.0)

    def finish(self) -> None:
        """Report the rest, and that a shard is done."""
        self._report(time.monotonic() - self._start_s)

    def _report(self, task_s: float) -> None:
        nbytes, self._nbytes = self._nbytes, 0
        self._next_s = time.monotonic() + _REPORT_INTERVAL_S
        if not (nbytes or task_s):
            return
        listener = _listeners.get(self._topic)
        if listener is not None:
            listener(nbytes, task_s)
            return
        from distributed.worker import get_worker

        try:
            worker = get_worker()
        except ValueError:
            return
        worker.log_event(self._topic, [nbytes, task_s])


@contextmanager
def listen(write: Delayed, listener: Listener, client: Any = None) -> Iterator[None]:
    """Call `listener`, from another thread, with what the tasks of a graph report.

    `client` computes the graph; None is for a scheduler in this process.
    """
    topic = topic_of(write.key)
    lock = threading.Lock()

    def locked(nbytes: int, task_s: float) -> None:
        with lock:
            listener(nbytes, task_s)

    if client is None:
        _listeners[topic] = locked
        try:
            yield
        finally:
            del _listeners[topic]
        return
    # The scheduler adds the time to an event: (timestamp, message).
    client.subscribe_topic(topic, lambda event: locked(*event[1]))
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def topic_of(key: str) -> str:
    """Return the topic on which the tasks of a graph report; its key ends in the graph's token."""
    return f"ctlab-zarr-{key.rsplit('-', 1)[-1]}"


@contextmanager
def counted(
    graph: Delayed,
    total: Progress,
    client: Any = None,
    *,
    tell: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
) -> Iterator[Callable[[], Progress]]:
    """Count what the tasks of a graph report, and tell `stop` and `tell` about it.

    Yields a function that returns how far the graph is. A task that runs twice does not count
    beyond the total.
    """
    told = total
    if tell is None and stop is None:
        yield lambda: told
        return

    def on_report(nbytes: int, task_s: float) -> None:
        nonlocal told
        told = told._replace(nbytes_done=min(told.nbytes_done + nbytes, told.nbytes))
        if stop is not None:
            stop.saw(task_s)
        if tell is not None:
            tell(told)

    if tell is not None:
        tell(told)
    with listen(graph, on_report, client):
        yield lambda: told


class ProgressBar:
    """Shows what it is told: a bar on a terminal, elsewhere a line now and then.

    Use it as a context; `n_workers` returns how many workers there are at the moment.
    """

    def __init__(
        self,
        noun: str = "shards",
        n_workers: Callable[[], int] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._noun = noun
        self._n_workers = n_workers
        self._workers = ""
        self._told: Progress | None = None
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        # Workers import this module too, but need no settings.
        from ctlab_dask_zarr.settings import setting

        # Carriage returns would fill a log.
        interval = _BAR_INTERVAL if self._is_terminal else setting("progress-interval")
        self._interval_s = float(parse_timedelta(interval))
        self._start_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def tell(self, told: Progress) -> None:
        """Show this from now on."""
        is_first, self._told = self._told is None, told
        if is_first:
            self._start_s = time.monotonic()
            self._thread.start()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._told is None:
            return
        self._stop.set()
        # The thread may be asking a scheduler that does not answer; a job has to end in time.
        self._thread.join(_JOIN_S)
        if kind is None:
            self._told = self._told._replace(nbytes_done=self._told.nbytes)
            if not self._thread.is_alive():
                self._count_workers()
        self._show()
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._count_workers()
            if not self._stop.is_set():
                self._show()

    def _count_workers(self) -> None:
        try:
            self._workers = f", {self._n_workers()} workers" if self._n_workers else ""
        except Exception:
            # The scheduler may be gone; the write itself says so.
            self._workers = ""

    def _show(self) -> None:
        assert self._told is not None
        n_tasks, total, done = self._told
        part = done / total if total else 1.0
        rate = done / max(time.monotonic() - self._start_s, 1e-3)
        left = duration_text((total - done) / rate) if rate else "?"
        line = (
            f"{int(part * n_tasks)} of {n_tasks} {self._noun}, {nbytes_text(done)} of "
            f"{nbytes_text(total)} ({part:.0%}), {nbytes_text(rate)}/s, {left} left"
        )
        if self._is_terminal:
            bar = "#" * int(_BAR_WIDTH * done / max(total, 1))
            self._stream.write(f"\r\x1b[K[{bar:.<{_BAR_WIDTH}}] {line}")
        else:
            self._stream.write(f"{line}{self._workers}\n")
        self._stream.flush()
