"""Reading mango netCDF: real files, every form of storage, and damaged volumes."""

import gc
import hashlib
import os
import pickle
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.read import netcdf_storage
from ctlab_dask_zarr.read.netcdf import can_open, open_volume
from ctlab_dask_zarr.read.netcdf_source import NetCDFSource
from ctlab_dask_zarr.read.netcdf_storage import ByHDF5, Chunked, Contiguous

Voxels = npt.NDArray[Any]


def open_source(path: Path) -> NetCDFSource:
    source = open_volume(path).source
    assert isinstance(source, NetCDFSource)
    return source


def damage_of(source: NetCDFSource) -> list[Problem]:
    return [problem for check in source.checks().tasks for problem in check()]


def write_netcdf3(
    path: Path, voxels: npt.NDArray[Any], name: str = "tomo", *, version: int = 2, **more: Any
) -> Path:
    """Write a single netCDF-3 file as older versions of mango did."""
    from scipy.io import netcdf_file

    n_z, n_y, n_x = voxels.shape
    attributes: dict[str, Any] = {
        "zdim_total": np.array([n_z], np.int32),
        "zdim_range": np.array([0, n_z - 1], np.int32),
        "number_of_files": np.array([1], np.int32),
        "total_grid_size_xyz": np.array([n_x, n_y, n_z], np.int32),
        "voxel_size_xyz": np.array([1.0, 2.0, 4.0], np.float32),
        "voxel_unit": "um",
        "dataset_id": "20080101_000000_tomo",
        "history_20080101_000000_tomo": "a 1\n",
        **more,
    }
    with netcdf_file(path, "w", version=version) as file:
        for axis, n in zip("zyx", voxels.shape, strict=True):
            file.createDimension(f"{name}_{axis}dim", n)
        dtype = voxels.dtype.newbyteorder(">")
        variable = file.createVariable(name, dtype, tuple(f"{name}_{a}dim" for a in "zyx"))
        variable[:] = voxels
        for key, value in attributes.items():
            setattr(file, key, value)
    return path


# Real files.


def test_real_folder_equals_what_h5py_reads(real_folder: Path) -> None:
    dataset = open_volume(real_folder)
    blocks = []
    for path in sorted(real_folder.glob("block*.nc")):
        with h5py.File(path) as file:
            blocks.append(file["tomo"][...].view(np.uint16))
    assert dataset.shape == (100, 200, 300)
    assert dataset.dtype == np.uint16
    assert dataset.data.chunks == ((18, 18, 18, 18, 18, 10), (200,), (300,))
    assert np.array_equal(dataset.data.compute(), np.concatenate(blocks))


