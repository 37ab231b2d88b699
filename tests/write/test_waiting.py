"""Who waits for whom: writes inside tasks, in event loops, and on results that a cluster holds."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, worker_client

from ctlab_dask_zarr import (
    ClusterError,
    Dataset,
    InvalidArgumentError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.execution.scheduler import current_client
from tests.builders import make_dataset

SHAPE = (16, 16, 16)
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 16)}
#: What a test may take where nothing hangs, many times over.
TIMEOUT_S = 120


def full(value: int, blocks: int = 8) -> da.Array:
    return da.full(SHAPE, value, dtype="u2", chunks=blocks)


# Inside tasks.


def write_and_look(folder: str, value: int) -> list[Any]:
    """All that waits for dask, in a task; returns the voxels of the labels and what is wrong."""
    dataset = make_dataset(full(value))
    path = f"{folder}/{value}.zarr"
    dataset_to_zarr(dataset, path, **LAYOUT)
    labels_to_zarr((dataset.data > 2).astype("u1"), path, "large", **LAYOUT)
    problems = verify(path, dataset)
    with worker_client():
        # Its thread has been given back before.
        dataset_to_zarr(dataset, f"{folder}/{value}b.zarr", **LAYOUT)
    voxels = dataset_from_zarr(f"{path}/labels/large").data.compute()
    return [np.unique(voxels).tolist(), problems]


def test_more_tasks_that_write_than_a_cluster_has_threads_come_to_their_end(
    cluster: Client, tmp_path: Path
) -> None:
    values = range(1, 4)
    futures = cluster.map(write_and_look, [str(tmp_path)] * len(values), values, pure=False)
    found = cluster.submit(list, futures).result(TIMEOUT_S)
    assert found == [[[int(value > 2)], []] for value in values]


@pytest.mark.parametrize("scheduler", [None, "distributed", "client"])
def test_the_client_is_the_one_that_computing_would_use(cluster: Client, scheduler: Any) -> None:
    with cluster.as_current():
        given = cluster if scheduler == "client" else scheduler
        with dask.config.set(scheduler=given):
            assert current_client() is cluster
        for other in ("threads", "sync"):
            with dask.config.set(scheduler=other):
                assert current_client() is None


# In an event loop.


def in_time(function: Callable[[], None]) -> None:
    """Call a function that might hang for ever."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            ended.set_result(function())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    ended.result(TIMEOUT_S)


def test_an_asynchronous_client_is_told_of_and_the_lines_of_the_error_work(tmp_path: Path) -> None:
    dataset = make_dataset(full(7))
    path = str(tmp_path / "scan.zarr")

    async def write() -> None:
        async with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                processes=False,
                dashboard_address="127.0.0.1:0",
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            with pytest.raises(InvalidArgumentError, match=r"asynchronous.*compute=False"):
                dataset_to_zarr(dataset, path, **LAYOUT)
            assert list(tmp_path.iterdir()) == []
            result = await client.compute(dataset_to_zarr(dataset, path, compute=False, **LAYOUT))
            assert result.destination == path
            with pytest.raises(InvalidArgumentError, match=r"await asyncio\.to_thread\(verify"):
                verify(path)
            assert await asyncio.to_thread(verify, path, dataset) == []
            with pytest.raises(InvalidArgumentError, match="asynchronous"):
                add_levels(path, 2)
            await asyncio.to_thread(add_levels, path, 2, "nearest")

    in_time(lambda: asyncio.run(write()))
    assert [level.shape for level in dataset_from_zarr(path).levels] == [SHAPE, (16, 8, 8)]


# On results that a cluster holds.


def minus(block: np.ndarray, *dark: Any, offset: Any = 0) -> np.ndarray:
    """Take away what is given, however it is nested."""
    todo = [*dark, offset]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        else:
            block = block - value
    return block


@pytest.fixture
def in_force(cluster: Client) -> Iterator[Client]:
    with cluster.as_current(), dask.config.set(scheduler="distributed"):
        yield cluster


