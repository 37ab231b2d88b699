"""The shards of coarser levels, made of what the tasks of the next finer one have left.

Each has left an encoded piece of this level, and a piece of voxels of the one after it, or a piece
of voxels of this level alone. What is missing or damaged is made again from the finer level.

If the finer level was there before, another program may have written it, and the range of its
voxels is not known. All of them are read then, and the receipts of the new level tell their range.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctlab_dask_zarr.codec.values import ValueRange
from ctlab_dask_zarr.errors import IncompleteDatasetError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.levels import child_coords, parent_coords
from ctlab_dask_zarr.read.receipts import refuse_damaged
from ctlab_dask_zarr.write.shards.array import LazyBlock, ShardTask, StagedArray
from ctlab_dask_zarr.write.shards.merge import merge_pieces
from ctlab_dask_zarr.write.shards.next_level import downsampled_blocks
from ctlab_dask_zarr.write.shards.shard import write_shards
from ctlab_dask_zarr.write.staging.staged import StagedWrite


def write_coarser(write: StagedWrite, task: ShardTask) -> list[ShardReceipt]:
    """Write a shard of a level from what the next finer one has left for it."""
    if write.is_committed:
        return []
    request = write.request
    finer, level = write.written(task.level - 1), request.levels[task.level]
    source = write.array(task.level - 1)
    assert finer.next_level is not None
    layouts = finer.layout, level.layout, level.factors
    parents = list(parent_coords(*layouts, task.coords))
    pieces = finer.next_level.pieces
    values = None
    if finer.level < request.n_existing:
        values = ValueRange(request.mask_value)
        for parent in parents:
            stored = finer.layout.object_coords(parent)
            refuse_damaged(request.destination.store, finer.path, finer.array, stored)
            if pieces is not None:
                # An interrupted attempt has left it, without the range of the voxels.
                write.pieces.remove(pieces.key(parent))
    try:
        if pieces is not None:
            receipts = _merge(write, task, parents, (finer, source), pieces, values)
        else:
            region = level.layout.region(task.coords)
            blocks = [
                block
                for parent in parents
                for block in downsampled_blocks(finer, parent, source, values)
                if _is_inside(block, region)
            ]
            receipts = write.write(task.level, [task.coords], blocks)
    except IncompleteDatasetError as error:
        raise _lost_shard(write, task.level - 1, error) from error
    for parent in parents:
        if set(child_coords(*layouts, parent)) == {task.coords}:
            if pieces is None:
                write.pieces.remove(finer.voxel_piece_key(parent))
            elif pieces.next_level is not None:
                write.pieces.remove(pieces.voxel_piece_key(parent))
    if values is not None:
        receipts = [r._replace(minimum=values.minimum, maximum=values.maximum) for r in receipts]
    return receipts


def _merge(
    write: StagedWrite,
    task: ShardTask,
    parents: Sequence[Shape],
    finer: tuple[StagedArray, StagedArray],
    pieces: StagedArray,
    values: ValueRange | None,
) -> list[ShardReceipt]:
    """Put a shard together from encoded pieces, and encode its own piece of the next level.

    `finer` is the finer level as its tasks wrote it, and as it is stored.
    """
    write.refuse_taken_over()
    found = write.find(task.level, task.coords)
    if found is not None:
        for parent in parents:
            write.pieces.remove(pieces.key(parent))
        return found
    staged = write.array(task.level)
    reporter = write.reporter()

    def make(parent: Shape) -> None:
        written, source = finer
        write_shards(pieces, [parent], downsampled_blocks(written, parent, source, values))

    receipt = merge_pieces(staged, task.coords, pieces, parents, make)
    if staged.next_level is not None and staged.next_level.pieces is not None:
        blocks = [b for parent in parents for b in downsampled_blocks(pieces, parent, staged)]
        write_shards(staged.next_level.pieces, [task.coords], blocks)
    reporter.add(staged.layout.n_elements(task.coords) * staged.array.dtype.itemsize)
    reporter.finish()
    return [receipt]


def _is_inside(block: LazyBlock, region: tuple[slice, ...]) -> bool:
    """Whether a block has voxels of a region."""
    places = zip(region, block.start, block.shape, strict=True)
    return all(start < part.stop and start + n > part.start for part, start, n in places)


def _lost_shard(write: StagedWrite, level: int, error: IncompleteDatasetError) -> Exception:
    """Return what to say of a shard that was there when its receipt was made."""
    destination = write.request.destination
    if level < write.request.n_existing:
        return IncompleteDatasetError(f"{destination.path}: {error}")
    return IncompleteDatasetError(
        f"{destination.staging} has lost a shard of level {level} that had been written: "
        "another write has removed or committed it meanwhile, or somebody has. Look whether "
        "one is still under way, then try again"
    )
