"""Storage options belong to the call that was given them, and to nobody else in the process."""

from __future__ import annotations

import asyncio
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask
import pytest
from click.testing import CliRunner

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.errors import CTLabError, InvalidArgumentError
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.store import files_at, storage_options_in_force
from tests.builders import make_dataset, random_voxels

URL = "s3://bucket/scan.zarr"
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}


def region() -> str | None:
    """Return where the calls of this moment go."""
    files = files_at(URL)
    assert isinstance(files, ObjectFiles)
    return dict(files.options).get("region")


def test_threads_that_write_at_the_same_time_go_each_to_their_own_server() -> None:
    both_are_inside = threading.Barrier(2, timeout=30)
    one_has_left = threading.Barrier(2, timeout=30)

    def first() -> list[str | None]:
        with storage_options_in_force({"region": "north"}):
            both_are_inside.wait()
            found = [region()]
        one_has_left.wait()
        return [*found, region()]

    def second() -> list[str | None]:
        with storage_options_in_force({"region": "south"}):
            both_are_inside.wait()
            one_has_left.wait()
            found = [region()]
        return [*found, region()]

    with ThreadPoolExecutor(2) as pool:
        results = pool.submit(first), pool.submit(second)
        assert [result.result(60) for result in results] == [["north", None], ["south", None]]
    assert region() is None
    assert dask.config.get("ctlab-zarr.storage-options") == {}


def test_tasks_of_asyncio_that_take_turns_go_each_to_their_own_server() -> None:
    async def ask(name: str) -> list[str | None]:
        found = []
        with storage_options_in_force({"region": name}):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(region())
                found.append(await asyncio.to_thread(region))
        return found

    async def ask_both() -> list[list[str | None]]:
        return await asyncio.gather(ask("north"), ask("south"))

    assert asyncio.run(ask_both()) == [["north"] * 6, ["south"] * 6]


def test_options_end_with_their_call_also_where_it_fails() -> None:
    with dask.config.set({"ctlab-zarr.storage-options": {"region": "of the settings"}}):
        with storage_options_in_force({"region": "outer"}):
            with pytest.raises(ZeroDivisionError), storage_options_in_force({"region": "inner"}):
                raise ZeroDivisionError
            assert region() == "outer"
            with storage_options_in_force(None):
                assert region() == "outer"
            with storage_options_in_force({}):
                assert region() is None
        assert region() == "of the settings"


def test_a_command_leaves_no_options_behind() -> None:
    """Also where a later argument is refused: notebooks and services call commands in process."""
    pytest.importorskip("obstore")
    given = ["--storage-option", "region=north", "--storage-option", "nonsense=1"]
    failed = CliRunner().invoke(main, ["check", *given, URL])
    assert failed.exit_code == InvalidArgumentError.exit_code
    assert "nonsense" in failed.output, "the options have reached the store"
    assert CliRunner().invoke(main, ["check", *given, URL, "--no-such-option"]).exit_code == 2
    assert region() is None
    assert dask.config.get("ctlab-zarr.storage-options") == {}


def test_another_endpoint_in_the_environment_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of the last endpoint is kept open, and is not the one that is asked."""
    pytest.importorskip("obstore")
    monkeypatch.setattr("ctlab_dask_zarr.store.connection.RETRY_TIMEOUT", timedelta(0))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    for port in (9, 13):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises((CTLabError, OSError), match=rf"127\.0\.0\.1:{port}/"):
            dataset_from_zarr(URL)


def test_writes_in_threads_leave_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    """The last to end put back what another had set, and no warning was ever shown again."""
    dataset = make_dataset(random_voxels((8, 8, 8)))
    before = list(warnings.filters)
    with dask.config.set(scheduler="synchronous"), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            list(
                pool.map(
                    lambda n: dataset_to_zarr(
                        dataset, tmp_path / f"{n}", restart=True, overwrite=True, **LAYOUT
                    ),
                    range(8),
                )
            )
    assert list(warnings.filters) == before
