from __future__ import annotations

import itertools
import json
from datetime import datetime
from typing import Any

import pytest

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.mango import (
    RESERVED_KEYS,
    build_mango_block,
    new_dataset_id,
    parse_mango_block,
)
from ctlab_dask_zarr.formats.units import VoxelUnit

ZYX = ("z", "y", "x")


def build(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "datatype": DataType.TOMO,
        "dataset_id": "20240108_085320_tomoA",
        "history": {"20240108_085320_tomoA": {"parameters": {"a": {"b": "1"}}, "output": "log"}},
        "voxel_size": (3.0, 2.0, 1.5),
        "voxel_unit": VoxelUnit.MM,
        "dimension_names": ZYX,
        "extra_attrs": {},
    }
    return build_mango_block(**(given | changes))


def test_every_field_of_the_block() -> None:
    assert build() == {
        "metadata_version_major": 1,
        "metadata_version_minor": 0,
        "basename": "tomo",
        "dataset_id": "20240108_085320_tomoA",
        "history": {"20240108_085320_tomoA": {"parameters": {"a": {"b": "1"}}, "output": "log"}},
        "voxel_size_xyz": [1.5, 2.0, 3.0],
        "voxel_unit": "mm",
        "coord_transform": "",
        "intensity_f2i_offset_scale": [0.0, 1.0],
        "offset_to_coordinate_origin_xyz": [0.0, 0.0, 0.0],
        "coordinate_origin_xyz": [0, 0, 0],
    }


def test_what_is_built_is_parsed_again() -> None:
    block = json.loads(json.dumps(build(extra_attrs={"data_min_max": [0, 9], "sample": "砂岩"})))
    parsed = parse_mango_block(block, ZYX)
    assert (parsed.datatype, parsed.dataset_id) == (DataType.TOMO, "20240108_085320_tomoA")
    assert (parsed.voxel_size, parsed.voxel_unit) == ((3.0, 2.0, 1.5), VoxelUnit.MM)
    assert parsed.extra_attrs["sample"] == "砂岩"
    assert RESERVED_KEYS.isdisjoint(parsed.extra_attrs)
    assert build(extra_attrs=parsed.extra_attrs) == block


@pytest.mark.parametrize("names", list(itertools.permutations("zyx")), ids="".join)
def test_the_block_holds_x_y_z_whatever_the_order_of_the_axes(names: tuple[str, ...]) -> None:
    edge = {"x": 1.5, "y": 2.0, "z": 3.0}
    size = tuple(edge[name] for name in names)
    block = build(voxel_size=size, dimension_names=names)
    assert block["voxel_size_xyz"] == [1.5, 2.0, 3.0]
    assert parse_mango_block(block, names).voxel_size == size


@pytest.mark.parametrize("names", [("y", "x"), ("z", "x"), ("row", "column")])
def test_an_image_has_two_sizes(names: tuple[str, str]) -> None:
    block = build(voxel_size=(2.0, 1.5), dimension_names=names)
    assert len(block["voxel_size_xyz"]) == 3
    assert parse_mango_block(block, names).voxel_size == (2.0, 1.5)


@pytest.mark.parametrize("key", sorted(RESERVED_KEYS))
def test_a_field_of_the_dataset_cannot_be_replaced(key: str) -> None:
    with pytest.raises(MetadataError, match=key):
        build(extra_attrs={key: "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coordinate_origin_xyz", [1, 2]),
        ("coordinate_origin_xyz", "0 0 0"),
        ("offset_to_coordinate_origin_xyz", [0.0, 0.0, "a"]),
        ("intensity_f2i_offset_scale", [0.0, True]),
        ("intensity_f2i_offset_scale", [0.0, 1.0, 2.0]),
        ("coord_transform", 3),
    ],
)
def test_a_carried_field_of_another_form_is_refused(key: str, value: Any) -> None:
    with pytest.raises(MetadataError, match=key):
        build(extra_attrs={key: value})


def test_carried_fields_of_the_source_win_over_their_defaults() -> None:
    block = build(extra_attrs={"coordinate_origin_xyz": (7, 8, 9), "coord_transform": "flip"})
    assert (block["coordinate_origin_xyz"], block["coord_transform"]) == ([7, 8, 9], "flip")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metadata_version_major": 2}, UnsupportedFormatError, "2.0 is newer"),
        ({"metadata_version_major": "1"}, UnsupportedFormatError, "newer"),
        ({"basename": "tomography"}, MetadataError, "tomography"),
        ({"basename": 3}, MetadataError, "mango"),
        ({"voxel_unit": ["mm"]}, MetadataError, "mango"),
        ({"history": []}, MetadataError, "history"),
        ({"voxel_size_xyz": [1, 2]}, MetadataError, "three lengths"),
        ({"voxel_size_xyz": [1, 2, 0]}, MetadataError, "three lengths"),
        ({"voxel_size_xyz": [1, 2, float("nan")]}, MetadataError, "three lengths"),
        ({"voxel_size_xyz": [1, 2, float("inf")]}, MetadataError, "three lengths"),
        ({"voxel_size_xyz": "123"}, MetadataError, "three lengths"),
    ],
)
def test_a_block_that_cannot_be_is_refused(change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        parse_mango_block(build() | change, ZYX)


def test_an_empty_block_says_nothing() -> None:
    parsed = parse_mango_block({}, ZYX)
    assert (parsed.datatype, parsed.voxel_size, parsed.voxel_unit) == (None, None, None)
    assert (parsed.dataset_id, parsed.history, parsed.extra_attrs) == (None, {}, {})


def test_an_identifier_has_the_local_time() -> None:
    assert new_dataset_id(DataType.TOMO, datetime(2024, 1, 8, 8, 53, 20)) == "20240108_085320_tomo"
