"""Datasets in the storage of Azure and of Google.

For Azure its own emulator answers. Google's requests are answered by an S3 server that is told what
they mean: its XML interface is that of S3 but for the name of a conditional put and the
credentials, so that this shows what is asked for; what Google itself answers, it does not.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http.client import HTTPConnection
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
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.errors import StorageError
from ctlab_dask_zarr.manage.transfer import copy_dataset
from ctlab_dask_zarr.store.connection import _open
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.store import Store, files_at
from tests.builders import make_dataset
from tests.reliability.faults import free_port, listens, wait_until
from tests.stores.conftest import LAYOUT, Network, Server, start_moto
from tests.stores.test_object_stores import cli, failing_after, leave_interrupted, race_of_two

pytestmark = pytest.mark.server

ACCOUNT = "devstoreaccount1"
# The emulator's documented account: no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Azurite:
    """The emulator, and how a container is made in it."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def new_container(self) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = ["PUT", *[""] * 11, *(f"{k}:{v}" for k, v in headers.items())]
        text = "\n".join([*signed, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
        digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=240)
        connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
        reply = connection.getresponse()
        assert reply.status == 201, reply.read()
        connection.close()
        return name


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    command = shutil.which("azurite-blob")
    if command is None:
        pytest.skip("azurite-blob is not installed: npm install -g azurite")
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck"]
    options += ["--inMemoryPersistence", "--disableTelemetry", "--silent"]
    with open(tmp_path_factory.mktemp("azurite") / "log", "w") as log:
        process = subprocess.Popen([command, *options], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port), "the start of Azurite")
        yield Azurite(port)
    finally:
        process.kill()
        process.wait(240)


@pytest.fixture
def azure(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a new container, which the environment leads to, and nothing else does."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite.endpoint)
    _open.cache_clear()
    with dask.config.set(scheduler="threads"):
        yield f"az://{azurite.new_container()}"
    _open.cache_clear()


class Google(Network):
    """Speaks as Google's storage does, and has moto answer."""

    def __init__(self, server: Server) -> None:
        #: Google numbers what S3 knows by a tag.
        self.tags: dict[str, str] = {}
        super().__init__(server)

    def answered(self, headers: dict[str, str]) -> dict[str, str]:
        tag = headers.get("ETag")
        if tag is None:
            return headers
        generation = str(int(tag.strip('"')[:15], 16))
        self.tags[generation] = tag
        return headers | {"x-goog-generation": generation}

    def forwarded(self, headers: dict[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in headers.items()
            if not name.lower().startswith(("x-goog-", "authorization"))
        }
        conditions = {name.lower(): value for name, value in headers.items()}
        generation = conditions.get("x-goog-if-generation-match")
        if generation == "0":
            kept["If-None-Match"] = "*"
        elif generation is not None:
            kept["If-Match"] = self.tags[generation]
        # Whose it is does not matter to moto, only that it is somebody's.
        scope = "Credential=x/20260101/us-east-1/s3/aws4_request"
        signature = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"
        return kept | {"Authorization": signature}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    moto, process = start_moto(tmp_path_factory.mktemp("google"))
    yield moto
    process.kill()
    process.wait(240)


@pytest.fixture
def google(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """URL of a new bucket, which the environment leads to, and nothing else does."""
    google = Google(server)
    account = {"gcs_base_url": google.endpoint, "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    file = tmp_path_factory.mktemp("account") / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    # Of which alone it is known that it is not https.
    monkeypatch.setenv("GOOGLE_BASE_URL", google.endpoint)
    _open.cache_clear()
    with dask.config.set(scheduler="threads"):
        yield f"gs://{server.new_bucket()}"
    google.close()
    _open.cache_clear()


@pytest.fixture(params=["azure", "google"])
def root(request: pytest.FixtureRequest) -> str:
    """URL of a new container or bucket."""
    url: str = request.getfixturevalue(request.param)
    return url


def test_what_is_written_is_read_and_verified(
    root: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"{root}/scans/scan.zarr"
    dataset_to_zarr(dataset, url, **{**LAYOUT, "levels": 1})
    add_levels(url, 2)
    labels_to_zarr((dataset.data > 100).astype("uint8"), url, "phases")
    written = dataset_from_zarr(url)
    np.testing.assert_array_equal(written.data.compute(), voxels)
    assert [level.shape for level in written.levels] == [(64, 64, 96), (32, 32, 48)]
    assert verify(url, dataset) == []
    labels = dataset_from_zarr(f"{url}/labels/phases")
    np.testing.assert_array_equal(labels.data.compute(), voxels > 100)
    with pytest.raises(DestinationExistsError):
        dataset_to_zarr(dataset, url, **LAYOUT)


def test_a_shard_goes_up_in_several_parts(root: str) -> None:
    # 32 MiB that no codec makes smaller: four parts of an upload.
    noise = np.random.default_rng(0).integers(0, 2**16, (128, 256, 512), dtype="uint16")
    url = f"{root}/noise.zarr"
    dataset_to_zarr(make_dataset(noise, 64), url, shards=noise.shape, chunks=(32, 32, 32))
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), noise)


def test_a_failed_write_shows_nothing_and_is_gone_on_with(root: str, voxels: np.ndarray) -> None:
    url = f"{root}/scan.zarr"
    leave_interrupted(url, voxels)
    with pytest.raises(StagingExistsError, match="resume=True"):
        dataset_to_zarr(failing_after(99, voxels), url, **LAYOUT)
    # Seven of the twelve blocks are left: the five shards that are there are not read again.
    dataset_to_zarr(failing_after(99, voxels), url, resume=True, **LAYOUT)
    assert verify(url, make_dataset(voxels, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))) == []


def test_of_two_writers_one_wins(root: str, dataset: Dataset, voxels: np.ndarray) -> None:
    url = f"{root}/scan.zarr"
    race_of_two(url, dataset)
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), voxels)


