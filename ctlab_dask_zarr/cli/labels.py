"""``ctlab-zarr add-labels``: a segmentation beside the image it belongs to."""

from __future__ import annotations

from typing import Any

import click

from ctlab_dask_zarr.cli.commit import run_with_progress
from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    client_for,
    cluster_arguments,
    layout_arguments,
    with_cluster_options,
    with_deadline_option,
    with_resume_options,
)
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.parameters import CODEC, COLOR, PART, SHAPE, SHAPE_OR_NONE

__all__ = ["add_labels_command"]


@click.command("add-labels")
@click.argument("image", type=click.Path())
@click.argument("segmentation", type=click.Path())
@click.option("--name", required=True, help="Of the labels, as phases.")
@click.option(
    "--color",
    "colors",
    type=COLOR,
    multiple=True,
    help="Of one label, as 1=ff8000; may be given for each.",
)
@click.option(
    "--downsample",
    type=click.Choice(["mode", "nearest"]),
    default="mode",
    show_default=True,
    help="How a level becomes the next one.",
)
@click.option("--chunks", type=SHAPE, default="auto", show_default=True, help="Inner chunk.")
@click.option("--shards", type=SHAPE_OR_NONE, default="auto", show_default=True, help="Shard.")
@click.option("--codec", type=CODEC, default=None, help="As of convert.  [default: zstd]")
@click.option("--overwrite", is_flag=True, help="Replace labels of that name.")
@with_resume_options
@click.option(
    "--part",
    type=PART,
    default=None,
    help="Write only this part, as 3/8, as of convert; `commit IMAGE/labels/NAME` ends it.",
)
@with_deadline_option
@with_cluster_options
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def add_labels_command(
    image: str,
    segmentation: str,
    name: str,
    colors: tuple[tuple[int, tuple[int, ...]], ...],
    downsample: str,
    resume: bool,
    restart: bool,
    part: tuple[int, int] | None,
    deadline: float | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Write SEGMENTATION as labels of the OME-Zarr IMAGE.

    SEGMENTATION is a mango netCDF file or folder, or a Zarr store, of integers, with the shape and
    the voxel size of the image. The labels get the levels that the image has.
    """
    from ctlab_dask_zarr.execution.stopping import Stop

    stop = Stop(deadline)
    cluster = cluster_arguments(options)
    with exit_codes(), stop.on_signals():
        from ctlab_dask_zarr.additions import prepare_labels
        from ctlab_dask_zarr.dataset import Dataset
        from ctlab_dask_zarr.planning.resolve import WriteOptions

        arguments = WriteOptions(
            **layout_arguments(options),
            overwrite=options["overwrite"],
            downsample=downsample,  # type: ignore[arg-type]
        )
        labels = Dataset.from_path(segmentation)
        with client_for(**cluster, stop=stop) as client:
            write = prepare_labels(
                labels, image, name, arguments,
                colors=dict(colors), resume=resume, restart=restart, part=part,
            )  # fmt: skip
            result = run_with_progress(write, client, quiet, stop)
    if part is not None:
        n_shards = len(write.remaining.tasks) + write.remaining.n_done
        say(
            f"part {part[0]} of {part[1]}: {n_shards} shards; when all parts are there: "
            f"ctlab-zarr commit {result.destination}"
        )
        return
    say(f"{result.destination}: labels with {len(write.request.levels)} levels")
