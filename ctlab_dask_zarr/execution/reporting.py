"""How far a write is, told by the workers while they write.

A task that streams a row of shards runs for minutes, so that counting finished tasks says little.
Instead each worker tells from time to time how many bytes of voxels it has encoded: on a cluster
as an event on a topic of dask.distributed, within one process to a listener. Telling is best
effort and never fails a write; a task that runs twice is counted twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.delayed import Delayed

__all__ = ["Reporter", "listen", "topic_of"]

#: Seconds between two reports of one task.
_INTERVAL_S = 0.5

#: Called with bytes encoded since the last call and, where a shard is done, the seconds that its
#: task has taken until then, else 0.
Listener = Callable[[int, float], None]
_listeners: dict[str, Listener] = {}


class Reporter:
    """Tells how many bytes one task has encoded, now and then, and how long a shard took."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._nbytes = 0
        self._start_s = time.monotonic()
        self._next_s = self._start_s + _INTERVAL_S

    def add(self, nbytes: int) -> None:
        """Count `nbytes` more bytes of voxels."""
        self._nbytes += nbytes
        if time.monotonic() >= self._next_s:
            self.flush()

    def flush(self) -> None:
        """Tell what was not told yet."""
        self._tell(0.0)

    def finish(self) -> None:
        """Tell what was not told yet, and that a shard is done."""
        self._tell(time.monotonic() - self._start_s)

    def _tell(self, task_s: float) -> None:
        nbytes, self._nbytes = self._nbytes, 0
        self._next_s = time.monotonic() + _INTERVAL_S
        if nbytes or task_s:
            _tell(self._topic, nbytes, task_s)


def _tell(topic: str, nbytes: int, task_s: float) -> None:
    listener = _listeners.get(topic)
    if listener is not None:
        listener(nbytes, task_s)
        return
    worker = _current_worker()
    if worker is not None:
        worker.log_event(topic, [nbytes, task_s])


def _current_worker() -> Any:
    from distributed.worker import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


@contextmanager
def listen(write: Delayed, listener: Listener, client: Any = None) -> Iterator[None]:
    """Call `listener` with what workers tell: bytes of voxels encoded, and seconds of a task.

    Parameters
    ----------
    write
        What `dataset_to_zarr(..., compute=False)` returned.
    listener
        Called from another thread, with the bytes since its last call and, where a shard has just
        been finished, the seconds that its task has taken until then (else 0).
    client
        The `distributed.Client` that computes the write; None for a scheduler in this process.
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
    """Return the topic on which the tasks of a write tell; `key` ends in the write's token."""
    return f"ctlab-zarr-{key.rsplit('-', 1)[-1]}"
