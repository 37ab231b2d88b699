"""Where the voxels of a block lie in its file, and how they are read from there.

The places are found once, when a volume is opened. Reading then takes plain
file reads and an inflate that releases the GIL: h5py does both under one lock for the whole
process, so that two threads are no faster than one. What is stored in any other way than plain,
gzip or shuffle and gzip is read by h5py.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import IncompleteSourceError
from ctlab_dask_zarr.read.inflate import inflate

__all__ = [
    "MAX_LISTED_CHUNKS",
    "ByHDF5",
    "Chunk",
    "Chunked",
    "Contiguous",
    "Storage",
    "StoredBlock",
    "check_file",
    "list_chunks",
    "open_hdf5",
    "read_block",
]

#: A block of more chunks than this keeps no list of them, so that a volume stays small enough to
#: travel in every task; whoever reads such a block lists its chunks then, once a process.
MAX_LISTED_CHUNKS = 8

#: One `readinto` moves less than 2^31 bytes on Linux.
_MAX_READ_NBYTES = 1 << 30


class Contiguous(NamedTuple):
    """Voxels as they are: slices `slice_stride` bytes apart, from byte `offset` of the file."""

    offset: int
    slice_stride: int


class Chunk(NamedTuple):
    """One HDF5 chunk: first voxel, place in the file, and which filters it was spared."""

    start: tuple[int, ...]
    offset: int
    nbytes: int
    filter_mask: int


class Chunked(NamedTuple):
    """HDF5 chunks.

    Attributes
    ----------
    filters
        In the order of writing: ``'shuffle'`` and ``'deflate'``, each at most once.
    fill
        The bytes of the value of voxels whose chunk is not there.
    chunks
        Those that are there; None where the file has to be asked, see `MAX_LISTED_CHUNKS`.
    """

    chunk_shape: tuple[int, ...]
    filters: tuple[str, ...]
    fill: bytes
    chunks: tuple[Chunk, ...] | None


class ByHDF5(NamedTuple):
    """Voxels that h5py has to read."""

    chunk_shape: tuple[int, ...]


Storage = Contiguous | Chunked | ByHDF5


class StoredBlock(NamedTuple):
    """One file of a volume: its identity, its slices and how they are stored.

    Attributes
    ----------
    name, nbytes, mtime_ns
        The file's name, size and time of modification: what it was when it was opened.
    z_start, z_stop
        Its slices in the volume.
    is_swapped
        Whether the bytes of a voxel are in the order that this machine does not have.
    md5_checksum
        As stored by mango; None where there is none.
    """

    name: str
    nbytes: int
    mtime_ns: int
    z_start: int
    z_stop: int
    is_swapped: bool
    storage: Storage
    md5_checksum: bytes | None


Region = tuple[slice, slice, slice]


def read_block(
    path: str,
    variable: str,
    block: StoredBlock,
    plane: tuple[int, int],
    region: Region,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Return the voxels of a region of one block, as a new array that may be written to.

    Parameters
    ----------
    path
        The block's file.
    variable
        Name of the HDF5 dataset.
    block
        As found when the volume was opened.
    plane
        Rows and columns of a slice.
    region
        Slices of step 1, relative to the block.
    dtype
        What the bytes are taken as, in native byte order.

    Raises
    ------
    IncompleteSourceError
        The file changed or went since the volume was opened, or its data is damaged.
    """
    shape = (block.z_stop - block.z_start, *plane)
    storage = block.storage
    try:
        with open(path, "rb", buffering=0) as file:
            _refuse_other(os.fstat(file.fileno()), path, block)
            if isinstance(storage, Contiguous):
                voxels = _read_contiguous(file, storage, shape, region, dtype)
            elif isinstance(storage, Chunked):
                voxels = _read_chunked(file, path, variable, block, shape, region, dtype)
            else:
                voxels = _read_by_hdf5(path, variable, region, dtype)
        # Again, by its name: it may have been written to meanwhile, and h5py opens it by its name.
        check_file(path, block)
    except FileNotFoundError as error:
        raise _gone(path) from error
    except (ValueError, EOFError) as error:
        if isinstance(error, IncompleteSourceError):
            raise
        # What is written to while it is read looks damaged.
        check_file(path, block)
        raise IncompleteSourceError(
            f"{path} cannot be read (z {block.z_start}-{block.z_stop - 1}): {error}: copy the "
            "file again from where the volume was made"
        ) from error
    return voxels.byteswap(inplace=True) if block.is_swapped else voxels


