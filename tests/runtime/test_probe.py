"""A destination that workers do not see as the client does, by mounts of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.array as da
import pytest
from distributed import Client, LocalCluster

from ctlab_dask_zarr import ClusterError, Dataset, dataset_to_zarr
from ctlab_dask_zarr.runtime.probe import check_shared_folder


@contextmanager
def worker_with_mount(folder: Path, mount: str) -> Iterator[Client]:
    """A scheduler with one worker, for which `folder` is another one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of a worker's own needs root and unshare")
    with (
        LocalCluster(
            n_workers=0, host="127.0.0.1", protocol="tcp", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        command = (
            f"{mount} && exec {sys.executable} -m distributed.cli.dask_worker "
            f"{cluster.scheduler_address} --nthreads 1 --no-nanny --no-dashboard "
            f"--host 127.0.0.1 --local-directory {folder.parent}"
        )
        worker = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", command], stderr=subprocess.DEVNULL
        )
        try:
            client.wait_for_workers(1, 60)
            yield client
        finally:
            worker.terminate()
            worker.wait(30)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def dataset() -> Dataset:
    return Dataset(
        da.ones((32, 32, 32), chunks=16, dtype="uint16"),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(1, 1, 1),
        datatype="tomo",
    )


def test_a_folder_that_is_another_one_for_a_worker_is_found_before_the_work(shared: Path) -> None:
    with worker_with_mount(shared, f"mount -t tmpfs tmpfs {shared}") as client:
        with pytest.raises(ClusterError, match=r"has another .*shared than this process on"):
            dataset_to_zarr(dataset(), shared / "new" / "scan.zarr")
        (left,) = client.run(os.listdir, str(shared)).values()
        assert left == []
    assert list(shared.iterdir()) == []


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
