"""Datasets in object stores: written, gone on with, refused, read by others."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DatasetNotFoundError,
    DestinationExistsError,
    IncompleteDatasetError,
    InvalidArgumentError,
    StagingExistsError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
    zarr_writer,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.errors import StorageError
from ctlab_dask_zarr.manage.transfer import copy_dataset
from ctlab_dask_zarr.store import connection
from ctlab_dask_zarr.store.connection import validated_options
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.objects import ObjectFiles
from tests.builders import make_dataset
from tests.reliability.faults import wait_until
from tests.stores.conftest import LAYOUT, Network, Server


@pytest.fixture(autouse=True)
def _in_threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


def failing_after(n_blocks: int, voxels: np.ndarray) -> Dataset:
    left = [n_blocks]
    lock = threading.Lock()

    def block(part: np.ndarray) -> np.ndarray:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the disk of the source is on fire")
        return part

    data = da.from_array(voxels, chunks=32, name="voxels").map_blocks(
        block, dtype=voxels.dtype, meta=voxels[:0], name="made"
    )
    return make_dataset(data, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))


def leave_interrupted(url: str, voxels: np.ndarray) -> None:
    """Have a write fail after five of twelve shards, and see that it shows nothing."""
    with pytest.raises(CTLabError, match="on fire"), dask.config.set(scheduler="sync"):
        dataset_to_zarr(failing_after(5, voxels), url, **LAYOUT)
    with pytest.raises(DatasetNotFoundError, match="under way or was interrupted"):
        dataset_from_zarr(url)


def race_of_two(url: str, dataset: Dataset) -> None:
    """Have two threads write one dataset at once, of which one wins and the other says so."""
    barrier = threading.Barrier(2)
    errors: list[Exception] = []

    def write() -> None:
        barrier.wait(240)
        try:
            with dask.config.set(scheduler="sync"):
                dataset_to_zarr(dataset, url, **LAYOUT)
        except CTLabError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(errors) == 1
    assert isinstance(errors[0], StagingExistsError | DestinationExistsError)
    assert verify(url, dataset) == []


def with_event(voxels: np.ndarray, event: Callable[[], Any], block: int = 4) -> Dataset:
    """Return a dataset that has something happen when that block of it is made."""
    n_blocks = [0]

    def passed(part: np.ndarray) -> np.ndarray:
        n_blocks[0] += 1
        if n_blocks[0] == block:
            event()
        return part

    data = da.from_array(voxels, chunks=32, name="mine").map_blocks(
        passed, dtype="u2", meta=voxels[:0], name="passed"
    )
    return make_dataset(data, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))


def cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, **options)


def test_what_is_written_is_read_and_verified(
    s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scans/scan.zarr"
    dataset_to_zarr(dataset, url, **LAYOUT)
    written = dataset_from_zarr(url)
    np.testing.assert_array_equal(written.data.compute(), voxels)
    assert [level.shape for level in written.levels] == [(64, 64, 96), (32, 32, 48)]
    assert verify(url, dataset) == []
    assert all(key.startswith("scans/scan.zarr/") for key in s3.keys(bucket)), "staging is gone"
    # Another reader, with its own access.
    obstore = pytest.importorskip("obstore")
    client_options = {"allow_http": True}
    store = obstore.store.from_url(
        f"s3://{bucket}", endpoint=s3.endpoint, client_options=client_options
    )
    theirs = zarr.open_array(zarr.storage.ObjectStore(store), path="scans/scan.zarr/0", mode="r")
    np.testing.assert_array_equal(theirs[...], voxels)


def test_on_a_cluster_each_worker_writes_its_shards(
    cluster: Client, s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    # The workers began with another environment, which is what is known to reach them.
    url = f"s3://{bucket}/scan.zarr"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
    cluster.run(os.environ.update, {name: os.environ[name] for name in names})
    options = {"endpoint": s3.endpoint, "region": "us-east-1"}
    with dask.config.set(scheduler=None), cluster.as_current():
        dataset_to_zarr(dataset, url, storage_options=options, **LAYOUT)
        written = dataset_from_zarr(url, storage_options=options)
        np.testing.assert_array_equal(written.data.compute(), voxels)
        assert verify(url, dataset, storage_options=options) == []


def test_bands_of_shards_are_put_together_and_removed(
    s3: Server, bucket: str, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scans/scan.zarr"
    fails = [True]

    def block(part: np.ndarray, block_info: Any = None) -> np.ndarray:
        if fails[0] and block_info[0]["array-location"][0][0] == 56:
            raise OSError("the disk of the source is on fire")
        return part

    source = da.from_array(voxels, chunks=(8, *voxels.shape[1:]), name="voxels")
    data = source.map_blocks(block, dtype="u2", meta=voxels[:0], name="made")
    dataset = make_dataset(data, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))
    with dask.config.set(num_workers=8):
        assert plan(dataset, url, **LAYOUT).rechunk.band == 16
        with pytest.raises(CTLabError, match="on fire"):
            dataset_to_zarr(dataset, url, **LAYOUT)
        fails[0] = False
        dataset_to_zarr(dataset, url, resume=True, **LAYOUT)
    assert verify(url, dataset) == []
    assert all(key.startswith("scans/scan.zarr/") for key in s3.keys(bucket)), "staging is gone"


def test_slices_that_come_one_after_the_other_and_are_gone_on_with(
    s3: Server, bucket: str, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scans/scan.zarr"
    known: dict[str, Any] = {"datatype": "tomo", "voxel_size": 2.0, "voxel_unit": "um"}

    def write(first: int, *, resume: bool = False) -> None:
        with zarr_writer(url, shape=voxels.shape, resume=resume, **known, **LAYOUT) as writer:
            elsewhere = pickle.loads(pickle.dumps(writer))
            for z in range(first, 64, 11):
                (writer if z % 2 else elsewhere).write(z, voxels[z : z + 11])

    with pytest.raises(IncompleteDatasetError, match="slices 0:20 were not written"):
        write(20)
    with pytest.raises(DatasetNotFoundError, match="under way or was interrupted"):
        dataset_from_zarr(url)
    with pytest.raises(InvalidArgumentError, match="written before"):
        write(9, resume=True)
    with zarr_writer(url, shape=voxels.shape, resume=True, **known, **LAYOUT) as writer:
        for run in writer.missing():
            writer.write(run.start, voxels[run.start : run.stop])
    dataset = make_dataset(voxels, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))
    assert verify(url, dataset) == []
    assert all(key.startswith("scans/scan.zarr/") for key in s3.keys(bucket)), "staging is gone"


def test_labels_and_further_levels(
    s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    dataset_to_zarr(dataset, url, **{**LAYOUT, "levels": 1})
    add_levels(url, 2)
    labels_to_zarr((dataset.data > 100).astype("uint8"), url, "phases")
    assert verify(url, dataset) == []
    assert len(dataset_from_zarr(url).levels) == 2
    labels = dataset_from_zarr(f"{url}/labels/phases")
    np.testing.assert_array_equal(labels.data.compute(), voxels > 100)
    assert {key.split("/")[0] for key in s3.keys(bucket)} == {"scan.zarr"}


def test_a_failed_write_shows_nothing_and_is_gone_on_with(
    s3: Server, bucket: str, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    leave_interrupted(url, voxels)
    before = {key: v for key, v in s3.keys(bucket).items() if key.startswith("scan.zarr/0/c")}
    assert len(before) == 5
    with pytest.raises(StagingExistsError, match="resume=True"):
        dataset_to_zarr(failing_after(99, voxels), url, **LAYOUT)
    dataset_to_zarr(failing_after(99, voxels), url, resume=True, **LAYOUT)
    after = s3.keys(bucket)
    assert {key: after[key] for key in before} == before, "no shard is written twice"
    assert verify(url, make_dataset(voxels, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))) == []


def test_a_restart_removes_what_was_left(s3: Server, bucket: str, voxels: np.ndarray) -> None:
    url = f"s3://{bucket}/scan.zarr"
    with pytest.raises(CTLabError, match="on fire"), dask.config.set(scheduler="sync"):
        dataset_to_zarr(failing_after(5, voxels), url, **LAYOUT)
    client = s3.client()
    client.create_multipart_upload(Bucket=bucket, Key="scan.zarr/0/c/left")
    other = make_dataset(voxels[:32], 32, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))
    dataset_to_zarr(other, url, restart=True, **LAYOUT)
    assert verify(url, other) == []
    assert s3.n_uploads(bucket) == 0


def test_abort_removes_staging_shards_and_dangling_uploads(
    s3: Server, bucket: str, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    with pytest.raises(CTLabError, match="on fire"), dask.config.set(scheduler="sync"):
        dataset_to_zarr(failing_after(5, voxels), url, **LAYOUT)
    s3.client().create_multipart_upload(Bucket=bucket, Key="scan.zarr/0/c/left")
    done = cli("abort", url)
    assert done.returncode == 0, done.stderr
    assert "removed what was staged" in done.stdout
    assert s3.keys(bucket) == {}
    assert s3.n_uploads(bucket) == 0


@pytest.mark.parametrize("what", ["a conversion", "levels", "a copy"])
def test_abort_removes_what_the_write_put_and_nothing_else(
    what: str, s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    url, client = f"s3://{bucket}/scan.zarr", s3.client()
    one_level = LAYOUT | {"levels": 1}
    if what == "levels":
        dataset_to_zarr(dataset, url, **one_level)
    if what == "a copy":
        dataset_to_zarr(dataset, tmp_path / "a.zarr", **one_level)
        labels = (voxels % 3).astype("uint8")
        labels_to_zarr(labels, tmp_path / "a.zarr", "phases", chunks=(8, 8, 8), shards=32**3)
    before = s3.keys(bucket)
    write = {
        "a conversion": lambda: dataset_to_zarr(dataset, url, **LAYOUT),
        "levels": lambda: add_levels(url, 2),
        "a copy": lambda: copy_dataset(str(tmp_path / "a.zarr"), Destination.at(url)),
    }[what]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectFiles, "replace", _die)
        patch.setattr(ObjectFiles, "create", _die_at_the_root(ObjectFiles.create))
        with pytest.raises(KeyboardInterrupt):
            write()
    assert len(s3.keys(bucket)) > len(before) + 3
    theirs = ["scan.zarr/notes.txt", "scan.zarr/0/notes.txt", "scan.zarr/1/c/99/99/99"]
    theirs += [".scan.zarr.staging/notes.txt", ".scan.zarr.staging.old.zarr/zarr.json"]
    for key in theirs:
        client.put_object(Bucket=bucket, Key=key, Body=b"three years of work")
    done = cli("abort", url)
    assert done.returncode == 0, done.stderr
    assert sorted(s3.keys(bucket)) == sorted([*before, *theirs])
    assert {key: s3.keys(bucket)[key] for key in before} == before


def _die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _die_at_the_root(create: Any) -> Any:
    def dying(self: ObjectFiles, path: str, data: bytes) -> None:
        if path.endswith("scan.zarr/zarr.json"):
            raise KeyboardInterrupt
        create(self, path, data)

    return dying


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_uploads_are_ended_wherever_the_endpoint_is_said(
    s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(name, s3.endpoint)
    s3.client().create_multipart_upload(Bucket=bucket, Key="scan.zarr/0/c/left")
    done = cli("abort", f"s3://{bucket}/scan.zarr")
    assert done.returncode == 0, done.stderr
    assert "1 unfinished uploads ended" in done.stdout
    assert s3.n_uploads(bucket) == 0


def test_uploads_that_cannot_be_looked_for_are_said_and_stop_nothing(
    network: Network, bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    with pytest.raises(CTLabError, match="on fire"), dask.config.set(scheduler="sync"):
        dataset_to_zarr(failing_after(5, voxels), url, **LAYOUT)
    network.denied = "uploads"
    dataset_to_zarr(dataset, url, restart=True, **LAYOUT)
    assert verify(url, dataset) == []
    done = cli("abort", f"s3://{bucket}/other.zarr")
    assert done.returncode == 0, done.stderr
    assert "could not be searched for" in done.stderr
    assert "AccessDenied" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_conversion_leaves_nothing_readable_and_resumes(
    s3: Server, bucket: str, voxels: np.ndarray, tmp_path: Path
) -> None:
    source, url = tmp_path / "tomoSmall_nc", f"s3://{bucket}/scan.zarr"
    write_mango_netcdf(source, voxels, slices_per_block=16)
    layout = ("--chunks", "16,16,16", "--shards", "16,16,16", "--levels", "2", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "ctlab_dask_zarr.cli", "convert", source, url, *layout],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def shards(*levels: int) -> dict[str, Any]:
        prefixes = tuple(f"scan.zarr/{level}/c" for level in levels)
        return {key: v for key, v in s3.keys(bucket).items() if key.startswith(prefixes)}

    try:
        wait_until(lambda: len(shards(0)) > 8, "the first shards")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(240)
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)
    assert 8 < len(shards(0)) < 96
    # A kill that comes late finds shards of level 1 too, which are not written again either.
    before = shards(0, 1)
    resumed = cli("convert", source, url, *layout, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    after = shards(0, 1)
    assert {key: after[key] for key in before} == before
    # What was being sent when the process died may have arrived a moment later.
    assert len(before) <= json.loads(resumed.stdout)["n_resumed"] <= len(before) + 2
    assert verify(url, source) == []


def test_a_dataset_is_not_replaced_and_objects_of_others_are_left_alone(
    s3: Server, bucket: str, dataset: Dataset
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    dataset_to_zarr(dataset, url, **LAYOUT)
    before = s3.keys(bucket)
    with pytest.raises(DestinationExistsError, match="exists"):
        dataset_to_zarr(dataset, url, **LAYOUT)
    with pytest.raises(DestinationExistsError, match="cannot replace it in one step"):
        dataset_to_zarr(dataset, url, overwrite=True, **LAYOUT)
    assert s3.keys(bucket) == before
    s3.client().put_object(Bucket=bucket, Key="other.zarr/thesis.tex", Body=b"...")
    with pytest.raises(DestinationExistsError, match="objects that are not a dataset"):
        dataset_to_zarr(dataset, f"s3://{bucket}/other.zarr", **LAYOUT)


def test_of_two_writers_one_wins(s3: Server, bucket: str, dataset: Dataset) -> None:
    race_of_two(f"s3://{bucket}/scan.zarr", dataset)


def test_of_many_puts_of_one_key_one_wins(s3: Server, bucket: str) -> None:
    files = ObjectFiles()
    barrier = threading.Barrier(8)
    won = []

    def put(number: int) -> None:
        barrier.wait()
        try:
            files.create(f"s3://{bucket}/key", b"%d" % number)
            won.append(number)
        except OSError:
            pass

    threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(won) == 1
    assert files.read(f"s3://{bucket}/key") == b"%d" % won[0]


def test_a_writer_whose_staging_is_taken_over_stops(
    s3: Server, bucket: str, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    n_blocks = [0]

    def block(part: np.ndarray) -> np.ndarray:
        n_blocks[0] += 1
        if n_blocks[0] == 4:
            s3.client().delete_object(Bucket=bucket, Key=".scan.zarr.staging/plan.json")
        return part

    data = da.from_array(voxels, chunks=32).map_blocks(block, dtype="u2", meta=voxels[:0])
    with (
        pytest.raises(StagingExistsError, match="removed or committed"),
        dask.config.set(scheduler="sync"),
    ):
        dataset_to_zarr(make_dataset(data, datatype="tomo"), url, **LAYOUT)
    assert n_blocks[0] == 4, "no shard is begun after"


def test_server_errors_and_slow_down_are_tried_again(
    network: Network,
    bucket: str,
    dataset: Dataset,
    voxels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Half of all requests fail: as they are, the waits would make up a minute.
    monkeypatch.setattr(connection, "_FIRST_WAIT", timedelta(milliseconds=50))
    connection._open.cache_clear()
    url = f"s3://{bucket}/scan.zarr"
    network.answers += [500, 503, 0, 0, 500, 0, 503, 503] * 8
    dataset_to_zarr(dataset, url, **LAYOUT)
    network.answers += [503, 500]
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), voxels)
    assert network.n_requests > 60


def test_a_server_that_hangs_in_the_middle_is_waited_for(
    s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(with_event(voxels, lambda: s3.hang(3)), url, **LAYOUT)
    assert verify(url, dataset) == []


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_server_that_refuses_connections_in_the_middle_is_waited_for(
    network: Network, bucket: str, dataset: Dataset, voxels: np.ndarray, scheduler: str
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    with dask.config.set(scheduler=scheduler):
        dataset_to_zarr(with_event(voxels, lambda: network.close_for(3)), url, **LAYOUT)
    assert verify(url, dataset) == []


def test_retries_last_longer_than_a_restart_and_not_for_ever() -> None:
    n_retries = connection.RETRY_TIMEOUT // connection._FIRST_WAIT
    assert n_retries * connection._FIRST_WAIT >= timedelta(seconds=30)
    longest = connection.RETRY_TIMEOUT + connection._LONGEST_WAIT + connection._REQUEST_TIMEOUT
    assert longest < timedelta(minutes=4)


def test_a_server_that_is_gone_is_an_error_within_a_bound(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setattr(connection, "RETRY_TIMEOUT", timedelta(seconds=3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    connection._open.cache_clear()
    start_s = time.monotonic()
    with pytest.raises((CTLabError, OSError), match=r"127\.0\.0\.1:9"):
        dataset_to_zarr(dataset, "s3://gone/scan.zarr", **LAYOUT)
    # It was tried again, and given up: a wait may begin just before the time is up.
    assert 2 < time.monotonic() - start_s < 60


def test_a_server_that_goes_away_in_the_middle_leaves_nothing_readable(
    network: Network,
    s3: Server,
    bucket: str,
    dataset: Dataset,
    voxels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "RETRY_TIMEOUT", timedelta(seconds=2))
    connection._open.cache_clear()
    url = f"s3://{bucket}/scan.zarr"
    passed = with_event(voxels, network.close)
    with pytest.raises(CTLabError, match=r"scan\.zarr"), dask.config.set(scheduler="sync"):
        dataset_to_zarr(passed, url, **LAYOUT)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    with pytest.raises(DatasetNotFoundError):
        dataset_from_zarr(url)
    dataset_to_zarr(passed, url, resume=True, **LAYOUT)
    assert verify(url, dataset) == []


def test_wrong_credentials_and_a_missing_bucket_say_so(
    s3: Server, bucket: str, tmp_path: Path, voxels: np.ndarray
) -> None:
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, voxels[:16], slices_per_block=16)
    absent = cli("convert", source, "s3://no-such-bucket-here/scan.zarr", "--workers", "1")
    assert absent.returncode in (1, 4)
    assert "no such bucket" in absent.stderr.lower() or "NoSuchBucket" in absent.stderr
    if s3.name == "moto":
        return  # it takes any credentials
    secret = "not-this-one-0815"
    refused = cli(
        "convert", source, f"s3://{bucket}/scan.zarr", "--workers", "1",
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": secret},
    )  # fmt: skip
    assert refused.returncode in (1, 4)
    assert "refuses access" in refused.stderr
    assert secret not in refused.stderr + refused.stdout


def test_credentials_are_kept_nowhere(
    s3: Server, bucket: str, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    import cloudpickle

    url = f"s3://{bucket}/scan.zarr"
    pickled = cloudpickle.dumps(dataset_to_zarr(dataset, url, compute=False, **LAYOUT))
    # Interrupted, so that the plan is there too.
    with pytest.raises(CTLabError, match="on fire") as caught, dask.config.set(scheduler="sync"):
        dataset_to_zarr(failing_after(5, voxels), url, **LAYOUT)
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, voxels, slices_per_block=16)
    options = ("--workers", "1", "--storage-option", f"endpoint={s3.endpoint}")
    refused = cli("--debug", "convert", source, url, *options)
    written = cli("--debug", "convert", source, f"s3://{bucket}/other.zarr", *options)
    assert (refused.returncode, written.returncode) == (1, 0), refused.stderr + written.stderr
    kept = {
        "graph": pickled,
        "message": str(caught.value).encode(),
        "log": "".join((refused.stdout, refused.stderr, written.stdout, written.stderr)).encode(),
    } | {
        key: s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in s3.keys(bucket)
    }
    assert ".scan.zarr.staging/plan.json" in kept
    secret = s3.variables["AWS_SECRET_ACCESS_KEY"].encode()
    assert [place for place, content in kept.items() if secret in content] == []


@pytest.mark.parametrize(
    "name",
    [
        *("aws_secret_access_key", "SECRET", "session_token", "account_key", "master_key"),
        *("sse_customer_key_base64", "encryption_key", "sas_key", "default_headers"),
    ],
)
def test_credentials_are_no_options(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="set them in the environment"):
        validated_options({name: "x"})


def test_the_name_of_a_key_is_an_option() -> None:
    assert validated_options({"aws_sse_kms_key_id": "mine"}) == (("sse_kms_key_id", "mine"),)


def test_credentials_in_urls_are_refused_and_not_repeated(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "not-this-one-0815"
    url = f"http://alice:{password}@localhost:1/scan.zarr"
    options = {"endpoint": f"http://alice:{password}@localhost:1"}
    refused = []
    for attempt in (
        lambda: dataset_from_zarr(url),
        lambda: dataset_to_zarr(dataset, f"s3://alice:{password}@bucket/scan.zarr"),
        lambda: dataset_to_zarr(dataset, "s3://bucket/scan.zarr", storage_options=options),
    ):
        with pytest.raises(InvalidArgumentError, match="set credentials in") as caught:
            attempt()
        refused.append(str(caught.value))
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint"])
    with pytest.raises(InvalidArgumentError, match="AWS_ENDPOINT_URL") as caught:
        dataset_from_zarr("s3://some-bucket/scan.zarr")
    assert password not in "".join([*refused, str(caught.value)])
    refused_by_name = cli("info", url)
    assert refused_by_name.returncode == 2
    assert password not in refused_by_name.stderr


def test_no_credentials_at_all_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # Neither is a credential that the client reads.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/me/.aws/credentials")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    connection._open.cache_clear()
    with pytest.raises(StorageError, match=r"no credentials were found.*AWS_ACCESS_KEY_ID"):
        dataset_from_zarr("s3://no-credentials/scan.zarr")


@contextmanager
def metadata_service(headers: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """What a cloud, or a network, answers at the address of the role; yields what it was asked."""
    asked = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without credentials of any cloud."""
    pytest.importorskip("obstore")
    clouds = ("AWS_", "GOOGLE_", "GCE_", "AZURE_", "SERVICE_")
    for name in [name for name in os.environ if name.startswith(clouds)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connection, "_FIRST_WAIT", timedelta(seconds=0.1))
    # Where nobody listens.
    monkeypatch.setattr(connection, "_METADATA_SERVICE", "http://127.0.0.1:9")
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    connection._open.cache_clear()


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_no_credentials_of_other_clouds_are_said_to_be_missing_too(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    with pytest.raises(StorageError, match=r"no credentials were found.*GOOGLE_APPLICATION_CREDEN"):
        dataset_from_zarr(f"{scheme}://no-credentials/scan.zarr")


@pytest.mark.usefixtures("nobody")
def test_a_service_that_is_not_googles_tells_no_role_of_google(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with metadata_service({"Server": "another cloud"}) as (address, asked):
        monkeypatch.setenv("GCE_METADATA_IP", address)
        with pytest.raises(StorageError, match="no credentials were found"):
            dataset_from_zarr("gs://no-credentials/scan.zarr")
    assert asked == ["/"]


@pytest.mark.usefixtures("nobody")
def test_whatever_may_be_a_credential_is_left_to_the_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_have = connection._may_have_credentials
    for scheme, name in [
        ("s3", "AWS_ACCESS_KEY_ID"),
        ("s3", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("s3", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        ("s3", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ("s3", "AWS_SKIP_SIGNATURE"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        ("gs", "SERVICE_ACCOUNT"),
        ("gs", "GOOGLE_SKIP_SIGNATURE"),
        ("gs", "GCE_METADATA_HOST"),
        ("az", "AZURE_STORAGE_SAS_TOKEN"),
        ("az", "AZURE_CLIENT_ID"),
        ("az", "AZURE_FEDERATED_TOKEN_FILE"),
        ("az", "AZURE_USE_AZURE_CLI"),
        ("az", "IDENTITY_ENDPOINT"),
    ]:
        assert not may_have(scheme, {"region": "a"})
        with monkeypatch.context() as patch:
            patch.setenv(name, "something")
            assert may_have(scheme, {})
    for scheme, name in [("gs", "service_account"), ("az", "use_emulator"), ("az", "client_id")]:
        assert may_have(scheme, {name: "something"})
        assert may_have(scheme, {"skip_signature": "true"})
    # The role of a machine at Google.
    with metadata_service({"Metadata-Flavor": "Google"}) as (address, _):
        monkeypatch.setenv("GCE_METADATA_IP", address)
        assert may_have("gs", {})
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    file = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert may_have("gs", {})


def test_options_are_the_same_for_every_spelling() -> None:
    assert validated_options({"AWS_REGION": "a", "endpoint": "b"}) == (
        ("endpoint", "b"),
        ("region", "a"),
    )


MEMORY_OF_A_WRITE = """
import sys, dask, dask.array as da, numpy as np
from ctlab_dask_zarr import dataset_to_zarr
from tests.builders import make_dataset

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line) << 10

def noise(block_info=None):
    place = block_info[None]
    rng = np.random.default_rng(place["chunk-location"][0])
    return rng.integers(0, 2**16, place["chunk-shape"], dtype="uint16")

def write(name, n_slices):
    chunks = ((16,) * (n_slices // 16), 512, 512)
    data = da.map_blocks(noise, chunks=chunks, dtype="uint16", meta=np.empty((0, 0, 0), "uint16"))
    layout = {"chunks": (32, 64, 64), "shards": data.shape}
    dataset_to_zarr(make_dataset(data), f"{sys.argv[1]}/{name}.zarr", **layout)

with dask.config.set(scheduler="sync"):
    write("small", 32)
    before = peak()
    write("large", 256)
print(peak() - before)
"""


def test_an_upload_needs_no_more_memory_for_a_larger_shard(s3: Server, bucket: str) -> None:
    command = [sys.executable, "-c", MEMORY_OF_A_WRITE, f"s3://{bucket}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    # Voxels that no codec makes smaller: a shard of 32 slices goes up in two parts, this in 16.
    shard_nbytes = 256 * 512 * 512 * 2
    assert int(result.stdout) < 0.25 * shard_nbytes


def test_a_wrong_option_is_named() -> None:
    pytest.importorskip("obstore")
    with pytest.raises(InvalidArgumentError, match="nonsense"):
        dataset_from_zarr("s3://bucket/scan.zarr", storage_options={"nonsense": 1})


@pytest.mark.parametrize("codec", ["zstd:3", "none"])
def test_a_store_in_this_process_needs_no_server(
    codec: str, dataset: Dataset, voxels: np.ndarray
) -> None:
    pytest.importorskip("obstore")
    url = f"memory://here/{codec.partition(':')[0]}.zarr"
    # With "none", rows of voxels are sent from the memory in which the next ones are put.
    dataset_to_zarr(dataset, url, codec=codec, **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(url).data.compute(), voxels)
    assert verify(url, dataset) == []


def test_a_store_in_this_process_is_refused_to_others(
    cluster: Client, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("obstore")
    with (
        dask.config.set(scheduler=None),
        cluster.as_current(),
        pytest.raises(InvalidArgumentError, match="memory of another process"),
    ):
        dataset_to_zarr(dataset, "memory://cluster/scan.zarr", **LAYOUT)
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, voxels, slices_per_block=16)
    lost = cli("convert", source, "memory://cli/scan.zarr", "--workers", "1")
    assert lost.returncode == 2
    assert "memory of another process" in lost.stderr


def test_plain_http_is_read_and_not_written(
    web: str, dataset: Dataset, voxels: np.ndarray, tmp_path: Path
) -> None:
    dataset_to_zarr(dataset, tmp_path / "scan.zarr", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(f"{web}/scan.zarr").data.compute(), voxels)
    with pytest.raises(InvalidArgumentError, match="read, not written"):
        dataset_to_zarr(dataset, f"{web}/b.zarr")
    refused = cli("verify", f"{web}/scan.zarr")
    assert refused.returncode == 1
    assert "does not list what it has" in refused.stderr
