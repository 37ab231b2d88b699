"""Whatever takes long says what it is: where nothing shows it, a log message does."""

from __future__ import annotations

import logging
import re
import threading

import pytest

from ctlab_dask_zarr.execution.waits import Doing, doing


def test_a_wait_is_told_with_its_advice_once_it_is_long() -> None:
    waits = Doing("waiting for workers", "Start some", 100.0)
    assert waits.text(109.0) == "waiting for workers"
    assert waits.text(112.0) == "waiting for workers, for 12s now. Start some"


def test_a_wait_that_nobody_shows_becomes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain Python, where nothing else is printed."""
    monkeypatch.setattr("ctlab_dask_zarr.execution.waits.LONG_S", 0.01)
    records: list[logging.LogRecord] = []
    is_told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            is_told.set()

    handler = Told()
    logging.getLogger("ctlab_dask_zarr").addHandler(handler)
    try:
        with doing("waiting for a queue", "Ask for less"):
            assert is_told.wait(60)
    finally:
        logging.getLogger("ctlab_dask_zarr").removeHandler(handler)
    assert records[0].levelno == logging.WARNING
    assert re.match("waiting for a queue, for .* now. Ask for less", records[0].getMessage())
