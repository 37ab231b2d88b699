"""Folders that stay open: what is found through them, and when they are looked up anew."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr import MetadataError
from ctlab_dask_zarr.store.folders import forget_folders, kept_folder, open_folder
from ctlab_dask_zarr.store.store import Store


@pytest.fixture(autouse=True)
def none_kept() -> Iterator[None]:
    forget_folders()
    yield
    forget_folders()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(str(tmp_path / "store"))


def n_open(root: str) -> int:
    """How many folders of a store this process has open; other threads have others."""
    gc.collect()
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            place = os.readlink(f"/proc/self/fd/{number}")
            count += place == root or place.startswith(f"{root}/")
    return count


def test_a_folder_is_opened_once_for_many_tasks(store: Store) -> None:
    store.put("0/c/0/0/0", b"a")
    folder = kept_folder(store.root, store.path("0/c/0/0"))
    assert folder is not None
    assert kept_folder(store.root, store.path("0/c/0/0")) is folder
    assert sorted(os.listdir(store.path("0/c/0/0"))) == ["0"]


def test_few_folders_stay_open_however_many_there_are(store: Store) -> None:
    assert n_open(store.root) == 0
    for number in range(60):
        store.put(f"0/c/{number}/0/0", b"a")
    assert 0 < n_open(store.root) <= 16
    forget_folders()
    assert n_open(store.root) == 0


def test_a_folder_that_replaces_another_is_written_into(store: Store) -> None:
    store.put("0/c.0.0.0", b"old")
    os.rename(store.path("0"), store.path("1"))
    os.mkdir(store.path("0"))
    store.put("0/c.0.0.0", b"new")
    assert (store.get("1/c.0.0.0"), store.get("0/c.0.0.0")) == (b"old", b"new")


def test_a_folder_that_is_gone_is_made_again_but_never_the_root(store: Store) -> None:
    store.put("0/c/0/0/0", b"a")
    os.rename(store.path("0"), f"{store.root}.aside")
    store.put("0/c/0/0/0", b"b")
    assert store.get("0/c/0/0/0") == b"b"
    os.rename(store.root, f"{store.root}.committed")
    for key in ("0/c/0/0/0", "1/c/0/0/0"):
        with pytest.raises(FileNotFoundError, match="the staging folder is gone"):
            store.put(key, b"c")
    assert not os.path.exists(store.root)
    assert Store(f"{store.root}.committed").get("0/c/0/0/0") == b"b"


@pytest.mark.parametrize("folder", ["0", "0/c", "0/c/0/0"])
@pytest.mark.parametrize("same", [False, True], ids=["another folder", "the folder itself"])
def test_a_link_that_comes_between_two_tasks_is_not_followed(
    folder: str, same: bool, store: Store, tmp_path: Path, snapshot: Any
) -> None:
    store.put("0/c/0/0/0", b"a")
    if same and folder != "0/c/0/0":
        # Through the folder that is kept nothing but that folder is reached, links or not.
        forget_folders()
    os.rename(store.path(folder), tmp_path / "theirs")
    if not same:
        (tmp_path / "theirs").rename(tmp_path / "aside")
        (tmp_path / "theirs" / "c" / "0" / "0").mkdir(parents=True)
    os.symlink(tmp_path / "theirs", store.path(folder))
    before = snapshot(tmp_path / "theirs")
    with pytest.raises(MetadataError, match="leads out of the store"):
        store.put("0/c/0/0/0", b"b")
    assert snapshot(tmp_path / "theirs") == before


def test_a_link_that_stays_inside_of_the_store_is_followed(store: Store) -> None:
    store.put("real/c.0.0.0", b"a")
    os.symlink("real", store.path("0"))
    store.put("0/c.1.0.0", b"b")
    assert store.get("real/c.1.0.0") == b"b"
    assert open_folder(store.root, store.path("0")) is None


def test_the_root_may_be_a_link(store: Store, tmp_path: Path) -> None:
    os.symlink(store.root, tmp_path / "link")
    linked = Store(str(tmp_path / "link"))
    for number in range(2):
        linked.put(f"zarr{number}", b"a")
    assert store.get("zarr1") == b"a"
    assert kept_folder(linked.root, linked.root) is kept_folder(linked.root, linked.root)


@pytest.mark.parametrize("path", ["../theirs", "0/../../theirs", "0//c", "./0"])
def test_a_path_that_is_not_plain_is_left_to_the_full_check(path: str, store: Store) -> None:
    store.put("0/c", b"a")
    assert open_folder(store.root, f"{store.root}/{path}") is None
    assert open_folder(store.root, f"{store.root}s") is None


def test_where_no_more_files_can_be_opened_those_kept_are_closed(store: Store) -> None:
    for number in range(10):
        store.put(f"{number}/c.0.0.0", b"a")
    os.mkdir(store.path("new"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Other tests may have left more open in this process than any fixed number.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
    spare = []
    try:
        with suppress(OSError):
            while True:
                spare.append(os.open(store.root, os.O_RDONLY))
        assert kept_folder(store.root, store.path("new")) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in spare:
            os.close(descriptor)
