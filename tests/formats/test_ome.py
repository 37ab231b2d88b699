from __future__ import annotations

import copy
from typing import Any

import pytest

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.ome import (
    OMEZarrVersion,
    build_ome_attributes,
    parse_ome_attributes,
)
from ctlab_dask_zarr.formats.units import Given, VoxelUnit

LEVELS = [
    Level("0", voxel_size=(3.0, 2.0, 1.5), origin=(0.0, 0.0, 0.0)),
    Level("1", voxel_size=(6.0, 4.0, 3.0), origin=(1.5, 1.0, 0.75)),
]


def build(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "version": OMEZarrVersion.v05,
        "name": "scan",
        "axes": ("z", "y", "x"),
        "voxel_unit": VoxelUnit.UM,
        "levels": LEVELS,
        "scale_placement": "dataset",
    }
    return build_ome_attributes(**(given | changes))


def test_the_version() -> None:
    assert OMEZarrVersion("0.5") is OMEZarrVersion.v05
    assert build()["version"] == "0.5"


def test_a_unit_is_spelt_in_full_and_one_that_readers_reject_is_left_out() -> None:
    (multiscale,) = build()["multiscales"]
    assert multiscale["axes"] == [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"
    ]
    (multiscale,) = build(voxel_unit=VoxelUnit.VOXEL)["multiscales"]
    assert multiscale["axes"] == [{"name": name, "type": "space"} for name in "zyx"]


def test_each_level_has_one_scale_and_then_perhaps_one_translation() -> None:
    # "exactly one scale, then optionally one translation, each of the array's length"
    (multiscale,) = build()["multiscales"]
    kinds = [[t["type"] for t in d["coordinateTransformations"]] for d in multiscale["datasets"]]
    assert kinds == [["scale"], ["scale", "translation"]]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1"]


@pytest.mark.parametrize("placement", ["dataset", "multiscales"])
@pytest.mark.parametrize("unit", list(VoxelUnit))
def test_what_is_built_is_parsed_again(placement: str, unit: VoxelUnit) -> None:
    image = parse_ome_attributes(build(scale_placement=placement, voxel_unit=unit))
    assert (image.name, image.axes, image.voxel_unit) == ("scan", ("z", "y", "x"), unit)
    for found, level in zip(image.levels, LEVELS, strict=True):
        assert found.path == level.path
        assert found.voxel_size == pytest.approx(level.voxel_size)
        assert found.origin == pytest.approx(level.origin)


def test_scales_of_both_places_are_multiplied_and_translations_added() -> None:
    ome = build(scale_placement="multiscales")
    ome["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [10.0, 10.0, 10.0]},
        {"type": "translation", "translation": [1.0, 2.0, 3.0]},
    ]
    second = parse_ome_attributes(ome).levels[1]
    assert second.voxel_size == (20.0, 20.0, 20.0)
    assert second.origin == (6.0, 7.0, 8.0)


def edited(*path: Any, value: Any = ...) -> dict[str, Any]:
    ome = copy.deepcopy(build())
    inside: Any = ome
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return ome


M = ("multiscales", 0)
TRANSFORMS = (*M, "datasets", 0, "coordinateTransformations")


