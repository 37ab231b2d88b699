"""How far a write is, read from its staging folder alone, on any machine that sees it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.write.staging.remaining import part_of
from ctlab_dask_zarr.write.staging.runner import run_state
from ctlab_dask_zarr.write.staging.stage import open_staged
from ctlab_dask_zarr.write.staging.staged import StagedWrite


@dataclass(frozen=True)
class PartStatus:
    """How far one part of a shared write is: finished shards of level 0, and all of its shards."""

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
        Whether the dataset is complete; then nothing else is known about its write.
    staging
        The staging folder; None if there is none.
    n_done, n_shards
        Finished shards, and all shards, of all levels together; chunks if there is no sharding.
    nbytes_done, nbytes
        Size of the voxels in finished shards, and in all, before compression.
    started_s
        When the write began or was last resumed, in seconds since the epoch.
    seconds, latest_s
        Seconds since then, and since the latest shard was finished (None if there is none).
    rate
        Bytes of voxels per second since it began; None if no shard was finished since.
    parts
        The parts of a shared write.
    state, since_s, why
        ``'running'``, ``'stopped'`` or ``'unknown'``; since when, in seconds since the epoch; and
        why it has stopped. A running one has its last sign of life instead.
    runner
        The process that runs it, or that did.
    how_to_go_on
        The command that goes on with it where it is not running.
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
    state: Literal["running", "stopped", "unknown"] = "unknown"
    since_s: float | None = None
    why: str = ""
    runner: str | None = None
    how_to_go_on: str | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all shards are finished, at the rate so far."""
        return (self.nbytes - self.nbytes_done) / self.rate if self.rate else None


def write_status(destination: Destination) -> WriteStatus:
    """Look at what is staged for `destination`: see `stores.status`."""
    is_whole = not destination.staged_plan() or destination.is_staging_committed()
    if is_whole and destination.committed():
        return WriteStatus(destination.path, is_committed=True)
    staged = open_staged(destination)
    started_s = float(destination.staged_plan().get("started_s") or 0)
    now_s = time.time()
    ended = {key: time_s for key, (_, time_s) in staged.stats().items()}
    nbytes = nbytes_done = nbytes_since = 0
    n_shards, n_done = Counter[int](), Counter[int]()
    for part, key, size in _shards(staged):
        is_there = key in ended
        n_shards[part] += 1
        n_done[part] += is_there
        nbytes += size
        nbytes_done += size * is_there
        nbytes_since += size * (is_there and ended[key] >= started_s)
    latest_s = max(ended.values(), default=None)
    seconds = 0.0 if latest_s is None else latest_s - started_s
    found = run_state(destination, latest_s)
    goes_on = found.runner is not None and found.state != "running"
    return WriteStatus(
        destination=destination.path,
        is_committed=False,
        staging=destination.staging,
        n_done=n_done.total(),
        n_shards=n_shards.total(),
        nbytes_done=nbytes_done,
        nbytes=nbytes,
        started_s=started_s,
        seconds=now_s - started_s,
        latest_s=None if latest_s is None else max(0.0, now_s - latest_s),
        rate=nbytes_since / seconds if seconds > 0 and nbytes_since else None,
        parts=tuple(PartStatus(part, n_done[part], n) for part, n in n_shards.items() if part),
        state=found.state,
        since_s=found.since_s,
        why=found.why,
        runner=None if found.runner is None else str(found.runner),
        how_to_go_on=found.runner.how_to_go_on() if found.runner and goes_on else None,
    )


def _shards(staged: StagedWrite) -> Iterator[tuple[int, str, int]]:
    """Yield part (0 for no part), key and size in bytes of every shard of a write."""
    request = staged.request
    for number in range(request.n_existing, len(request.levels)):
        array, layout = staged.array(number), request.levels[number].layout
        for task in layout.task_coords():
            n_parts = request.n_parts if number == 0 else None
            part = 0 if n_parts is None else part_of(task, layout, n_parts)
            for coords in layout.object_coords(task):
                region = array.array.object_region(coords)
                n_voxels = prod(axis.stop - axis.start for axis in region)
                yield part, array.key(coords), n_voxels * array.array.dtype.itemsize
