"""A destination that workers do not see as the client does, by mounts of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from ctlab_dask_zarr import ClusterError, Dataset, dataset_to_zarr, verify
from ctlab_dask_zarr.store import shared_folder as probe
from ctlab_dask_zarr.store.shared_folder import check_shared_folder


@contextmanager
def scheduler(n_workers: int = 0) -> Iterator[Client]:
    """A scheduler, with workers that see what this process does."""
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            host="127.0.0.1",
            protocol="tcp",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def start_worker(client: Client, folder: Path, mount: str) -> subprocess.Popen[bytes]:
    """Start a worker for which `folder` is another one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of a worker's own needs root and unshare")
    command = (
        f"{mount} && exec {sys.executable} -m distributed.cli.dask_worker "
        f"{client.scheduler.address} --nthreads 1 --no-nanny --no-dashboard --name strange "
        f"--host 127.0.0.1 --local-directory {folder.parent}"
    )
    return subprocess.Popen(["unshare", "--mount", "sh", "-c", command], stderr=subprocess.DEVNULL)


def end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(240)


@contextmanager
def worker_with_mount(folder: Path, mount: str) -> Iterator[Client]:
    """A scheduler with one worker, for which `folder` is another one."""
    with scheduler() as client:
        worker = start_worker(client, folder, mount)
        try:
            client.wait_for_workers(1, 240)
            yield client
        finally:
            end(worker)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def dataset(on_block: Callable[[np.ndarray], np.ndarray] = lambda block: block) -> Dataset:
    data = da.ones((32, 32, 32), chunks=16, dtype="uint16")
    return Dataset(
        data.map_blocks(on_block, meta=data._meta, name="blocks"),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(1, 1, 1),
        datatype="tomo",
    )


@pytest.mark.root
def test_a_folder_that_is_another_one_for_a_worker_is_found_before_the_work(shared: Path) -> None:
    with worker_with_mount(shared, f"mount -t tmpfs tmpfs {shared}") as client:
        with pytest.raises(ClusterError, match=r"has another .*shared than this process on"):
            dataset_to_zarr(dataset(), shared / "scan.zarr")
        (left,) = client.run(os.listdir, str(shared)).values()
        assert left == []
    assert list(shared.iterdir()) == []


@pytest.mark.root
def test_a_folder_into_which_a_worker_may_not_write_is_found_too(shared: Path) -> None:
    mount = f"mount --bind {shared} {shared} && mount -o remount,bind,ro {shared}"
    with (
        worker_with_mount(shared, mount) as client,
        pytest.raises(ClusterError, match=r"cannot write into .*shared: Read-only file system"),
    ):
        check_shared_folder(client, str(shared / "not" / "there"))
    assert list(shared.iterdir()) == []


def test_a_shared_folder_is_left_as_it_was(
    cluster: Client, shared: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    (shared / "file").write_text("mine")
    before = snapshot(shared)
    check_shared_folder(cluster, str(shared))
    assert snapshot(shared) == before


def write_while(folder: Path, bring: Callable[[], None], **flags: bool) -> None:
    """Write with tasks that take until `bring` has returned, which is called when one runs."""
    signs = folder.parent / "signs"
    signs.mkdir(exist_ok=True)
    release = signs / f"release-{uuid.uuid4().hex}"

    def wait(block: np.ndarray) -> np.ndarray:
        (signs / "running").touch()
        end_s = time.monotonic() + 240
        while not release.exists() and time.monotonic() < end_s:
            time.sleep(0.1)
        return block

    with ThreadPoolExecutor() as pool:
        write = pool.submit(
            dataset_to_zarr, dataset(wait), folder / "scan.zarr", chunks=16, shards=(16, 16, 16),
            **flags,
        )  # fmt: skip
        try:
            while not (signs / "running").exists() and not write.done():
                time.sleep(0.1)
            bring()
        finally:
            release.touch()
        write.result()


@pytest.mark.root
@pytest.mark.parametrize("mount", ["mount -t tmpfs tmpfs {0}", "true"])
@pytest.mark.parametrize("interval_s", [0.1, 60])
def test_a_worker_that_comes_late_is_named_where_it_sees_another_folder(
    interval_s: float, mount: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for; if its first task is faster, by that."""
    monkeypatch.setattr(probe, "_INTERVAL_S", interval_s)
    is_strange = mount != "true"
    workers = []
    with scheduler(1) as client:

        def bring() -> None:
            workers.append(start_worker(client, shared, mount.format(shared)))
            client.wait_for_workers(2, 240)
            time.sleep(3)

        said = r"worker tcp://\S+ on \S+ has another .*shared than.* came while the write was"
        try:
            with pytest.raises(ClusterError, match=said) if is_strange else nullcontext():
                write_while(shared, bring)
            if is_strange:
                left = client.run(os.listdir, str(shared))
                assert [] in left.values()
        finally:
            for worker in workers:
                end(worker)
        if is_strange:
            assert os.listdir(shared) == [".scan.zarr.staging"]
            write_while(shared, lambda: None, resume=True)
    assert os.listdir(shared) == ["scan.zarr"]
    assert verify(shared / "scan.zarr") == []


@pytest.mark.root
def test_the_first_worker_that_comes_stages_nothing_where_nobody_else_sees_it(
    shared: Path,
) -> None:
    with scheduler() as client, ThreadPoolExecutor() as pool:
        write = pool.submit(dataset_to_zarr, dataset(), shared / "scan.zarr")
        worker = start_worker(client, shared, f"mount -t tmpfs tmpfs {shared}")
        try:
            with pytest.raises(ClusterError, match=r"has another .*shared than this process on"):
                write.result(120)
            (left,) = client.run(os.listdir, str(shared)).values()
            assert left == []
        finally:
            end(worker)
    assert os.listdir(shared) == []
