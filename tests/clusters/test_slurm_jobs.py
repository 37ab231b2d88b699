"""Worker jobs on a real SLURM: lost, killed, refused, late, and of other versions."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import Dataset, dataset_to_zarr
from ctlab_dask_zarr.errors import ClusterError, WriteFailedError, WriteStoppedError
from ctlab_dask_zarr.execution import jobs
from ctlab_dask_zarr.execution.clusters import cluster_from_config
from ctlab_dask_zarr.execution.stopping import Stop

BLOCK = (16, 32, 32)


class Gate:
    """A dataset whose second block waits for a file, and tells which job makes it."""

    def __init__(self, folder: Path, voxels: np.ndarray, extra_nbytes: int = 0) -> None:
        self.folder = folder
        self.voxels = voxels[:64, :32, :32]
        blocks = da.from_array(self.voxels, chunks=BLOCK)

        def wait_at_gate(block: np.ndarray, block_info: Any = None) -> np.ndarray:
            import os

            if block_info[0]["chunk-location"] == (1, 0, 0):
                (folder / "begun").write_text(os.environ["SLURM_JOB_ID"])
                ballast = np.ones(0 if (folder / "open").exists() else extra_nbytes, np.uint8)
                # Until the test has opened it, or has killed this process.
                for _ in range(600):
                    if (folder / "open").exists():
                        break
                    time.sleep(0.1)
                del ballast
            return block

        data = blocks.map_blocks(wait_at_gate, dtype=blocks.dtype)
        self.dataset = Dataset(
            data,
            dimension_names=("z", "y", "x"),
            voxel_unit="um",
            voxel_size=(1, 1, 1),
            datatype="tomo",
        )

    def write(self, client: Client) -> Any:
        """Begin to write; return the future of its end."""
        delayed = dataset_to_zarr(
            self.dataset, self.folder / "out", chunks=BLOCK, shards=BLOCK,
            compute=False,
        )  # fmt: skip
        return client.compute(delayed)

    def begun_by(self, wait_until: Callable[..., Any]) -> str:
        """Wait until a job is at the gate; return its number."""
        begun = self.folder / "begun"
        return str(wait_until(lambda: begun.exists() and begun.read_text(), "a job at the gate"))

    def open(self) -> None:
        (self.folder / "open").touch()

    def assert_written(self, job_before: str) -> None:
        written = Dataset.from_path(self.folder / "out.zarr").data.compute(scheduler="sync")
        np.testing.assert_array_equal(written, self.voxels)
        assert (self.folder / "begun").read_text() != job_before, "another job wrote it"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cancelled_job_is_replaced(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray, wait_until: Any,
    processes: int,
) -> None:  # fmt: skip
    gate = Gate(tmp_path, voxels)
    config = slurm_yaml(cores=processes, processes=processes)
    with cluster_from_config(config, jobs=1) as cluster, Client(cluster) as client:
        future = gate.write(client)
        job = gate.begun_by(wait_until)
        on_slurm.run("scancel", job)
        wait_until(lambda: not client.scheduler_info()["workers"], "its loss")
        gate.open()
        future.result(timeout=240)
        gate.assert_written(job)
    wait_until(lambda: not on_slurm.run("squeue", "-h"), "the end of the worker jobs")


def test_a_node_that_goes_down_is_made_up_for_by_another(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray, wait_until: Any
) -> None:
    gate = Gate(tmp_path, voxels)
    with cluster_from_config(slurm_yaml(), jobs=1) as cluster, Client(cluster) as client:
        future = gate.write(client)
        job = gate.begun_by(wait_until)
        node = on_slurm.job(job)["NodeList"]
        change = ("scontrol", "update", f"nodename={node}")
        on_slurm.run(*change, "state=down", "reason=test")
        try:
            wait_until(lambda: not client.scheduler_info()["workers"], "the loss of the worker")
            gate.open()
            future.result(timeout=240)
            gate.assert_written(job)
        finally:
            # It may have come back by itself: its daemon still runs, and says so.
            wait_until(
                lambda: (
                    "down" not in on_slurm.run("sinfo", "-h", "-n", node, "-o", "%t")
                    or on_slurm.run(*change, "state=resume")
                ),
                "the return of the node",
            )


def test_a_job_over_its_memory_is_killed_and_replaced(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray, wait_until: Any
) -> None:
    # dask, which knows the limit as well, and would be faster, is kept from it.
    gate = Gate(tmp_path, voxels, extra_nbytes=10**9)
    config = slurm_yaml(job_mem="600M", terminate=False)
    with cluster_from_config(config, jobs=1) as cluster, Client(cluster) as client:
        future = gate.write(client)
        job = gate.begun_by(wait_until)
        wait_until(lambda: on_slurm.job(job)["JobState"] not in ("RUNNING", "COMPLETING"), "a kill")
        gate.open()
        future.result(timeout=240)
        gate.assert_written(job)
    logs = "".join(path.read_text() for path in (tmp_path / "dask-worker-logs").iterdir())
    assert "exceeded memory limit" in logs


def test_a_write_that_never_fits_into_its_jobs_fails_and_says_why(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray
) -> None:
    gate = Gate(tmp_path, voxels, extra_nbytes=10**9)
    config = slurm_yaml(job_mem="600M", allowed_failures=0)
    with (
        cluster_from_config(config, jobs=1) as cluster,
        Client(cluster),
        pytest.raises(WriteFailedError, match="KilledWorker"),
    ):
        dataset_to_zarr(gate.dataset, tmp_path / "out", chunks=BLOCK, shards=BLOCK)
    assert not (tmp_path / "out.zarr").exists()
    logs = "".join(path.read_text() for path in (tmp_path / "dask-worker-logs").iterdir())
    # Both watch the memory, and either may be the first to see it.
    assert "exceeded 95% memory budget" in logs or "exceeded memory limit" in logs


def test_a_worker_of_other_versions_is_an_error_that_names_both(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path
) -> None:
    info = tmp_path / "other" / "zarr-3.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 3.0.0\n")
    config = slurm_yaml(job_script_prologue=[f"export PYTHONPATH={info.parent}:$PYTHONPATH"])
    with (
        pytest.raises(ClusterError, match=r"worker tcp://.* has zarr 3\.0\.0 and not 3\.\d"),
        cluster_from_config(config),
    ):
        pytest.fail("the cluster was given out")


def test_a_queue_that_refuses_the_job_is_quoted(on_slurm: Any, slurm_yaml: Any) -> None:
    with (
        pytest.raises(ClusterError, match="invalid partition specified: nowhere"),
        cluster_from_config(slurm_yaml(queue="nowhere")),
    ):
        pytest.fail("the cluster was given out")


@pytest.fixture
def limit(on_slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file; while it is there, the queue takes no more jobs."""
    limit = tmp_path / "limit"
    command = tmp_path / "bin" / "sbatch"
    command.parent.mkdir()
    command.write_text(
        "#!/bin/sh\n"
        f"if [ -e {limit} ]; then\n"
        f"    echo >> {limit}\n"
        "    echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1\n"
        "fi\n"
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "RETRY_S", 1)
    return limit


