"""``ctlab-zarr demo``: a synthetic scan, converted, read back, compared and pictured."""

from __future__ import annotations

import os
import shlex
import time
from glob import escape, glob
from tempfile import TemporaryDirectory

import click

from ctlab_dask_zarr.cli.options import QUIET, option, running
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.errors import WriteFailedError
from ctlab_dask_zarr.text import counted_text, nbytes_text


@click.command("demo")
@click.argument("directory", default="ctlab-zarr-demo", type=click.Path(file_okay=False))
@option(
    "--size",
    "Edge of the volume, in voxels.",
    type=click.IntRange(32, 4096),
    default=384,
    show_default=True,
)
@QUIET
def demo_command(directory: str, size: int, quiet: bool) -> None:
    """Make a synthetic micro-CT scan in DIRECTORY, convert it, and check the result.

    The scan is a mango netCDF folder as the CTLab's programs write them: grains, pores, noise and
    a masked rim. It is converted on a local cluster, every voxel is read back and compared, and
    three slices are saved as a picture.
    """
    with running({"cluster": "local"}, quiet=quiet) as how:
        from ctlab_dask_zarr import Dataset, preview, verify, write_dataset

        source = _make_scan(directory, size, quiet)
        store = os.path.join(directory, "tomoDemo.zarr")
        dataset = Dataset.from_path(source)
        # Workers start and kernels are compiled before the time counts.
        with TemporaryDirectory(dir=directory) as folder:
            corner = dataset[:32, :32, :32]
            write_dataset(corner, f"{folder}/corner", levels=2, **how | {"progress": False})
        # The demonstration may be run again in the same folder.
        result = write_dataset(
            dataset, store, overwrite=True, shards=(128,) * 3, chunks=(32,) * 3, levels="auto",
            restart=True, **how,
        )  # fmt: skip
        problems = verify(store, dataset, client=how["client"])
        if problems:
            raise WriteFailedError(
                f"{store} does not read back as {source}: {problems[0]}; please report this"
            )
        picture = os.path.join(directory, "tomoDemo.png")
        preview(store, picture)
    say(f"scan       {source}")
    say(
        f"converted  {store}: {nbytes_text(result.nbytes)} in "
        f"{counted_text(result.n_objects, 'shard')}, "
        f"{result.seconds:.1f} s, {nbytes_text(result.nbytes / result.seconds)}/s "
        "(without the start of workers)"
    )
    say("compared   every voxel is equal")
    say(f"picture    {picture}")
    if not quiet:
        path = shlex.quote(store)
        say(
            f"next:\n  ctlab-zarr view {path}   # in a browser; needs the extra 'view'\n"
            f"  ctlab-zarr verify {path} --source {shlex.quote(source)}\n"
            "  ctlab-zarr plan YOUR_SCAN scan.zarr   # what a conversion of your own would do",
            err=True,
        )


def _make_scan(directory: str, size: int, quiet: bool) -> str:
    from ctlab_dask_zarr import synthetic_volume, write_mango_netcdf

    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, "tomoDemo_nc")
    if not quiet:
        say(f"making a scan of {size} x {size} x {size} voxels", err=True)
    # An earlier demonstration of another size may have left more blocks than this one has.
    for block in glob(os.path.join(escape(path), "block" + "[0-9]" * 8 + ".nc")):
        os.unlink(block)
    start_s = time.monotonic()
    write_mango_netcdf(
        path, synthetic_volume((size, size, size)), slices_per_block=max(size // 6, 1)
    )
    if not quiet:
        say(f"made in {time.monotonic() - start_s:.1f} s", err=True)
    return path