def test_real_folder_keeps_its_metadata(real_folder: Path) -> None:
    dataset = open_volume(real_folder)
    assert dataset.datatype is DataType.TOMO
    assert dataset.dimension_names == ("z", "y", "x")
    assert dataset.voxel_size == (0.03374303877353668,) * 3
    assert dataset.voxel_unit == "mm"
    assert dataset.dataset_id == "20250314_012919_tomoHiRes_SS"
    assert list(dataset.history) == [
        *("20240108_085320_tomo_RMG", "20250314_012919_tomoHiRes_SS"),
    ]
    assert dataset.history["20240108_085320_tomo_RMG"] == {"parameters": {}, "output": ""}
    entry = dataset.history["20250314_012919_tomoHiRes_SS"]
    assert isinstance(entry, dict)
    parameters = entry["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["make_log_files"] is False
    assert parameters["Run_00"]["Subset"]["Input_Data_File"] == {"format": "ZARR3"}  # type: ignore[index, call-overload]
    assert str(entry["output"]).startswith("\n       executable: </home/")
    assert dataset.extra_attrs == {
        "data_description": "Raw reconstructed tomogram data <ushort>",
        "coord_transform": "",
        "intensity_f2i_offset_scale": [0.0, 1.0],
        "offset_to_coordinate_origin_xyz": [0.0, 0.0, 0.0],
        "coordinate_origin_xyz": [0, 0, 0],
    }


def test_real_single_file_keeps_its_value_range(real_file: Path) -> None:
    dataset = open_volume(real_file)
    with h5py.File(real_file) as file:
        assert np.array_equal(dataset.data.compute(), file["tomo"][...].view(np.uint16))
    assert dataset.extra_attrs["data_min_max"] == [0.0, 5999.0]
    assert "data_histogram_offset" not in dataset.extra_attrs


def test_real_checksums_match(real_folder: Path, real_file: Path) -> None:
    for path in (real_folder, real_file):
        volume = open_source(path)
        assert all(block.md5_checksum for block in volume.blocks)
        assert damage_of(volume) == []


def test_real_files_read_as_anu_ctlab_io_reads_them(real_folder: Path, real_file: Path) -> None:
    anu = pytest.importorskip("anu_ctlab_io")
    pytest.importorskip("h5netcdf")
    for path in (real_folder, real_file):
        theirs, ours = anu.Dataset.from_path(path), open_volume(path)
        assert np.array_equal(theirs.data.compute(), ours.data.compute())
        assert tuple(theirs.voxel_size) == pytest.approx(ours.voxel_size)
        assert ours.voxel_unit == str(theirs.voxel_unit)
        assert ours.dataset_id == theirs.dataset_id
        key = ours.dataset_id
        assert isinstance(key, str)
        assert ours.history[key]["parameters"] == theirs.history[key]  # type: ignore[index, call-overload]


def test_unparsed_history_is_the_text_of_the_file(real_file: Path) -> None:
    dataset = open_volume(real_file, parse_history=False)
    entry = dataset.history["20250314_012913_tomoLoRes_SS"]
    assert isinstance(entry, dict)
    assert str(entry["parameters"]).startswith("base                    parms_20250314_122855\n")


# What is written here is what mango writes.


def test_written_folder_is_read_by_anu_ctlab_io(folder: Path, voxels: Voxels) -> None:
    anu = pytest.importorskip("anu_ctlab_io")
    pytest.importorskip("h5netcdf")
    assert np.array_equal(anu.Dataset.from_path(folder).data.compute(), voxels)


def test_written_block_is_read_by_xarray(folder: Path, voxels: Voxels) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(folder / "block00000001.nc", engine="h5netcdf") as block:
        assert block["tomo"].dims == ("tomo_zdim", "tomo_ydim", "tomo_xdim")
        assert block["tomo"].dtype == np.int16
        assert np.array_equal(block["tomo"].to_numpy().view(np.uint16), voxels[5:10])
        assert block.attrs["zdim_range"].tolist() == [5, 9]


def test_voxel_size_is_reversed_once(tmp_path: Path, voxels: Voxels) -> None:
    path = write_mango_netcdf(tmp_path / "tomo.nc", voxels, voxel_size=(1, 2, 4), voxel_unit="nm")
    with h5py.File(path) as file:
        assert file.attrs["voxel_size_xyz"].tolist() == [4, 2, 1]
    dataset = open_volume(path)
    assert dataset.voxel_size == (1, 2, 4)
    assert dataset.voxel_unit == "nm"


# Every form of storage.

FORMS: dict[str, tuple[dict[str, Any], type]] = {
    "one chunk": ({}, Chunked),
    "one shuffled chunk": ({"shuffle": True}, Chunked),
    "few chunks": ({"hdf5_chunk_shape": (5, 14, 9)}, Chunked),
    "many chunks": ({"hdf5_chunk_shape": (2, 3, 4)}, Chunked),
    "many shuffled chunks": ({"hdf5_chunk_shape": (2, 3, 4), "shuffle": True}, Chunked),
    "chunks as they are": (
        {"hdf5_chunk_shape": (3, 5, 17), "compression_level": None},
        Chunked,
    ),
    "contiguous": ({"compression_level": None}, Contiguous),
}


@pytest.fixture(scope="module")
def written_forms(
    tmp_path_factory: pytest.TempPathFactory, voxels: Voxels
) -> dict[str, NetCDFSource]:
    root = tmp_path_factory.mktemp("forms")
    volumes = {}
    for name, (options, _) in FORMS.items():
        path = root / f"tomo {name}_nc"
        write_mango_netcdf(path, voxels, slices_per_block=5, **options)
        volumes[name] = open_source(path)
    volumes["netCDF-3"] = open_source(write_netcdf3(root / "tomo3.nc", voxels.view(np.int16)))
    volumes["read by h5py"] = open_source(
        _write_hdf5(root / "tomo5.nc", voxels, chunks=(4, 7, 17), compression="lzf")
    )
    return volumes


def _write_hdf5(path: Path, voxels: Voxels, name: str = "tomo", **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=voxels, **options)
        file.attrs["voxel_size_xyz"] = [1.0, 1.0, 1.0]
        file.attrs["voxel_unit"] = "mm"
    return path


@pytest.mark.parametrize("name", FORMS)
def test_storage_is_found_and_read_whole(
    written_forms: dict[str, NetCDFSource], voxels: Voxels, name: str
) -> None:
    volume = written_forms[name]
    assert all(isinstance(block.storage, FORMS[name][1]) for block in volume.blocks)
    assert np.array_equal(volume[...], voxels)
    assert np.array_equal(np.asarray(volume), voxels)
    assert damage_of(volume) == []


AXIS = st.one_of(
    st.integers(-14, 13),
    st.builds(
        slice,
        st.none() | st.integers(-30, 30),
        st.none() | st.integers(-30, 30),
        st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3, 7]),
    ),
)


