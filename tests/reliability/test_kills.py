"""Kills of whole commands: at random moments, and by the signals of a batch system."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import Dataset, StagingExistsError, WriteStoppedError, verify
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.execution.progress import listen
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset, random_voxels
from tests.reliability import killed_write
from tests.reliability.faults import kill_group

pytestmark = pytest.mark.slow

SHAPE = (64, 96, 96)
LAYOUT = ("--shards", "16,32,32", "--chunks", "8,16,16", "--levels", "2")
#: Of both levels: z, with the longest voxels, is not halved.
N_SHARDS = 4 * 3 * 3 + 4 * 2 * 2

#: Forks from a process that has imported everything, so that an attempt starts in no time.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.reliability.killed_write"])


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE, dtype="uint16")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomoSmall_nc"
    write_mango_netcdf(path, voxels, slices_per_block=4, voxel_size=(3.0, 2.0, 1.5))
    return path


def start(source: Path, destination: Path, pause_s: float) -> Any:
    """Start a write; return its process when it is about to begin."""
    receiver, sender = _processes.Pipe(duplex=False)
    arguments = (str(source), str(destination), pause_s, sender)
    process = _processes.Process(target=killed_write.write, args=arguments)
    process.start()
    assert receiver.poll(240)
    assert receiver.recv() == "ready"
    return process


def shards_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every finished shard below a folder."""
    found = {}
    # os.walk takes folders in its stride that are renamed or removed while it looks.
    for parent, _, names in os.walk(folder):
        for name in names:
            shard = os.path.join(parent, name)
            key = re.search(r"/(\d+/c[./].+)$", shard)
            if key is None or name.endswith(".partial"):
                continue
            with suppress(FileNotFoundError):
                facts = os.stat(shard)
                found[key[1]] = (facts.st_ino, facts.st_mtime_ns)
    return found


