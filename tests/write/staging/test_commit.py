from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import (
    DestinationExistsError,
    IncompleteDatasetError,
    StagingExistsError,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
)
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.shards.array import LazyBlock
from ctlab_dask_zarr.write.staging.commit import commit
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite
from tests.builders import make_dataset, random_voxels
from tests.reliability.faults import dying_at_rename

VOXELS = random_voxels((32, 32, 32))
LAYOUT = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
COORDS = [(z, y, x) for z in range(2) for y in range(2) for x in range(2)]


def request_for(path: Path, run_id: str = "a" * 32, **flags: bool) -> StageRequest:
    options = WriteOptions(overwrite=flags.pop("overwrite", False), **LAYOUT)
    write = prepare_write(make_dataset(VOXELS, (16, 16, 16)), path, options, restart=True)
    return replace(StageRequest.of(write.plan, **flags), run_id=run_id)


def write_all(staged: StagedWrite, coords: list[tuple[int, int, int]] = COORDS) -> list:
    receipts = []
    for z, y, x in coords:
        start = (16 * z, 16 * y, 16 * x)
        block = VOXELS[tuple(slice(s, s + 16) for s in start)]
        receipts += staged.write(0, [(z, y, x)], [LazyBlock(start, block.shape, lambda b=block: b)])
    staged.record(receipts)
    return receipts


def written(path: Path) -> np.ndarray:
    return dataset_from_zarr(path).data.compute()


def failing(n_blocks: int = 4) -> da.Array:
    """An array whose blocks cannot be read any more after the first few."""
    calls = itertools.count()

    def load(block: np.ndarray) -> np.ndarray:
        if next(calls) >= n_blocks:
            raise OSError("the disk is on fire")
        return block

    data = da.from_array(VOXELS, chunks=(16, 16, 16))
    return data.map_blocks(load, dtype="u2", meta=VOXELS[:0])


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    staged = stage(request_for(tmp_path / "a.zarr"))
    write_all(staged)
    assert os.listdir(tmp_path) == [".a.zarr.staging"]
    assert not list(tmp_path.rglob("zarr.json"))
    commit(staged)
    assert os.listdir(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)


def test_commit_refuses_when_a_shard_is_missing(tmp_path: Path) -> None:
    staged = stage(request_for(tmp_path / "a.zarr"))
    write_all(staged, COORDS[:-1])
    with pytest.raises(IncompleteDatasetError, match=r"0/c\.1\.1\.1"):
        commit(staged)
    assert not (tmp_path / "a.zarr").exists()


def test_documents_are_put_from_leaf_to_root(tmp_path: Path) -> None:
    assert [d.key for d in request_for(tmp_path / "a").documents] == ["0/zarr.json", "zarr.json"]


def test_a_cluster_may_run_every_task_twice(tmp_path: Path) -> None:
    request = request_for(tmp_path / "a.zarr")
    staged = stage(request)
    assert stage(request) == staged
    receipts = write_all(staged)
    assert write_all(staged) == receipts
    commit(staged)
    again = stage(request)
    assert again.is_committed
    assert write_all(again) == []
    commit(again)
    commit(staged)
    assert os.listdir(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)


def test_a_task_that_comes_late_fails_and_brings_nothing_back(tmp_path: Path) -> None:
    staged = stage(request_for(tmp_path / "a.zarr"))
    write_all(staged)
    commit(staged)
    with pytest.raises(FileNotFoundError):
        write_all(staged, COORDS[:1])
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_a_task_of_a_write_that_was_restarted_otherwise_does_no_harm(tmp_path: Path) -> None:
    late = stage(request_for(tmp_path / "a.zarr"))
    other = {"chunks": (4, 4, 4), "shards": (16, 16, 16)}
    write = prepare_write(
        make_dataset(VOXELS, 16), tmp_path / "a.zarr", WriteOptions(**other), restart=True
    )
    staged = stage(StageRequest.of(write.plan, restart=True))
    with pytest.raises(FileNotFoundError):
        write_all(late, COORDS[:1])
    write_all(staged)
    with pytest.raises(FileNotFoundError):
        write_all(late, COORDS[:1])
    commit(staged)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)


def test_a_folder_that_only_a_late_task_needs_is_not_made_anew(tmp_path: Path) -> None:
    staged = stage(request_for(tmp_path / "a.zarr"))
    shutil.rmtree(tmp_path / ".a.zarr.staging")
    with pytest.raises(FileNotFoundError):
        write_all(staged, COORDS[:1])
    assert os.listdir(tmp_path) == []


