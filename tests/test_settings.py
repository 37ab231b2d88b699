"""Settings the dask way: packaged defaults, files, environment, `dask.config.set`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
from tests.builders import make_dataset, random_voxels


def finished(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", *map(str, arguments)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    return subprocess.run(
        command, capture_output=True, text=True, env=kept | environment, timeout=240
    )


def run(*arguments: object, **environment: str) -> str:
    result = finished(*arguments, **environment)
    result.check_returncode()
    return result.stdout


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
        ("codec", "zlob", "codec is 'zlob': set it to a codec: zstd:3"),
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
        variable = f"DASK_CTLAB_ZARR__{name}"
        done = finished("convert", source, tmp_path / "b.zarr", *more, **{variable: value})
        assert done.returncode == 2, done.stderr
        assert f"({variable}): set it to a " in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ctlab-zarr: 5", "mine.yaml: ctlab-zarr is 5: it has to hold settings"),
        ("ctlab-zarr: [1]", "mine.yaml: ctlab-zarr is [1]: it has to hold settings"),
        ("ctlab-zarr: [", "mine.yaml' is malformed"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    commands = (["config"], ["plan", tmp_path / "a.zarr", tmp_path / "b.zarr"])
    for command in commands:
        done = finished(*command, DASK_CONFIG=str(tmp_path))
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_plan_of_the_command_is_that_of_the_write(tmp_path: Path) -> None:
    source = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(random_voxels((64, 64, 64))), source)
    settings = {"LEVELS": "2", "CODEC": "gzip:1", "CHUNKS": "16", "SHARDS": "32,32,32"}
    environment = {f"DASK_CTLAB_ZARR__{name}": value for name, value in settings.items()}
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
    environment = {"DASK_CONFIG": str(tmp_path), "DASK_CTLAB_ZARR__CODEC": "zstd:3"}
    found = {s["name"]: s for s in json.loads(run("config", "--json", **environment))}
    assert found["levels"]["value"] == "auto"
    assert found["levels"]["origin"] == str(tmp_path / "mine.yaml")
    assert found["codec"]["value"] == "zstd:3"
    assert found["codec"]["origin"] == "DASK_CTLAB_ZARR__CODEC"
    assert found["shards"] == {"name": "shards", "value": "auto", "origin": "default"}
    assert "there is no such setting" in found["chunk"]["origin"]
    assert "levels             auto  (" in run("config", **environment)


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
