"""Progress as people see it: bars on terminals and in notebooks, lines elsewhere, log messages.

One thread looks at what was told, a few times a second, and one `Outlet` shows it.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple, Protocol, TextIO

from dask.utils import parse_timedelta

from ctlab_dask_zarr.execution.progress import Progress
from ctlab_dask_zarr.settings import setting
from ctlab_dask_zarr.text import counted_text, duration_text, nbytes_text
from ctlab_dask_zarr.waits import LONG_S, Doing, logger

_BAR_INTERVAL_S = 0.2
#: Seconds of work that a rate remembers.
_MEMORY_S = 20.0
#: Seconds for an update under way to end.
_JOIN_S = 1.0
_BAR_WIDTH = 24
#: Seconds between two questions to a scheduler how many workers it has.
_COUNT_INTERVAL_S = 2.0


class View(NamedTuple):
    """What to show: a line, and the part that is done from 0 to 1, None where that is not known."""

    line: str
    part: float | None
    is_done: bool = False


class Outlet(Protocol):
    """Where progress is shown, and how often."""

    interval_s: float

    def show(self, view: View) -> None:
        """Show this instead of what was shown before."""
        ...

    def end(self, view: View) -> None:
        """Show this for good; nothing where its line is empty."""
        ...


class Speed:
    """Bytes per second of the last while; what is no work does not count.

    Work begins with the first bytes: until then workers start, load modules and read.
    """

    def __init__(self) -> None:
        self._latest: tuple[float, int] | None = None
        self._rate = self._weight = 0.0

    def saw(self, now_s: float, nbytes_done: int, *, is_work: bool = True) -> None:
        """Learn how many bytes are done at a time; whether the time since the last was work."""
        if self._latest is None and nbytes_done == 0:
            return
        latest, self._latest = self._latest, (now_s, nbytes_done)
        if latest is None or not is_work or now_s <= latest[0]:
            return
        seconds = now_s - latest[0]
        kept = math.exp(-seconds / _MEMORY_S)
        self._rate = kept * self._rate + (1 - kept) * (nbytes_done - latest[1]) / seconds
        self._weight = kept * self._weight + (1 - kept)

    @property
    def rate(self) -> float | None:
        """Bytes per second; None where that is not known yet."""
        return self._rate / self._weight if self._rate > 0 else None


class Lines:
    """Writes a line with its time now and then, as a log is read later."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.interval_s = float(parse_timedelta(setting("progress-interval")))

    def show(self, view: View) -> None:
        """Write a line, if there is anything to say."""
        if not view.line:
            return
        # Carriage returns would fill a log.
        self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {view.line}\n")
        self._stream.flush()

    end = show


class Terminal:
    """Draws a bar by rich, above which other messages appear."""

    interval_s = _BAR_INTERVAL_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Any = None

    def show(self, view: View) -> None:
        """Draw the bar anew."""
        from rich.console import Console
        from rich.live import Live

        if self._live is None and not view.line:
            return
        if self._live is None:

            class Steady(Console):
                # A killed process would leave a terminal without its cursor.
                def show_cursor(self, show: bool = True) -> bool:
                    return False

            console = Steady(file=self._stream, force_jupyter=False, highlight=False)
            # Our own thread draws; what others print is moved above the bar.
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        self._live.update(self._drawn(view), refresh=True)

    def end(self, view: View) -> None:
        """Draw the last line, and leave it there."""
        if self._live is not None:
            self._live.transient = not view.line
            self.show(view)
            self._live.stop()

    def _drawn(self, view: View) -> Any:
        from rich.progress_bar import ProgressBar as Bar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        line = Text(view.line, overflow="ellipsis", no_wrap=view.part is not None)
        if view.is_done or not view.line:
            return Text(view.line, style="green")
        grid = Table.grid(padding=(0, 1))
        if view.part is None:
            grid.add_row(Spinner("line"), line)
        else:
            grid.add_row(Bar(total=1.0, completed=view.part, width=_BAR_WIDTH), line)
        return grid


class Notebook:
    """Shows a bar below a cell, by IPython alone: no widgets are needed."""

    interval_s = 0.5

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, view: View) -> None:
        """Replace what is below the cell."""
        from IPython.display import display

        if self._handle is None and not view.line:
            return
        bar = ""
        if not view.is_done:
            value = "" if view.part is None else f' value="{view.part:.4f}"'
            bar = f'<progress max="1"{value} style="width:20em"></progress> '
        line = f'<span style="font-variant-numeric:tabular-nums">{escape(view.line)}</span>'
        html = f"<div>{bar}{line}</div>" if view.line else ""
        data = {"text/html": html, "text/plain": view.line}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    end = show


