"""Arrays of HDF5 files become volumes, however they are stored; bad ones are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from ctlab_dask_zarr import (
    Dataset,
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
    info,
    verify,
)
from ctlab_dask_zarr.read import netcdf_storage
from tests.builders import UM, assert_opens_as, random_voxels

VOXELS = random_voxels((6, 40, 50))


def write(path: Path, name: str = "exchange/data", voxels: Any = VOXELS, **options: Any) -> Path:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=voxels, **options)
    return path


WAYS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "slices": {"chunks": (1, 40, 50)},
    "gzip": {"chunks": (1, 40, 50), "compression": "gzip"},
    "shuffle": {"chunks": (4, 16, 16), "compression": "gzip", "shuffle": True},
    "checksum": {"chunks": (4, 16, 16), "fletcher32": True},
    "lzf": {"chunks": (4, 16, 16), "compression": "lzf"},
    "lz4": {"chunks": (2, 40, 50), **hdf5plugin.LZ4()},
    "blosc": {"chunks": (2, 40, 50), **hdf5plugin.Blosc(cname="zstd")},
    "bitshuffle": {"chunks": (2, 40, 50), **hdf5plugin.Bitshuffle()},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i4", ">f4"])
def test_an_array_is_read_however_it_is_stored(tmp_path: Path, dtype: str, options: Any) -> None:
    path = write(tmp_path / "a.h5", voxels=VOXELS.astype(dtype), **options)
    assert_opens_as(path, VOXELS.astype(dtype))


def test_plain_and_gzip_do_not_go_through_h5py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("read by h5py, under its lock")

    monkeypatch.setattr(netcdf_storage, "_read_by_hdf5", refuse)
    for name in ("contiguous", "slices", "gzip", "shuffle"):
        assert_opens_as(write(tmp_path / f"{name}.h5", **WAYS[name]), VOXELS)


def test_an_array_is_named_where_there_are_several(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    assert_opens_as(f"{path}::/exchange/data", VOXELS)
    write(path, "exchange/data_white", VOXELS[:2])
    write(path, "exchange/theta", np.arange(6.0))
    with pytest.raises(InvalidArgumentError, match=r"a.h5::PATH. They are /exchange/data \(6, 40"):
        Dataset.from_path(path, **UM)
    scan = assert_opens_as(f"{path}::exchange/data_white", VOXELS[:2])
    assert info(f"{path}::/exchange/data").path.endswith("a.h5::/exchange/data") or scan
    with pytest.raises(DatasetNotFoundError, match=r"/exchange/date does not exist .*/data_white"):
        Dataset.from_path(f"{path}::/exchange/date", **UM)
    with pytest.raises(DatasetNotFoundError, match="/exchange is a group"):
        Dataset.from_path(f"{path}::/exchange", **UM)


def test_a_plane(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "p", VOXELS[0])
    scan = Dataset.from_path(f"{path}::/p", **UM)
    assert scan.dimension_names == ("y", "x")
    np.testing.assert_array_equal(scan.data.compute(), VOXELS[0])


def nxdata(path: Path, axes: str, unit: str = "um", steps: str = "regular") -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": list(axes)})
        order = ["zyx".index(axis) for axis in axes]
        group["data"] = VOXELS.transpose(order)
        for axis, n, step in zip("zyx", VOXELS.shape, (3.0, 2.0, 1.5), strict=True):
            group[axis] = np.arange(n) * step + 7
            if steps != "regular":
                group[axis][3] += 1
            group[axis].attrs["units"] = unit
    return path


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx"])
def test_the_axes_of_nxdata(tmp_path: Path, axes: str) -> None:
    scan = Dataset.from_path(nxdata(tmp_path / "a.nxs", axes))
    assert scan.voxel_size == pytest.approx((3.0, 2.0, 1.5))
    assert str(scan.voxel_unit) == "um"
    assert_opens_as(tmp_path / "a.nxs", VOXELS)


@pytest.mark.parametrize("options", [{"unit": "pixel"}, {"unit": ""}, {"steps": "irregular"}])
def test_an_unknown_voxel_size_is_asked_for(tmp_path: Path, options: Any) -> None:
    with pytest.raises(MetadataError, match=r"a.nxs::/entry/data/data does not say the"):
        Dataset.from_path(nxdata(tmp_path / "a.nxs", "zyx", **options))
    assert_opens_as(tmp_path / "a.nxs", VOXELS)


def nxtomo(path: Path, **fields: tuple[float, str]) -> Path:
    """A volume in a file of NXtomo, beside the frames; `fields` are those of the instrument."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        places = {
            "instrument": "NXinstrument", "instrument/detector": "NXdetector",
            "instrument/source": "NXsource", "sample": "NXsample",
        }  # fmt: skip
        for place, name in places.items():
            entry.create_group(place).attrs["NX_class"] = name
        for place, (value, unit) in fields.items():
            key = place.replace("__", "/")
            entry[key] = value
            entry[key].attrs["units"] = unit
        entry["instrument/detector/data"] = VOXELS
        entry["process/volume"] = VOXELS
    return path


PIXELS = {f"instrument__detector__{axis}_pixel_size": (6.5, "um") for axis in "xy"}
FAR = {"instrument__detector__distance": (0.1, "m"), "instrument__source__distance": (-145.0, "m")}
NEAR = {"instrument__detector__distance": (100.0, "mm"), "instrument__source__distance": (0.1, "m")}


