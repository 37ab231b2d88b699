"""The command ``ctlab-zarr``, a thin layer over the Python API.

Standard output carries only results; progress and messages go to standard error. Modules of this
room import nothing heavy when they are loaded, so that ``--help`` answers at once.
"""

from __future__ import annotations

import click

from ctlab_dask_zarr.cli.add import add_labels_command, pyramid_command
from ctlab_dask_zarr.cli.demo import demo_command
from ctlab_dask_zarr.cli.export import export_command
from ctlab_dask_zarr.cli.look import (
    check_command,
    config_command,
    info_command,
    preview_command,
    view_command,
)
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.stores import (
    history_command,
    pull_command,
    push_command,
    repair_command,
    seal_command,
    set_id_command,
    set_voxel_command,
    verify_command,
)
from ctlab_dask_zarr.cli.write import (
    abort_command,
    commit_command,
    convert_command,
    plan_command,
    status_command,
)


def _print_version(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from ctlab_dask_zarr import __version__

        say(f"ctlab-zarr, version {__version__}")
        context.exit()


@click.group(
    # `dask ctlab-zarr` finds the command by this name.
    name="ctlab-zarr",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 verification found problems; 4 the output
    exists; 5 source, parts or dataset are incomplete; 75 stopped in time, --resume continues an
    interrupted write.
    """,
)
@click.option("--debug", is_flag=True, envvar="CTLAB_ZARR_DEBUG",
              help="Show the traceback of expected errors too.")  # fmt: skip
@click.option("--version", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_version, help="Show the version and exit.")  # fmt: skip
def main(debug: bool) -> None:
    """Write large CT volumes as sharded OME-Zarr, and look at what is there.

    \b
    ctlab-zarr convert tomoHiRes_nc scan.zarr     convert a scan
    ctlab-zarr plan tomoHiRes_nc scan.zarr        see what it would do
    ctlab-zarr status scan.zarr                   how far a conversion is
    ctlab-zarr push scan.zarr s3://bucket/scan.zarr
    ctlab-zarr verify scan.zarr --source scan_nc  before the original is deleted
    ctlab-zarr seal scan.zarr                     checksums for a store of another program
    ctlab-zarr repair scan.zarr --source scan_nc  write again what is damaged
    ctlab-zarr export scan.zarr scan.tif          files for other programs
    ctlab-zarr pyramid scan.zarr                  add levels of detail
    ctlab-zarr add-labels scan.zarr segmented_nc --name phases
    ctlab-zarr info scan.zarr                     what a dataset is
    ctlab-zarr set-voxel scan.zarr 2.37um         correct the voxel size
    ctlab-zarr preview scan.zarr -o scan.png      a picture of it
    ctlab-zarr view scan.zarr                     show it in a browser
    ctlab-zarr check scan.zarr                    which programs will show it
    ctlab-zarr config                             which defaults are in force
    ctlab-zarr demo                               try it on a synthetic scan
    """  # noqa: D301 - click wants the backspace character itself


for command in (
    *(convert_command, plan_command, commit_command, status_command, abort_command, push_command),
    *(pull_command, verify_command, seal_command, repair_command, export_command),
    *(pyramid_command, add_labels_command, info_command),
    *(history_command, set_voxel_command, set_id_command, preview_command, view_command),
    *(check_command, config_command, demo_command),
):
    main.add_command(command)
