"""``ctlab-zarr demo``: a synthetic scan, converted, read back, compared and pictured."""

from __future__ import annotations

import os
import time
from glob import escape as glob_escape
from glob import glob
from typing import Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.output import say

__all__ = ["demo_command"]


@click.command("demo")
@click.argument("directory", default="ctlab-zarr-demo", type=click.Path(file_okay=False))
@click.option("--size", type=click.IntRange(32, 4096), default=384, show_default=True,
              help="Edge of the volume, in voxels.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def demo_command(directory: str, size: int, quiet: bool) -> None:
    """Make a synthetic micro-CT scan in DIRECTORY, convert it, and check the result.

    The scan is a mango netCDF folder as the CTLab's programs write them: grains, pores, noise and
    a masked rim. It is converted on a local cluster, every voxel is read back and compared, and
    three slices are saved as a picture.
    """
    with exit_codes():
        source = _make_scan(directory, size, quiet)
        store = os.path.join(directory, "tomoDemo.zarr")
        result = _convert(source, store, quiet)
        _compare(source, store)
        picture = os.path.join(directory, "tomoDemo.png")
        _picture(store, picture)
    say(f"scan       {source}")
    say(
        f"converted  {store}: {result['nbytes_text']} to {result['n_objects']} shards in "
        f"{result['seconds']:.1f} s"
    )
    say("compared   every voxel is equal")
    say(f"picture    {picture}")


def _make_scan(directory: str, size: int, quiet: bool) -> str:
    from ctlab_dask_zarr.demo import synthetic_volume, write_mango_netcdf

    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, "tomoDemo_nc")
    if not quiet:
        say(f"making a scan of {size} x {size} x {size} voxels", err=True)
    # An earlier demonstration of another size may have left more blocks than this one has.
    for block in glob(os.path.join(glob_escape(path), "block" + "[0-9]" * 8 + ".nc")):
        os.unlink(block)
    start_s = time.monotonic()
    write_mango_netcdf(
        path,
        synthetic_volume((size, size, size)),
        datatype="tomo",
        voxel_size=(2.5, 2.5, 2.5),
        voxel_unit="um",
        slices_per_block=max(size // 6, 1),
    )
    if not quiet:
        say(f"made in {time.monotonic() - start_s:.1f} s", err=True)
    return path


def _convert(source: str, store: str, quiet: bool) -> dict[str, Any]:
    from ctlab_dask_zarr.cli.convert import write_dataset
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.execution.clusters import client_of
    from ctlab_dask_zarr.execution.local import local_workers

    with client_of(local_workers()) as client:
        # A demonstration may be run again in the same folder.
        arguments = {"overwrite": True, "shards": (128,) * 3, "chunks": (32,) * 3, "levels": "auto"}
        return write_dataset(
            Dataset.from_path(source), store, arguments, client, quiet, restart=True
        )


def _compare(source: str, store: str) -> None:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.errors import WriteFailedError

    expected, found = Dataset.from_path(source), Dataset.from_path(store)
    same_voxels = bool((expected.data == found.data.rechunk(expected.data.chunks)).all().compute())
    same_facts = (expected.history, expected.dataset_id, expected.voxel_size) == (
        found.history,
        found.dataset_id,
        found.voxel_size,
    )
    if not (same_voxels and same_facts):
        raise WriteFailedError(f"{store} does not read back as {source}: please report this")


def _picture(store: str, path: str) -> None:
    from ctlab_dask_zarr.views.preview import preview

    preview(store, path)
