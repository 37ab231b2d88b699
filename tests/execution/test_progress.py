"""What the tasks of a run report while they work."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ctlab_dask_zarr import Progress, dataset_to_zarr
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((32, 32, 32))


def test_progress_moves_inside_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctlab_dask_zarr.execution.progress._REPORT_INTERVAL_S", 0.0)
    told: list[Progress] = []
    dataset_to_zarr(
        make_dataset(VOXELS, (8, 32, 32)), tmp_path / "a.zarr", chunks=8, shards=VOXELS.shape,
        progress=told.append,
    )  # fmt: skip
    (nbytes,) = {one.nbytes for one in told}
    assert {nbytes // 4, nbytes // 2} <= {one.nbytes_done for one in told}


def test_a_write_goes_on_while_another_thread_loads_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module is known from when its loading begins; its functions come later.
    monkeypatch.setitem(sys.modules, "begun", ModuleType("begun"))
    monkeypatch.setattr("ctlab_dask_zarr.execution.progress._COMPILER", "begun")
    told: list[Progress] = []
    dataset_to_zarr(make_dataset(VOXELS, (32,) * 3), tmp_path / "a.zarr", progress=told.append)
    assert told[-1].nbytes_done == VOXELS.nbytes
