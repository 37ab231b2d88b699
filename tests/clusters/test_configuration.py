"""Configurations: what they mean, and what is wrong with them, found before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from click.testing import CliRunner
from distributed import Client, LocalCluster

import ctlab_dask_zarr
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.errors import ClusterError, InvalidArgumentError
from ctlab_dask_zarr.execution.clusters import (
    cluster_from_config,
    cluster_resources,
    configured_kind,
    read_configuration,
)
from ctlab_dask_zarr.execution.jobs import JobWorkers, import_jobqueue
from ctlab_dask_zarr.execution.versions import same_versions

CONFIGS = Path(__file__).parents[2] / "cluster-configs"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("local", "local"), ("slurm", "slurm"), ("pbs-gadi", "pbs"), ("scheduler", "running")],
)
def test_every_file_that_is_given_out_is_known_to_dask(name: str, kind: str) -> None:
    settings = read_configuration(CONFIGS / f"{name}.yaml")
    assert configured_kind(settings, name) == kind


def test_the_settings_for_mpi_are_dask_s_own() -> None:
    assert set(read_configuration(CONFIGS / "mpi.yaml")) == {
        "distributed",
        "logging",
        "temporary-directory",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobqueue: {slurm: {core: 1}}", "jobqueue.slurm.core .* is jobqueue.slurm.cores meant"),
        ("jobqueu: {slurm: {cores: 1}}", "jobqueu .* is jobqueue meant"),
        ("distributed: {worker: {memory: {spil: 1}}}", r"distributed\.worker\.memory\.spill meant"),
        ("distributed: {worker: {zzz: 1}}", "distributed.worker.zzz .* there are .*memory"),
        ("jobqueue: {slurm: {cores: 1}, pbs: {cores: 1}}", "slurm, pbs: it has to have one"),
        ("jobqueue: {lsf: {cores: 1}}", "slurm or pbs"),
        ("slurm: {cores: 1, memory: 1GiB}", r"slurm is not a setting .* is jobqueue\.slurm meant"),
        ("slrum: {cores: 1, memory: 1GiB}", r"is jobqueue\.slurm meant"),
        ("cores: 1", r"is jobqueue\.slurm\.cores or jobqueue\.pbs\.cores meant"),
        ("job_extra_directives: []", r"is jobqueue\.slurm\.job-extra-directives or "),
        ("jobqueue: {slurm: {cores: 1}}", "does not say the memory of a job"),
        ("[1, 2]", "holds list"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong_with_it(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidArgumentError, match=message), cluster_from_config(path):
        pytest.fail("the cluster was given out")


@pytest.mark.parametrize("place", [".", "mine.yaml"])
def test_a_file_that_dask_config_names_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    written(tmp_path, "distributed: {worker: {memory: {spil: 0.8}}}")
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path / place))
    for config in ("local", None):
        with (
            pytest.raises(InvalidArgumentError, match=r"mine\.yaml: .*spill meant"),
            cluster_from_config(config, jobs=1),
        ):
            pytest.fail("the cluster was given out")


def test_keys_of_the_user_s_own_and_both_spellings_are_taken(tmp_path: Path) -> None:
    text = (
        "my-lab: {a: 1}\n"
        "distributed: {nanny: {pre_spawn_environ: {MY_VARIABLE: 1}}, worker: {daemon: true}}\n"
    )
    assert read_configuration(written(tmp_path, text))["my-lab"] == {"a": 1}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidArgumentError, match=r"none\.yaml: No such file"),
        cluster_from_config(tmp_path / "none.yaml"),
    ):
        pytest.fail("the cluster was given out")


def test_an_unknown_name_is_answered_by_the_nearest_one() -> None:
    with pytest.raises(InvalidArgumentError, match=r"slurm\?"), cluster_from_config("slurn"):
        pytest.fail("the cluster was given out")


def options_of(folder: Path, text: str) -> dict[str, Any]:
    import_jobqueue()
    settings = read_configuration(written(folder, text))
    with dask.config.set(dask.config.merge(dask.config.config, settings)):
        return JobWorkers("slurm").options()


def test_what_the_user_says_is_left_as_it_is(tmp_path: Path) -> None:
    text = """
    jobqueue:
      slurm:
        cores: 2
        processes: 2
        memory: 4GiB
        interface: eth7
        local-directory: /scratch/mine
        log-directory: mine
        worker-extra-args: ["--lifetime", "5m", "--dashboard-address", ":0"]
        scheduler-options: {dashboard_address: ":8787"}
    """
    options = options_of(tmp_path, text)
    assert not {"interface", "local_directory", "log_directory"} & set(options)
    assert options["worker_extra_args"] == ["--lifetime", "5m", "--dashboard-address", ":0"]
    assert options["scheduler_options"] == {"dashboard_address": ":8787"}


@pytest.mark.parametrize("walltime", ["36000", '"30"', "1h", "a:b", '""', "10:00:00", '"-1:00"'])
def test_a_walltime_that_may_mean_anything_is_refused(tmp_path: Path, walltime: str) -> None:
    text = f"jobqueue: {{slurm: {{cores: 1, memory: 1GiB, interface: lo, walltime: {walltime}}}}}"
    with pytest.raises(InvalidArgumentError, match="in quotes"):
        options_of(tmp_path, text)


def test_a_short_walltime_leaves_most_of_it_to_the_work(tmp_path: Path) -> None:
    text = 'jobqueue: {slurm: {cores: 1, memory: 1GiB, interface: lo, walltime: "00:10:00"}}'
    arguments = options_of(tmp_path, text)["worker_extra_args"]
    assert arguments[-4:] == ["--lifetime", "480s", "--lifetime-stagger", "60s"]


def test_without_dask_jobqueue_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "dask_jobqueue.py").write_text("raise ImportError('not there')\n")
    (tmp_path / "dask_mpi.py").write_text("raise ImportError('not there')\n")
    for name, extra in (("slurm", "jobqueue"), ("mpi", "mpi")):
        script = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            "from ctlab_dask_zarr.execution.clusters import cluster_from_config\n"
            f"cluster_from_config({name!r}).__enter__()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
        )
        assert f"pip install 'ctlab-dask-zarr[{extra}]'" in done.stderr


def test_a_report_without_bokeh_is_refused_before_anything_is_queued(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a cluster was started")

    monkeypatch.setitem(sys.modules, "bokeh", None)
    monkeypatch.setattr(ctlab_dask_zarr, "cluster_from_config", refuse)
    arguments = [str(source), str(tmp_path / "out.zarr"), "--report", str(tmp_path / "r.html")]
    done = CliRunner().invoke(main, ["convert", *arguments])
    assert done.exit_code != 0
    assert "pip install 'ctlab-dask-zarr[report]'" in done.output


def test_what_a_file_will_have_is_known_without_starting_it() -> None:
    resources = cluster_resources(CONFIGS / "slurm.yaml", jobs=8)
    assert (resources.n_threads, resources.thread_nbytes) == (8, int(1.75 * 2**30))
    resources = cluster_resources(CONFIGS / "pbs-gadi.yaml", jobs=2)
    assert (resources.n_threads, resources.thread_nbytes) == (24, int(3.5 * 2**30))


def test_a_running_scheduler_by_address_file_and_configuration(
    cluster: Client, tmp_path: Path
) -> None:
    address = cluster.scheduler_info()["address"]
    file = tmp_path / "scheduler.json"
    # Not by Client.write_scheduler_file: it fails once a worker has told its fine metrics, whose
    # keys are tuples that JSON cannot hold. A scheduler writes this key among others.
    file.write_text(json.dumps({"address": address}))
    of_any_name = tmp_path / "scheduler-of-tonight"
    of_any_name.write_text(file.read_text())
    config = written(tmp_path, yaml.safe_dump({"scheduler-address": address}))
    for name in (address, file, of_any_name, config):
        with cluster_from_config(name) as found, Client(found, set_as_default=False) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    with pytest.raises(InvalidArgumentError, match="leave jobs out"):
        cluster_from_config(address, jobs=2).__enter__()


@contextmanager
def worker_of_other_zarr(address: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker that believes to have another zarr."""
    info = folder / "other" / "zarr-3.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 3.0.0\n")
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny",
         "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"],
        env={"PYTHONPATH": f"{info.parent}:{CONFIGS.parent}", "PATH": "/usr/bin:/bin"},
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait(240)


def local_cluster(n_workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    )


def test_a_worker_that_joins_late_with_other_versions_leaves_and_the_others_go_on(
    tmp_path: Path, wait_until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with local_cluster(1) as local, Client(local) as client, same_versions(client):
        with worker_of_other_zarr(local.scheduler_address, tmp_path) as late:
            late.wait(240)
            wait_until(lambda: "has zarr 3.0.0 and not" in caplog.text, "the message")
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, "one worker")
        assert client.submit(sum, [1, 2]).result() == 3


def test_a_worker_of_other_versions_under_a_running_scheduler_is_an_error(
    tmp_path: Path, wait_until: Any
) -> None:
    with (
        local_cluster(0) as local,
        worker_of_other_zarr(local.scheduler_address, tmp_path),
    ):
        wait_until(lambda: local.scheduler_info["workers"], "the worker")
        with (
            pytest.raises(ClusterError, match=r"has zarr 3\.0\.0 and not"),
            cluster_from_config(local.scheduler_address),
        ):
            pytest.fail("the client was given out")
