"""How far a write is, for people: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from ctlab_dask_zarr.settings import setting
from ctlab_dask_zarr.text import duration_text, nbytes_text

__all__ = ["Progress"]

#: Seconds between two updates of a bar.
_BAR_INTERVAL_S = 0.2
_BAR_WIDTH = 24
#: Seconds for an update under way to end.
_JOIN_S = 1.0


class Progress:
    """Shows shards, bytes, rate and time left until it is closed.

    Parameters
    ----------
    n_shards, nbytes
        Of the whole write; bytes of voxels before compression.
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
        """Count bytes that were encoded; the seconds of a task do not matter here."""
        self._done = min(self._done + nbytes, self._total)

    def expect(self, nbytes: int) -> None:
        """Say how many bytes there are, where it was not known at the beginning."""
        self._total = nbytes

    def line(self) -> str:
        """Return how far it is, as text."""
        part = self._done / self._total if self._total else 1.0
        seconds = max(time.monotonic() - self._start_s, 1e-3)
        rate = self._done / seconds
        left = duration_text((self._total - self._done) / rate) if rate else "?"
        return (
            f"{int(part * self._n_shards)} of {self._n_shards} {self._noun}, "
            f"{nbytes_text(self._done)} of {nbytes_text(self._total)} ({part:.0%}), "
            f"{nbytes_text(rate)}/s, {left} left"
        )

    def _count_workers(self) -> str:
        """Return how many workers there are, if anybody knows."""
        if self._n_workers is None:
            return ""
        try:
            return f", {self._n_workers()} workers"
        except Exception:
            # Telling is best effort: the scheduler may be gone, which the write itself will tell.
            return ""

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
        # It may be asking a scheduler that does not answer, and what is to end in time has to.
        self._thread.join(_JOIN_S)
        if kind is None:
            self._done = self._total
            if not self._thread.is_alive():
                self._workers = self._count_workers()
        self._show()
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._workers = self._count_workers()
            if not self._stop.is_set():
                self._show()

    def _show(self) -> None:
        if self._is_terminal:
            filled = int(_BAR_WIDTH * self._done / max(self._total, 1))
            bar = "#" * filled + "." * (_BAR_WIDTH - filled)
            self._stream.write(f"\r\x1b[K[{bar}] {self.line()}")
        else:
            self._stream.write(f"{self.line()}{self._workers}\n")
        self._stream.flush()


def _line_interval_s() -> float:
    from dask.utils import parse_timedelta

    return float(parse_timedelta(setting("progress-interval")))
