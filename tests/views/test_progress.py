"""How far a run is, as a terminal, a log, a notebook and a function are told."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import sys
import threading
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
from dask.delayed import delayed
from distributed import Client, LocalCluster

from ctlab_dask_zarr import Progress, add_levels, dataset_to_zarr, labels_to_zarr, verify
from ctlab_dask_zarr.execution.progress import Reporter, counted, topic_of
from ctlab_dask_zarr.views.progress import Lines, ProgressDisplay, Speed, outlet_for
from ctlab_dask_zarr.waits import doing, watched_by
from tests.builders import make_dataset, random_voxels

QUARTER = Progress(4, 400, 100)
VOXELS = random_voxels((32, 32, 32))
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Screen:
    """A terminal, and what was written to it."""

    def __init__(self) -> None:
        self._end, child = pty.openpty()
        self.stream = os.fdopen(child, "w")
        self._read = b""
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        # The end of a terminal that is closed is an error on Linux.
        try:
            while chunk := os.read(self._end, 4096):
                self._read += chunk
        except OSError:
            pass

    def text(self) -> str:
        """Close it, and return what was written."""
        self.stream.close()
        self._thread.join(60)
        os.close(self._end)
        return self._read.decode()


def test_a_log_gets_whole_lines_with_their_times() -> None:
    stream = io.StringIO()
    with ProgressDisplay(Lines(stream)) as display:
        display.tell(QUARTER)
    first, last = stream.getvalue().splitlines()
    assert re.fullmatch(TIME + r"1 of 4 shards, 100 B of 400 B \(25%\)", first)
    assert re.match(TIME + "✔ 4 shards, 400 B, ", last)


def test_a_terminal_gets_a_bar_that_is_redrawn_and_then_a_tick() -> None:
    screen = Screen()
    with ProgressDisplay(outlet_for(True, screen.stream)) as display:
        display.tell(QUARTER)
    shown = screen.text()
    assert "━" in shown
    assert "1 of 4 shards" in shown
    assert "✔ 4 shards, 400 B" in shown.rstrip().split("\r")[-1]
    assert "\x1b[?25l" not in shown, "a killed command would leave a terminal without its cursor"


def test_what_others_print_is_not_lost_in_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen.stream)
    with ProgressDisplay(outlet_for(True)) as display:
        display.tell(QUARTER)
        print("the dashboard is at http://127.0.0.1:8787", file=sys.stderr)
    lines = screen.text().split("\n")
    assert any(re.search("the dashboard is at .*8787", line) for line in lines)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_is_shown_where_nothing_is_told(is_terminal: bool) -> None:
    screen, stream = Screen(), io.StringIO()
    with ProgressDisplay(outlet_for(True, screen.stream if is_terminal else stream)):
        pass
    assert screen.text() + stream.getvalue() == ""


def test_start_of_workers_and_waits_are_shown_as_what_they_are() -> None:
    stream = io.StringIO()
    with ProgressDisplay(Lines(stream)) as display, watched_by(display):
        with doing("starting 2 workers"):
            pass
        display.tell(QUARTER)
        display.tell(QUARTER._replace(nbytes_done=200, doing="compiling kernels"))
    lines = stream.getvalue().splitlines()
    assert [re.sub(TIME, "", line) for line in lines[:2]] == [
        "starting 2 workers",
        "1 of 4 shards, 100 B of 400 B (25%)",
    ]


def test_a_rate_leaves_out_start_and_compiling_and_smooths_the_rest() -> None:
    speed = Speed()
    speed.saw(0, 0)
    speed.saw(100, 0)
    assert speed.rate is None
    speed.saw(100, 50)
    assert speed.rate is None, "how long the first bytes took says little"
    for second in range(1, 61):
        # One report of 20 bytes every two seconds.
        speed.saw(100 + second, 50 + 20 * (second // 2))
    assert speed.rate == pytest.approx(10, rel=0.1)
    speed.saw(1000, 650, is_work=False)
    assert speed.rate == pytest.approx(10, rel=0.1)
    for second in range(1, 121):
        speed.saw(1000 + second, 650 + 5 * second)
    assert speed.rate == pytest.approx(5, rel=0.1), "what was long ago is forgotten"


def test_a_failure_does_not_claim_to_be_done() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with ProgressDisplay(Lines(stream)) as display:
            display.tell(QUARTER)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "1 of 4 shards" in stream.getvalue().splitlines()[-1]


def test_tasks_that_ran_twice_do_not_count_beyond_the_whole() -> None:
    stream = io.StringIO()
    graph = delayed(int)()
    with (
        ProgressDisplay(Lines(stream)) as display,
        counted(graph, Progress(4, 400, 0), tell=display.tell) as told,
    ):
        for _ in range(6):
            reporter = Reporter(topic_of(graph.key))
            reporter.add(100)
            reporter.finish()
        assert told() == Progress(4, 400, 400)
    assert "✔ 4 shards, 400 B" in stream.getvalue()


def test_a_scheduler_that_does_not_answer_does_not_hold_up_the_end() -> None:
    """The last seconds of a job are for its exit code."""
    is_asked = threading.Event()
    answers = threading.Event()

    def n_workers() -> int:
        is_asked.set()
        answers.wait(60)
        return 2

    stream = io.StringIO()
    with dask.config.set({"ctlab-zarr.progress-interval": "1ms"}):
        display = ProgressDisplay(Lines(stream))
    display.count_workers = n_workers
    with display:
        display.tell(QUARTER)
        assert is_asked.wait(60)
    (thread,) = (t for t in threading.enumerate() if t.name == "progress")
    assert not answers.is_set()
    last = stream.getvalue()
    assert "✔ 4 shards" in last.splitlines()[-1]
    answers.set()
    thread.join(60)
    assert stream.getvalue() == last, "nothing is told after the end"


def calls(path: Path) -> dict[str, Any]:
    """Each public function that takes `progress`, as a call on a small image."""
    dataset = make_dataset(VOXELS, 16)
    return {
        "dataset_to_zarr": lambda **how: dataset_to_zarr(
            dataset, path, chunks=8, shards=(16, 16, 16), **how
        ),
        "labels_to_zarr": lambda **how: labels_to_zarr(
            da.ones(VOXELS.shape, dtype="u1"), path, "phases", chunks=8, shards=(16, 16, 16), **how
        ),
        "add_levels": lambda **how: add_levels(path, 2, **how),
        "verify": lambda **how: verify(path, **how),
    }


@pytest.mark.parametrize("name", ["dataset_to_zarr", "labels_to_zarr", "add_levels", "verify"])
def test_every_long_function_tells_and_shows_its_progress(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.zarr"
    if name != "dataset_to_zarr":
        calls(path)["dataset_to_zarr"]()
        assert capsys.readouterr() == ("", ""), "plain Python shows nothing by itself"
    told: list[Progress] = []
    calls(path)[name](progress=told.append)
    assert told[0].nbytes_done == 0
    assert told[-1].nbytes_done == told[-1].nbytes > 0
    assert capsys.readouterr() == ("", "")
    again = {"restart": True} if name == "add_levels" else {"overwrite": True}
    if name == "add_levels":
        path = tmp_path / "other.zarr"
        calls(path)["dataset_to_zarr"]()
    calls(path)[name](progress=True, **({} if name == "verify" else again))
    printed = capsys.readouterr().err
    assert re.match(TIME + "0 of ", printed)
    assert "✔ " in printed.splitlines()[-1]


def test_the_log_is_told_whether_or_not_anything_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ctlab_dask_zarr")
    calls(tmp_path / "a.zarr")["dataset_to_zarr"]()
    said = [record.getMessage() for record in caplog.records if record.name == "ctlab_dask_zarr"]
    assert said[0].startswith("0 of 8 shards")
    assert said[-1].startswith("✔ 8 shards, 64.0 KiB")


def test_the_client_in_force_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[Progress] = []
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        calls(tmp_path / "a.zarr")["dataset_to_zarr"](progress=told.append)
        verify(tmp_path / "a.zarr", progress=told.append)
    ends = [one for one in told if one.nbytes_done == one.nbytes]
    assert len(ends) >= 2
