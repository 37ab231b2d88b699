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
from typing import TYPE_CHECKING, Any, NamedTuple

from dask.delayed import Delayed

if TYPE_CHECKING:
    from ctlab_dask_zarr.execution.stopping import Stop

#: Seconds between two reports of one task.
_REPORT_INTERVAL_S = 0.5
#: What a report says besides bytes while a kernel is being compiled on a machine.
COMPILING = "compiling kernels, once on this machine"
_COMPILER = "ctlab_dask_zarr.codec.compiled"

#: Called with the bytes encoded since the last call, with the seconds that a task has taken until
#: now if it has just finished a shard, else 0, and with what else is under way there.
Listener = Callable[[int, float, str], None]
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
    doing
        What else is under way and takes its time, as ``'compiling kernels, once on this machine'``;
        empty for nothing.
    """

    n_tasks: int
    nbytes: int
    nbytes_done: int
    doing: str = ""


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
        # Looked up only where it is loaded: workers without levels never load it. Where another
        # thread is loading it, it has nothing yet.
        is_compiling = getattr(sys.modules.get(_COMPILER), "is_compiling", None)
        doing = COMPILING if is_compiling is not None and is_compiling() else ""
        listener = _listeners.get(self._topic)
        if listener is not None:
            listener(nbytes, task_s, doing)
            return
        from distributed.worker import get_worker

        try:
            worker = get_worker()
        except ValueError:
            return
        worker.log_event(self._topic, [nbytes, task_s, doing])


@contextmanager
def listen(write: Delayed, listener: Listener, client: Any = None) -> Iterator[None]:
    """Call `listener`, from another thread, with what the tasks of a graph report.

    `client` computes the graph; None is for a scheduler in this process.
    """
    topic = topic_of(write.key)
    lock = threading.Lock()

    def locked(nbytes: int, task_s: float, doing: str) -> None:
        with lock:
            listener(nbytes, task_s, doing)

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

    def on_report(nbytes: int, task_s: float, doing: str) -> None:
        nonlocal told
        nbytes_done = min(told.nbytes_done + nbytes, told.nbytes)
        told = told._replace(nbytes_done=nbytes_done, doing=doing)
        if stop is not None:
            stop.saw(task_s)
        if tell is not None:
            tell(told)

    if tell is not None:
        tell(told)
    with listen(graph, on_report, client):
        yield lambda: told
