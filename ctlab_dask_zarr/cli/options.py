"""Options that commands share, and what they mean to the Python API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.parameters import (
    CODEC,
    DEADLINE,
    LEVELS,
    NBYTES,
    SHAPE,
    SHAPE_OR_NONE,
    VOXEL_SIZE,
    VOXEL_UNIT,
)

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.execution.stopping import Stop

__all__ = [
    "Command",
    "client_for",
    "cluster_arguments",
    "given_source_options",
    "layout_arguments",
    "open_source",
    "with_cluster_options",
    "with_deadline_option",
    "with_options",
    "with_resume_options",
    "with_source_options",
    "with_storage_options",
    "with_write_options",
    "write_arguments",
]

_SOURCE_OPTIONS = [
    click.option("--datatype", default=None,
                 help="mango data type, where the source does not say it or says it wrong."),
    click.option("--dataset-id", default=None, help="Identifier; by default the source's own."),
    click.option("--voxel-size", type=VOXEL_SIZE, default=None,
                 help="Instead of the source's: 2.5um, or z,y,x as in 3,2.5,2.5um."),
    click.option("--voxel-unit", type=VOXEL_UNIT, default=None,
                 help="Instead of the source's: mm, um, nm, ..."),
]  # fmt: skip
_SOURCE_KEYS = ("datatype", "dataset_id", "voxel_size", "voxel_unit")

_WRITE_OPTIONS = [
    click.argument("source", type=click.Path()),
    click.argument("destination", type=click.Path()),
    click.option("--chunks", type=SHAPE, default="auto", show_default=True,
                 help="Inner chunk: 32,32,32, a number of elements, or auto (32^3; 256^2 in 2-D)."),
    click.option("--shards", type=SHAPE_OR_NONE, default="auto", show_default=True,
                 help="Shard: 512,512,512, a number of elements, auto (512^3; 8192^2 in 2-D), or "
                      "none for no sharding. 0 spans an axis."),
    click.option("--codec", type=CODEC, default=None,
                 help="zstd:3, blosc:zstd:5:bitshuffle, gzip:6, lz4 or none.  [default: zstd]"),
    *_SOURCE_OPTIONS,
    click.option("--layout", type=click.Choice(["ome", "plain"]), default="ome", show_default=True,
                 help="An OME-Zarr 0.5 group, or a plain Zarr v3 array."),
    click.option("--scale-placement", type=click.Choice(["dataset", "multiscales"]),
                 default=None,
                 help="Where OME metadata holds the voxel size; mango's own files: multiscales.  "
                      "[default: dataset]"),
    click.option("--levels", type=LEVELS, default=None,
                 help="Levels of detail, the data itself counted; auto: down to a picture.  "
                      "[default: 1]"),
    click.option("--downsample", type=click.Choice(["mean", "mode", "nearest", "max"]),
                 default=None, help="How a level becomes the next one.  [default: by data type]"),
    click.option("--overwrite", is_flag=True,
                 help="Replace a Zarr store at the destination, once the new one is complete."),
]  # fmt: skip

_RESUME_OPTIONS = [
    click.option("--resume", is_flag=True, help="Go on with what was interrupted."),
    click.option("--restart", is_flag=True, help="First remove what an interruption has left."),
]

_CLUSTER_OPTIONS = [
    click.option("--workers", type=click.IntRange(1), default=None,
                 help="Worker processes.  [default: one for each allocated CPU]"),
    click.option("--threads", type=click.IntRange(1), default=None,
                 help="Threads in each worker.  [default: 1]"),
    click.option("--memory-limit", type=NBYTES, default=None,
                 help="Of one worker, as 4GiB.  [default: its share of the allocation]"),
    click.option("--scheduler", metavar="ADDRESS", default=None,
                 help="Use a running dask scheduler, as tcp://node1:8786."),
    click.option("--scheduler-file", type=click.Path(), default=None,
                 help="Use a running dask scheduler, by the file it wrote."),
    click.option("--cluster", metavar="FILE.yaml|local|slurm|pbs|mpi", default=None,
                 help="Start workers as a dask configuration says; cluster-configs/ has some."),
    click.option("--jobs", type=click.IntRange(1), default=None,
                 help="Jobs of --cluster, each replaced when it is lost.  [default: 1]"),
]  # fmt: skip

_LOCAL_KEYS = ("workers", "threads", "memory_limit")
_RUNNING_KEYS = ("scheduler", "scheduler_file")
_STARTED_KEYS = ("cluster", "jobs")


Command = Callable[..., Any]


def with_storage_options(command: Command) -> Command:
    """Let a command reach object stores with options, and what links in a store lead to."""

    @wraps(command)
    def with_options_in_force(
        *arguments: Any, storage_options: dict[str, str] | None, **more: Any
    ) -> Any:
        if storage_options is None:
            return command(*arguments, **more)
        from ctlab_dask_zarr.store.store import storage_options_in_force

        with storage_options_in_force(storage_options):
            return command(*arguments, **more)

    with_links = click.option(
        "--follow-links",
        is_flag=True,
        expose_value=False,
        callback=_follow_links,
        help="Follow links that lead out of a store that is read, as git-annex has them.",
    )(with_options_in_force)
    return click.option(
        "--storage-option",
        "storage_options",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_storage_options,
        help="Of an object store, as endpoint=http://host:9000 or region=ap-southeast-2; "
        "credentials come from the environment.",
    )(with_links)


def _follow_links(context: click.Context, parameter: click.Parameter, is_asked_for: bool) -> None:
    if is_asked_for:
        import dask

        context.with_resource(dask.config.set({"ctlab-zarr.follow-links": True}))


def _storage_options(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    if not values:
        return None
    from ctlab_dask_zarr.errors import InvalidArgumentError
    from ctlab_dask_zarr.store.objects import validated_options

    wrong = [value for value in values if "=" not in value]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    options = dict(value.split("=", 1) for value in values)
    try:
        validated_options(options)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from error
    return options


def with_write_options(command: Command) -> Command:
    """Give a command the arguments SOURCE and DESTINATION and every option of a write."""
    return with_options(_WRITE_OPTIONS, command)


def with_source_options(command: Command) -> Command:
    """Give a command the options that correct what a source says about itself."""
    return with_options(_SOURCE_OPTIONS, command)


def with_resume_options(command: Command) -> Command:
    """Give a command the two ways in which an interrupted write is dealt with."""
    return with_options(_RESUME_OPTIONS, command)


def with_mkdir_option(command: Command) -> Command:
    """Give a command that makes a store the option to make the folder for it."""
    return click.option(
        "--mkdir", is_flag=True, help="Make the folder of DESTINATION where it is missing."
    )(command)


def make_folder_of(destination: str) -> None:
    """Make the folder in which a store is to be, and those above it; a dangling link is none."""
    import os

    from ctlab_dask_zarr.store.paths import is_url, storage_path

    path = storage_path(destination)
    if not is_url(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)


def with_deadline_option(command: Command) -> Command:
    """Give a command that can be stopped and gone on with its deadline."""
    return click.option(
        "--deadline",
        type=DEADLINE,
        default=None,
        help="Stop in time to be gone on with (exit code 75): 1h50m, or auto for what is left of "
        "the SLURM or PBS job.",
    )(command)


def with_cluster_options(command: Command) -> Command:
    """Give a command the options that say where it runs."""
    return with_options(_CLUSTER_OPTIONS, with_storage_options(command))


def with_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """Give a command several options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def cluster_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the cluster options out of `options`; raise a usage error where they disagree."""
    taken = {key: options.pop(key) for key in (*_LOCAL_KEYS, *_RUNNING_KEYS, *_STARTED_KEYS)}
    given = [f"--{key.replace('_', '-')}" for key, value in taken.items() if value is not None]
    running = [name for name in given if name.startswith("--scheduler")]
    if running and len(given) > 1:
        other = next(name for name in given if name != running[0])
        raise click.UsageError(
            f"{running[0]} uses the workers of a running scheduler: leave {other} out"
        )
    others = [name for name in given if name not in ("--cluster", "--jobs")]
    if taken["cluster"] is not None and others:
        raise click.UsageError(f"--cluster says what its workers are: leave {others[0]} out")
    if taken["cluster"] is None and taken["jobs"] is not None:
        raise click.UsageError("--jobs are those of a --cluster: say which")
    return taken | _configured(taken, given)


def _configured(taken: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """Return what dask's configuration says in place of options that were not given."""
    from ctlab_dask_zarr.cli.errors import exit_codes

    with exit_codes():
        from ctlab_dask_zarr.settings import setting

        if not given and setting("cluster"):
            return {key: setting(key) for key in _STARTED_KEYS}
        if taken["cluster"] or any(taken[key] for key in _RUNNING_KEYS):
            return {}
        values = {key: setting(key.replace("_", "-")) for key in _LOCAL_KEYS if not taken[key]}
        if isinstance(values.get("memory_limit"), str):
            values["memory_limit"] = NBYTES.convert(values["memory_limit"], None, None)
    return values


