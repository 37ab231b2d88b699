"""Trees of tasks: many results into one, without a task that depends on thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dask._task_spec import GraphNode, List, Task, TaskRef

__all__ = ["FAN_IN", "add_tree"]

#: No task of a tree depends on more than this.
FAN_IN = 32

Key = Any


def add_tree(
    graph: dict[Key, GraphNode],
    keys: Sequence[Key],
    combine: Callable[[Sequence[Any]], Any],
    name: str,
) -> Key:
    """Add tasks that combine the results of `keys` to one; return the root's key.

    Parameters
    ----------
    combine
        Called with a list of results of `keys` or of itself.
    name
        Of the tasks.
    """
    height = 0
    level = list(keys)
    while len(level) > 1 or height == 0:
        parents: list[Key] = []
        for n in range(0, len(level), FAN_IN):
            key = (name, height, n // FAN_IN)
            children = List(*(TaskRef(child) for child in level[n : n + FAN_IN]))
            graph[key] = Task(key, combine, children)
            parents.append(key)
        if not parents:
            graph[name, 0, 0] = Task((name, 0, 0), combine, [])
            parents = [(name, 0, 0)]
        level = parents
        height += 1
    return level[0]
