"""Commands of a write: convert, plan, commit, status, abort."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import (
    CLUSTER,
    DEADLINE_OPTION,
    JSON,
    MKDIR,
    QUIET,
    RESUME,
    STORAGE,
    WRITE,
    api_arguments,
    make_folder_of,
    option,
    running,
    with_options,
    workers_of,
)
from ctlab_dask_zarr.cli.output import exit_codes, say, verify_command_of, verify_written
from ctlab_dask_zarr.cli.reference import REFERENCE, write_graph
from ctlab_dask_zarr.cli.sources import given_source_options, open_source
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.text import counted_text, duration_text, in_command, nbytes_text, path_text

if TYPE_CHECKING:
    from ctlab_dask_zarr import Dataset, Stop, WriteResult, WriteStatus

#: Less than this is not worth a word.
_NOTEWORTHY_RATIO = 1.05
_SOURCE_AND_DESTINATION = (
    click.argument("source", type=click.Path()),
    click.argument("destination", type=click.Path()),
)


@click.command("convert")
@with_options(*_SOURCE_AND_DESTINATION, *WRITE.values(), *RESUME.values(), MKDIR, DEADLINE_OPTION)
@option("--check-source", "First compare the source with its own checksums.", is_flag=True)
@option("--verify verify_after", "Afterwards compare every voxel with the source.", is_flag=True)
@with_options(*CLUSTER)
@option(
    "--report --performance-report",
    "Write dask's performance report of the conversion to this HTML file.",
    type=click.Path(dir_okay=False, writable=True),
)
@option(
    "--dask-graph",
    "First write the graph of tasks to this file, FILE.dot.",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
)
@with_options(*REFERENCE)
@with_options(QUIET, JSON)
def convert_command(
    source: str,
    destination: str,
    mkdir: bool,
    stop: Stop | None,
    check_source: bool,
    verify_after: bool,
    report: str | None,
    dask_graph: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to the OME-Zarr store DESTINATION.

    SOURCE is a mango netCDF file (tomoHiRes.nc), a folder of its blocks (tomoHiRes_nc), a Zarr
    store, whose labels are converted too, or TIFF, HDF5, NRRD or raw voxels. DESTINATION appears
    only when everything is written; .zarr is appended where it is missing.

    SIGINT, SIGTERM, SIGUSR1 and --deadline stop it cleanly: the shards under way are finished, the
    exit code is 75, and the same command with --resume continues.
    """
    part = options["part"]
    if options["resume"] and options["restart"]:
        raise click.UsageError("--resume and --restart exclude one another")
    if part is not None and verify_after:
        raise click.UsageError("--verify needs the whole dataset: use `verify` after the commit")
    given = given_source_options(options)
    with running(options, stop, quiet=quiet, report=report) as how:
        from ctlab_dask_zarr import write_dataset

        dataset = open_source(source, options)
        how["client"].expect(dataset.data.nbytes)
        arguments = api_arguments(options)
        if mkdir:
            make_folder_of(destination)
        if check_source:
            _check_source(dataset, destination, arguments, how)
        if dask_graph is not None:
            write_graph(dataset, destination, arguments, dask_graph)
        result = write_dataset(dataset, destination, **arguments, **how)
        is_whole = part is None and arguments.get("ome_zarr_version", "") is not None
        copied = is_whole and _copy_labels(source, dataset, result.destination, arguments, how)
        if verify_after:
            verify_written(result.destination, dataset, how, source, given)
    if as_json:
        checked = {"verified": True} if verify_after else {}
        text = {"nbytes_text": nbytes_text(result.nbytes)}
        say(json.dumps(asdict(result) | text | checked))
        return
    verified = ", verified" if verify_after else ""
    labels = f", with the labels {', '.join(copied)}" if copied else ""
    _say_what_was_written(result, part, verified + labels)
    if not quiet and part is None:
        is_itself = os.path.realpath(source) == result.destination
        step = f"ctlab-zarr view {path_text(result.destination)}"
        if not (verify_after or is_itself):
            same = f"   (with the same {', '.join(given)})" if given else ""
            step = verify_command_of(result.destination, source) + same
        say(f"next: {step}", err=True)


