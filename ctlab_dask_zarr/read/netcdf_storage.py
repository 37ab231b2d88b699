"""Where the voxels of a mango netCDF file are, and how they are read from there.

Their places are found once, when a volume is opened. Reading then takes plain file reads and an
inflate that releases the GIL. h5py does both under one lock for the whole process, so two threads
are no faster than one: it reads only what is stored neither plain, nor with gzip, nor with shuffle
and gzip.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.own_memory import OwnMemory
from ctlab_dask_zarr.errors import IncompleteSourceError
from ctlab_dask_zarr.read.files import check_file, fill_from, gone, refuse_other

if TYPE_CHECKING:
    from typing_extensions import Buffer  # In Python's own library from 3.12.

try:
    # Wraps libdeflate, the fastest library measured (docs/design); NumPy uses its buffer as it is.
    from deflate import DeflateError, zlib_decompress
except ImportError:
    DeflateError = zlib.error  # type: ignore[misc,assignment]

    def zlib_decompress(data: Buffer, originalsize: int) -> bytearray:
        """Inflate as deflate does."""
        # Stops one byte after the wanted size, however large the stream would become.
        return bytearray(zlib.decompressobj().decompress(data, originalsize + 1))


#: A block with more chunks than this keeps no list of them, so that a volume stays small in every
#: task. A process that reads the block lists its chunks once.
MAX_LISTED_CHUNKS = 8

Shape = tuple[int, ...]
Region = tuple[slice, ...]


class Contiguous(NamedTuple):
    """Uncompressed voxels: slices `slice_stride` bytes apart, from byte `offset` of the file."""

    offset: int
    slice_stride: int


class Chunk(NamedTuple):
    """One HDF5 chunk: first voxel, place in the file, and a bit for each filter not applied."""

    start: Shape
    offset: int
    nbytes: int
    filter_mask: int


class Chunked(NamedTuple):
    """HDF5 chunks.

    `filters` are ``'shuffle'`` and ``'deflate'``, in the order of writing; `fill` is one voxel of
    chunks that are not there; `chunks` is None where there are more than `MAX_LISTED_CHUNKS`.
    """

    chunk_shape: Shape
    filters: tuple[str, ...]
    fill: bytes
    chunks: tuple[Chunk, ...] | None


class ByHDF5(NamedTuple):
    """Voxels that h5py has to read."""

    chunk_shape: Shape


Storage = Contiguous | Chunked | ByHDF5


class StoredBlock(NamedTuple):
    """One file of a volume: its version when it was opened, its slices, how they are stored.

    `is_swapped` says that the voxels have the other byte order than this machine. `md5_checksum` is
    what mango stored, None if it stored none.
    """

    name: str
    nbytes: int
    mtime_ns: int
    z_start: int
    z_stop: int
    is_swapped: bool
    storage: Storage
    md5_checksum: bytes | None


def read_block(
    path: str, variable: str, block: StoredBlock, shape: Shape, region: Region, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return a region of one block, of this shape, as a new array in native byte order.

    The region is relative to the block. Raises `IncompleteSourceError` where the file changed or
    went since the volume was opened, or its data is damaged.
    """
    storage = block.storage
    try:
        with open(path, "rb", buffering=0) as file:
            refuse_other(os.fstat(file.fileno()), path, block)
            if isinstance(storage, Contiguous):
                voxels = _read_contiguous(file, storage, shape, region, dtype)
            elif isinstance(storage, Chunked):
                by_start = _chunks_by_start(path, variable, block, storage)
                voxels = _read_chunked(file, storage, by_start, shape, region, dtype)
            else:
                voxels = _read_by_hdf5(path, variable, region).view(dtype)
        # Again, by its name: it may have been changed meanwhile, and h5py opens it by its name.
        check_file(path, block)
    except FileNotFoundError as error:
        raise gone(path) from error
    except (ValueError, EOFError) as error:
        if isinstance(error, IncompleteSourceError):
            raise
        # A file that is changed while it is read looks damaged.
        check_file(path, block)
        raise IncompleteSourceError(
            f"{path} cannot be read (z {block.z_start}-{block.z_stop - 1}): {error}: copy the "
            "file again from where the volume was made"
        ) from error
    return voxels.byteswap(inplace=True) if block.is_swapped else voxels


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _lengths(region: Region) -> Shape:
    return tuple(part.stop - part.start for part in region)