@given(data=st.data(), index=st.lists(AXIS, max_size=3).map(tuple))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_slices_are_those_of_numpy(
    written_forms: dict[str, NetCDFSource],
    voxels: Voxels,
    data: st.DataObject,
    index: tuple[int | slice, ...],
) -> None:
    volume = written_forms[data.draw(st.sampled_from(sorted(written_forms)))]
    got, expected = volume[index], voxels[index]
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", [*FORMS, "netCDF-3", "read by h5py"])
def test_blocks_may_be_written_to_and_are_native(
    written_forms: dict[str, NetCDFSource], name: str
) -> None:
    block = written_forms[name][0:5]
    assert block.flags.writeable
    assert block.dtype.isnative


def test_a_volume_read_by_h5py_is_known_as_such(
    written_forms: dict[str, NetCDFSource],
) -> None:
    (block,) = written_forms["read by h5py"].blocks
    assert block.storage == ByHDF5((4, 7, 17))


@pytest.mark.parametrize(
    ("version", "datatype"),
    [
        *(("netCDF-4", datatype) for datatype in DataType),
        # It has no 16-bit floats.
        *(("netCDF-3", datatype) for datatype in DataType if datatype is not DataType.FLOAT16),
    ],
)
def test_every_data_type_keeps_its_voxels(tmp_path: Path, datatype: DataType, version: str) -> None:
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (4, 5, 8 * datatype.dtype.itemsize), np.uint8)
    expected = np.nan_to_num(raw.view(datatype.dtype))
    path = tmp_path / f"{datatype.value}.nc"
    if version == "netCDF-3":
        write_netcdf3(path, expected.view(datatype.stored_dtype), datatype.value)
    else:
        write_mango_netcdf(path, expected, datatype=datatype)
    dataset = open_volume(path)
    assert dataset.datatype is datatype
    assert dataset.dtype == datatype.dtype
    assert np.array_equal(dataset.data.compute(), expected)


@pytest.mark.parametrize("version", [1, 2])
def test_old_files_keep_their_metadata(tmp_path: Path, voxels: Voxels, version: int) -> None:
    path = write_netcdf3(tmp_path / "x.nc", voxels.view(np.int16), version=version)
    dataset = open_volume(path)
    assert dataset.voxel_size == (4.0, 2.0, 1.0)
    assert dataset.voxel_unit == "um"
    assert dataset.dataset_id == "20080101_000000_tomo"
    assert dataset.history == {"20080101_000000_tomo": {"parameters": {"a": "1"}, "output": ""}}
    assert dataset.data.numblocks == (1, 1, 1)


def test_old_files_of_interleaved_records(tmp_path: Path, voxels: Voxels) -> None:
    from scipy.io import netcdf_file

    path = tmp_path / "tomo.nc"
    digest = hashlib.md5(voxels[:, :, :3].astype("<u2").tobytes(), usedforsecurity=False).digest()
    with netcdf_file(path, "w") as file:
        for name, n in {"z": None, "y": 14, "x": 3, "bytes": 16}.items():
            file.createDimension(name, n)
        file.createVariable("md5_checksum", "c", ("bytes",))[:] = np.frombuffer(digest, "S1")
        file.createVariable("mark", "b", ("z",))[:] = np.arange(23, dtype=np.int8)
        file.createVariable("tomo", "h", ("z", "y", "x"))[:] = voxels[:, :, :3].view(np.int16)
        file.createVariable("position", "d", ("z",))[:] = np.arange(23.0)
        file.voxel_size_xyz, file.voxel_unit = np.ones(3), "mm"
    volume = open_source(path)
    assert np.array_equal(volume[...], voxels[:, :, :3])
    assert np.array_equal(volume[3:9, 2:5, 1], voxels[3:9, 2:5, 1])
    assert damage_of(volume) == []


