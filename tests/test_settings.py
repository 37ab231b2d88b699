"""Settings the dask way: packaged defaults, files, environment, `dask.config.set`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import pytest
from click.testing import CliRunner

from ctlab_dask_zarr import (
    InvalidArgumentError,
    Resources,
    cluster_resources,
    dataset_from_zarr,
    dataset_to_zarr,
    plan,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.execution.clusters import read_configuration
from ctlab_dask_zarr.settings import load_defaults, packaged_settings, setting
from tests.builders import make_dataset, random_voxels, run_here


@contextmanager
def configured(folder: Path | None = None, **environment: str) -> Iterator[None]:
    """Have the configuration of a process that starts with these files and variables."""
    paths = [] if folder is None else [str(folder)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    variables = kept | {f"DASK_CTLAB_ZARR__{name}": value for name, value in environment.items()}
    with (
        patch.dict(os.environ, variables, clear=True),
        patch.object(dask.config, "paths", paths),
        dask.config.set(dask.config.collect(paths, variables)),
    ):
        yield


def run(*arguments: object, **configuration: Any) -> str:
    with configured(**configuration):
        done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_write_takes_what_was_left_open_from_the_settings(tmp_path: Path) -> None:
    dataset = make_dataset(random_voxels((64, 64, 64)))
    settings = {"chunks": [16, 16, 16], "shards": "none", "codec": "gzip:1", "levels": 2,
                "scale-placement": "multiscales"}  # fmt: skip
    with dask.config.set({"ctlab-zarr": settings}):
        dataset_to_zarr(dataset, tmp_path / "scan.zarr")
        found = plan(dataset, tmp_path / "other.zarr", chunks=(8, 8, 8), levels=1)
    written = dataset_from_zarr(tmp_path / "scan.zarr")
    stored = written.source.stored
    assert (stored.inner_chunk_shape, stored.is_sharded) == ((16, 16, 16), False)
    assert [spec.name for spec in stored.codecs] == ["gzip"]
    assert len(written.levels) == 2
    document = json.loads((tmp_path / "scan.zarr" / "zarr.json").read_text())
    (multiscale,) = document["attributes"]["ome"]["multiscales"]
    assert multiscale["coordinateTransformations"][0]["scale"] == [3.0, 2.0, 1.5]
    # What is given counts.
    assert found.levels[0].layout.inner_chunk_shape == (8, 8, 8)
    assert len(found.levels) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("codec", "zlob", "codec is 'zlob': set it to a codec: zstd"),
        ("levls", 3, "is ctlab-zarr.levels meant"),
        ("levels", "many", "levels is 'many': set it to a number"),
        ("levels", 0, "levels is 0"),
        ("levels", True, "levels is True"),
        ("chunks", "big", "chunks is 'big'"),
        ("chunks", [8, -8, 8], "chunks is"),
        ("shards", 0, "shards is 0"),
        ("scale-placement", "left", "set it to dataset or multiscales"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, name: str, value: object, message: str) -> None:
    dataset = make_dataset(random_voxels((8, 9, 10)))
    with (
        dask.config.set({f"ctlab-zarr.{name}": value}),
        pytest.raises(InvalidArgumentError, match=message),
    ):
        dataset_to_zarr(dataset, tmp_path / "scan.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("workers", ["two", -3, 0, 1.5]),
        ("threads", ["two", -1]),
        ("jobs", [0, "many"]),
        ("memory-limit", ["much", 4, -1, [2]]),
        ("cluster", [3]),
        ("progress-interval", ["abc", "0s", "-1s", None, [1], "5 parsecs"]),
        ("storage-options", ["region", 3]),
    ],
)
def test_a_setting_of_where_it_runs_is_looked_at_too(name: str, wrong: list[object]) -> None:
    for value in wrong:
        with (
            dask.config.set({f"ctlab-zarr.{name}": value}),
            pytest.raises(InvalidArgumentError, match=rf"ctlab-zarr\.{name} is .*: set it to "),
        ):
            setting(name)


def test_every_setting_has_a_rule_that_its_default_keeps() -> None:
    for name, value in load_defaults().items():
        assert setting(name) == value


def test_what_the_environment_says_wrong_is_an_error_that_names_the_variable(
    tmp_path: Path,
) -> None:
    source = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(random_voxels((8, 9, 10))), source)
    for name, value, more in (
        ("WORKERS", "-3", ()),
        ("WORKERS", "two", ()),
        ("PROGRESS_INTERVAL", "abc", ("--workers", "1")),
    ):
        with configured(**{name: value}):
            done = run_here("convert", source, tmp_path / "b.zarr", *more)
        assert done.returncode == 2, done.stderr
        assert f"(DASK_CTLAB_ZARR__{name}): set it to a " in done.stderr
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("text", ["ctlab-zarr: 5", "ctlab-zarr: [1]"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    for command in (["config"], ["plan", tmp_path / "a.zarr", tmp_path / "b.zarr"]):
        with configured(tmp_path):
            done = run_here(*command)
        assert done.returncode != 0
        assert f"mine.yaml: {text.replace(':', ' is')}: it has to hold settings" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ctlab-zarr: 5", "mine.yaml: ctlab-zarr is 5: it has to hold settings"),
        ("ctlab-zarr: [", "mine.yaml' is malformed"),
        ("ctlab-zarr: {workers: two}", "mine.yaml): set it to a number"),
    ],
)
def test_a_command_that_starts_with_a_wrong_file_names_it(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    dataset_to_zarr(make_dataset(random_voxels((8, 9, 10))), tmp_path / "a.zarr")
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "plan", tmp_path / "a.zarr", "b.zarr"]
    environment = os.environ | {"DASK_CONFIG": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_plan_of_the_command_is_that_of_the_write(tmp_path: Path) -> None:
    source = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(random_voxels((64, 64, 64))), source)
    environment = {"LEVELS": "2", "CODEC": "gzip:1", "CHUNKS": "16", "SHARDS": "32,32,32"}
    found = json.loads(run("plan", source, tmp_path / "b.zarr", "--json", **environment))
    assert found["codecs"] == ["gzip"]
    assert len(found["levels"]) == 2
    with dask.config.set(
        {"ctlab-zarr": {"levels": 2, "codec": "gzip:1", "chunks": 16, "shards": [32, 32, 32]}}
    ):
        wanted = plan(dataset_from_zarr(source), tmp_path / "b.zarr")
    assert found["chunks"] == list(wanted.levels[0].layout.inner_chunk_shape)
    assert found["fingerprint"] == wanted.fingerprint
    told = run("plan", source, tmp_path / "b.zarr", "--levels", "1", **environment)
    assert "gzip" in told
    assert "levels" not in told


def test_workers_are_as_the_settings_say_where_nothing_is_given() -> None:
    with dask.config.set({"ctlab-zarr": {"workers": 3, "memory-limit": "2GiB"}}):
        assert cluster_resources() == Resources(3, 2 << 30)
        assert cluster_resources(jobs=2) == Resources(2, 2 << 30)
        assert cluster_resources(threads=2, memory_limit="1GiB") == Resources(6, 1 << 29)
    with dask.config.set({"ctlab-zarr": {"cluster": "local", "jobs": 4, "threads": 2}}):
        assert cluster_resources().n_threads == 4
        assert cluster_resources(jobs=3).n_threads == 6
    with dask.config.set({"ctlab-zarr": {"cluster": "mpi", "threads": 2}}):
        assert cluster_resources() == Resources(1)
        assert cluster_resources("mpi") == Resources(1)
        with pytest.raises(InvalidArgumentError, match="says what its workers are"):
            cluster_resources("mpi", threads=3)


def test_config_says_what_is_in_force_and_where_from(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ctlab-zarr:\n  levels: auto\n  codec: none\n  chunk: 3\n")
    configuration = {"folder": tmp_path, "CODEC": "zstd:3"}
    found = {s["name"]: s for s in json.loads(run("config", "--json", **configuration))}
    assert found["levels"]["value"] == "auto"
    assert found["levels"]["origin"] == str(tmp_path / "mine.yaml")
    assert found["codec"]["value"] == "zstd:3"
    assert found["codec"]["origin"] == "DASK_CTLAB_ZARR__CODEC"
    assert found["shards"] == {"name": "shards", "value": "auto", "origin": "default"}
    assert "there is no such setting" in found["chunk"]["origin"]
    assert "levels             auto  (" in run("config", **configuration)


def test_the_example_is_a_configuration_that_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "ctlab-zarr.yaml"
    path.write_text(run("config", "--example"))
    assert path.read_text() == packaged_settings()
    assert "ctlab-zarr" in read_configuration(path)
    path.write_text("ctlab-zarr:\n  shard: none\n")
    with pytest.raises(InvalidArgumentError, match=r"is ctlab-zarr\.shards meant"):
        read_configuration(path)


def test_the_command_line_leaves_to_the_settings_what_it_is_not_told(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(random_voxels((64, 64, 64))), tmp_path / "scan.zarr")
    with dask.config.set({"ctlab-zarr": {"levels": 2, "chunks": 16}}):
        result = CliRunner().invoke(
            main,
            ["convert", str(tmp_path / "scan.zarr"), str(tmp_path / "new.zarr"), "-q",
             "--workers", "1"],
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(dataset_from_zarr(tmp_path / "new.zarr").levels) == 2
