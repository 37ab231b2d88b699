"""Commands that are told to stop, by signals and deadlines: at once, cleanly, with exit code 75."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from ctlab_dask_zarr import Dataset, dataset_from_zarr, labels_to_zarr, verify
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import run_here
from tests.reliability.faults import TIMEOUT_S

VOXELS = np.random.default_rng(0).integers(0, 4000, (20, 24, 28), dtype="uint16")
LAYOUT = ("--chunks", "4,4,4", "--shards", "8,8,8")
#: Of what goes on until it is cut short: longer than any deadline here.
LONG_S = 600

pytestmark = pytest.mark.slow
Process = subprocess.Popen[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "tomoSmall_nc"
    write_mango_netcdf(path, VOXELS, slices_per_block=4)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Return the address of a scheduler whose tasks run in this process."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        processes=False,
        protocol="tcp",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def start(scheduler: str) -> Callable[..., Process]:
    """Return a function that starts a command."""

    def command(*words: object) -> Process:
        return subprocess.Popen(
            [sys.executable, "-m", "ctlab_dask_zarr.cli", *map(str, words), "-q",
             "--scheduler", scheduler],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return command


@pytest.fixture
def finish(scheduler: str) -> Callable[..., str]:
    """Return a function that runs a command to its end, in this process: it is sent no signal."""

    def command(*words: object) -> str:
        done = run_here(*words, "-q", "--scheduler", scheduler)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return command


class Slow:
    """Makes a function take its time, unless that is cut short, and tells when it is called.

    Only calls for which `when` is true count; as many of them as `n_quick` come first, and are as
    quick as ever.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        seconds: float,
        when: Callable[..., bool],
        n_quick: int = 0,
    ) -> None:
        self.called = threading.Event()
        self.cut_short = threading.Event()
        function = getattr(owner, name)
        numbers = itertools.count()

        # By the name of the method it is found again where a bound one is unpickled.
        @wraps(function)
        def slow(*arguments: Any, **options: Any) -> Any:
            if when(*arguments, **options) and next(numbers) >= n_quick:
                self.called.set()
                self.cut_short.wait(seconds)
            return function(*arguments, **options)

        patch.setattr(owner, name, slow)


def slow_shards(
    patch: pytest.MonkeyPatch, seconds: float, n_quick: int = 0, inside: str = ""
) -> Slow:
    """Make it slow to begin a shard, of the folder `inside`."""

    def is_shard(files: LocalFiles, path: str, *_: Any) -> bool:
        return inside in path and re.search(r"/store-\w+/\d/.*\.c[./]\d|/c/\d", path) is not None

    return Slow(patch, LocalFiles, "open_new", seconds, is_shard, n_quick)


def slow_check(patch: pytest.MonkeyPatch) -> Slow:
    """Make the check of a block of the source slow, which takes the MD5 of its voxels."""
    block_nbytes = VOXELS[:4].nbytes

    def is_block(data: Any = b"", **_: Any) -> bool:
        return len(data) == block_nbytes

    return Slow(patch, hashlib, "md5", LONG_S, is_block)


