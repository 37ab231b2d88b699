"""Keywords that a function does not take: what was meant, and what to write instead.

`dataset_to_zarr` keeps keywords that it does not know as fields of the mango block. A keyword that
has a meaning elsewhere would become such a field too, and nobody would notice: it is refused.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.mango import CARRIED_DEFAULTS

P = ParamSpec("P")
R = TypeVar("R")

_WORKERS = (
    "a write runs on dask's scheduler in force, or on client=: start workers by `with Client("
    "n_workers=4):`, or by `with cluster_from_config('slurm', jobs=4) as cluster, Client(cluster):`"
)
_OF_CLUSTERS = (
    "workers n_workers threads n_threads threads_per_worker processes memory_limit cluster "
    "jobs scheduler scheduler_file"
)
_OF_DATASETS = "data dimension_names identity is_discrete origin voxel_size voxel_unit"
_CODEC = "pass codec='blosc:zstd:3:shuffle' or another"
_FIELDS_ONE_BY_ONE = "pass each field as a keyword of its own"
_WHOLE = (
    "a write covers a whole dataset and does not change one that is there; zarr_writer() takes the "
    "slices of a dataset one after the other"
)
#: What to do in place of a keyword of a write. `X=` outside of a call is a keyword of the write.
INSTEAD: dict[str, str] = {
    **dict.fromkeys(_OF_CLUSTERS.split(), _WORKERS),
    **dict.fromkeys(("codecs", "compressor", "compression"), _CODEC),
    **{
        name: f"pass Dataset.from_modified(dataset, {name}=...) in place of the dataset"
        for name in _OF_DATASETS.split()
    },
    "append_dim": _WHOLE,
    "attributes": _FIELDS_ONE_BY_ONE,
    "attrs": _FIELDS_ONE_BY_ONE,
    "deadline": "pass stop=Stop('1h50m')",
    "dimension_separator": "pass dimension_separator_threshold=0 for '/' in every key",
    "dry_run": "call plan() with the same arguments, which shows what would be done",
    "dtype": "pass Dataset.from_modified(dataset, data=dataset.data.astype(...)) in place of it",
    "encoding": "pass chunks=, shards= and codec=",
    "layout": "pass ome_zarr_version=None for a plain array",
    "level": "levels= says how many to write; dataset_from_zarr(path, level=1) opens one of them",
    "method": "pass downsample='mode' or another for how levels are made",
    "mode": "pass overwrite=True to replace a store; without it nothing that is there is touched",
    "name": "labels_to_zarr(labels, image_path, name='phases') writes labels with a name",
    "quiet": "without progress=True nothing is shown",
    "region": _WHOLE,
    "verify": "call verify(path, dataset) after the write",
    "zarr_format": "only Zarr format 3 is written",
    "zarr_version": "only Zarr format 3 is written",
}
#: Who takes a keyword of that name; the first one is named.
ELSEWHERE: dict[str, frozenset[str]] = {
    owner: frozenset(names.split())
    for owner, names in {
        "a parameter of dataset_to_zarr": (
            "chunks shards codec part client progress stop levels downsample overwrite compute "
            "resume restart storage_options create_array_kwargs input_aligned_chunks"
        ),
        "a parameter of dataset_from_zarr": "level strict voxel_size voxel_unit follow_links",
        "a parameter of dataset_to_netcdf": (
            "compression_level elements_per_file mango_compatible_slices_per_file_rounding "
            "max_file_size_mb"
        ),
        "a parameter of dataset_from_netcdf": "ignore_block_chunks",
        "a parameter of labels_to_zarr": "labels image_path name colors",
        "a parameter of verify": "source checksums",
        "a parameter of cluster_from_config": "config jobs worker_timeout on_wait",
        "a parameter of Dataset": f"{_OF_DATASETS} extra_attrs",
        "a parameter of plan_edit": "now",
        "a parameter of push": "url",
        "a parameter of serve_store": "on_left_out",
        "a parameter of synthetic_volume": "shape seed",
        "a parameter of write_mango_netcdf": (
            "volume slices_per_block compression_level hdf5_chunk_shape md5 on_block shuffle"
        ),
        "a parameter of Dataset.from_path": "filetype parse_history",
        "a parameter of Dataset.binned": "factor",
        "a parameter of Dataset.rescaled": "window values",
        "a parameter of Dataset.from_modified": "history_entry history_key dataset_id_suffix",
        "a parameter of Dataset.map_masked": "func method depth",
        "an option of the command line, see `ctlab-zarr --help`": (
            "add added anisotropic as_json bin byte_order check_source cluster color crop "
            "dask_graph deadline drop_labels example help input_aligned input_format json "
            "layout log_level memory_limit mkdir neuroglancer no_browser no_labels offset "
            "ome_version output output_format pattern performance_report port quick quiet "
            "report scheduler scheduler_file size slices storage_option threads to "
            "verify_after workers yes"
        ),
        "a parameter of xarray's to_zarr": (
            "store mode group encoding consolidated append_dim region safe_chunks align_chunks "
            "zarr_format write_empty_chunks chunkmanager_store_kwargs chunk_store synchronizer "
            "zarr_version"
        ),
    }.items()
}
#: Arguments of zarr.create_array that users have passed directly.
_ARRAY_PARAMETERS = ("compressors", "filters", "fill_value")
#: Fields that scanners and laboratories write, though they look like a misspelt parameter.
_FIELDS = frozenset({*CARRIED_DEFAULTS, "filter", "computer"})
#: Parameters that do nothing any more, and those that stand in for them.
_DEPRECATED = {"max_shard_size_mb": "shards", "chunk_size_mb": "chunks"}


def explains_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function say what was meant by a keyword that it does not take.

    A function that takes any keyword refuses those that are wrong itself.
    """
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return function

    @wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(function, kwargs)
        return function(*args, **kwargs)

    # Where the function with the explanation is found, as pickle needs to know.
    explained.__module__ = __name__.partition(".")[0]
    return explained


