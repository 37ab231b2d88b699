"""A part of a dataset lies where it lay in the whole, and tells where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, InvalidArgumentError, dataset_from_zarr, dataset_to_zarr
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((20, 30, 40))


def scan(**options: Any) -> Dataset:
    return make_dataset(VOXELS, 8, **options)


@pytest.mark.parametrize(
    ("index", "origin"),
    [
        (np.s_[5:15, :, 10:], (15.0, 0.0, 15.0)),
        (np.s_[-5:], (45.0, 0.0, 0.0)),
        (np.s_[..., :7], (0.0, 0.0, 0.0)),
        (np.s_[3, 2:], (4.0, 0.0)),
        (np.s_[:, -1], (0.0, 0.0)),
        (np.s_[np.int64(3)], (0.0, 0.0)),
    ],
)
def test_a_part_has_its_voxels_and_its_place(index: Any, origin: Any) -> None:
    part = scan()[index]
    np.testing.assert_array_equal(part.data.compute(), VOXELS[index])
    assert part.origin == origin
    assert len(part.dimension_names) == len(part.voxel_size) == part.data.ndim
    assert part.datatype == "tomo"


def test_a_part_of_a_part_lies_where_it_lay_in_the_whole() -> None:
    part = scan(origin=(100.0, 200.0, 300.0))[5:, 5:, 5:][2:4, :, 1:]
    np.testing.assert_array_equal(part.data.compute(), VOXELS[7:9, 5:, 6:])
    assert part.origin == (121.0, 210.0, 309.0)


def test_a_part_tells_where_it_comes_from_and_keeps_what_it_is() -> None:
    whole = scan(dataset_id="20260101_120000_rock", history={"a": "b"}, is_discrete=True)
    part = whole.crop(z=(5, 15), x=slice(10, 20))
    assert part.dataset_id == "20260101_120000_rock_crop"
    (key,) = part.history.keys() - {"a"}
    assert part.history[key] == {
        "operation": "crop",
        "voxels": {"z": "5:15", "y": "0:30", "x": "10:20"},
        "dataset_id": "20260101_120000_rock",
    }
    assert part.is_discrete
    assert whole.history == {"a": "b"}


@pytest.mark.parametrize(
    ("positions", "index"),
    [
        ({"z": slice(6, 12)}, np.s_[2:5]),
        ({"z": slice(6.1, 11.9), "x": slice(None, 3.0)}, np.s_[3:4, :, :3]),
        ({"y": slice(50, None)}, np.s_[:, 25:]),
        ({"z": 6.4}, np.s_[2]),
    ],
)
def test_positions_are_those_of_centres(positions: Any, index: Any) -> None:
    part = scan().sel(**positions)
    np.testing.assert_array_equal(part.data.compute(), VOXELS[index])
    if part.data.ndim == 3:
        array = scan().to_xarray().sel(**positions)
        np.testing.assert_array_equal(array, part.data)


BAD: list[tuple[Any, str]] = [
    (lambda s: s[20], "z has 20 voxels, 0 to 19: not 20"),
    (lambda s: s[5:25], "there is nothing, or not all, of 5:25"),
    (lambda s: s[5:5], "nothing"),
    (lambda s: s[::2], "leaves voxels out"),
    (lambda s: s[0, 0], "leaves 1 axes"),
    (lambda s: s[:, :, :, :], "is for 4 axes, of 3"),
    (lambda s: s[..., ...], "more than one Ellipsis"),
    (lambda s: s[1.5], "neither a whole number nor a slice"),
    (lambda s: s[:1.5], "not of whole numbers"),
    (lambda s: s[VOXELS > 3], "neither a whole number nor a slice"),
    (lambda s: s.crop(t=(1, 2)), "crop: t is none of the axes z, y, x"),
    (lambda s: s.sel(z=slice(100, 200)), r"z goes from 0 to 57 um: no voxel's centre"),
    (lambda s: s.sel(z=-9.0), r"z goes from 0 to 57 um: -9 um is outside"),
    (lambda s: s.sel(z="top"), "not a position"),
]


@pytest.mark.parametrize(("use", "text"), BAD, ids=[text for _, text in BAD])
def test_what_is_not_there_is_told(use: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        use(scan())


def test_a_part_of_a_store_is_written_and_reads_that_part_alone(tmp_path: Path) -> None:
    dataset_to_zarr(scan(), tmp_path / "a.zarr", chunks=(4, 8, 8), shards=(4, 16, 16))
    store, array = tmp_path / "a.zarr", dataset_from_zarr(tmp_path / "a.zarr").levels[0].path
    next(p for p in (store / array).rglob("*0*0") if p.is_file()).unlink()
    part = dataset_from_zarr(tmp_path / "a.zarr")[8:, 16:, 16:32]
    dataset_to_zarr(part, tmp_path / "b.zarr", chunks=(4, 8, 8), shards=(4, 16, 16))
    found = dataset_from_zarr(tmp_path / "b.zarr")
    np.testing.assert_array_equal(found.data.compute(), VOXELS[8:, 16:, 16:32])
    assert found.origin == part.origin == (24.0, 32.0, 24.0)
