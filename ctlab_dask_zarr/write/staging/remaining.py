"""Which shards there are still to write: of an interrupted write, of one part of a shared one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dask.system import CPU_COUNT

from ctlab_dask_zarr.errors import DestinationExistsError, StagingExistsError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.store.occupied import refuse_long_name, refuse_missing_folder
from ctlab_dask_zarr.write.shards.array import ShardTask
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import destination_problem, is_committed, staging_problem
from ctlab_dask_zarr.write.staging.staged import StagedWrite

__all__ = ["Remaining", "all_tasks", "find_remaining", "part_of", "part_tasks", "resolve_request"]


@dataclass(frozen=True)
class Remaining:
    """What is left to do.

    Attributes
    ----------
    tasks
        The shards to write, by level and in C order.
    found
        Receipts of shards that are there whole without one: their process died before it could
        keep them.
    n_done
        Number of shards that are there whole.
    n_half_made
        Number of `tasks` of which something is there that is not whole; it is replaced.
    stored
        Coordinates of the shards of level 0 that are there whole, in C order, also those that other
        jobs have written.
    """

    tasks: tuple[ShardTask, ...]
    found: tuple[ShardReceipt, ...] = ()
    n_done: int = 0
    n_half_made: int = 0
    stored: tuple[Shape, ...] = ()

    def of_level(self, level: int) -> list[Shape]:
        """Return the coordinates of the shards to write of one level."""
        return [task.coords for task in self.tasks if task.level == level]


def all_tasks(levels: Sequence[PlannedLevel], first: int = 0) -> Iterator[ShardTask]:
    """Yield every task of the levels from `first` on."""
    for number, level in enumerate(levels):
        if number >= first:
            for coords in level.layout.task_coords():
                yield ShardTask(number, coords)


def part_tasks(layout: Layout, part: int, n_parts: int) -> Iterator[ShardTask]:
    """Yield the shards of a part: a run of those of level 0 in C order.

    The coarser levels are made when all parts are there, of what each has left for them.

    Examples
    --------
    >>> from ctlab_dask_zarr.planning.layout import resolve_layout
    >>> layout = resolve_layout((1024, 512, 1536))
    >>> [len(list(part_tasks(layout, part, 4))) for part in (1, 2, 3, 4)]
    [2, 1, 2, 1]
    """
    for coords in layout.task_coords():
        if part_of(coords, layout, n_parts) == part:
            yield ShardTask(0, coords)


def part_of(coords: Shape, layout: Layout, n_parts: int) -> int:
    """Return the number, from 1, of the part of `n_parts` that writes the shard at `coords`."""
    number = 0
    for c, n in zip(coords, layout.grid_shape, strict=True):
        number = number * n + c
    return number * n_parts // layout.n_tasks + 1


def find_remaining(
    staged: StagedWrite, wanted: Iterable[ShardTask], others: Iterable[ShardTask] = ()
) -> Remaining:
    """Return what is left of the shards that are `wanted`; nothing is changed.

    A shard counts where its receipt was kept and it has the size that this says. One without a
    receipt is read back whole, and counts if all of it decodes. Of `others` only those with a
    receipt are told, as `stored`.
    """
    arrays = [staged.array(level) for level in range(len(staged.request.levels))]
    sizes = staged.sizes()
    recorded = staged.recorded(sizes)

    def keys_of(task: ShardTask) -> list[str]:
        array = arrays[task.level]
        return list(map(array.key, array.layout.object_coords(task.coords)))

    tasks = []
    doubtful = []
    whole = []
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
    """Return the request, told in what staging folder it goes on, and what of it remains.

    `part` (number from 1, of how many) leaves the rest to others. Nothing is changed.

    Raises
    ------
    DestinationExistsError, StagingExistsError
        Something is in the way.
    """
    levels = request.levels
    wanted = tuple(
        all_tasks(levels, request.n_existing)
        if part is None
        else part_tasks(levels[0].layout, *part)
    )
    if is_committed(request):
        stored = tuple(levels[0].layout.task_coords())
        return request, Remaining((), n_done=len(wanted), stored=stored)
    _refuse_what_is_there(request)
    staged = request.destination.staged_plan()
    if (request.resume or part is not None) and "staging_id" in staged:
        staging_id = staged["staging_id"]
        others: list[ShardTask] = []
        if part is not None:
            number, n_parts = part
            others = [
                task
                for task in all_tasks(levels[:1])
                if part_of(task.coords, levels[0].layout, n_parts) != number
            ]
        remaining = find_remaining(StagedWrite(request, staging_id), wanted, others)
        return replace(request, resumes=staging_id), remaining
    return request, Remaining(wanted)


def _refuse_what_is_there(request: StageRequest) -> None:
    refuse_missing_folder(request.destination)
    refuse_long_name(request.destination)
    problem = destination_problem(request)
    if problem is not None:
        raise DestinationExistsError(problem)
    problem = staging_problem(request)
    if problem is not None:
        raise StagingExistsError(problem)