def test_a_committed_store_is_copied_there_and_back(
    root: str, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    dataset_to_zarr(dataset, tmp_path / "scan.zarr", **LAYOUT)
    url = f"{root}/shared/scan.zarr"
    copy_dataset(str(tmp_path / "scan.zarr"), Destination.at(url))
    keys = list(Store(root, files_at(root)).list())
    assert "shared/scan.zarr/zarr.json" in keys
    assert all(key.startswith("shared/scan.zarr/") for key in keys)
    copy_dataset(url, Destination.at(str(tmp_path / "back.zarr")))
    assert verify(tmp_path / "back.zarr", dataset) == []
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "back.zarr").data.compute(), voxels)


def test_a_killed_conversion_is_gone_on_with_and_checked(
    server: Server, google: str, voxels: np.ndarray, tmp_path: Path
) -> None:
    source, url = tmp_path / "tomoSmall_nc", f"{google}/scan.zarr"
    write_mango_netcdf(source, voxels, slices_per_block=16)
    layout = ("--chunks", "16,16,16", "--shards", "16,16,16", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "ctlab_dask_zarr.cli", "convert", source, url, *layout],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def n_shards() -> int:
        keys = server.keys(google.removeprefix("gs://"))
        return sum(key.startswith("scan.zarr/0/c") for key in keys)

    try:
        wait_until(lambda: n_shards() > 8, "the first shards", 90)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(240)
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)
    n_before = n_shards()
    resumed = cli("convert", source, url, *layout, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["n_resumed"] >= n_before
    verified = cli("verify", url, "--source", source)
    assert verified.returncode == 0, verified.stderr


def test_no_container_and_a_wrong_key_are_told_apart(
    azure: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="no such bucket"):
        dataset_to_zarr(dataset, "az://not-there/scan.zarr", **LAYOUT)
    wrong = base64.b64encode(b"wrong").decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong)
    _open.cache_clear()
    with pytest.raises(StorageError, match="credentials") as caught:
        dataset_to_zarr(dataset, f"{azure}/scan.zarr", **LAYOUT)
    assert wrong not in str(caught.value)
