"""Datasets in Google's storage: its requests, answered by an S3 server that is told what they mean.

Google's XML interface is that of S3 but for the name of a conditional put and the credentials, so
that this shows what is asked for; what Google itself answers, it does not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    StagingExistsError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    verify,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.runtime.objects import _open
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.transfer import copy_dataset
from tests.builders import make_dataset
from tests.reliability.faults import wait_until
from tests.stores.conftest import LAYOUT, Network, Server, start_moto
from tests.stores.test_object_stores import cli, failing_after, leave_interrupted, race_of_two


class Google(Network):
    """Speaks as Google's storage does, and has moto answer."""

    def forwarded(self, headers: dict[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in headers.items()
            if not name.lower().startswith(("x-goog-", "authorization"))
        }
        conditions = {name.lower(): value for name, value in headers.items()}
        if conditions.get("x-goog-if-generation-match") == "0":
            kept["If-None-Match"] = "*"
        # Whose it is does not matter to moto, only that it is somebody's.
        scope = "Credential=x/20260101/us-east-1/s3/aws4_request"
        signature = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"
        return kept | {"Authorization": signature}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    moto, process = start_moto(tmp_path_factory.mktemp("google"))
    yield moto
    process.kill()
    process.wait(10)


@pytest.fixture
def bucket(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A new bucket, which the environment leads to, and nothing else does."""
    google = Google(server)
    account = {"gcs_base_url": google.endpoint, "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    file = tmp_path_factory.mktemp("account") / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    # Of which alone it is known that it is no https.
    monkeypatch.setenv("GOOGLE_BASE_URL", google.endpoint)
    _open.cache_clear()
    with dask.config.set(scheduler="threads"):
        yield server.new_bucket()
    google.close()
    _open.cache_clear()


def test_what_is_written_is_read_and_verified(
    bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"gs://{bucket}/scans/scan.zarr"
    dataset_to_zarr(dataset, url, **{**LAYOUT, "levels": 1})
    add_levels(url, 2)
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), voxels)
    assert verify(url, dataset) == []
    with pytest.raises(DestinationExistsError):
        dataset_to_zarr(dataset, url, **LAYOUT)


def test_a_shard_goes_up_in_several_parts(bucket: str) -> None:
    # 16 MiB that no codec makes smaller: two parts of an upload.
    noise = np.random.default_rng(0).integers(0, 2**16, (64, 256, 512), dtype="uint16")
    url = f"gs://{bucket}/noise.zarr"
    dataset_to_zarr(make_dataset(noise, 64), url, shards=noise.shape, chunks=(32, 32, 32))
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), noise)


def test_a_failed_write_shows_nothing_and_is_gone_on_with(
    bucket: str, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"gs://{bucket}/scan.zarr"
    leave_interrupted(url, voxels, monkeypatch)
    with pytest.raises(StagingExistsError, match="resume=True"):
        dataset_to_zarr(failing_after(99, voxels), url, **LAYOUT)
    # Seven of the twelve blocks are left: the five shards that are there are not read again.
    dataset_to_zarr(failing_after(7, voxels), url, resume=True, **LAYOUT)
    assert verify(url, make_dataset(voxels, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))) == []


def test_a_killed_conversion_is_gone_on_with_and_checked(
    server: Server, bucket: str, voxels: np.ndarray, tmp_path: Path
) -> None:
    source, url = tmp_path / "tomoSmall_nc", f"gs://{bucket}/scan.zarr"
    write_mango_netcdf(source, voxels, slices_per_block=16)
    layout = ("--chunks", "16,16,16", "--shards", "16,16,16", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "ctlab_dask_zarr.cli", "convert", source, url, *layout],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def n_shards() -> int:
        return sum(key.startswith("scan.zarr/0/c") for key in server.keys(bucket))

    try:
        wait_until(lambda: n_shards() > 8, "the first shards", 90)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)
    n_before = n_shards()
    resumed = cli("convert", source, url, *layout, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["n_resumed"] >= n_before
    verified = cli("verify", url, "--source", source)
    assert verified.returncode == 0, verified.stderr


def test_of_two_writers_one_wins(bucket: str, dataset: Dataset) -> None:
    race_of_two(f"gs://{bucket}/scan.zarr", dataset)


def test_a_committed_store_is_copied_there_and_back(
    server: Server, bucket: str, dataset: Dataset, tmp_path: Path
) -> None:
    dataset_to_zarr(dataset, tmp_path / "scan.zarr", **LAYOUT)
    url = f"gs://{bucket}/shared/scan.zarr"
    copy_dataset(str(tmp_path / "scan.zarr"), Destination.at(url))
    assert all(key.startswith("shared/scan.zarr/") for key in server.keys(bucket))
    copy_dataset(url, Destination.at(str(tmp_path / "back.zarr")))
    assert verify(tmp_path / "back.zarr", dataset) == []