def test_the_pixel_size_of_nxtomo(tmp_path: Path) -> None:
    of_sample = {f"sample__{axis}_pixel_size": (3.25, "um") for axis in "xy"}
    for number, (fields, size) in enumerate(
        ((PIXELS, 6.5), (PIXELS | FAR, 6.5), (PIXELS | NEAR | of_sample, 3.25))
    ):
        path = nxtomo(tmp_path / f"{number}.nx", **fields)
        scan = Dataset.from_path(f"{path}::/entry/process/volume")
        assert (scan.voxel_size, str(scan.voxel_unit)) == ((size,) * 3, "um")
        # One axis of the frames is an angle.
        with pytest.raises(MetadataError, match="does not say the"):
            Dataset.from_path(f"{path}::/entry/instrument/detector/data")


@pytest.mark.parametrize(
    "fields",
    [
        PIXELS | NEAR,
        PIXELS | {"instrument__detector__y_pixel_size": (7.0, "um")},
        PIXELS | {"instrument__detector__y_pixel_size": (6.5, "mm")},
        {"instrument__detector__x_pixel_size": (6.5, "um")},
        {f"instrument__detector__{axis}_pixel_size": (6.5, "pixel") for axis in "xy"},
    ],
)
def test_a_pixel_size_that_does_not_fit_the_voxels_is_not_taken(
    tmp_path: Path, fields: Any
) -> None:
    path = nxtomo(tmp_path / "a.nx", **fields)
    with pytest.raises(MetadataError, match="does not say the"):
        Dataset.from_path(f"{path}::/entry/process/volume")


def test_the_element_size_of_imagej_and_ilastik(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "t0")
    with h5py.File(path, "a") as file:
        file["t0"].attrs["element_size_um"] = (3.0, 2.0, 1.5)
    assert Dataset.from_path(path).voxel_size == (3.0, 2.0, 1.5)


def virtual(folder: Path) -> Path:
    layout = h5py.VirtualLayout(shape=VOXELS.shape, dtype="u2")
    for number, page in enumerate(VOXELS):
        write(folder / f"p{number}.h5", "page", page)
        layout[number] = h5py.VirtualSource(f"p{number}.h5", "page", shape=page.shape)
    with h5py.File(folder / "all.h5", "w") as file:
        file.create_virtual_dataset("data", layout, fillvalue=9)
    return folder / "all.h5"


def test_a_virtual_dataset_and_its_files(tmp_path: Path) -> None:
    path = virtual(tmp_path)
    scan = assert_opens_as(path, VOXELS)
    other = (tmp_path / "p3.h5").rename(tmp_path / "away.h5")
    for use in (scan.data.compute, scan.source.check_unchanged):
        with pytest.raises(IncompleteSourceError, match=r"p3.h5 is gone"):
            use()
    with pytest.raises(IncompleteSourceError, match=r"p3.h5 of its files are missing"):
        Dataset.from_path(path, **UM)
    other.rename(tmp_path / "p3.h5")
    write(tmp_path / "p3.h5", "more")
    with pytest.raises(IncompleteSourceError, match=r"p3.h5 changed"):
        scan.data.compute()


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "complex": (lambda p: write(p, "a", VOXELS.astype("c8")), UnsupportedFormatError,
                "holds no array of three axes"),
    "nothing": (lambda p: write(p, "a", np.arange(3)), UnsupportedFormatError,
                "holds no array of three axes"),
    "truncated": (lambda p: (write(p), p.write_bytes(p.read_bytes()[:9000])),
                  IncompleteSourceError, "cannot be read by HDF5"),
    "gone": (lambda p: None, DatasetNotFoundError, "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "text"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named(
    tmp_path: Path, make: Callable[[Path], Any], kind: type[Exception], text: str
) -> None:
    make(tmp_path / "a.h5")
    with pytest.raises(kind, match=text):
        Dataset.from_path(tmp_path / "a.h5", **UM)


@pytest.mark.parametrize("dtype", ["c8", "S5", [("a", "u2"), ("b", "f4")]])
def test_voxels_that_are_not_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    path = write(tmp_path / "a.h5", "a", np.zeros((2, 3, 4), dtype))
    with pytest.raises(UnsupportedFormatError, match="has the type"):
        Dataset.from_path(f"{path}::/a", **UM)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **WAYS["gzip"])
    scan = Dataset.from_path(path, **UM)
    with h5py.File(path) as file:
        place = file["exchange/data"].id.get_chunk_info(2).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 30 : place + 90] = bytes(60)
    path.write_bytes(data)
    scan = Dataset.from_path(path, **UM)
    with pytest.raises(IncompleteSourceError, match=r"a.h5 cannot be read"):
        scan.data.compute()


def test_written_resumed_and_verified_against_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **WAYS["blosc"])
    scan = Dataset.from_path(path, **UM)
    assert scan.data.name == Dataset.from_path(path, **UM).data.name
    dataset_to_zarr(scan, tmp_path / "o.zarr", chunks=(4, 8, 8), shards=(4, 32, 32))
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "o.zarr").data.compute(), VOXELS)
    assert not verify(tmp_path / "o.zarr", scan)
