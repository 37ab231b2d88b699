"""A prepared write is run: its progress is told, it can be stopped, and it goes on."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, WriteStoppedError
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.execution.progress import Progress
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.prepared import PreparedWrite
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset

VOXELS = np.arange(32**3, dtype="u2").reshape(32, 32, 32)
OPTIONS = WriteOptions(chunks=(8, 8, 8), shards=(16, 16, 16))


def prepared_at(path: Path, **how: bool) -> PreparedWrite:
    return prepare_write(make_dataset(VOXELS, (16, 16, 16)), path, OPTIONS, **how)


def test_progress_begins_with_nothing_and_ends_with_all_of_it(tmp_path: Path) -> None:
    told: list[Progress] = []
    result = run(prepared_at(tmp_path / "scan.zarr"), progress=told.append)
    assert told[0][:3] == (8, VOXELS.nbytes, 0)
    assert told[-1][:3] == (8, VOXELS.nbytes, VOXELS.nbytes)
    assert [report.nbytes_done for report in told] == sorted(report.nbytes_done for report in told)
    assert result.n_objects == 8


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_a_write_without_a_cluster_is_stopped_between_two_shards_and_goes_on(
    scheduler: str, tmp_path: Path
) -> None:
    stop = Stop()

    def stop_soon(progress: Progress) -> None:
        if progress.nbytes_done:
            stop.ask("that is enough")

    path = tmp_path / "scan.zarr"
    with (
        dask.config.set(scheduler=scheduler, num_workers=1),
        pytest.raises(WriteStoppedError, match=r"that is enough.*about \d of 8.*resume=True"),
    ):
        run(prepared_at(path), progress=stop_soon, stop=stop)
    prepared = prepared_at(path, resume=True)
    assert 0 < prepared.remaining.n_done < 8
    run(prepared)
    np.testing.assert_array_equal(Dataset.from_path(path).data.compute(), VOXELS)


def test_nothing_is_begun_after_a_stop_was_asked_for(tmp_path: Path) -> None:
    stop = Stop()
    stop.ask("not now")
    with pytest.raises(WriteStoppedError, match="not now"):
        run(prepared_at(tmp_path / "scan.zarr"), stop=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_a_part_tells_of_its_own_shards(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, (16, 16, 16))
    parts = [run(prepare_write(dataset, tmp_path / "scan", OPTIONS, part=(n, 2))) for n in (1, 2)]
    shards = [path for path in tmp_path.glob(".*.staging/store-*/0/c*") if path.is_file()]
    assert [part.n_objects for part in parts] == [4, 4]
    assert sum(part.nbytes for part in parts) == sum(path.stat().st_size for path in shards)
    assert not (tmp_path / "scan.zarr").exists()
