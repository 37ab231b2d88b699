"""``ctlab-zarr push``, ``pull`` and ``abort``: stores to and from object stores."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import make_folder_of, with_mkdir_option, with_storage_options
from ctlab_dask_zarr.cli.output import say

__all__ = ["abort_command", "pull_command", "push_command"]


@click.command("push")
@click.argument("source", type=click.Path())
@click.argument("url")
@with_storage_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push_command(source: str, url: str, quiet: bool, as_json: bool) -> None:
    """Copy the committed store SOURCE to the object store at URL.

    Shards come first and the root document last, so that nothing is readable there before all of it
    is. Every object is read back and compared with the checksums of the commit. Given again after
    an interruption, the same command goes on.
    """
    _copy(source, url, quiet, as_json)


@click.command("pull")
@click.argument("url")
@click.argument("destination", type=click.Path())
@with_mkdir_option
@with_storage_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull_command(url: str, destination: str, mkdir: bool, quiet: bool, as_json: bool) -> None:
    """Copy the committed store at URL to DESTINATION, as `push` does the other way.

    At an https:// URL, which lists nothing, its own documents tell what objects it has.
    """
    if mkdir:
        with exit_codes():
            make_folder_of(destination)
    _copy(url, destination, quiet, as_json)


def _copy(source: str, destination: str, quiet: bool, as_json: bool) -> None:
    from ctlab_dask_zarr.execution.progress import Progress
    from ctlab_dask_zarr.manage.transfer import copy_dataset
    from ctlab_dask_zarr.planning.resolve import resolve_destination
    from ctlab_dask_zarr.store.destination import Destination
    from ctlab_dask_zarr.text import nbytes_text

    with exit_codes():
        target = Destination.at(resolve_destination(destination))
        with ExitStack() as stack:
            progress: list[Progress] = []

            def on_copied(nbytes: int, total: int) -> None:
                if not progress:
                    shown = Progress(1, total, quiet=quiet, noun="stores")
                    progress.append(stack.enter_context(shown))
                progress[0].add(nbytes)

            result = copy_dataset(source, target, on_copied)
    if as_json:
        say(json.dumps(asdict(result)))
    elif result.n_objects == 0:
        say(f"{result.destination}: the same dataset is there already")
    else:
        skipped = f", {result.n_skipped} of them were there" if result.n_skipped else ""
        say(
            f"{result.destination}: {result.n_objects} objects{skipped}, "
            f"{nbytes_text(result.nbytes)}"
        )


@click.command("abort")
@click.argument("destination", type=click.Path())
@with_storage_options
def abort_command(destination: str) -> None:
    """Remove what an interrupted write to DESTINATION has left; a committed dataset stays.

    A write is a conversion, the levels of a `pyramid`, a `push` or a `pull`; be sure that none is
    under way.

    On S3, uploads that were cut off, which cost as much as objects do and are not listed, are ended
    too, where botocore is installed.
    """
    with exit_codes():
        from ctlab_dask_zarr.manage.discard import abort_write
        from ctlab_dask_zarr.planning.resolve import existing_write

        done = abort_write(existing_write(destination))
    removed = "removed what was staged" if done.was_staged else "nothing was staged"
    say(f"{done.destination}: {removed}")
    if done.n_uploads:
        say(f"{done.n_uploads} unfinished uploads ended")
    if done.uploads_problem is not None:
        say(
            f"unfinished uploads could not be looked for ({done.uploads_problem}); a lifecycle "
            "rule of the bucket (AbortIncompleteMultipartUpload) ends them",
            err=True,
        )