def test_old_files_of_64_bit_data_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "tomo.nc"
    path.write_bytes(b"CDF\x05" + bytes(100))
    with pytest.raises(UnsupportedFormatError, match=r"tomo\.nc is .*CDF-5.* nccopy -k nc4 "):
        open_volume(path)
    assert can_open(str(path))


def test_old_blocks_make_a_folder(tmp_path: Path, voxels: Voxels) -> None:
    folder = tmp_path / "tomo_nc"
    folder.mkdir()
    for number, z in enumerate(range(0, 23, 12)):
        part = voxels[z : z + 12].view(np.int16)
        write_netcdf3(
            folder / f"block{number:08d}.nc",
            part,
            zdim_total=np.array([23], np.int32),
            zdim_range=np.array([z, z + len(part) - 1], np.int32),
            number_of_files=np.array([2], np.int32),
            total_grid_size_xyz=np.array([17, 14, 23], np.int32),
        )
    assert np.array_equal(open_volume(folder).data.compute(), voxels)


def test_big_endian_hdf5_becomes_native(tmp_path: Path, voxels: Voxels) -> None:
    path = _write_hdf5(tmp_path / "tomo.nc", voxels.astype(">u2"), compression="gzip")
    volume = open_source(path)
    assert volume.dtype.isnative
    assert np.array_equal(volume[3:20, 2, ::-1], voxels[3:20, 2, ::-1])


def test_chunks_that_are_not_there_are_the_fill_value(tmp_path: Path) -> None:
    path = tmp_path / "tomo.nc"
    with h5py.File(path, "w") as file:
        file.attrs.update({"voxel_size_xyz": [1.0, 1.0, 1.0], "voxel_unit": "mm"})
        chunked = file.create_dataset(
            *("tomo", (9, 10, 11), "<i2"), chunks=(4, 4, 4), compression="gzip", fillvalue=-7
        )
        chunked[5, 5, 5] = 3
    expected = np.full((9, 10, 11), 65529, np.uint16)
    expected[5, 5, 5] = 3
    assert np.array_equal(open_source(path)[...], expected)


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 10, 11)}])
def test_voxels_never_written_are_the_fill_value(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "tomo.nc"
    with h5py.File(path, "w") as file:
        file.attrs.update({"voxel_size_xyz": [1.0, 1.0, 1.0], "voxel_unit": "mm"})
        file.create_dataset("tomo", (9, 10, 11), "<i2", fillvalue=-1, **options)
    assert (open_source(path)[2:, 1:3] == 65535).all()


def test_filters_that_a_chunk_was_spared_are_not_undone(tmp_path: Path) -> None:
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    path = tmp_path / "tomo.nc"
    with h5py.File(path, "w") as file:
        file.attrs.update({"voxel_size_xyz": [1.0, 1.0, 1.0], "voxel_unit": "mm"})
        dataset = file.create_dataset(
            *("tomo", voxels.shape, "<i2"), chunks=(2, 5, 6), compression="gzip", shuffle=True
        )
        dataset.id.write_direct_chunk((0, 0, 0), voxels[:2].tobytes(), filter_mask=0b11)
        plain = zlib.compress(voxels[2:].tobytes())
        dataset.id.write_direct_chunk((2, 0, 0), plain, filter_mask=0b01)
    assert np.array_equal(open_source(path)[...], voxels)


def test_a_file_with_a_user_block_is_left_to_h5py(tmp_path: Path, voxels: Voxels) -> None:
    path = tmp_path / "tomo.nc"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs.update({"voxel_size_xyz": [1.0, 1.0, 1.0], "voxel_unit": "mm"})
        file.create_dataset("tomo", data=voxels)
    # Its signature is not at the beginning, where netCDF has it.
    with pytest.raises(UnsupportedFormatError, match="not a netCDF file"):
        open_volume(path)


def test_without_the_fast_library_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch, folder: Path, voxels: Voxels
) -> None:
    def slow(data: Any, nbytes: int, /) -> bytearray:
        return bytearray(zlib.decompress(data, bufsize=nbytes))

    monkeypatch.setattr(netcdf_storage, "zlib_decompress", slow)
    monkeypatch.setattr(netcdf_storage, "DeflateError", zlib.error)
    assert np.array_equal(open_source(folder)[...], voxels)
    with pytest.raises(ValueError, match="damaged"):
        netcdf_storage._inflate(b"no zlib", 10)


