"""Before a write goes on, a sample of what is stored is made again from the source and compared.

The identity of a source is only a name; the voxels behind it may have changed. The sample is a few
regions, spread over what is stored. Nothing is changed by it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import GraphNode

from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.codec.values import voxel_difference
from ctlab_dask_zarr.codec.zarr_fallback import decode_object, encode_object
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    ShardDecodeError,
    StagingExistsError,
)
from ctlab_dask_zarr.execution.graphs import (
    SourceGraph,
    accepted_block,
    add_block_tasks,
    analyse_source,
    is_read,
)
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import is_committed
from ctlab_dask_zarr.write.staging.staged import StagedWrite

#: The most regions that are compared; fewer where these would be more than this part of what is
#: stored, and more than this size.
_MAX_REGIONS = 4
_PART = 100
_NBYTES = 8 << 20

Key = Any


class _Region(NamedTuple):
    """Voxels that are stored together and made together."""

    #: One inner chunk, or its part in one block; of codecs that may change voxels a whole object.
    slices: tuple[slice, ...]
    #: Index of the block that its middle is in.
    block: Shape


def add_sample(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    request: StageRequest,
    stored: Sequence[Shape],
) -> list[Key]:
    """Add tasks that compare what `source` makes with what is stored of it; return their keys.

    `stored` are the shards of level 0 that are there, in C order.
    """
    if not stored:
        return []
    level = request.levels[0]
    is_cut = not level.array.is_direct
    itemsize = level.array.dtype.itemsize
    (region,) = _regions(level, source.chunks, stored, 1)
    n_voxels = prod(part.stop - part.start for part in region.slices)
    if not is_cut:
        # Reading less of a source costs less; making less of a block does not.
        is_cut = is_read(source.data[region.slices])
        block = [lengths[i] for lengths, i in zip(source.chunks, region.block, strict=True)]
        n_voxels = n_voxels if is_cut else prod(block)
    affordable = max(len(stored) * prod(level.layout.task_shape) * itemsize // _PART, _NBYTES)
    n_regions = max(1, min(affordable // (n_voxels * itemsize), _MAX_REGIONS, len(stored)))
    keys: list[Key] = []
    for n, region in enumerate(_regions(level, source.chunks, stored, n_regions)):
        part, origin = source, (0,) * len(region.block)
        if is_cut:
            blocks = source.data[region.slices].map_blocks(_owned, meta=source.data._meta)
            part = analyse_source(blocks.rechunk(-1))
            origin = tuple(span.start for span in region.slices)
        check = partial(_refuse_other_voxels, request, region.slices, origin)
        name = f"sample-{n}-{request.run_id[:8]}"
        keys += add_block_tasks(graph, part, check, name, None if is_cut else [region.block])
    return keys


def _owned(block: Any) -> Any:
    """Return a block in memory of its own: the next block may be made in the same buffer."""
    return block.copy() if isinstance(block, np.ndarray) else block


def _regions(
    level: PlannedLevel, chunks: Sequence[Sequence[int]], stored: Sequence[Shape], n_regions: int
) -> list[_Region]:
    """Return a region of each of `n_regions` runs of the stored shards.

    It lies in the shard that is nearest to the line through the middle of the volume: far from the
    line volumes are masked or empty, and so more alike.
    """
    array, layout = level.array, level.layout
    cell = array.inner_chunk_shape if array.is_direct else array.object_shape
    middle = [(n - 1) / 2 for n in layout.grid_shape]
    stops = [list(accumulate(lengths)) for lengths in chunks]
    regions = []
    for n in range(n_regions):
        run = stored[len(stored) * n // n_regions : len(stored) * (n + 1) // n_regions]
        coords = min(
            run, key=lambda c: sum(abs(a - b) for a, b in zip(c[1:], middle[1:], strict=True))
        )
        spans = layout.region(coords)
        point = [
            min(max(size // 2, span.start), span.stop - 1)
            for span, size in zip(spans, array.shape, strict=True)
        ]
        point[0] = (spans[0].start + spans[0].stop) // 2
        block = tuple(bisect_right(s, p) for s, p in zip(stops, point, strict=True))
        slices = []
        for p, size, stop, ends, i in zip(point, cell, array.shape, stops, block, strict=True):
            first, last = p // size * size, min(p // size * size + size, stop)
            if array.is_direct:
                first, last = max(first, ends[i - 1] if i else 0), min(last, ends[i])
            slices.append(slice(first, last))
        regions.append(_Region(tuple(slices), block))
    return regions


def _refuse_other_voxels(
    request: StageRequest,
    region: tuple[slice, ...],
    origin: Shape,
    start: Shape,
    shape: Shape,
    block: Any,
) -> None:
    """Raise if a region is stored with other voxels than those of a block.

    The block begins at `start` in an array that begins at `origin`.
    """
    is_complete = is_committed(request)
    if not is_complete and request.resumes is None:
        return
    staged = StagedWrite(request, request.resumes or "", is_complete).array(0)
    store = request.destination.store if is_complete else staged.store
    try:
        found = read_region(store, staged.path, staged.array, region, strict=True)
    except IncompleteDatasetError:
        if is_complete:
            raise
        # Another write goes on with it, or has removed it: staging will find out.
        return
    except ShardDecodeError as error:
        raise _refusal(request, f"is damaged: {error}", is_complete=is_complete) from error
    begins = tuple(a + b for a, b in zip(origin, start, strict=True))
    wanted = accepted_block(block, begins, shape, staged.array.dtype, request.mask_value)[
        tuple(slice(r.start - b, r.stop - b) for r, b in zip(region, begins, strict=True))
    ]
    difference = voxel_difference(found, wanted, tuple(part.start for part in region))
    if difference is None or _is_as_stored(staged.array, found, wanted):
        return
    raise _refusal(request, f"is not of this source: {difference}", is_complete=is_complete)


def _refusal(request: StageRequest, problem: str, *, is_complete: bool) -> Exception:
    destination = request.destination
    if is_complete:
        return DestinationExistsError(
            f"{destination.path} is complete, but what is stored {problem}. Write to another "
            "destination, or replace it by overwrite=True (--overwrite) without resume"
        )
    return StagingExistsError(
        f"cannot go on in {destination.staging}: what is stored there {problem}. Use the same "
        f"source, or remove what is staged by {request.how_to_remove}"
    )


def _is_as_stored(array: StoredArray, found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Whether codecs that change voxels make what was found from those wanted."""
    if array.is_direct:
        return False
    whole = np.full(array.object_shape, array.fill_value, array.dtype)
    inside = tuple(map(slice, wanted.shape))
    whole[inside] = wanted
    stored = decode_object(array, encode_object(array, whole))[inside]
    return voxel_difference(found, stored, (0,) * found.ndim) is None
