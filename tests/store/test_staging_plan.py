"""What lies beside destinations: told apart by whole names, and believed only inside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import (
    DestinationExistsError,
    IncompleteDatasetError,
    MetadataError,
    WriteFailedError,
    add_levels,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.api.add import prepare_pyramid
from ctlab_dask_zarr.manage.discard import abort_write
from ctlab_dask_zarr.manage.status import write_status
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels, write_without_commit

VOXELS = random_voxels((16, 16, 16))
LABELS = (VOXELS % 3).astype("uint8")
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}


@pytest.fixture(autouse=True)
def _in_this_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def interrupted(write: Callable[[da.Array], Any]) -> None:
    """Begin a write that fails at its last block."""

    def block(part: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"] == (1, 1, 1):
            raise OSError("the disk is on fire")
        return part

    data = da.from_array(LABELS, chunks=8).map_blocks(block, dtype="uint8", meta=LABELS[:0])
    with pytest.raises(WriteFailedError):
        write(data)


def staged(path: Path) -> str:
    return f".{path.name}.staging"


@pytest.mark.parametrize(
    "other",
    [
        *("scan.zarr.staging.old.zarr", "scan.zarr.replaced.zarr", "scan.zarr.incoming.zarr"),
        f"scan.zarr.staging.{'0' * 32}.zarr",
        *("scan.zarr.labels.a.zarr", "scan.zarr.a.labels.zarr", "scan.zarr.a.zarr"),
    ],
)
def test_what_is_staged_for_one_destination_is_safe_from_all_others(
    other: str, tmp_path: Path, snapshot: Any
) -> None:
    interrupted(lambda data: dataset_to_zarr(make_dataset(data), tmp_path / other, **LAYOUT))
    before = snapshot(tmp_path / f".{other}.staging")
    scan = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(VOXELS), scan, **LAYOUT)
    dataset_to_zarr(make_dataset(VOXELS), scan, overwrite=True, restart=True, **LAYOUT)
    for name in ("a", "a.zarr"):
        labels_to_zarr(LABELS, scan, name, restart=True, **LAYOUT)
    add_levels(scan, 2, restart=True)
    edit_metadata(scan, voxel_size=3)
    assert not abort_write(Destination(str(scan))).was_staged
    assert snapshot(tmp_path / f".{other}.staging") == before
    assert sorted(os.listdir(tmp_path)) == [f".{other}.staging", "scan.zarr"]
    whole = make_dataset(da.from_array(LABELS, chunks=8))
    dataset_to_zarr(whole, tmp_path / other, restart=True, **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / other).data, LABELS)


def test_no_two_destinations_have_one_hidden_name() -> None:
    images = ["scan.zarr", "scan.zarr.a", "scan.zarr.labels.a", "scan.zarr.a.labels-staging"]
    names = ["a", "a.zarr", "a.labels-staging", "a.staging", "a%2Ezarr", "staging"]
    places = [Destination(f"/data/{image}") for image in images]
    places += [
        Destination(f"/data/{image}/labels/{name}", labels_of=f"/data/{image}")
        for image in images
        for name in names
    ]
    hidden = {place.staging for place in places} | {place.replaced("0" * 16) for place in places}
    assert len(hidden) == 2 * len(places)


def test_labels_under_way_are_found_by_any_name(tmp_path: Path) -> None:
    scan = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(VOXELS), scan, **LAYOUT)
    for name in ("a.b", "c%2E", "d"):
        interrupted(lambda data, name=name: labels_to_zarr(data, scan, name, **LAYOUT))
    # What nobody could have named: it leads out of the image.
    (tmp_path / ".scan.zarr.%2E%2E.labels-staging").mkdir()
    found = [os.path.basename(labels.path) for labels in Destination(str(scan)).staged_labels()]
    assert found == ["a.b", "c%2E", "d"]


@pytest.mark.parametrize(
    "text", ["x", "null", "[1]", "[[1, 2]]", '[[["a"], 1, 2, 3, 4]]', '[["0/c/0/0/0", 1, 2]]']
)
def test_receipts_that_are_damaged_count_as_missing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"

    def write(data: da.Array, **options: Any) -> None:
        dataset_to_zarr(make_dataset(data, identity="labels"), path, **options, **LAYOUT)

    interrupted(write)
    (receipts,) = (tmp_path / staged(path)).glob("receipts-*")
    (receipts / f"{'0' * 32}.json").write_text(text)
    with pytest.raises(IncompleteDatasetError):
        commit(path)
    write(da.from_array(LABELS, chunks=8), resume=True)
    assert verify(path, make_dataset(LABELS)) == []


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_a_folder_that_only_has_the_name_of_a_staging_folder_is_left_alone(
    kind: str, tmp_path: Path, snapshot: Any
) -> None:
    staging = tmp_path / ".scan.zarr.staging"
    for folder in (staging, staging.with_name(f"{staging.name}.{'0' * 32}")):
        place = folder / ("thesis.txt" if kind == "a file" else "thesis/text")
        place.parent.mkdir(parents=True)
        place.write_text("three years of work")
    before = snapshot(tmp_path)
    for options in ({}, {"resume": True}, {"restart": True}):
        with pytest.raises(MetadataError, match="it holds 'thesis"):
            dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan", **LAYOUT, **options)
    with pytest.raises(MetadataError, match="move it elsewhere"):
        abort_write(Destination(str(tmp_path / "scan.zarr")))
    assert snapshot(tmp_path) == before


def test_a_link_in_place_of_a_staging_folder_is_not_followed(tmp_path: Path, snapshot: Any) -> None:
    theirs = tmp_path / "theirs"
    interrupted(lambda data: dataset_to_zarr(make_dataset(data), tmp_path / "scan", **LAYOUT))
    (tmp_path / ".scan.zarr.staging").rename(theirs)
    (tmp_path / ".scan.zarr.staging").symlink_to(theirs)
    before = snapshot(theirs)
    for options in ({"resume": True}, {"restart": True}):
        with pytest.raises(MetadataError, match="not a folder"):
            dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan", **LAYOUT, **options)
    with pytest.raises(MetadataError, match="not a folder"):
        abort_write(Destination(str(tmp_path / "scan.zarr")))
    assert snapshot(theirs) == before


def staged_levels(tmp_path: Path) -> Path:
    """An image with the levels that were staged for it by a process that died."""
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan.zarr", **LAYOUT)
    (prepared,) = prepare_pyramid(tmp_path / "scan.zarr", 2, None, resume=False, restart=False)
    write_without_commit(prepared.graph)
    return tmp_path / ".scan.zarr.staging" / "plan.json"


@pytest.mark.parametrize(
    "path", ["../precious", "/tmp/precious", "labels", "..", "", "a//b", "a\\b", "1\0", 1, None]
)
def test_a_plan_that_leads_elsewhere_is_refused_whatever_is_asked_for(
    path: Any, tmp_path: Path, snapshot: Any
) -> None:
    place = staged_levels(tmp_path)
    for folder in (tmp_path / "precious", tmp_path / "scan.zarr" / "labels"):
        folder.mkdir()
        (folder / "thesis.txt").write_text("three years of work")
    content, scan = json.loads(place.read_text()), tmp_path / "scan.zarr"
    for change in ("level", "document"):
        plan = json.loads(json.dumps(content))
        if change == "level":
            plan["levels"][1]["path"] = path
        else:
            if path == "labels":
                continue
            plan["documents"][0]["key"] = path
        place.write_text(json.dumps(plan))
        before = snapshot(tmp_path)
        for act in (
            lambda: abort_write(Destination(str(scan))),
            lambda: commit(scan),
            lambda: add_levels(scan, 2, resume=True),
            lambda: add_levels(scan, 2, restart=True),
        ):
            with pytest.raises(
                MetadataError, match="is not a staging folder as this package makes"
            ):
                act()
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [{"levels": []}, {"extends": "x"}, {"extends": 7}, {"identity": "no JSON"}, {"identity": None}],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_a_clear_error(
    change: dict[str, Any], tmp_path: Path, snapshot: Any
) -> None:
    place = staged_levels(tmp_path)
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    before, scan = snapshot(tmp_path), tmp_path / "scan.zarr"
    for act in (lambda: commit(scan), lambda: add_levels(scan, 2, resume=True)):
        with pytest.raises(MetadataError, match="is not a staging folder as this package makes"):
            act()
    assert snapshot(tmp_path) == before


def test_a_level_of_somebody_else_is_not_taken_for_one_that_was_moved_there(
    tmp_path: Path,
) -> None:
    place = staged_levels(tmp_path)
    shutil.rmtree(next(place.parent.glob("store-*")) / "1")
    theirs = tmp_path / "scan.zarr" / "1"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("three years of work")
    abort_write(Destination(str(tmp_path / "scan.zarr")))
    assert (theirs / "thesis.txt").read_text() == "three years of work"


def test_a_link_in_place_of_the_dataset_to_be_is_never_published(
    tmp_path: Path, snapshot: Any
) -> None:
    interrupted(lambda data: dataset_to_zarr(make_dataset(data), tmp_path / "scan", **LAYOUT))
    store = next((tmp_path / ".scan.zarr.staging").glob("store-*"))
    store.rename(tmp_path / "theirs")
    store.symlink_to(tmp_path / "theirs")
    before = snapshot(tmp_path)
    for act in (
        lambda: dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan", resume=True, **LAYOUT),
        lambda: commit(tmp_path / "scan.zarr"),
    ):
        with pytest.raises(MetadataError, match="it holds 'store-"):
            act()
    assert snapshot(tmp_path) == before


def test_a_place_where_no_folder_can_be_made_is_told_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.path.isdir("/proc/self"):
        with pytest.raises(WriteFailedError, match=r"/proc.*give another place"):
            dataset_to_zarr(make_dataset(VOXELS), "/proc/scan.zarr", **LAYOUT)
    # Nor where somebody takes away each folder as soon as it is made.
    make_folder = LocalFiles.make_folder

    def vanish(self: LocalFiles, path: str) -> None:
        make_folder(self, path)
        if path.startswith(str(tmp_path)):
            os.rmdir(path)

    monkeypatch.setattr(LocalFiles, "make_folder", vanish)
    with pytest.raises(WriteFailedError, match="100 times in a row"):
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan", **LAYOUT)
    assert os.listdir(tmp_path) == []


class TestWhatCameMeanwhile:
    """Between the staging of a replacement and its end."""

    OLD = np.full((16, 16, 16), 7, "uint16")

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        dataset_to_zarr(make_dataset(self.OLD), tmp_path / "scan.zarr", **LAYOUT)
        return tmp_path / "scan.zarr"

    def replace(self, path: Path, meanwhile: Callable[[], Any], **options: Any) -> None:
        """Replace the dataset; something happens when its first block is made."""
        done: list[bool] = []

        def block(part: np.ndarray) -> np.ndarray:
            if not done:
                done.append(True)
                meanwhile()
            return part

        data = da.from_array(VOXELS, chunks=8).map_blocks(block, dtype="u2", meta=VOXELS[:0])
        dataset_to_zarr(make_dataset(data), path, overwrite=True, **LAYOUT, **options)

    def die_between_the_renames(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the dataset in a process that dies when the old one is aside."""
        rename = os.rename

        def die(source: str, target: str) -> None:
            if target == str(path):
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", die)
            with pytest.raises(KeyboardInterrupt):
                self.replace(path, lambda: None)

    def test_another_dataset_is_not_replaced(self, path: Path, snapshot: Any) -> None:
        others = make_dataset(VOXELS + 5)
        dataset_to_zarr(others, path.parent / "other.zarr", **LAYOUT)
        before = snapshot(path.parent / "other.zarr")

        def meanwhile() -> None:
            path.rename(path.parent / "moved.zarr")
            (path.parent / "other.zarr").rename(path)

        with pytest.raises(DestinationExistsError, match="not the dataset that was to be replaced"):
            self.replace(path, meanwhile)
        assert snapshot(path) == before
        # Who looks, and means it, replaces this one.
        commit(path, overwrite=True)
        np.testing.assert_array_equal(dataset_from_zarr(path).data, VOXELS)
        assert sorted(os.listdir(path.parent)) == ["moved.zarr", "scan.zarr"]

    def test_a_dataset_where_none_was_is_not_replaced(self, path: Path, snapshot: Any) -> None:
        shutil.copytree(path, path.parent / "other.zarr")
        shutil.rmtree(path)
        before = snapshot(path.parent / "other.zarr")
        with pytest.raises(DestinationExistsError, match="not the dataset that was to be replaced"):
            self.replace(path, lambda: (path.parent / "other.zarr").rename(path))
        assert snapshot(path) == before

    def test_the_same_dataset_with_a_corrected_voxel_size_is_still_the_one(
        self, path: Path
    ) -> None:
        self.replace(path, lambda: edit_metadata(path, voxel_size=5))
        np.testing.assert_array_equal(dataset_from_zarr(path).data, VOXELS)

    @pytest.mark.parametrize("what", ["an empty folder", "a dataset of others"])
    def test_the_old_dataset_stays_aside_until_the_new_one_is_in_its_place(
        self, what: str, path: Path, snapshot: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = snapshot(path)
        self.die_between_the_renames(path, monkeypatch)
        (aside,) = path.parent.glob(".scan.zarr.replaced.*")
        if what == "an empty folder":
            path.mkdir()
        else:
            dataset_to_zarr(make_dataset(VOXELS + 5), path.parent / "theirs.zarr", **LAYOUT)
            (path.parent / "theirs.zarr").rename(path)
        here = snapshot(path)
        for act in (
            lambda: commit(path),
            lambda: commit(path, overwrite=True),
            lambda: self.replace(path, lambda: None, restart=True),
            lambda: self.replace(path, lambda: None, resume=True),
        ):
            with pytest.raises(DestinationExistsError) as told:
                act()
            assert f"whole in {aside}" in str(told.value)
            assert snapshot(aside) == old
            assert snapshot(path) == here
        path.rename(path.parent / "elsewhere")
        commit(path)
        np.testing.assert_array_equal(dataset_from_zarr(path).data, VOXELS)
        assert sorted(os.listdir(path.parent)) == ["elsewhere", "scan.zarr"]

    def test_giving_up_between_the_renames_puts_the_old_dataset_back(
        self, path: Path, snapshot: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = snapshot(path)
        self.die_between_the_renames(path, monkeypatch)
        assert abort_write(Destination(str(path))).was_staged
        assert snapshot(path) == old
        assert os.listdir(path.parent) == ["scan.zarr"]

    def test_the_status_is_told_of_what_is_there_when_only_its_rests_are_left(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            # The process dies as soon as the new dataset is in its place.
            patch.setattr(Destination, "discard_committed_staging", lambda self: None)
            self.replace(path, lambda: None)
        assert (path.parent / staged(path)).is_dir()
        assert write_status(Destination(str(path))).is_committed
