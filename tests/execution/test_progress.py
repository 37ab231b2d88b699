from __future__ import annotations

import io
import threading
from typing import Any

import dask
import pytest
from dask.delayed import delayed

from ctlab_dask_zarr.execution.progress import (
    Progress,
    ProgressBar,
    Reporter,
    counted,
    topic_of,
)

QUARTER = Progress(4, 400, 100)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines() -> None:
    stream = io.StringIO()
    with ProgressBar(stream=stream) as bar:
        bar.tell(QUARTER)
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("left\n")
    assert "4 of 4 shards" in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    stream = Terminal()
    with ProgressBar(stream=stream) as bar:
        bar.tell(Progress(4, 400, 400))
    assert stream.getvalue().startswith("\r")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_nothing_is_shown_where_nothing_is_told(kind: Any) -> None:
    stream = kind()
    with ProgressBar(stream=stream):
        pass
    assert stream.getvalue() == ""


def test_a_failure_does_not_claim_to_be_done() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with ProgressBar(stream=stream) as bar:
            bar.tell(QUARTER)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "1 of 4 shards" in stream.getvalue().splitlines()[-1]


def test_tasks_that_ran_twice_do_not_count_beyond_the_whole() -> None:
    stream = io.StringIO()
    graph = delayed(int)()
    with (
        ProgressBar(stream=stream) as bar,
        counted(graph, Progress(4, 400, 0), tell=bar.tell) as told,
    ):
        for _ in range(6):
            reporter = Reporter(topic_of(graph.key))
            reporter.add(100)
            reporter.finish()
        assert told() == (4, 400, 400)
    assert "400 B of 400 B (100%)" in stream.getvalue()


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
        bar = ProgressBar(n_workers=n_workers, stream=stream)
    with bar:
        bar.tell(QUARTER)
        assert is_asked.wait(60)
    (thread,) = (t for t in threading.enumerate() if t.name == "progress")
    assert not answers.is_set()
    last = stream.getvalue()
    assert last.endswith("left\n")
    answers.set()
    thread.join(60)
    assert stream.getvalue() == last, "nothing is told after the end"
