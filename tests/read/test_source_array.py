"""The dask array of a store: like any other, but that a region of it is read by one call."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.diagnostics import ProgressBar

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((24, 20, 33))


@pytest.fixture
def data(tmp_path: Path) -> da.Array:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", chunks=(4,) * 3, shards=(8,) * 3)
    return dataset_from_zarr(tmp_path / "a.zarr").data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the source."""
    found: list[Any] = []
    read = ZarrSource.__getitem__

    def seen(self: ZarrSource, index: Any) -> Any:
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(ZarrSource, "__getitem__", seen)
    return found


REGIONS = [
    (),
    (5,),
    (-1, slice(None), 7),
    (slice(3, 19), slice(1, -1), slice(20, None)),
    (Ellipsis, 4),
    (slice(2, 20), Ellipsis, slice(5, 6)),
    (np.int64(3), slice(0, 0)),
    (slice(100, 200),),
]


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
@pytest.mark.parametrize("index", REGIONS, ids=str)
def test_a_region_is_read_by_one_call(
    data: da.Array, reads: list[Any], index: Any, scheduler: str
) -> None:
    part = data[index]
    found = part.compute(scheduler=scheduler)
    assert len(reads) == 1
    assert (found.shape, found.dtype) == (part.shape, part.dtype)
    np.testing.assert_array_equal(found, VOXELS[index])


def test_a_slice_of_a_slice_is_a_region_too(data: da.Array, reads: list[Any]) -> None:
    part = data[2:20, 3, 4:30][5:][..., -6:-1][1]
    np.testing.assert_array_equal(part.compute(), VOXELS[2:20, 3, 4:30][5:][..., -6:-1][1])
    np.testing.assert_array_equal(np.asarray(data[3:5]), VOXELS[3:5])
    assert len(reads) == 2


@pytest.mark.parametrize(
    "index",
    [
        (slice(None, None, 2),),
        (slice(None, None, -1),),
        ([1, 5, 7],),
        (VOXELS[:, 0, 0] > 50,),
        (None, slice(2, 3)),
        (np.array([3, 4]), slice(None)),
    ],
    ids=str,
)
def test_other_slices_are_those_of_dask(data: da.Array, index: Any) -> None:
    part = data[index]
    assert type(part) is da.Array
    np.testing.assert_array_equal(part.compute(), VOXELS[index])


def test_what_is_made_of_it_is_as_of_any_dask_array(data: da.Array, reads: list[Any]) -> None:
    assert type(data + 1) is da.Array
    np.testing.assert_array_equal((data + 1)[3:9].compute(), VOXELS[3:9] + 1)
    np.testing.assert_array_equal(data.rechunk(5).compute(), VOXELS)
    np.testing.assert_array_equal(dask.compute(data[4:9])[0], VOXELS[4:9])
    np.testing.assert_array_equal(data[4:9].persist().compute(), VOXELS[4:9])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data[4:9])).compute(), VOXELS[4:9])
    assert len(reads) > 10


def test_what_is_assigned_to_a_part_of_it_is_seen(data: da.Array) -> None:
    other = data[2:20]
    data[5:7] = 1000
    expected = VOXELS.copy()
    expected[5:7] = 1000
    np.testing.assert_array_equal(data.compute(), expected)
    np.testing.assert_array_equal(data[3:9].compute(), expected[3:9])
    np.testing.assert_array_equal(other.compute(), VOXELS[2:20])


def test_blocks_are_read_by_tasks_where_somebody_watches_them(
    data: da.Array, reads: list[Any]
) -> None:
    with ProgressBar(minimum=1000):
        np.testing.assert_array_equal(data.compute(), VOXELS)
    assert len(reads) == data.npartitions


def test_a_cluster_reads_by_its_workers(data: da.Array) -> None:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    )
    with cluster, Client(cluster) as client:
        np.testing.assert_array_equal(data[3:20].compute(), VOXELS[3:20])
        stored = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_prefixes))
    assert stored > 0