def test_a_replacement_that_the_queue_refuses_is_submitted_again_later(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray, wait_until: Any, limit: Path
) -> None:
    gate = Gate(tmp_path, voxels)
    with cluster_from_config(slurm_yaml(), jobs=1) as cluster, Client(cluster) as client:
        future = gate.write(client)
        job = gate.begun_by(wait_until)
        limit.touch()
        on_slurm.run("scancel", job)
        wait_until(lambda: len(limit.read_text()) > 1, "two refusals")
        limit.unlink()
        gate.open()
        future.result(timeout=240)
        gate.assert_written(job)


def test_a_write_whose_workers_do_not_come_back_ends_and_says_what_the_queue_says(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray, wait_until: Any, limit: Path
) -> None:
    gate = Gate(tmp_path, voxels)
    message = "(?s)no worker for 60 s.* slurm refused a job: .*QOSMaxSubmitJobPerUserLimit"
    config = slurm_yaml()

    def write_and_lose_the_worker() -> None:
        # The first worker has to come in this time too, on a busy machine.
        started = cluster_from_config(config, jobs=1, worker_timeout="60s")
        with started as cluster, Client(cluster) as client:
            future = gate.write(client)
            job = gate.begun_by(wait_until)
            limit.touch()
            on_slurm.run("scancel", job)
            future.result(timeout=240)

    with pytest.raises(ClusterError, match=message):
        write_and_lose_the_worker()
    assert not (tmp_path / "out.zarr").exists()


