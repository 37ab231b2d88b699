"""Parts of dask graphs: the blocks of a source, and trees of tasks.

`accepted_block` checks what a task of the source returns, wherever it enters a write. Blocks that
wait while others are made need memory of their own (`execution.recipe`), because functions may
fill one buffer again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    Task,
    TaskRef,
    convert_legacy_graph,
)
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.errors import BlockError
from ctlab_dask_zarr.execution.recipe import BlockRecipe, may_reuse
from ctlab_dask_zarr.execution.scheduler import current_client
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number

if TYPE_CHECKING:
    import dask.array as da

Key = Any
#: Where a block lies in the source: its first voxel, and its shape.
Place = tuple[Shape, Shape]
#: `accepted_block`, but for the block and its place.
Accept = Callable[[Any, Shape, Shape], npt.NDArray[Any]]
#: How many tasks blocks may share and still count as independent: the opened source, a constant,
#: a calibration. Their results stay in memory while blocks are made, so that they have to be few,
#: and far fewer than blocks: blocks that overlap share whole blocks.
_MAX_SHARED = 8
_BLOCKS_PER_SHARED = 8
#: The most tasks that a task of a tree depends on.
FAN_IN = 32


@dataclass(frozen=True)
class SourceGraph:
    """The optimised graph of a dask array, and which tasks belong to one block alone."""

    data: da.Array
    #: Every task, by key; the keys of blocks are ``(data.name, i, j, k)``.
    nodes: Mapping[Key, GraphNode]
    #: Results that a cluster holds (persisted blocks, Futures among the arguments), by key.
    held: Mapping[Key, Any]
    #: Tasks and held results that more than one block needs.
    shared: frozenset[Key]
    #: Whether every block can be made from its own tasks and a few shared ones.
    is_independent: bool

    @property
    def name(self) -> str:
        """The name of the dask array."""
        return str(self.data.name)

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """The lengths of the blocks along each axis."""
        chunks: tuple[tuple[int, ...], ...] = self.data.chunks
        return chunks

    def recipe(self, index: Shape, start: Shape, shape: Shape) -> tuple[BlockRecipe, Sequence[Key]]:
        """Return how to make an independent block, and the keys of the shared results it needs."""
        nodes, needed = _private_tasks(self.nodes, (self.name, *index), self.shared)
        return BlockRecipe(start, shape, nodes), needed

    @property
    def volumes(self) -> tuple[Any, ...]:
        """The stored volumes that blocks are read from; they know whether they have changed."""
        found = {
            id(value): value
            for value in _plain_values(self.nodes.values())
            if hasattr(type(value), "check_unchanged")
        }
        return tuple(found.values())


def _plain_values(nodes: Iterable[GraphNode]) -> Iterator[Any]:
    """Yield the arguments of tasks that are no tasks; dask nests tasks that it fuses."""
    for node in nodes:
        if type(node) is not Task:
            yield getattr(node, "value", None)
            continue
        for part in node.args:
            if type(part) is dict:
                yield from _plain_values(part.values())
            else:
                yield part.value if type(part) is DataNode else part


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
            inputs.update(_private_tasks(nodes, key, shared)[1])
    n_allowed = min(_MAX_SHARED, max(1, len(keys) // _BLOCKS_PER_SHARED))
    is_independent = shared.isdisjoint(keys) and len(inputs) <= n_allowed
    return SourceGraph(data, nodes, _futures(graph, held), frozenset(shared), is_independent)


def _without_dask_array(nodes: Mapping[Key, GraphNode]) -> dict[Key, GraphNode]:
    """Return the same tasks, but slice a source by `getitem` instead of dask's own function.

    A worker would import ``dask.array`` for that function alone, and with it xarray and pandas if
    they are installed: most of a second, and many workers ask one file system for all these files.
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
    """Return the futures of results that a cluster holds and the graph needs.

    dask drops them when it optimises, because the scheduler knows their keys. The graph has to
    hold them all the same, or the cluster may forget the results before it is submitted.
    """
    found = {
        key: value
        for layer in getattr(graph, "layers", {}).values()
        if keys and isinstance(layer, MaterializedLayer)
        for key, value in layer.items()
        if key in keys and isinstance(value, TaskRef)
    }
    # Of an argument of blocks, only the key is left.
    client = current_client() if keys - found.keys() else None
    for key in keys - found.keys():
        found[key] = TaskRef(key)
        if client is not None and key in client.futures:
            from distributed import Future

            found[key] = Future(key, client)
    return found


def is_read(data: da.Array) -> bool:
    """Whether an array is only sliced from its source, and no function has made its voxels."""
    from dask.array import chunk
    from dask.array.core import getter, getter_inline, getter_nofancy

    slicing = (getitem, chunk.getitem, getter, getter_inline, getter_nofancy)
    graph = data.__dask_graph__()
    if isinstance(graph, HighLevelGraph):
        graph = graph.cull({(data.name, *index) for index in np.ndindex(data.numblocks)})
    nodes = convert_legacy_graph(dict(graph)).values()
    return all(not isinstance(node, Task) or node.func in slicing for node in nodes)


