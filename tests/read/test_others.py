"""Stores as other programs write them: what is odd is read, and said where it matters."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    MetadataError,
    UnsupportedFormatError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.views.compatibility import check_readers

VOXELS = np.arange(8 * 9 * 10, dtype="uint16").reshape(8, 9, 10)


def write_image(
    path: Path,
    units: Sequence[str | None] = ("micrometer",) * 3,
    scale: Sequence[float] = (3.0, 2.0, 1.5),
    *,
    names: Sequence[str | None] | None = ("z", "y", "x"),
    more_axes: Sequence[dict[str, Any]] = (),
) -> Path:
    """An image of one level; more axes come first, with one element each."""
    group = zarr.create_group(path, zarr_format=3)
    shape = (1,) * len(more_axes) + VOXELS.shape
    array = group.create_array(
        "0", shape=shape, chunks=shape, dtype=VOXELS.dtype, dimension_names=names
    )
    array[...] = VOXELS.reshape(shape)
    space = [
        {"name": name, "type": "space"} | ({} if unit is None else {"unit": unit})
        for name, unit in zip("zyx", units, strict=True)
    ]
    transform = {"type": "scale", "scale": list(scale)}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [*more_axes, *space],
                "datasets": [{"path": "0", "coordinateTransformations": [transform]}],
            }
        ],
    }
    return path


@pytest.mark.parametrize(
    ("units", "size", "unit"),
    [
        (["picometer"] * 3, (0.003, 0.002, 0.0015), "nm"),
        (["decimeter"] * 3, (300, 200, 150), "mm"),
        (["inch"] * 3, (76.2, 50.8, 38.1), "mm"),
        (["kilometer"] * 3, (3000, 2000, 1500), "m"),
        (["centimeter"] * 3, (3, 2, 1.5), "cm"),
        (["nanometer", "micrometer", "micrometer"], (3, 2000, 1500), "nm"),
        (["decimeter", "micrometer", "micrometer"], (300_000, 2, 1.5), "um"),
    ],
)
def test_a_unit_of_length_is_converted(
    tmp_path: Path, units: list[str], size: tuple[float, ...], unit: str
) -> None:
    dataset = dataset_from_zarr(write_image(tmp_path / "a.zarr", units))
    assert dataset.voxel_size == pytest.approx(size, rel=1e-15)
    assert dataset.voxel_unit == unit
    np.testing.assert_array_equal(dataset.data.compute(), VOXELS)


@pytest.mark.parametrize(
    ("units", "shown"),
    [
        (["pixel"] * 3, "'pixel'"),
        ([" "] * 3, "' '"),
        ([None, "micrometer", "micrometer"], "none"),
        (["furlong", "micrometer", "pixel"], "'furlong', 'pixel'"),
    ],
)
def test_a_unit_that_nobody_knows_is_told_and_lengths_are_voxels(
    tmp_path: Path, units: list[str | None], shown: str
) -> None:
    path = write_image(tmp_path / "a.zarr", units)
    with pytest.warns(UserWarning, match=re.escape(f"{path} has lengths in a unit")) as warned:
        dataset = Dataset.from_path(path)
    assert f"({shown})" in str(warned[0].message)
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1.5), "voxel")
    # What the user says stands in for it, without a warning.
    dataset = Dataset.from_path(path, voxel_unit="nm")
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1.5), "nm")
    dataset = Dataset.from_path(path, voxel_size=2.5, voxel_unit="um")
    assert (dataset.voxel_size, dataset.voxel_unit) == ((2.5,) * 3, "um")


def test_no_unit_on_any_axis_is_nothing_to_be_told_of(tmp_path: Path) -> None:
    dataset = dataset_from_zarr(write_image(tmp_path / "a.zarr", [None] * 3))
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1.5), "voxel")


def test_what_the_user_says_of_units_is_not_converted(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.zarr", ["nanometer", "micrometer", "micrometer"])
    dataset = dataset_from_zarr(path, voxel_unit="mm")
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1.5), "mm")


def test_a_voxel_size_that_is_none_is_refused_unless_the_user_says_it(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.zarr", ["pixel"] * 3, scale=(0, 2, 1.5))
    with pytest.raises(MetadataError, match="not a length"):
        dataset_from_zarr(path)
    dataset = dataset_from_zarr(path, voxel_size=(3, 2, 1), voxel_unit="um")
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1), "um")
    assert dataset.origin == (0, 0, 0)
    done = CliRunner().invoke(
        main, ["convert", str(path), str(tmp_path / "b.zarr"), "--voxel-size", "2.5um", "-q"]
    )
    assert done.exit_code == 0, done.output
    assert dataset_from_zarr(tmp_path / "b.zarr").voxel_size == (2.5,) * 3


@pytest.mark.parametrize(
    ("field", "value", "size", "unit"),
    [
        ("voxel_unit", "pixel", (3, 2, 1.5), "voxel"),
        ("voxel_unit", "inch", (76.2, 50.8, 38.1), "mm"),
    ],
)
def test_a_mango_block_has_units_of_others_too(
    tmp_path: Path, field: str, value: Any, size: tuple[float, ...], unit: str
) -> None:
    path = tmp_path / "a.zarr"
    block = {"basename": "tomo", "voxel_size_xyz": [1.5, 2, 3], "voxel_unit": "um", "history": {}}
    zarr.create_array(
        path,
        data=VOXELS,
        chunks=(8, 9, 10),
        zarr_format=3,
        attributes={"mango": block | {field: value}},
    )
    if unit == "voxel":
        with pytest.warns(UserWarning, match="unit that is not known here"):
            dataset = dataset_from_zarr(path)
        assert "not known" in str(verify(path)[0])
    else:
        dataset = dataset_from_zarr(path)
    assert dataset.voxel_size == pytest.approx(size)
    assert dataset.voxel_unit == unit
    assert dataset_from_zarr(path, voxel_unit="um").voxel_size == (3, 2, 1.5)


def test_a_scale_of_0_of_a_time_and_a_channel_is_read(tmp_path: Path) -> None:
    axes = [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}]
    path = write_image(
        tmp_path / "a.zarr", scale=(0, 0, 3, 2, 1.5), names=("t", "c", *"zyx"), more_axes=axes
    )
    dataset = dataset_from_zarr(path)
    assert (dataset.shape, dataset.voxel_size) == (VOXELS.shape, (3, 2, 1.5))
    # The size changes along the axes of space, and nothing else.
    edit_metadata(path, voxel_size=5, voxel_unit="mm")
    assert dataset_from_zarr(path).voxel_size == (5, 5, 5)
    (image,) = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert image["axes"][:2] == axes
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [0, 0, 5, 5, 5]


@pytest.mark.parametrize("names", [None, (None, None, None), ("z", None, "x")])
def test_dimensions_without_a_name_have_those_of_the_axes(
    tmp_path: Path, names: Sequence[str | None] | None
) -> None:
    dataset = dataset_from_zarr(write_image(tmp_path / "a.zarr", names=names))
    assert dataset.dimension_names == ("z", "y", "x")
    other = write_image(tmp_path / "b.zarr", names=("x", None, "z"))
    with pytest.raises(MetadataError, match="are not the array's dimensions"):
        dataset_from_zarr(other)


def test_a_size_is_corrected_where_units_differ_or_are_not_known(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.zarr", ["nanometer", "micrometer", "micrometer"])
    dataset_to_zarr(dataset_from_zarr(path), tmp_path / "copy.zarr", levels=2)
    add_levels(path, 2)
    copy = dataset_from_zarr(tmp_path / "copy.zarr", level=1)
    assert dataset_from_zarr(path, level=1).voxel_size == copy.voxel_size
    labels_to_zarr(np.ones(VOXELS.shape, "uint8"), path, "phases")
    assert edit_metadata(path, voxel_size=5)[0] == (
        "voxel size on 2 levels: 3 x 2000 x 1500 nm -> 5 nm"
    )
    for store in (path, path / "labels" / "phases"):
        found = dataset_from_zarr(store)
        assert (found.voxel_size, found.voxel_unit) == ((5, 5, 5), "nm")
    level = dataset_from_zarr(path, level=1)
    # z, by far the finest, was halved alone.
    assert level.voxel_size == pytest.approx((10, 5, 5))
    assert level.origin == pytest.approx((2.5, 0, 0))
    path = write_image(tmp_path / "b.zarr", ["pixel"] * 3)
    assert edit_metadata(path, voxel_size=(3, 2, 1.5), voxel_unit="um") == (
        "voxel size: 3 x 2 x 1.5 voxel -> 3 x 2 x 1.5 um",
    )
    assert dataset_from_zarr(path).voxel_unit == "um"


def test_neuroglancer_is_said_to_refuse_a_unit_that_it_does_not_know(tmp_path: Path) -> None:
    for name, units in (("a", ["pixel"] * 3), ("b", ["inch"] * 3)):
        write_image(tmp_path / name, units)
    found = [{r.reader: r.verdict for r in check_readers(tmp_path / name)} for name in "ab"]
    shown = [verdicts["Neuroglancer"] != "does not show it" for verdicts in found]
    assert shown == [False, True]


def test_a_zarr_v2_group_without_ome_metadata_names_what_to_open(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=VOXELS)
    with pytest.raises(UnsupportedFormatError, match="give the path of an array"):
        dataset_from_zarr(tmp_path / "a.zarr")
    dataset = dataset_from_zarr(tmp_path / "a.zarr" / "0", voxel_size=2.5, voxel_unit="um")
    np.testing.assert_array_equal(dataset.data.compute(), VOXELS)
    assert dataset.voxel_size == (2.5, 2.5, 2.5)


def test_a_scale_of_0_of_an_axis_with_one_element_is_read_with_a_warning(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("0", data=VOXELS[:1])
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    transforms = [{"type": "scale", "scale": [0, 2.0, 2.0]}]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    with pytest.warns(UserWarning, match="scale of 0 along z, where it has one element"):
        found = dataset_from_zarr(tmp_path / "a.zarr")
    assert found.voxel_size == (1.0, 2.0, 2.0)
    group.create_array("0", data=VOXELS, overwrite=True)
    with pytest.raises(MetadataError, match=r"'z', of \d+ elements, is 0.*voxel_size="):
        dataset_from_zarr(tmp_path / "a.zarr")
    assert any("is 0, which" in problem.message for problem in verify(tmp_path / "a.zarr"))
    given = dataset_from_zarr(tmp_path / "a.zarr", voxel_size=2.5)
    assert given.voxel_size == (2.5, 2.5, 2.5)


@pytest.mark.parametrize(
    "transforms",
    [
        [{"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}],
        [{"type": "scale", "scale": [1.0, 1.0]}],
        [{"type": "scale", "scale": "big"}],
        [{"type": "scale"}],
        ["scale"],
        [],
    ],
)
def test_a_size_from_the_user_overrides_any_transformation(
    tmp_path: Path, transforms: list[Any]
) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("0", data=VOXELS)
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    with pytest.raises(CTLabError):
        dataset_from_zarr(tmp_path / "a.zarr")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = dataset_from_zarr(tmp_path / "a.zarr", voxel_size=2.5, voxel_unit="um")
    assert (found.voxel_size, found.voxel_unit) == ((2.5, 2.5, 2.5), "um")
    assert ["not applied" in str(warning.message) for warning in told] == [True] * bool(transforms)


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """An image whose array was moved to another disk, with a link where it was."""
    path = write_image(tmp_path / "a.zarr")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (path / "0").rename(scratch / "0")
    (path / "0").symlink_to(scratch / "0")
    return path


def test_a_link_out_of_a_store_is_refused_with_what_allows_it(moved: Path) -> None:
    with pytest.raises(MetadataError, match="follow_links=True") as refused:
        dataset_from_zarr(moved)
    assert "follow_links=True" in str(refused.value)
    assert "ctlab-zarr.follow-links" in str(refused.value)
    with dask.config.set({"ctlab-zarr.follow-links": True}):
        assert dataset_from_zarr(moved).shape == VOXELS.shape
        with pytest.raises(MetadataError, match="leads out of the store"):
            dataset_from_zarr(moved, follow_links=False)


def test_what_a_link_leads_to_is_read_by_workers_that_know_of_no_setting(
    moved: Path, cluster: Client
) -> None:
    dataset = Dataset.from_path(moved, follow_links=True)
    found = cluster.compute(dataset.data).result()
    np.testing.assert_array_equal(found, VOXELS)


def test_a_store_with_links_is_converted_where_the_command_says_so(
    moved: Path, tmp_path: Path
) -> None:
    command = ["convert", str(moved), str(tmp_path / "b.zarr"), "-q"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "--follow-links" in refused.output
    done = CliRunner().invoke(main, [*command, "--follow-links"])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "b.zarr").data.compute(), VOXELS)
    assert dask.config.get("ctlab-zarr.follow-links", False) is False


def test_a_link_to_what_was_not_fetched_is_no_chunk_of_fill_values(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.zarr")
    (chunk,) = [file for file in (path / "0" / "c").rglob("*") if file.is_file()]
    annex = tmp_path / "annexed"
    chunk.rename(annex)
    chunk.symlink_to(annex)
    dataset = dataset_from_zarr(path, follow_links=True)
    np.testing.assert_array_equal(dataset.data.compute(scheduler="sync"), VOXELS)
    annex.unlink()
    with pytest.raises(MetadataError, match="annexed, which is not there"):
        dataset.data.compute(scheduler="sync")
