"""The name of an export says its format, and what was exported is compared with its source."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import (
    Dataset,
    InvalidArgumentError,
    Progress,
    StagingExistsError,
    Stop,
    WriteFailedError,
    WriteStoppedError,
    dataset_from_zarr,
    dataset_to_zarr,
    export_dataset,
    verify,
)
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((6, 40, 50))
NAMES = ["slices/", "a.tif", "a.ome.tif", "a.nhdr", "a.raw", "a.h5"]


@pytest.mark.parametrize("name", ["a.png", "slices", "a", "a.mha", "a.tif.gz", "a.zarr", "a.h5x"])
def test_a_name_of_no_kind_is_answered_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        export_dataset(make_dataset(VOXELS), tmp_path / name)
    text = str(caught.value)
    for known in ("slices/", "scan.tif", "scan.ome.tif", "scan.nhdr", "scan.raw", "scan.h5"):
        assert known in text
    assert ("`convert`" in text) == (name == "a.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.nhdr", "a.raw"])
def test_what_is_not_compressed_refuses_a_level(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="would not be compressed"):
        export_dataset(make_dataset(VOXELS), f"{tmp_path}/{name}", compression_level=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_was_exported_is_equal_to_its_source(tmp_path: Path, name: str) -> None:
    dataset_to_zarr(
        make_dataset(VOXELS), tmp_path / "a.zarr", shards=(8, 32, 32), chunks=(4, 16, 16)
    )
    scan = dataset_from_zarr(tmp_path / "a.zarr")
    path = f"{tmp_path}/{name}"
    export_dataset(scan, path)
    problems = verify(path, scan)
    assert (problems, problems.scope) == ([], "every voxel compared")
    assert verify(path, tmp_path / "a.zarr") == []
    other = make_dataset(VOXELS + 1, (4, 40, 50))
    found = [str(problem) for problem in verify(path, other)]
    assert len(found) == 2
    assert all("differ" in text for text in found)


def truncate(path: Path) -> None:
    file = max(path.iterdir()) if path.is_dir() else path
    file = file.with_suffix(".raw") if file.suffix == ".nhdr" else file
    file.write_bytes(file.read_bytes()[:-2500])


def flip_a_voxel(path: Path) -> None:
    file = max(path.iterdir()) if path.is_dir() else path
    file = file.with_suffix(".raw") if file.suffix == ".nhdr" else file
    data = bytearray(file.read_bytes())
    at = bytes(data).index(VOXELS[5].tobytes())
    data[at + 40] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [truncate, flip_a_voxel])
def test_damage_is_found(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    scan = make_dataset(VOXELS, (3, 40, 50))
    path = f"{tmp_path}/{name}"
    export_dataset(scan, path)
    damage(Path(path))
    problems = verify(path, scan)
    assert len(problems) == 1
    if damage is flip_a_voxel:
        assert "voxels 3:6" in str(problems[0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"voxel_size": (3.0, 2.0, 1.6)}, r"voxel_size is \(3.0, 2.0, 1.5\), the source has"),
        ({"voxels": VOXELS[1:]}, r"shape is \(6, 40, 50\), the source has \(5, 40, 50\)"),
        ({"voxels": VOXELS.astype("uint8")}, "dtype is uint16, the source has uint8"),
    ],
)
def test_another_size_shape_or_type_is_told(tmp_path: Path, change: Any, text: str) -> None:
    export_dataset(make_dataset(VOXELS), tmp_path / "a.tif")
    other = make_dataset(**({"voxels": VOXELS} | change))
    (problem,) = verify(tmp_path / "a.tif", other)
    assert re.search(text, str(problem))


def test_a_volume_of_one_slice_is_compared_though_tiff_makes_an_image_of_it(tmp_path: Path) -> None:
    for name in ("a.tif", "slices/"):
        export_dataset(make_dataset(VOXELS[:1]), f"{tmp_path}/{name}")
        assert verify(f"{tmp_path}/{name}", make_dataset(VOXELS[:1])) == []
        assert len(verify(f"{tmp_path}/{name}", make_dataset(VOXELS[1:2]))) == 1


def test_voxels_that_are_not_a_number_are_equal(tmp_path: Path) -> None:
    voxels = VOXELS.astype("float32")
    voxels[0, 0] = np.nan
    export_dataset(make_dataset(voxels), tmp_path / "a.h5")
    assert verify(tmp_path / "a.h5", make_dataset(voxels)) == []
    assert np.isnan(Dataset.from_path(tmp_path / "a.h5").data[0, 0].compute()).all()


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.h5"])
def test_an_export_that_was_stopped_goes_on(tmp_path: Path, name: str) -> None:
    """It is asked to stop when the first voxels are reported; what is there is kept."""
    scan = make_dataset(random_voxels((64, 40, 50)), (1, 40, 50))
    options: dict[str, Any] = {"compression_level": 1} if name == "a.h5" else {}
    path, stop = f"{tmp_path}/{name}", Stop()

    def ask(told: Progress) -> None:
        if told.nbytes_done:
            stop.ask("enough")

    with dask.config.set(scheduler="sync"):
        with pytest.raises(WriteStoppedError, match=r"enough.*KiB of 250.0 KiB.*resume=True"):
            export_dataset(scan, path, progress=ask, stop=stop, **options)
        assert not Path(path).exists()
        with pytest.raises(StagingExistsError):
            export_dataset(scan, path, **options)
        export_dataset(scan, path, resume=True, **options)
        assert verify(path, scan) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stop_before_anything_was_done_is_no_reason_to_try_again(tmp_path: Path) -> None:
    stop = Stop(deadline=0.0)
    with pytest.raises(WriteFailedError, match=r"no file of .* was finished"):
        export_dataset(make_dataset(VOXELS), tmp_path / "a.tif", stop=stop)


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.h5"])
def test_workers_go_on_after_a_failure(tmp_path: Path, name: str, cluster: Client) -> None:
    """The last block cannot be made before a file is there."""

    def fragile(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["chunk-location"][0] == 15 and not (tmp_path / "mended").exists():
            raise OSError("no more")
        return block

    voxels = make_dataset(random_voxels((16, 40, 50)), (1, 40, 50)).data
    scan = make_dataset(voxels.map_blocks(fragile, dtype="uint16", name=f"fragile-{name}"))
    path = f"{tmp_path}/{name}"
    options: dict[str, Any] = {"compression_level": 1} if name == "a.h5" else {}
    with pytest.raises(WriteFailedError, match=r"no more.*resume=True"):
        export_dataset(scan, path, client=cluster, **options)
    (tmp_path / "mended").touch()
    export_dataset(scan, path, client=cluster, resume=True, **options)
    assert verify(path, scan, client=cluster) == []
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["slices/", "a.tif", "a.nhdr", "a.h5"])
def test_to_path_goes_by_the_name(tmp_path: Path, name: str) -> None:
    scan = make_dataset(VOXELS, (3, 40, 50))
    path = f"{tmp_path}/{name}"
    graph = scan.to_path(path, compute=False)
    assert graph is not None
    assert list(tmp_path.iterdir()) == []
    graph.compute()
    assert verify(path, scan) == []
    assert scan.to_path(path, overwrite=True) is None
    with pytest.raises(InvalidArgumentError, match="shards= is not a parameter of"):
        scan.to_path(path, shards=(4, 4, 4), overwrite=True)
