"""Read any region of a stored array: only the inner chunks that it touches are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, ChunkRow, copy_runs, parse_index, row_axis_of
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.store import Store

Region = tuple[slice, ...]
#: Of an inner chunk, in bytes: where it begins in a shard, and how long it is.
Entry = tuple[int, int]

#: Of a sample, so many inner chunks along each axis are read; arrays up to this size, a level of
#: 256**3, whole; and so many voxels are kept.
_N_SAMPLED, _WHOLE_SIZE, _MAX_SAMPLE = 4, 256**3, 2**20
#: Chunks of a row are read at once while the gaps between them stay below this part of the whole.
_MAX_GAP_RATIO = 0.5
#: For their checksums objects are read this much at once.
_READ_NBYTES = 8 << 20


def read_region(
    store: Store, path: str, array: StoredArray, region: Region, *, strict: bool
) -> npt.NDArray[Any]:
    """Read a region, one slice with step 1 for each axis, of the array at `path` of a store.

    Raises
    ------
    IncompleteDatasetError
        An object is missing. Without `strict` it reads as fill values instead, as Zarr says.
    ShardDecodeError
        An object is not what the metadata says; the message names it and the inner chunk.
    """
    start = tuple(part.start for part in region)
    out = np.empty(tuple(part.stop - part.start for part in region), array.dtype)
    if out.size == 0:
        return out
    for coords, origin, inside in _cells(region, array.object_shape):
        target = out[_relative(inside, start)]
        key = object_key(path, array, coords)
        wanted = _relative(inside, origin)
        try:
            if not array.is_direct:
                target[...] = read_object(store, key, array)[wanted]
            elif array.is_sharded:
                _read_shard(store, key, array, wanted, target)
            else:
                data = store.get(key, array.object_limit)
                decoded = chunk_codec(array.codecs).decode(data, array.inner_chunk_nbytes)
                chunk = np.frombuffer(decoded, array.dtype).reshape(array.inner_chunk_shape)
                copy_runs(chunk[wanted], target)
        except FileNotFoundError:
            if strict:
                raise IncompleteDatasetError(
                    f"{key} is missing: the dataset is incomplete. Restore or write it again; to "
                    "read it as fill values all the same, open with strict=False"
                ) from None
            target[...] = array.fill_value
        except ShardDecodeError as error:
            raise ShardDecodeError(f"{key}: {error}") from error
    return out


def sample_voxels(store: Store, path: str, array: StoredArray) -> npt.NDArray[Any]:
    """Return voxels from all over an array, flat: all of a small one, some chunks of a large."""
    if prod(array.shape) <= _WHOLE_SIZE:
        regions = [tuple(slice(0, n) for n in array.shape)]
    else:
        axes = []
        for n, c in zip(array.shape, array.inner_chunk_shape, strict=True):
            n_chunks = -(-n // c)
            numbers = {(2 * k + 1) * n_chunks // (2 * _N_SAMPLED) for k in range(_N_SAMPLED)}
            axes.append([slice(k * c, min((k + 1) * c, n)) for k in sorted(numbers)])
        regions = list(product(*axes))
    voxels = [read_region(store, path, array, region, strict=False).ravel() for region in regions]
    sample = np.concatenate(voxels)
    return sample[:: -(-sample.size // _MAX_SAMPLE)]


def object_crc32c(store: Store, key: str, nbytes: int) -> int:
    """Return the CRC-32C of an object of `nbytes` bytes, without holding all of it."""
    value = 0
    for start in range(0, nbytes, _READ_NBYTES):
        part = store.get_range(key, start, min(_READ_NBYTES, nbytes - start))
        value = google_crc32c.extend(value, part)
    return value


def rows_of(wanted: Region, array: StoredArray) -> Iterator[Region]:
    """Cut a region into rows of inner chunks; its origin is that of the array, or of a shard."""
    axis = row_axis_of(array)
    size = array.inner_chunk_shape[axis]
    for n in range(wanted[axis].start // size, -(-wanted[axis].stop // size)):
        row = list(wanted)
        row[axis] = slice(max(wanted[axis].start, n * size), min(wanted[axis].stop, (n + 1) * size))
        yield tuple(row)


def _cells(region: Region, cell: Shape) -> Iterator[tuple[Shape, Shape, Region]]:
    """Yield (coords, origin, what of the region it holds) of each cell that the region touches."""
    ranges = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(region, cell, strict=True)
    ]
    for coords in product(*ranges):
        origin = tuple(c * size for c, size in zip(coords, cell, strict=True))
        inside = tuple(
            slice(max(part.start, o), min(part.stop, o + size))
            for part, o, size in zip(region, origin, cell, strict=True)
        )
        yield coords, origin, inside


def _relative(region: Region, origin: Shape) -> Region:
    return tuple(slice(p.start - o, p.stop - o) for p, o in zip(region, origin, strict=True))


def _read_shard(
    store: Store, key: str, array: StoredArray, wanted: Region, target: npt.NDArray[Any]
) -> None:
    nbytes = store.nbytes(key)
    if nbytes < array.index_nbytes:
        raise ShardDecodeError(f"it has {nbytes} bytes, fewer than its index has alone")
    tail = store.get_range(key, nbytes - array.index_nbytes, array.index_nbytes)
    index = parse_index(tail, array, nbytes)
    origin = tuple(part.start for part in wanted)
    for row in rows_of(wanted, array):
        cells = list(_cells(row, array.inner_chunk_shape))
        grid = tuple(np.array([coords for coords, _, _ in cells]).T)
        numbers = np.ravel_multi_index(grid, array.chunks_per_object)
        chunks = _decoded_chunks(store, key, array, [tuple(e) for e in index[numbers].tolist()])
        if len(cells) * array.chunks_per_object[row_axis_of(array)] == len(index):
            # All chunks of the row: put in chunk order first, copied to their places in one go.
            buffer = ChunkRow(array, cells[0][1])
            for place, decoded in zip(buffer.chunks, chunks, strict=True):
                place[...] = array.fill_value if decoded is None else decoded
            buffer.take(target, origin)
            continue
        for (_, start, inside), decoded in zip(cells, chunks, strict=True):
            part = target[_relative(inside, origin)]
            if decoded is None:
                part[...] = array.fill_value
            else:
                copy_runs(decoded.reshape(array.inner_chunk_shape)[_relative(inside, start)], part)


def _decoded_chunks(
    store: Store, key: str, array: StoredArray, entries: list[Entry]
) -> Iterator[npt.NDArray[Any] | None]:
    """Yield the elements of each chunk, flat; None for one that is all fill value."""
    codec = chunk_codec(array.codecs)
    data, start = _read_together(store, key, [entry for entry in entries if entry[0] != ABSENT])
    for number, (offset, size) in enumerate(entries):
        if offset == ABSENT:
            yield None
            continue
        chunk = (
            store.get_range(key, offset, size)
            if data is None
            else data[offset - start : offset - start + size]
        )
        try:
            decoded = codec.decode(chunk, array.inner_chunk_nbytes)
        except ShardDecodeError as error:
            raise ShardDecodeError(
                f"inner chunk {number} of the row at byte {offset}: {error}"
            ) from error
        yield np.frombuffer(decoded, array.dtype)


def _read_together(store: Store, key: str, entries: list[Entry]) -> tuple[memoryview | None, int]:
    """Return the bytes of a row's chunks and where they begin; (None, 0) if they lie far apart."""
    if not entries:
        return None, 0
    start = min(offset for offset, _ in entries)
    stop = max(offset + size for offset, size in entries)
    if sum(size for _, size in entries) < (1 - _MAX_GAP_RATIO) * (stop - start):
        return None, 0
    return memoryview(store.get_range(key, start, stop - start)), start
