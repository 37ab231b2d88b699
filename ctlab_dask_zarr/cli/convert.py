"""``ctlab-zarr convert``: write a dataset, with progress, on a local or a running cluster."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    cluster_arguments,
    open_source,
    with_cluster_options,
    with_write_options,
    write_arguments,
)

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.write.plan import WritePlan

__all__ = ["convert_command", "write_dataset"]


@click.command("convert")
@with_write_options
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option("--restart", is_flag=True, help="Remove what an interrupted conversion left, first.")
@with_cluster_options
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
    cluster = cluster_arguments(options)
    if resume and restart:
        raise click.UsageError("--resume and --restart exclude one another")
    with exit_codes():
        dataset = open_source(source, options)
        arguments = write_arguments(options)
        _refuse_early(destination, overwrite=options["overwrite"])
        with _client(**cluster) as client:
            if not quiet and not client.scheduler_info(n_workers=-1)["workers"]:
                click.echo("the scheduler has no workers yet: waiting for them", err=True)
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
    threads: int | None,
    memory_limit: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
) -> AbstractContextManager[Any]:
    from ctlab_dask_zarr.runtime.cluster import connect, local_client

    if scheduler or scheduler_file:
        return connect(scheduler, scheduler_file)
    return local_client(workers, threads or 1, memory_limit)


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
    _refuse_what_does_not_fit(write_plan)
    progress = Progress(write_plan.n_shards, write_plan.nbytes, quiet=quiet)
    try:
        with progress, listen(write, progress.add, client):
            result = run_write(write, write_plan.destination, client)
    except KeyboardInterrupt:
        click.echo(
            f"interrupted: {write_plan.destination} is as it was; go on by --resume, or begin "
            "anew by --restart",
            err=True,
        )
        raise
    return {
        "destination": result.destination,
        "n_objects": result.n_objects,
        "stored_nbytes": result.nbytes,
        "nbytes": write_plan.nbytes,
        "nbytes_text": nbytes_text(write_plan.nbytes),
        "shape": list(write_plan.shape),
        "seconds": round(time.monotonic() - start_s, 3),
    }


def _refuse_what_does_not_fit(write_plan: WritePlan) -> None:
    """Refuse before the first byte what would have its workers killed after hours."""
    from ctlab_dask_zarr.errors import InvalidArgumentError
    from ctlab_dask_zarr.runtime.resources import scheduler_resources
    from ctlab_dask_zarr.write.plan import nbytes_text

    memory = scheduler_resources().thread_nbytes
    needed = write_plan.rechunk.peak_nbytes
    if memory is not None and needed > memory:
        raise InvalidArgumentError(
            f"a worker thread needs {nbytes_text(needed)} and has {nbytes_text(memory)}: use "
            "fewer --workers or --threads, a larger --memory-limit, or smaller --shards"
        )
