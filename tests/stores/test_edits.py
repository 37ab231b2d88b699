"""Changes of metadata in an object store: each is one request that only the latest is answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import numpy as np

from ctlab_dask_zarr import (
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.store.hierarchy import label_names
from ctlab_dask_zarr.store.store import files_at
from tests.builders import make_dataset, random_voxels
from tests.stores.conftest import Network, Server

LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}
SHAPE = (8, 8, 16)


def write(url: str) -> None:
    with dask.config.set(scheduler="synchronous"):
        dataset_to_zarr(make_dataset(random_voxels(SHAPE)), url, **LAYOUT)


def test_of_entries_that_several_add_at_once_all_are_there(s3: Server, bucket: str) -> None:
    url = f"s3://{bucket}/scan.zarr"
    write(url)

    def add(who: int) -> None:
        for number in range(4):
            edit_metadata(url, history={f"{who}-{number}": "x"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    wanted = {f"{who}-{number}" for who in range(4) for number in range(4)}
    assert set(dataset_from_zarr(url).history) == wanted
    assert verify(url) == []


def test_labels_that_several_write_at_once_are_all_listed(s3: Server, bucket: str) -> None:
    url = f"s3://{bucket}/scan.zarr"
    write(url)
    names = ["a", "b", "c"]

    def add(name: str) -> None:
        labels_to_zarr(np.ones(SHAPE, "uint8"), url, name, **LAYOUT)

    with ThreadPoolExecutor(3) as pool, dask.config.set(scheduler="synchronous"):
        list(pool.map(add, names))
    assert sorted(label_names(files_at(url), url, strict=True)) == names
    assert verify(url) == []


def test_a_change_whose_answer_is_lost_is_made_once(bucket: str, network: Network) -> None:
    url = f"s3://{bucket}/scan.zarr"
    write(url)
    # The request has arrived; it is sent again, and is refused as one that came too late.
    network.lost = 1
    edit_metadata(url, history={"note": "x"})
    assert network.lost == 0
    assert dataset_from_zarr(url).history == {"note": "x"}


def test_copies_that_zarr_keeps_are_dropped(s3: Server, bucket: str) -> None:
    url = f"s3://{bucket}/scan.zarr"
    write(url)
    files = files_at(url)
    document = files.read(f"{url}/zarr.json")
    copies = b'{"consolidated_metadata": {"kind": "inline", "metadata": {}},'
    with files.upload(f"{url}/zarr.json") as writer:  # type: ignore[attr-defined]
        writer.write(document.replace(b"{", copies, 1))
    add_levels(url, 2)
    assert b"consolidated" not in files.read(f"{url}/zarr.json")
    assert verify(url) == []
