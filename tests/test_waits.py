"""Whatever takes long says what it is: where nothing shows it, a log message does."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.waits import Doing, doing, unknown_host, watched_by
from tests.builders import make_dataset, random_voxels


def test_a_wait_is_told_with_its_advice_once_it_is_long() -> None:
    waits = Doing("waiting for workers", "Start some", 100.0)
    assert waits.text(109.0) == "waiting for workers"
    assert waits.text(112.0) == "waiting for workers, for 12s now. Start some"


def test_a_wait_that_nobody_shows_becomes_a_warning() -> None:
    """In plain Python, where nothing else is printed."""
    records: list[logging.LogRecord] = []
    is_told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            is_told.set()

    handler = Told()
    logging.getLogger("ctlab_dask_zarr").addHandler(handler)
    try:
        with doing("waiting for a queue", "Ask for less", long_s=0.01):
            assert is_told.wait(60)
    finally:
        logging.getLogger("ctlab_dask_zarr").removeHandler(handler)
    assert records[0].levelno == logging.WARNING
    assert re.match("waiting for a queue, for .* now. Ask for less", records[0].getMessage())


def test_a_host_that_is_not_known_is_told_apart_from_one_that_is() -> None:
    assert unknown_host("localhost") is None
    assert unknown_host("tcp://127.0.0.1:80") is None
    assert "no host named 'nowhere.invalid'" in (unknown_host("tcp://nowhere.invalid:8786") or "")


def test_what_opens_slowly_is_named(tmp_path: Path) -> None:
    told: list[str] = []

    class Told:
        def doing(self, doing: Doing | None) -> None:
            if doing is not None:
                told.append(doing.text(doing.start_s + 1))
                told.append(doing.text(doing.start_s + 11))

    path = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8)), 8), path)
    with watched_by(Told()):
        dataset_from_zarr(path)
    assert told[0] == "", "usually there is nothing to say"
    assert told[1].startswith(f"opening {path}, for 11s now. The file system or the server")
