"""Whether a write still runs, by whom, why it has stopped, and how to go on."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import Stop, WriteFailedError, WriteStoppedError, dataset_to_zarr, status
from ctlab_dask_zarr.errors import StagingExistsError
from ctlab_dask_zarr.planning.resolve import existing_write
from ctlab_dask_zarr.write.staging import runner
from ctlab_dask_zarr.write.staging.runner import Runner, run_state
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((16, 16, 16))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}


def ended_process() -> int:
    """Return the number of a process that is there no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(240)
    return process.pid


def stop_after_a_shard(path: Path, error: BaseException | None = None) -> None:
    """Begin a write that is stopped once it has written something, or that fails by `error`."""
    stop = Stop()
    dataset = make_dataset(VOXELS, 8)

    def told(progress: Any) -> None:
        if progress.nbytes_done and error is None:
            stop.ask("SIGTERM")

    def fail(block: Any, block_info: Any = None) -> Any:
        if error is not None and block_info[0]["chunk-location"] == (1, 1, 1):
            raise error
        return block

    if error is not None:
        meta = np.empty((0, 0, 0), "u2")
        dataset = make_dataset(da.map_blocks(fail, dataset.data, dtype="u2", meta=meta))
    dataset_to_zarr(dataset, path, **LAYOUT, progress=told, stop=stop)


def name_runner(path: Path, by: Runner) -> None:
    """Have the plan of a write name another process, and no note of an end."""
    destination = existing_write(path)
    plan = json.loads((Path(destination.staging) / "plan.json").read_text())
    plan["runner"] = asdict(by)
    (Path(destination.staging) / "plan.json").write_text(json.dumps(plan))
    for note in Path(destination.staging).glob("pieces-*/stopped.json"):
        note.unlink()


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    path = tmp_path / "scan.zarr"
    with pytest.raises(WriteStoppedError):
        stop_after_a_shard(path)
    return path


def test_a_stopped_write_says_why_and_by_whom_it_was_run(stopped: Path) -> None:
    found = status(stopped)
    assert (found.state, found.why) == ("stopped", "stopped (SIGTERM)")
    assert found.runner == f"process {os.getpid()} on {socket.gethostname()}"
    assert found.how_to_go_on == "the same call with resume=True"
    assert found.since_s is not None
    assert abs(found.since_s - time.time()) < 3600


def test_a_failed_write_says_what_was_wrong(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError):
        stop_after_a_shard(tmp_path / "scan.zarr", RuntimeError("the disk is on fire"))
    found = status(tmp_path / "scan.zarr")
    assert found.state == "stopped"
    assert "the disk is on fire" in found.why


def test_an_interrupted_write_is_one(tmp_path: Path) -> None:
    def told(progress: Any) -> None:
        if progress.nbytes_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset_to_zarr(make_dataset(VOXELS, 8), tmp_path / "a.zarr", **LAYOUT, progress=told)
    assert (status(tmp_path / "a.zarr").state, status(tmp_path / "a.zarr").why) == (
        "stopped",
        "interrupted",
    )


def test_what_another_run_has_left_is_told_with_its_end(stopped: Path) -> None:
    with pytest.raises(StagingExistsError, match=r"was interrupted at .* \(stopped \(SIGTERM\)"):
        dataset_to_zarr(make_dataset(VOXELS, 8), stopped, **LAYOUT)


def test_a_process_that_was_killed_is_noticed_on_its_machine(stopped: Path) -> None:
    name_runner(stopped, replace(Runner.here(), pid=ended_process()))
    found = status(stopped)
    assert (found.state, found.why) == ("stopped", "its process has ended")


@pytest.mark.parametrize(("silence_s", "state"), [(0, "running"), (600, "stopped")])
def test_a_process_of_another_machine_shows_signs_of_life(
    silence_s: int, state: str, stopped: Path
) -> None:
    name_runner(stopped, replace(Runner.here(), host="node7", job="4711"))
    plan = Path(existing_write(stopped).staging) / "plan.json"
    then = time.time() - silence_s
    os.utime(plan, (then, then))
    found = run_state(existing_write(stopped), latest_s=then)
    assert found.state == state
    assert "on node7 (job 4711)" in str(found.runner)


def test_tasks_that_outlive_their_client_are_noticed(stopped: Path) -> None:
    found = run_state(existing_write(stopped), latest_s=time.time() + 120)
    assert found.state == "running"
    assert "write on" in found.why


def test_who_resumes_a_write_that_goes_on_elsewhere_is_told(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name_runner(stopped, replace(Runner.here(), host="node7"))
    dataset_to_zarr(make_dataset(VOXELS, 8), stopped, **LAYOUT, resume=True)
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "another run of this write" in record.getMessage()
    assert "on node7" in record.getMessage()


def test_a_run_renews_the_time_of_its_plan(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SIGN_INTERVAL_S", 0.01)
    destination = existing_write(stopped)
    plan = Path(destination.staging) / "plan.json"
    os.utime(plan, (1000, 1000))
    stop_s = time.monotonic() + 240
    with runner.signs_of_life(destination, "run"):
        while plan.stat().st_mtime == 1000:
            assert time.monotonic() < stop_s
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/env/bin/ctlab-zarr", "convert", "a b", "c"], "ctlab-zarr convert 'a b' c --resume"),
        (["/x/ctlab_dask_zarr/cli/__main__.py", "pyramid", "c", "--restart"],
         "ctlab-zarr pyramid c --resume"),
        (["/env/bin/dask", "ctlab-zarr", "commit", "c"], "ctlab-zarr commit c"),
        (["/env/bin/pytest", "convert", "a"], "the same call with resume=True"),
        ([], "the same call with resume=True"),
    ],
)  # fmt: skip
def test_the_command_that_goes_on_is_the_one_that_began(
    words: list[str], command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    said = Runner.here().how_to_go_on()
    assert said.removesuffix(f"   (in {tmp_path})") == command


@pytest.mark.parametrize("kept", [None, 7, {}, {"host": 1, "pid": "x"}, {"pid": 10**30}])
def test_a_plan_that_names_no_process_is_no_fault(kept: Any) -> None:
    assert Runner.from_json(kept) is None
