"""Signals at the moments that batch systems choose for them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from ctlab_dask_zarr.execution.stopping import Stop

_ENDING = """
import os, signal, sys
from ctlab_dask_zarr.execution.stopping import Stop
stop = Stop()
with stop.on_signals():
    if {stopped}:
        stop.ask("the time is nearly up")
os.kill(os.getpid(), signal.{name})
sys.exit({code})
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize(("stopped", "code"), [(True, 75), (False, 0)])
def test_a_signal_while_a_process_ends_does_not_replace_its_exit_code(
    name: str, stopped: bool, code: int
) -> None:
    """A job that ends with 75 goes into the queue again, and one that is done has not failed."""
    ending = _ENDING.format(stopped=stopped, name=name, code=code)
    assert subprocess.run([sys.executable, "-c", ending], timeout=240).returncode == code


def test_ctrl_c_means_afterwards_what_it_always_does() -> None:
    ending = _ENDING.format(stopped=False, name="SIGINT", code=0)
    done = subprocess.run([sys.executable, "-c", ending], timeout=240, capture_output=True)
    assert done.returncode == -signal.SIGINT


_WAITING = """
import os, signal, threading, time
from ctlab_dask_zarr.execution.stopping import Stop
for _ in range(40):
    stop = Stop()
    stop.woken.set()
    with stop.on_signals():
        threading.Timer(0.01, os.kill, (os.getpid(), signal.{name})).start()
        while stop.reason() is None:
            stop.woken.wait(0.2)
    # What on_signals leaves to the end of the process.
    signal.signal(signal.{name}, signal.SIG_DFL)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1", "SIGTERM"])
def test_a_signal_in_the_middle_of_a_wait_does_not_hang(name: str) -> None:
    """The handler runs in the main thread, which holds the lock of what it waits for."""
    code = _WAITING.format(name=name)
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


@pytest.mark.parametrize(
    ("reason", "deadline_s", "expected"),
    [
        # By this a batch system warns of the end, where there is one.
        ("SIGUSR1", 3600, True),
        ("SIGUSR1", None, False),
        ("SIGUSR1", float("inf"), False),
        # By these somebody ends it at any time, as to make room for another job.
        ("SIGTERM", 3600, False),
        ("SIGINT", 3600, False),
        (None, 5, True),
        (None, -3600, True),
        (None, 3600, False),
    ],
)
def test_a_stop_before_the_first_shard_is_futile_where_it_tells_of_the_end(
    reason: str | None, deadline_s: float | None, expected: bool
) -> None:
    for progress in (lambda stop: stop.saw(2.0), lambda stop: stop.progressed()):
        stop = Stop(deadline_s)
        if reason is not None:
            stop.ask(reason)
        stop.reason()
        # Of a task that is under way.
        stop.saw(0.0)
        assert stop.is_futile() == expected
        progress(stop)
        assert not stop.is_futile()
