from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, plan
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.execution.graphs import analyse_source
from ctlab_dask_zarr.execution.progress import listen
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset, random_voxels

SHAPE = (48, 50, 70)
LAYOUT = {"chunks": (8, 8, 8), "shards": (16, 32, 32)}
VOXELS = random_voxels(SHAPE)


def sources() -> dict[str, tuple[Callable[[], da.Array], str]]:
    """Dask arrays by name, and the way that their blocks become shards on one thread."""

    def overlapping() -> da.Array:
        x = da.from_array(VOXELS, chunks=(8, 50, 70))
        return x.map_overlap(lambda b: b, depth=1, boundary="none")

    def minus_mean() -> da.Array:
        x = da.from_array(VOXELS, chunks=(10, 50, 70))
        return (x - x.min()).astype("u2")

    return {
        "aligned": (lambda: da.from_array(VOXELS, chunks=(16, 32, 32)), "none"),
        "smaller than shards": (lambda: da.from_array(VOXELS, chunks=(8, 16, 16)), "none"),
        "slabs": (lambda: da.from_array(VOXELS, chunks=(5, 50, 70)), "stream"),
        "misaligned everywhere": (lambda: da.from_array(VOXELS, chunks=(7, 11, 13)), "stream"),
        "one block": (lambda: da.from_array(VOXELS, chunks=-1), "tasks"),
        "thick slabs": (lambda: da.from_array(VOXELS, chunks=(40, 50, 70)), "tasks"),
        "lazy": (lambda: da.from_array(VOXELS, chunks=(5, 50, 70), name=False) + 0, "stream"),
        "overlapping": (overlapping, "tasks"),
        "minus its minimum": (minus_mean, "tasks"),
    }


@pytest.mark.parametrize("name", sources())
def test_every_source_is_written_equal(name: str, tmp_path: Path) -> None:
    build, method = sources()[name]
    dataset = make_dataset(build())
    expected = dataset.data.compute()
    with dask.config.set(scheduler="sync"):
        assert plan(dataset, tmp_path / "a", **LAYOUT).rechunk.method == method
        dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    with dask.config.set(scheduler="threads"):
        dataset_to_zarr(dataset, tmp_path / "b", **LAYOUT)
    for store in ("a.zarr", "b.zarr"):
        np.testing.assert_array_equal(dataset_from_zarr(tmp_path / store).data, expected)


@pytest.mark.parametrize("name", sources())
def test_every_source_is_written_equal_on_a_cluster(
    name: str, tmp_path: Path, cluster: Client
) -> None:
    dataset = make_dataset(sources()[name][0]())
    expected = dataset.data.compute()
    with cluster.as_current():
        dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, expected)


def test_blocks_that_a_cluster_holds_are_taken_from_there(tmp_path: Path, cluster: Client) -> None:
    with cluster.as_current():
        held = da.from_array(VOXELS, chunks=(16, 32, 32)).persist()
        for number, data in enumerate([held, held + 1, held.rechunk((48, 25, 70))]):
            dataset_to_zarr(make_dataset(data), tmp_path / f"{number}", **LAYOUT)
            written = dataset_from_zarr(tmp_path / f"{number}.zarr").data.compute()
            np.testing.assert_array_equal(written, VOXELS + (number == 1))


@pytest.mark.parametrize("layout", [LAYOUT, LAYOUT | {"shards": None}], ids=["shards", "none"])
def test_a_two_dimensional_image(layout: dict[str, Any], tmp_path: Path) -> None:
    voxels = random_voxels((90, 70))
    layout = {key: value and value[:2] for key, value in layout.items()}
    dataset_to_zarr(make_dataset(voxels, (13, 70)), tmp_path / "a", **layout)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, voxels)


def test_building_computes_nothing_and_touches_nothing(tmp_path: Path, snapshot) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    data = da.zeros(SHAPE, chunks=(5, 50, 70), dtype="u2").map_blocks(fail, meta=VOXELS[:0])
    before = snapshot(tmp_path)
    plan(make_dataset(data), tmp_path / "a", **LAYOUT)
    write = dataset_to_zarr(make_dataset(data), tmp_path / "a", compute=False, **LAYOUT)
    assert snapshot(tmp_path) == before
    assert cloudpickle.loads(cloudpickle.dumps(write)).key == write.key


def test_an_aligned_write_is_one_task_a_shard_and_no_task_has_many_inputs() -> None:
    data = da.zeros((512 * 20,) * 3, chunks=512, dtype="u2")
    write = dataset_to_zarr(make_dataset(data), "none.zarr", compute=False)
    graph = dict(write.__dask_graph__())
    names = [key[0] if isinstance(key, tuple) else key for key in graph]
    assert sum(name.startswith("write-shard") for name in names) == 20**3
    assert len(graph) < 20**3 * 1.04
    assert max(len(task.dependencies) for task in graph.values()) <= 64


