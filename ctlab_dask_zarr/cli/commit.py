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
    from ctlab_dask_zarr.write.run import Completion, Write

__all__ = ["commit_command", "compute_with_progress"]


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
        from ctlab_dask_zarr.api import build_commit
        from ctlab_dask_zarr.write.staging.commit import CommitResult

        result = build_commit(destination, overwrite=overwrite)
        if not isinstance(result, CommitResult):
            with client_for(**cluster, stop=stop) as client:
                result = compute_with_progress(
                    result, client, quiet, stop, again="the same command goes on"
                )
    if as_json:
        say(json.dumps(result._asdict()))
    else:
        say(f"{result.destination}: {result.n_objects} objects committed")


def compute_with_progress(
    completion: Completion | Write,
    client: Any,
    quiet: bool,
    stop: Stop | None = None,
    *,
    again: str = "go on by --resume",
) -> Any:
    """Write what remains, with progress, and commit; return what `run_write` does.

    `again` says how to go on after a stop.
    """
    from ctlab_dask_zarr.errors import WriteFailedError, WriteStoppedError
    from ctlab_dask_zarr.execution.progress import Progress
    from ctlab_dask_zarr.execution.reporting import listen
    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.write.run import run_write

    stop = stop or Stop()
    levels = completion.request.levels
    tasks = completion.remaining.tasks
    n_elements = sum(levels[task.level].layout.n_elements(task.coords) for task in tasks)
    nbytes = n_elements * levels[0].array.dtype.itemsize
    nbytes_done = 0
    progress = Progress(
        len(tasks),
        nbytes,
        quiet=quiet,
        n_workers=lambda: len(client.scheduler_info(n_workers=-1)["workers"]),
    )

    def on_report(nbytes: int, task_s: float) -> None:
        nonlocal nbytes_done
        nbytes_done += nbytes
        progress.add(nbytes)
        stop.saw(task_s)

    try:
        with progress, listen(completion.graph, on_report, client):
            result = run_write(completion, client, stop)
    except WriteStoppedError as error:
        # Counted by what workers tell, as the progress is: to list the shards could take longer
        # than a job has left.
        n_done = completion.remaining.n_done
        if stop.is_futile():
            # Another exit code than that of a stop: job scripts would repeat it for ever.
            raise WriteFailedError(_futile(completion, stop)) from error
        n_written = n_done + int(len(tasks) * min(nbytes_done / max(nbytes, 1), 1.0))
        raise WriteStoppedError(
            f"stopped ({stop.reason()}): about {n_written} of {n_done + len(tasks)} shards are "
            f"written, and the destination is as it was; {again}"
        ) from error
    request = completion.request
    if tasks or request.destination.committed().get("run_id") == request.run_id:
        stop.progressed()
    return result


def _futile(completion: Completion | Write, stop: Stop) -> str:
    """Return what to say where the time did not do for a single shard."""
    from ctlab_dask_zarr.execution.stopping import MORE_TIME
    from ctlab_dask_zarr.write.run import Write

    request, remaining = completion.request, completion.remaining
    n_shards = remaining.n_done + len(remaining.tasks)
    what = "no shard was finished"
    advice = f"{MORE_TIME} or more workers"
    if not remaining.tasks:
        what = "all shards are there, but their commit was not finished"
        advice = MORE_TIME
    elif isinstance(completion, Write):
        anew = "--restart"
        if request.n_parts is not None:
            anew = f"`ctlab-zarr abort {request.destination.path}` and all parts again"
        advice = f"{MORE_TIME}, more workers, or smaller --shards, which begin anew ({anew})"
    return (
        f"stopped ({stop.reason()}): {what} in the {stop.time_spent()} that there were, "
        f"{remaining.n_done} of {n_shards} shards were there before, and the destination is as it "
        f"was. With as much time it would get no further: give it {advice}"
    )