def _say_what_was_written(result: WriteResult, part: tuple[int, int] | None, more: str) -> None:
    resumed = ""
    if result.n_resumed or result.n_half_made:
        n_new = result.n_shards - result.n_resumed - result.n_half_made
        resumed = (
            f", {result.n_resumed} of them were there, {result.n_half_made} were incomplete and "
            f"written again, {n_new} are new"
        )
    shards = f"{counted_text(result.n_shards, 'shard')}{resumed}"
    if part is not None:
        say(
            f"part {part[0]} of {part[1]}: {shards}; when all parts are there: ctlab-zarr commit "
            f"{path_text(result.destination)}"
        )
        return
    stored_nbytes = result.stored_nbytes or 0
    ratio = result.nbytes / max(stored_nbytes, 1)
    smaller = f" ({ratio:.3g} x smaller)" if ratio > _NOTEWORTHY_RATIO else ""
    say(
        f"{result.destination}: {nbytes_text(result.nbytes)} in {shards}, "
        f"{nbytes_text(stored_nbytes)} on disk{smaller}, {result.seconds:.1f} s{more}"
    )


#: What a conversion is given for its labels too.
_OF_LABELS = ("chunks", "shards", "codec", "resume", "restart", "storage_options")


def _copy_labels(
    source: str,
    dataset: Dataset,
    destination: str,
    arguments: dict[str, Any],
    how: dict[str, Any],
) -> list[str]:
    """Write the labels of a Zarr store with its image, but not with a part of that."""
    from ctlab_dask_zarr import Dataset, info, labels_to_zarr

    if dataset.source is None or not dataset.levels:
        return []
    options = {name: arguments[name] for name in _OF_LABELS if name in arguments}
    copied = []
    try:
        names = info(source).labels or ()
    except MetadataError as error:
        warnings.warn(f"whether it has labels is not known: {error}", stacklevel=2)
        return []
    for name in names:
        try:
            labels = Dataset.from_path(
                f"{source.rstrip('/')}/labels/{name}",
                voxel_size=dataset.voxel_size,
                voxel_unit=dataset.voxel_unit,
            )
            labels_to_zarr(labels, destination, name, **options, **how)
            copied.append(name)
        except (InvalidArgumentError, MetadataError, UnsupportedFormatError) as error:
            warnings.warn(f"the labels {name!r} are not copied: {error}", stacklevel=2)
    return copied


def _check_source(
    dataset: Dataset, destination: str, arguments: dict[str, Any], how: dict[str, Any]
) -> None:
    """Name every damaged block or shard of the source before anything is written."""
    from ctlab_dask_zarr import check_source, plan

    problem = plan(dataset, destination, **arguments).destination_problem
    if problem is not None and not arguments["resume"]:
        raise DestinationExistsError(problem)
    problems = check_source(dataset, client=how["client"], stop=how["stop"])
    if problems:
        lines = "\n".join(map(str, problems))
        raise IncompleteSourceError(f"the source is damaged, and nothing was written:\n{lines}")


@click.command("plan")
@with_options(*_SOURCE_AND_DESTINATION, *WRITE.values(), *CLUSTER, JSON)
def plan_command(source: str, destination: str, as_json: bool, **options: Any) -> None:
    """Show what converting SOURCE to DESTINATION would do, without doing it.

    Exit code 1 if it would be refused: because of what is at DESTINATION, or for want of memory.
    """
    workers = workers_of(options)
    with exit_codes():
        from ctlab_dask_zarr import cluster_resources, plan

        dataset = open_source(source, options)
        found = plan(
            dataset, destination, **api_arguments(options), client=cluster_resources(**workers)
        )
    say(json.dumps(found.to_dict()) if as_json else in_command(found.describe()))
    if found.destination_problem is not None or found.memory_problem is not None:
        sys.exit(1)