def test_a_computed_write_may_be_computed_again(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, (16, 16, 16))
    write = dataset_to_zarr(dataset, tmp_path / "a", compute=False, **LAYOUT)
    write.compute()
    before = (tmp_path / "a.zarr" / "zarr.json").stat()
    write.compute()
    assert (tmp_path / "a.zarr" / "zarr.json").stat() == before


def test_a_failed_write_keeps_its_shards_and_says_what_to_do(tmp_path: Path) -> None:
    with (
        # With threads, the shards that are under way are still being written at this moment.
        dask.config.set(scheduler="sync"),
        pytest.raises(WriteFailedError, match=r"on fire.*resume=True") as failure,
    ):
        dataset_to_zarr(make_dataset(failing()), tmp_path / "a", **LAYOUT)
    assert ".a.zarr.staging" in str(failure.value)
    assert os.listdir(tmp_path) == [".a.zarr.staging"]
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(StagingExistsError, match="restart=True"):
        dataset_to_zarr(make_dataset(VOXELS, 16), tmp_path / "a", **LAYOUT)


def test_a_resumed_write_writes_no_shard_twice(tmp_path: Path) -> None:
    store = {"source": VOXELS}
    dataset = make_dataset(failing(), source=Identity())
    with dask.config.set(scheduler="sync"), pytest.raises(WriteFailedError):
        dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    shards = {p.name: p.stat() for p in tmp_path.rglob("c.*")}
    assert 0 < len(shards) < len(COORDS)
    whole = make_dataset(store["source"], (16, 16, 16), source=Identity())
    dataset_to_zarr(whole, tmp_path / "a", resume=True, **LAYOUT)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)
    for name, before in shards.items():
        after = (tmp_path / "a.zarr" / "0" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


class Identity:
    """A source that says that it is the same one."""

    def identity(self) -> dict[str, str]:
        return {"kind": "test"}

    def facts(self) -> dict[str, str]:
        return {}


def test_a_half_made_shard_is_made_again_when_resuming(tmp_path: Path) -> None:
    dataset = make_dataset(failing(), source=Identity())
    with dask.config.set(scheduler="sync"), pytest.raises(WriteFailedError):
        dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    shard = next(tmp_path.rglob("c.*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    whole = make_dataset(VOXELS, (16, 16, 16), source=Identity())
    dataset_to_zarr(whole, tmp_path / "a", resume=True, **LAYOUT)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shards": (32, 16, 16)}, "begun with shards=(16, 16, 16), and"),
        (
            {"create_array_kwargs": {"compressors": None}},
            "begun with codec='zstd', and this is with codec='none'",
        ),
        ({"create_array_kwargs": {"fill_value": 3}}, "fill_value"),
        ({"datatype": "proju16"}, "datatype"),
    ],
)
def test_other_settings_cannot_be_resumed_and_are_named(
    tmp_path: Path, change: dict, named: str
) -> None:
    dataset = make_dataset(failing(), source=Identity())
    with pytest.raises(WriteFailedError):
        dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    whole = make_dataset(VOXELS, (16, 16, 16), source=Identity())
    with pytest.raises(StagingExistsError, match="cannot resume") as error:
        dataset_to_zarr(whole, tmp_path / "a", resume=True, **(LAYOUT | change))
    assert named in str(error.value) or "fill_value" in str(error.value)


def test_restart_throws_the_old_staging_away(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError):
        dataset_to_zarr(make_dataset(failing()), tmp_path / "a", **LAYOUT)
    other = {"chunks": (4, 4, 4), "shards": (32, 32, 32)}
    dataset_to_zarr(make_dataset(VOXELS, 16), tmp_path / "a", restart=True, **other)
    assert os.listdir(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS)


def test_of_two_writers_one_wins_whole_and_the_other_fails_clearly(tmp_path: Path) -> None:
    outcomes: list[object] = []

    def write(value: int) -> None:
        data = da.full((32, 32, 32), value, chunks=16, dtype="u2")
        with dask.config.set(scheduler="sync"):
            try:
                dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
                outcomes.append(value)
            except (StagingExistsError, DestinationExistsError) as error:
                outcomes.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert (written(tmp_path / "a.zarr") == winner).all()
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_what_is_left_of_a_committed_write_that_another_run_had_gone_on_with_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    staged = stage(request_for(tmp_path / "a.zarr"))
    write_all(staged)
    stage(request_for(tmp_path / "a.zarr", "b" * 32, resume=True))
    staging = str(tmp_path / ".a.zarr.staging")
    with dying_at_rename(lambda source, _: source == staging):
        commit(staged)
    assert (tmp_path / ".a.zarr.staging").exists()
    dataset_to_zarr(make_dataset(VOXELS + 1, 16), tmp_path / "a", overwrite=True, **LAYOUT)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), VOXELS + 1)
    assert os.listdir(tmp_path) == ["a.zarr"]


