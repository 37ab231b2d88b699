"""Whether blocks make a whole volume, and what a header says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.netcdf import (
    BlockHeader,
    carried_attributes,
    choose_variable,
    is_stored_as,
    parse_block_header,
    plain_attribute,
)
from ctlab_dask_zarr.formats.netcdf_blocks import validate_blocks
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.units import VoxelUnit


def block(number: int, n_blocks: int = 6, step: int = 18, total: int = 100) -> BlockHeader:
    z_start = number * step
    n_slices = min(step, total - z_start)
    attributes = {
        "zdim_total": total,
        "zdim_range": [z_start, z_start + n_slices - 1],
        "number_of_files": n_blocks,
        "total_grid_size_xyz": [30, 20, total],
        "voxel_size_xyz": [1.0, 2.0, 3.0],
        "voxel_unit": "mm",
    }
    if number == 0:
        attributes["dataset_id"] = "20250101_000000_tomo"
    return parse_block_header(
        f"block{number:08d}.nc",
        variable="tomo",
        stored_dtype=np.dtype("<i2"),
        shape=(n_slices, 20, 30),
        attributes=attributes,
    )


def whole_volume() -> list[BlockHeader]:
    return [block(number) for number in range(6)]


def kinds(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.location, problem.kind) for problem in problems]


@given(st.permutations(range(6)))
def test_a_whole_volume_has_no_problems_in_any_order(order: list[int]) -> None:
    assert validate_blocks([block(number) for number in order]) == []


def test_a_missing_block_is_named_with_its_slices() -> None:
    headers = whole_volume()
    del headers[3]
    (problem,) = validate_blocks(headers)
    assert problem.location == "block00000003.nc"
    assert problem.kind == "missing"
    assert problem.message.startswith("block 00000003 missing (z 54-71): copy block00000003.nc ")


@given(st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_every_missing_block_is_named_and_nothing_else(absent: set[int]) -> None:
    headers = [header for header in whole_volume() if header.number not in absent]
    problems = validate_blocks(headers)
    assert kinds(problems) == [(f"block{n:08d}.nc", "missing") for n in sorted(absent)]
    for problem, number in zip(problems, sorted(absent), strict=True):
        # The short last block alone does not tell the size of the others.
        if headers[0].number != 5:
            last = min(number * 18 + 17, 99)
            assert f"missing (z {number * 18}-{last})" in problem.message


def test_an_unreadable_block_is_not_called_missing() -> None:
    headers = whole_volume()
    del headers[2:4]
    failed = {"block00000002.nc": ("damaged", "ends too early")}
    assert [problem.message.split(":")[0] for problem in validate_blocks(headers, failed)] == [
        "block 00000002 damaged (z 36-53)",
        "block 00000003 missing (z 54-71)",
    ]


@pytest.mark.parametrize(
    ("number", "change", "kind", "text"),
    [
        (2, {"variable": "labels"}, "dataset", "variable is labels"),
        (2, {"stored_dtype": np.dtype("<f4")}, "dtype", "stored dtype is float32"),
        (2, {"zdim_total": 99}, "total", "zdim_total is 99, theirs 100"),
        (2, {"number_of_files": 7}, "number_of_files", "number_of_files is 7, theirs 6"),
        (2, {"voxel_unit": VoxelUnit.UM}, "voxel_unit", "voxel_unit is um, theirs mm"),
        (2, {"voxel_size_xyz": (1.0, 2.0, 3.1)}, "voxel_size", "[1.0, 2.0, 3.1], theirs"),
        (2, {"shape": (17, 20, 30)}, "size", "is 18 slices and its variable 'tomo' has 17"),
        (2, {"shape": (18, 20, 31)}, "size", "its slices are 20 rows of 31"),
        (2, {"z_start": 30}, "size", "zdim_range 30-53 is 24 slices"),
    ],
)
def test_a_block_that_differs_is_named(
    number: int, change: dict[str, object], kind: str, text: str
) -> None:
    headers = whole_volume()
    headers[number] = replace(headers[number], **change)  # type: ignore[arg-type]
    problems = validate_blocks(headers)
    assert (f"block{number:08d}.nc", kind) in kinds(problems)
    assert any(text in problem.message for problem in problems)


def test_a_gap_and_an_overlap_are_named() -> None:
    headers = whole_volume()
    headers[2] = replace(headers[2], z_start=38, shape=(16, 20, 30))
    assert [(p.kind, "(z 36-37)" in p.message) for p in validate_blocks(headers)] == [("gap", True)]
    headers[2] = replace(headers[2], z_start=30, shape=(24, 20, 30))
    assert [(p.kind, "(z 30-35)" in p.message) for p in validate_blocks(headers)] == [
        ("overlap", True)
    ]


def test_slices_that_lack_at_the_end_are_named() -> None:
    headers = whole_volume()
    headers[5] = replace(headers[5], z_stop=98, shape=(8, 20, 30))
    assert [(p.kind, "(z 98-99)" in p.message) for p in validate_blocks(headers)] == [("gap", True)]


def test_a_block_of_another_volume_too_many_is_named() -> None:
    extra = replace(block(5), name="block00000006.nc")
    assert ("block00000006.nc", "extra") in kinds(validate_blocks([*whole_volume(), extra]))


def test_two_blocks_of_one_number_overlap() -> None:
    twin = replace(block(2), name="block2.nc")
    assert "overlap" in {problem.kind for problem in validate_blocks([*whole_volume(), twin])}


def test_one_block_alone_is_not_a_volume() -> None:
    (problem,) = validate_blocks([replace(block(0), name="renamed.nc")])
    assert "one file of 6" in problem.message


def test_colour_volumes_may_count_their_grid_in_voxels() -> None:
    header = replace(block(0, n_blocks=1, step=18, total=18), variable="rgba8", shape=(18, 20, 120))
    assert validate_blocks([header]) == []


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("zdim_range", [0.5, 3], "whole numbers"),
        ("zdim_range", [3], "not 2 numbers"),
        ("zdim_range", "", "no zdim_range"),
        ("zdim_total", "many", "not 1 number"),
        ("total_grid_size_xyz", [1, 2], "not 3 numbers"),
        ("voxel_size_xyz", [0.0, 1.0, 1.0], "not a length"),
        ("voxel_size_xyz", [float("nan"), 1.0, 1.0], "not a length"),
        ("voxel_unit", "furlong", "is not a voxel unit"),
    ],
)
def test_an_attribute_that_cannot_be_is_an_error(key: str, value: object, text: str) -> None:
    attributes = {**block(1).attributes, key: value}
    with pytest.raises(MetadataError, match=text):
        parse_block_header(
            "block00000001.nc",
            variable="tomo",
            stored_dtype=np.dtype("<i2"),
            shape=(18, 20, 30),
            attributes=attributes,
        )


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.bytes_(b"mm\0"), "mm"),
        (b"\xb5m", "\N{MICRO SIGN}m"),
        ("text\0", "text"),
        (np.array([3], np.int32), 3),
        (np.array([1, 2], np.int32), [1, 2]),
        (np.float32(0.5), 0.5),
        (np.array([], np.float32), []),
        (np.array([b"a", b"b"]), ["a", "b"]),
    ],
)
def test_attributes_become_plain_values(value: object, plain: object) -> None:
    assert plain_attribute(value) == plain


def test_what_is_carried_and_what_is_not() -> None:
    carried, refused = carried_attributes(
        {
            **block(0).attributes,
            "history_1": "a 1",
            "coord_transform": "\n",
            "data_min_max": [0.0, float("nan")],
            "scanner": "HeliScan",
            "data_histogram_binsize": 1.0,
            "basename": "tomo",
        }
    )
    assert carried == {"coord_transform": "", "scanner": "HeliScan"}
    assert refused == ["data_min_max"]


def test_the_variable_is_chosen_by_its_name() -> None:
    assert choose_variable(["tomo"], None) == "tomo"
    assert choose_variable(["whatever"], None) == "whatever"
    assert choose_variable(["mask", "tomo"], None) == "tomo"
    assert choose_variable(["labels", "tomo"], DataType.LABELS) == "labels"
    for names in ([], ["labels", "tomo"], ["a", "b"]):
        with pytest.raises(MetadataError, match="three-dimensional variable"):
            choose_variable(names, None)


def test_signed_and_true_dtypes_of_any_byte_order_are_the_type() -> None:
    assert is_stored_as(DataType.TOMO, np.dtype(">i2"))
    assert is_stored_as(DataType.TOMO, np.dtype("<u2"))
    assert not is_stored_as(DataType.TOMO, np.dtype("<f2"))
    assert not is_stored_as(DataType.LABELS, np.dtype("<u4"))


@pytest.mark.parametrize("number", [0, -1, 2**31 - 1])
def test_an_impossible_number_of_files_is_not_counted_to(number: int) -> None:
    from ctlab_dask_zarr.formats.netcdf import parse_block_header

    with pytest.raises(MetadataError, match="number_of_files"):
        parse_block_header(
            "block00000000.nc",
            attributes={"number_of_files": number, "zdim_range": [0, 1]},
            variable="tomo",
            stored_dtype=np.dtype("i2"),
            shape=(2, 3, 4),
        )