# Opening.


def test_opening_reads_no_voxels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("voxels were read")

    monkeypatch.setattr(netcdf_storage, "fill_from", refuse)
    monkeypatch.setattr(netcdf_storage, "_inflate", refuse)
    dataset = open_volume(folder)
    assert isinstance(dataset.data, da.Array)
    with pytest.raises(AssertionError, match="voxels were read"):
        dataset.data.compute(scheduler="sync")


def test_other_files_in_the_folder_do_not_matter(folder: Path, voxels: Voxels) -> None:
    (folder / "README.txt").write_text("made on a Monday")
    (folder / "block.nc").write_text("no number")
    (folder / "block00000001.nc.md5").write_text("x")
    (folder / ".block00000001.nc.swp").write_text("x")
    (folder / "histogram.nc").write_text("x")
    assert np.array_equal(open_volume(folder).data.compute(), voxels)


def test_blocks_are_sorted_by_number(tmp_path: Path, voxels: Voxels) -> None:
    path = Path(write_mango_netcdf(tmp_path / "tomo_nc", voxels, slices_per_block=2))
    for block in path.iterdir():
        block.rename(path / f"block{int(block.stem[5:])}.nc")
    assert np.array_equal(open_volume(path).data.compute(), voxels)


def test_chunks_of_the_users_choice(folder: Path, voxels: Voxels) -> None:
    dataset = open_volume(folder, chunks=(10, 7, -1))
    assert dataset.data.chunks == ((10, 10, 3), (7, 7), (17,))
    assert np.array_equal(dataset.data.compute(), voxels)
    assert np.array_equal(dataset.data[::-2, 3, 4:9].compute(), voxels[::-2, 3, 4:9])


def test_chunks_that_decompress_everything_many_times_are_warned_of(
    folder: Path, voxels: Voxels
) -> None:
    with pytest.warns(UserWarning, match=r"decompressed 14 times.* in pieces of \(5, 14, 17\)"):
        dataset = open_volume(folder, chunks=(5, 1, -1))
    assert np.array_equal(dataset.data[4:6].compute(), voxels[4:6])
    open_volume(folder, chunks=(5, 7, -1))


