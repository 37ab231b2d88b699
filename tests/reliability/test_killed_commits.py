"""Commits of real processes that are killed before every single effect, one after the other."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from dask.delayed import Delayed

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    WriteFailedError,
    add_levels,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.api.add import prepare_pyramid
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels, write_without_commit
from tests.reliability import killed_write
from tests.reliability.faults import replaced_of

NEW = random_voxels((8, 16, 16))
OLD = NEW + 1000
LAYOUT: dict[str, Any] = {"chunks": (4, 8, 8), "shards": (8, 8, 16)}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.reliability.killed_write"])


class Scenario(NamedTuple):
    """What is there before, what is begun, how it is gone on with, and what readers may see."""

    before: Callable[[Path], None]
    begin: Callable[[Path], Delayed]
    go_on: Callable[[Path], Any]
    allowed: tuple[str, ...]


def _write(path: Path, **flags: Any) -> Any:
    dataset = make_dataset(NEW, 8, dataset_id="20200202_000000_tomo")
    return dataset_to_zarr(dataset, path, levels=2, **LAYOUT, **flags)


def _with_labels(path: Path) -> None:
    dataset_to_zarr(make_dataset(OLD, 8), path, **LAYOUT)
    labels_to_zarr((OLD % 3).astype("uint8"), path, "phases", **LAYOUT)


def levels_of(path: Path, n_levels: int) -> Delayed:
    """The graph of further levels of an image without labels."""
    (prepared,) = prepare_pyramid(path, n_levels, None, resume=False, restart=False)
    return prepared.graph


SCENARIOS = {
    "write": Scenario(
        lambda path: None,
        lambda path: _write(path, compute=False),
        lambda path: _write(path, resume=True),
        ("none",),
    ),
    "overwrite": Scenario(
        lambda path: dataset_to_zarr(make_dataset(OLD, 8), path, **LAYOUT),
        lambda path: _write(path, overwrite=True, compute=False),
        lambda path: _write(path, overwrite=True, resume=True),
        ("old", "old, aside"),
    ),
    "drop labels": Scenario(
        lambda path: _with_labels(path),
        lambda path: _write(path, overwrite="drop_labels", compute=False),
        lambda path: _write(path, overwrite="drop_labels", resume=True),
        ("labels", "labels, aside"),
    ),
    "levels": Scenario(
        lambda path: dataset_to_zarr(make_dataset(NEW, 8), path, **LAYOUT),
        lambda path: levels_of(path, 2),
        lambda path: add_levels(path, 2, resume=True),
        ("one level",),
    ),
}


def seen(path: Path) -> str:
    """What a reader sees; the old dataset may be aside for a moment. Anything else fails."""
    if not path.exists():
        if not list(path.parent.glob(".*.replaced.*")):
            return "none"
        state = seen(replaced_of(path))
        assert state in ("old", "labels")
        return f"{state}, aside"
    dataset = Dataset.from_path(path)
    voxels = dataset.data.compute()
    if (voxels == OLD).all():
        if not (path / "labels").exists():
            return "old"
        assert verify(path) == []
        return "labels"
    assert not (path / "labels").exists()
    np.testing.assert_array_equal(voxels, NEW)
    return "new" if len(dataset.levels) == 2 else "one level"


def killed_before(act: Callable[[str, int], None], path: Path, number: int) -> bool:
    """Do something in a process that dies before the effect with a number; whether it was done."""
    process = _processes.Process(target=act, args=(str(path), number))
    process.start()
    process.join(240)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "drop labels" else name
        for name in SCENARIOS
    ],
)
def test_killed_before_any_effect_of_its_commit_the_old_or_the_new_is_there_and_it_is_gone_on_with(
    name: str, tmp_path: Path
) -> None:
    before, begin, go_on, allowed = SCENARIOS[name]
    path = tmp_path / "data" / "scan.zarr"
    path.parent.mkdir()
    before(path)
    write_without_commit(begin(path))
    staged = path.parent.rename(tmp_path / "staged")
    states = []
    while True:
        shutil.copytree(staged, path.parent)
        is_done = killed_before(killed_write.commit_and_die, path, len(states))
        state = seen(path)
        if is_done:
            break
        assert state in (*allowed, "new")
        if name == "levels" and (path / "1").exists() and state != "new":
            with pytest.raises(DestinationExistsError, match="resume=True"):
                add_levels(path, 2, restart=True)
        go_on(path)
        assert seen(path) == "new"
        assert verify(path) == []
        left = [entry for entry in os.listdir(path.parent) if entry != "scan.zarr"]
        # Levels that are all there are not gone on with: the next write tidies.
        is_left = (name, state) == ("levels", "new")
        assert not [e for e in left if not (is_left and e.startswith(".scan.zarr.staging"))]
        states.append(state)
        shutil.rmtree(path.parent)
    assert state == "new"
    assert len(states) > 20
    assert set(states) == {*allowed, "new"}


def abort(path: Path) -> None:
    done = CliRunner().invoke(main, ["abort", str(path)])
    assert done.exit_code == 0, done.output


def test_aborted_after_a_kill_before_any_effect_of_its_commit_no_further_level_is_left(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    path = tmp_path / "data" / "scan.zarr"
    path.parent.mkdir()
    dataset_to_zarr(make_dataset(NEW, 8), path, **LAYOUT)
    before = snapshot(path)
    write_without_commit(levels_of(path, 3))
    staged = path.parent.rename(tmp_path / "staged")
    n_moved = set()
    number = 0
    while True:
        shutil.copytree(staged, path.parent)
        is_done = killed_before(killed_write.commit_and_die, path, number)
        if seen_levels(path) == 3:
            break
        assert not is_done
        n_moved.add(sum((path / level).exists() for level in "12"))
        abort(path)
        assert snapshot(path) == before
        assert os.listdir(path.parent) == ["scan.zarr"]
        number += 1
        shutil.rmtree(path.parent)
    assert n_moved == {0, 1, 2}
    # What is named is not taken away again.
    abort(path)
    assert seen_levels(path) == 3
    assert verify(path) == []
    assert os.listdir(path.parent) == ["scan.zarr"]


def seen_levels(path: Path) -> int:
    dataset = Dataset.from_path(path)
    np.testing.assert_array_equal(dataset.data.compute(), NEW)
    return len(dataset.levels)


@pytest.mark.parametrize("of_labels", [False, True])
def test_an_abort_that_is_killed_before_any_effect_can_be_repeated_or_the_levels_gone_on_with(
    of_labels: bool, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    path = tmp_path / "data" / "scan.zarr"
    path.parent.mkdir()
    dataset_to_zarr(make_dataset(NEW, 8), path, **LAYOUT)
    if of_labels:
        labels_to_zarr((NEW > 0).astype("uint8"), path, "phases", **LAYOUT)
    before = snapshot(path)
    image = path / "labels" / "phases" if of_labels else path
    rename = LocalFiles.rename

    def rename_levels_only(self: LocalFiles, source: str, target: str) -> None:
        if os.path.dirname(target) == str(image) and os.path.basename(target) not in ("1", "2"):
            raise OSError("not yet")
        rename(self, source, target)

    with (
        # Both levels are in their places, and nothing names them yet.
        patch.object(LocalFiles, "rename", rename_levels_only),
        pytest.raises(WriteFailedError, match="not yet"),
    ):
        add_levels(path, 3)
    assert (image / "2").exists()
    moved = path.parent.rename(tmp_path / "moved")
    number = 0
    while True:
        shutil.copytree(moved, path.parent)
        if killed_before(killed_write.abort_and_die, path, number):
            break
        assert seen_levels(path) == 1
        half = shutil.copytree(path.parent, tmp_path / "half")
        abort(path)
        assert snapshot(path) == before
        assert os.listdir(path.parent) == ["scan.zarr"]
        shutil.rmtree(path.parent)
        half.rename(path.parent)
        add_levels(path, 3, resume=True)
        assert seen_levels(path) == 3
        assert verify(path) == []
        shutil.rmtree(path.parent)
        number += 1
    assert snapshot(path) == before
    assert number > 10


def test_an_abort_leaves_what_is_not_of_the_write(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(NEW, 8), path, **LAYOUT)
    write_without_commit(levels_of(path, 2))
    (path / "1").mkdir()
    (path / "1" / "mine").write_text("mine")
    abort(path)
    assert os.listdir(tmp_path) == ["scan.zarr"]
    assert (path / "1" / "mine").read_text() == "mine"