def _private_tasks(
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


def accepted_block(
    block: Any, start: Shape, shape: Shape, dtype: np.dtype[Any], mask_value: Number | None
) -> npt.NDArray[Any]:
    """Return a block as it may be written, or raise `BlockError`.

    `block` is whatever a task returned; `start`, `shape` and `dtype` are what the dask array
    declares; masked voxels of a masked array become `mask_value`. Nothing is converted, because
    values would be lost.
    """
    place = ", ".join(f"{s}:{s + n}" for s, n in zip(start, shape, strict=True))
    what = f"the block at voxels {place}"
    if not isinstance(block, np.ndarray):
        raise BlockError(
            f"{what} is a {type(block).__name__} and no NumPy array: have the function that makes "
            "it return one"
        )
    if block.shape != shape:
        raise BlockError(
            f"{what} has shape {block.shape} instead of {shape}: the dask array does not compute "
            "what its chunks say. Correct the function that makes it, or declare chunks=... there"
        )
    if block.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise BlockError(
            f"{what} is of {block.dtype}, but the dask array declares {dtype.newbyteorder('=')}: "
            "have the function that makes it return block.astype(...), or declare the dtype that "
            "it returns, as in map_blocks(..., dtype=...)"
        )
    if not isinstance(block, np.ma.MaskedArray) or not np.ma.is_masked(block):
        return np.asarray(block)
    if mask_value is None:
        raise BlockError(
            f"{what} has masked voxels, for which there is no mask value: pass a datatype that has "
            "one, or fill them with a value of your own by dask.array.ma.filled(data, ...)"
        )
    filled: npt.NDArray[Any] = block.filled(mask_value)
    return filled


def add_blocks(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    places: Mapping[Key, Place],
    accept: Accept,
) -> None:
    """Add the tasks of blocks that wait in memory, and all they depend on, to the graph.

    `places` are by the blocks' keys. Other tasks run before a block is taken, so that its own task
    has to check it, and to give it memory of its own.
    """
    n_uses = Counter(d for node in source.nodes.values() for d in node.dependencies)
    for key, place in places.items():
        nodes = [source.nodes[key]] if key in source.nodes else []
        while nodes and isinstance(nodes[0], Alias) and n_uses[nodes[0].target] == 1:
            nodes.insert(0, source.nodes[nodes[0].target])
        if key not in source.held and n_uses[key] == 0 and nodes and isinstance(nodes[0], Task):
            first = nodes[0]
            recipe = BlockRecipe(*place, tuple(nodes))
            inputs = results_of(first.dependencies)
            producer = first.data_producer
            graph[key] = Task(key, _accepted, accept, recipe, inputs, _data_producer=producer)
            add_closure(graph, source, first.dependencies)
        else:
            add_closure(graph, source, [key])


def results_of(keys: Iterable[Key]) -> Dict | dict[Key, Any]:
    """Return the results of `keys` as an argument of a task: a mapping by key."""
    results = {key: TaskRef(key) for key in keys}
    # An empty Dict would be one more node for each task, and takes a while to make.
    return Dict(results) if results else {}


def _accepted(accept: Accept, recipe: BlockRecipe, shared: Mapping[Key, Any]) -> npt.NDArray[Any]:
    return accept(recipe.make(shared), recipe.start, recipe.shape)


def add_closure(graph: dict[Key, GraphNode], source: SourceGraph, keys: Iterable[Key]) -> None:
    """Add `keys` of the source, and all they depend on, to the graph.

    Results of blocks that depend on other blocks wait while more are made, so that each needs
    memory of its own. The few that independent blocks share are left as they are: a whole volume
    may be among them.
    """
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key in source.held:
            graph[key] = source.held[key]
        elif key not in graph:
            node = source.nodes[key]
            if not source.is_independent and may_reuse(node):
                recipe = BlockRecipe((), (), (node,))
                inputs = results_of(node.dependencies)
                graph[key] = Task(key, recipe.make, inputs, _data_producer=node.data_producer)
            else:
                graph[key] = node
            todo += node.dependencies


def add_block_tasks(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    function: Callable[[Shape, Shape, Any], Any],
    name: str,
    indices: Iterable[Shape] | None = None,
) -> list[Key]:
    """Add a task for each block of the source that calls ``function(start, shape, block)``.

    Start and shape say where the block lies in the array; the function has to check the block
    itself (`accepted_block`). Independent blocks are made inside the task; empty ones are left
    out. `indices` are those of the blocks, all by default. Returns the keys of the tasks.
    """
    keys: list[Key] = []
    used: set[Key] = set()
    chunks = source.chunks
    for index in product(*map(range, map(len, chunks))) if indices is None else indices:
        start = tuple(sum(c[:i]) for c, i in zip(chunks, index, strict=True))
        shape = tuple(c[i] for c, i in zip(chunks, index, strict=True))
        if 0 in shape:
            continue
        key: Key = (name, *index)
        if source.is_independent:
            recipe, needed = source.recipe(index, start, shape)
            inputs = results_of(needed)
            graph[key] = Task(key, _call_with_made, function, recipe, inputs, _data_producer=True)
            used.update(needed)
        else:
            block: Key = (source.name, *index)
            graph[key] = Task(key, function, start, shape, TaskRef(block))
            used.add(block)
        keys.append(key)
    add_closure(graph, source, used)
    return keys


def _call_with_made(
    function: Callable[[Shape, Shape, Any], Any], recipe: BlockRecipe, shared: Mapping[Key, Any]
) -> Any:
    return function(recipe.start, recipe.shape, recipe.make(shared))


def add_tree(
    graph: dict[Key, GraphNode],
    keys: Sequence[Key],
    combine: Callable[[Sequence[Any]], Any],
    name: str,
) -> Key:
    """Add tasks that combine the results of `keys` to one; return the key of the last.

    `combine` is called with lists of results of `keys`, or of itself, so that no task depends on
    thousands of others.
    """
    level = list(keys)
    height = 0
    while True:
        parents: list[Key] = []
        for n in range(0, max(len(level), 1), FAN_IN):
            key = (name, height, n // FAN_IN)
            children = [TaskRef(child) for child in level[n : n + FAN_IN]]
            graph[key] = Task(key, combine, List(*children) if children else [])
            parents.append(key)
        if len(parents) == 1:
            return parents[0]
        level = parents
        height += 1
