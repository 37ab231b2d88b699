"""Commands that add to an existing image: pyramid, add-labels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import (
    CLUSTER,
    DEADLINE_OPTION,
    JSON,
    QUIET,
    RESUME,
    WRITE,
    api_arguments,
    option,
    running,
    with_options,
)
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.parameters import COLOR, LEVELS
from ctlab_dask_zarr.text import counted_text, path_text

if TYPE_CHECKING:
    from ctlab_dask_zarr import Stop


@click.command("pyramid")
@click.argument("path", type=click.Path())
@option(
    "--levels",
    "Levels of detail including the data itself; auto: down to a picture.",
    type=LEVELS,
    default="auto",
    show_default=True,
)
@with_options(WRITE["downsample"], RESUME["resume"], RESUME["restart"], DEADLINE_OPTION)
@with_options(*CLUSTER, QUIET, JSON)
def pyramid_command(
    path: str, stop: Stop | None, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Add levels of detail to the OME-Zarr image at PATH.

    The image stays readable; the levels appear together, when all are complete. Labels of the
    image get the same levels.
    """
    with running(options, stop, quiet=quiet) as how:
        from ctlab_dask_zarr import add_levels, dataset_from_zarr

        result = add_levels(path, **api_arguments(options), **how)
        levels = [level.shape for level in dataset_from_zarr(path).levels]
    if as_json:
        say(json.dumps({"destination": result.destination, "levels": levels}))
        return
    names = ", ".join(" x ".join(map(str, shape)) for shape in levels)
    say(f"{result.destination}: {len(levels)} levels, {names}")


@click.command("add-labels")
@click.argument("image", type=click.Path())
@click.argument("segmentation", type=click.Path())
@option("--name", "Name of the labels, for example phases.", required=True)
@option(
    "--color colors", "Colour of a label, as 1=ff8000; may be repeated.", type=COLOR, multiple=True
)
@option(
    "--downsample",
    "How a level becomes the next one.  [default: mode]",
    type=click.Choice(["mode", "nearest"]),
)
@with_options(WRITE["chunks"], WRITE["shards"], WRITE["codec"])
@option("--overwrite", "Replace labels that have this name.", is_flag=True)
@with_options(*RESUME.values(), DEADLINE_OPTION, *CLUSTER, QUIET)
def add_labels_command(
    image: str,
    segmentation: str,
    name: str,
    colors: tuple[tuple[int, tuple[int, ...]], ...],
    stop: Stop | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Write SEGMENTATION as labels of the OME-Zarr IMAGE.

    SEGMENTATION is a mango netCDF file or folder, or a Zarr store, of integers with the shape and
    the voxel size of the image. The labels get as many levels as the image has. If jobs share the
    write by --part, `commit IMAGE/labels/NAME` publishes the labels.
    """
    part = options["part"]
    with running(options, stop, quiet=quiet) as how:
        from ctlab_dask_zarr import Dataset, dataset_from_zarr, labels_to_zarr, status

        labels = Dataset.from_path(segmentation)
        labels_to_zarr(labels, image, name, colors=dict(colors), **api_arguments(options), **how)
        path = f"{image.rstrip('/')}/labels/{name}"
        if part is None:
            n_levels = len(dataset_from_zarr(path).levels)
            levels = counted_text(n_levels, "level")
            say(f"{status(path).destination}: labels with {levels}")
            return
        found = status(path)
        n_shards = found.parts[part[0] - 1].n_shards
        say(
            f"part {part[0]} of {part[1]}: {counted_text(n_shards, 'shard')}; when all parts are "
            f"there: ctlab-zarr commit {path_text(found.destination)}"
        )
