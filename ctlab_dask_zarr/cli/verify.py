"""``ctlab-zarr verify``: every rule, every byte, and against the source every voxel."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    client_for,
    cluster_arguments,
    given_source_options,
    open_source,
    with_cluster_options,
    with_source_options,
)
from ctlab_dask_zarr.cli.output import say

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.formats.problems import Problem
    from ctlab_dask_zarr.verification.verify import Verification

__all__ = ["verify_command", "verify_written"]


@click.command("verify")
@click.argument("path", type=click.Path())
@click.option("--source", type=click.Path(), default=None,
              help="What it was made from: compare every voxel and the metadata.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="Only documents, sizes and the index of each shard.")  # fmt: skip
@with_source_options
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def verify_command(
    path: str, source: str | None, quick: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Verify the dataset at PATH; exit code 3 where anything is wrong.

    Everything that is wrong is told, not only the first. Verify with --source before the original
    is deleted; options that corrected what it says when it was converted are to be given again.
    """
    from ctlab_dask_zarr.execution.stopping import Stop

    stop = Stop()
    cluster = cluster_arguments(options)
    given = given_source_options(options)
    if given and source is None:
        raise click.UsageError(f"{given[0]} is about the source: say which by --source")
    with exit_codes(), stop.on_signals():
        from ctlab_dask_zarr.verification.verify import prepare_verification

        dataset = None if source is None else open_source(source, options)
        verification = prepare_verification(path, dataset, checksums=not quick)
        with client_for(**cluster, stop=stop) as client:
            problems = _compute(
                verification, client, quiet, stop,
                f"{path} was not verified to the end; give the same command again",
            )  # fmt: skip
        if as_json:
            say(json.dumps([asdict(problem) for problem in problems]))
        else:
            for problem in problems:
                say(str(problem))
        _raise_for(path, problems)
    if not as_json:
        against = "" if source is None else f" and equal to {source}"
        say(f"{path}: {verification.scope}{against}")


def verify_written(
    path: str, dataset: Dataset, client: Any, quiet: bool, stop: Stop, again: str
) -> None:
    """Compare what was written with its source; `again` says how to do that another time."""
    from ctlab_dask_zarr.verification.verify import prepare_verification

    problems = _compute(
        prepare_verification(path, dataset, checksums=True), client, quiet, stop,
        f"{path} is complete and in its place, but not verified to the end: verify it by {again}",
    )  # fmt: skip
    for problem in problems:
        say(str(problem), err=True)
    _raise_for(
        path,
        problems,
        ". It stays in its place, and is not to be trusted: where the source is damaged, copy that "
        "again; then convert anew with --overwrite",
    )


def _compute(
    verification: Verification, client: Any, quiet: bool, stop: Stop, if_stopped: str
) -> list[Problem]:
    from ctlab_dask_zarr.execution.progress import Progress, listen
    from ctlab_dask_zarr.execution.stopping import compute_until

    for note in verification.notes:
        say(note, err=True)
    progress = Progress(verification.n_tasks, verification.nbytes, quiet=quiet, noun="checks")
    with progress, listen(verification.graph, progress.add, client):
        found: list[Problem] = compute_until(verification.graph, client, stop, reading=if_stopped)
    return verification.problems + found


def _raise_for(path: str, problems: list[Problem], advice: str = "") -> None:
    from ctlab_dask_zarr.errors import VerificationError

    if problems:
        found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise VerificationError(f"verification of {path} found {found}{advice}")