def test_some_jobs_that_are_refused_do_not_keep_others_from_working(
    on_slurm: Any, slurm_yaml: Any, limit: Path
) -> None:
    # The limit is reached with the first.
    command = limit.parent / "bin" / "sbatch"
    first = limit.parent / "first"
    text = command.read_text().replace(f"[ -e {limit} ]", f"! mkdir {first} 2>/dev/null")
    command.write_text(text)
    with cluster_from_config(slurm_yaml(), jobs=2) as cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3


def test_jobs_that_end_at_once_are_an_error_with_their_log(
    on_slurm: Any, slurm_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ASK_INTERVAL_S", 2)
    config = slurm_yaml(job_script_prologue=["echo no such module: pithon >&2", "exit 1"])
    message = r"(?s)all jobs ended before a worker came.*\.err ends with:\nno such module: pithon"
    with pytest.raises(ClusterError, match=message), cluster_from_config(config):
        pytest.fail("the cluster was given out")


def test_a_write_goes_on_over_the_lifetimes_of_several_jobs(
    on_slurm: Any, slurm_yaml: Any, tmp_path: Path, voxels: np.ndarray
) -> None:
    def take_a_while(block: np.ndarray) -> np.ndarray:
        import os

        (tmp_path / f"by-{os.environ['SLURM_JOB_ID']}").touch()
        time.sleep(0.35)
        return block

    data = da.from_array(voxels, chunks=BLOCK).map_blocks(take_a_while, dtype=voxels.dtype)
    dataset = Dataset(
        data,
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(1, 1, 1),
        datatype="tomo",
    )
    config = slurm_yaml(worker_extra_args=["--lifetime", "10s", "--lifetime-stagger", "2s"])
    with cluster_from_config(config, jobs=1) as cluster, Client(cluster):
        dataset_to_zarr(dataset, tmp_path / "out", chunks=BLOCK, shards=BLOCK)
    written = Dataset.from_path(tmp_path / "out.zarr").data.compute(scheduler="sync")
    np.testing.assert_array_equal(written, voxels)
    assert len(list(tmp_path.glob("by-*"))) > 1, "one job after the other"


def test_no_worker_in_time_tells_what_the_queue_says(on_slurm: Any, slurm_yaml: Any) -> None:
    config = slurm_yaml(job_extra_directives=["--hold"])
    with (
        pytest.raises(ClusterError, match=r"after 2 s\. squeue says: \d+ PENDING \(JobHeld"),
        cluster_from_config(config, worker_timeout="2s"),
    ):
        pytest.fail("the cluster was given out")
    assert on_slurm.run("squeue", "-h") == "", "the waiting job was cancelled"


def test_a_stop_ends_the_waiting_for_a_queue(on_slurm: Any, slurm_yaml: Any) -> None:
    stop = Stop()
    stop.ask("SIGTERM")
    config = slurm_yaml(job_extra_directives=["--hold"])
    with pytest.raises(WriteStoppedError, match="SIGTERM"), cluster_from_config(config, stop=stop):
        pytest.fail("the cluster was given out")


def test_the_settings_of_the_file_hold_for_client_and_workers_until_the_end(
    on_slurm: Any, slurm_yaml: Any
) -> None:
    def of_worker() -> tuple[Any, ...]:
        import os

        import dask
        from distributed import get_worker

        worker = get_worker()
        return (
            dask.config.get("distributed.worker.memory.spill"),
            os.environ["OMP_NUM_THREADS"],
            worker.local_directory,
            worker.memory_manager.memory_limit,
            worker.lifetime,
            worker.address,
        )

    import dask

    before = dask.config.get("distributed.worker.memory.spill")
    handler = signal.getsignal(signal.SIGINT)
    with cluster_from_config(slurm_yaml(), jobs=1) as cluster, Client(cluster) as client:
        assert dask.config.get("distributed.worker.memory.spill") == 0.8
        spill, threads, folder, memory, lifetime, address = client.submit(of_worker).result()
    assert (spill, threads, memory) == (0.8, "1", int(1.75 * 2**30))
    assert folder.startswith("/tmp")
    assert 3600 - 450 <= lifetime <= 3600 - 150
    assert address.startswith("tcp://127.0.0.1:"), "the whole cluster is this host"
    assert dask.config.get("distributed.worker.memory.spill") == before
    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl-C is not dask-jobqueue's"
