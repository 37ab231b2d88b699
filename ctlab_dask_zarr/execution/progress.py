"""How far a write is: told by the workers while they write, and shown to people.

A task that streams a row of shards runs for minutes, so that counting finished tasks says little.
Instead each worker reports now and then how many bytes of voxels it has encoded: on a cluster as
an event on a topic of dask.distributed, within one process to a listener. A lost report never
fails a write, and a task that runs twice is counted twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from dask.delayed import Delayed
from dask.utils import parse_timedelta

from ctlab_dask_zarr.text import duration_text, nbytes_text

__all__ = ["Progress", "Reporter", "listen", "topic_of"]

#: Seconds between two reports of one task.
_REPORT_INTERVAL_S = 0.5
#: Seconds between two updates of a bar.
_BAR_INTERVAL_S = 0.2
_BAR_WIDTH = 24
#: Seconds for an update under way to end.
_JOIN_S = 1.0

#: Called with the bytes encoded since the last call, and with the seconds that a task has taken
#: until now if it has just finished a shard, else 0.
Listener = Callable[[int, float], None]
_listeners: dict[str, Listener] = {}


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
            self.flush()

    def flush(self) -> None:
        """Report what was not reported yet."""
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


class Progress:
    """Shows shards, bytes, rate and time left: a bar on a terminal, elsewhere a line now and then.

    Parameters
    ----------
    n_shards, nbytes
        Totals; bytes of voxels before compression.
    quiet
        Show nothing.
    stream
        Where to; standard error by default.
    noun
        What is counted.
    n_workers
        Returns how many workers there are at the moment.
    """

    def __init__(
        self,
        n_shards: int,
        nbytes: int,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        noun: str = "shards",
        n_workers: Callable[[], int] | None = None,
    ) -> None:
        self._n_shards = n_shards
        self._noun = noun
        self._n_workers = n_workers
        self._workers = ""
        self._total = nbytes
        self._done = 0
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._is_terminal = self._stream.isatty()
        # Carriage returns would fill a log.
        self._interval_s = _BAR_INTERVAL_S if self._is_terminal else _line_interval_s()
        self._start_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def add(self, nbytes: int, task_s: float = 0.0) -> None:
        """Count encoded bytes; this is a `Listener`, but does not need the seconds."""
        self._done = min(self._done + nbytes, self._total)

    def expect(self, nbytes: int) -> None:
        """Set the total, if it was not known at the beginning."""
        self._total = nbytes

    def line(self) -> str:
        """Return as text how far it is."""
        part = self._done / self._total if self._total else 1.0
        seconds = max(time.monotonic() - self._start_s, 1e-3)
        rate = self._done / seconds
        left = duration_text((self._total - self._done) / rate) if rate else "?"
        return (
            f"{int(part * self._n_shards)} of {self._n_shards} {self._noun}, "
            f"{nbytes_text(self._done)} of {nbytes_text(self._total)} ({part:.0%}), "
            f"{nbytes_text(rate)}/s, {left} left"
        )

    def __enter__(self) -> Progress:
        self._start_s = time.monotonic()
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._quiet:
            return
        self._stop.set()
        # The thread may be asking a scheduler that does not answer; a job has to end in time.
        self._thread.join(_JOIN_S)
        if kind is None:
            self._done = self._total
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
        if self._is_terminal:
            filled = int(_BAR_WIDTH * self._done / max(self._total, 1))
            bar = "#" * filled + "." * (_BAR_WIDTH - filled)
            self._stream.write(f"\r\x1b[K[{bar}] {self.line()}")
        else:
            self._stream.write(f"{self.line()}{self._workers}\n")
        self._stream.flush()


def _line_interval_s() -> float:
    # Imported here, because workers need only the reporter.
    from ctlab_dask_zarr.settings import setting

    return float(parse_timedelta(setting("progress-interval")))