@pytest.mark.parametrize("n", [10, 22])
@pytest.mark.parametrize("levels", [1, 3])
def test_a_graph_stays_small_however_many_shards_there_are(n: int, levels: int) -> None:
    """What a scheduler is sent, and what it has to look at for each task: gates, not timings."""
    data = da.zeros((64 * n,) * 3, chunks=64, dtype="u2") + np.uint16(1)
    dataset = make_dataset(data, voxel_size=(1.0, 1.0, 1.0))
    layout = {"chunks": (32, 32, 32), "shards": (64, 64, 64), "levels": levels}
    write = dataset_to_zarr(dataset, "none.zarr", compute=False, **layout)
    graph = dict(write.__dask_graph__())
    n_levels = sum(-((-n // 2**level) ** 3) for level in range(levels))
    # A task a shard; the staging and the commit; receipts are gathered a few dozen at a time.
    assert len(graph) <= 1.1 * n_levels + 20
    fan_in = max(len(task.dependencies) for task in graph.values())
    assert fan_in <= 200
    # Some 20 bytes a shard are unavoidable; a task with the plan in it would be thousands.
    assert len(cloudpickle.dumps(write)) / n_levels < 600


def test_very_thin_slabs_do_not_make_a_task_with_a_thousand_inputs(tmp_path: Path) -> None:
    voxels = random_voxels((600, 8, 8))
    data = da.from_array(voxels, chunks=(1, 8, 8)).map_overlap(
        lambda b: b, depth={0: 1}, boundary="none"
    )
    options = {"chunks": (600, 8, 8), "shards": (600, 8, 8)}
    write = dataset_to_zarr(make_dataset(data), tmp_path / "a", compute=False, **options)
    assert max(len(task.dependencies) for task in dict(write.__dask_graph__()).values()) <= 256
    write.compute()
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, voxels)


def test_tasks_have_names_that_a_dashboard_can_show() -> None:
    from dask.utils import key_split

    data = da.zeros((64, 64, 64), chunks=(7, 64, 64), dtype="u2")
    write = dataset_to_zarr(make_dataset(data), "none.zarr", compute=False, **LAYOUT)
    names = {key_split(key) for key in dict(write.__dask_graph__())}
    assert {"stage", "write-shard", "record-receipts", "commit"} <= names


_WORKER = """
import sys
import cloudpickle
from dask.local import get_sync
graph, key = cloudpickle.load(sys.stdin.buffer)
get_sync(graph, key)
print(*(name for name in ("dask.array", "pandas", "xarray", "zarr") if name in sys.modules))
"""


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_a_worker_does_not_load_what_takes_it_longer_than_a_small_write(
    kind: str, tmp_path: Path
) -> None:
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, VOXELS, slices_per_block=16)
    if kind == "zarr":
        with dask.config.set(scheduler="threads"):
            dataset_to_zarr(Dataset.from_path(source), tmp_path / "source.zarr", **LAYOUT)
        source = tmp_path / "source.zarr"
    out = tmp_path / "out.zarr"
    write = dataset_to_zarr(Dataset.from_path(source), out, levels=2, compute=False, **LAYOUT)
    done = subprocess.run(
        [sys.executable, "-c", _WORKER],
        input=cloudpickle.dumps((dict(write.__dask_graph__()), write.key)),
        capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == []
    np.testing.assert_array_equal(dataset_from_zarr(out).data, VOXELS)


def test_blocks_know_whether_they_can_be_made_alone() -> None:
    x = da.from_array(VOXELS, chunks=(8, 50, 70))
    assert analyse_source(x).is_independent
    assert analyse_source(x - x.mean()).is_independent is False
    assert analyse_source(x + np.uint16(1)).is_independent


def test_progress_tells_every_byte_once(tmp_path: Path, cluster: Client) -> None:
    dataset = make_dataset(da.from_array(VOXELS, chunks=(5, 50, 70)))
    for name, client in (("a", None), ("b", cluster)):
        told: list[int] = []
        write = prepare_write(dataset, tmp_path / name, WriteOptions(**LAYOUT))
        with listen(write.graph, lambda nbytes, *_, told=told: told.append(nbytes), client):
            run(write, client=client)
            wait_until(lambda told=told: sum(told) >= VOXELS.nbytes)
        assert sum(told) == VOXELS.nbytes


def wait_until(condition: Callable[[], bool]) -> None:
    """Events of a cluster arrive a moment after its results."""
    import time

    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
