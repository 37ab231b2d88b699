"""The checks of a verification, as one dask graph."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from dask._task_spec import GraphNode, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.execution.graphs import add_tree
from ctlab_dask_zarr.execution.progress import Reporter
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.verification.objects import joined_findings


class Verification:
    """Checks that are prepared, and the problems that are known before they run.

    `end` makes the result of all findings, by default a list of problems.

    Attributes
    ----------
    problems
        What the documents and the listing alone have shown.
    nbytes
        Size of the voxels that will be looked at, for progress.
    scope
        What was verified if there is no problem.
    notes
        What a user should know about the source, though it is not a problem of the dataset.
    """

    def __init__(self, end: Callable[[Sequence[Any]], Any] = joined_findings) -> None:
        self._end = end
        self.token = uuid.uuid4().hex[:8]
        self.tasks: dict[Any, GraphNode] = {}
        self.keys: list[Any] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.nbytes = 0
        self.scope = ""

    def add(self, name: str, check: Callable[..., Sequence[Any]], *arguments: Any) -> None:
        """Add a check."""
        key = (f"{name}-{self.token}", len(self.keys))
        self.tasks[key] = Task(key, check, *arguments)
        self.keys.append(key)

    @cached_property
    def graph(self) -> Delayed:
        """All checks; the result is what `end` makes of the list of all that they find."""
        root = add_tree(self.tasks, self.keys, _joined, f"join-problems-{self.token}")
        end = f"verify-{self.token}"
        self.tasks[end] = Task(end, self._end, TaskRef(root))
        return Delayed(end, HighLevelGraph({end: MaterializedLayer(self.tasks)}, {end: set()}))


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [finding for part in parts for finding in part]


def reported(
    topic: str, nbytes: int, check: Callable[..., Sequence[Any]], *arguments: Any
) -> list[Any]:
    """Run a check, then tell that it has looked at so many bytes of voxels."""
    reporter = Reporter(topic)
    found = [*check(*arguments)]
    reporter.add(nbytes)
    reporter.finish()
    return found
