"""A cluster on two hosts whose link is cut, and healed, in the middle of a write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.reliability.faults import (
    TIMEOUT_S,
    assert_same_store,
    environment,
    need_command,
    need_root,
    wait_until,
)

pytestmark = pytest.mark.root

#: A scheduler gives a silent worker up within seconds.
IMPATIENT = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s",
    # The least that dask takes, which sends ten probes.
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10",
}
PORT = 8786


@dataclass(frozen=True)
class Hosts:
    """Two network namespaces that a pair of interfaces joins; they share the file system."""

    near: str
    far: str
    near_address: str = "10.213.77.1"
    far_address: str = "10.213.77.2"

    def cut(self) -> None:
        ip("-n", self.far, "link", "set", "toNear", "down")

    def heal(self) -> None:
        ip("-n", self.far, "link", "set", "toNear", "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=240)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    need_root()
    need_command("ip")
    name = uuid4().hex[:8]
    made = Hosts(f"near-{name}", f"far-{name}")
    with ExitStack() as stack:
        for host in (made.near, made.far):
            try:
                ip("netns", "add", host)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr}")
            stack.callback(ip, "netns", "delete", host)
            ip("-n", host, "link", "set", "lo", "up")
        ends = ("toFar", "netns", made.near), ("toNear", "netns", made.far)
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for host, end, address in (
            (made.near, "toFar", made.near_address),
            (made.far, "toNear", made.far_address),
        ):
            ip("-n", host, "address", "add", f"{address}/30", "dev", end)
            ip("-n", host, "link", "set", end, "up")
        yield made


@contextmanager
def started(host: str, log: Path, *module: str, **variables: str) -> Iterator[subprocess.Popen]:
    """Run a module on a host, and end it with all of its children."""
    command = ["ip", "netns", "exec", host, sys.executable, "-m", *module]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(**IMPATIENT, **variables),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(240)


@contextmanager
def cluster_on(hosts: Hosts, folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """A scheduler and a worker on the near host, a worker on the far one, which is yielded too."""
    scheduler = f"tcp://{hosts.near_address}:{PORT}"
    with ExitStack() as stack:
        options = ("--host", hosts.near_address, "--port", str(PORT), "--no-dashboard")
        command = ("distributed.cli.dask_scheduler", *options)
        stack.enter_context(started(hosts.near, folder / "scheduler.log", *command))
        for name, host, address in (
            ("near", hosts.near, hosts.near_address),
            ("far", hosts.far, hosts.far_address),
        ):
            options = ("--host", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
            command = ("distributed.cli.dask_worker", scheduler, *options)
            local = ("--local-directory", str(folder / name))
            worker = stack.enter_context(
                started(host, folder / f"{name}.log", *command, *local, HOST_OF_TEST=name)
            )
        yield scheduler, worker


def attempts(notes: Path) -> dict[str, set[str]]:
    """Which hosts have begun to make each block."""
    found: dict[str, set[str]] = {}
    for note in notes.glob("*.*.*"):
        place, host, _ = note.name.split(".")
        found.setdefault(place, set()).add(host)
    return found


@pytest.mark.parametrize("healed", ["before the commit", "after the commit"])
def test_a_link_that_is_cut_and_healed_costs_nothing_but_time(
    healed: str, hosts: Hosts, reference: Path, tmp_path: Path
) -> None:
    destination, notes = tmp_path / "store" / "scan.zarr", tmp_path / "notes"
    destination.parent.mkdir()
    notes.mkdir()

    def is_on_both() -> bool:
        return {"near", "far"} in attempts(notes).values()

    log = tmp_path / "write.log"
    with cluster_on(hosts, tmp_path) as (scheduler, far_worker):
        arguments = (scheduler, str(destination), str(notes))
        with started(hosts.near, log, "tests.reliability.write_slowly", *arguments) as write:
            wait_until(lambda: any("far" in on for on in attempts(notes).values()), "work far away")
            hosts.cut()
            if healed == "before the commit":
                wait_until(is_on_both, "a block that is made on both sides of the cut")
            else:
                wait_until(lambda: write.poll() is not None, "the end of the write")
            hosts.heal()
            (notes / "healed").touch()
            assert write.wait(TIMEOUT_S) == 0, log.read_text()
        assert is_on_both()
        assert_same_store(destination, reference)
        # The scheduler has given the worker up: it ends by itself, after the late shard that it
        # has under way. It gets no signal, from which dask does not recover in the midst of that.
        far_worker.wait(TIMEOUT_S)
        assert (notes / "late").exists()
    assert_same_store(destination, reference)
    assert os.listdir(destination.parent) == ["scan.zarr"]
