"""Arguments that a function does not take: what was meant, and what to write instead.

`dataset_to_zarr` keeps keywords that it does not know as fields of the mango block. One that means
something elsewhere would be such a field too, and not do what was meant, so that it is refused.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.mango import CARRIED_DEFAULTS

__all__ = [
    "explains_keywords",
    "refuse_other_meanings",
    "refuse_unknown",
]

P = ParamSpec("P")
R = TypeVar("R")

_SCHEDULER = (
    "a write runs on dask's scheduler in force: put it below `with Client(n_workers=4):`, or below "
    "`with cluster_from_config('slurm', jobs=4) as cluster, Client(cluster):`"
)
_COMPRESSORS = "pass create_array_kwargs={'compressors': ...}"
_MODIFIED = "pass Dataset.from_modified(dataset, {}=...) in place of the dataset"
#: What to do in place of a keyword of a write. `X=` outside of a call is a keyword of the write.
INSTEAD: dict[str, str] = {
    **dict.fromkeys(
        (
            *("workers", "n_workers", "threads", "n_threads", "threads_per_worker", "processes"),
            *("memory_limit", "client", "cluster", "jobs", "scheduler", "scheduler_file"),
        ),
        _SCHEDULER,
    ),
    **dict.fromkeys(("codec", "codecs", "compressor", "compression"), _COMPRESSORS),
    **{
        name: _MODIFIED.format(name)
        for name in (
            *("data", "dimension_names", "identity", "is_discrete", "origin"),
            *("voxel_size", "voxel_unit"),
        )
    },
    "append_dim": "a write is of a whole dataset: nothing is added to one that is there",
    "attributes": "pass each field as a keyword of its own",
    "attrs": "pass each field as a keyword of its own",
    "dimension_separator": "pass dimension_separator_threshold=0 for '/' in every key",
    "dtype": "pass Dataset.from_modified(dataset, data=dataset.data.astype(...)) in place of it",
    "dry_run": "call plan() with the same arguments, which shows what would be done",
    "encoding": "pass chunks=, shards= and create_array_kwargs={'compressors': ...}",
    "input_aligned_chunks": "pass shards= and chunks= that fit the blocks, as plan() shows",
    "layout": "pass ome_zarr_version=None for a plain array",
    "level": "levels= says how many to write; dataset_from_zarr(path, level=1) opens one of them",
    "method": "pass downsample='mode' or another for how levels are made",
    "mode": "pass overwrite=True to replace a store; without it nothing that is there is touched",
    "name": "labels_to_zarr(labels, image_path, name='phases') writes labels of a name",
    "part": "jobs share a write by the command `ctlab-zarr convert --part 3/8`",
    "progress": "put the write below `with dask.diagnostics.ProgressBar():`",
    "region": "a write is of a whole dataset: nothing is changed in one that is there",
    "verify": "call verify(path, dataset) when it is written",
    "zarr_format": "Zarr format 3 is written, and no other",
    "zarr_version": "Zarr format 3 is written, and no other",
}
#: Options of the commands, by the names of their values and as they are typed.
OPTIONS = frozenset(
    {
        *("add", "added", "anisotropic", "as_json", "check_source", "cluster", "codec", "color"),
        *("colors", "deadline", "example", "follow_links", "help", "jobs", "json", "labels"),
        *(
            "layout",
            "memory_limit",
            "mkdir",
            "name",
            "neuroglancer",
            "no_browser",
            "no_labels",
            "output",
        ),
        *("part", "port", "quick", "quiet", "report", "scheduler", "scheduler_file", "size"),
        *("source", "storage_option", "threads", "verify_after", "workers", "yes"),
    }
)
#: Parameters of to_zarr of xarray, which may not be installed.
OF_XARRAY = frozenset(
    {
        *("store", "mode", "group", "encoding", "consolidated", "append_dim", "region"),
        *("safe_chunks", "align_chunks", "zarr_format", "write_empty_chunks"),
        *("chunkmanager_store_kwargs", "chunk_store", "synchronizer", "zarr_version"),
    }
)
#: Arguments of zarr.create_array that users have passed directly.
_ARRAY_PARAMETERS = ("compressors", "compressor", "codecs", "filters", "fill_value")
#: What scanners and laboratories write down, though it looks like a parameter misspelt.
_FIELDS = frozenset({*CARRIED_DEFAULTS, "filter", "computer"})
#: Parameters that do nothing any more, and those that stand in for them.
_DEPRECATED = {"max_shard_size_mb": "shards", "chunk_size_mb": "chunks"}


def explains_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function say what was meant by a keyword that it does not take."""

    @wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(function, kwargs)
        return function(*args, **kwargs)

    return explained