def test_killed_at_fifty_random_moments_it_is_resumed_and_no_shard_is_written_twice(
    source: Path, voxels: np.ndarray, tmp_path: Path
) -> None:
    """One destination after another is killed again and again until it is there."""
    rng = random.Random(0)
    n_kills = n_destinations = n_kept = 0
    while n_kills < 50:
        destination = tmp_path / f"{n_destinations}.zarr"
        n_destinations += 1
        before: dict[str, tuple[int, int]] = {}
        while True:
            process = start(source, destination, 0.01)
            process.join(rng.uniform(0.02, 0.35))
            if process.is_alive():
                kill_group(process)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            n_kills += 1
            if destination.exists():
                continue
            after = shards_of(tmp_path / f".{destination.name}.staging")
            assert all(after[name] == facts for name, facts in before.items())
            n_kept += len(before)
            before = after
        final = shards_of(destination)
        assert len(final) == N_SHARDS
        assert all(final[name] == facts for name, facts in before.items())
        np.testing.assert_array_equal(Dataset.from_path(destination).data.compute(), voxels)
        assert os.listdir(tmp_path) == [destination.name]
        assert verify(destination, source) == []
        for path in sorted(destination.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        destination.rmdir()
    assert n_kept > 50, "shards were there to be kept"


SLOW = ("-q", "--codec", "zstd:19")


def convert(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "convert", *map(str, arguments)]
    return subprocess.Popen(
        [*command, *LAYOUT, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], is_alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        assert is_alive()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A scan that takes some seconds with a slow codec."""
    voxels = np.random.default_rng(1).integers(0, 4000, (192, 224, 224), dtype="uint16")
    path = tmp_path_factory.mktemp("large") / "tomoLarge_nc"
    write_mango_netcdf(path, voxels, slices_per_block=8)
    return path, voxels


@pytest.mark.parametrize("to_all", [False, True], ids=["the command", "every process"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_stops_cleanly_and_resume_goes_on(
    name: str, to_all: bool, large: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    source, voxels = large
    process = convert(source, tmp_path / "a", *SLOW)
    wait_until(lambda: len(shards_of(tmp_path)) > 3, lambda: process.poll() is None)
    send = os.killpg if to_all else os.kill
    send(process.pid, getattr(signal, name))
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors
    assert "--resume" in errors
    if name != "SIGUSR1" or not to_all:
        # Of SIGUSR1 Python's own resource tracker dies, and complains.
        assert "Traceback" not in errors
    assert os.listdir(tmp_path) == [".a.zarr.staging"]
    assert not list(tmp_path.rglob("*.partial")), "what was under way was finished"
    there = shards_of(tmp_path)
    assert there
    again = convert(source, tmp_path / "a", *SLOW, "--resume", "--json")
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert json.loads(output)["n_resumed"] == len(there)
    final = shards_of(tmp_path / "a.zarr")
    assert all(final[key] == facts for key, facts in there.items())
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), voxels)


# A round has what start and end of a command leave of it: little, on a busy machine.
def _seconds_to_start() -> float:
    start_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import ctlab_dask_zarr.api.write, distributed"], check=True
    )
    return time.monotonic() - start_s


@pytest.mark.timeout(900)
def test_a_deadline_stops_before_it_and_a_loop_of_them_gets_through(
    large: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    # A part of the large scan: two rounds or three where nothing else runs.
    voxels = large[1][:128]
    source = tmp_path / "tomoPart_nc"
    write_mango_netcdf(source, voxels, slices_per_block=8)
    # Compiled now, and kept: on a busy machine a round is shorter than that takes.
    halve(np.zeros((2, 2, 2), "uint16"), (2, 2, 2), "mean", 65535)
    codes = []
    end_s = time.monotonic() + 840
    while time.monotonic() < end_s:
        start_s = time.monotonic()
        process = convert(source, tmp_path / "a", *SLOW, "--resume", "--deadline", "17s")
        _, errors = process.communicate(timeout=240)
        codes.append(process.returncode)
        if process.returncode == 1:
            # So busy a machine that a round did not do for a shard, which is told.
            assert "no shard was finished in the" in errors
        else:
            assert process.returncode in (0, 75), errors
        took_s = time.monotonic() - start_s
        # To start a process takes one or two seconds; where it takes more, so does closing.
        assert took_s < max(17, 12 * _seconds_to_start()), took_s
        if process.returncode == 0:
            break
    assert codes[-1] == 0
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), voxels)


def test_no_shard_is_begun_that_could_not_be_finished_before_the_deadline(
    tmp_path: Path, cluster: Client
) -> None:
    def slowly(block: np.ndarray) -> np.ndarray:
        time.sleep(0.2)
        return block

    voxels = np.ones((64, 64, 64), "u2")
    data = da.from_array(voxels, chunks=8).map_blocks(slowly, meta=voxels[:0])
    options = WriteOptions(chunks=(8, 8, 8), shards=(8, 8, 8))
    write = prepare_write(make_dataset(data), tmp_path / "a", options)
    # Ten seconds of it are for closing a cluster: half a minute of work has three.
    stop = Stop(13)
    with (
        listen(write.graph, lambda nbytes, task_s: stop.saw(task_s), cluster),
        pytest.raises(WriteStoppedError, match="resume=True") as error,
    ):
        run(write, client=cluster, stop=stop)
    assert error.value.exit_code == 75
    assert os.listdir(tmp_path) == [".a.zarr.staging"]
    assert 0 < len(shards_of(tmp_path)) < 8**3
    assert not list(tmp_path.rglob("*.partial"))


def test_parts_are_written_by_jobs_that_know_nothing_of_each_other(
    source: Path, voxels: np.ndarray, tmp_path: Path
) -> None:
    def commit() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "commit", str(tmp_path / "a")]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    for parts in ([3, 1], [1]):
        jobs = [convert(source, tmp_path / "a", "-q", "--part", f"{part}/3") for part in parts]
        for job in jobs:
            output, errors = job.communicate(timeout=240)
            assert job.returncode == 0, errors
            assert "ctlab-zarr commit" in output
    done = commit()
    assert done.returncode == 5
    assert "not whole: 2)" in done.stderr
    assert not (tmp_path / "a.zarr").exists()
    job = convert(source, tmp_path / "a", "-q", "--part", "2/3")
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    for _ in range(2):
        done = commit()
        assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), voxels)


def test_a_source_that_changed_cannot_be_resumed(
    source: Path, tmp_path: Path, voxels: np.ndarray
) -> None:
    own = tmp_path / "tomoOwn_nc"
    write_mango_netcdf(own, voxels, slices_per_block=4)
    process = start(own, tmp_path / "a.zarr", 0.3)
    wait_until(lambda: bool(shards_of(tmp_path)), process.is_alive)
    kill_group(process)
    os.utime(own / "block00000002.nc")
    process = convert(own, tmp_path / "a.zarr", "-q", "--resume")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 4
    assert "source.files[2]" in errors


def test_parts_of_another_version_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(random_voxels((32, 32, 32)))
    options = WriteOptions(chunks=(16, 16, 16), shards=(16, 32, 32))
    run(prepare_write(dataset, tmp_path / "scan", options, part=(1, 2)))
    plan = tmp_path / ".scan.zarr.staging" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "version": "0.0.9"}))
    with pytest.raises(StagingExistsError, match=r"ctlab-dask-zarr 0\.0\.9, and this"):
        prepare_write(dataset, tmp_path / "scan", options, part=(2, 2))
