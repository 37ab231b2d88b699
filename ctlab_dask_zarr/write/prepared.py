"""A write that is planned and looked at, and ready to run.

The acts of a write are plan, prepare, run and commit. `prepare` comes after the plan: it looks at
what is there already, and builds the dask graph of the rest. Nothing is written yet. `write.run`
computes the graph, whose last task commits::

    prepared = prepare(plan, source, resume=resume, restart=restart)
    result = run(prepared, client=client, progress=progress, stop=stop)

For a Delayed (``compute=False``) give back `PreparedWrite.graph` instead of running it. There are
two other ways to a `PreparedWrite`: `prepare_levels` for an image that is there, and
`prepare_commit` for what several jobs have written.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ctlab_dask_zarr.planning.occupied import identity_of_occupant
from ctlab_dask_zarr.planning.plan import Overwrite, WritePlan
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.waits import logger
from ctlab_dask_zarr.write.graph import build_graph
from ctlab_dask_zarr.write.staging.commit import refuse_missing
from ctlab_dask_zarr.write.staging.remaining import (
    Remaining,
    all_tasks,
    find_remaining,
    resolve_request,
)
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.runner import Runner, run_state
from ctlab_dask_zarr.write.staging.stage import open_staged
from ctlab_dask_zarr.write.staging.staged import StagedWrite

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.execution.graphs import SourceGraph


@dataclass(frozen=True)
class PreparedWrite:
    """A write that is ready to run."""

    #: Stages, writes the remaining shards and commits; for a part, everything but the commit. Its
    #: result is a `CommitResult`.
    graph: Delayed
    request: StageRequest
    remaining: Remaining
    #: None where no voxels of level 0 are written: of further levels, and of a commit.
    plan: WritePlan | None = None
    how_to_go_on: str = "go on by resume=True (--resume)"

    @property
    def nbytes(self) -> int:
        """Size of the voxels of the remaining shards, before compression, in bytes."""
        levels = self.request.levels
        n_elements = (levels[t.level].layout.n_elements(t.coords) for t in self.remaining.tasks)
        return sum(n_elements) * levels[0].array.dtype.itemsize

    @property
    def needs_workers(self) -> bool:
        """Whether voxels are read or written; if not, `run` commits in this process."""
        return self.plan is not None or bool(self.remaining.tasks)


def prepare(
    plan: WritePlan,
    source: SourceGraph,
    *,
    resume: bool = False,
    restart: bool = False,
    part: tuple[int, int] | None = None,
) -> PreparedWrite:
    """Look at what is there of a planned write, and build the graph of the rest.

    `source` has the blocks of level 0; a `part` is its number, from 1, and of how many. Raises
    where something is in the way; nothing is touched.
    """
    n_parts = None if part is None else part[1]
    request = StageRequest.of(plan, resume=resume, restart=restart, n_parts=n_parts)
    request, remaining = resolve_request(replace(request, runner=Runner.here()), part)
    _tell_of_others(request)
    graph = build_graph(request, remaining, source, method=plan.rechunk.method)
    return PreparedWrite(graph, request, remaining, plan)


def _tell_of_others(request: StageRequest) -> None:
    """Say where another run of the write that is resumed still goes on: it will be taken over."""
    if request.resumes is None or request.n_parts is not None:
        return
    found = run_state(request.destination)
    is_other = found.runner is not None and found.runner != request.runner
    if found.state == "running" and is_other:
        logger.warning(
            "another run of this write to %s goes on, by %s: it is taken over, and stops at its "
            "next shard",
            shown(request.destination.path), shown(str(found.runner)),
        )  # fmt: skip


def prepare_levels(request: StageRequest) -> PreparedWrite:
    """Do the same for the further levels of an image, as `extend.level_request` asks for them."""
    request, remaining = resolve_request(replace(request, runner=Runner.here()), None)
    _tell_of_others(request)
    return PreparedWrite(build_graph(request, remaining), request, remaining)


def prepare_commit(destination: Destination, *, overwrite: Overwrite) -> PreparedWrite | None:
    """Do the same for what is staged, if all parts are there; None where nothing is left to commit.

    What a commit has left that died between its two renames is repaired first.
    """
    destination.finish_interrupted_replacement()
    destination.discard_committed_staging()
    if not destination.staged_plan() and destination.committed():
        return None
    staged = open_staged(destination)
    if overwrite:
        found = identity_of_occupant(destination)
        staged = replace(
            staged, request=replace(staged.request, overwrite=overwrite, replaces=found)
        )
    if staged.request.extends is None:
        refuse_missing(staged, staged.recorded(staged.sizes()), staged.level_keys(0))
    return prepare_rest(staged)


def prepare_rest(staged: StagedWrite) -> PreparedWrite:
    """Do the same for the further levels and the commit of a write whose level 0 is there."""
    remaining = find_remaining(staged, all_tasks(staged.request.levels, first=1))
    if remaining.tasks:
        # A run of its own, so that its progress is not taken for that of a part.
        staged = replace(staged, request=replace(staged.request, run_id=uuid.uuid4().hex))
    graph = build_graph(staged.request, remaining, staged=staged)
    return PreparedWrite(graph, staged.request, remaining, how_to_go_on="the same command goes on")