@pytest.mark.parametrize(
    ("ome", "error", "message"),
    [
        (None, MetadataError, "not an object"),
        ({}, UnsupportedFormatError, "version None"),
        (edited("version", value="0.7"), UnsupportedFormatError, "0.7"),
        (edited("multiscales"), UnsupportedFormatError, "not an image"),
        (edited("multiscales", value=[]), MetadataError, "multiscales"),
        (edited(*M, "axes"), MetadataError, "axes"),
        (edited(*M, "axes", 0, value={"name": "y", "type": "space"}), MetadataError, "once"),
        (
            edited(*M, "axes", value=[{"name": "t"}, {"name": "c"}, {"name": "x"}]),
            UnsupportedFormatError,
            "1 of them spatial",
        ),
        (edited(*M, "datasets", value=[]), MetadataError, "no datasets"),
        (edited(*M, "datasets", 0, "path"), MetadataError, "path"),
        (edited(*TRANSFORMS), MetadataError, "coordinateTransformations"),
        (edited(*TRANSFORMS, value=[]), MetadataError, "scale"),
        (edited(*TRANSFORMS, 0, "type", value="affine"), UnsupportedFormatError, "affine"),
        (edited(*TRANSFORMS, 0, "scale", value=[1.0, 1.0]), MetadataError, "3 axes"),
        (edited(*TRANSFORMS, 0, "scale", value=[1.0, 1.0, -1.0]), MetadataError, "not a length"),
        (edited(*TRANSFORMS, 0, "scale", value=[1.0, 1.0, "1"]), MetadataError, "scale"),
        (edited(*TRANSFORMS, 0, "scale", value=[1.0, 1.0, True]), MetadataError, "scale"),
        (edited(*TRANSFORMS, 0, "scale", value=[1.0, 1.0, 10**400]), MetadataError, "scale"),
        (
            edited(*TRANSFORMS, value=[{"type": "scale", "scale": [1.0] * 3}] * 2),
            MetadataError,
            "scale and translation",
        ),
    ],
)
def test_an_image_that_cannot_be_is_refused(ome: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        parse_ome_attributes(ome)


@pytest.mark.parametrize("unit", [3, ["micrometer"]])
def test_a_unit_that_is_none_is_refused(unit: Any) -> None:
    ome = build()
    for axis in ome["multiscales"][0]["axes"]:
        axis["unit"] = unit
    with pytest.raises(MetadataError):
        parse_ome_attributes(ome)


def test_lengths_in_several_units_are_given_in_one() -> None:
    ome = build(scale_placement="multiscales")
    ome["multiscales"][0]["axes"][0]["unit"] = "nanometer"
    ome["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [500.0, 2.0, 3.0]},
        {"type": "translation", "translation": [1.0, 2.0, 3.0]},
    ]
    image = parse_ome_attributes(ome)
    assert (image.voxel_unit, image.unknown_units) == ("nm", ())
    assert image.levels[0].voxel_size == (500.0, 2000.0, 3000.0)
    # Half a voxel beyond the outer translation, each in the unit of its axis.
    assert image.levels[1].origin == (251.0, 3000.0, 4500.0)


@pytest.mark.parametrize("unit", ["pixel", " ", "furlong", ""])
def test_lengths_in_a_unit_that_nobody_knows_are_voxels(unit: str) -> None:
    ome = build()
    for axis in ome["multiscales"][0]["axes"]:
        axis["unit"] = unit
    image = parse_ome_attributes(ome)
    assert (image.voxel_unit, image.unknown_units) == ("voxel", (repr(unit),))
    assert image.levels == parse_ome_attributes(build()).levels


def test_one_axis_without_unit_leaves_voxels() -> None:
    image = parse_ome_attributes(edited(*M, "axes", 0, "unit"))
    assert (image.voxel_unit, image.unknown_units) == ("voxel", ("none",))


def test_a_scale_of_0_of_a_time_is_read_and_one_of_space_where_the_size_is_known() -> None:
    ome = build()
    multiscale = ome["multiscales"][0]
    multiscale["axes"].insert(0, {"name": "t", "type": "time"})
    for dataset in multiscale["datasets"]:
        for transform in dataset["coordinateTransformations"]:
            transform[transform["type"]].insert(0, 0.0)
    assert parse_ome_attributes(ome).levels == parse_ome_attributes(build()).levels
    bad = edited(*TRANSFORMS, 0, "scale", value=[0.0, 1.0, 1.0])
    bad["multiscales"][0]["axes"][0]["unit"] = "pixel"
    image = parse_ome_attributes(bad, Given(size=True, unit=True))
    assert (image.levels[0].voxel_size, image.unknown_units) == ((1.0, 1.0, 1.0), ())
