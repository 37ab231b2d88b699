"""``ctlab-zarr commit``: publish what the jobs of a shared conversion have written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import client_for, cluster_arguments, with_cluster_options

if TYPE_CHECKING:
    from ctlab_dask_zarr.api import Completion, Write
    from ctlab_dask_zarr.runtime.stopping import Stop

__all__ = ["commit_command", "compute_with_progress"]


@click.command("commit")
@click.argument("destination", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace a Zarr store at the destination.")
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def commit_command(
    destination: str, overwrite: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Publish DESTINATION when all parts of `convert --part` are there.

    Exit code 5 where parts are missing; they are named. Levels after the first are made now, from
    what the parts have left for them. Also repairs a commit that died between its two renames.
    """
    cluster = cluster_arguments(options)
    with exit_codes():
        from ctlab_dask_zarr.api import build_commit
        from ctlab_dask_zarr.write.commit import CommitResult

        result = build_commit(destination, overwrite=overwrite)
        if not isinstance(result, CommitResult):
            with client_for(**cluster) as client:
                result = compute_with_progress(result, client, quiet)
    if as_json:
        click.echo(json.dumps(result._asdict()))
    else:
        click.echo(f"{result.destination}: {result.n_objects} objects committed")


def compute_with_progress(
    completion: Completion | Write, client: Any, quiet: bool, stop: Stop | None = None
) -> Any:
    """Write what remains, with progress, and commit; return what `run_write` does."""
    from ctlab_dask_zarr.api import run_write
    from ctlab_dask_zarr.runtime.progress import Progress
    from ctlab_dask_zarr.runtime.reporting import listen

    levels = completion.request.levels
    tasks = completion.remaining.tasks
    n_elements = sum(levels[task.level].layout.n_elements(task.coords) for task in tasks)
    nbytes = n_elements * levels[0].array.dtype.itemsize
    progress = Progress(
        len(tasks),
        nbytes,
        quiet=quiet,
        n_workers=lambda: len(client.scheduler_info(n_workers=-1)["workers"]),
    )

    def on_report(nbytes: int, task_s: float) -> None:
        progress.add(nbytes)
        if stop is not None:
            stop.saw(task_s)

    with progress, listen(completion.graph, on_report, client):
        return run_write(completion, client, stop)
