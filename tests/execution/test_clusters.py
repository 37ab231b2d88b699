from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.clusters import cluster_from_config, cluster_resources
from ctlab_dask_zarr.execution.local import LocalWorkers, local_workers


@contextmanager
def client_of(config: Any = "local", **options: Any) -> Iterator[Client]:
    with cluster_from_config(config, **options) as cluster, Client(cluster) as client:
        yield client


def test_workers_share_the_memory_that_the_job_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    two = local_workers(2)
    assert (two.n_workers, two.n_threads) == (2, 1)
    assert 400 * 2**20 < two.nbytes < 500 * 2**20
    assert local_workers(2, nbytes=2**28).nbytes == 2**28


def test_a_local_cluster_has_the_workers_asked_for_and_the_user_s_folder_for_spilled_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "job"))
    with (
        dask.config.set({"temporary-directory": str(tmp_path / "own")}),
        client_of(jobs=1, threads=2, memory_limit=2**30) as client,
    ):
        (worker,) = client.scheduler_info()["workers"].values()
        assert (worker["nthreads"], worker["memory_limit"]) == (2, 2**30)
        assert worker["local_directory"].startswith(str(tmp_path / "own"))
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")


def test_a_local_cluster_changes_no_setting_for_others_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two in threads, the one that ended last put back what the other had set."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "job"))
    before = dask.config.get("temporary-directory", None)
    with client_of(jobs=1) as client:
        assert dask.config.get("temporary-directory", None) == before
        assert dask.config.get("distributed.scheduler.no-workers-timeout") is None
        # A worker that is started again keeps the folder of the first.
        client.restart()
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["local_directory"].startswith(str(tmp_path / "job"))


def test_a_local_cluster_that_has_lost_its_workers_does_not_wait_for_ever() -> None:
    none = LocalWorkers(0, 1, 2**30)
    with none.start() as cluster:
        assert cluster.scheduler.no_workers_timeout == 300
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "7s"}),
        none.start() as cluster,
    ):
        assert cluster.scheduler.no_workers_timeout == 7


def test_no_scheduler_at_an_address_is_a_clear_error() -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(InvalidArgumentError, match=r"127\.0\.0\.1:9"),
        client_of("tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_scheduler_file_that_never_comes_or_says_nothing_is_a_clear_error(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(InvalidArgumentError, match=r"scheduler\.json"),
        client_of(path),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "with cluster_from_config('local', 2):\n    print('up')",
        "def work():\n    with cluster_from_config('local', 1):\n        print('up')\nwork()",
    ],
)
def test_a_script_without_a_main_guard_is_told_so_in_three_lines(
    start: str, tmp_path: Path
) -> None:
    """Its workers import it, and would start workers again: 200 lines of tracebacks."""
    script = tmp_path / "script.py"
    imported = "from ctlab_dask_zarr import cluster_from_config"
    script.write_text(f"{imported}\n{start}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[-1].strip() == 'if __name__ == "__main__":'


@pytest.mark.slow
def test_another_failure_of_a_script_with_a_main_guard_is_no_matter_of_the_guard(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from ctlab_dask_zarr import cluster_from_config\n"
        "if __name__ == '__main__':\n"
        "    with cluster_from_config('local', 1):\n"
        "        print('up')\n"
        "else:\n"
        "    os._exit(3)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "RuntimeError: Nanny failed to start" in done.stderr


def test_only_local_workers_take_threads_and_memory() -> None:
    with pytest.raises(InvalidArgumentError, match="leave threads and memory_limit out"):
        cluster_resources("mpi", threads=2)
