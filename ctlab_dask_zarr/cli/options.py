"""Options that commands share, and what they mean to the Python API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.parameters import (
    CODEC,
    NBYTES,
    SHAPE,
    SHAPE_OR_NONE,
    VOXEL_SIZE,
    VOXEL_UNIT,
    array_kwargs,
)

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset

__all__ = [
    "cluster_arguments",
    "open_source",
    "with_cluster_options",
    "with_write_options",
    "write_arguments",
]

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
    click.option("--datatype", default=None,
                 help="mango data type, where the source does not say it or says it wrong."),
    click.option("--dataset-id", default=None, help="Identifier; by default the source's own."),
    click.option("--voxel-size", type=VOXEL_SIZE, default=None,
                 help="Instead of the source's: 2.5um, or z,y,x as in 3,2.5,2.5um."),
    click.option("--voxel-unit", type=VOXEL_UNIT, default=None,
                 help="Instead of the source's: mm, um, nm, ..."),
    click.option("--layout", type=click.Choice(["ome", "plain"]), default="ome", show_default=True,
                 help="An OME-Zarr 0.5 group, or a plain Zarr v3 array."),
    click.option("--scale-placement", type=click.Choice(["dataset", "multiscales"]),
                 default="dataset", show_default=True,
                 help="Where OME metadata holds the voxel size; mango's own files: multiscales."),
    click.option("--overwrite", is_flag=True,
                 help="Replace a Zarr store at the destination, once the new one is complete."),
]  # fmt: skip

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
]  # fmt: skip

_LOCAL_KEYS = ("workers", "threads", "memory_limit")
_RUNNING_KEYS = ("scheduler", "scheduler_file")


Command = Callable[..., Any]


def with_write_options(command: Command) -> Command:
    """Give a command the arguments SOURCE and DESTINATION and every option of a write."""
    return _with_options(_WRITE_OPTIONS, command)


def with_cluster_options(command: Command) -> Command:
    """Give a command the options that say where it runs."""
    return _with_options(_CLUSTER_OPTIONS, command)


def _with_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def cluster_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the cluster options out of `options`; raise a usage error where they disagree."""
    taken = {key: options.pop(key) for key in (*_LOCAL_KEYS, *_RUNNING_KEYS)}
    given = [f"--{key.replace('_', '-')}" for key, value in taken.items() if value is not None]
    running = [name for name in given if name.startswith("--scheduler")]
    if running and len(given) > 1:
        other = next(name for name in given if name != running[0])
        raise click.UsageError(
            f"{running[0]} uses the workers of a running scheduler: leave {other} out"
        )
    return taken


def open_source(source: str, options: dict[str, Any]) -> Dataset:
    """Open the source; voxel size and unit of the command line stand in for its own."""
    from ctlab_dask_zarr.dataset import Dataset

    dataset = Dataset.from_path(source)
    size, unit = options.pop("voxel_size") or (None, None)
    unit = options.pop("voxel_unit") or unit
    if size is None and unit is None:
        return dataset
    if size is not None and len(size) == 1:
        size = size * len(dataset.shape)
    return Dataset.from_modified(dataset, voxel_size=size, voxel_unit=unit)


def write_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `dataset_to_zarr` that the options ask for."""
    from ctlab_dask_zarr.formats.ome import OMEZarrVersion

    return {
        "chunks": options["chunks"],
        "shards": None if options["shards"] == "none" else options["shards"],
        "create_array_kwargs": array_kwargs(options["codec"]),
        "datatype": options["datatype"],
        "dataset_id": options["dataset_id"],
        "ome_zarr_version": OMEZarrVersion.v05 if options["layout"] == "ome" else None,
        "scale_placement": options["scale_placement"],
        "overwrite": options["overwrite"],
    }
