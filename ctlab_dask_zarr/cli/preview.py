"""``ctlab-zarr preview``: a picture of a dataset."""

from __future__ import annotations

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import with_storage_options
from ctlab_dask_zarr.cli.output import say

__all__ = ["preview_command"]


@click.command("preview")
@click.argument("path", type=click.Path())
@with_storage_options
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    help="The picture to write; its ending says the format, for example .png.",
)
@click.option(
    "--size",
    type=click.IntRange(16, 16384),
    default=512,
    show_default=True,
    help="Pixels along the longest edge of the volume.",
)
@click.option(
    "--labels",
    metavar="NAME",
    multiple=True,
    help="Draw this label image; may be repeated.  [default: all]",
)
@click.option("--no-labels", is_flag=True, help="Draw no label images.")  # fmt: skip
def preview_command(
    path: str, output: str, size: int, labels: tuple[str, ...], no_labels: bool
) -> None:
    """Draw three orthogonal slices through the middle of the dataset at PATH.

    PATH is a Zarr store, a mango netCDF file or a folder of its blocks. The picture has a scale
    bar; the mask does not count for the contrast; labels are drawn in colours. Only what the
    slices cross is read, at the coarsest level that is fine enough.
    """
    if labels and no_labels:
        raise click.UsageError("--labels and --no-labels exclude one another")
    with exit_codes():
        from ctlab_dask_zarr.views.preview import preview

        names = () if no_labels else labels or None
        preview(path, output, size=size, labels=names)
    say(output)
