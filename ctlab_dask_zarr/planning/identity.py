"""What has to be the same for an interrupted write to go on, and how two of these differ.

Most of all it is the source: who made its voxels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from itertools import product, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask._task_spec import Alias, DataNode, Task, TaskRef, convert_legacy_graph
from dask.tokenize import TokenizationError, tokenize

from ctlab_dask_zarr.formats.codecs import codec_text

if TYPE_CHECKING:
    import dask.array as da

    from ctlab_dask_zarr.formats.datatype import DataType
    from ctlab_dask_zarr.planning.levels import DownsampleMethod
    from ctlab_dask_zarr.planning.plan import PlannedLevel
    from ctlab_dask_zarr.volume import Volume

#: Characters of a value that a message shows.
_MAX_SHOWN = 100
#: The random names that `dask.delayed` and `from_array(name=False)` make.
_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Larger arrays in memory are not hashed: people give them random names to avoid just that.
_MAX_HASHED_NBYTES = 64 << 20
_HELP = "dask.delayed(..., pure=True), or Dataset(..., identity=...)"


class SourceIdentity(NamedTuple):
    """What tells a source from every other one.

    `fields` are plain JSON, as the staging folder keeps them. `random_name` is dask's name of a
    source that no other process can recognise. `notes` are what a user should know before starting.
    """

    fields: Any
    random_name: str | None = None
    notes: tuple[str, ...] = ()


def source_identity(volume: Volume) -> SourceIdentity:
    """Return the identity that the user gave, else that of the opened source, else dask's name.

    Where dask's names are random, the functions and arguments of the tasks are compared instead, as
    far as these can be told from others.
    """
    given, source, data = volume.identity, volume.source, volume.data
    if given is None and source is not None:
        return SourceIdentity(source.identity())
    if given is not None or not _has_random_names(data):
        return SourceIdentity({"kind": "dask", "name": given or data.name})
    name = _name_by_tasks(data)
    if name is not None:
        follows = "an interrupted write goes on only with tasks of the same functions and arguments"
    else:
        follows = "no other process knows it again to go on with an interrupted write, nor do parts"
    note = f"dask names the source's tasks at random, so that {follows}: {_HELP} gives other names"
    random_name = data.name if name is None else None
    return SourceIdentity({"kind": "dask", "name": name or data.name}, random_name, (note,))


def plan_identity(
    levels: tuple[PlannedLevel, ...],
    datatype: DataType | None,
    source: Any,
    downsample: DownsampleMethod,
) -> str:
    """Return as canonical JSON what has to be the same for a write to go on."""
    arrays = []
    for level in levels:
        document = json.loads(level.document)
        # Attributes hold ids and times, which may change while the voxels stay the same.
        document.pop("attributes", None)
        arrays.append({"path": level.path, "document": document})
    identity = {
        "source": source,
        "datatype": None if datatype is None else str(datatype),
        "arrays": arrays,
        "downsample": downsample if len(levels) > 1 else None,
    }
    return json.dumps(identity, sort_keys=True)


def _has_random_names(data: da.Array) -> bool:
    graph = data.__dask_graph__()
    return any(_RANDOM.search(str(name)) for name in getattr(graph, "layers", graph))


def _name_by_tasks(data: da.Array) -> str | None:
    """Return a name made from what the tasks do; None where that cannot be told."""
    nodes = convert_legacy_graph(dict(data.__dask_graph__()))
    order = TopologicalSorter({k: node.dependencies & nodes.keys() for k, node in nodes.items()})
    tokens: dict[Any, str] = {}
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


def _content(part: Any, tokens: Mapping[Any, str], functions: dict[int, str]) -> tuple[Any, ...]:
    """Return a task as its function and arguments; arguments that are tasks by their tokens.

    dask's own token of a task ignores the order of what stands in a list.
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


