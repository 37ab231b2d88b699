"""Read any region of a stored array: only the inner chunks that it touches are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import Buffer, chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, ChunkRow, copy_runs, parse_index, row_axis_of
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.store import Store

__all__ = ["object_crc32c", "read_region", "rows_of"]

Shape = tuple[int, ...]
Region = tuple[slice, ...]

#: Chunks of a row are read at once while the gaps between them stay below this part of the whole.
_MAX_GAP_RATIO = 0.5
#: Objects are read for their checksums in pieces of this size.
_READ_NBYTES = 8 << 20


def read_region(
    store: Store,
    prefix: str,
    array: StoredArray,
    region: Region,
    *,
    strict: bool,
) -> npt.NDArray[Any]:
    """Read ``region`` of an array.

    Parameters
    ----------
    store, prefix
        Where the array's objects are.
    region
        One slice an axis, step 1, inside the array.
    strict
        Whether a missing object is an error; otherwise it reads as fill values, as Zarr says.

    Raises
    ------
    IncompleteDatasetError
        An object is missing, and `strict`.
    ShardDecodeError
        An object is not what the metadata says; the message names it and the inner chunk.
    """
    shape = tuple(part.stop - part.start for part in region)
    out = np.empty(shape, array.dtype)
    if out.size == 0:
        return out
    for coords, origin, inside in _cells(region, array.object_shape):
        target = out[_relative(inside, tuple(part.start for part in region))]
        key = f"{prefix}/{array.key(coords)}" if prefix else array.key(coords)
        wanted = _relative(inside, origin)
        try:
            _read_object(store, key, array, wanted, target)
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


def object_crc32c(store: Store, key: str, nbytes: int) -> int:
    """Return the CRC-32C of an object of `nbytes` bytes, without holding all of it."""
    value = 0
    for start in range(0, nbytes, _READ_NBYTES):
        part = store.get_range(key, start, min(_READ_NBYTES, nbytes - start))
        value = google_crc32c.extend(value, part)
    return value


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


def _read_object(
    store: Store, key: str, array: StoredArray, wanted: Region, target: npt.NDArray[Any]
) -> None:
    if not array.is_direct:
        target[...] = read_object(store, key, array)[wanted]
    elif not array.is_sharded:
        _decode_chunk(array, store.get(key, array.object_limit), wanted, target)
    else:
        _read_shard(store, key, array, wanted, target)


def _read_shard(
    store: Store, key: str, array: StoredArray, wanted: Region, target: npt.NDArray[Any]
) -> None:
    nbytes = store.nbytes(key)
    if nbytes < array.index_nbytes:
        raise ShardDecodeError(f"it has {nbytes} bytes, fewer than its index has alone")
    tail = store.get_range(key, nbytes - array.index_nbytes, array.index_nbytes)
    index = parse_index(tail, array, nbytes)
    for row in rows_of(wanted, array):
        cells = list(_cells(row, array.inner_chunk_shape))
        grid = tuple(np.array([coords for coords, _, _ in cells]).T)
        numbers = np.ravel_multi_index(grid, array.chunks_per_object)
        entries = [(int(index[n, 0]), int(index[n, 1])) for n in numbers]
        chunks = _decoded_chunks(store, key, array, entries)
        origin = tuple(w.start for w in wanted)
        if len(cells) * array.chunks_per_object[row_axis_of(array)] == len(index):
            # All chunks of the row: put in chunk order first, copied to their places in one go.
            buffer = ChunkRow(array, _row_start(row, array))
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


def _row_start(row: Region, array: StoredArray) -> Shape:
    """Return where the row of inner chunks that holds `row` begins."""
    return tuple(r.start // c * c for r, c in zip(row, array.inner_chunk_shape, strict=True))


def _decoded_chunks(
    store: Store, key: str, array: StoredArray, entries: list[tuple[int, int]]
) -> Iterator[npt.NDArray[Any] | None]:
    """Yield the elements of each chunk, flat; None for one that is all fill value."""
    codec = chunk_codec(array.codecs)
    data, start = _read_row(store, key, [entry for entry in entries if entry[0] != ABSENT])
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


def rows_of(wanted: Region, array: StoredArray) -> Iterator[Region]:
    """Cut a region into rows of inner chunks; its origin is that of the array, or of a shard."""
    axis = row_axis_of(array)
    size = array.inner_chunk_shape[axis]
    for n in range(wanted[axis].start // size, -(-wanted[axis].stop // size)):
        row = list(wanted)
        row[axis] = slice(max(wanted[axis].start, n * size), min(wanted[axis].stop, (n + 1) * size))
        yield tuple(row)


def _read_row(
    store: Store, key: str, entries: list[tuple[int, int]]
) -> tuple[memoryview | None, int]:
    """Read the bytes of a row's chunks at once, where they lie close together.

    Returns (None, 0) where they do not.
    """
    if not entries:
        return None, 0
    start = min(offset for offset, _ in entries)
    stop = max(offset + size for offset, size in entries)
    if sum(size for _, size in entries) < (1 - _MAX_GAP_RATIO) * (stop - start):
        return None, 0
    return memoryview(store.get_range(key, start, stop - start)), start


def _decode_chunk(
    array: StoredArray, data: Buffer, wanted: Region, target: npt.NDArray[Any]
) -> None:
    decoded = chunk_codec(array.codecs).decode(data, array.inner_chunk_nbytes)
    chunk = np.frombuffer(decoded, array.dtype).reshape(array.inner_chunk_shape)
    copy_runs(chunk[wanted], target)
