"""``ctlab-zarr commit``: publish what the jobs of a shared conversion have written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    client_for,
    cluster_arguments,
    with_cluster_options,
    with_deadline_option,
)
from ctlab_dask_zarr.cli.output import say

if TYPE_CHECKING:
    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.write.prepared import PreparedWrite
    from ctlab_dask_zarr.write.staging.commit import CommitResult

__all__ = ["commit_command", "run_with_progress"]


@click.command("commit")
@click.argument("destination", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace a Zarr store at the destination.")
@with_deadline_option
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def commit_command(
    destination: str,
    overwrite: bool,
    deadline: float | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish DESTINATION when all parts of `convert --part` are there.

    Exit code 5 where parts are missing; they are named. Levels after the first are made now, from
    what the parts have left for them; SIGINT, SIGTERM, SIGUSR1 and the --deadline stop that cleanly
    with exit code 75, and the same command goes on. Also repairs a commit that died between its two
    renames.
    """
    from ctlab_dask_zarr.execution.stopping import Stop

    stop = Stop(deadline)
    cluster = cluster_arguments(options)
    with exit_codes(), stop.on_signals():
        from ctlab_dask_zarr.planning.resolve import existing_write
        from ctlab_dask_zarr.write.prepared import prepare_commit
        from ctlab_dask_zarr.write.run import run
        from ctlab_dask_zarr.write.staging.commit import committed_result

        place = existing_write(destination)
        prepared = prepare_commit(place, overwrite=overwrite)
        if prepared is None:
            result = committed_result(place)
        elif not prepared.needs_workers:
            result = run(prepared)
        else:
            with client_for(**cluster, stop=stop) as client:
                result = run_with_progress(prepared, client, quiet, stop)
    if as_json:
        say(json.dumps(result._asdict()))
    else:
        say(f"{result.destination}: {result.n_objects} objects committed")


def run_with_progress(
    prepared: PreparedWrite, client: Any, quiet: bool, stop: Stop | None = None
) -> CommitResult:
    """Run a prepared write and show how far it is."""
    from ctlab_dask_zarr.execution.progress import Progress
    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.write.run import WriteProgress, run

    bar = Progress(
        len(prepared.remaining.tasks),
        prepared.nbytes,
        quiet=quiet,
        n_workers=lambda: len(client.scheduler_info(n_workers=-1)["workers"]),
    )
    nbytes_shown = 0

    def show(progress: WriteProgress) -> None:
        nonlocal nbytes_shown
        bar.add(progress.nbytes_done - nbytes_shown)
        nbytes_shown = progress.nbytes_done

    with bar:
        return run(prepared, client=client, progress=show, stop=stop or Stop())