def _read_contiguous(
    file: io.FileIO,
    storage: Contiguous,
    shape: Shape,
    region: Region,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    zs, ys, xs = region
    voxels = np.empty(_lengths(region), dtype)
    if not voxels.size:
        return voxels
    row_nbytes = shape[2] * dtype.itemsize
    if voxels.shape[1:] == shape[1:] and storage.slice_stride == shape[1] * row_nbytes:
        fill_from(file, storage.offset + zs.start * storage.slice_stride, _bytes_of(voxels))
        return voxels
    # Whole rows, one slice at a time: a row is about a page, so reading less would save nothing.
    rows = np.empty((ys.stop - ys.start, shape[2]), dtype)
    for z in range(zs.start, zs.stop):
        offset = storage.offset + z * storage.slice_stride + ys.start * row_nbytes
        fill_from(file, offset, _bytes_of(rows))
        voxels[z - zs.start] = rows[:, xs]
    return voxels


def _chunks_by_start(
    path: str, variable: str, block: StoredBlock, storage: Chunked
) -> dict[Shape, Chunk]:
    if storage.chunks is None:
        return _listed_once(path, variable, block.nbytes, block.mtime_ns)
    return {chunk.start: chunk for chunk in storage.chunks}


@lru_cache(maxsize=32)
def _listed_once(path: str, variable: str, nbytes: int, mtime_ns: int) -> dict[Shape, Chunk]:
    # Size and time are the version of the file.
    with open_hdf5(path) as file:
        return {chunk.start: chunk for chunk in list_chunks(file[variable])}


def _read_chunked(
    file: io.FileIO,
    storage: Chunked,
    by_start: dict[Shape, Chunk],
    shape: Shape,
    region: Region,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    if storage.chunk_shape == shape == _lengths(region) and (0, 0, 0) in by_start:
        return _read_chunk(file, storage, by_start[0, 0, 0], dtype)
    ranges = [
        range(part.start // n * n, part.stop, n)
        for part, n in zip(region, storage.chunk_shape, strict=True)
    ]
    starts = list(itertools.product(*ranges))
    voxels = np.empty(_lengths(region), dtype)
    if not all(start in by_start for start in starts):
        voxels[...] = np.frombuffer(storage.fill, dtype)[0]
    for start in starts:
        if start in by_start:
            chunk = _read_chunk(file, storage, by_start[start], dtype)
            source, target = zip(*map(_overlap, start, storage.chunk_shape, region), strict=True)
            voxels[target] = chunk[source]
    return voxels


def _overlap(start: int, n: int, part: slice) -> tuple[slice, slice]:
    """Return the overlap of a chunk and a region along an axis, as slices of either."""
    low, high = max(start, part.start), min(start + n, part.stop)
    return slice(low - start, high - start), slice(low - part.start, high - part.start)


def _read_chunk(
    file: io.FileIO, storage: Chunked, chunk: Chunk, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    nbytes = math.prod(storage.chunk_shape) * dtype.itemsize
    # Not a bytearray, which would be filled with zeros first.
    raw = np.empty(chunk.nbytes, np.uint8)
    fill_from(file, chunk.offset, memoryview(raw))
    for index, name in reversed(list(enumerate(storage.filters))):
        if chunk.filter_mask >> index & 1:
            continue
        if name == "deflate":
            raw = np.asarray(OwnMemory(_inflate(memoryview(raw), nbytes)))
        else:
            raw = _unshuffle(raw, dtype.itemsize)
    if len(raw) != nbytes:
        raise ValueError(f"a chunk at byte {chunk.offset} holds {len(raw)} bytes, not {nbytes}")
    return raw.view(dtype).reshape(storage.chunk_shape)


def _inflate(compressed: bytes | memoryview, nbytes: int) -> bytearray:
    """Return the `nbytes` bytes that a zlib stream holds, without holding the GIL."""
    try:
        data = zlib_decompress(compressed, nbytes)
    except DeflateError as error:
        raise ValueError(f"its zlib stream is damaged ({error})") from error
    if len(data) != nbytes:
        raise ValueError(f"its zlib stream holds {len(data)} bytes instead of {nbytes}")
    return data


def _unshuffle(raw: npt.NDArray[np.uint8], itemsize: int) -> npt.NDArray[np.uint8]:
    """Undo HDF5's shuffle, which stores the first bytes of all values, then the second ones."""
    n_values = len(raw) // itemsize
    values = np.empty((n_values, itemsize), np.uint8)
    planes = raw[: n_values * itemsize].reshape(itemsize, n_values)
    for index, plane in enumerate(planes):
        values[:, index] = plane
    return values.reshape(-1)


def open_hdf5(path: str) -> Any:
    """Open an HDF5 file for reading; without HDF5's locks where it cannot be locked.

    Some parallel file systems have no locks, and a writer that died may have left one. Locks are
    tried first, because HDF5 refuses a file that is open in this process already, by xarray for
    example, with another setting.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


def list_chunks(dataset: Any) -> tuple[Chunk, ...]:
    """Return the stored chunks of an HDF5 dataset."""
    found: list[Chunk] = []

    def add(info: Any) -> None:
        start = tuple(int(n) for n in info.chunk_offset)
        found.append(Chunk(start, int(info.byte_offset), int(info.size), int(info.filter_mask)))

    # get_chunk_info walks through the whole index each time, so it suits a single chunk only.
    if dataset.id.get_num_chunks() == 1:
        add(dataset.id.get_chunk_info(0))
    else:
        dataset.id.chunk_iter(add)
    return tuple(found)


def _read_by_hdf5(path: str, variable: str, region: Region) -> npt.NDArray[Any]:
    with open_hdf5(path) as file:
        dataset = file[variable]
        voxels = np.empty(_lengths(region), dataset.dtype)
        if voxels.size:
            dataset.read_direct(voxels, region, tuple(slice(0, n) for n in voxels.shape))
    return voxels
