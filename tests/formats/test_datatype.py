"""The ten data types of mango."""

from pathlib import Path

import numpy as np
import pytest

from ctlab_dask_zarr.formats.datatype import DataType

TABLE = [
    ("proju16", "uint16", "int16", None, False),
    ("projf32", "float32", "float32", None, False),
    ("tomo_float", "float32", "float32", 1e30, False),
    ("tomo", "uint16", "int16", 65535, False),
    ("float16", "float16", "float16", None, False),
    ("float64", "float64", "float64", 1e300, False),
    ("segmented", "uint8", "int8", 255, True),
    ("distance_map", "float32", "float32", -2.0, False),
    ("labels", "int32", "int32", 2147483647, True),
    ("rgba8", "uint8", "int8", None, False),
]


@pytest.mark.parametrize(("name", "dtype", "stored", "mask", "is_discrete"), TABLE)
def test_the_table_of_types(
    name: str, dtype: str, stored: str, mask: float | None, is_discrete: bool
) -> None:
    datatype = DataType.from_basename(name)
    assert str(datatype) == name
    assert datatype.dtype == np.dtype(dtype)
    assert datatype.stored_dtype == np.dtype(stored)
    assert datatype.is_discrete is is_discrete
    if mask is None:
        assert datatype.mask_value is None
    else:
        assert datatype.mask_value == np.dtype(dtype).type(mask)
        assert isinstance(datatype.mask_value, np.generic)
        assert datatype.mask_value.dtype == datatype.dtype


def test_there_are_no_others() -> None:
    assert [datatype.value for datatype in DataType] == [row[0] for row in TABLE]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tomoHiRes_SS_nc", "tomo"),
        ("/a/b/tomo_float_x.nc", "tomo_float"),
        ("tomo_floatX.zarr/", "tomo_float"),
        ("cntr_tomo_x.nc", "tomo"),
        ("cntr_tomo_float.nc", "tomo_float"),
        (Path("labels_watershed_nc"), "labels"),
        ("float16.nc", "float16"),
    ],
)
def test_the_longest_matching_prefix_tells_the_type(path: str | Path, name: str) -> None:
    assert DataType.infer_from_path(path).value == name


@pytest.mark.parametrize("path", ["head.nc", "", "my_tomo.nc", "/tomo/head.nc"])
def test_a_name_that_tells_nothing_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="say which it is with datatype="):
        DataType.infer_from_path(path)


@pytest.mark.parametrize("name", ["", "Tomo", "tomogram", "tomo "])
def test_an_unknown_basename_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="proju16, projf32"):
        DataType.from_basename(name)
