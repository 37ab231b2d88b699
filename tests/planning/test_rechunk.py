"""Blocks of any form become shards of any form, equal to a plain serial loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr import Dataset, WritePlan, dataset_from_zarr, dataset_to_zarr, plan
from ctlab_dask_zarr.planning.rechunk import block_ranges
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.shard import write_shards
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((48, 50, 70))


def shared_boundaries(data: da.Array) -> da.Array:
    """The same voxels, from blocks that need their neighbours."""
    return data.map_overlap(lambda block: block, depth=1, boundary="none")


def overview(voxels: np.ndarray, blocks: Any, share: bool) -> Dataset:
    data = da.from_array(voxels, chunks=blocks)
    return make_dataset(shared_boundaries(data) if share else data)


def serial_store(root: Path, write_plan: WritePlan, voxels: np.ndarray) -> dict[str, bytes]:
    """The oracle: each shard from one piece, in a loop; the objects by their keys."""
    root.mkdir()
    (level,) = write_plan.levels
    staged = StagedArray(Store(str(root)), level.path, level.array)
    for coords in level.layout.task_coords():
        region = level.layout.region(coords)
        block = LazyBlock(
            tuple(r.start for r in region), voxels[region].shape, lambda r=region: voxels[r]
        )
        write_shards(staged, [coords], [block])
    return objects_in(root)


def objects_in(root: Path) -> dict[str, bytes]:
    documents = ("zarr.json", "receipts.json")
    files = (p for p in root.rglob("*") if p.is_file() and p.name not in documents)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


#: Inner chunks that span the first axis make rows follow one another along another axis, as
#: they do in every volume that is thinner than an inner chunk.
LAYOUTS = {
    "rows along z": {"chunks": (8, 8, 8), "shards": (16, 32, 32)},
    "rows along y": {"chunks": (0, 8, 8), "shards": (16, 32, 32)},
    "rows along x": {"chunks": (0, 0, 8), "shards": (16, 32, 32)},
    "rows along y, shards span z": {"chunks": (0, 8, 8), "shards": (0, 16, 32)},
    "one chunk a shard": {"chunks": (16, 16, 16), "shards": (16, 16, 16)},
    "one shard": {"chunks": (8, 8, 8), "shards": (0, 0, 0)},
    "no shards": {"chunks": (16, 16, 16), "shards": None},
    "no shards, chunks span z": {"chunks": (0, 16, 16), "shards": None},
}
BLOCKS = {
    "cubes": (8, 16, 16),
    "slabs of z": (5, 50, 70),
    "slabs of y": (48, 6, 70),
    "slabs of x": (48, 50, 9),
    "misaligned": (7, 11, 13),
    "one slice": (1, 50, 70),
}


def test_blocks_belong_to_every_cell_that_they_overlap() -> None:
    assert block_ranges((40, 40, 20), 64) == [range(2), range(1, 3)]


@pytest.mark.parametrize("share", [False, True], ids=["alone", "overlapping"])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_written_from_every_form_of_blocks(
    layout: dict[str, Any], blocks: tuple[int, ...], share: bool, tmp_path: Path
) -> None:
    dataset = overview(VOXELS, blocks, share)
    write_plan = plan(dataset, tmp_path / "a", **layout)
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(dataset, tmp_path / "a", **layout)
    assert objects_in(tmp_path / "a.zarr") == serial_store(tmp_path / "b", write_plan, VOXELS)


def test_a_thin_volume_is_written_with_nothing_but_defaults(tmp_path: Path) -> None:
    voxels = random_voxels((21, 200, 300))
    dataset_to_zarr(make_dataset(voxels, (7, 100, 100)), tmp_path / "a")
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, voxels)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_volume_in_any_blocks_and_any_shards(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    ndim = data.draw(st.sampled_from([2, 3, 3]))
    shape = tuple(data.draw(st.integers(1, 20)) for _ in range(ndim))
    blocks = tuple(data.draw(st.integers(1, 20)) for _ in range(ndim))
    chunks = tuple(data.draw(st.integers(0, 7)) for _ in range(ndim))
    multiples = [data.draw(st.integers(0, 3)) for _ in range(ndim)]
    shards = tuple(c * m if c else m * 4 for c, m in zip(chunks, multiples, strict=True))
    layout = {"chunks": chunks, "shards": data.draw(st.sampled_from([shards, shards, None]))}
    voxels = random_voxels(shape)
    dataset = overview(voxels, blocks, data.draw(st.booleans()))
    root = tmp_path_factory.mktemp("a")
    write_plan = plan(dataset, root / "a", **layout)
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(dataset, root / "a", **layout)
    assert objects_in(root / "a.zarr") == serial_store(root / "b", write_plan, voxels)


@pytest.mark.parametrize("name", ["cubes", "slabs of z", "misaligned"])
def test_the_plan_counts_the_tasks_that_the_graph_has(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS["rows along z"]
    for share in (False, True):
        dataset = overview(VOXELS, BLOCKS[name], share)
        with dask.config.set(scheduler="sync"):
            stated = plan(dataset, tmp_path / "a", **layout).rechunk
            write = dataset_to_zarr(dataset, tmp_path / "a", compute=False, **layout)
        keys = [k[0] if isinstance(k, tuple) else k for k in dict(write.__dask_graph__())]
        own = [k for k in keys if k.startswith(("write-shard", "cut-block", "join-blocks"))]
        if stated.method != "tasks":
            assert len(own) == stated.n_tasks
        else:
            assert len(own) <= stated.n_tasks + math.prod(dataset.data.numblocks)


@pytest.mark.parametrize("layout", ["rows along z", "no shards"])
def test_a_cluster_inside_this_process_writes_the_same(layout: str, tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local, set_as_default=False) as client,
        client.as_current(),
    ):
        for name, share in (("a", False), ("b", True)):
            dataset = overview(VOXELS, (7, 50, 70), share)
            dataset_to_zarr(dataset, tmp_path / name, **LAYOUTS[layout])
    for name in "ab":
        np.testing.assert_array_equal(dataset_from_zarr(tmp_path / f"{name}.zarr").data, VOXELS)


def test_persisted_blocks_on_threads(tmp_path: Path) -> None:
    held = da.from_array(VOXELS, chunks=(7, 50, 70)).persist()
    for number, data in enumerate([held, held + np.uint16(1)]):
        dataset_to_zarr(make_dataset(data), tmp_path / f"{number}", **LAYOUTS["rows along z"])
        written = dataset_from_zarr(tmp_path / f"{number}.zarr").data.compute()
        np.testing.assert_array_equal(written, VOXELS + number)


def test_no_block_waits_in_memory_while_slabs_are_streamed(tmp_path: Path) -> None:
    import threading
    import weakref

    lock = threading.Lock()
    alive: list[weakref.ref[Any]] = []
    most = 0

    def load(block_info: Any = None) -> np.ndarray:
        nonlocal most
        region = tuple(slice(a, b) for a, b in block_info[None]["array-location"])
        block = VOXELS[region].copy()
        with lock:
            alive.append(weakref.ref(block))
            most = max(most, sum(ref() is not None for ref in alive))
        return block

    chunks = tuple(da.from_array(VOXELS, chunks=(4, 50, 70)).chunks)
    data = da.map_blocks(load, chunks=chunks, dtype="u2", meta=VOXELS[:0])
    with dask.config.set(scheduler="sync"):
        assert (
            plan(make_dataset(data), tmp_path / "a", **LAYOUTS["rows along z"]).rechunk.method
            == "stream"
        )
        dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUTS["rows along z"])
    assert len(alive) == 12, "each slab is made once"
    assert most <= 2, "a row of 8 slices needs two slabs of 4"
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def test_the_memory_of_one_giant_shard_is_told_before_it_is_tried() -> None:
    # ome2024-ngff-challenge#83: one giant shard exhausts 96 GB.
    data = da.zeros((4096, 4096, 4096), chunks=512, dtype="u2") + np.uint16(1)
    write_plan = plan(
        make_dataset(shared_boundaries(data)), "a", chunks=(64, 64, 64), shards=(0, 0, 0)
    )
    assert write_plan.rechunk.peak_nbytes >= write_plan.nbytes
    assert "GiB for each thread at work, " in write_plan.describe()