def test_a_large_file_that_can_be_read_in_parts_is(
    tmp_path: Path, voxels: Voxels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctlab_dask_zarr.read.netcdf._BLOCK_NBYTES", 14 * 17 * 2 * 8)
    plain = write_mango_netcdf(tmp_path / "tomo1.nc", voxels, compression_level=None)
    assert open_volume(plain).data.chunks[0] == (8, 8, 7)
    thirds = write_mango_netcdf(tmp_path / "tomo2.nc", voxels, hdf5_chunk_shape=(3, 14, 17))
    assert open_volume(thirds).data.chunks[0] == (6, 6, 6, 5)
    whole = write_mango_netcdf(tmp_path / "tomo3.nc", voxels)
    assert open_volume(whole).data.chunks[0] == (23,)


def test_graph_names_tell_one_volume_from_another(folder: Path, tmp_path: Path) -> None:
    first = open_volume(folder)
    assert first.data.name == open_volume(folder).data.name
    assert first.data.name != open_volume(folder, chunks=(4, -1, -1)).data.name
    os.utime(folder / "block00000002.nc", ns=(1, 1))
    assert first.data.name != open_volume(folder).data.name


def test_identity_is_json_and_does_not_depend_on_the_place(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved_nc"
    before = open_source(folder).identity()
    shutil.copytree(folder, moved, copy_function=shutil.copy2)
    after = open_source(moved).identity()
    assert before == after
    assert [entry[0] for entry in before["files"]] == sorted(os.listdir(folder))


def test_what_is_decoded_as_a_unit(written_forms: dict[str, NetCDFSource]) -> None:
    assert written_forms["one chunk"].chunk_shape == (5, 14, 17)
    assert written_forms["many chunks"].chunk_shape == (2, 3, 4)
    assert written_forms["contiguous"].chunk_shape == (1, 1, 17)


def test_the_users_data_type_and_voxel_size_win(tmp_path: Path, voxels: Voxels) -> None:
    path = write_mango_netcdf(tmp_path / "labels.nc", voxels)
    assert open_volume(path).datatype is DataType.TOMO
    dataset = open_volume(path, datatype="proju16", voxel_size=(3, 2, 1), voxel_unit="microns")
    assert dataset.datatype is DataType.PROJU16
    assert (dataset.voxel_size, dataset.voxel_unit) == ((3, 2, 1), "um")
    with pytest.raises(InvalidArgumentError, match="'labels' is int32, which cannot be"):
        open_volume(path, datatype=DataType.LABELS)
    with pytest.raises(InvalidArgumentError, match="not a mango data type"):
        open_volume(path, datatype="tomogram")


def test_a_renamed_variable_takes_its_type_from_the_name_of_the_file(
    tmp_path: Path, voxels: Voxels
) -> None:
    known = _write_hdf5(tmp_path / "tomo_x.nc", voxels, "density")
    assert open_volume(known).datatype is DataType.TOMO
    unknown = _write_hdf5(tmp_path / "x.nc", voxels, "density")
    with pytest.raises(MetadataError, match="say which it is with datatype="):
        open_volume(unknown)
    assert open_volume(unknown, datatype="tomo").datatype is DataType.TOMO
    wrong = _write_hdf5(tmp_path / "tomo_y.nc", voxels.astype(np.float64), "density")
    with pytest.raises(MetadataError, match="stores float64 as data type 'tomo'"):
        open_volume(wrong)


def test_a_file_without_voxel_size_asks_for_it(tmp_path: Path, voxels: Voxels) -> None:
    path = tmp_path / "tomo.nc"
    with h5py.File(path, "w") as file:
        file["tomo"] = voxels
    with pytest.raises(MetadataError, match=r"give it with voxel_size=\(z, y, x\)"):
        open_volume(path)
    with pytest.raises(MetadataError, match="give it with voxel_unit="):
        open_volume(path, voxel_size=(1, 1, 1))
    assert open_volume(path, voxel_size=(1, 1, 1), voxel_unit="mm").shape == voxels.shape


def test_a_value_that_json_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, voxels: Voxels
) -> None:
    path = write_mango_netcdf(
        tmp_path / "tomo.nc", voxels, attributes={"data_min_max": [0.0, np.inf], "note": "kept"}
    )
    with pytest.warns(UserWarning, match="left out the attributes data_min_max"):
        dataset = open_volume(path)
    assert dataset.extra_attrs["note"] == "kept"


def test_what_is_recognised(folder: Path, tmp_path: Path, voxels: Voxels) -> None:
    assert can_open(str(folder))
    assert can_open(str(folder / "block00000000.nc"))
    assert can_open(str(write_netcdf3(tmp_path / "no_extension", voxels.view(np.int16))))
    (tmp_path / "empty.nc").touch()
    assert can_open(str(tmp_path / "empty.nc"))
    (tmp_path / "text.nc").write_text("not netCDF at all")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = np.zeros((4, 4))
    for name in ("text.nc", "other.h5", "absent.nc", "."):
        assert not can_open(str(tmp_path / name))


# In other threads and processes.


def test_a_volume_travels_in_few_bytes_and_equals_itself(
    written_forms: dict[str, NetCDFSource], voxels: Voxels
) -> None:
    for volume in written_forms.values():
        packed = pickle.dumps(volume)
        assert len(packed) < 1000
        copy = pickle.loads(packed)
        assert copy == volume
        assert hash(copy) == hash(volume)
        assert np.array_equal(copy[4:7], voxels[4:7])


def test_a_volume_of_many_blocks_travels_in_few_bytes(tmp_path: Path) -> None:
    path = write_mango_netcdf(
        tmp_path / "tomo_nc", np.zeros((164, 3, 4), np.uint16), slices_per_block=1
    )
    assert len(pickle.dumps(open_source(Path(path)))) < 164 * 40


@pytest.mark.parametrize("name", [*FORMS, "netCDF-3", "read by h5py"])
def test_threads_read_the_same(
    written_forms: dict[str, NetCDFSource], voxels: Voxels, name: str
) -> None:
    volume = written_forms[name]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for z in np.random.default_rng(seed).integers(0, 18, 20):
            if not np.array_equal(volume[z : z + 5, 1:], voxels[z : z + 5, 1:]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Damaged and incomplete sources.


def test_a_missing_block_is_named_before_anything_is_read(folder: Path) -> None:
    (folder / "block00000003.nc").unlink()
    with pytest.raises(IncompleteSourceError, match=r"block 00000003 missing \(z 15-19\): copy"):
        open_volume(folder)


def test_a_missing_block_of_a_real_folder_is_named(real_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tomoHiRes_SS_nc"
    shutil.copytree(real_folder, copy)
    copy.chmod(0o755)
    (copy / "block00000003.nc").unlink()
    with pytest.raises(IncompleteSourceError, match=r"block 00000003 missing \(z 54-71\)"):
        open_volume(copy)


def test_every_problem_is_named_at_once(folder: Path) -> None:
    (folder / "block00000001.nc").unlink()
    (folder / "block00000004.nc").unlink()
    os.truncate(folder / "block00000002.nc", 3000)
    (folder / "block00000003.nc").write_text("a web page that says that this file is gone")
    with pytest.raises(IncompleteSourceError) as raised:
        open_volume(folder)
    lines = str(raised.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [
        "block 00000001 missing (z 5-9)",
        "block 00000002 truncated (z 10-14)",
        "block 00000003 unreadable (z 15-19)",
        "block 00000004 missing (z 20-22)",
    ]


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 5000, -1])
def test_a_truncated_block_is_named(folder: Path, n_bytes: int) -> None:
    path = folder / "block00000002.nc"
    os.truncate(path, n_bytes if n_bytes >= 0 else path.stat().st_size - 1)
    with pytest.raises(
        IncompleteSourceError, match=r"block 00000002 (truncated|damaged) \(z 10-14\)"
    ):
        open_volume(folder)


def test_a_folder_without_one_whole_block_is_named_too(folder: Path) -> None:
    for path in folder.iterdir():
        os.truncate(path, 0)
    with pytest.raises(IncompleteSourceError, match="block 00000004 truncated: block00000004"):
        open_volume(folder)


def _truncations(path: Path, step: int) -> list[int]:
    size = path.stat().st_size
    return [*range(0, min(size, 600), 7), *range(600, size, step), size - 1]


@pytest.mark.parametrize("form", ["netCDF-3", "one chunk", "contiguous", "many chunks"])
def test_a_single_file_cut_anywhere_is_an_error_of_its_own(
    tmp_path: Path, voxels: Voxels, form: str
) -> None:
    path = tmp_path / "tomo.nc"
    if form == "netCDF-3":
        write_netcdf3(path, voxels.view(np.int16))
    else:
        write_mango_netcdf(path, voxels, **FORMS[form][0])
    content = path.read_bytes()
    for n_bytes in _truncations(path, 397):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(IncompleteSourceError, match=r"tomo\.nc (truncated|damaged): tomo\.nc "):
            open_volume(path)


@pytest.mark.parametrize("n_bytes", [4, 300, 5000, None])
def test_an_old_file_is_closed_whether_it_is_whole_or_not(
    tmp_path: Path, voxels: Voxels, n_bytes: int | None
) -> None:
    path = write_netcdf3(tmp_path / "tomo.nc", voxels.view(np.int16))
    gc.collect()
    # What is open is closed when it is done with, not when a collection comes by.
    gc.disable()
    try:
        if n_bytes is None:
            volume = open_source(path)
            assert volume[3].any()
        else:
            os.truncate(path, n_bytes)
            with pytest.raises(IncompleteSourceError, match="is cut short"):
                open_volume(path)
        # A memory map has a handle of its own, so this is about both.
        assert str(path) not in {file.path for file in psutil.Process().open_files()}
    finally:
        gc.enable()


def test_an_old_file_with_a_damaged_header_never_ends_in_an_odd_error(
    tmp_path: Path, voxels: Voxels
) -> None:
    path = write_netcdf3(tmp_path / "tomo.nc", voxels.view(np.int16))
    content = path.read_bytes()
    (block,) = open_source(path).blocks
    assert isinstance(block.storage, Contiguous)
    for offset in range(4, block.storage.offset, 5):
        damaged = bytearray(content)
        damaged[offset] ^= 0x01 if offset % 2 else 0x80
        path.write_bytes(damaged)
        with suppress(IncompleteSourceError, MetadataError):
            open_volume(path)


def test_blocks_of_two_volumes_are_told_apart(folder: Path, tmp_path: Path, voxels: Voxels) -> None:
    other = Path(
        write_mango_netcdf(
            tmp_path / "other_nc", voxels[:21], slices_per_block=5, voxel_size=(9, 9, 9)
        )
    )
    shutil.copy(other / "block00000002.nc", folder)
    with pytest.raises(IncompleteSourceError) as raised:
        open_volume(folder)
    assert "block 00000002 does not belong to the others: its zdim_total is 21" in str(raised.value)
    assert "its voxel_size_xyz is [9.0, 9.0, 9.0]" in str(raised.value)


def test_one_block_of_a_folder_is_not_taken_for_the_volume(folder: Path) -> None:
    with pytest.raises(IncompleteSourceError, match="block 00000001 missing"):
        open_volume(folder / "block00000000.nc")


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_touch, "changed since the volume was opened"),
        (lambda path: os.truncate(path, 50), "changed since the volume was opened"),
        (Path.unlink, "is gone since the volume was opened"),
    ],
)
def test_a_file_that_changes_after_opening_is_an_error(
    folder: Path, change: Callable[[Path], None], text: str
) -> None:
    volume = open_source(folder)
    change(folder / "block00000002.nc")
    assert volume[:10].shape == (10, 14, 17)
    with pytest.raises(IncompleteSourceError, match=f"block00000002.nc {text}"):
        volume[12]