@contextmanager
def client_for(
    workers: int | None,
    threads: int | None,
    memory_limit: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
    cluster: str | None,
    jobs: int | None,
    stop: Stop,
) -> Iterator[Any]:
    """Yield a client on a running scheduler, or on a cluster that ends with it.

    `stop` also ends the wait for workers that are still queued.
    """
    from distributed import Client

    from ctlab_dask_zarr.execution.clusters import client_of, cluster_from_config
    from ctlab_dask_zarr.execution.local import local_workers
    from ctlab_dask_zarr.execution.running import RunningWorkers

    if cluster:
        told = cluster_from_config(
            cluster, jobs, stop=stop, on_wait=lambda text: say(text, err=True)
        )
        with told as started, Client(started) as client:
            yield client
        return
    chosen: Any = local_workers(workers, threads, memory_limit)
    if scheduler or scheduler_file:
        chosen = RunningWorkers(scheduler, scheduler_file)
    with client_of(chosen) as client:
        yield client


def given_source_options(options: dict[str, Any]) -> list[str]:
    """Return those options of the command line that correct what a source says, as given."""
    return [f"--{key.replace('_', '-')}" for key in _SOURCE_KEYS if options[key] is not None]


def open_source(source: str, options: dict[str, Any]) -> Dataset:
    """Open the source; what the command line says stands in for what it says about itself."""
    from ctlab_dask_zarr.dataset import Dataset

    size, unit = options.pop("voxel_size") or (None, None)
    dataset = Dataset.from_path(
        source,
        voxel_size=size,
        voxel_unit=options.pop("voxel_unit") or unit,
        datatype=options["datatype"],
    )
    return Dataset.from_modified(dataset, dataset_id=options["dataset_id"])


def layout_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return chunks, shards and codec as the API takes them."""
    from ctlab_dask_zarr.formats.codecs import array_kwargs

    codec = options["codec"]
    return {
        "chunks": options["chunks"],
        "shards": None if options["shards"] == "none" else options["shards"],
        # None: as configured.
        "create_array_kwargs": None if codec is None else array_kwargs(codec),
    }


def write_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `dataset_to_zarr` that the options ask for."""
    from ctlab_dask_zarr.formats.ome import OMEZarrVersion

    return layout_arguments(options) | {
        "datatype": options["datatype"],
        "dataset_id": options["dataset_id"],
        "ome_zarr_version": OMEZarrVersion.v05 if options["layout"] == "ome" else None,
        "scale_placement": options["scale_placement"],
        "overwrite": options["overwrite"],
        "levels": options["levels"],
        "downsample": options["downsample"],
    }
