"""Commands on stores that are there: verify, push, pull, set-voxel, set-id, history."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import (
    CLUSTER,
    DEADLINE_OPTION,
    JSON,
    MKDIR,
    QUIET,
    SOURCE,
    STORAGE,
    make_folder_of,
    option,
    running,
    with_options,
)
from ctlab_dask_zarr.cli.output import ask, exit_codes, say
from ctlab_dask_zarr.cli.parameters import VOXEL_SIZE
from ctlab_dask_zarr.cli.sources import given_source_options, open_source
from ctlab_dask_zarr.errors import VerificationError
from ctlab_dask_zarr.text import nbytes_text

if TYPE_CHECKING:
    from ctlab_dask_zarr import Stop


@click.command("verify")
@click.argument("path", type=click.Path())
@option(
    "--source",
    "What it was made from, to compare every voxel and the metadata.",
    type=click.Path(),
)
@option("--quick", "Only documents, sizes and the index of each shard.", is_flag=True)
@with_options(*SOURCE.values(), *CLUSTER, QUIET, JSON)
def verify_command(
    path: str, source: str | None, quick: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Verify the dataset at PATH; exit code 3 if anything is wrong.

    Every problem is printed, not only the first. Verify with --source before you delete the
    original, and repeat the options with which you corrected its metadata in the conversion.
    """
    given = given_source_options(options)
    if given and source is None:
        raise click.UsageError(f"{given[0]} is about the source: name the source by --source")
    with running(options, quiet=quiet) as how:
        from ctlab_dask_zarr import verify

        dataset = None if source is None else open_source(source, options, to_compare=True)
        if dataset is not None:
            how["client"].expect(dataset.data.nbytes)
        problems = verify(path, dataset, checksums=not quick, **how)
        if as_json:
            say(json.dumps([asdict(problem) for problem in problems]))
        else:
            for problem in problems:
                say(str(problem))
        if problems:
            raise VerificationError(f"verification of {path} found {problems.count_text}")
    if not as_json:
        against = "" if source is None else f" and equal to {source}"
        say(f"{path}: {problems.scope}{against}")


