"""One file of mango netCDF, as mango's own are: netCDF-4, which is HDF5.

A file whose voxels are not compressed is made complete by HDF5 but for its voxels, which are then
written to their place without it: HDF5 does everything under one lock of the process. For the same
reason voxels are compressed before they are given to HDF5.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from deflate import zlib_compress

from ctlab_dask_zarr.formats.datatype import DataType

Shape = tuple[int, ...]
#: Slices are compressed together up to this many bytes: whoever reads one slice decodes as many.
_CHUNK_NBYTES = 64 << 20
_MD5_NBYTES = 16


def write_netcdf_file(
    path: str,
    datatype: DataType,
    shape: Shape,
    attributes: Mapping[str, Any],
    slabs: Iterable[npt.NDArray[Any]],
    level: int = 0,
) -> None:
    """Write one file of a volume, with its ``md5_checksum``.

    `shape` is that of the file, `slabs` are its voxels in order, of the dtype of the data type, and
    `level` is that of gzip, 0 for none.
    """
    if level:
        _write_compressed(path, datatype, shape, attributes, slabs, level)
    else:
        _write_plain(path, datatype, shape, attributes, slabs)


def _write_plain(
    path: str,
    datatype: DataType,
    shape: Shape,
    attributes: Mapping[str, Any],
    slabs: Iterable[npt.NDArray[Any]],
) -> None:
    with new_netcdf_file(path) as file:
        add_attributes(file, attributes)
        voxels = add_variable(file, datatype, shape, is_allocated=True)
        checksum = add_checksum(file, bytes(_MD5_NBYTES))
        offset, place = voxels.id.get_offset(), checksum.id.get_offset()
    md5 = hashlib.md5(usedforsecurity=False)
    out = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for slab in slabs:
            part = memoryview(_stored(slab, datatype).reshape(-1).view(np.uint8))
            md5.update(part)
            offset += _put(out, part, offset)
        _put(out, memoryview(md5.digest()), place)
    finally:
        os.close(out)


def _write_compressed(
    path: str,
    datatype: DataType,
    shape: Shape,
    attributes: Mapping[str, Any],
    slabs: Iterable[npt.NDArray[Any]],
    level: int,
) -> None:
    slice_nbytes = max(shape[1] * shape[2] * datatype.dtype.itemsize, 1)
    height = min(max(_CHUNK_NBYTES // slice_nbytes, 1), shape[0])
    md5 = hashlib.md5(usedforsecurity=False)
    with new_netcdf_file(path) as file:
        add_attributes(file, attributes)
        chunks = (height, *shape[1:])
        voxels = add_variable(file, datatype, shape, chunks=chunks, level=level)
        for number, chunk in enumerate(_chunks(slabs, datatype, shape, height, md5)):
            voxels.id.write_direct_chunk((number * height, 0, 0), zlib_compress(chunk, level))
        add_checksum(file, md5.digest())


def _chunks(
    slabs: Iterable[npt.NDArray[Any]], datatype: DataType, shape: Shape, height: int, md5: Any
) -> Iterator[memoryview]:
    """Yield the bytes of chunks of `height` slices; what the last one lacks is zero."""
    chunk = np.zeros((height, *shape[1:]), datatype.stored_dtype.newbyteorder("<"))
    n_filled = 0
    for slab in slabs:
        stored = _stored(slab, datatype)
        md5.update(stored.reshape(-1).view(np.uint8))
        while len(stored):
            n = min(height - n_filled, len(stored))
            chunk[n_filled : n_filled + n] = stored[:n]
            stored, n_filled = stored[n:], n_filled + n
            if n_filled == height:
                yield chunk.reshape(-1).view(np.uint8).data
                n_filled = 0
    if n_filled:
        chunk[n_filled:] = 0
        yield chunk.reshape(-1).view(np.uint8).data


def _stored(slab: npt.NDArray[Any], datatype: DataType) -> npt.NDArray[Any]:
    """Return voxels as the file has them: little-endian, and unsigned ones as signed ones."""
    little = np.ascontiguousarray(slab, datatype.dtype.newbyteorder("<"))
    return little.view(datatype.stored_dtype.newbyteorder("<"))


def _put(out: int, part: memoryview, offset: int) -> int:
    """Write bytes to their place; return how many."""
    n_put = 0
    # A file system may take less than it is given.
    while n_put < len(part):
        n_put += os.pwrite(out, part[n_put:], offset + n_put)
    return n_put


def new_netcdf_file(path: str) -> Any:
    """Return a new HDF5 file that says that it is netCDF-4."""
    import h5py

    # As netCDF does: attributes of more than 64 KiB, such as long logs, need it.
    file = h5py.File(path, "w", libver=("v108", "v108"), track_order=True)
    file.attrs["_NCProperties"] = np.bytes_(
        f"version=2,h5py={h5py.__version__},hdf5={h5py.version.hdf5_version}"
    )
    return file


def add_variable(
    file: Any,
    datatype: DataType,
    shape: Shape,
    *,
    chunks: Sequence[int] | None = None,
    level: int | None = None,
    shuffle: bool = False,
    is_allocated: bool = False,
) -> Any:
    """Make the variable of the voxels and its dimensions; return the variable."""
    import h5py

    scales = [
        _add_dimension(file, f"{datatype.value}_{axis}dim", n, number)
        for number, (axis, n) in enumerate(zip("zyx", shape, strict=True))
    ]
    options: dict[str, Any] = {"chunks": None if chunks is None else tuple(chunks)}
    if level is not None:
        options |= {"compression": "gzip", "compression_opts": level, "shuffle": shuffle}
    if is_allocated:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
        options |= {"dcpl": layout}
    variable = file.create_dataset(
        datatype.value, shape, datatype.stored_dtype.newbyteorder("<"), track_order=True, **options
    )
    _attach_dimensions(variable, scales, range(3))
    return variable


def add_checksum(file: Any, digest: bytes) -> Any:
    """Make the variable with the MD5 of the voxels."""
    scale = _add_dimension(file, "md5sums_dim", len(digest), 3)
    checksum = file.create_dataset("md5_checksum", data=np.frombuffer(digest, np.int8))
    _attach_dimensions(checksum, [scale], [3])
    return checksum


def add_attributes(file: Any, attributes: Mapping[str, Any]) -> None:
    """Give a file its attributes; text is bytes, as in mango's files."""
    import h5py

    for key, value in attributes.items():
        if isinstance(value, str):
            value = np.bytes_(value.encode()) if value else h5py.Empty("S1")
        file.attrs[key] = value


def _add_dimension(file: Any, name: str, n: int, number: int) -> Any:
    """Make a netCDF dimension without coordinates: a scale that says so in its name."""
    scale = file.create_dataset(name, (n,), ">f4", track_order=True)
    scale.make_scale(f"This is a netCDF dimension but not a netCDF variable.{n:10d}")
    scale.attrs["_Netcdf4Dimid"] = np.int32(number)
    return scale


def _attach_dimensions(dataset: Any, scales: Sequence[Any], numbers: Sequence[int]) -> None:
    dataset.attrs["_Netcdf4Coordinates"] = np.array(numbers, np.int32)
    for axis, scale in enumerate(scales):
        dataset.dims[axis].attach_scale(scale)