def refuse_unknown(function: Callable[..., Any], given: Iterable[str]) -> None:
    """Raise `InvalidArgumentError` for the first keyword that a function does not take.

    Further keywords of a function that takes any are those of `dask.array.from_array`.
    """
    known = _parameters(function)
    unknown = [name for name in given if name not in known]
    if unknown and "kwargs" in inspect.signature(function).parameters:
        from dask.array import from_array

        known += [name for name in _parameters(from_array) if name != "x"]
    for name in unknown:
        if name in known:
            continue
        advice = _near_miss(name, known)
        if advice is None:
            owner = next(_owners(name), None)
            elsewhere = "" if owner is None else f"it is {owner}, and "
            advice = f"{elsewhere}there are {', '.join(known)}"
        raise InvalidArgumentError(f"{name}= is no parameter of {function.__name__}: {advice}")


def refuse_other_meanings(extra_attrs: Iterable[str], known: Collection[str]) -> None:
    """Raise `InvalidArgumentError` for a field of the mango block that was meant otherwise.

    Parameters
    ----------
    extra_attrs
        Keywords that `dataset_to_zarr` does not know.
    known
        Those that it does.
    """
    for name in extra_attrs:
        if name in _FIELDS:
            continue
        advice = INSTEAD.get(name)
        if advice is None:
            owner = next(_owners(name), None)
            advice = _near_miss(name, known) if owner is None else _advice(name, owner)
        if advice is not None:
            end = "" if advice.endswith("?") else "."
            raise InvalidArgumentError(
                f"{name}= is no parameter here, and would become a field of the mango block: "
                f"{advice}{end} A field of that name is written by Dataset.from_modified(dataset, "
                f"extra_attrs={{{name!r}: ...}})"
            )


def _near_miss(name: str, known: Collection[str]) -> str | None:
    """Return what a keyword was meant to be, as a question; None where it is like none."""
    arrays = _ARRAY_PARAMETERS if "create_array_kwargs" in known else ()
    near = difflib.get_close_matches(name, [*known, *arrays], 1, cutoff=0.8)
    if not near:
        return None
    meant = _DEPRECATED.get(near[0], near[0])
    if meant in arrays:
        key = meant if meant in ("filters", "fill_value") else "compressors"
        meant = f"create_array_kwargs={{{key!r}: ...}}"
    return f"did you mean {meant}?"


def _advice(name: str, owner: str) -> str:
    from ctlab_dask_zarr.planning.plan import OWN_ARRAY_ARGUMENTS

    if owner.endswith("zarr.create_array") and name not in OWN_ARRAY_ARGUMENTS:
        return f"pass create_array_kwargs={{{name!r}: ...}}"
    return f"it is {owner}"


def _owners(name: str) -> Iterator[str]:
    """Yield what takes a keyword of that name. Imports much: only for keywords not known."""
    package = sys.modules[__name__.partition(".")[0]]
    dataset = package.Dataset
    functions = {
        **{key: getattr(package, key) for key in package.__all__ if key.islower()},
        "Dataset": dataset,
        **{f"Dataset.{key}": getattr(dataset, key) for key in ("from_path", "from_modified")},
        "Dataset.to_path": dataset.to_path,
        "Dataset.map_masked": dataset.map_masked,
    }
    for key, function in functions.items():
        if name in _parameters(function):
            yield f"a parameter of {key}"
    if name in OPTIONS:
        yield "an option of the command line, see `ctlab-zarr --help`"
    import dask.array as da
    import zarr

    for where in (zarr.create_array, zarr.create_group, zarr.open, zarr.create, da.to_zarr):
        if name in _parameters(where):
            yield f"a parameter of {where.__module__.partition('.')[0]}.{where.__name__}"
    if name in OF_XARRAY:
        yield "a parameter of xarray's to_zarr"


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Return what may be given by name, without what takes any name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]
