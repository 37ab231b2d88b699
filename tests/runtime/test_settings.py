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

from ctlab_dask_zarr import InvalidArgumentError, dataset_from_zarr, dataset_to_zarr, plan
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.cli.options import cluster_arguments
from ctlab_dask_zarr.runtime.configuration import read_configuration
from ctlab_dask_zarr.runtime.settings import packaged_settings
from tests.builders import make_dataset, random_voxels

UNGIVEN = dict.fromkeys(
    ("workers", "threads", "memory_limit", "scheduler", "scheduler_file", "cluster", "jobs")
)


def run(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", *arguments]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    result = subprocess.run(
        command, capture_output=True, text=True, env=kept | environment, timeout=120, check=True
    )
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
        ("codec", "zlob", "no codec"),
        ("levls", 3, "is ctlab-zarr.levels meant"),
        ("levels", "many", "levels='many'"),
        ("chunks", "big", "chunks"),
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


def test_options_of_the_command_line_take_the_place_of_settings() -> None:
    with dask.config.set({"ctlab-zarr": {"workers": 3, "memory-limit": "2GiB"}}):
        assert cluster_arguments(dict(UNGIVEN))["workers"] == 3
        given = cluster_arguments(UNGIVEN | {"workers": 2})
    assert (given["workers"], given["memory_limit"]) == (2, 2 << 30)
    with dask.config.set({"ctlab-zarr": {"cluster": "slurm.yaml", "jobs": 4}}):
        found = cluster_arguments(dict(UNGIVEN))
        assert (found["cluster"], found["jobs"], found["workers"]) == ("slurm.yaml", 4, None)
        assert cluster_arguments(UNGIVEN | {"workers": 2})["cluster"] is None
        assert cluster_arguments(UNGIVEN | {"scheduler": "tcp://a:1"})["threads"] is None


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
