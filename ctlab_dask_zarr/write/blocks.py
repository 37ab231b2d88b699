"""The blocks of a source: which tasks make each, and tasks that make it where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from dask._task_spec import DataNode, Dict, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.highlevelgraph import MaterializedLayer

from ctlab_dask_zarr.runtime.resources import future_of
from ctlab_dask_zarr.write.layout import Shape

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "BlockRecipe",
    "SourceGraph",
    "add_block_tasks",
    "add_closure",
    "analyse_source",
    "private_tasks",
]

Key = Any
#: Tasks that blocks may share and still count as independent: the opened source, a constant, a
#: calibration. Their results are held while blocks are made, so that there may be a few, and far
#: fewer than blocks: blocks that overlap share whole blocks.
_MAX_SHARED = 8
_BLOCKS_PER_SHARED = 8


@dataclass(frozen=True)
class SourceGraph:
    """The optimised graph of a dask array, and which tasks belong to one block alone.

    Attributes
    ----------
    data
        The dask array.
    nodes
        Every task, by key.
    name, chunks
        As of the dask array; block keys are ``(name, i, j, k)``.
    held
        Results that a cluster holds already (persisted blocks, Futures among the arguments of
        blocks), by key.
    shared
        Tasks and held results that more than one block needs.
    is_independent
        Whether every block can be made from its own tasks and a few shared ones.
    """

    data: da.Array
    nodes: Mapping[Key, GraphNode]
    held: Mapping[Key, Any]
    name: str
    chunks: tuple[tuple[int, ...], ...]
    shared: frozenset[Key]
    is_independent: bool

    @property
    def volumes(self) -> tuple[Any, ...]:
        """Stored volumes that blocks are read from, which know whether they have changed."""
        found: dict[int, Any] = {}
        for node in self.nodes.values():
            for part in node.args if isinstance(node, Task) else (node,):
                value = part.value if isinstance(part, DataNode) else part
                if hasattr(type(value), "check_unchanged"):
                    found[id(value)] = value
        return tuple(found.values())


def analyse_source(data: da.Array) -> SourceGraph:
    """Optimise the array's graph and find what its blocks share. Computes nothing."""
    keys = [(data.name, *index) for index in product(*map(range, data.numblocks))]
    graph = data.__dask_graph__()
    nodes = _without_dask_array(convert_legacy_graph(dict(data.__dask_optimize__(graph, keys))))
    owner: dict[Key, int] = {}
    held: set[Key] = set()
    shared: set[Key] = set()
    for block, key in enumerate(keys):
        todo = [key]
        while todo:
            node = todo.pop()
            if node in shared:
                continue
            if node not in nodes:
                held.add(node)
                shared.add(node)
            elif owner.setdefault(node, block) != block:
                shared.add(node)
            else:
                todo += [d for d in nodes[node].dependencies if owner.get(d) != block]
    inputs: set[Key] = set()
    for key in keys:
        if key not in shared and nodes[key].dependencies:
            inputs.update(private_tasks(nodes, key, shared)[1])
    n_allowed = min(_MAX_SHARED, max(1, len(keys) // _BLOCKS_PER_SHARED))
    is_independent = shared.isdisjoint(keys) and len(inputs) <= n_allowed
    futures = _futures(graph, held) if held else {}
    name, chunks = data.name, data.chunks
    return SourceGraph(data, nodes, futures, name, chunks, frozenset(shared), is_independent)


def _without_dask_array(nodes: Mapping[Key, GraphNode]) -> dict[Key, GraphNode]:
    """Return the same tasks; those that only index a source need no ``dask.array``.

    A worker would load it for dask's own function alone, with xarray and pandas where they are
    installed: most of a second, and many workers ask one file system for all of these files.
    """
    from dask.array.core import getter

    def is_plain(node: Task) -> bool:
        if node.func is not getter or len(node.args) != 2:
            return False
        index = node.args[1].value if isinstance(node.args[1], DataNode) else None
        is_index = isinstance(index, tuple) and all(part is not None for part in index)
        return is_index and node.kwargs == {"asarray": False, "lock": False}

    return {
        key: Task(key, getitem, *node.args, _data_producer=node.data_producer)
        if isinstance(node, Task) and is_plain(node)
        else node
        for key, node in nodes.items()
    }


def _futures(graph: Any, keys: set[Key]) -> dict[Key, TaskRef]:
    """Return the futures of what a graph needs and does not have, which a cluster holds.

    dask drops them when it optimises, since the scheduler knows their keys; the graph that is
    submitted has to hold them all the same, or they could be forgotten meanwhile.
    """
    found = {
        key: value
        for layer in getattr(graph, "layers", {}).values()
        if isinstance(layer, MaterializedLayer)
        for key, value in layer.items()
        if key in keys and isinstance(value, TaskRef)
    }
    # Of one that is an argument of blocks, only its key is left.
    return {key: future_of(key) for key in keys - found.keys()} | found


def private_tasks(
    nodes: Mapping[Key, GraphNode], key: Key, shared: set[Key] | frozenset[Key]
) -> Any:
    """Return (the tasks of `key` alone, dependencies first; the shared tasks they need)."""
    order: dict[Key, GraphNode] = {}
    inputs: dict[Key, None] = {}
    todo = [key]
    while todo:
        node = todo[-1]
        waiting = [d for d in nodes[node].dependencies if d not in shared and d not in order]
        if waiting:
            todo += waiting
            continue
        todo.pop()
        if node not in order:
            order[node] = nodes[node]
            inputs.update(dict.fromkeys(d for d in nodes[node].dependencies if d in shared))
    return tuple(order.values()), tuple(inputs)


@dataclass(frozen=True)
class BlockRecipe:
    """One block: where it lies, and the tasks that make it inside the task that writes it."""

    start: Shape
    shape: Shape
    nodes: tuple[GraphNode, ...]

    def make(self, shared: Mapping[Key, Any]) -> npt.NDArray[Any]:
        """Run the tasks and return the block's voxels."""
        values = dict(shared)
        for node in self.nodes:
            values[node.key] = node({d: values[d] for d in node.dependencies})
        block: npt.NDArray[Any] = values[self.nodes[-1].key]
        return block


def add_closure(graph: dict[Key, GraphNode], source: SourceGraph, keys: Iterable[Key]) -> None:
    """Add `keys` of the source, and all they depend on, to the graph."""
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key in source.held:
            graph[key] = source.held[key]
        elif key not in graph:
            graph[key] = source.nodes[key]
            todo += source.nodes[key].dependencies


def add_block_tasks(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    function: Callable[[Shape, npt.NDArray[Any]], Any],
    name: str,
    indices: Iterable[Shape] | None = None,
) -> list[Key]:
    """Add a task for each block of the source that calls ``function(start, block)``.

    Blocks that can be are made inside the task. Returns the keys of the tasks. `indices` are those
    of the blocks, all by default.
    """
    keys: list[Key] = []
    used: set[Key] = set()
    for index in product(*map(range, map(len, source.chunks))) if indices is None else indices:
        start = tuple(sum(c[:i]) for c, i in zip(source.chunks, index, strict=True))
        block: Key = (source.name, *index)
        key: Key = (name, *index)
        if source.is_independent:
            shape = tuple(c[i] for c, i in zip(source.chunks, index, strict=True))
            nodes, needed = private_tasks(source.nodes, block, source.shared)
            shared = Dict({k: TaskRef(k) for k in needed}) if needed else {}
            recipe = BlockRecipe(start, shape, nodes)
            graph[key] = Task(key, _call_with_made, function, recipe, shared, _data_producer=True)
            used.update(needed)
        else:
            graph[key] = Task(key, function, start, TaskRef(block))
            used.add(block)
        keys.append(key)
    add_closure(graph, source, used)
    return keys


def _call_with_made(
    function: Callable[[Shape, npt.NDArray[Any]], Any],
    recipe: BlockRecipe,
    shared: Mapping[Key, Any],
) -> Any:
    return function(recipe.start, recipe.make(shared))
