"""``ctlab-zarr plan``: what ``convert`` would do with the same arguments."""

from __future__ import annotations

import json
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
from ctlab_dask_zarr.cli.output import say

if TYPE_CHECKING:
    from ctlab_dask_zarr.planning.rechunk import Resources

__all__ = ["plan_command"]


@click.command("plan")
@with_write_options
@with_cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan_command(source: str, destination: str, as_json: bool, **options: Any) -> None:
    """Show what converting SOURCE to DESTINATION would do; nothing is done."""
    cluster = cluster_arguments(options)
    with exit_codes():
        from ctlab_dask_zarr.planning.resolve import WriteOptions
        from ctlab_dask_zarr.preparing import plan_dataset
        from ctlab_dask_zarr.store.destination import Destination
        from ctlab_dask_zarr.store.occupied import occupied_problem

        dataset = open_source(source, options)
        arguments = WriteOptions(**write_arguments(options))
        resources = _resources(**cluster)
        write_plan = plan_dataset(dataset, destination, arguments, resources=resources)
        place = Destination.at(write_plan.destination)
        problem = occupied_problem(place, overwrite=arguments.overwrite)
    needed = max(write_plan.rechunk.peak_nbytes, 1)
    n_fit = _total_nbytes(resources) // needed
    if as_json:
        workers = {"n_worker_threads": resources.n_threads, "n_worker_threads_that_fit": n_fit}
        say(json.dumps(write_plan.to_dict() | workers | {"destination_problem": problem}))
        return
    say(write_plan.describe())
    say(_workers_line(resources, needed, n_fit))
    if problem is not None:
        say(f"note: {problem}")


def _resources(
    workers: int | None,
    threads: int | None,
    memory_limit: int | None,
    scheduler: str | None,
    scheduler_file: str | None,
    cluster: str | None,
    jobs: int | None,
) -> Resources:
    """Return what `convert` would have with the same options; no worker is started."""
    from ctlab_dask_zarr.execution.clusters import cluster_resources
    from ctlab_dask_zarr.execution.local import local_workers
    from ctlab_dask_zarr.execution.running import RunningWorkers

    if cluster:
        return cluster_resources(cluster, jobs)
    if scheduler or scheduler_file:
        return RunningWorkers(scheduler, scheduler_file).resources()
    return local_workers(workers, threads, memory_limit).resources()


def _total_nbytes(resources: Resources) -> int:
    """Return the memory of all workers; this node's where a scheduler has none yet."""
    from ctlab_dask_zarr.execution.allocation import allocated_resources

    if resources.thread_nbytes is None:
        return allocated_resources().nbytes
    return resources.thread_nbytes * resources.n_threads


def _workers_line(resources: Resources, needed: int, n_fit: int) -> str:
    from ctlab_dask_zarr.text import nbytes_text

    memory = resources.thread_nbytes
    line = f"workers       {resources.n_threads} threads"
    if memory is None:
        return f"{line}, their memory is not known"
    line += f", {nbytes_text(memory)} for each"
    if needed > memory:
        return f"{line}: too little; {n_fit} would fit (--workers), or make --shards smaller"
    return f"{line}; {n_fit} would fit"
