from __future__ import annotations

import io
import threading

import dask

from ctlab_dask_zarr.execution.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines() -> None:
    stream = io.StringIO()
    with Progress(4, 400, stream=stream) as progress:
        progress.add(100)
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().endswith("left\n")
    assert "4 of 4 shards" in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_redrawn() -> None:
    stream = Terminal()
    with Progress(4, 400, stream=stream) as progress:
        progress.add(400)
    assert stream.getvalue().startswith("\r")
    assert stream.getvalue().count("\n") == 1


def test_quiet_is_silent() -> None:
    stream = Terminal()
    with Progress(4, 400, stream=stream, quiet=True) as progress:
        progress.add(400)
    assert stream.getvalue() == ""


def test_a_failure_does_not_claim_to_be_done() -> None:
    stream = io.StringIO()
    try:
        with Progress(4, 400, stream=stream) as progress:
            progress.add(100)
            raise RuntimeError
    except RuntimeError:
        pass
    assert "1 of 4 shards" in stream.getvalue().splitlines()[-1]


def test_tasks_that_ran_twice_do_not_count_beyond_the_whole() -> None:
    progress = Progress(4, 400)
    for _ in range(6):
        progress.add(100)
    assert "400 B of 400 B (100%)" in progress.line()


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
        progress = Progress(4, 400, stream=stream, n_workers=n_workers)
    with progress:
        assert is_asked.wait(60)
    assert not answers.is_set()
    last = stream.getvalue()
    assert last.endswith("left\n")
    answers.set()
    progress._thread.join(60)
    assert stream.getvalue() == last, "nothing is told after the end"
