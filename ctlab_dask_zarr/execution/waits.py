"""What is under way while no voxels are written: shown at once, and never longer in silence.

Whoever waits for something that may take a while says so by `doing`. A display of progress shows it
(`watched_by`); without one, a log message says it once it has taken long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from ctlab_dask_zarr.text import duration_text

logger = logging.getLogger("ctlab_dask_zarr")
#: Seconds after which a wait is told with its advice, if nothing shows it.
LONG_S = 10.0


class Doing(NamedTuple):
    """Something under way: what it is, what to do if it takes long, and when it began.

    ``start_s`` is in seconds of `time.monotonic`.
    """

    what: str
    advice: str
    start_s: float

    def text(self, now_s: float) -> str:
        """Return what to show: the time and the advice only where it takes long."""
        seconds = now_s - self.start_s
        if seconds < LONG_S:
            return self.what
        advice = f". {self.advice}" if self.advice else ""
        return f"{self.what}, for {duration_text(seconds)} now{advice}"


class Watcher(Protocol):
    """A display of progress."""

    def doing(self, doing: Doing | None) -> None:
        """Show what is under way instead of voxels; None for nothing else."""
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def current_watcher() -> Watcher | None:
    """Return the display that shows what the call under way does, or None."""
    return _watcher.get()


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Show by `watcher` what is done in this context."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def doing(what: str, advice: str = "") -> Iterator[Callable[[str], None]]:
    """Say what is under way until the context ends.

    Yields a function that replaces the text. `advice` is a sentence that says what to do if it
    takes long.
    """
    watcher = _watcher.get()
    now = Doing(what, advice, time.monotonic())
    is_over = threading.Event()

    def show(what: str) -> None:
        nonlocal now
        now = now._replace(what=what)
        if watcher is not None:
            watcher.doing(now)

    def warn() -> None:
        seconds = LONG_S
        while not is_over.wait(seconds):
            logger.warning("%s", now.text(time.monotonic()))
            # Ten minutes later, one line every ten minutes says as much.
            seconds = min(2 * seconds, 60 * LONG_S)

    if watcher is None:
        threading.Thread(target=warn, name="waiting", daemon=True).start()
    try:
        show(what)
        yield show
    finally:
        is_over.set()
        if watcher is not None:
            watcher.doing(None)
