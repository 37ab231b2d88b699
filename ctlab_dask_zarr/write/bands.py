"""Shards of level 0 that are put together from bands, which tasks of their own have encoded.

A band is a run of rows of inner chunks of a shard. What its task leaves is a piece in the staging
folder, as tasks leave pieces of further levels. Any task may run twice, or after a dead one: what
it would write is looked for first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ctlab_dask_zarr.errors import IncompleteDatasetError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.merge import is_whole, merge_pieces
from ctlab_dask_zarr.write.shards.shard import write_shards
from ctlab_dask_zarr.write.staging.staged import StagedWrite


def write_bands(write: StagedWrite, group: Sequence[Shape], blocks: Iterable[LazyBlock]) -> None:
    """Write the bands at the coordinates of `group`, except those that are there whole.

    A dead attempt may have left them, or their shards.
    """
    if write.is_committed:
        return
    write.refuse_taken_over()
    bands = write.bands
    assert bands is not None
    missing = [coords for coords in group if not is_done(write, bands, coords)]
    reporter = write.reporter()
    n_there = sum(map(bands.layout.n_elements, set(group).difference(missing)))
    reporter.add(n_there * bands.array.dtype.itemsize)
    if missing:
        write_shards(bands, missing, blocks, reporter.add, reporter.finish)
    reporter.finish()


def merge_bands(write: StagedWrite, coords: Shape) -> list[ShardReceipt]:
    """Put the shard at `coords` together, if it is not there whole, and remove its bands."""
    if write.is_committed:
        return []
    write.refuse_taken_over()
    bands = write.bands
    assert bands is not None
    staged = write.array(0)
    pieces = list(staged.layout.cells(coords, bands.layout.task_shape))
    receipts = write.find(0, coords)
    if receipts is None:
        try:
            receipts = [merge_pieces(staged, coords, bands, pieces)]
        except IncompleteDatasetError as error:
            # Another attempt of this task may have been faster, and have removed them.
            receipts = write.find(0, coords)
            if receipts is None:
                raise IncompleteDatasetError(
                    f"a band of a shard is lost, or damaged ({error}): go on by resume=True "
                    "(--resume), which makes it again"
                ) from error
    for piece in pieces:
        bands.store.remove(bands.key(piece))
    return receipts


def is_done(write: StagedWrite, bands: StagedArray, coords: Shape) -> bool:
    """Whether a band is there whole, or the shard that it belongs to."""
    if is_whole(bands, coords):
        return True
    shard = tuple(
        c * band // task
        for c, band, task in zip(
            coords, bands.layout.task_shape, write.array(0).layout.task_shape, strict=True
        )
    )
    return write.find(0, shard) is not None
