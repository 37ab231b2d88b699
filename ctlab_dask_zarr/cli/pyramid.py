"""``ctlab-zarr pyramid``: further levels for a dataset that is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.commit import run_with_progress
from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    client_for,
    cluster_arguments,
    with_cluster_options,
    with_deadline_option,
    with_resume_options,
)
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.parameters import LEVELS

if TYPE_CHECKING:
    from ctlab_dask_zarr.planning.levels import LevelSpec

__all__ = ["pyramid_command"]


@click.command("pyramid")
@click.argument("path", type=click.Path())
@click.option(
    "--levels",
    type=LEVELS,
    default="auto",
    show_default=True,
    help="Levels of detail, the data itself counted; auto: down to a picture.",
)
@click.option(
    "--downsample",
    type=click.Choice(["mean", "mode", "nearest", "max"]),
    default=None,
    help="How a level becomes the next one.  [default: by data type]",
)
@with_resume_options
@with_deadline_option
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pyramid_command(
    path: str,
    levels: LevelSpec,
    downsample: str | None,
    resume: bool,
    restart: bool,
    deadline: float | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Give the OME-Zarr image at PATH levels of detail.

    It stays readable meanwhile; the levels appear all at once, when they are complete. Labels of
    the image get the same levels.
    """
    from ctlab_dask_zarr.execution.stopping import Stop

    stop = Stop(deadline)
    cluster = cluster_arguments(options)
    with exit_codes(), stop.on_signals():
        from ctlab_dask_zarr.additions import prepare_pyramid
        from ctlab_dask_zarr.read.source import open_volume
        from ctlab_dask_zarr.store.destination import Destination

        writes = prepare_pyramid(path, levels, downsample, resume=resume, restart=restart)
        if writes:
            with client_for(**cluster, stop=stop) as client:
                for prepared in writes:
                    run_with_progress(prepared, client, quiet, stop)
        image = open_volume(path, "zarr")
        # A commit that died at its very end has left its staging folder.
        Destination.at(image.source.path).discard_committed_staging()
    shapes = [level.shape for level in image.levels]
    if as_json:
        say(json.dumps({"destination": image.source.path, "levels": shapes}))
        return
    names = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
    say(f"{image.source.path}: {len(shapes)} levels, {names}")
