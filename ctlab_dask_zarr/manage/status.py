"""How far a write is, read from its staging folder alone: from any machine that sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.write.staging.remaining import part_of
from ctlab_dask_zarr.write.staging.stage import open_staged
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["PartStatus", "WriteStatus", "write_status"]


@dataclass(frozen=True)
class PartStatus:
    """How far one part of a shared conversion is: shards of level 0 that are there, and of all."""

    number: int
    n_done: int
    n_shards: int


@dataclass(frozen=True)
class WriteStatus:
    """How far a write is.

    Attributes
    ----------
    destination
        Where the dataset will be, or is.
    is_committed
        Whether it is there; then nothing else is known of its writing.
    staging
        The staging folder; None where there is none.
    n_done, n_shards
        Shards (of an array without sharding: chunks) that are there, and of all levels together.
    nbytes, nbytes_done
        Of all voxels before compression, and of those in shards that are there.
    started_s
        When it began, or was last gone on with, in seconds since the epoch.
    seconds, latest_s
        Since then, and since the latest shard was finished; None where there is none yet.
    rate
        Bytes of voxels a second since it began; None where no shard was finished since.
    parts
        Of a shared conversion.
    """

    destination: str
    is_committed: bool
    staging: str | None = None
    n_done: int = 0
    n_shards: int = 0
    nbytes_done: int = 0
    nbytes: int = 0
    started_s: float | None = None
    seconds: float = 0.0
    latest_s: float | None = None
    rate: float | None = None
    parts: tuple[PartStatus, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all shards are there, at the rate so far."""
        return (self.nbytes - self.nbytes_done) / self.rate if self.rate else None


def write_status(destination: Destination) -> WriteStatus:
    """Look at what is staged for `destination`; nothing is changed.

    Raises
    ------
    IncompleteDatasetError
        Nothing is staged there, and nothing of this package is there.
    """
    is_whole = not destination.staged_plan() or destination.is_staging_committed()
    if is_whole and destination.committed():
        return WriteStatus(destination.path, is_committed=True)
    staged = open_staged(destination)
    started_s = float(destination.staged_plan().get("started_s") or 0)
    now_s = time.time()
    ended = _end_times(staged)
    n_parts = staged.request.n_parts
    nbytes = nbytes_done = nbytes_since = n_done = n_shards = 0
    parts: dict[int, list[int]] = {}
    for number, level in enumerate(staged.request.levels):
        if number < staged.request.n_existing:
            continue
        array = staged.array(number)
        itemsize = array.array.dtype.itemsize
        for task in level.layout.task_coords():
            for coords in level.layout.object_coords(task):
                region = array.array.object_region(coords)
                size = prod(part.stop - part.start for part in region) * itemsize
                ended_s = ended.get(array.key(coords))
                is_there = ended_s is not None
                n_shards, n_done = n_shards + 1, n_done + is_there
                nbytes, nbytes_done = nbytes + size, nbytes_done + size * is_there
                nbytes_since += size if ended_s is not None and ended_s >= started_s else 0
                if n_parts is not None and number == 0:
                    counts = parts.setdefault(part_of(task, level.layout, n_parts), [0, 0])
                    counts[0] += is_there
                    counts[1] += 1
    latest_s = max(ended.values(), default=None)
    seconds = None if latest_s is None else latest_s - started_s
    return WriteStatus(
        destination=destination.path,
        is_committed=False,
        staging=destination.staging,
        n_done=n_done,
        n_shards=n_shards,
        nbytes_done=nbytes_done,
        nbytes=nbytes,
        started_s=started_s,
        seconds=now_s - started_s,
        latest_s=None if latest_s is None else max(0.0, now_s - latest_s),
        rate=nbytes_since / seconds if seconds and seconds > 0 and nbytes_since else None,
        parts=tuple(PartStatus(n, done, of) for n, (done, of) in parts.items()),
    )


def _end_times(staged: StagedWrite) -> dict[str, float]:
    """Return when each object of the write was finished, by key."""
    return {key: time_s for key, (_, time_s) in staged.stats().items()}
