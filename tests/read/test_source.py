"""A kind of source is one module: the rest of the package finds it by the registry alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from distributed import Client

from ctlab_dask_zarr import (
    Dataset,
    IncompleteSourceError,
    InvalidArgumentError,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
    info,
    verify,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.units import lengths_along
from ctlab_dask_zarr.read import source as registry
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.volume import Source, SourceChecks, Volume
from tests.builders import random_voxels

VOXELS = random_voxels((16, 16, 32))
SMALL: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


@dataclass(frozen=True)
class RawSource:
    """A file of NumPy, with the MD5 of its voxels beside it."""

    location: str
    version: int
    levels = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.load(self.location, mmap_mode="r").shape)

    @property
    def dtype(self) -> Any:
        return np.load(self.location, mmap_mode="r").dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def facts(self) -> dict[str, Any]:
        return {"format": "raw NumPy"}

    def identity(self) -> dict[str, Any]:
        return {"kind": "npy", "path": self.location, "version": self.version}

    def check_unchanged(self) -> None:
        if os.stat(self.location).st_mtime_ns != self.version:
            raise IncompleteSourceError(f"{self.location} changed")

    def checks(self) -> SourceChecks:
        return SourceChecks([partial(self.compare)], n_objects=1, n_unchecked=0)

    def compare(self) -> list[Problem]:
        wanted = Path(f"{self.location}.md5").read_text()
        found = hashlib.md5(np.load(self.location).tobytes()).hexdigest()
        return [] if found == wanted else [Problem(self.location, "md5", "its MD5 differs")]

    def __getitem__(self, index: Any) -> Any:
        return np.load(self.location, mmap_mode="r")[index].copy()


def open_volume(
    path: Any,
    *,
    datatype: Any = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Any = None,
    voxel_unit: Any = None,
    gain: int = 1,
    **kwargs: Any,
) -> Volume:
    root = os.fspath(path)
    source = RawSource(root, os.stat(root).st_mtime_ns)
    static_check: Source = source
    return Volume(
        lazy_array(static_check, "npy", chunks or source.shape, kwargs),
        dimension_names=("z", "y", "x"),
        voxel_unit=voxel_unit or "um",
        voxel_size=lengths_along(3, voxel_size or (3.0, 2.0, 1.5)),
        datatype=datatype or "tomo",
        source=source,
    )


NPY = SimpleNamespace(
    NAME="npy",
    DESCRIPTION="a NumPy file",
    can_open=lambda path: os.path.isfile(path) and Path(path).read_bytes()[:6] == b"\x93NUMPY",
    looks_like=lambda path: path.endswith(".npy"),
    is_ours=lambda path: False,
    open_volume=open_volume,
)


@pytest.fixture(autouse=True)
def with_the_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "KINDS", (*registry.KINDS, NPY))
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "scan.npy"
    np.save(path, VOXELS)
    path.with_name("scan.npy.md5").write_text(hashlib.md5(VOXELS.tobytes()).hexdigest())
    return path


def test_a_new_kind_is_opened_by_its_content_its_name_and_by_hand(
    raw: Path, tmp_path: Path
) -> None:
    for path, options in ((raw, {}), (raw, {"filetype": "NPY"}), (str(raw), {"gain": 2})):
        opened = Dataset.from_path(path, **options)
        np.testing.assert_array_equal(opened.data, VOXELS)
    np.testing.assert_array_equal(xr.open_dataset(raw, engine="ctlab")["tomo"], VOXELS)
    found = info(raw)
    assert (found.format, found.blocks, found.levels) == ("raw NumPy", (1, 1, 1), ())
    assert f"{raw}" in opened._repr_html_()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UnsupportedFormatError, match=r"a Zarr store; mango netCDF; .*; a NumPy"):
        Dataset.from_path(tmp_path / "text")
    with pytest.raises(UnsupportedFormatError, match="'raw', 'npy', 'auto'"):
        Dataset.from_path(raw, filetype="video")


def test_an_option_of_another_kind_is_refused_with_whose_it_is(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is a NumPy file: level= is for a Zarr store"):
        Dataset.from_path(raw, level=1)
    dataset_to_zarr(Dataset.from_path(raw), tmp_path / "a.zarr", **SMALL)
    with pytest.raises(InvalidArgumentError, match="is a Zarr store: gain= is for a NumPy file"):
        Dataset.from_path(tmp_path / "a.zarr", gain=2)
    with pytest.raises(
        InvalidArgumentError, match=r"gains= is not a parameter of Dataset\.from_path"
    ):
        Dataset.from_path(raw, gains=2)


def test_a_new_kind_is_verified_against_its_own_checksums(raw: Path, tmp_path: Path) -> None:
    dataset_to_zarr(Dataset.from_path(raw), tmp_path / "a.zarr", **SMALL)
    assert verify(tmp_path / "a.zarr", raw) == []
    raw.with_name("scan.npy.md5").write_text("of something else")
    assert [str(problem) for problem in verify(tmp_path / "a.zarr", raw)] == [
        "source: its MD5 differs"
    ]


def test_a_write_goes_on_only_from_the_source_that_it_began_with(raw: Path, tmp_path: Path) -> None:
    opened = Dataset.from_path(raw)
    dataset_to_zarr(opened, tmp_path / "a.zarr", **SMALL)
    receipt = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]
    assert receipt["ctlab_dask_zarr"]["source"] == opened.source.identity()
    np.save(raw, VOXELS + 1)
    os.utime(raw, ns=(1, 1))
    with pytest.raises(IncompleteSourceError, match=r"scan\.npy changed"):
        dataset_to_zarr(opened, tmp_path / "b.zarr", **SMALL)
    assert not (tmp_path / "b.zarr").exists()


def test_the_command_converts_and_verifies_a_new_kind(
    raw: Path, tmp_path: Path, cluster: Client
) -> None:
    scheduler = ("--scheduler", cluster.scheduler_info()["address"])
    arguments = ("convert", raw, tmp_path / "a", "--chunks", "8,8,8", "--shards", "16,16,16")
    options = ("--voxel-size", "5um", "--check-source", "--verify", "-q", *scheduler)
    done = CliRunner().invoke(main, [*map(str, (*arguments, *options))])
    assert done.exit_code == 0, done.stderr
    copy = dataset_from_zarr(tmp_path / "a.zarr")
    assert copy.voxel_size == (5.0, 5.0, 5.0)
    np.testing.assert_array_equal(copy.data, VOXELS)
