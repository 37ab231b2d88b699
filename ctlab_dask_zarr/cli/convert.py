"""``ctlab-zarr convert`` and ``ctlab-zarr plan``: the same arguments, done or only told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.parameters import (
    CODEC,
    SHAPE,
    SHAPE_OR_NONE,
    VOXEL_SIZE,
    array_kwargs,
)

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset

__all__ = ["convert_command", "plan_command", "write_dataset"]

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
    click.option("--voxel-unit", default=None, help="Instead of the source's: mm, um, nm, ..."),
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
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
                 help="Threads in each worker."),
    click.option("--memory-limit", default=None,
                 help="Of one worker, as 4GiB.  [default: its share of the allocation]"),
    click.option("--scheduler", metavar="ADDRESS", default=None,
                 help="Use a running dask scheduler, as tcp://node1:8786."),
    click.option("--scheduler-file", type=click.Path(), default=None,
                 help="Use a running dask scheduler, by the file it wrote."),
]  # fmt: skip


def _with_options(options: list[Callable[..., Any]]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("convert")
@_with_options(_WRITE_OPTIONS)
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option("--restart", is_flag=True, help="Remove what an interrupted conversion left, first.")
@_with_options(_CLUSTER_OPTIONS)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert_command(
    source: str,
    destination: str,
    resume: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to the OME-Zarr store DESTINATION.

    SOURCE is a mango netCDF file (tomoHiRes.nc), a folder of its blocks (tomoHiRes_nc) or a Zarr
    store. DESTINATION appears when everything is written, and not before; .zarr is appended where
    it is missing.
    """
    cluster = {key: options.pop(key) for key in _CLUSTER_KEYS}
    with exit_codes():
        dataset = _open(source, options)
        arguments = _write_arguments(options)
        _refuse_early(destination, overwrite=options["overwrite"])
        with _client(**cluster) as client:
            result = write_dataset(
                dataset, destination, arguments, client, quiet, resume=resume, restart=restart
            )
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{result['destination']}: {result['n_objects']} objects, "
            f"{result['stored_nbytes'] / max(result['nbytes'], 1):.0%} of {result['nbytes_text']}, "
            f"{result['seconds']:.1f} s"
        )


@click.command("plan")
@_with_options(_WRITE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan_command(source: str, destination: str, as_json: bool, **options: Any) -> None:
    """Show what converting SOURCE to DESTINATION would do; nothing is done."""
    with exit_codes():
        from ctlab_dask_zarr.api import plan
        from ctlab_dask_zarr.runtime.cluster import allocated_resources
        from ctlab_dask_zarr.write.plan import nbytes_text

        dataset = _open(source, options)
        write_plan = plan(dataset, destination, **_write_arguments(options))
        allocation = allocated_resources()
        n_fit = int(allocation.nbytes // max(write_plan.rechunk.peak_nbytes, 1))
    if as_json:
        click.echo(json.dumps(write_plan.to_dict() | {"n_workers_that_fit": n_fit}))
        return
    click.echo(write_plan.describe())
    click.echo(
        f"here          {allocation.n_cpus} CPUs, {nbytes_text(allocation.nbytes)}: memory for "
        f"{n_fit} worker threads"
    )


_CLUSTER_KEYS = ("workers", "threads", "memory_limit", "scheduler", "scheduler_file")


def _open(source: str, options: dict[str, Any]) -> Dataset:
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


def _write_arguments(options: dict[str, Any]) -> dict[str, Any]:
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


def _refuse_early(destination: str, *, overwrite: bool) -> None:
    """Find out that the destination is taken before a cluster is started for nothing."""
    from ctlab_dask_zarr.errors import DestinationExistsError
    from ctlab_dask_zarr.write.destination import destination_problem
    from ctlab_dask_zarr.write.resolve import resolve_destination

    problem = destination_problem(resolve_destination(destination), overwrite=overwrite)
    if problem is not None:
        raise DestinationExistsError(problem)


def _client(
    workers: int | None,
    threads: int,
    memory_limit: str | None,
    scheduler: str | None,
    scheduler_file: str | None,
) -> AbstractContextManager[Any]:
    from ctlab_dask_zarr.runtime.cluster import connect, local_client

    if scheduler or scheduler_file:
        return connect(scheduler, scheduler_file)
    return local_client(workers, threads, memory_limit)


def write_dataset(
    dataset: Dataset,
    destination: str,
    arguments: dict[str, Any],
    client: Any,
    quiet: bool,
    *,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Write with progress on `client`; return what there is to tell about it."""
    from ctlab_dask_zarr.api import build_write, run_write
    from ctlab_dask_zarr.runtime.progress import Progress
    from ctlab_dask_zarr.runtime.reporting import listen
    from ctlab_dask_zarr.write.plan import nbytes_text
    from ctlab_dask_zarr.write.resolve import WriteOptions

    start_s = time.monotonic()
    write, write_plan = build_write(
        dataset, destination, WriteOptions(**arguments), resume=resume, restart=restart
    )
    progress = Progress(write_plan.n_shards, write_plan.nbytes, quiet=quiet)
    with progress, listen(write, progress.add, client):
        result = run_write(write, write_plan.destination, client)
    return {
        "destination": result.destination,
        "n_objects": result.n_objects,
        "stored_nbytes": result.nbytes,
        "nbytes": write_plan.nbytes,
        "nbytes_text": nbytes_text(write_plan.nbytes),
        "shape": list(write_plan.shape),
        "seconds": round(time.monotonic() - start_s, 3),
    }
