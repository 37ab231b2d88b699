from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, settings

# A busy machine takes a long time for any example.
settings.register_profile(
    "ctlab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ctlab")

#: What tests with a fixture want, besides what they are marked with.
_MARKERS = {"slurm": "cluster", "mpirun": "cluster", "s3": "server", "browser": "browser"}
#: Set by the continuous integration, which installs what every test needs.
_NOTHING_SKIPPED = "CTLAB_ZARR_NOTHING_SKIPPED"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with what its fixtures want."""
    for name in getattr(item, "fixturenames", ()):
        if name in _MARKERS:
            item.add_marker(_MARKERS[name])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a run in which nothing may be skipped fail where something was."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get(_NOTHING_SKIPPED) or terminal is None:
        return
    reasons = {str(report.longrepr) for report in terminal.stats.get("skipped", [])}
    if sys.version_info < (3, 12):
        # It is made for later versions of Python.
        reasons = {reason for reason in reasons if "anu_ctlab_io" not in reason}
    if reasons:
        terminal.write_line(f"skipped, though {_NOTHING_SKIPPED} is set:", red=True)
        for reason in sorted(reasons):
            terminal.write_line(f"  {reason}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


#: What dask's processes do ten and fifty times a second would take a sixth of a processor.
_IDLE = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    with dask.config.set(_IDLE):
        local = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
    with local, Client(local, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="session", autouse=True)
def dashboard_of_somebody() -> Iterator[None]:
    """Take the port of dask's dashboard, as somebody does on most machines."""
    with socket.socket() as dashboard:
        with suppress(OSError):
            dashboard.bind(("", 8787))
            dashboard.listen()
        yield


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Leave no signal ignored by a command that ran in this process, which goes on.

    What is started later, as the jobs of a batch system, would inherit that.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Return a function that tells everything below a folder, to be compared later."""

    def take(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
            for path in sorted(folder.rglob("*"))
        }

    return take
