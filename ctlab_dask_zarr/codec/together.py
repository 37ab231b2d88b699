"""Steps of one read, done by the thread that reads together with idle threads of the process.

A read is made of steps, each of which may give further ones: the index of a shard is read, and then
its inner chunks. Steps wait for disks and networks side by side; how many decode at once is bounded
by the cores that are for this read.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from dask.system import CPU_COUNT

#: Threads that read, of all reads of this process together.
_N_THREADS = max(64, CPU_COUNT)
#: What all steps of one read that are under way may hold in memory, beside its result.
_MAX_NBYTES = 128 << 20
#: A short step that takes longer waits for a disk, or for a file system on a network.
_SHORT_S = 0.5e-3
#: Helpers are called for short steps when so many more of them waited than did not.
_N_WAITED = 3


@dataclass(frozen=True)
class Step:
    """What one thread does in one go, and how many bytes it holds meanwhile."""

    nbytes: int
    run: Callable[[], Iterable[Step]]
    #: Whether it is over sooner than a helper is called, unless it waits: many calls of Python and
    #: of the system, between which two threads would hand Python's lock to each other.
    is_short: bool = False
    #: Whether it holds them already: what gave the step has read them.
    is_held: bool = False


@dataclass(frozen=True)
class Cores:
    """How many cores a read may use, and the turns that its threads take on them."""

    n_cores: int
    turns: threading.Semaphore


def cores_for_a_read() -> Cores:
    """Return the cores that this thread may use now.

    In a process of its own those are all of the process, shared by its reads. A task of a dask
    worker has its own core, and those of threads that have nothing to do.
    """
    if "distributed.worker" in sys.modules:
        from distributed import get_worker

        try:
            state = get_worker().state
            n_cores = 1 + max(0, state.nthreads - state.executing_count)
            return Cores(n_cores, threading.Semaphore(n_cores))
        except ValueError:
            pass
    return _all_cores(os.getpid())


@cache
def _all_cores(_: int) -> Cores:
    return Cores(CPU_COUNT, threading.Semaphore(CPU_COUNT))


@cache
def _pool(_: int) -> ThreadPoolExecutor:
    """Return the threads of a process, by its number: a fork has none of its parent's."""
    return ThreadPoolExecutor(_N_THREADS, thread_name_prefix="read")


def run_steps(first: Iterable[Step], n_threads: int) -> None:
    """Do all steps, by up to `n_threads` threads of which this is one; the first error is raised.

    What steps give goes before more of `first` is begun, so that few shards are open at once.
    """
    _Steps(first, n_threads).lead()


class _Steps:
    def __init__(self, first: Iterable[Step], n_threads: int) -> None:
        self._first = iter(first)
        self._ready: deque[Step] = deque()
        self._n_helpers_left = n_threads - 1
        self._n_running = self._nbytes = self._n_waited = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def lead(self) -> None:
        try:
            while True:
                self._work()
                with self._changed:
                    if self._error is not None or not (self._n_running or self._is_more()):
                        break
                    if self._n_running:
                        self._changed.wait()
            # Helpers end with the step that they are at; their error may be the first.
            with self._changed:
                while self._n_running:
                    self._changed.wait()
        except BaseException as error:
            # Interrupted: helpers put what they read where nobody looks.
            self._error = error
            raise
        if self._error is not None:
            raise self._error

    def _help(self) -> None:
        self._work()
        with self._changed:
            self._n_helpers_left += 1

    def _work(self) -> None:
        """Do steps while there are any that can be begun."""
        while (step := self._begin()) is not None:
            more: Iterable[Step] = ()
            error = None
            start = time.perf_counter()
            try:
                more = step.run()
            except BaseException as raised:
                error = raised
            waited = 1 if time.perf_counter() - start > _SHORT_S else -1
            with self._changed:
                if step.is_short:
                    self._n_waited = min(max(0, self._n_waited + waited), _N_WAITED)
                for given in more:
                    self._ready.append(given)
                    self._nbytes += given.nbytes * given.is_held
                self._n_running -= 1
                self._nbytes -= step.nbytes
                self._error = self._error or error
                self._changed.notify()

    def _begin(self) -> Step | None:
        with self._changed:
            if self._error is not None or not self._is_more():
                return None
            step = self._ready[0]
            more_nbytes = step.nbytes * (not step.is_held)
            if self._n_running and more_nbytes and self._nbytes + more_nbytes > _MAX_NBYTES:
                return None
            self._ready.popleft()
            self._n_running += 1
            self._nbytes += more_nbytes
            # One calls the next, so that there are no more of them than steps.
            is_called = self._n_helpers_left > 0 and self._is_more()
            if is_called and self._ready[0].is_short:
                is_called = self._n_waited == _N_WAITED
            self._n_helpers_left -= is_called
        if is_called:
            # A process that ends takes no more threads.
            with suppress(RuntimeError):
                _pool(os.getpid()).submit(self._help)
        return step

    def _is_more(self) -> bool:
        """Whether there is a step to begin; the next one is then at the front."""
        if not self._ready:
            self._ready.extend(step for step in [next(self._first, None)] if step is not None)
        return bool(self._ready)