def stop(process: Process, slow: Slow, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    """Send a signal when a task is running; return what the command says before it ends."""
    while not slow.called.wait(0.1):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    slow.cut_short.set()
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert output == ""
    return output, errors


@pytest.fixture
def deadline() -> str:
    """Return a deadline that leaves time to begin: of it, ten seconds are for the end."""
    start_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import ctlab_dask_zarr.api.write, distributed"], check=True
    )
    return f"{15 + 10 * (time.monotonic() - start_s):.0f}s"


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_source_check_is_stopped_before_anything_is_begun(
    number: signal.Signals, start: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = slow_check(monkeypatch)
    process = start("convert", source, out / "a", *LAYOUT, "--check-source")
    _, errors = stop(process, slow, number)
    assert f"stopped ({number.name}): the source was being checked, and nothing is begun" in errors
    assert os.listdir(out) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_verification_is_stopped_and_changes_nothing(
    number: signal.Signals,
    start: Any,
    finish: Any,
    source: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = out / "a.zarr"
    finish("convert", source, store, *LAYOUT)
    slow = slow_check(monkeypatch)
    _, errors = stop(start("verify", store, "--source", source), slow, number)
    assert f"stopped ({number.name}): {store} was not verified to the end" in errors


def test_a_stopped_verification_after_a_conversion_says_that_the_dataset_is_there(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = out / "a.zarr"
    with monkeypatch.context() as patch:
        slow = slow_check(patch)
        arguments = ("convert", source, store, *LAYOUT, "--voxel-size", "5um", "--verify")
        _, errors = stop(start(*arguments), slow)
    assert f"{store} is complete and in its place, but not verified to the end" in errors
    assert f"`ctlab-zarr verify {store} --source {source}` with the same --voxel-size" in errors
    assert os.listdir(out) == ["a.zarr"]
    # What a job that goes into the queue again does.
    assert "verified" in finish(*arguments, "--resume")


def test_a_stopped_conversion_tells_how_far_it_is_and_that_the_old_dataset_stands(
    start: Any,
    finish: Any,
    source: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], dict[str, str]],
) -> None:
    store = out / "a.zarr"
    finish("convert", source, store)
    before = snapshot(store)
    with monkeypatch.context() as patch:
        slow = slow_shards(patch, 0.5)
        process = start("convert", source, store, *LAYOUT, "--overwrite")
        _, errors = stop(process, slow)
    assert "of 36 shards are written, and the destination is as it was" in errors
    assert "--resume" in errors
    assert snapshot(store) == before


def test_a_commit_that_makes_levels_is_stopped_and_gone_on_with(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    store = out / "a.zarr"
    for part in ("1/2", "2/2"):
        finish("convert", source, store, *LAYOUT, "--levels", "2", "--part", part)
    with monkeypatch.context() as patch:
        slow = slow_shards(patch, 0.5)
        _, errors = stop(start("commit", store), slow)
    assert "stopped (SIGTERM): about" in errors
    assert "the destination is as it was; the same command goes on" in errors
    assert os.listdir(out) == [".a.zarr.staging"]
    # And by its deadline, of which ten seconds are for its end.
    with monkeypatch.context() as patch:
        slow = slow_shards(patch, LONG_S, n_quick=1)
        process = start("commit", store, "--deadline", deadline)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        slow.cut_short.set()
        assert process.returncode == 75, errors
        assert "the time is nearly up" in errors
    assert "objects committed" in finish("commit", store)
    assert verify(store, Dataset.from_path(source)) == []


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.h5"])
def test_a_stopped_export_keeps_its_files_and_goes_on(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = f"{out}/{name}"
    export = ("export", source, path, *(("--compression-level", "1") if name == "a.h5" else ()))

    def is_written(files: LocalFiles, path: str) -> bool:
        return path.endswith((".partial", "/volume.tif"))

    with monkeypatch.context() as patch:
        # Of HDF5 the second one is the commit, which is not stopped.
        n_quick = 0 if name == "a.h5" else 1
        slow = Slow(patch, LocalFiles, "sync_folder", 0.5, is_written, n_quick)
        _, errors = stop(start(*export), slow)
    assert "stopped (SIGTERM): about" in errors
    assert f"and {path.rstrip('/')} is as it was; go on by --resume" in errors
    assert len(os.listdir(out)) == 1
    assert "verified" in finish(*export, "--resume", "--verify")
    assert len(os.listdir(out)) == 1


def fail(process: Process) -> str:
    """Return what a command says that ends so that no job script repeats it."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    assert output == ""
    return " ".join(errors.split())


@pytest.mark.parametrize("left_s", [5, -3600])
def test_a_job_without_time_for_a_shard_does_not_go_into_the_queue_for_ever(
    left_s: int, start: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left_s))
    errors = fail(start("convert", source, out / "a", "--deadline", "auto"))
    assert "stopped (the time is nearly up): no shard was finished in the " in errors
    assert "0 of 1 shards were there before, and the destination is as it was" in errors
    assert "the walltime of the job" in errors
    assert "smaller --shards, which begin anew (--restart)" in errors


def test_a_shard_that_takes_longer_than_there_is_time_ends_a_part_for_good(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    convert = ("convert", source, out / "a", *LAYOUT, "--part")
    finish(*convert, "1/2")
    with monkeypatch.context() as patch:
        slow = slow_shards(patch, LONG_S)
        errors = fail(start(*convert, "2/2", "--deadline", deadline))
        assert slow.called.is_set()
        slow.cut_short.set()
    # What other parts have written is no progress of this one.
    assert "no shard was finished" in errors
    assert f"`ctlab-zarr abort {out / 'a.zarr'}` and all parts again" in errors
    finish(*convert, "2/2", "--deadline", "1h")


def test_the_warning_of_a_batch_system_before_the_first_shard_is_not_repeated_for_ever(
    start: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = slow_shards(monkeypatch, LONG_S)
    process = start("convert", source, out / "a", "--deadline", "1h")
    assert slow.called.wait(TIMEOUT_S)
    process.send_signal(signal.SIGUSR1)
    assert "stopped (SIGUSR1): no shard was finished in the " in fail(process)
    slow.cut_short.set()


def test_levels_for_which_there_is_no_time_are_not_tried_for_ever(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish("convert", source, out / "a", *LAYOUT)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 5))
    errors = fail(start("pyramid", out / "a.zarr", "--levels", "2", "--deadline", "auto"))
    assert "no shard was finished" in errors
    # Their shards are those of the image.
    assert "--shards" not in errors


def test_levels_of_labels_that_are_done_are_progress_of_their_image(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    store = out / "a.zarr"
    finish("convert", source, store, *LAYOUT)
    labels = np.ones(dataset_from_zarr(store).shape, "uint8")
    labels_to_zarr(labels, store, "one", chunks=(4, 4, 4), shards=(8, 8, 8))
    slow = slow_shards(monkeypatch, LONG_S, inside=f"{os.sep}.a.zarr.staging{os.sep}")
    process = start("pyramid", store, "--levels", "2", "--deadline", deadline)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, errors
    slow.cut_short.set()
    finish("pyramid", store, "--levels", "2", "--resume")


def test_a_verification_that_takes_longer_than_there_is_time_is_not_tried_for_ever(
    start: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    slow = slow_check(monkeypatch)
    convert = ("convert", source, out / "a", "--verify", "--resume", "--deadline", deadline)
    process = start(*convert)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, errors
    assert slow.called.is_set()
    slow.cut_short.set()
    monkeypatch.undo()
    slow = slow_check(monkeypatch)
    errors = fail(start(*convert))
    slow.cut_short.set()
    assert "is complete and in its place, but not verified to the end" in errors
    assert "It was not done in the " in errors


def test_json_of_a_stopped_verification_is_no_result(
    start: Any, finish: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = out / "a.zarr"
    assert json.loads(finish("convert", source, store, "--json"))["n_shards"] == 1
    slow = slow_check(monkeypatch)
    stop(start("verify", store, "--source", source, "--json"), slow)