def ways(dark: Any) -> dict[str, Callable[[], da.Array]]:
    """Arrays of 5 whose blocks are made from 7 and from a future of 1."""
    x = full(7)

    def made(*arguments: Any, **keywords: Any) -> da.Array:
        return da.map_blocks(minus, x, *arguments, dtype="u2", **keywords)

    def from_delayed(*arguments: Any) -> da.Array:
        value = dask.delayed(minus)(np.full((8, 16, 16), 7, "u2"), *arguments)
        return da.concatenate([da.from_delayed(value, (8, 16, 16), "u2")] * 2)

    return {
        "arguments": lambda: made(dark, dark),
        "a list": lambda: made([dark, dark]),
        "nested": lambda: made({"a": [dark], "b": (dark,)}),
        "a keyword": lambda: made(offset={"c": [dark, dark]}),
        "a delayed list": lambda: made(dask.delayed([dark, dark])),
        "delayed": lambda: from_delayed(dark, dark),
        "delayed of a list": lambda: from_delayed([dark, dark]),
        "a graph of tuples": lambda: da.Array(
            {("tuples", i, 0, 0): (minus, np.full((8, 16, 16), 7, "u2"), [dark, dark])
             for i in range(2)},
            "tuples", ((8, 8), (16,), (16,)), "u2",
        ),
        "persisted": lambda: x.persist() - 2,
        "itself persisted": lambda: made(dark, dark).persist(),
    }  # fmt: skip


@pytest.mark.parametrize("way", ways(None))
def test_futures_among_the_arguments_of_blocks_are_as_good_as_values(
    in_force: Client, way: str, tmp_path: Path
) -> None:
    dark = in_force.scatter(np.ones((1, 1, 1), "u2"), hash=False)
    dataset = make_dataset(ways(dark)[way](), datatype="tomo")
    dataset_to_zarr(dataset, tmp_path / "scan.zarr", levels=2, **LAYOUT)
    assert verify(tmp_path / "scan.zarr", dataset) == []
    voxels = dataset_from_zarr(tmp_path / "scan.zarr").data.compute()
    assert np.unique(voxels).tolist() == [5]


@pytest.mark.parametrize(
    ("blocks", "shards", "method"),
    [(8, (8, 8, 8), "none"), ((4, 16, 16), (8, 8, 8), "stream"), (-1, (8, 8, 8), "tasks")],
)
def test_futures_are_there_for_every_way_of_writing_though_their_maker_let_go_of_them(
    in_force: Client, blocks: Any, shards: Any, method: str, tmp_path: Path
) -> None:
    dark = in_force.scatter(np.ones((1, 1, 1), "u2"), hash=False)
    dataset = make_dataset(full(7, blocks).map_blocks(minus, [dark, dark], dtype="u2"))
    options: dict[str, Any] = {"chunks": (8, 8, 8), "shards": shards}
    assert plan(dataset, tmp_path / "scan.zarr", **options).rechunk.method == method
    write = dataset_to_zarr(dataset, tmp_path / "scan.zarr", compute=False, **options)
    del dark, dataset
    gc.collect()
    in_force.compute(write).result(TIMEOUT_S)
    voxels = dataset_from_zarr(tmp_path / "scan.zarr").data.compute(scheduler="sync")
    assert np.unique(voxels).tolist() == [5]


def test_blocks_that_another_scheduler_cannot_have_are_told_of_before_anything_is_written(
    in_force: Client, tmp_path: Path
) -> None:
    persisted = make_dataset(full(7).persist())
    dark = in_force.scatter(np.ones((1, 1, 1), "u2"), hash=False)
    with_future = make_dataset(full(7).map_blocks(minus, dark, dtype="u2"))
    stored = make_dataset(full(7))
    dataset_to_zarr(stored, tmp_path / "there.zarr", **LAYOUT)

    def refused(dataset: Dataset, why: str) -> None:
        for wait in (
            lambda: dataset_to_zarr(dataset, tmp_path / "scan.zarr", **LAYOUT),
            lambda: verify(tmp_path / "there.zarr", dataset),
        ):
            with pytest.raises(ClusterError, match=f"cluster holds.*{why}.*make the array anew"):
                wait()
        assert [path.name for path in tmp_path.iterdir()] == ["there.zarr"]

    for dataset in (persisted, with_future):
        with dask.config.set(scheduler="threads"):
            refused(dataset, "the scheduler in force is another")
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as other,
        Client(other, set_as_default=False) as client,
        client.as_current(),
    ):
        of_other = make_dataset(full(8).persist())
        for dataset in (persisted, with_future):
            refused(dataset, "does not know them")
    refused(of_other, "their client was closed")
