"""Read any region of a stored array: only the inner chunks that it touches are decoded."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any
from urllib.parse import urlsplit

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.extents import Region, cells
from ctlab_dask_zarr.codec.object_read import (
    N_REQUESTS,
    Confirmation,
    ObjectRead,
)
from ctlab_dask_zarr.codec.pace import pace_of
from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.codec.shard_index import forget_index
from ctlab_dask_zarr.codec.together import cores_for_a_read, run_steps
from ctlab_dask_zarr.formats.receipts import object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import ObjectChangedError
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.store.streaming import read_spans, whole_spans

#: Of a sample, so many inner chunks along each axis are read, and so many voxels are kept, of which
#: 1,300 are beyond a percentile of 0.5. Where each read decodes a whole object, arrays up to this
#: size are read at once.
_N_SAMPLED, _MAX_SAMPLE, _WHOLE_SIZE = 4, 2**18, 256**3


def read_region(
    store: Store, path: str, array: StoredArray, region: Region, *, strict: bool
) -> npt.NDArray[Any]:
    """Read a region, one slice with step 1 for each axis, of the array at `path` of a store.

    Inner chunks are read and decoded by several threads (`codec.together`); beside the result they
    hold at most 128 MiB, or what one object without sharding takes (docs/design/reading.md).

    Raises
    ------
    IncompleteDatasetError
        An object is missing. Without `strict` it reads as fill values instead, as Zarr says.
    ShardDecodeError
        An object is not what the metadata says; the message names it and the inner chunk.
    """
    return read_confirmed(store, path, array, region, strict=strict)[0]


def read_confirmed(
    store: Store,
    path: str,
    array: StoredArray,
    region: Region,
    *,
    strict: bool,
    dataset: Hashable = None,
) -> tuple[npt.NDArray[Any], Confirmation]:
    """Do the same; return also whether it is known that the voxels belong to `dataset`."""
    try:
        (out,), confirmation = _read(store, path, array, [region], dataset, strict=strict)
    except ObjectChangedError:
        # What was kept of it from an earlier read is of another one: once more, without.
        for coords, _, _ in cells(region, array.object_shape):
            forget_index(store, object_key(path, array, coords), array)
        (out,), confirmation = _read(store, path, array, [region], dataset, strict=strict)
    return out, confirmation


def _read(
    store: Store,
    path: str,
    array: StoredArray,
    regions: Sequence[Region],
    dataset: Hashable,
    *,
    strict: bool,
) -> tuple[list[npt.NDArray[Any]], Confirmation]:
    outs = [np.empty(tuple(p.stop - p.start for p in region), array.dtype) for region in regions]
    confirmation = Confirmation(dataset)
    if not any(out.size for out in outs):
        confirmation.is_needed = True
        return outs, confirmation
    cores = cores_for_a_read()
    pace = None
    if is_url(store.root):
        scheme, place, *_ = urlsplit(store.root)
        pace = pace_of(f"{scheme}://{place}", os.getpid())
    reads = (
        ObjectRead(
            store,
            object_key(path, array, coords),
            array,
            wanted,
            out[at],
            strict,
            cores.turns,
            pace,
            confirmation,
        )
        for region, out in zip(regions, outs, strict=True)
        for coords, wanted, at in cells(region, array.object_shape)
    )
    run_steps((read.first_step() for read in reads), cores.n_cores if pace is None else N_REQUESTS)
    return outs, confirmation


def sample_voxels(store: Store, path: str, array: StoredArray) -> npt.NDArray[Any]:
    """Return voxels from all over an array, flat: some of all inner chunks, or of some of them."""
    is_cut = array.is_direct or prod(array.shape) > _WHOLE_SIZE
    edges = array.inner_chunk_shape if is_cut else array.shape
    axes = []
    for n, c in zip(array.shape, edges, strict=True):
        n_chunks = -(-n // max(1, c))
        numbers = {(2 * k + 1) * n_chunks // (2 * _N_SAMPLED) for k in range(_N_SAMPLED)}
        axes.append([slice(k * c, min((k + 1) * c, n)) for k in sorted(numbers)])
    n_voxels = prod(sum(part.stop - part.start for part in along) for along in axes)
    # Odd, since the edges of chunks are even: voxels are from everywhere along the last axis.
    step = -(-n_voxels // _MAX_SAMPLE) | 1
    sample: list[npt.NDArray[Any]] = []
    for along in axes[0]:
        regions = list(product([along], *axes[1:]))
        read = _read(store, path, array, regions, None, strict=False)[0]
        # Copies: all that is read takes much more memory than the sample.
        sample += [voxels.ravel()[::step].copy() for voxels in read]
    return np.concatenate(sample)


def object_crc32c(store: Store, key: str, nbytes: int) -> int:
    """Return the CRC-32C of an object of `nbytes` bytes, without holding all of it."""
    value = 0
    for part in read_spans(store, store.open(key), whole_spans(store, nbytes)):
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