def is_notebook() -> bool:
    """Whether this runs in a notebook's kernel, which shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def outlet_for(progress: bool | None, stream: TextIO | None = None) -> Outlet | None:
    """Return where to show progress, or None for nowhere; by default only in notebooks."""
    if progress is False or (progress is None and not is_notebook()):
        return None
    if stream is None and is_notebook():
        return Notebook()
    stream = sys.stderr if stream is None else stream
    return Terminal(stream) if stream.isatty() else Lines(stream)


class ProgressDisplay:
    """Shows what it is told in an outlet, and logs it at the level INFO.

    Use it as a context. `count_workers` returns how many workers there are at the moment.
    """

    def __init__(self, outlet: Outlet | None, noun: str = "shards") -> None:
        self.noun = noun
        self.count_workers: Callable[[], int] | None = None
        self._outlet = outlet
        self._workers = ""
        self._told: Progress | None = None
        # Of writes before the one that is told of, as of labels before their image.
        self._n_tasks = self._nbytes = 0
        self._doing: Doing | None = None
        self._speed = Speed()
        self._start_s = self._moved_s = time.monotonic()
        self._log_interval_s = float(parse_timedelta(setting("progress-interval")))
        self._logged_s = self._counted_s = -math.inf
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def tell(self, told: Progress) -> None:
        """Show this from now on."""
        before, self._told = self._told, told
        if before is None or told.nbytes_done != before.nbytes_done:
            self._moved_s = time.monotonic()
        if before is None:
            self._start_s = self._moved_s
            self._begin()
        elif before[:2] != told[:2]:
            self._n_tasks += before.n_tasks
            self._nbytes += before.nbytes
            self._speed = Speed()

    def doing(self, doing: Doing | None) -> None:
        """Show what is under way while no voxels are written."""
        before, self._doing = self._doing, doing
        self._moved_s = time.monotonic()
        is_back = before is not None and doing is not None and before.start_s > doing.start_s
        if doing is None or doing == before or is_back:
            return
        if not doing.is_usually_short:
            self._begin()
        elif self._thread.ident is None:
            self._thread.start()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread.ident is None:
            return
        self._is_over.set()
        # The thread may be asking a scheduler that does not answer; a job has to end in time.
        self._thread.join(_JOIN_S)
        self._doing = None
        if kind is None and not self._thread.is_alive():
            self._count()
        view = self._last_view() if kind is None else self._view()
        self._log(view, is_last=True)
        if self._outlet is not None:
            self._outlet.end(view)

    def _begin(self) -> None:
        """Show the first of something at once, by the thread of the call: a cell shows that."""
        view = self._view()
        self._log(view, is_last=True)
        if self._outlet is not None:
            self._outlet.show(view)
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        interval_s = self._outlet.interval_s if self._outlet else self._log_interval_s
        while not self._is_over.wait(interval_s):
            self._count()
            view = self._view()
            if self._is_over.is_set():
                return
            self._log(view)
            if self._outlet is not None:
                self._outlet.show(view)

    def _count(self) -> None:
        now_s = time.monotonic()
        if self.count_workers is None or now_s - self._counted_s < _COUNT_INTERVAL_S:
            return
        self._counted_s = now_s
        try:
            n_workers = self.count_workers()
        except Exception:
            # The scheduler may be gone; the write itself says so.
            self._workers = ""
        else:
            self._workers = f", {counted_text(n_workers, 'worker')}"

    def _log(self, view: View, *, is_last: bool = False) -> None:
        now_s = time.monotonic()
        if (
            view.line
            and logger.isEnabledFor(logging.INFO)
            and (is_last or now_s - self._logged_s >= self._log_interval_s)
        ):
            self._logged_s = now_s
            logger.info("%s", view.line)

    def _last_view(self) -> View:
        """Return the final figures; nothing where nothing was told, as of what was complete."""
        if self._told is None:
            return View("", None)
        seconds = time.monotonic() - self._start_s
        n_tasks = self._n_tasks + self._told.n_tasks
        nbytes = self._nbytes + self._told.nbytes
        noun = self.noun.removesuffix("s") if n_tasks == 1 else self.noun
        took = f"{seconds:.1f} s" if seconds < 60 else duration_text(seconds)
        rate = f", {nbytes_text(nbytes / seconds)}/s" if nbytes and seconds > 0 else ""
        line = f"✔ {n_tasks} {noun}, {nbytes_text(nbytes)}, {took}{rate}{self._workers}"
        return View(line, part=1.0, is_done=True)

    def _view(self) -> View:
        now_s = time.monotonic()
        told = self._told
        if told is None:
            return View(self._doing.text(now_s) if self._doing else "", None)
        is_work = self._doing is None and not told.doing
        self._speed.saw(now_s, told.nbytes_done, is_work=is_work)
        rate = self._speed.rate
        part = told.nbytes_done / told.nbytes if told.nbytes else 1.0
        line = (
            f"{int(part * told.n_tasks)} of {told.n_tasks} {self.noun}, "
            f"{nbytes_text(told.nbytes_done)} of {nbytes_text(told.nbytes)} ({part:.0%})"
        )
        if rate:
            left = duration_text((told.nbytes - told.nbytes_done) / rate)
            line += f", {nbytes_text(rate)}/s, {left} left"
        line += self._workers
        still_s = now_s - self._moved_s
        if self._doing is not None:
            doing = self._doing.text(now_s)
            line += doing and f"; {doing}"
        elif told.doing:
            line += f"; {told.doing}"
        elif still_s >= LONG_S:
            what = "no voxels yet" if told.nbytes_done == 0 else "nothing more"
            line += f"; {what} for {duration_text(still_s)}: {_SLOW}"
        return View(line, part)


#: What may be the matter where workers are there and nothing comes.
_SLOW = "the tasks under way are long, or the source or the file system is slow"
