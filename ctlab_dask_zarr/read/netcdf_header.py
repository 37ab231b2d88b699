"""Open one mango netCDF file: its header, and where its voxels are."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import UnsupportedFormatError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.netcdf import (
    BlockHeader,
    choose_variable,
    parse_block_header,
    plain_attribute,
)
from ctlab_dask_zarr.read.netcdf_storage import (
    MAX_LISTED_CHUNKS,
    ByHDF5,
    Chunked,
    Contiguous,
    Storage,
    StoredBlock,
    list_chunks,
    open_hdf5,
)

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

_CDF5_MAGIC = b"CDF\x05"

#: Classic, 64-bit offset, 64-bit data; the last is listed to refuse it by its name.
NETCDF3_MAGIC = (b"CDF\x01", b"CDF\x02", _CDF5_MAGIC)

_MD5_VARIABLE = "md5_checksum"

#: HDF5's registered numbers of the filters that are undone here.
_FILTER_NAMES = {1: "deflate", 2: "shuffle"}


class DamagedFileError(Exception):
    """The file is not whole; `kind` is ``'truncated'`` or ``'damaged'``."""

    def __init__(self, message: str, kind: str = "truncated") -> None:
        super().__init__(message)
        self.kind = kind


class _Found(NamedTuple):
    """What is needed from a file; nothing in it refers to the file or its memory map."""

    variable: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    md5_checksum: bytes | None
    storage: Storage


def open_block(path: str, preferred: DataType | None) -> tuple[BlockHeader, StoredBlock]:
    """Return the header of a file and how its voxels are stored; no voxels are read.

    `preferred` is the data type to look for where the file holds several variables. Raises
    `DamagedFileError`, `MetadataError` where the file holds no volume or contradicts itself, and
    `UnsupportedFormatError` where it is not a netCDF file, or one of 64-bit data (CDF-5).
    """
    status = os.stat(path)
    with open(path, "rb") as file:
        magic = file.read(8)
    if magic == HDF5_MAGIC:
        found = _read_hdf5(path, preferred)
    elif magic.startswith(_CDF5_MAGIC):
        raise UnsupportedFormatError(
            "is netCDF-3 of 64-bit data (CDF-5), which is not read: convert it with "
            "nccopy -k nc4 <this file> <a new file>, and open that"
        )
    elif magic.startswith(NETCDF3_MAGIC):
        found = _read_netcdf3(path, preferred)
    elif len(magic) < 8:
        raise DamagedFileError(f"holds {len(magic)} bytes")
    else:
        raise UnsupportedFormatError("is not a netCDF file: it begins with other bytes")
    header = parse_block_header(
        os.path.basename(path),
        variable=found.variable,
        stored_dtype=found.dtype,
        shape=found.shape,
        attributes=found.attributes,
        md5_checksum=found.md5_checksum,
    )
    end = _end_of_voxels(found)
    if end > status.st_size:
        raise DamagedFileError(f"ends at byte {status.st_size}, its voxels at byte {end}")
    block = StoredBlock(
        name=header.name,
        nbytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        z_start=header.z_start,
        z_stop=header.z_stop,
        is_swapped=not found.dtype.isnative,
        storage=found.storage,
        md5_checksum=found.md5_checksum,
    )
    return header, block


def _end_of_voxels(found: _Found) -> int:
    """Return the byte after the last voxel; 0 if it is not known."""
    n_slices, n_rows, n_columns = found.shape
    if isinstance(found.storage, Contiguous) and n_slices:
        offset, stride = found.storage
        return offset + (n_slices - 1) * stride + n_rows * n_columns * found.dtype.itemsize
    chunks = found.storage.chunks if isinstance(found.storage, Chunked) else None
    return max((chunk.offset + chunk.nbytes for chunk in chunks or ()), default=0)


def _read_hdf5(path: str, preferred: DataType | None) -> _Found:
    import h5py

    try:
        file = open_hdf5(path)
    except OSError as error:
        kind = "truncated" if "truncated" in str(error) else "damaged"
        raise DamagedFileError(f"cannot be opened by HDF5 ({error})", kind) from error
    with file:
        try:
            variable = _find_variable(file, preferred)
            dataset, md5 = file[variable], file.get(_MD5_VARIABLE)
            attributes = {
                key: "" if isinstance(value, h5py.Empty) else plain_attribute(value)
                for key, value in file.attrs.items()
            }
            checksum = None if md5 is None else md5[...].tobytes()
            storage = hdf5_storage(file, dataset)
            return _Found(variable, dataset.dtype, dataset.shape, attributes, checksum, storage)
        except (OSError, RuntimeError, KeyError) as error:
            raise DamagedFileError(f"has a damaged HDF5 structure ({error})", "damaged") from error


def _find_variable(file: Any, preferred: DataType | None) -> str:
    import h5py

    # The usual names first: opening every object of every block costs more than all the rest.
    names = list(file)
    likely = [datatype.value for datatype in DataType if datatype.value in names]
    if preferred is not None and preferred.value in likely:
        likely = [preferred.value]
    for wanted in (likely, names):
        found = [
            name
            for name in wanted
            if isinstance(item := file.get(name), h5py.Dataset)
            and item.ndim == 3
            and item.dtype.kind in "iuf"
        ]
        if found:
            break
    return choose_variable(found, preferred)


def hdf5_storage(file: Any, dataset: Any) -> Storage:
    """Return where the voxels of an HDF5 dataset lie; `ByHDF5` where HDF5 has to find them."""
    import h5py

    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    by_hdf5 = ByHDF5(tuple(dataset.chunks or (1, *dataset.shape[1:])))
    # Offsets count from the start of the file only if it has no user block.
    if file.userblock_size or 0 in dataset.shape:
        return by_hdf5
    fill = np.asarray(dataset.fillvalue, dataset.dtype).tobytes()
    if layout == h5py.h5d.CONTIGUOUS and not plist.get_external_count():
        offset = dataset.id.get_offset()
        if offset is None:
            return Chunked(tuple(dataset.shape), (), fill, ())
        return Contiguous(int(offset), math.prod(dataset.shape[1:]) * dataset.dtype.itemsize)
    if layout != h5py.h5d.CHUNKED:
        return by_hdf5
    codes = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    filters = tuple(_FILTER_NAMES.get(code, "other") for code in codes)
    if "other" in filters or len(set(filters)) != len(filters):
        return by_hdf5
    n_chunks = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    chunks = list_chunks(dataset) if n_chunks <= MAX_LISTED_CHUNKS else None
    return Chunked(tuple(dataset.chunks), filters, fill, chunks)


def _read_netcdf3(path: str, preferred: DataType | None) -> _Found:
    from scipy.io import netcdf_file

    # Opened here, because scipy leaves a file that it cannot parse to the garbage collector. It
    # maps the variables and reads none of them.
    with open(path, "rb") as file:
        try:
            with netcdf_file(file, mmap=True) as mapped:
                attributes, md5, volumes = _describe_netcdf3(mapped)
        # scipy checks nothing, so wrong or missing bytes can raise an error of any type.
        except Exception as error:
            raise DamagedFileError(
                f"is cut short, or its netCDF-3 header is damaged ({error!r})", "damaged"
            ) from error
    name = choose_variable(list(volumes), preferred)
    dtype, shape, storage = volumes[name]
    return _Found(name, dtype, shape, attributes, md5, storage)


def _describe_netcdf3(file: Any) -> tuple[dict[str, Any], bytes | None, dict[str, Any]]:
    # A function of its own: scipy can unmap the file only if no array outlives this.
    arrays = {name: variable.data for name, variable in file.variables.items()}
    md5 = arrays.get(_MD5_VARIABLE)
    # scipy lists them only here; xarray takes them from here too.
    attributes = {key: plain_attribute(value) for key, value in file._attributes.items()}
    volumes = {
        name: (array.dtype, array.shape, _locate_mapped(array))
        for name, array in arrays.items()
        if array.ndim == 3 and array.dtype.kind in "iuf"
    }
    return attributes, None if md5 is None else md5.tobytes(), volumes


def _locate_mapped(array: npt.NDArray[Any]) -> Contiguous:
    """Return where a view of a mapped file lies in the file.

    scipy does not say. But it maps the file from its first byte, and every variable is a view of
    that map: the difference of their addresses is the offset, and the first stride, which is larger
    than a slice if records are interleaved, is the stride in the file.
    """
    mapped = array
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    offset = np.lib.array_utils.byte_bounds(array)[0] - np.lib.array_utils.byte_bounds(mapped)[0]
    return Contiguous(offset, array.strides[0])
