"""Several servers at once, each with storage options of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr, verify
from tests.builders import make_dataset
from tests.stores.conftest import Server, start_moto

LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}
N_WRITES = 6


@pytest.fixture
def servers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Server]]:
    started = [start_moto(tmp_path_factory.mktemp("moto")) for _ in range(2)]
    for name, value in started[0][0].variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for server, _ in started:
        server.client().create_bucket(Bucket="scans")
    yield [server for server, _ in started]
    for _, process in started:
        process.kill()
        process.wait(10)


def test_writes_to_two_servers_at_once_arrive_each_at_its_own(servers: list[Server]) -> None:
    """Under the same URLs, so that what goes astray would not even be noticed."""
    options = [{"endpoint": server.endpoint, "region": "us-east-1"} for server in servers]

    def write(number: int) -> None:
        which = number % 2
        url = f"s3://scans/{number // 2}.zarr"
        dataset = make_dataset(np.full((8, 8, 16), 1000 + which, "uint16"), 8)
        if number % 3:
            dataset_to_zarr(dataset, url, storage_options=options[which], **LAYOUT)
        else:
            later = dataset_to_zarr(
                dataset, url, compute=False, storage_options=options[which], **LAYOUT
            )
            assert later is not None
            later.compute()
        assert verify(url, dataset, storage_options=options[which]) == []

    with ThreadPoolExecutor(4) as pool:
        # Threads of dask's own run the tasks of half of them.
        with dask.config.set(scheduler="threads"):
            list(pool.map(write, range(N_WRITES)))
        with dask.config.set(scheduler="synchronous"):
            list(pool.map(write, range(N_WRITES, 2 * N_WRITES)))
    for which, given in enumerate(options):
        opened = partial(dataset_from_zarr, storage_options=given)
        for number in range(N_WRITES):
            voxels = opened(f"s3://scans/{number}.zarr").data.compute(scheduler="threads")
            assert (voxels == 1000 + which).all()
    assert dask.config.get("ctlab-zarr.storage-options") == {}
