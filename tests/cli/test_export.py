"""`export` as people use it: names, parts of volumes, what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr
from tests.builders import make_dataset, random_voxels
from tests.builders import run_here as run

VOXELS = random_voxels((24, 40, 48)) * 100


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    layout: dict[str, Any] = {"shards": (16, 16, 16), "chunks": (8, 8, 8), "levels": 2}
    dataset_to_zarr(make_dataset(VOXELS, dataset_id="20250101_000000_tomo"), path, **layout)
    return path


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.nhdr", "a.h5", "tomo_nc/", "b/a.raw"])
def test_a_store_is_exported_by_the_name_and_verified(
    tmp_path: Path, store: Path, name: str
) -> None:
    done = run("export", store, f"{tmp_path}/{name}", "--verify", "--mkdir", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verified"]
    assert result["destination"].startswith(str(tmp_path))
    options = {"shape": VOXELS.shape, "dtype": "uint16"} if name.endswith(".raw") else {}
    found = Dataset.from_path(f"{tmp_path}/{name}".rstrip("/"), **options, voxel_unit="um",
                              **({"voxel_size": 1} if options else {}))  # fmt: skip
    np.testing.assert_array_equal(found.data.compute(), VOXELS)
    again = run("verify", f"{tmp_path}/{name}", "--source", store)
    assert (again.returncode, "every voxel compared and equal" in again.stdout) == (0, True)


def test_a_level_a_part_and_other_grey_values(tmp_path: Path, store: Path) -> None:
    part = ("--level", "1", "--crop", "2:20,:,4:20", "--to", "uint8", "--window", "1:99")
    done = run("export", store, tmp_path / "a.nhdr", *part, "--verify", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'a.raw'}: 2 files, ")
    assert done.stdout.endswith(" s, verified\n")
    assert done.stderr == ""
    wanted = dataset_from_zarr(store, level=1)[2:20, :, 4:20].rescaled("uint8", window=(1, 99))
    found = Dataset.from_path(tmp_path / "a.nhdr")
    np.testing.assert_array_equal(found.data.compute(), wanted.data.compute())
    assert found.voxel_size == wanted.voxel_size
    assert found.origin == pytest.approx(wanted.origin)
    same = run("verify", tmp_path / "a.nhdr", "--source", store, *part)
    assert same.returncode == 0, same.stdout
    other = run("verify", tmp_path / "a.nhdr", "--source", store, "--level", "1")
    assert other.returncode == 3


def test_a_binned_part_is_made_of_slabs(tmp_path: Path, store: Path) -> None:
    done = run("export", store, f"{tmp_path}/s/", "--bin", "2", "--crop", "3:23,:,:", "-q")
    assert done.returncode == 0, done.stderr
    wanted = dataset_from_zarr(store)[3:23].binned(2)
    found = Dataset.from_path(tmp_path / "s")
    np.testing.assert_array_equal(found.data.compute(), wanted.data.compute())
    assert found.voxel_size == wanted.voxel_size


WRONG: dict[str, tuple[list[str], int, str]] = {
    "a level that is not there": (["a.tif", "--level", "7"], 2, "levels 0 to 1"),
    "a part outside": (["a.tif", "--crop", "0:900,:,:"], 2, "z has 24 voxels"),
    "a part of nothing": (["a.tif", "--crop", "9:9,:,:"], 2, "there is nothing"),
    "limits without a type": (["a.tif", "--window", "1:99"], 2, "--to"),
    "an unknown name": (["a.xyz"], 2, "scan.nhdr is raw voxels"),
    "a name without its slash": (["slices"], 2, "slices/ is a folder of TIFF"),
    "a store": (["a.zarr"], 2, "`convert`"),
    "a store with a slash": (["a.zarr/"], 2, "`convert`"),
    "no compression": (["a.tif", "--compression-level", "4"], 2, "would not be compressed"),
    "what is there": (["there.tif"], 4, "exists: choose another name"),
    "a folder in its place": (["there.h5", "--overwrite"], 4, "it is a folder"),
    "a file in its place": (["there.tif/", "--overwrite"], 4, "it is a file"),
    "a folder with other things": (["other/", "--overwrite"], 4, "holds 'notes.txt'"),
    "inside the store": (["STORE/a.tif"], 4, "would be inside"),
    "no folder": (["none/a.tif"], 2, "--mkdir"),
    "both ways to go on": (["a.tif", "--resume", "--restart"], 2, "restart"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_and_nothing_is_touched(
    tmp_path: Path, store: Path, case: str, snapshot: Any
) -> None:
    (tmp_path / "there.tif").write_text("mine")
    (tmp_path / "there.h5").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (name, *options), code, message = WRONG[case]
    before = snapshot(tmp_path), snapshot(store)
    path = name.replace("STORE", str(store)) if "STORE" in name else f"{tmp_path}/{name}"
    done = run("export", store, path, *options, "-q")
    assert message in done.stderr
    assert done.returncode == code, done.stderr
    assert (snapshot(tmp_path), snapshot(store)) == before


def test_a_type_that_tiff_does_not_hold_is_told(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS.astype("float16")), tmp_path / "a.zarr")
    done = run("export", tmp_path / "a.zarr", tmp_path / "a.tif", "-q")
    assert done.returncode == 2
    assert "--to float32" in done.stderr
    done = run("export", tmp_path / "a.zarr", tmp_path / "a.tif", "-q", "--to", "float32")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.h5"])
def test_a_full_disk_is_told_and_the_export_goes_on_later(
    tmp_path: Path, store: Path, name: str
) -> None:
    """The limit of the size of a file stands for it: a write fails in the same way."""
    options = ("--compression-level", "1") if name == "a.h5" else ()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that the write fails.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        done = run("export", store, f"{tmp_path}/{name}", "-q", *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "--resume" in done.stderr
    assert not os.path.exists(f"{tmp_path}/{name}")
    done = run("export", store, f"{tmp_path}/{name}", "-q", "--resume", "--verify", *options)
    assert done.returncode == 0, done.stderr


def test_an_export_does_not_take_the_place_of_its_source(tmp_path: Path, store: Path) -> None:
    (tmp_path / "tomo_nc").mkdir()
    assert run("export", store, tmp_path / "in" / "tomo_nc", "--mkdir").returncode == 0
    source = tmp_path / "in" / "tomo_nc"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for out in (source, f"{source}/"):
        done = run("export", source, out, "--overwrite", "--crop", "0:8,:,:")
        assert done.returncode == 2, done.stderr
        done = run("export", source, out, "--overwrite")
        assert done.returncode == 2, done.stderr
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
