"""Workers that are killed, and workers that want more memory than there is."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import pytest
from dask.delayed import Delayed
from distributed import Client, LocalCluster

from ctlab_dask_zarr import WriteFailedError, dataset_to_zarr
from tests.builders import make_dataset
from tests.reliability.faults import (
    NEW_VOXELS,
    TIMEOUT_S,
    assert_same_store,
    need_root,
    run_cli,
    staged_objects,
    wait_until,
)

pytestmark = pytest.mark.slow

LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
N_SHARDS = 64
N_KILLS = 10


@contextmanager
def own_cluster(allowed_failures: int = 100, **options: Any) -> Iterator[Client]:
    """A cluster whose workers may die without harm to other tests."""
    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": allowed_failures,
                "distributed.worker.memory.monitor-interval": "20ms",
            }
        ),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
            **options,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def worker_pids(client: Client) -> list[int]:
    """Return the processes of workers that have started: one that dies before is not replaced."""
    there = client.scheduler_info(n_workers=-1)["workers"]
    nannies = client.cluster.workers.values()
    return [nanny.pid for nanny in nannies if nanny.pid and nanny.worker_address in there]


def slowly(block: np.ndarray) -> np.ndarray:
    """A source that takes its time, so that there is a middle to be killed in."""
    time.sleep(0.1)
    return block


def planned(write: Any) -> Delayed:
    assert isinstance(write, Delayed)
    return write


@pytest.mark.timeout(900)
def test_ten_killed_workers_cost_nothing_but_time(tmp_path: Path) -> None:
    undisturbed, destination = tmp_path / "undisturbed.zarr", tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(NEW_VOXELS, 16, dataset_id="x"), undisturbed, **LAYOUT)
    data = da.from_array(NEW_VOXELS, chunks=16).map_blocks(
        slowly, dtype=NEW_VOXELS.dtype, meta=NEW_VOXELS[:0]
    )
    write = dataset_to_zarr(
        make_dataset(data, dataset_id="x"), destination, **LAYOUT, compute=False
    )
    chance = random.Random(0)
    with own_cluster() as client:
        result = client.compute(planned(write))
        for kill in range(N_KILLS):
            share = (kill + 1) * N_SHARDS // (N_KILLS + 2)
            wait_until(
                lambda n=share: len(staged_objects(destination)) >= n or result.done(),
                f"{share} shards",
            )
            assert not result.done(), f"over before kill {kill}"
            pids = wait_until(lambda: worker_pids(client), "a worker")
            os.kill(chance.choice(pids), signal.SIGKILL)
        result.result(timeout=TIMEOUT_S)
    assert_same_store(destination, undisturbed)
    assert sorted(os.listdir(tmp_path)) == ["scan.zarr", "undisturbed.zarr"]


def test_a_plan_that_does_not_fit_into_a_worker_is_refused_beforehand(tmp_path: Path) -> None:
    source = tmp_path / "source.zarr"
    dataset_to_zarr(make_dataset(da.zeros((512, 512, 512), dtype="u2", chunks=512)), source)
    done = run_cli(
        "convert", source, tmp_path / "scan", "--workers", "1", "--memory-limit", "200MiB", "-q"
    )
    assert done.returncode == 2, done.stderr
    assert "--memory-limit" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["source.zarr"]


def hungry(block: np.ndarray, folder: str, is_always: bool) -> np.ndarray:
    """Want far more memory than blocks of this size say, once or every time."""
    marker = Path(folder) / "was-hungry"
    if is_always or not marker.exists():
        marker.touch()
        hoard = []
        # Piece by piece: a worker is killed when it is seen to have too much.
        for _ in range(256):
            hoard.append(np.ones(2**20, dtype="u8"))
            time.sleep(0.01)
    return block


def write_hungrily(destination: Path, *, is_always: bool) -> None:
    data = da.from_array(NEW_VOXELS, chunks=32).map_blocks(
        hungry, str(destination.parent), is_always, dtype=NEW_VOXELS.dtype, meta=NEW_VOXELS[:0]
    )
    dataset = make_dataset(data, dataset_id="20200202_000000_tomo")
    layout: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "levels": 2}
    dataset_to_zarr(dataset, destination, **layout)


def test_a_worker_past_its_memory_is_killed_and_the_write_completes(
    reference: Path, tmp_path: Path
) -> None:
    with own_cluster(memory_limit="500MiB") as client:
        before = set(worker_pids(client))
        write_hungrily(tmp_path / "scan.zarr", is_always=False)
        assert set(worker_pids(client)) != before, "no worker was killed"
    assert_same_store(tmp_path / "scan.zarr", reference)


def test_a_write_whose_every_worker_is_killed_fails_and_says_so(tmp_path: Path) -> None:
    destination = tmp_path / "scan.zarr"
    expected = pytest.raises(WriteFailedError, match=f"{destination}.*KilledWorker")
    with own_cluster(1, memory_limit="500MiB"), expected as failure:
        write_hungrily(destination, is_always=True)
    assert failure.value.exit_code == 1
    assert not destination.exists()


@contextmanager
def memory_cgroup(nbytes: int) -> Iterator[Path]:
    """A group of processes that the kernel gives so much memory, page cache included."""
    need_root()
    hierarchy = Path("/sys/fs/cgroup/memory")
    if not (hierarchy / "memory.limit_in_bytes").exists():
        pytest.skip("this machine has no memory controller of cgroup v1")
    group = hierarchy / f"ctlab-zarr-{uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: not (group / "cgroup.procs").read_text().split(), "an empty group")
        group.rmdir()


@pytest.mark.root
def test_a_worker_that_the_kernel_kills_for_its_memory_is_replaced(
    reference: Path, tmp_path: Path
) -> None:
    with memory_cgroup(1 << 30) as group, own_cluster(memory_limit=0) as client:
        before = worker_pids(client)
        for pid in before:
            (group / "cgroup.procs").write_text(str(pid))
        write_hungrily(tmp_path / "scan.zarr", is_always=False)
        assert set(worker_pids(client)) != set(before), "no worker was killed"
    assert_same_store(tmp_path / "scan.zarr", reference)
