"""``ctlab-zarr status``: how far a conversion is, from any machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import with_storage_options
from ctlab_dask_zarr.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctlab_dask_zarr.manage.status import WriteStatus

__all__ = ["status_command"]


@click.command("status")
@click.argument("destination", type=click.Path())
@with_storage_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status_command(destination: str, as_json: bool) -> None:
    """Tell how far the write of DESTINATION is, read from its staging folder.

    Works from any machine that sees the folder, another login node too; the jobs are not asked.
    Exit code 5 where no write is under way and no dataset is there.
    """
    with exit_codes():
        from ctlab_dask_zarr.manage.status import write_status
        from ctlab_dask_zarr.planning.resolve import existing_write

        status = write_status(existing_write(destination))
    if as_json:
        say(json.dumps({**asdict(status), "seconds_left": status.seconds_left}))
    else:
        say("\n".join(_lines(status)))


def _lines(status: WriteStatus) -> Iterator[str]:
    from ctlab_dask_zarr.text import duration_text, nbytes_text

    if status.is_committed:
        yield f"{status.destination}: committed"
        return
    part = status.nbytes_done / status.nbytes if status.nbytes else 1.0
    yield (
        f"{status.destination}: {status.n_done} of {status.n_shards} shards, "
        f"{nbytes_text(status.nbytes_done)} of {nbytes_text(status.nbytes)} ({part:.0%})"
    )
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.started_s))
    latest = "no shard yet"
    if status.latest_s is not None:
        latest = f"the latest shard {duration_text(status.latest_s)} ago"
    yield f"since {since} ({duration_text(status.seconds)}); {latest}"
    if status.rate and status.seconds_left is not None:
        left = duration_text(status.seconds_left)
        yield f"{nbytes_text(status.rate)}/s, {left} left at this rate"
    for job in status.parts:
        yield f"part {job.number} of {len(status.parts)}: {job.n_done} of {job.n_shards} shards"
    if status.parts and part == 1.0:
        yield f"all parts are there: ctlab-zarr commit {status.destination}"
