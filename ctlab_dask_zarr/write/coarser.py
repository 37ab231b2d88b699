"""The shards of coarser levels, made of what the tasks of the next finer one have left.

That is an encoded piece of the next level, and pieces of voxels of the one after it; what is
missing or damaged is made anew from the finer level's shards.

Where the finer level was there before, as another program may have written it, nothing is known of
its voxels. All of them are read here, so the receipts of what is made of them tell their range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ctlab_dask_zarr.codec.values import ValueRange
from ctlab_dask_zarr.errors import IncompleteDatasetError
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.levels import child_coords, parent_coords
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.read.receipts import refuse_damaged
from ctlab_dask_zarr.write.shards.merge import (
    DamagedPieceError,
    EncodedPiece,
    find_piece,
    merge_pieces,
)
from ctlab_dask_zarr.write.shards.pieces import FinerArray, Piece, ShardTask, piece_key, pieces_of
from ctlab_dask_zarr.write.shards.shard import StagedArray, write_shards
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["write_coarser"]


def write_coarser(staged: StagedWrite, task: ShardTask) -> list[ShardReceipt]:
    """Write a shard of a level from what the next finer one has left for it."""
    if staged.is_committed:
        return []
    finer, level = staged.array(task.level - 1), staged.request.levels[task.level]
    parents = [
        ShardTask(task.level - 1, coords)
        for coords in parent_coords(finer.layout, level.layout, level.factors, task.coords)
    ]
    values = None
    if finer.level < staged.request.n_existing:
        values = ValueRange(staged.request.mask_value)
        store = staged.request.destination.store
        for parent in parents:
            stored = finer.layout.object_coords(parent.coords)
            refuse_damaged(store, finer.path, finer.array, stored)
    source = FinerArray(finer.store, finer.path, finer.array, values)
    try:
        if finer.coarser is not None:
            receipts = _merge(staged, task, parents, finer, source)
        else:
            pieces = [p for parent in parents for p in _voxels(staged, finer, parent, source)]
            receipts = staged.write(
                task.level, [task.coords], _overlapping(pieces, level, task.coords)
            )
    except IncompleteDatasetError as error:
        raise _lost_shard(staged, task.level - 1, error) from error
    for parent in parents:
        children = set(child_coords(finer.layout, level.layout, level.factors, parent.coords))
        if children == {task.coords}:
            staged.pieces.remove(piece_key(parent, task.level))
            if finer.coarser is not None:
                staged.pieces.remove(piece_key(parent, task.level + 1))
    if values is not None:
        receipts = [r._replace(minimum=values.minimum, maximum=values.maximum) for r in receipts]
    return receipts


def _merge(
    write: StagedWrite,
    task: ShardTask,
    parents: Sequence[ShardTask],
    finer: StagedArray,
    source: FinerArray,
) -> list[ShardReceipt]:
    """Put a shard together from encoded pieces, and encode its own piece of the next level."""
    write.refuse_taken_over()
    staged, cut = write.array(task.level), finer.coarser
    assert cut is not None
    found = write.find(task.level, task.coords)
    if found is not None:
        for parent in parents:
            write.pieces.remove(cut.key(parent.coords))
        return found
    reporter = Reporter(topic_of(write.request.run_id[:8]))
    receipt = None
    while receipt is None:
        pieces = _taken(write, finer, parents, source)
        try:
            receipt = merge_pieces(
                staged.store, staged.key(task.coords), staged.array, task.coords, pieces
            )
        except DamagedPieceError as damage:
            write.pieces.remove(cut.key(damage.coords))
    if staged.coarser is not None:
        merged = FinerArray(staged.store, staged.path, staged.array)
        voxels = [p for parent in parents for p in _voxels(write, cut, parent, merged)]
        write_shards(staged.coarser, [task], voxels)
    reporter.add(staged.layout.n_elements(task.coords) * staged.array.dtype.itemsize)
    reporter.finish()
    return [receipt]


def _taken(
    write: StagedWrite, finer: StagedArray, parents: Sequence[ShardTask], source: FinerArray
) -> Iterator[EncodedPiece]:
    """Yield the encoded pieces of tasks, and remove each when the next one is asked for.

    No other shard is made of them: such a piece lies in one. The shard then grows into the memory,
    or the disk, that its pieces leave: twice as fast where fresh memory is dear, as in virtual
    machines. Should the shard not come to its end, they are made anew from the finer level.
    """
    assert finer.coarser is not None
    for parent in parents:
        yield _encoded_piece(write, finer, parent, source)
        write.pieces.remove(finer.coarser.key(parent.coords))


def _encoded_piece(
    write: StagedWrite, finer: StagedArray, parent: ShardTask, source: FinerArray
) -> EncodedPiece:
    """Return the encoded piece that a task has left, made anew where there is none.

    One that an interrupted attempt has left of a level whose voxels are to be known is made anew.
    """
    encoded = finer.coarser
    assert encoded is not None
    key = encoded.key(parent.coords)
    piece = None
    if source.values is None:
        piece = find_piece(write.pieces, key, encoded.array, parent.coords)
    if piece is None:
        write_shards(encoded, [parent], _voxels(write, finer, parent, source))
        piece = find_piece(write.pieces, key, encoded.array, parent.coords)
    if piece is None:
        raise IncompleteDatasetError(f"{write.pieces.path(key)} cannot be read back")
    return piece


def _voxels(
    write: StagedWrite, cut: StagedArray, task: ShardTask, source: FinerArray
) -> Iterator[Piece]:
    """Yield what a task has left of the level after `cut`, else made of shards of `source`."""
    assert cut.halving is not None
    key = piece_key(task, cut.level + 1)
    region = cut.layout.region(task.coords)
    return pieces_of(write.pieces, key, cut.array, region, cut.halving, source)


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


def _overlapping(pieces: Iterable[Piece], level: PlannedLevel, coords: Shape) -> list[Piece]:
    """Return the pieces that have voxels of the shard at `coords`."""
    region = level.layout.region(coords)
    return [
        piece
        for piece in pieces
        if all(
            start < part.stop and start + n > part.start
            for part, start, n in zip(region, piece.start, piece.shape, strict=True)
        )
    ]
