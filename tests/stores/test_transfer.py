"""Committed stores copied to an object store and back."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    IncompleteDatasetError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.write import transfer
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.transfer import copy_dataset
from tests.stores.conftest import LAYOUT, Server
from tests.stores.test_object_stores import cli


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "scan.zarr"
    with dask.config.set(scheduler="threads"):
        dataset_to_zarr(dataset, path, **LAYOUT)
        labels_to_zarr((dataset.data > 100).astype("uint8"), path, "phases")
    return path


def test_there_and_back(
    s3: Server, bucket: str, store: Path, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    url = f"s3://{bucket}/shared/scan.zarr"
    pushed = cli("push", store, url)
    assert pushed.returncode == 0, pushed.stderr
    assert "objects" in pushed.stdout
    assert verify(url, dataset) == []
    pulled = cli("pull", url, tmp_path / "back", "-q")
    assert pulled.returncode == 0, pulled.stderr
    assert verify(tmp_path / "back.zarr", dataset) == []
    for path in store.rglob("*"):
        if path.is_file():
            copy = tmp_path / "back.zarr" / path.relative_to(store)
            assert copy.read_bytes() == path.read_bytes()
    again = cli("push", store, url, "-q")
    assert again.returncode == 0
    assert "is there already" in again.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".zarr") == [
        "back.zarr",
        "scan.zarr",
    ]


def test_an_interrupted_copy_is_not_readable_and_goes_on(
    s3: Server, bucket: str, store: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    monkeypatch.setattr(transfer, "_N_THREADS", 1)
    n_left = [7]

    def stop(nbytes: int, total: int) -> None:
        n_left[0] -= 1
        if n_left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_dataset(str(store), Destination.at(url), stop)
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)
    before = s3.keys(bucket)
    assert before
    result = copy_dataset(str(store), Destination.at(url))
    assert result.n_skipped == len(before)
    after = s3.keys(bucket)
    assert {key: after[key] for key in before} == before
    assert verify(url, dataset) == []


def test_a_damaged_shard_is_not_copied(bucket: str, store: Path) -> None:
    shard = next(path for path in (store / "0").glob("c*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IncompleteDatasetError, match="is damaged"):
        copy_dataset(str(store), Destination.at(f"s3://{bucket}/scan.zarr"))
    with pytest.raises(CTLabError):
        dataset_from_zarr(f"s3://{bucket}/scan.zarr")


def test_nothing_is_replaced(
    s3: Server, bucket: str, store: Path, dataset: Dataset, tmp_path: Path
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    copy_dataset(str(store), Destination.at(url))
    other = tmp_path / "other.zarr"
    with dask.config.set(scheduler="threads"):
        dataset_to_zarr(dataset, other, **LAYOUT)
    before = s3.keys(bucket)
    with pytest.raises(DestinationExistsError, match="another dataset"):
        copy_dataset(str(other), Destination.at(url))
    assert s3.keys(bucket) == before
    with pytest.raises(DestinationExistsError, match="another dataset"):
        copy_dataset(url, Destination.at(str(other)))
