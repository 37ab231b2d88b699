"""The command ``ctlab-zarr``: thin over the Python API.

Standard output carries only results; progress and messages go to standard error. Modules of this
room import nothing heavy when they are loaded, so that ``--help`` answers at once.
"""

from __future__ import annotations

import click

from ctlab_dask_zarr import __version__
from ctlab_dask_zarr.cli.convert import convert_command
from ctlab_dask_zarr.cli.demo import demo_command
from ctlab_dask_zarr.cli.info import info_command
from ctlab_dask_zarr.cli.plan import plan_command

__all__ = ["main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    Exit codes: 0 done; 1 failed; 2 wrong usage; 4 the output exists; 5 the source is incomplete.
    """,
)
@click.option("--debug", is_flag=True, envvar="CTLAB_ZARR_DEBUG",
              help="Show the traceback of expected errors too.")  # fmt: skip
@click.version_option(__version__, prog_name="ctlab-zarr")
def main(debug: bool) -> None:
    """Write large CT volumes as sharded OME-Zarr, and look at what is there.

    \b
    ctlab-zarr convert tomoHiRes_nc scan.zarr     convert a scan
    ctlab-zarr plan tomoHiRes_nc scan.zarr        see first what would be done
    ctlab-zarr info scan.zarr                     what a dataset is
    ctlab-zarr demo                               try it on a synthetic scan
    """  # noqa: D301 - click wants the backspace character itself


main.add_command(convert_command)
main.add_command(plan_command)
main.add_command(info_command)
main.add_command(demo_command)
