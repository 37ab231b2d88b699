"""What may be replaced, and what one write may do to another one's staging."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import (
    DestinationExistsError,
    InvalidArgumentError,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
)
from ctlab_dask_zarr.store.files import LocalFiles, remove_tree
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.write.staging.commit import commit
from ctlab_dask_zarr.write.staging.stage import stage
from tests.builders import make_dataset
from tests.write.staging.test_commit import VOXELS, request_for, write_all


def test_an_old_dataset_is_removed_though_others_sweep_its_folder_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is empty for a moment, as the rest of a process that died may be."""
    rename, n_swept = LocalFiles.rename, [0]

    def sweep_first(self: LocalFiles, source: str, target: str) -> None:
        if ".replaced." in source and n_swept[0] < 3:
            n_swept[0] += 1
            os.rmdir(os.path.dirname(target))
        rename(self, source, target)

    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    monkeypatch.setattr(LocalFiles, "rename", sweep_first)
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", overwrite=True)
    assert n_swept == [3]
    assert os.listdir(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("version", ["group", "plain"])
@pytest.mark.parametrize(
    "stranger",
    [
        *("notes.txt", ".hidden", "2024.pdf", "2024/thesis.txt", "c.txt", "c/notes.txt"),
        *("0/notes.txt", "0/c.0.0.0.bak", "labels/notes.txt"),
    ],
)
def test_no_unrelated_file_in_a_store_is_ever_removed(
    stranger: str, version: str, tmp_path: Path, snapshot
) -> None:
    options: dict[str, Any] = {} if version == "group" else {"ome_zarr_version": None}
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **options)
    path = tmp_path / "a.zarr" / stranger
    path.parent.mkdir(exist_ok=True)
    path.write_text("three years of work")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"not replaced"):
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", overwrite=True, **options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ome_zarr_version": None},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8)},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8), "ome_zarr_version": None},
        {"create_array_kwargs": {"chunk_key_encoding": {"name": "v2", "separator": "/"}}},
        {
            "create_array_kwargs": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
            "ome_zarr_version": None,
        },
    ],
)
def test_every_form_of_store_that_is_written_may_be_replaced(options: Any, tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **options)
    dataset_to_zarr(make_dataset(VOXELS + 1), tmp_path / "a", overwrite=True, **options)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS + 1)
    assert os.listdir(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("late", ["commit", "stage and commit"])
def test_a_repeated_commit_leaves_the_staging_of_the_next_write_alone(
    late: str, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "a.zarr")
    first = stage(request)
    write_all(first)
    commit(first)
    following = stage(request_for(tmp_path / "a.zarr", "b" * 32, overwrite=True))
    write_all(following)
    commit(stage(request) if late != "commit" else first)
    commit(following)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_a_write_computed_again_leaves_the_staging_of_the_next_write_alone(tmp_path: Path) -> None:
    first = dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", compute=False)
    first.compute()
    following = stage(request_for(tmp_path / "a.zarr", "b" * 32, overwrite=True))
    write_all(following)
    first.compute()
    commit(following)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def test_a_commit_whose_old_dataset_is_slow_to_remove_spares_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    first = stage(request_for(tmp_path / "a.zarr", overwrite=True))
    write_all(first)
    place = "ctlab_dask_zarr.store.destination.remove_tree"
    following = []

    def slowly(files: Any, path: str) -> None:
        monkeypatch.setattr(place, remove_tree)
        # Meanwhile, before the old dataset is gone, somebody else starts to write there.
        following.append(stage(request_for(tmp_path / "a.zarr", "b" * 32, overwrite=True)))
        remove_tree(files, path)

    monkeypatch.setattr(place, slowly)
    commit(first)
    (second,) = following
    write_all(second)
    commit(second)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)
    assert os.listdir(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_destination_that_came_to_be_meanwhile_is_not_lost(
    overwrite: bool, tmp_path: Path, snapshot
) -> None:
    staged = stage(request_for(tmp_path / "a.zarr", overwrite=overwrite))
    write_all(staged)
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("three years of work")
    before = snapshot(tmp_path / "a.zarr")
    with pytest.raises(DestinationExistsError, match="changed during the write"):
        commit(staged)
    assert snapshot(tmp_path / "a.zarr") == before


@pytest.mark.parametrize(
    "url",
    [
        "git+ssh://host/a.zarr",
        "simplecache::s3://bucket/a.zarr",
        "zip://a.zip::gs://b/c",
        "FTP://b/a",
    ],
)
def test_a_url_of_any_scheme_is_never_made_a_local_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedFormatError, match="URL"):
        dataset_to_zarr(make_dataset(VOXELS), url)
    with pytest.raises(UnsupportedFormatError, match="URL"):
        dataset_from_zarr(url)
    assert list(tmp_path.iterdir()) == []


def test_the_scheme_of_an_object_store_is_known_in_any_spelling() -> None:
    assert storage_path("S3://b/a/") == "s3://b/a"
    assert storage_path(Path("s3://b/a")) == "s3://b/a"


def test_a_url_that_a_path_object_has_squeezed_is_never_made_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UnsupportedFormatError, InvalidArgumentError)):
        dataset_to_zarr(make_dataset(VOXELS), Path("ftp://bucket/a.zarr"))
    assert list(tmp_path.iterdir()) == []