def check_file(path: str, block: StoredBlock) -> None:
    """Raise `IncompleteSourceError` unless a file is the one that was opened."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise _gone(path) from error
    _refuse_other(status, path, block)


def _gone(path: str) -> IncompleteSourceError:
    return IncompleteSourceError(
        f"{path} is gone since the volume was opened: put it back and open the volume again"
    )


def _refuse_other(status: os.stat_result, path: str, block: StoredBlock) -> None:
    # No inode: some network file systems give a file another one each time, or on each machine.
    if (status.st_size, status.st_mtime_ns) != (block.nbytes, block.mtime_ns):
        raise IncompleteSourceError(
            f"{path} changed since the volume was opened ({block.nbytes} bytes then, "
            f"{status.st_size} now): open the volume again"
        )


def _read_into(file: io.FileIO, offset: int, target: memoryview) -> None:
    file.seek(offset)
    done = 0
    while done < len(target):
        n = file.readinto(target[done : done + _MAX_READ_NBYTES])
        if not n:
            raise EOFError(f"it ends at byte {offset + done} of {offset + len(target)}")
        done += n


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _lengths(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)


def _read_contiguous(
    file: io.FileIO,
    storage: Contiguous,
    shape: tuple[int, int, int],
    region: Region,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    zs, ys, xs = region
    voxels = np.empty(_lengths(region), dtype)
    if not voxels.size:
        return voxels
    row_nbytes = shape[2] * dtype.itemsize
    if _lengths(region)[1:] == shape[1:] and storage.slice_stride == shape[1] * row_nbytes:
        _read_into(file, storage.offset + zs.start * storage.slice_stride, _bytes_of(voxels))
        return voxels
    # Whole rows, one slice at a time: a row is about a page, so fewer bytes would save nothing.
    rows = np.empty((ys.stop - ys.start, shape[2]), dtype)
    for z in range(zs.start, zs.stop):
        offset = storage.offset + z * storage.slice_stride + ys.start * row_nbytes
        _read_into(file, offset, _bytes_of(rows))
        voxels[z - zs.start] = rows[:, xs]
    return voxels


def _read_chunked(
    file: io.FileIO,
    path: str,
    variable: str,
    block: StoredBlock,
    shape: tuple[int, int, int],
    region: Region,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    storage = block.storage
    assert isinstance(storage, Chunked)
    if storage.chunks is None:
        by_start = _index_chunks_once(path, variable, block.nbytes, block.mtime_ns)
    else:
        by_start = {chunk.start: chunk for chunk in storage.chunks}
    chunk_shape = storage.chunk_shape
    if chunk_shape == shape == _lengths(region) and (0, 0, 0) in by_start:
        return _read_chunk(file, storage, by_start[0, 0, 0], dtype)
    starts = list(
        itertools.product(
            *(
                range(part.start // n * n, part.stop, n)
                for part, n in zip(region, chunk_shape, strict=True)
            )
        )
    )
    voxels = np.empty(_lengths(region), dtype)
    if not all(start in by_start for start in starts):
        voxels[...] = np.frombuffer(storage.fill, dtype)[0]
    for start in starts:
        if start in by_start:
            chunk = _read_chunk(file, storage, by_start[start], dtype)
            source, target = zip(*map(_overlap, start, chunk_shape, region), strict=True)
            voxels[target] = chunk[source]
    return voxels


def _overlap(start: int, n: int, part: slice) -> tuple[slice, slice]:
    """Return what an axis of a chunk and of a region share, as slices of the one and the other."""
    low, high = max(start, part.start), min(start + n, part.stop)
    return slice(low - start, high - start), slice(low - part.start, high - part.start)


def _read_chunk(
    file: io.FileIO, storage: Chunked, chunk: Chunk, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    nbytes = math.prod(storage.chunk_shape) * dtype.itemsize
    # Not a bytearray, which would be filled with zeros first.
    raw = np.empty(chunk.nbytes, np.uint8)
    _read_into(file, chunk.offset, memoryview(raw))
    for index, name in reversed(list(enumerate(storage.filters))):
        if chunk.filter_mask >> index & 1:
            continue
        if name == "deflate":
            raw = np.frombuffer(inflate(memoryview(raw), nbytes), np.uint8)
        else:
            raw = _unshuffle(raw, dtype.itemsize)
    if len(raw) != nbytes:
        raise ValueError(f"a chunk at byte {chunk.offset} holds {len(raw)} bytes, not {nbytes}")
    return raw.view(dtype).reshape(storage.chunk_shape)


def _unshuffle(raw: npt.NDArray[np.uint8], itemsize: int) -> npt.NDArray[np.uint8]:
    """Undo HDF5's shuffle, which stores the first bytes of all values, then the second ones."""
    n_values = len(raw) // itemsize
    values = np.empty((n_values, itemsize), np.uint8)
    planes = raw[: n_values * itemsize].reshape(itemsize, n_values)
    for index, plane in enumerate(planes):
        values[:, index] = plane
    return values.reshape(-1)


@lru_cache(maxsize=32)
def _index_chunks_once(
    path: str, variable: str, nbytes: int, mtime_ns: int
) -> dict[tuple[int, ...], Chunk]:
    """Return the chunks of a file, by their first voxel; size and time make the file's version."""
    with open_hdf5(path) as file:
        return {chunk.start: chunk for chunk in list_chunks(file[variable])}


def open_hdf5(path: str) -> Any:
    """Open an HDF5 file for reading, by default with HDF5's own locks and without where need be.

    Some parallel file systems have no locks, and a writer that died may have left one. To be
    without from the start is no choice: HDF5 refuses a file that is open in this process already,
    by xarray for example, with another setting.

    Raises
    ------
    OSError
        HDF5 cannot open it; the message is HDF5's.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


def list_chunks(dataset: Any) -> tuple[Chunk, ...]:
    """Return the chunks of an HDF5 dataset that are there."""
    found: list[Chunk] = []

    def add(info: Any) -> None:
        start = tuple(int(n) for n in info.chunk_offset)
        found.append(Chunk(start, int(info.byte_offset), int(info.size), int(info.filter_mask)))

    # One at a time costs a walk through the index each, so that is for a single one only.
    if dataset.id.get_num_chunks() == 1:
        add(dataset.id.get_chunk_info(0))
    else:
        dataset.id.chunk_iter(add)
    return tuple(found)


def _read_by_hdf5(
    path: str, variable: str, region: Region, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    with open_hdf5(path) as file:
        dataset = file[variable]
        voxels = np.empty(_lengths(region), dataset.dtype)
        if voxels.size:
            dataset.read_direct(voxels, region, tuple(slice(0, n) for n in voxels.shape))
    return voxels.view(dtype)
