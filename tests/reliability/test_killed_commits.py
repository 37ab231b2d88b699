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

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    WriteFailedError,
    add_levels,
    dataset_to_zarr,
    verify,
)
from tests.builders import make_dataset, random_voxels
from tests.reliability import killed_write
from tests.reliability.faults import replaced_of

NEW = random_voxels((8, 16, 16))
OLD = NEW + 1000
LAYOUT: dict[str, Any] = {"chunks": (4, 8, 8), "shards": (8, 8, 16)}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.reliability.killed_write"])


class Scenario(NamedTuple):
    """What is there before, what is done, and what readers may see until it is all there."""

    before: Callable[[Path], None]
    act: Callable[..., Any]
    allowed: tuple[str, ...]


def _write(path: Path, **flags: bool) -> None:
    dataset = make_dataset(NEW, 8, dataset_id="20200202_000000_tomo")
    dataset_to_zarr(dataset, path, levels=2, **LAYOUT, **flags)


SCENARIOS = {
    "write": Scenario(lambda path: None, _write, ("none",)),
    "overwrite": Scenario(
        lambda path: dataset_to_zarr(make_dataset(OLD, 8), path, **LAYOUT),
        lambda path, **flags: _write(path, overwrite=True, **flags),
        ("old", "old, aside"),
    ),
    "levels": Scenario(
        lambda path: dataset_to_zarr(make_dataset(NEW, 8), path, **LAYOUT),
        lambda path, **flags: add_levels(path, 2, **flags),
        ("one level",),
    ),
}


def seen(path: Path) -> str:
    """What a reader sees; the old dataset may be aside for a moment. Anything else fails."""
    if not path.exists():
        if not list(path.parent.glob(".*.replaced.*")):
            return "none"
        assert seen(replaced_of(path)) == "old"
        return "old, aside"
    dataset = Dataset.from_path(path)
    voxels = dataset.data.compute()
    if (voxels == OLD).all():
        return "old"
    np.testing.assert_array_equal(voxels, NEW)
    return "new" if len(dataset.levels) == 2 else "one level"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_any_effect_of_its_commit_the_old_or_the_new_is_there_and_it_is_gone_on_with(
    name: str, tmp_path: Path
) -> None:
    before, act, allowed = SCENARIOS[name]
    path = tmp_path / "data" / "scan.zarr"
    path.parent.mkdir()
    before(path)
    with (
        patch("ctlab_dask_zarr.write.graph.commit", side_effect=OSError("not yet")),
        pytest.raises(WriteFailedError, match="not yet"),
    ):
        act(path)
    staged = path.parent.rename(tmp_path / "staged")
    states = []
    while True:
        shutil.copytree(staged, path.parent)
        process = _processes.Process(
            target=killed_write.commit_and_die, args=(str(path), len(states))
        )
        process.start()
        process.join(60)
        state = seen(path)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert state in (*allowed, "new")
        if name == "levels" and (path / "1").exists() and state != "new":
            with pytest.raises(DestinationExistsError, match="--resume"):
                add_levels(path, 2, restart=True)
        act(path, resume=True)
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
