"""What is under way while no voxels are written: shown at once, and never longer in silence.

Whoever waits for something that may take a while says so by `doing`. A display of progress shows it
(`watched_by`); without one, a log message says it once it has taken long.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from ctlab_dask_zarr.text import duration_text, shown

logger = logging.getLogger("ctlab_dask_zarr")
#: Seconds after which a wait is told with its advice, if nothing shows it.
LONG_S = 10.0
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Doing(NamedTuple):
    """Something under way: what it is, what to do if it takes long, and when it began.

    ``start_s`` is in seconds of `time.monotonic`. What is usually over at once is named only when
    it takes long (`is_usually_short`).
    """

    what: str
    advice: str
    start_s: float
    is_usually_short: bool = False

    def text(self, now_s: float) -> str:
        """Return what to show: the time and the advice only where it takes long."""
        seconds = now_s - self.start_s
        if seconds < LONG_S:
            return "" if self.is_usually_short else self.what
        advice = f". {self.advice}" if self.advice else ""
        return f"{self.what}, for {duration_text(seconds)} now{advice}"


class Watcher(Protocol):
    """A display of progress."""

    def doing(self, doing: Doing | None) -> None:
        """Show what is under way instead of voxels; None for nothing else."""
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
_doing: ContextVar[Doing | None] = ContextVar("doing", default=None)


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
def doing(
    what: str, advice: str = "", *, is_usually_short: bool = False, long_s: float = LONG_S
) -> Iterator[Callable[[str], None]]:
    """Say what is under way until the context ends.

    Yields a function that replaces the text. `advice` is a sentence that says what to do if it
    takes long. Where nothing shows it, a warning says it after `long_s` seconds.
    """
    watcher = _watcher.get()
    now = Doing(shown(what), advice, time.monotonic(), is_usually_short)
    around = _doing.get()
    token = _doing.set(now)
    is_over = threading.Event()

    def show(what: str) -> None:
        nonlocal now
        now = now._replace(what=shown(what))
        if watcher is not None:
            watcher.doing(now)

    def warn() -> None:
        seconds = long_s
        while not is_over.wait(seconds):
            spent = duration_text(time.monotonic() - now.start_s)
            logger.warning("%s, for %s now%s", now.what, spent, now.advice and f". {now.advice}")
            # After hours, one line every ten minutes says as much.
            seconds = min(2 * seconds, 60 * LONG_S)

    if watcher is None:
        threading.Thread(target=warn, name="waiting", daemon=True).start()
    try:
        show(what)
        yield show
    finally:
        is_over.set()
        _doing.reset(token)
        if watcher is not None:
            watcher.doing(around)


def opening(path: object) -> AbstractContextManager[object]:
    """Say what is being opened or looked at, if that takes long."""
    return doing(
        f"opening {path}",
        "The file system or the server answers slowly: look whether `ls` does too",
        is_usually_short=True,
    )


def unknown_host(url: str) -> str | None:
    """Return why no address is known for the host of a URL; None if there is one, or may be.

    Whoever connects would try again and again, and say only at the end that the name is wrong. A
    proxy may know names that this machine does not.
    """
    parts = urlsplit(url if "://" in url else f"//{url}")
    has_proxy = any(os.environ.get(name) for name in _PROXIES)
    if not parts.hostname or (has_proxy and parts.scheme.startswith("http")):
        return None
    try:
        socket.getaddrinfo(parts.hostname, None)
    except socket.gaierror as error:
        # A name server that does not answer may do so later.
        if error.errno != socket.EAI_AGAIN:
            return (
                f"this machine knows no host named {parts.hostname!r} ({error.strerror}): look at "
                "the spelling, or ask whether the name is known only inside of another network"
            )
    except (OSError, UnicodeError):
        return None
    return None