class TestReplacing:
    OLD = np.full((8, 8, 8), 9, "u2")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        dataset_to_zarr(make_dataset(self.OLD), tmp_path / "a.zarr")
        return tmp_path / "a.zarr"

    def test_the_old_dataset_reads_until_the_commit(self, store: Path) -> None:
        staged = stage(request_for(store, overwrite=True))
        write_all(staged)
        np.testing.assert_array_equal(written(store), self.OLD)
        commit(staged)
        np.testing.assert_array_equal(written(store), VOXELS)
        assert os.listdir(store.parent) == ["a.zarr"]

    def test_a_failure_leaves_the_old_dataset(self, store: Path) -> None:
        with pytest.raises(WriteFailedError):
            dataset_to_zarr(make_dataset(failing()), store, overwrite=True, **LAYOUT)
        np.testing.assert_array_equal(written(store), self.OLD)

    @pytest.mark.parametrize("new_is_there", [False, True])
    def test_death_between_the_two_renames_is_repaired(
        self, store: Path, new_is_there: bool
    ) -> None:
        staged = stage(request_for(store, overwrite=True))
        write_all(staged)
        next_writer = replace(request_for(store, "b" * 32, overwrite=True), overwrite=False)

        def is_next(source: str, target: str) -> bool:
            return ".a.zarr.replaced." in source if new_is_there else target == str(store)

        with dying_at_rename(is_next):
            commit(staged)
        assert list(store.parent.glob(".a.zarr.replaced.*"))
        # Whoever writes there next repairs it, and is then refused or not by what is there.
        with pytest.raises(DestinationExistsError):
            stage(next_writer)
        np.testing.assert_array_equal(written(store), VOXELS)
        assert os.listdir(store.parent) == ["a.zarr"]

    def test_an_old_dataset_aside_without_a_new_one_comes_back(self, store: Path) -> None:
        os.rename(store, store.parent / ".a.zarr.replaced.0123456789abcdef")
        with pytest.raises(DestinationExistsError):
            stage(request_for(store, "b" * 32))
        np.testing.assert_array_equal(written(store), self.OLD)

    @pytest.mark.parametrize("way", ["itself", "dots", "link"])
    def test_the_output_may_be_the_dataset_that_is_read(self, store: Path, way: str) -> None:
        path = {
            "itself": store,
            "dots": store.parent / "x" / ".." / "a.zarr",
            "link": store.parent / "link.zarr",
        }[way]
        (store.parent / "link.zarr").symlink_to(store)
        (store.parent / "x").mkdir()
        dataset = dataset_from_zarr(store)
        with pytest.raises(DestinationExistsError):
            dataset_to_zarr(dataset, path, **LAYOUT)
        dataset_to_zarr(dataset, path, overwrite=True, **LAYOUT)
        np.testing.assert_array_equal(written(store), self.OLD)
        assert (store.parent / "link.zarr").is_symlink()


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _make(kind: str, path: Path) -> None:
    if kind == "a file":
        path.write_text("data")
    elif kind == "an empty folder":
        path.mkdir()
    elif kind == "an ordinary folder":
        path.mkdir()
        (path / "thesis.txt").write_text("data")
    elif kind == "a Zarr v2 store":
        path.mkdir()
        (path / ".zgroup").write_text('{"zarr_format": 2}')
    elif kind == "a store of another kind":
        path.mkdir()
        (path / "zarr.json").write_text(
            '{"zarr_format": 3, "node_type": "group", "attributes": {"mine": 1}}'
        )
    elif kind == "a store with a stranger in it":
        dataset_to_zarr(make_dataset(VOXELS), path)
        (path / "notes.txt").write_text("data")
    elif kind == "a dangling link":
        path.symlink_to(path.parent / "nowhere.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "a file",
        "an empty folder",
        "an ordinary folder",
        "a Zarr v2 store",
        "a store of another kind",
        "a store with a stranger in it",
        "a dangling link",
    ],
)
def test_what_is_no_dataset_of_this_kind_is_refused_and_untouched(
    kind: str, overwrite: bool, tmp_path: Path, snapshot
) -> None:
    _make(kind, tmp_path / "a.zarr")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"a\.zarr"):
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_the_root_says_who_wrote_it_and_how_much(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS, 16), tmp_path / "a", **LAYOUT)
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    receipt = document["attributes"]["ctlab_dask_zarr"]
    shards = list((tmp_path / "a.zarr" / "0").glob("c.*"))
    assert receipt["n_objects"] == len(shards) == 8
    assert receipt["nbytes"] == sum(shard.stat().st_size for shard in shards)
