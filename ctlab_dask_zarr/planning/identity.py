"""What tells one source from another, so that an interrupted write is gone on with by its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask._task_spec import Alias, DataNode, Task, TaskRef, convert_legacy_graph
from dask.tokenize import TokenizationError, tokenize

if TYPE_CHECKING:
    import dask.array as da

    from ctlab_dask_zarr.formats.datatype import DataType
    from ctlab_dask_zarr.planning.levels import DownsampleMethod
    from ctlab_dask_zarr.planning.plan import PlannedLevel
    from ctlab_dask_zarr.volume import Volume

__all__ = ["SourceIdentity", "plan_identity", "source_identity"]

#: How `dask.delayed`, and `from_array(name=False)`, name what they make: anew in each process.
_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: An array in memory that is larger than this is not hashed: its name was made at random so that
#: it need not be.
_MAX_HASHED_NBYTES = 64 << 20
_HELP = "dask.delayed(..., pure=True), or Dataset(..., identity=...)"

Key = Any


class SourceIdentity(NamedTuple):
    """What tells a source from another.

    Attributes
    ----------
    fields
        As the staging folder keeps them, plain JSON.
    random_name
        dask's name of a source that no other process can recognise, else None.
    notes
        What a user should know of it before starting.
    """

    fields: Any
    random_name: str | None = None
    notes: tuple[str, ...] = ()


def source_identity(dataset: Volume) -> SourceIdentity:
    """Return what the user says of the voxels, else their reader, else dask's name of them.

    Where dask's names are random, the tasks themselves are what is compared: their functions and
    arguments, as far as these can be told from others.
    """
    given = getattr(dataset, "identity", None)
    source = getattr(dataset, "source", None)
    data = dataset.data
    if given is None and source is not None:
        return SourceIdentity(source.identity())
    if given is not None or not _has_random_names(data):
        return SourceIdentity(_by_name(given or data.name))
    name = _name_by_tasks(data)
    if name is not None:
        note = (
            "dask names the source's tasks at random, so that an interrupted write goes on only "
            f"with tasks of the same functions and arguments: {_HELP} gives names that stay"
        )
        return SourceIdentity(_by_name(name), notes=(note,))
    note = (
        "dask names the source's tasks at random, so that no other process knows it again to go on "
        f"with an interrupted write, nor do other parts: {_HELP} gives names that stay"
    )
    return SourceIdentity(_by_name(data.name), data.name, (note,))


def plan_identity(
    levels: tuple[PlannedLevel, ...],
    datatype: DataType | None,
    source: Any,
    downsample: DownsampleMethod,
) -> str:
    """Return, as canonical JSON, what has to be the same for a write to go on."""
    arrays = []
    for level in levels:
        document = json.loads(level.document)
        # Attributes hold ids and times, and can be written anew with the same voxels.
        document.pop("attributes", None)
        arrays.append({"path": level.path, "document": document})
    identity = {
        "source": source,
        "datatype": None if datatype is None else str(datatype),
        "arrays": arrays,
        "downsample": downsample if len(levels) > 1 else None,
    }
    return json.dumps(identity, sort_keys=True)


def _by_name(name: str) -> dict[str, str]:
    return {"kind": "dask", "name": name}


def _has_random_names(data: da.Array) -> bool:
    graph = data.__dask_graph__()
    return any(_RANDOM.search(str(name)) for name in getattr(graph, "layers", graph))


def _name_by_tasks(data: da.Array) -> str | None:
    """Return a name made of what the tasks do, or None where that cannot be told."""
    nodes = convert_legacy_graph(dict(data.__dask_graph__()))
    order = TopologicalSorter({k: node.dependencies & nodes.keys() for k, node in nodes.items()})
    tokens: dict[Key, str] = {}
    functions: dict[int, str] = {}
    n_hashed = 0
    try:
        for key in order.static_order():
            content = _content(nodes[key], tokens, functions)
            n_hashed += sum(part.nbytes for part in content if isinstance(part, np.ndarray))
            if n_hashed > _MAX_HASHED_NBYTES:
                return None
            tokens[key] = tokenize(content, ensure_deterministic=True)
    except TokenizationError:
        return None
    blocks = product(*map(range, data.numblocks))
    return f"tasks-{tokenize([tokens[data.name, *index] for index in blocks])}"


def _content(part: Any, tokens: Mapping[Key, str], functions: dict[int, str]) -> tuple[Any, ...]:
    """Return a task as its function and arguments, those that are tasks by their tokens.

    dask's own token of a task does not tell the order of what stands in a list.
    """
    if isinstance(part, TaskRef | Alias):
        key = part.key if isinstance(part, TaskRef) else part.target
        return "task", tokens.get(key, key)
    if isinstance(part, DataNode):
        return "value", part.value
    if not isinstance(part, Task):
        return "value", part
    if id(part.func) not in functions:
        functions[id(part.func)] = tokenize(part.func, ensure_deterministic=True)
    arguments = [*part.args, *(part.kwargs[name] for name in sorted(part.kwargs))]
    return (
        type(part).__name__,
        functions[id(part.func)],
        sorted(part.kwargs),
        *(piece for argument in arguments for piece in _content(argument, tokens, functions)),
    )
