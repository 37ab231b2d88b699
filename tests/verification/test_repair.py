"""What is damaged is written again from what it was made of, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from zarr.codecs import BytesCodec

from ctlab_dask_zarr import (
    Dataset,
    IncompleteDatasetError,
    InvalidArgumentError,
    StagingExistsError,
    Stop,
    WriteFailedError,
    WriteStoppedError,
    abort,
    add_levels,
    commit,
    dataset_to_zarr,
    labels_to_zarr,
    repair,
    seal,
    verify,
)
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels, run_here
from tests.verification.test_sealing import WRITERS, all_of, cut, files_of, flip, ours

VOXELS = random_voxels((24, 32, 40))
LAYOUT: dict[str, Any] = {"chunks": (4, 8, 8), "shards": (8, 16, 16)}


@pytest.fixture(autouse=True)
def _serial() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def source() -> Dataset:
    return make_dataset(VOXELS, (5, 32, 40))


@pytest.fixture
def store(tmp_path: Path, source: Dataset) -> Path:
    """Three levels, and labels with as many."""
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(source, path, levels=3, **LAYOUT)
    labels_to_zarr((VOXELS // 30).astype("u1"), path, "ph", **LAYOUT)
    return path


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def test_all_kinds_of_damage_on_all_levels_are_undone_to_the_bit(
    store: Path, source: Dataset
) -> None:
    before = files_of(store)
    times = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    level_0 = sorted((store / "0").glob("c*"))
    flip(level_0[0])
    cut(level_0[3])
    os.remove(level_0[5])
    swap(level_0[7], level_0[9])
    level_0[11].write_bytes(b"")
    flip(sorted((store / "1").glob("c*"))[0])
    os.remove(sorted((store / "2").glob("c*"))[0])
    flip(sorted((store / "labels/ph/1").glob("c*"))[1])
    named = {problem.location for problem in verify(store)}
    result = repair(store, source)
    assert set(result.repaired) == named
    assert len(named) == 9
    assert result.problems == ()
    assert files_of(store) == before
    assert verify(store, source) == []
    # No other file was written.
    assert {
        str(path.relative_to(store))
        for path, time in times.items()
        if path.stat().st_mtime_ns != time
    } == named
    assert [path.name for path in store.parent.iterdir()] == ["scan.zarr"]
    assert repair(store, source).repaired == ()


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (8, 8, 8), "shards": None},
        {**LAYOUT, "ome_zarr_version": None},
        {**LAYOUT, "create_array_kwargs": {"compressors": None}},
        {**LAYOUT, "create_array_kwargs": {"serializer": BytesCodec(endian="big")}},
    ],
)
@pytest.mark.parametrize(
    "blocks",
    [(5, 32, 40), *(pytest.param(shape, marks=pytest.mark.slow) for shape in (8, (24, 3, 40)))],
)
def test_every_layout_is_repaired_from_blocks_of_every_shape(
    how: dict[str, Any], blocks: Any, tmp_path: Path
) -> None:
    source = make_dataset(VOXELS, blocks)
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(source, path, **how)
    before = files_of(path)
    shards = sorted(p for p in path.rglob("c*") if p.is_file() and p.suffix != ".json")
    flip(shards[0])
    os.remove(shards[-1])
    assert len(repair(path, source).repaired) == 2
    assert files_of(path) == before


def test_another_source_overwrites_nothing_and_is_named(store: Path, source: Dataset) -> None:
    shards = sorted((store / "0").glob("c*"))
    flip(shards[2])
    flip(store / "1/c.0.0.1")
    damaged = files_of(store)
    voxels = VOXELS.copy()
    voxels[:8, :16, 32:] += 1
    voxels[20, 20, 20] += 1
    result = repair(store, make_dataset(voxels, 8))
    assert result.repaired == ()
    texts = {problem.location: problem.message for problem in result.problems}
    assert set(texts) == {f"0/{shards[2].name}", "1/c.0.0.1"}
    assert (
        "the source is another one: it also differs from 0/c.2.1.1" in texts[f"0/{shards[2].name}"]
    )
    assert "is damaged" in texts["1/c.0.0.1"]
    assert files_of(store) == damaged
    # Where it is the same, what comes out as the committed bytes is certain.
    flip(shards[0])
    assert repair(store, make_dataset(voxels, 8)).repaired == ("0/c.0.0.0",)
    for wrong, text in (
        (make_dataset(VOXELS[:20], 8), "the source has the shape"),
        (make_dataset(VOXELS.astype("u1"), 8), "the voxels of the source are uint8"),
        (None, "none was given"),
    ):
        result = repair(store, wrong)
        assert result.repaired == ()
        assert text in result.problems[0].message
    assert len(repair(store, source).repaired) == 2
    assert verify(store, source) == []


def test_what_cannot_be_repaired_is_named_and_the_rest_is_repaired(
    store: Path, source: Dataset
) -> None:
    flip(next(iter((store / "labels/ph/0").glob("c*"))))
    flip(sorted((store / "1").glob("c*"))[1])
    (store / "notes.txt").write_text("mine")
    result = repair(store)
    assert result.repaired == ("1/c.0.0.1",)
    texts = [problem.message for problem in result.problems]
    assert any("these are labels: repair" in text for text in texts)
    assert any("notes.txt is not part of the dataset" in text for text in texts)
    labels = make_dataset((VOXELS // 30).astype("u1"), 8, datatype=None)
    assert len(repair(store / "labels/ph", labels).repaired) == 1
    os.remove(store / "notes.txt")
    assert verify(store) == []
    # Without its receipts nobody knows what an object was.
    receipts = store / "0/receipts.json"
    whole = receipts.read_bytes()
    flip(receipts)
    cut(next(iter((store / "0").glob("c*"))))
    result = repair(store, source)
    assert result.repaired == ()
    assert any("the receipts of 0 are damaged" in problem.message for problem in result.problems)
    receipts.write_bytes(whole)
    assert len(repair(store, source).repaired) == 1
    assert verify(store, source) == []


@pytest.mark.parametrize(
    "writer",
    [
        "zarr",
        *(
            pytest.param(writer, marks=pytest.mark.slow)
            for writer in (
                "zarr, no shards",
                "zarr, chunks left out",
                "tensorstore, index first",
                "ngff-zarr",
            )
        ),
    ],
)
@pytest.mark.parametrize("sealed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stores_of_others_are_repaired_if_the_rest_is_equal_and_receipts_follow(
    writer: str, sealed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    WRITERS[writer](path)
    if not sealed and writer == "zarr, chunks left out":
        return
    voxels = all_of(path)
    source = make_dataset(voxels[0], 8, datatype=None)
    if sealed:
        seal(path)
    objects = sorted(p for p in path.rglob("c/**/*") if p.is_file())
    finest = [p for p in objects if "0" in p.relative_to(path).parts[0]]
    flip(finest[0])
    cut(finest[-1])
    named = {p.location for p in verify(path) if p.kind != "ome"}
    other = make_dataset(voxels[0] + 1, 8, datatype=None)
    assert repair(path, other).repaired == ()
    result = repair(path, source)
    assert set(result.repaired) == named
    assert ours(verify(path)) == []
    assert (verify(path).scope[:10] == "every byte") == sealed
    for found, wanted in zip(all_of(path), voxels, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_coarser_level_of_another_program_is_made_as_that_one_did_or_not_at_all(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    WRITERS["zarr"](path)
    seal(path)
    voxels = all_of(path)
    damaged = path / "s1/c/0/0/1"
    flip(damaged)
    # It took every second voxel.
    assert repair(path).repaired == ("s1/c/0/0/1",)
    assert ours(verify(path)) == []
    for found, wanted in zip(all_of(path), voxels, strict=True):
        np.testing.assert_array_equal(found, wanted)
    import zarr

    zarr.open_array(path / "s1", mode="r+")[...] = 7
    shutil.rmtree(path / "s1/receipts.json", ignore_errors=True)
    os.remove(path / "s1/receipts.json")
    flip(damaged)
    before = files_of(path)
    result = repair(path)
    assert result.repaired == ()
    assert files_of(path) == before


def test_levels_that_were_added_to_a_store_of_others_are_repaired(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(VOXELS, 8), path, **LAYOUT)
    add_levels(path, 2, downsample="max")
    voxels = all_of(path)
    os.remove(path / "1/c.0.0.0")
    flip(path / "1/c.2.0.1")
    assert repair(path).repaired == ("1/c.0.0.0", "1/c.2.0.1")
    # Inner chunks may lie in another order: the receipts follow.
    assert verify(path) == []
    for found, wanted in zip(all_of(path), voxels, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_killed_at_any_step_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.zarr", tmp_path / "scan.zarr"
    WRITERS["zarr"](whole)
    seal(whole)
    voxels = all_of(whole)
    source = make_dataset(voxels[0], 8, datatype=None)
    flip(whole / "s0/c/0/0/0")
    os.remove(whole / "s0/c/1/1/1")
    flip(whole / "s1/c/0/0/0")
    rename, left = LocalFiles.rename, [0]

    def dying(self: Any, *places: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        rename(self, *places)

    n_steps = 0
    while True:
        shutil.copytree(whole, path)
        left[0] = n_steps
        is_done = True
        with monkeypatch.context() as patched:
            patched.setattr(LocalFiles, "rename", dying)
            try:
                repair(path, source)
            except KeyboardInterrupt:
                is_done = False
        # What was intact reads as it did, whatever happened.
        intact = next(iter(path.glob("s0/c/1/0/0")))
        assert intact.read_bytes() == (whole / "s0/c/1/0/0").read_bytes()
        repair(path, source)
        assert [text for text in ours(verify(path)) if ".zarr.json." not in text] == []
        for found, wanted in zip(all_of(path), voxels, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".scan.zarr.staging")]
        shutil.rmtree(path)
        if is_done:
            break
        n_steps += 3
    assert n_steps > 8


def test_workers_repair_and_a_failed_source_is_gone_on_with(
    store: Path, source: Dataset, cluster: Client, tmp_path: Path
) -> None:
    before = files_of(store)
    shards = sorted((store / "0").glob("c*"))
    for shard in shards[::3]:
        flip(shard)
    flip(sorted((store / "1").glob("c*"))[0])
    damaged = files_of(store)
    stop = Stop()
    stop.ask("SIGTERM")
    with pytest.raises(WriteStoppedError, match="is as it was"):
        repair(store, source, client=cluster, stop=stop)
    assert files_of(store) == damaged
    bad = da.from_array(VOXELS, chunks=(5, 32, 40), name="scan").map_blocks(_fails, dtype="u2")
    fire = make_dataset(bad, identity="scan")
    with pytest.raises(OSError, match="on fire"):
        repair(store, fire, client=cluster)
    assert files_of(store) == damaged
    # The folder knows from what it was being repaired.
    with pytest.raises(StagingExistsError, match="cannot resume"):
        repair(store, source, client=cluster)
    with pytest.raises(IncompleteDatasetError, match="holds a repair"):
        commit(store)
    with pytest.raises(InvalidArgumentError, match="repaired"):
        seal(store)
    same = make_dataset(da.from_array(VOXELS, chunks=(5, 32, 40)), identity="scan")
    assert repair(store, same, client=cluster).problems == ()
    assert files_of(store) == before
    assert not abort(store).was_staged


def _fails(block: np.ndarray) -> np.ndarray:
    if block.size and block[0, 0, 0] == VOXELS[20, 0, 0]:
        raise OSError("the disk of the source is on fire")
    return block


def test_what_changes_a_document_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.zarr"
    WRITERS["zarr"](path)
    seal(path)
    source = make_dataset(all_of(path)[0], 8, datatype=None)
    cut(path / "s0/c/0/0/0")
    rename = LocalFiles.rename
    root = path / "zarr.json"

    def changing(self: Any, *places: str) -> None:
        if places[1].endswith("receipts.json"):
            document = json.loads(root.read_text())
            document["attributes"]["mine"] = [2]
            root.write_text(json.dumps(document))
        rename(self, *places)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "rename", changing)
        with pytest.raises(WriteFailedError, match="was changed by something else"):
            repair(path, source)
    assert json.loads(root.read_text())["attributes"]["mine"] == [2]


def test_the_command_names_what_it_repaired(store: Path, tmp_path: Path, cluster: Client) -> None:
    where = ("-q", "--scheduler", cluster.scheduler.address)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    flip(sorted((store / "0").glob("c*"))[1])
    flip(next(iter((store / "labels/ph/0").glob("c*"))))
    done = run_here("repair", store, "--source", copy, *where)
    assert done.returncode == 3, done.stderr
    assert "repaired: 0/c.0.0.1" in done.stdout
    assert "these are labels" in done.stdout
    labels = ("--source", copy / "labels/ph", *where, "--json")
    done = run_here("repair", store / "labels/ph", *labels)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    done = run_here("repair", store, *where)
    assert "nothing to repair" in done.stdout
    assert run_here("repair", store, "--source", store, *where).returncode in (0, 2)
