"""The command that makes files of other formats: export."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import (
    CLUSTER,
    DEADLINE_OPTION,
    JSON,
    MKDIR,
    QUIET,
    RESUME,
    SOURCE,
    api_arguments,
    make_folder_of,
    option,
    running,
    with_options,
)
from ctlab_dask_zarr.cli.output import say, verify_written
from ctlab_dask_zarr.cli.sources import given_source_options, open_source
from ctlab_dask_zarr.text import counted_text, nbytes_text

if TYPE_CHECKING:
    from ctlab_dask_zarr import Stop


@click.command("export")
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@with_options(*SOURCE.values())
@option(
    "--compression-level",
    "Of gzip, 1 to 9, for HDF5 and netCDF.  [default: not compressed]",
    type=click.IntRange(0, 9),
)
@option("--overwrite", "Replace what is at the destination, if it is of the same kind.",
        is_flag=True)  # fmt: skip
@with_options(RESUME["resume"], RESUME["restart"], MKDIR, DEADLINE_OPTION)
@option("--verify verify_after", "Afterwards read it back and compare every voxel.", is_flag=True)
@with_options(*CLUSTER, QUIET, JSON)
def export_command(
    source: str,
    destination: str,
    mkdir: bool,
    stop: Stop | None,
    verify_after: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write SOURCE, or a part of it, as files that other programs read.

    The name of DESTINATION says what it becomes:

    \b
    slices/        a folder of TIFF, a file for each slice
    scan.tif       one TIFF, above 4 GiB a BigTIFF; scan.ome.tif as OME-TIFF
    scan.nhdr      raw voxels in scan.raw, and this header (ParaView, Slicer, Avizo)
    scan.raw       raw voxels without a header
    scan.h5        HDF5 with the axes of NeXus
    tomo.nc        mango netCDF, tomo_nc as a folder of blocks

    DESTINATION appears only when everything is written. SIGINT, SIGTERM, SIGUSR1 and --deadline
    stop it cleanly with exit code 75, and the same command with --resume continues.
    """  # noqa: D301 - click wants the backspace character itself
    given = given_source_options(options)
    files, place = (os.path.join(os.path.realpath(path), "") for path in (source, destination))
    if files.startswith(place):
        raise click.UsageError(
            f"{destination} is the source itself, or holds it: give another place"
        )
    with running(options, stop, quiet=quiet) as how:
        from ctlab_dask_zarr import export_dataset

        dataset = open_source(source, options, slabs=True)
        how["client"].expect(dataset.data.nbytes)
        if mkdir:
            make_folder_of(destination.rstrip("/"))
        begun_s = time.monotonic()
        result = export_dataset(dataset, destination, **api_arguments(options), **how)
        seconds = time.monotonic() - begun_s
        if verify_after:
            verify_written(destination, dataset, how, source, given)
    if as_json:
        verified = {"verified": True} if verify_after else {}
        say(json.dumps(result._asdict() | {"seconds": seconds} | verified))
        return
    say(
        f"{result.destination}: {counted_text(result.n_files, 'file')}, "
        f"{nbytes_text(result.nbytes)}, {seconds:.1f} s{', verified' if verify_after else ''}"
    )