@click.command("commit")
@click.argument("destination", type=click.Path())
@with_options(WRITE["overwrite"], WRITE["drop_labels"])
@with_options(DEADLINE_OPTION, *CLUSTER, QUIET, JSON)
def commit_command(
    destination: str,
    stop: Stop | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish DESTINATION when all parts of `convert --part` are there.

    If parts are missing, they are named, with exit code 5. The levels after the first are made now,
    from what the parts have left for them. SIGINT, SIGTERM, SIGUSR1 and --deadline stop this
    cleanly with exit code 75, and the same command continues. A commit that was killed between its
    two renames is repaired.
    """
    with running(options, stop, quiet=quiet) as how:
        from ctlab_dask_zarr import commit

        result = commit(destination, **api_arguments(options), **how)
    if as_json:
        say(json.dumps(result._asdict()))
    else:
        say(f"{result.destination}: {counted_text(result.n_objects, 'object')} committed")


@click.command("status")
@click.argument("destination", type=click.Path())
@with_options(*STORAGE, JSON)
def status_command(destination: str, as_json: bool) -> None:
    """Say how far the write of DESTINATION is.

    The answer is read from the staging folder, on any machine that sees it; the jobs are not asked.
    Exit code 5 if no write is under way and no dataset is there.
    """
    with exit_codes():
        from ctlab_dask_zarr import status

        found = status(destination)
    if as_json:
        say(json.dumps({**asdict(found), "seconds_left": found.seconds_left}))
    else:
        say("\n".join(_status_lines(found)))


def _status_lines(status: WriteStatus) -> Iterator[str]:
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
    yield from _runner_lines(status)
    if status.state != "stopped" and status.rate and status.seconds_left is not None:
        left = duration_text(status.seconds_left)
        yield f"{nbytes_text(status.rate)}/s, {left} left at this rate"
    for job in status.parts:
        yield f"part {job.number} of {len(status.parts)}: {job.n_done} of {job.n_shards} shards"
    if status.parts and part == 1.0:
        yield f"all parts are there: ctlab-zarr commit {path_text(status.destination)}"


def _runner_lines(status: WriteStatus) -> Iterator[str]:
    """Yield whether it is running, by what, and how to go on if it is not."""
    since = ""
    if status.since_s is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.since_s))
    by = f" by {status.runner}" if status.runner else ""
    why = f": {status.why}" if status.why else ""
    if status.state == "running":
        yield f"running{by}; last sign of life {since}{why}"
    elif status.state == "stopped":
        yield f"stopped at {since}{why}; it was run{by}"
    elif by:
        yield f"whether it is running is not known; it was begun{by}"
    if status.how_to_go_on and not status.parts:
        yield f"go on by: {status.how_to_go_on}"


@click.command("abort")
@click.argument("destination", type=click.Path())
@with_options(*STORAGE)
def abort_command(destination: str) -> None:
    """Remove what an interrupted write to DESTINATION has left; a committed dataset stays.

    A write is a conversion, the levels of a `pyramid`, a `push` or a `pull`. Make sure that none is
    running.

    On S3, uploads that were cut off cost as much as objects and are not listed; they are ended too,
    if botocore is installed.
    """
    with exit_codes():
        from ctlab_dask_zarr import abort

        result = abort(destination)
    what = "removed what was staged" if result.was_staged else "nothing was staged"
    say(f"{result.destination}: {what}")
    if result.n_uploads:
        say(f"{result.n_uploads} unfinished uploads ended")
    if result.uploads_problem is not None:
        say(
            f"unfinished uploads could not be searched for ({result.uploads_problem}); a lifecycle "
            "rule of the bucket (AbortIncompleteMultipartUpload) ends them",
            err=True,
        )
