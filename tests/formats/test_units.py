"""Voxel units: what is accepted, and how one converts to another."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes
from ctlab_dask_zarr.text import size_text

MICRO_SIGN, MU = "\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"
RING = "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"
LENGTHS = [unit for unit in VoxelUnit if unit is not VoxelUnit.VOXEL]


@pytest.mark.parametrize(
    ("unit", "names"),
    [
        (VoxelUnit.M, ["m", "meter", "metres", "M"]),
        (VoxelUnit.CM, ["cm", "centimeter", "Centimetre"]),
        (VoxelUnit.MM, ["mm", "millimeters", "MM", " mm\n", "mm\0\0"]),
        (VoxelUnit.UM, ["um", "micrometre", f"{MICRO_SIGN}m", f"{MU}m", f"{MU}M", "mu"]),
        (VoxelUnit.UM, ["micron", "MICRONS", MICRO_SIGN, MU]),
        (VoxelUnit.NM, ["nm", "nanometers"]),
        (VoxelUnit.ANGSTROM, ["angstrom", "Angstroms", "a", "A", "au", "a.u.", "A.U."]),
        (VoxelUnit.ANGSTROM, ["\N{ANGSTROM SIGN}", RING, "A\N{COMBINING RING ABOVE}"]),
        (VoxelUnit.VOXEL, ["voxel", "voxels", "Voxel"]),
    ],
)
def test_every_usual_name_is_accepted(unit: VoxelUnit, names: list[str]) -> None:
    for name in names:
        assert VoxelUnit.from_str(name) is unit


@given(st.sampled_from(VoxelUnit), st.booleans(), st.sampled_from(["", " ", "\t", "\0"]))
def test_short_and_full_names_come_back_in_any_case(
    unit: VoxelUnit, upper: bool, around: str
) -> None:
    for name in (unit.value, unit.to_full_name()):
        text = name.upper() if upper else name
        assert VoxelUnit.from_str(around + text + around) is unit


@pytest.mark.parametrize("text", ["", "furlong", "m m", "1", None, 3])
def test_anything_else_is_refused_with_what_is_accepted(text: object) -> None:
    with pytest.raises(ValueError, match="mm: mm, millimeter"):
        VoxelUnit.from_str(text)  # type: ignore[arg-type]


def test_a_unit_equals_its_short_name_and_hashes_as_it() -> None:
    assert VoxelUnit.MM == "mm"
    assert VoxelUnit.MM != "cm"
    assert {VoxelUnit.MM: 1}["mm"] == 1
    assert str(VoxelUnit.ANGSTROM) == "angstrom"
    assert json.dumps(VoxelUnit.UM) == '"um"'
    assert pickle.loads(pickle.dumps(VoxelUnit.UM)) is VoxelUnit.UM


def test_full_names_are_those_of_ome_zarr() -> None:
    assert [unit.to_full_name() for unit in VoxelUnit] == [
        *("meter", "centimeter", "millimeter", "micrometer", "nanometer", "angstrom", "voxel")
    ]


def test_conversion_is_exact_for_powers_of_ten() -> None:
    assert VoxelUnit.MM.conversion_factor(VoxelUnit.UM) == 1000.0
    assert VoxelUnit.UM.conversion_factor(VoxelUnit.MM) == 0.001
    assert VoxelUnit.NM.conversion_factor(VoxelUnit.ANGSTROM) == 10.0
    assert VoxelUnit.CM.conversion_factor(VoxelUnit.CM) == 1.0


@given(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS))
def test_conversion_there_and_back_is_one(one: VoxelUnit, other: VoxelUnit) -> None:
    product = one.conversion_factor(other) * other.conversion_factor(one)
    assert product == pytest.approx(1.0, rel=1e-15)


def test_voxels_are_no_length() -> None:
    for pair in ((VoxelUnit.VOXEL, VoxelUnit.MM), (VoxelUnit.MM, VoxelUnit.VOXEL)):
        with pytest.raises(ValueError, match="a voxel is not a length"):
            pair[0].conversion_factor(pair[1])


def test_sizes_are_the_same_within_the_precision_of_float32() -> None:
    assert are_same_sizes((2.5, 2.5), (2.5, 2.5000001))
    assert not are_same_sizes((2.5, 2.5), (2.5, 2.51))


def test_a_size_is_one_number_where_voxels_are_cubes() -> None:
    assert size_text((2.5, 2.5, 2.5), VoxelUnit.UM) == "2.5 um"
    assert size_text((3.0, 2.5), VoxelUnit.MM) == "3 x 2.5 mm"
