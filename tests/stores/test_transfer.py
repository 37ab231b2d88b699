"""Committed stores copied to an object store and back."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    IncompleteDatasetError,
    abort,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    repair,
    seal,
    verify,
)
from ctlab_dask_zarr.errors import StagingExistsError
from ctlab_dask_zarr.manage.transfer import copy_dataset
from ctlab_dask_zarr.store.destination import Destination
from tests.stores.conftest import LAYOUT, Server
from tests.stores.test_object_stores import cli, failing_after, with_event
from tests.verification.test_sealing import write_with_zarr


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
    assert_same_files(store, tmp_path / "back.zarr")
    again = cli("push", store, url, "-q")
    assert again.returncode == 0
    assert "is there already" in again.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".zarr") == [
        "back.zarr",
        "scan.zarr",
    ]


def assert_same_files(expected: Path, found: Path) -> None:
    contents = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (expected, found)
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("folder", ["public", "secret"])
def test_plain_http_which_lists_nothing_is_copied_by_what_the_documents_tell(
    web: str, store: Path, tmp_path: Path, with_labels: bool, folder: str
) -> None:
    if not with_labels:
        shutil.rmtree(store / "labels")
    (tmp_path / folder).mkdir()
    store = store.rename(tmp_path / folder / "scan.zarr")
    pulled = cli("pull", f"{web}/{folder}/scan.zarr", tmp_path / "copy", "-q")
    assert pulled.returncode == 0, pulled.stderr
    assert_same_files(store, tmp_path / "copy.zarr")
    assert verify(tmp_path / "copy.zarr") == []


def test_what_the_documents_do_not_tell_is_not_copied_by_plain_http(
    web: str, store: Path, tmp_path: Path
) -> None:
    def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(path.read_text())
        change(document["attributes"])
        path.write_text(json.dumps(document))

    url, copy = f"{web}/scan.zarr", tmp_path / "copy.zarr"
    edit(store / "labels" / "zarr.json", lambda a: a["ome"].update(labels=["../../escaped"]))
    with pytest.raises(CTLabError, match=r"lists \['\.\./\.\./escaped'\], not the names of"):
        copy_dataset(url, Destination.at(str(copy)))
    edit(store / "zarr.json", lambda a: a.pop("ctlab_dask_zarr"))
    with pytest.raises(
        CTLabError, match=r"was neither written nor sealed by this package.* `ctlab-zarr convert"
    ):
        copy_dataset(url, Destination.at(str(copy)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.zarr"]


@pytest.fixture
def other(dataset: Dataset, voxels: np.ndarray, tmp_path: Path) -> Path:
    """A store with the same keys and other voxels."""
    path = tmp_path / "other.zarr"
    with dask.config.set(scheduler="threads"):
        dataset_to_zarr(Dataset.from_modified(dataset, data=dataset.data[::-1]), path, **LAYOUT)
    return path


def interrupt(source: object, destination: object) -> None:
    """Have a copy stop after a few objects."""
    n_left = [8]

    def stop(nbytes: int, total: int) -> None:
        n_left[0] -= 1
        if n_left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_dataset(str(source), Destination.at(str(destination)), stop, n_threads=1)


def test_an_interrupted_copy_is_not_readable_and_goes_on(
    s3: Server, bucket: str, store: Path, dataset: Dataset
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    interrupt(store, url)
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)
    before = {key: v for key, v in s3.keys(bucket).items() if key.startswith("scan.zarr/")}
    assert before
    result = copy_dataset(str(store), Destination.at(url))
    assert result.n_skipped == len(before)
    after = s3.keys(bucket)
    assert {key: after[key] for key in before} == before
    assert verify(url, dataset) == []
    assert {key.split("/")[0] for key in after} == {"scan.zarr"}, "the claim is gone"


def test_an_interrupted_push_keeps_others_away_until_it_is_aborted(
    s3: Server,
    bucket: str,
    store: Path,
    other: Path,
    dataset: Dataset,
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    interrupt(store, url)
    before = s3.keys(bucket)
    with pytest.raises(StagingExistsError, match=r"a copy of .*scan\.zarr .* abort"):
        copy_dataset(str(other), Destination.at(url))
    with pytest.raises(StagingExistsError, match="resume=True"):
        dataset_to_zarr(dataset, url, **LAYOUT)
    with pytest.raises(StagingExistsError, match="does not say what was being written"):
        dataset_to_zarr(dataset, url, resume=True, **LAYOUT)
    assert s3.keys(bucket) == before
    done = cli("abort", url)
    assert done.returncode == 0, done.stderr
    assert s3.keys(bucket) == {}
    copy_dataset(str(other), Destination.at(url))
    assert verify(url, other) == []


def test_an_interrupted_pull_is_aborted(
    bucket: str, store: Path, dataset: Dataset, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    interrupt(store, tmp_path / "copy.zarr")
    assert len(list(tmp_path.glob(".copy.zarr.incoming.*"))) == 1
    done = cli("abort", tmp_path / "copy.zarr")
    assert done.returncode == 0, done.stderr
    assert "removed what was staged" in done.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_of_two_pushes_of_different_datasets_one_wins_whole(
    bucket: str, store: Path, other: Path
) -> None:
    for number in range(3):
        url = f"s3://{bucket}/scan{number}.zarr"
        barrier = threading.Barrier(2)
        lost: list[Exception] = []

        def push(source: Path, url: str = url, lost: list[Exception] = lost) -> None:
            barrier.wait(240)  # noqa: B023
            try:
                copy_dataset(str(source), Destination.at(url))
            except CTLabError as error:
                lost.append(error)

        threads = [threading.Thread(target=push, args=(path,)) for path in (store, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(lost) == 1
        assert isinstance(lost[0], StagingExistsError | DestinationExistsError)
        assert verify(url) == []


def test_a_push_whose_claim_is_removed_stops(s3: Server, bucket: str, store: Path) -> None:
    url = f"s3://{bucket}/scan.zarr"
    n_left = [5]

    def take_over(nbytes: int, total: int) -> None:
        n_left[0] -= 1
        if n_left[0] == 0:
            s3.client().delete_object(Bucket=bucket, Key=".scan.zarr.staging/plan.json")

    with pytest.raises(StagingExistsError, match="was removed meanwhile"):
        copy_dataset(str(store), Destination.at(url), take_over, n_threads=1)
    # Whoever took it away is told of progress a moment later than it is made.
    assert 4 <= len(s3.keys(bucket)) <= 20
    with pytest.raises(CTLabError):
        dataset_from_zarr(url)


def test_a_push_leaves_a_conversion_alone(
    bucket: str, other: Path, dataset: Dataset, voxels: np.ndarray
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    refused = []

    def push() -> None:
        with pytest.raises(StagingExistsError, match=r"a conversion to .* is under way"):
            copy_dataset(str(other), Destination.at(url))
        refused.append(True)

    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(with_event(voxels, push), url, **LAYOUT)
        assert refused
        assert verify(url, dataset) == []
        interrupted = f"s3://{bucket}/interrupted.zarr"
        with pytest.raises(CTLabError, match="on fire"):
            dataset_to_zarr(failing_after(5, voxels), interrupted, **LAYOUT)
    with pytest.raises(StagingExistsError, match="or was interrupted"):
        copy_dataset(str(other), Destination.at(interrupted))


def test_objects_of_others_are_left_alone(s3: Server, bucket: str, store: Path) -> None:
    s3.client().put_object(Bucket=bucket, Key="scan.zarr/thesis.tex", Body=b"...")
    url = f"s3://{bucket}/scan.zarr"
    before = s3.keys(bucket)
    with pytest.raises(DestinationExistsError, match=r"thesis\.tex"):
        copy_dataset(str(store), Destination.at(url))
    assert cli("abort", url).returncode == 0
    assert s3.keys(bucket) == before


def test_a_damaged_shard_is_not_copied(bucket: str, store: Path) -> None:
    shard = next(path for path in (store / "0").glob("c*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IncompleteDatasetError, match="is damaged"):
        copy_dataset(str(store), Destination.at(f"s3://{bucket}/scan.zarr"))
    with pytest.raises(CTLabError):
        dataset_from_zarr(f"s3://{bucket}/scan.zarr")
    for source in (store, store / "not-there"):
        failed = cli("push", source, f"s3://{bucket}/scan.zarr")
        assert failed.returncode != 0
        assert "1 of 1" not in failed.stderr
        assert "100%" not in failed.stderr


def test_nothing_is_replaced(s3: Server, bucket: str, store: Path, other: Path) -> None:
    url = f"s3://{bucket}/scan.zarr"
    copy_dataset(str(store), Destination.at(url))
    before = s3.keys(bucket)
    with pytest.raises(DestinationExistsError, match="another dataset"):
        copy_dataset(str(other), Destination.at(url))
    assert s3.keys(bucket) == before
    with pytest.raises(DestinationExistsError, match="another dataset"):
        copy_dataset(url, Destination.at(str(other)))


def test_what_others_wrote_is_sealed_where_it_is_and_then_copied_by_http(
    s3: Server, bucket: str, web: str, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs.zarr"
    write_with_zarr(theirs, empty=True)
    url = f"s3://{bucket}/theirs.zarr"
    assert cli("push", theirs, url, "-q").returncode == 0
    keys = set(s3.keys(bucket))
    result = seal(url)
    assert result.arrays == ("s0", "s1")
    assert result.n_absent > 0
    assert set(s3.keys(bucket)) == keys | {
        *("theirs.zarr/s0/receipts.json", "theirs.zarr/s1/receipts.json")
    }
    problems = verify(url)
    assert ([p for p in problems if p.kind != "ome"], problems.scope) == ([], "every byte verified")
    assert seal(url).arrays == ()
    assert cli("pull", url, tmp_path / "back.zarr", "-q").returncode == 0
    by_http = cli("pull", f"{web}/back.zarr", tmp_path / "again.zarr", "-q")
    assert by_http.returncode == 0, by_http.stderr
    assert_same_files(tmp_path / "back.zarr", tmp_path / "again.zarr")
    with pytest.raises(CTLabError, match="plain HTTP is read, not changed"):
        seal(f"{web}/back.zarr")
    shard = next(key for key in keys if "/s0/c/" in key)
    s3.client().put_object(Bucket=bucket, Key=shard, Body=b"x" * 40)
    assert {p.location for p in verify(url)} >= {shard.removeprefix("theirs.zarr/")}


def test_what_is_damaged_in_an_object_store_is_repaired_there(
    s3: Server, bucket: str, dataset: Dataset
) -> None:
    url = f"s3://{bucket}/scan.zarr"
    dataset_to_zarr(dataset, url, **LAYOUT)
    keys = s3.keys(bucket)
    shards = sorted(key for key in keys if "/0/c" in key)
    coarse = next(key for key in keys if "/1/c" in key)
    s3.client().put_object(Bucket=bucket, Key=shards[0], Body=b"x" * 40)
    s3.client().delete_object(Bucket=bucket, Key=shards[-1])
    s3.client().put_object(Bucket=bucket, Key=coarse, Body=b"")
    damaged = s3.keys(bucket)
    with pytest.raises(OSError, match="on fire"):
        repair(url, failing_after(0, np.asarray(dataset.data)))
    assert {key: facts for key, facts in s3.keys(bucket).items() if "staging" not in key} == damaged
    assert abort(url).was_staged
    assert s3.keys(bucket) == damaged
    assert len(repair(url, dataset).repaired) == 3
    assert verify(url, dataset) == []
    after = s3.keys(bucket)
    assert after.keys() == keys.keys()
    changed = {key for key, facts in after.items() if facts != keys[key]}
    assert changed >= {shards[-1]}
    assert not {key for key in changed if "/0/c" in key} - {shards[0], shards[-1]}