def identity_difference(found: Any, wanted: str) -> str:
    """Name the first difference of two identities: ``source.size was 3 and is now 4``."""
    if not isinstance(found, str):
        return "it does not say what was being written"
    before, now = json.loads(found), json.loads(wanted)
    options = [_options(identity) for identity in (before, now)]
    # None is what users cannot give, but for shards.
    both = [n for n in options[0] if n == "shards" or None not in [o.get(n) for o in options]]
    other = [name for name in both if options[0][name] != options[1].get(name)]
    if other:
        # These come first, because they explain other differences.
        begun, this = (_given_text({name: o.get(name) for name in other}) for o in options)
        return f"begun with {begun}, and this is with {this}"
    place, *values = _first_difference(before, now, "")
    if place.startswith("source"):
        return source_difference(before["source"], wanted)
    return _change(place, *values)


def _options(identity: Any) -> dict[str, Any]:
    """Return what users ask of a layout, as far as it is told by what came of it."""
    arrays = identity["arrays"]
    found = {"levels": len(arrays), "datatype": identity["datatype"]}
    found["downsample"] = identity.get("downsample")
    try:
        document = arrays[0]["document"]
        outer, codecs = document["chunk_grid"]["configuration"]["chunk_shape"], document["codecs"]
        is_sharded = codecs[0]["name"] == "sharding_indexed"
        found["shards"] = tuple(outer) if is_sharded else None
        inner = codecs[0]["configuration"]["chunk_shape"] if is_sharded else outer
        found |= {"chunks": tuple(inner), "codec": _codec_text(arrays)}
    except LookupError:
        return found
    return found


def _given_text(options: Mapping[str, Any]) -> str:
    """Return options as users give them, in Python and to the command."""
    in_python = ", ".join(f"{name}={value!r}" for name, value in options.items())
    words = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name} {'none' if text is None else text}")
    return f"{in_python} ({' '.join(words)})"


def same_but_codec(found: Any, wanted: str) -> bool:
    """Whether two identities differ in the codec alone, or not at all."""
    if not isinstance(found, str):
        return False
    identities = [json.loads(found), json.loads(wanted)]
    for identity in identities:
        for array in identity["arrays"]:
            del _codecs(array["document"])[1:]
    return bool(identities[0] == identities[1])


def _codecs(document: Any) -> list[Any]:
    """Return the codecs of inner chunks, ``bytes`` first: a part of the document itself."""
    codecs: list[Any] = document["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        codecs = codecs[0]["configuration"]["codecs"]
    return codecs


def _codec_text(arrays: Any) -> str | None:
    """Return the codec of the first array as users write it; None where they cannot."""
    try:
        chain = _codecs(arrays[0]["document"])[1:]
        return codec_text((codec["name"], codec.get("configuration") or {}) for codec in chain)
    except (LookupError, TypeError):
        return None


def source_difference(found: Any, wanted: str) -> str:
    """Name how a source differs from that of an identity; '' if it does not, or is not told."""
    now = json.loads(wanted)["source"]
    if not isinstance(found, dict) or found == now:
        return ""
    change = _change(*_first_difference(found, now, "source"))
    if found.get("kind") == "dask":
        name = found.get("name")
        change += f": if the voxels are the same, say so by Dataset(..., identity={name!r})"
    return change


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        # Another codec, or another kind of source, has other fields too: name it first.
        for key in sorted(before | now, key=lambda key: key not in ("kind", "name")):
            b, w = before.get(key), now.get(key)
            if b != w:
                return _first_difference(b, w, f"{place}.{key}".lstrip("."))
    if isinstance(before, list) and isinstance(now, list):
        for n, (b, w) in enumerate(zip_longest(before, now)):
            if b != w:
                return _first_difference(b, w, f"{place}[{n}]")
    return place, before, now


def requested_difference(found: Any, wanted: Any) -> str:
    """Name everything in the metadata that was asked for otherwise; '' where nothing was.

    Stores of earlier versions do not say what was asked for: nothing is different then.
    """
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return ""
    pairs = {key: (found.get(key), wanted.get(key)) for key in found | wanted}
    return ", ".join(_change(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1])


def _change(name: str, before: Any, now: Any) -> str:
    texts = ["nothing" if value is None else repr(value) for value in (before, now)]
    was, is_now = (t if len(t) <= _MAX_SHOWN else f"{t[:_MAX_SHOWN]}..." for t in texts)
    return f"{name} was {was} and is now {is_now}"
