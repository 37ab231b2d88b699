"""``ctlab-zarr set-voxel``, ``set-id``, ``history``: change metadata without touching voxels."""

from __future__ import annotations

import json
from typing import Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import Command, with_options, with_storage_options
from ctlab_dask_zarr.cli.output import ask, say
from ctlab_dask_zarr.cli.parameters import VOXEL_SIZE

__all__ = ["history_command", "set_id_command", "set_voxel_command"]

_EDIT_OPTIONS = [
    click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    click.option("-n", "--dry-run", is_flag=True, help="Only show what would change."),
]


def _with_edit_options(command: Command) -> Command:
    return with_storage_options(with_options(_EDIT_OPTIONS, command))


@click.command("set-voxel")
@click.argument("path", type=click.Path())
@click.argument("size", type=VOXEL_SIZE)
@click.option(
    "--anisotropic", is_flag=True, help="The edges differ: SIZE is z,y,x, as in 3,2.5,2.5um."
)
@_with_edit_options
def set_voxel_command(
    path: str,
    size: tuple[tuple[float, ...], str | None],
    anisotropic: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Give the dataset at PATH the voxel size SIZE, as 2.37um.

    On every level and in the mango block at once, and then in its labels; the change is recorded in
    the history.
    """
    sizes, unit = size
    if (len(set(sizes)) > 1) != anisotropic:
        raise click.UsageError(
            "--anisotropic needs one length an axis that differ, as 3,2.5,2.5um"
            if anisotropic
            else f"{len(sizes)} different lengths: say --anisotropic if that is meant"
        )
    _edit(path, dry_run, yes, voxel_size=sizes, voxel_unit=unit)


@click.command("set-id")
@click.argument("path", type=click.Path())
@click.argument("dataset_id", metavar="ID")
@_with_edit_options
def set_id_command(path: str, dataset_id: str, dry_run: bool, yes: bool) -> None:
    """Give the dataset at PATH the identifier ID.

    mango's own have the form 20260131_154500_tomo.
    """
    _edit(path, dry_run, yes, dataset_id=dataset_id)


@click.command("history")
@click.argument("path", type=click.Path())
@click.option("--add", "added", metavar="KEY=TEXT", multiple=True, help="Add an entry.")
@click.option("--json", "as_json", is_flag=True, help="Print it whole, as JSON.")
@_with_edit_options
def history_command(
    path: str, added: tuple[str, ...], as_json: bool, dry_run: bool, yes: bool
) -> None:
    """Show the history of the dataset at PATH, or add to it."""
    if added:
        wrong = [text for text in added if "=" not in text.lstrip("=")]
        if wrong:
            raise click.BadParameter(f"{wrong[0]!r} is not KEY=TEXT", param_hint="--add")
        entries = [text.split("=", 1) for text in added]
        keys = [key for key, _ in entries]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise click.BadParameter(
                f"{twice[0]!r} is given twice: choose another name", param_hint="--add"
            )
        _edit(path, dry_run, yes, history=dict(entries))
        return
    from ctlab_dask_zarr.dataset import Dataset

    with exit_codes():
        history = Dataset.from_path(path).history
    if as_json:
        say(json.dumps(history))
        return
    for key, value in history.items():
        text = value if isinstance(value, str) else json.dumps(value)
        first = " ".join(text.split())
        say(f"{key}  {first if len(first) <= 160 else first[:157] + '...'}")


def _edit(path: str, dry_run: bool, yes: bool, **wanted: Any) -> None:
    """Show what would change, ask, and change it."""
    from ctlab_dask_zarr.manage.edit import edit_metadata, plan_edit

    with exit_codes():
        if yes and not dry_run:
            # Nobody has been shown anything that must not be otherwise when it is made.
            changes = edit_metadata(path, **wanted)
        else:
            edit = plan_edit(path, **wanted)
            changes = edit.changes
        for line in changes or ("nothing to change: it is so already",):
            say(line)
        if dry_run or not changes:
            return
        if not yes:
            ask(f"Change {edit.path}?")
            edit.apply()
        say("changed")
