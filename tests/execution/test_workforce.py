"""Workers that are not there: waited for aloud, and given up where none will come."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from ctlab_dask_zarr import ClusterError, InvalidArgumentError, cluster_from_config
from ctlab_dask_zarr.execution.workforce import Workforce
from ctlab_dask_zarr.waits import Doing, watched_by
from tests.reliability.faults import TIMEOUT_S, wait_until


class Told:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.is_told = threading.Event()

    def doing(self, doing: Doing | None) -> None:
        self.texts.append("" if doing is None else f"{doing.what}. {doing.advice}")
        self.is_told.set()


@pytest.fixture
def cluster() -> LocalCluster:
    with LocalCluster(
        n_workers=0,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


def test_who_waits_for_workers_says_so_until_one_comes(cluster: LocalCluster) -> None:
    told = Told()
    with Client(cluster) as client, watched_by(told):
        workforce = Workforce(client)
        with workforce.watched():
            assert told.is_told.wait(TIMEOUT_S)
            address = cluster.scheduler_address
            assert told.texts[0].startswith(f"waiting for workers: the scheduler at {address} has")
            assert f"dask worker {address}" in told.texts[0]
            cluster.scale(1)
            wait_until(lambda: told.texts[-1] == "", "the end of the wait")
        assert workforce.problem is None


def test_a_local_cluster_whose_workers_have_ended_is_given_up_with_advice(
    cluster: LocalCluster,
) -> None:
    with Client(cluster) as client:
        cluster.scale(1)
        client.wait_for_workers(1, TIMEOUT_S)
        (worker,) = cluster.workers.values()
        client.sync(worker.close)
        workforce = Workforce(client)
        with workforce.watched():
            wait_until(lambda: workforce.problem is not None, "the end of the wait")
    assert isinstance(workforce.problem, ClusterError)
    assert "make a new Client" in str(workforce.problem)
    assert "resume=True" in str(workforce.problem)


def test_a_scheduler_on_a_host_that_is_not_known_is_refused_at_once() -> None:
    refused = pytest.raises(InvalidArgumentError, match=r"no host named 'nowhere\.invalid'")
    with refused, cluster_from_config("tcp://nowhere.invalid:8786"):
        pass


def test_who_waits_for_a_scheduler_file_says_which_and_what_to_do(tmp_path: Path) -> None:
    import dask

    told, path = Told(), tmp_path / "scheduler.json"
    with (
        watched_by(told),
        dask.config.set({"distributed.comm.timeouts.connect": "100ms"}),
        pytest.raises(InvalidArgumentError, match="start one by `dask scheduler"),
        cluster_from_config(path),
    ):
        pass
    assert told.texts[0].startswith(f"waiting for a scheduler to write {path}")