def _flip_a_byte(path: Path, offset: int) -> None:
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = struct.unpack("B", file.read(1))
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_chunk_is_named(folder: Path) -> None:
    volume = open_source(folder)
    storage = volume.blocks[1].storage
    assert isinstance(storage, Chunked)
    assert storage.chunks is not None
    _flip_a_byte(folder / "block00000001.nc", storage.chunks[0].offset + 20)
    with pytest.raises(IncompleteSourceError, match=r"block00000001.nc cannot .* \(z 5-9\)"):
        volume[5]
    assert [problem.kind for problem in damage_of(volume)] == ["unreadable"]


def test_one_flipped_voxel_is_found_by_its_checksum(tmp_path: Path, voxels: Voxels) -> None:
    folder = Path(
        write_mango_netcdf(tmp_path / "tomo_nc", voxels, slices_per_block=5, compression_level=None)
    )
    volume = open_source(folder)
    storage = volume.blocks[3].storage
    assert isinstance(storage, Contiguous)
    _flip_a_byte(folder / "block00000003.nc", storage.offset + 77)
    (problem,) = damage_of(volume)
    assert (problem.location, problem.kind) == ("block00000003.nc", "md5")
    assert "z 15-19" in problem.message
    assert [check() for check in volume.checks().tasks[:3]] == [[], [], []]


def test_checksums_are_of_little_endian_voxels(tmp_path: Path, voxels: Voxels) -> None:
    path = write_netcdf3(tmp_path / "tomo.nc", voxels.view(np.int16))
    volume = open_source(path)
    digest = hashlib.md5(voxels.astype("<u2").tobytes(), usedforsecurity=False).digest()
    block = volume.blocks[0]._replace(md5_checksum=digest)
    checked = replace(volume, files=(block,))
    assert damage_of(checked) == []


def test_what_is_not_there_or_not_netcdf(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        open_volume(tmp_path / "absent.nc")
    with pytest.raises(UnsupportedFormatError, match="holds no mango netCDF blocks"):
        open_volume(tmp_path)
    (tmp_path / "tomo.nc").write_text("not netCDF at all")
    with pytest.raises(UnsupportedFormatError, match=r"tomo\.nc is not a netCDF file"):
        open_volume(tmp_path / "tomo.nc")
    with h5py.File(tmp_path / "image.nc", "w") as file:
        file["image"] = np.zeros((4, 4))
    with pytest.raises(MetadataError, match="holds no three-dimensional variable"):
        open_volume(tmp_path / "image.nc")
