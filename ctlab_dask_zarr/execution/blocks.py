"""The blocks of a source: which tasks make each, and what of them may be written.

Whatever a task of the source returns is looked at before anything is made of it
(`accepted_block`), wherever it comes in. What is held while others are made has memory of its own
(`write.recipe`): functions may fill one buffer again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from dask._task_spec import Alias, DataNode, Dict, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.highlevelgraph import MaterializedLayer

from ctlab_dask_zarr.errors import BlockError
from ctlab_dask_zarr.execution.recipe import BlockRecipe, may_reuse
from ctlab_dask_zarr.execution.resources import future_of
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.planning.layout import Shape

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "Accept",
    "Place",
    "SourceGraph",
    "accepted_block",
    "add_block_tasks",
    "add_blocks",
    "add_closure",
    "analyse_source",
    "private_tasks",
]

Key = Any
#: Where a block lies in the source: its first voxel, and its shape.
Place = tuple[Shape, Shape]
#: `accepted_block`, but for the block and its place.
Accept = Callable[[Any, Shape, Shape], npt.NDArray[Any]]
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
        found = {
            id(value): value
            for value in _plain_values(self.nodes.values())
            if hasattr(type(value), "check_unchanged")
        }
        return tuple(found.values())


def _plain_values(nodes: Iterable[GraphNode]) -> Iterator[Any]:
    """Yield what stands in tasks beside other tasks; dask puts tasks that it fuses into one."""
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


def accepted_block(
    block: Any, start: Shape, shape: Shape, dtype: np.dtype[Any], mask_value: Number | None
) -> npt.NDArray[Any]:
    """Return the voxels of a block as they may be written.

    Parameters
    ----------
    block
        Whatever a task returned.
    start, shape, dtype
        Where it lies in the dask array, and what that declares.
    mask_value
        What masked voxels of a masked array become; None where there is no such value.

    Raises
    ------
    BlockError
        It is something else than was declared. Nothing is converted: values would be lost.
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
            "one, or fill them with one of your own by dask.array.ma.filled(data, ...)"
        )
    filled: npt.NDArray[Any] = block.filled(mask_value)
    return filled


def add_blocks(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    places: Mapping[Key, Place],
    accept: Accept,
) -> None:
    """Add the tasks of blocks that are to be held, and all they depend on, to the graph.

    `places` are by the blocks' keys. Other tasks run between a block's own and the one that takes
    it, so that it has to leave its own as it may be written, in memory of its own.
    """
    n_uses = Counter(d for node in source.nodes.values() for d in node.dependencies)
    for key, place in places.items():
        nodes = [source.nodes[key]] if key in source.nodes else []
        while nodes and isinstance(nodes[0], Alias) and n_uses[nodes[0].target] == 1:
            nodes.insert(0, source.nodes[nodes[0].target])
        if key not in source.held and n_uses[key] == 0 and nodes and isinstance(nodes[0], Task):
            needed = nodes[0].dependencies
            inputs = Dict({d: TaskRef(d) for d in needed}) if needed else {}
            recipe = BlockRecipe(*place, tuple(nodes))
            producer = nodes[0].data_producer
            graph[key] = Task(key, _accepted, accept, recipe, inputs, _data_producer=producer)
            add_closure(graph, source, needed)
        else:
            add_closure(graph, source, [key])


def _accepted(accept: Accept, recipe: BlockRecipe, shared: Mapping[Key, Any]) -> npt.NDArray[Any]:
    return accept(recipe.make(shared), recipe.start, recipe.shape)


def add_closure(graph: dict[Key, GraphNode], source: SourceGraph, keys: Iterable[Key]) -> None:
    """Add `keys` of the source, and all they depend on, to the graph.

    Of blocks that depend on others' the results are held while more are made, so that each has to
    have memory of its own. The few that independent ones share are left as they are: a whole
    volume may be among them.
    """
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key in source.held:
            graph[key] = source.held[key]
        elif key not in graph:
            node = source.nodes[key]
            owns = not source.is_independent and may_reuse(node)
            graph[key] = _owning_task(node) if owns else node
            todo += node.dependencies


def _owning_task(node: GraphNode) -> Task:
    inputs = Dict({d: TaskRef(d) for d in node.dependencies})
    recipe = BlockRecipe((), (), (node,))
    return Task(node.key, recipe.make, inputs or {}, _data_producer=node.data_producer)


def add_block_tasks(
    graph: dict[Key, GraphNode],
    source: SourceGraph,
    function: Callable[[Shape, Shape, Any], Any],
    name: str,
    indices: Iterable[Shape] | None = None,
) -> list[Key]:
    """Add a task for each block of the source that calls ``function(start, shape, block)``.

    Start and shape are where it lies in the array; of the block nothing is known
    (`accepted_block`). Blocks that can be are made inside the task; those without voxels are left
    out. `indices` are those of the blocks, all by default. Returns the keys of the tasks.
    """
    keys: list[Key] = []
    used: set[Key] = set()
    for index in product(*map(range, map(len, source.chunks))) if indices is None else indices:
        start = tuple(sum(c[:i]) for c, i in zip(source.chunks, index, strict=True))
        shape = tuple(c[i] for c, i in zip(source.chunks, index, strict=True))
        if 0 in shape:
            continue
        block: Key = (source.name, *index)
        key: Key = (name, *index)
        if source.is_independent:
            nodes, needed = private_tasks(source.nodes, block, source.shared)
            shared = Dict({k: TaskRef(k) for k in needed}) if needed else {}
            recipe = BlockRecipe(start, shape, nodes)
            graph[key] = Task(key, _call_with_made, function, recipe, shared, _data_producer=True)
            used.update(needed)
        else:
            graph[key] = Task(key, function, start, shape, TaskRef(block))
            used.add(block)
        keys.append(key)
    add_closure(graph, source, used)
    return keys


def _call_with_made(
    function: Callable[[Shape, Shape, Any], Any],
    recipe: BlockRecipe,
    shared: Mapping[Key, Any],
) -> Any:
    return function(recipe.start, recipe.shape, recipe.make(shared))
