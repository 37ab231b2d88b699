"""What a command shows on a terminal, and what Ctrl-C does there."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctlab_dask_zarr import Dataset
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.builders import random_voxels, run_here
from tests.reliability.faults import TIMEOUT_S

VOXELS = random_voxels((40, 64, 64))
CTRL_C = b"\x03"
LAYOUT = ("--shards", "16,16,16", "--chunks", "8,8,8")
MANY = ("--shards", "2,64,64", "--chunks", "2,32,32")

#: A command whose second row of shards, and the one after it, wait until Ctrl-C has come.
WAITING = f"""
import signal, time
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.write.staging.staged import StagedWrite

write, numbers = StagedWrite.write, []

def waiting(self, *arguments):
    numbers.append(1)
    if len(numbers) == 2:
        print("the second row is begun", flush=True)
    end_s = time.monotonic() + {TIMEOUT_S}
    # The command hears one signal, and leaves the next one to Python.
    while len(numbers) >= 2 and signal.getsignal(2) is not signal.default_int_handler:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    return write(self, *arguments)

StagedWrite.write = waiting
main()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "tomoTiny_nc"
    write_mango_netcdf(path, VOXELS, slices_per_block=9)
    return path


def on_terminal(
    *words: object, code: str = "", type_when: Callable[[str], bytes] = lambda shown: b""
) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and what the terminal got.

    `type_when` returns what is typed once, given what was shown until then; nothing is typed before
    it returns something.
    """
    program = ["-c", code] if code else ["-m", "ctlab_dask_zarr.cli"]
    end, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, words)], stdin=child, stdout=child, stderr=child,
        # A terminal of its own, whose Ctrl-C reaches this command only.
        start_new_session=True, preexec_fn=take_terminal,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "DASK_NUM_WORKERS": "1"},
    )  # fmt: skip
    os.close(child)
    shown, typed = b"", b""
    stop_s = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < stop_s:
            if not select.select([end], [], [], 1.0)[0]:
                continue
            try:
                chunk = os.read(end, 4096)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
            if not typed and (typed := type_when(shown.decode(errors="replace"))):
                os.write(end, typed)
        return process.wait(TIMEOUT_S), shown.decode()
    finally:
        process.kill()
        process.wait()
        os.close(end)


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_sees_a_bar_and_the_final_figures(source: Path, tmp_path: Path) -> None:
    code, shown = on_terminal("convert", source, tmp_path / "a", *LAYOUT)
    assert code == 0, shown
    assert "━" in shown
    assert re.search(r"✔ 48 shards, 320\.0 KiB, ", shown)
    assert "\x1b[?25l" not in shown


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_finishes_what_is_under_way_and_resume_goes_on(
    source: Path, tmp_path: Path
) -> None:
    returned, shown = on_terminal(
        "convert", source, tmp_path / "a", *MANY, code=WAITING,
        type_when=lambda shown: CTRL_C if "the second row is begun" in shown else b"",
    )  # fmt: skip
    assert returned == 75, shown
    assert "stopped (SIGINT)" in shown
    assert "Traceback" not in shown
    again = run_here("convert", source, tmp_path / "a", *MANY, "--resume", "--json")
    result = json.loads(again.stdout)
    assert 0 < result["n_resumed"] < result["n_shards"]
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), VOXELS)


@pytest.mark.slow
def test_status_tells_a_command_that_runs_from_one_that_was_killed(
    source: Path, tmp_path: Path
) -> None:
    # Killed once its second row of shards is begun, where it waits.
    killed = subprocess.Popen(
        [sys.executable, "-c", WAITING, "convert",
         str(source), str(tmp_path / "b.zarr"), *MANY, "-q"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"DASK_NUM_WORKERS": "1"},
    )  # fmt: skip
    with killed:
        assert killed.stdout is not None
        assert "the second row is begun" in killed.stdout.readline()
        running = run_here("status", tmp_path / "b.zarr").stdout
        killed.kill()
        killed.wait(TIMEOUT_S)
    assert f"running by process {killed.pid} on " in running
    stopped = run_here("status", tmp_path / "b.zarr").stdout
    assert "its process has ended" in stopped
    assert "at this rate" not in stopped
    assert "go on by: the same call with resume=True" in stopped
