"""A block, made by its tasks in memory that nothing else writes to."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, GraphNode, Task

from ctlab_dask_zarr.codec.own_memory import OwnMemory
from ctlab_dask_zarr.formats.level import Shape

Key = Any


@dataclass(frozen=True)
class BlockRecipe:
    """One block: where it lies, and the tasks that make it inside the task that writes it."""

    start: Shape
    shape: Shape
    nodes: tuple[GraphNode, ...]

    def make(self, shared: Mapping[Key, Any]) -> Any:
        """Run the tasks and return the block, which does not change afterwards.

        Memory that somebody else may hold is copied: a buffer into which a function puts the next
        block as well, or a result that is kept for other threads.
        """
        return _owned(partial(self._run, shared), partial(self._is_part_of_input, shared))

    def _run(self, shared: Mapping[Key, Any]) -> Any:
        values = dict(shared)
        *first, last = self.nodes
        for node in first:
            inputs = {d: values[d] for d in node.dependencies}
            values[node.key] = _owned(partial(node, inputs)) if may_reuse(node) else node(inputs)
        return last({d: values[d] for d in last.dependencies})

    def _is_part_of_input(self, shared: Mapping[Key, Any], block: npt.NDArray[Any]) -> bool:
        """Whether the tasks only slice an array in the graph, and the block is a part of it."""
        if any(map(may_reuse, self.nodes)):
            return False
        inputs = [*shared.values(), *(n.value for n in self.nodes if isinstance(n, DataNode))]
        return any(_base(array) is _base(block) for array in inputs)


def may_reuse(node: GraphNode) -> bool:
    """Whether a task may return memory that its function fills again for the next block."""
    return isinstance(node, Task) and node.func is not getitem


def _base(array: Any) -> Any:
    """Return the array that `array` is a view of, or itself."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _owned(
    make: Callable[[], Any], is_input: Callable[[npt.NDArray[Any]], bool] = lambda block: False
) -> Any:
    """Return what `make` does, copied if somebody else may hold its memory and it is no input."""
    block, references = _made(make)
    is_alone = references[0] <= _ALONE[0] and all(n <= _ALONE[1] for n in references[1:])
    if not isinstance(block, np.ndarray) or is_alone or is_input(block):
        return block
    return block.copy(order="K")


def _made(make: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return what `make` does, and the numbers of references to it and to arrays it is a view of.

    Counted in this one place, because a frame of the interpreter holds references too.
    """
    block = make()
    return block, _references(block)


def _references(block: Any) -> list[float]:
    counts: list[float] = []
    owns_memory = False
    link = block
    while isinstance(link, np.ndarray):
        counts.append(sys.getrefcount(link))
        owns_memory = link.flags.owndata
        link = link.base
    is_mapped = isinstance(link, mmap.mmap) and not block.flags.writeable
    if isinstance(link, OwnMemory):
        counts.append(sys.getrefcount(link))
    elif not (link is None and owns_memory) and not isinstance(link, bytes) and not is_mapped:
        # The memory does not belong to NumPy, and its owner may write to it.
        counts.append(math.inf)
    return counts


#: The references to an array, and to one that it is a view of, if nobody else has any.
_ALONE = _made(lambda: np.empty(2)[:1])[1]