@click.command("seal")
@click.argument("path", type=click.Path())
@with_options(*CLUSTER, QUIET, JSON)
def seal_command(path: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Give the OME-Zarr at PATH, of any program, receipts and checksums.

    Every stored object is read and decoded once. From then on `verify`, `push` and `pull` find any
    changed bit, as in what this program writes. No voxel is changed. A store that is damaged is not
    sealed (exit code 3): what cannot be decoded is named.
    """
    with running(options, quiet=quiet) as how:
        from ctlab_dask_zarr import seal

        result = seal(path, **how)
    if as_json:
        say(json.dumps(asdict(result)))
        return
    for problem in result.problems:
        say(f"left as it is: {problem}", err=True)
    if not result.arrays:
        say(f"{result.path}: sealed already; `ctlab-zarr verify` compares it with its checksums")
        return
    absent = f", {result.n_absent} absent (fill value)" if result.n_absent else ""
    say(
        f"{result.path}: sealed, {result.n_objects} objects{absent} of {len(result.arrays)} "
        f"arrays, {nbytes_text(result.nbytes)}"
    )


@click.command("repair")
@click.argument("path", type=click.Path())
@option(
    "--source",
    "What it was made from; without it coarser levels alone are repaired.",
    type=click.Path(),
)
@with_options(*SOURCE.values(), DEADLINE_OPTION, *CLUSTER, QUIET, JSON)
def repair_command(
    path: str, source: str | None, stop: Stop | None, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Write again the shards at PATH that `verify` names, and no others.

    The finest level is made of --source, coarser ones of the next finer one. What cannot be
    repaired is named, with the reason (exit code 3). Repeat the options with which you corrected
    the source in the conversion. After an interruption, the same command goes on.
    """
    given = given_source_options(options)
    if given and source is None:
        raise click.UsageError(f"{given[0]} is about the source: name the source by --source")
    with running(options, stop, quiet=quiet) as how:
        from ctlab_dask_zarr import repair

        dataset = None if source is None else open_source(source, options, to_compare=True)
        result = repair(path, dataset, **how)
        if as_json:
            say(json.dumps(asdict(result)))
        else:
            for problem in result.problems:
                say(str(problem))
            for key in result.repaired:
                say(f"repaired: {key}")
        if result.problems:
            n = len(result.problems)
            raise VerificationError(
                f"{len(result.repaired)} objects of {path} were repaired; "
                f"{'1 problem is' if n == 1 else f'{n} problems are'} left"
            )
    if not as_json:
        what = f"{len(result.repaired)} objects were repaired, {nbytes_text(result.nbytes)}"
        say(f"{result.path}: {what if result.repaired else 'there is nothing to repair'}")


@click.command("push")
@click.argument("source", type=click.Path())
@click.argument("url")
@with_options(*STORAGE, QUIET, JSON)
def push_command(source: str, url: str, quiet: bool, as_json: bool) -> None:
    """Copy the committed store SOURCE to the object store at URL.

    Shards come first and the root document last, so that the copy is not readable before it is
    complete. Every object is read back and compared with the checksums of the commit. After an
    interruption, the same command continues.
    """
    _copy(source, url, quiet, as_json)


@click.command("pull")
@click.argument("url")
@click.argument("destination", type=click.Path())
@with_options(MKDIR, *STORAGE, QUIET, JSON)
def pull_command(url: str, destination: str, mkdir: bool, quiet: bool, as_json: bool) -> None:
    """Copy the committed store at URL to DESTINATION, as `push` does the other way.

    An https:// URL cannot be listed; there the store's own documents name its objects.
    """
    if mkdir:
        with exit_codes():
            make_folder_of(destination)
    _copy(url, destination, quiet, as_json)


def _copy(source: str, destination: str, quiet: bool, as_json: bool) -> None:
    with exit_codes():
        from ctlab_dask_zarr import push

        result = push(source, destination, progress=not quiet)
    if as_json:
        say(json.dumps(asdict(result)))
    elif result.n_objects == 0:
        say(f"{result.destination}: the same dataset is there already")
    else:
        skipped = f", {result.n_skipped} of them were there" if result.n_skipped else ""
        say(
            f"{result.destination}: {result.n_objects} objects{skipped}, "
            f"{nbytes_text(result.nbytes)}"
        )


_EDIT = with_options(
    option("-y --yes", "Do not ask.", is_flag=True),
    option("-n --dry-run", "Only show what would change.", is_flag=True),
    *STORAGE,
)


@click.command("set-voxel")
@click.argument("path", type=click.Path())
@click.argument("size", type=VOXEL_SIZE)
@option("--anisotropic", "The edges differ: SIZE is z,y,x, as in 3,2.5,2.5um.", is_flag=True)
@_EDIT
def set_voxel_command(
    path: str,
    size: tuple[tuple[float, ...], str | None],
    anisotropic: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Give the dataset at PATH the voxel size SIZE, as 2.37um.

    It is changed on every level and in the mango block at once, then in the labels. The history
    records the change.
    """
    sizes, unit = size
    if (len(set(sizes)) > 1) != anisotropic:
        raise click.UsageError(
            "--anisotropic needs a length for each axis, and they must differ, as 3,2.5,2.5um"
            if anisotropic
            else f"{len(sizes)} different lengths: add --anisotropic if that is meant"
        )
    _edit(path, dry_run, yes, voxel_size=sizes, voxel_unit=unit)


@click.command("set-id")
@click.argument("path", type=click.Path())
@click.argument("dataset_id", metavar="ID")
@_EDIT
def set_id_command(path: str, dataset_id: str, dry_run: bool, yes: bool) -> None:
    """Give the dataset at PATH the identifier ID.

    mango's own identifiers look like 20260131_154500_tomo.
    """
    _edit(path, dry_run, yes, dataset_id=dataset_id)


@click.command("history")
@click.argument("path", type=click.Path())
@option("--add added", "Add an entry.", metavar="KEY=TEXT", multiple=True)
@option("--json as_json", "Print it whole, as JSON.", is_flag=True)
@_EDIT
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
    with exit_codes():
        from ctlab_dask_zarr import Dataset

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
    with exit_codes():
        from ctlab_dask_zarr import edit_metadata, plan_edit

        if yes and not dry_run:
            # Nothing was shown that the change would have to agree with.
            changes = edit_metadata(path, **wanted)
        else:
            edit = plan_edit(path, **wanted)
            changes = edit.changes
        for line in changes or ("nothing to change: the metadata says so already",):
            say(line)
        if dry_run or not changes:
            return
        if not yes:
            ask(f"Change {edit.path}?")
            edit.apply()
        say("changed")
