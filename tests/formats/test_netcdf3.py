"""The header of netCDF-3 files, against files that scipy writes."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.netcdf3 import (
    NetCDF3Variable,
    ShortHeaderError,
    parse_netcdf3_header,
)

scipy_io = pytest.importorskip("scipy.io")

NAMES = {"i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}


def read_variable(content: bytes, variable: NetCDF3Variable) -> np.ndarray:
    row = int(np.prod(variable.shape[1:])) * variable.dtype.itemsize
    starts = (variable.offset + n * variable.first_axis_stride for n in range(variable.shape[0]))
    raw = b"".join(content[start : start + row] for start in starts)
    return np.frombuffer(raw, variable.dtype).reshape(variable.shape)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_record", [False, True])
@pytest.mark.parametrize("dtypes", [["i2"], ["i1"], ["i2", "f8"], ["i1", "i4", "f4", "i2"]])
def test_variables_are_found_where_scipy_wrote_them(
    tmp_path: Path, version: int, is_record: bool, dtypes: list[str]
) -> None:
    path = tmp_path / "x.nc"
    arrays = {}
    with scipy_io.netcdf_file(path, "w", version=version) as file:
        file.createDimension("z", None if is_record else 3)
        file.createDimension("y", 5)
        for number, dtype in enumerate(dtypes):
            name = f"v{number}"
            arrays[name] = np.arange(15).reshape(3, 5).astype(dtype) - number
            variable = file.createVariable(name, NAMES[dtype], ("z", "y"))
            variable[:] = arrays[name]
            variable.units = "odd"
    content = path.read_bytes()
    header = parse_netcdf3_header(content)
    assert list(header.variables) == list(arrays)
    for name, expected in arrays.items():
        found = header.variables[name]
        assert found.dimensions == ("z", "y")
        assert found.shape == (3, 5)
        assert np.array_equal(read_variable(content, found), expected)


def test_attributes_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    with scipy_io.netcdf_file(path, "w") as file:
        file.text = "abcde"
        file.integers = np.array([1, -2, 3], np.int32)
        file.number = np.float32(0.5)
        file.double = np.array([1e300])
    attributes = parse_netcdf3_header(path.read_bytes()).attributes
    assert attributes["text"] == b"abcde"
    assert attributes["integers"].tolist() == [1, -2, 3]
    assert attributes["number"].tolist() == [0.5]
    assert attributes["double"].tolist() == [1e300]


def test_the_form_with_64_bit_counts() -> None:
    def count(n: int) -> bytes:
        return n.to_bytes(8, "big")

    def tag(n: int) -> bytes:
        return n.to_bytes(4, "big")

    content = b"CDF\x05" + count(0)
    content += tag(10) + count(1) + count(1) + b"x\0\0\0" + count(7)
    content += tag(0) + count(0)
    content += tag(11) + count(1) + count(1) + b"v\0\0\0" + count(1) + count(0)
    content += tag(0) + count(0) + tag(8) + count(14) + count(200)
    variable = parse_netcdf3_header(content).variables["v"]
    assert variable == NetCDF3Variable(np.dtype(">u2"), (7,), ("x",), 200, 2)


def test_every_cut_of_a_header_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    with scipy_io.netcdf_file(path, "w") as file:
        file.createDimension("z", 3)
        file.createVariable("v", "h", ("z",))[:] = 1
        file.title = "t"
    content = path.read_bytes()
    end = parse_netcdf3_header(content).variables["v"].offset
    for n_bytes in range(4, end):
        with pytest.raises(ShortHeaderError):
            parse_netcdf3_header(content[:n_bytes])


@given(st.sampled_from([b"CDF\x01", b"CDF\x02", b"CDF\x05"]), st.binary(max_size=200))
def test_odd_bytes_are_refused_or_too_short(magic: bytes, rest: bytes) -> None:
    with suppress(MetadataError, ShortHeaderError):
        parse_netcdf3_header(magic + rest)


def test_other_files_are_refused() -> None:
    with pytest.raises(MetadataError, match="does not begin as a netCDF-3 file"):
        parse_netcdf3_header(b"CDF\x04" + bytes(100))
