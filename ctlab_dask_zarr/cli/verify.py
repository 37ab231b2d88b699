"""``ctlab-zarr verify``: every rule, every byte, and against the source every voxel."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import client_for, cluster_arguments, with_cluster_options

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.formats.problems import Problem

__all__ = ["verify_command", "verify_written"]


@click.command("verify")
@click.argument("path", type=click.Path())
@click.option("--source", type=click.Path(), default=None,
              help="What it was made from: compare every voxel and the metadata.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="Only documents, sizes and the index of each shard.")  # fmt: skip
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def verify_command(
    path: str, source: str | None, quick: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Verify the dataset at PATH; exit code 3 where anything is wrong.

    Everything that is wrong is told, not only the first. Verify with --source before the original
    is deleted.
    """
    cluster = cluster_arguments(options)
    with exit_codes():
        from ctlab_dask_zarr.dataset import Dataset

        dataset = None if source is None else Dataset.from_path(source)
        with client_for(**cluster) as client:
            problems = _verify(path, dataset, client, quiet, checksums=not quick)
        if as_json:
            click.echo(json.dumps([asdict(problem) for problem in problems]))
        else:
            for problem in problems:
                click.echo(str(problem))
        _raise_for(path, problems)
    if not as_json:
        against = "" if source is None else f" and equal to {source}"
        click.echo(f"{path}: {'documents and index' if quick else 'every byte'} verified{against}")


def verify_written(
    path: str, dataset: Dataset, options: dict[str, Any], client: Any, quiet: bool
) -> None:
    """Compare what was written with its source, the options of the command line applied."""
    from ctlab_dask_zarr.dataset import Dataset

    changes = {name: options[name] for name in ("datatype", "dataset_id") if options[name]}
    expected = Dataset.from_modified(dataset, **changes) if changes else dataset
    problems = _verify(path, expected, client, quiet, checksums=True)
    for problem in problems:
        click.echo(str(problem), err=True)
    _raise_for(path, problems)


def _verify(
    path: str, source: Dataset | None, client: Any, quiet: bool, *, checksums: bool
) -> list[Problem]:
    from ctlab_dask_zarr.runtime.progress import Progress
    from ctlab_dask_zarr.runtime.reporting import listen
    from ctlab_dask_zarr.verification.verify import build_verification

    verification = build_verification(path, source, checksums=checksums)
    progress = Progress(verification.n_tasks, verification.nbytes, quiet=quiet, noun="checks")
    with progress, listen(verification.graph, progress.add, client):
        found: list[Problem] = client.compute(verification.graph).result()
    return verification.problems + found


def _raise_for(path: str, problems: list[Problem]) -> None:
    from ctlab_dask_zarr.errors import VerificationError

    if problems:
        raise VerificationError(f"{path} has {len(problems)} problems")
