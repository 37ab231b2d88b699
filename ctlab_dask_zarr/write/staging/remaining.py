"""Which shards are still to be written: of an interrupted write, or of one part of a shared one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dask.system import CPU_COUNT

from ctlab_dask_zarr.errors import DestinationExistsError, StagingExistsError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.occupied import refuse_long_name, refuse_missing_folder
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.write.shards.array import ShardTask
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import (
    destination_problem,
    is_committed,
    staging_problem,
    with_staged_codec,
)
from ctlab_dask_zarr.write.staging.staged import StagedWrite


@dataclass(frozen=True)
class Remaining:
    """What is left to do of a write."""

    #: The shards to write, by level and in C order.
    tasks: tuple[ShardTask, ...]
    #: Receipts of whole shards that had none: their process died before it could keep them.
    found: tuple[ShardReceipt, ...] = ()
    #: Number of whole shards.
    n_done: int = 0
    #: Number of `tasks` that replace something which is not whole.
    n_half_made: int = 0
    #: Coordinates of the whole shards of level 0, in C order, also those of other jobs.
    stored: tuple[Shape, ...] = ()

    def of_level(self, level: int) -> list[Shape]:
        """Return the coordinates of the shards to write of one level."""
        return [task.coords for task in self.tasks if task.level == level]


def all_tasks(levels: Sequence[PlannedLevel], first: int = 0) -> Iterator[ShardTask]:
    """Yield every task of the levels from `first` on."""
    for number in range(first, len(levels)):
        for coords in levels[number].layout.task_coords():
            yield ShardTask(number, coords)


def part_of(coords: Shape, layout: Layout, n_parts: int) -> int:
    """Return the number, from 1, of the part that writes the shard at `coords`.

    A part is a run of the shards of level 0 in C order. The coarser levels are made when all parts
    are there.
    """
    number = 0
    for c, n in zip(coords, layout.grid_shape, strict=True):
        number = number * n + c
    return number * n_parts // layout.n_tasks + 1


def find_remaining(
    staged: StagedWrite, wanted: Iterable[ShardTask], others: Iterable[ShardTask] = ()
) -> Remaining:
    """Return what is left of the `wanted` shards; nothing is changed.

    A shard counts as whole if it has the size that its receipt says. One without a receipt is read
    back, and counts if all of it decodes. Of `others`, those with a receipt are told as `stored`.
    """
    arrays = [staged.array(level) for level in range(len(staged.request.levels))]
    sizes = staged.sizes()
    recorded = staged.recorded(sizes)

    def keys_of(task: ShardTask) -> list[str]:
        array = arrays[task.level]
        return list(map(array.key, array.layout.object_coords(task.coords)))

    tasks, doubtful, whole = [], [], []
    n_half_made = 0
    for task in wanted:
        keys = keys_of(task)
        if all(key in recorded for key in keys):
            whole.append(task)
        elif all(key in sizes for key in keys):
            doubtful.append(task)
        else:
            tasks.append(task)
            n_half_made += any(key in sizes for key in keys)
    found: list[ShardReceipt] = []
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        read_back = pool.map(lambda task: staged.find(task.level, task.coords), doubtful)
        for task, receipts in zip(doubtful, read_back, strict=True):
            if receipts is None:
                tasks.append(task)
                n_half_made += 1
            else:
                found += receipts
                whole.append(task)
    n_done = len(whole)
    whole += [task for task in others if all(key in recorded for key in keys_of(task))]
    stored = tuple(sorted(task.coords for task in whole if task.level == 0))
    return Remaining(tuple(sorted(tasks)), tuple(found), n_done, n_half_made, stored)


def resolve_request(
    request: StageRequest, part: tuple[int, int] | None
) -> tuple[StageRequest, Remaining]:
    """Return the request with the staging folder in which it goes on, and what remains of it.

    Of a `part` (number from 1, of how many) only its own shards remain. Raises where something is
    in the way; nothing is changed.
    """
    request = with_staged_codec(request)
    levels = request.levels
    wanted: list[ShardTask] = []
    others: list[ShardTask] = []
    for task in all_tasks(levels[:1] if part else levels, request.n_existing):
        is_mine = part is None or part_of(task.coords, levels[0].layout, part[1]) == part[0]
        (wanted if is_mine else others).append(task)
    destination = request.destination
    if is_committed(request):
        stored = tuple(levels[0].layout.task_coords())
        return request, Remaining((), n_done=len(wanted), stored=stored)
    refuse_missing_folder(destination)
    refuse_long_name(destination)
    if problem := destination_problem(request):
        raise DestinationExistsError(problem)
    if problem := staging_problem(request):
        raise StagingExistsError(problem)
    staging_id = destination.staged_plan().get("staging_id")
    if staging_id is None or not (request.resume or part):
        return request, Remaining(tuple(wanted))
    remaining = find_remaining(StagedWrite(request, staging_id), wanted, others)
    return replace(request, resumes=staging_id), remaining
