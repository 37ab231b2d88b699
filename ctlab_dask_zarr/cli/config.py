"""``ctlab-zarr config``: which settings are in force, and where they come from."""

from __future__ import annotations

import json

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.output import say

__all__ = ["config_command"]


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--example", is_flag=True, help="Print the defaults with comments, to begin a file with."
)
def config_command(as_json: bool, example: bool) -> None:
    """Show the settings in force, and where each comes from.

    They are dask's configuration, in YAML files of the folder ~/.config/dask/:

    ctlab-zarr config --example > ~/.config/dask/ctlab-zarr.yaml

    and in environment variables, as DASK_CTLAB_ZARR__LEVELS=auto.
    """
    with exit_codes():
        from ctlab_dask_zarr.settings import packaged_settings, settings_in_force

        if example:
            say(packaged_settings().rstrip("\n"))
            return
        found = settings_in_force()
    if as_json:
        say(json.dumps([setting._asdict() for setting in found]))
        return
    width = max(len(setting.name) for setting in found)
    for name, value, origin in found:
        text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
        say(f"{name:<{width}}  {'not set' if value is None else text}  ({origin})")