def refuse_unknown(
    function: Callable[..., Any], given: Iterable[str], called: str | None = None
) -> None:
    """Raise `InvalidArgumentError` for the first keyword that a function does not take.

    `called` is its name in the message, where users call it through another function. A function
    that has ``**kwargs`` also takes those of `dask.array.from_array`.
    """
    known = parameters_of(function)
    unknown = [name for name in given if name not in known]
    if unknown and "kwargs" in inspect.signature(function).parameters:
        from dask.array import from_array

        known += [name for name in parameters_of(from_array) if name != "x"]
    for name in unknown:
        if name in known:
            continue
        advice = _near_miss(name, known)
        if advice is None:
            owner = _owner(name)
            elsewhere = "" if owner is None else f"it is {owner}, and "
            advice = f"{elsewhere}there are {', '.join(known)}"
        called = called or function.__name__
        raise InvalidArgumentError(f"{name}= is not a parameter of {called}: {advice}")


def refuse_other_meanings(extra_attrs: Iterable[str], known: Collection[str]) -> None:
    """Raise `InvalidArgumentError` for a field of the mango block that was meant otherwise.

    `known` are the parameters of `dataset_to_zarr`, `extra_attrs` all other keywords.
    """
    for name in extra_attrs:
        if name in _FIELDS:
            continue
        advice = INSTEAD.get(name)
        if advice is None:
            owner = _owner(name)
            advice = _near_miss(name, known) if owner is None else _advice(name, owner)
        if advice is not None:
            end = "" if advice.endswith("?") else "."
            raise InvalidArgumentError(
                f"{name}= is not a parameter here, and would become a field of the mango block: "
                f"{advice}{end} A field of that name is written by Dataset.from_modified(dataset, "
                f"extra_attrs={{{name!r}: ...}})"
            )


def _near_miss(name: str, known: Collection[str]) -> str | None:
    """Return what a keyword was meant to be, as a question; None if it is like none."""
    arrays = _ARRAY_PARAMETERS if "create_array_kwargs" in known else ()
    near = difflib.get_close_matches(name, [*known, *arrays], 1, cutoff=0.8)
    if not near:
        return None
    meant = _DEPRECATED.get(near[0], near[0])
    if meant in arrays:
        meant = f"create_array_kwargs={{{meant!r}: ...}}"
    return f"did you mean {meant}?"


def _advice(name: str, owner: str) -> str:
    from ctlab_dask_zarr.planning.plan import OWN_ARRAY_ARGUMENTS

    if owner.endswith("zarr.create_array") and name not in OWN_ARRAY_ARGUMENTS:
        return f"pass create_array_kwargs={{{name!r}: ...}}"
    return f"it is {owner}"


def _owner(name: str) -> str | None:
    """Return what takes a keyword of that name."""
    for owner, names in ELSEWHERE.items():
        if name in names:
            return owner
    # Slow to import: only for keywords that nobody knows.
    import dask.array as da
    import zarr

    for function in (zarr.create_array, zarr.create_group, zarr.open, zarr.create, da.to_zarr):
        if name in parameters_of(function):
            return f"a parameter of {function.__module__.partition('.')[0]}.{function.__name__}"
    return None


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Return what may be given by name, without what takes any name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name != "self"]
