"""``ctlab-zarr check``: which programs will show a store."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import with_storage_options
from ctlab_dask_zarr.cli.output import say

__all__ = ["check_command"]


@click.command("check")
@click.argument("path", type=click.Path())
@with_storage_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check_command(path: str, as_json: bool) -> None:
    """Tell, for each known reader, what of the store at PATH it will not show.

    Only metadata is read. Whether the store is whole is a matter of `verify`.
    """
    with exit_codes():
        from ctlab_dask_zarr.views.compatibility import check_readers

        reports = check_readers(path)
    if as_json:
        say(json.dumps([asdict(report) for report in reports]))
        return
    width = max(len(report.reader) for report in reports)
    for report in reports:
        say(f"{report.reader:<{width}}  {report.verdict}")
        for remark in report.remarks:
            say(f"{'':<{width}}  - {remark}")
