"""``ctlab-zarr convert``: write a dataset, with progress, on a local or a running cluster."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.commit import run_with_progress
from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import (
    client_for,
    cluster_arguments,
    given_source_options,
    make_folder_of,
    open_source,
    with_cluster_options,
    with_deadline_option,
    with_mkdir_option,
    with_resume_options,
    with_write_options,
    write_arguments,
)
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.cli.parameters import PART
from ctlab_dask_zarr.cli.verify import verify_written

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.execution.stopping import Stop
    from ctlab_dask_zarr.planning.plan import WritePlan

__all__ = ["convert_command", "write_dataset"]


@click.command("convert")
@with_write_options
@with_resume_options
@click.option(
    "--part",
    type=PART,
    default=None,
    help="Write only this part, as 3/8: N jobs share a conversion. `commit` ends it.",
)
@with_mkdir_option
@with_deadline_option
@click.option(
    "--check-source",
    is_flag=True,
    help="First compare the source with the checksums that it keeps.",
)
@click.option(
    "--verify", "verify_after", is_flag=True, help="Afterwards compare every voxel with the source."
)
@with_cluster_options
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True),
    default=None,
    help="Write dask's performance report of the conversion to this HTML file.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def convert_command(
    source: str,
    destination: str,
    resume: bool,
    restart: bool,
    part: tuple[int, int] | None,
    mkdir: bool,
    deadline: float | None,
    check_source: bool,
    verify_after: bool,
    report: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to the OME-Zarr store DESTINATION.

    SOURCE is a mango netCDF file (tomoHiRes.nc), a folder of its blocks (tomoHiRes_nc) or a Zarr
    store. DESTINATION appears when everything is written, and not before; .zarr is appended where
    it is missing.

    SIGINT, SIGTERM, SIGUSR1 and the --deadline stop it cleanly: the shards under way are finished,
    the exit code is 75, and the same command with --resume continues.
    """
    from ctlab_dask_zarr.execution.stopping import Stop

    stop = Stop(deadline)
    cluster = cluster_arguments(options)
    if resume and restart:
        raise click.UsageError("--resume and --restart exclude one another")
    if part is not None and verify_after:
        raise click.UsageError("--verify needs the whole dataset: use `verify` after the commit")
    given = given_source_options(options)
    with exit_codes(), stop.on_signals():
        dataset = open_source(source, options)
        arguments = write_arguments(options)
        if mkdir:
            make_folder_of(destination)
        if not resume:
            _refuse_early(destination, overwrite=options["overwrite"])
        # Before anything is started or queued: it may refuse.
        reported = _reported(report)
        with client_for(**cluster, stop=stop) as client, reported:
            if not quiet and not client.scheduler_info(n_workers=-1)["workers"]:
                say("the scheduler has no workers yet: waiting for them", err=True)
            if check_source:
                _check_source(dataset, client, stop)
            result = write_dataset(
                dataset, destination, arguments, client, quiet, stop,
                resume=resume, restart=restart, part=part,
            )  # fmt: skip
            if verify_after:
                command = f"ctlab-zarr verify {result['destination']} --source {source}"
                same = f" with the same {', '.join(given)}" if given else ""
                verify_written(
                    result["destination"], dataset, client, quiet, stop, f"`{command}`{same}"
                )
                result["verified"] = True
    if as_json:
        say(json.dumps(result))
        return
    resumed = ""
    if result["n_resumed"] or result["n_half_made"]:
        n_new = result["n_shards"] - result["n_resumed"] - result["n_half_made"]
        resumed = (
            f", {result['n_resumed']} of them were there, {result['n_half_made']} were half-made "
            f"and are made anew, {n_new} are new"
        )
    if part is not None:
        say(
            f"part {part[0]} of {part[1]}: {result['n_shards']} shards{resumed}; when all parts "
            f"are there: ctlab-zarr commit {result['destination']}"
        )
        return
    say(
        f"{result['destination']}: {result['n_shards']} shards{resumed}, "
        f"{result['stored_nbytes'] / max(result['nbytes'], 1):.0%} of {result['nbytes_text']}, "
        f"{result['seconds']:.1f} s" + (", verified" if verify_after else "")
    )


def _reported(path: str | None) -> AbstractContextManager[Any]:
    """Return what writes dask's own report of all that happens within it."""
    if path is None:
        return nullcontext()
    from distributed import performance_report

    from ctlab_dask_zarr.errors import MissingExtraError

    if find_spec("bokeh") is None:
        raise MissingExtraError("--report needs bokeh: pip install 'ctlab-dask-zarr[report]'")
    report: AbstractContextManager[Any] = performance_report(filename=path)
    return report


def _check_source(dataset: Dataset, client: Any, stop: Stop) -> None:
    """Name every damaged block or shard of the source before anything is written."""
    from ctlab_dask_zarr.errors import IncompleteSourceError
    from ctlab_dask_zarr.execution.stopping import compute_until
    from ctlab_dask_zarr.formats.problems import describe_problems
    from ctlab_dask_zarr.verification.verify import prepare_source_check

    check = prepare_source_check(dataset)
    for note in check.notes:
        say(note, err=True)
    problems = check.problems + compute_until(
        check.graph,
        client,
        stop,
        reading="the source was being checked, and nothing is begun; give the same command again",
    )
    if problems:
        raise IncompleteSourceError(
            f"the source is damaged, and nothing was written:\n{describe_problems(problems)}"
        )


def _refuse_early(destination: str, *, overwrite: bool) -> None:
    """Find out that the destination is taken before a cluster is started for nothing."""
    from ctlab_dask_zarr.errors import DestinationExistsError
    from ctlab_dask_zarr.planning.resolve import resolve_destination
    from ctlab_dask_zarr.store.destination import Destination
    from ctlab_dask_zarr.store.occupied import occupied_problem, refuse_missing_folder

    place = Destination.at(resolve_destination(destination))
    refuse_missing_folder(place)
    problem = occupied_problem(place, overwrite=overwrite)
    if problem is not None:
        raise DestinationExistsError(problem)


def write_dataset(
    dataset: Dataset,
    destination: str,
    arguments: dict[str, Any],
    client: Any,
    quiet: bool,
    stop: Stop | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Write with progress on `client`; return what there is to tell about it."""
    from ctlab_dask_zarr.planning.resolve import WriteOptions
    from ctlab_dask_zarr.preparing import prepare_write
    from ctlab_dask_zarr.text import nbytes_text

    start_s = time.monotonic()
    write = prepare_write(
        dataset, destination, WriteOptions(**arguments), resume=resume, restart=restart, part=part
    )
    plan = write.plan
    assert plan is not None
    _refuse_what_does_not_fit(plan)
    result = run_with_progress(write, client, quiet, stop)
    return {
        "destination": plan.destination,
        "n_shards": len(write.remaining.tasks) + write.remaining.n_done,
        "n_resumed": write.remaining.n_done,
        "n_half_made": write.remaining.n_half_made,
        "n_objects": result.n_objects,
        "stored_nbytes": None if part is not None else result.nbytes,
        "nbytes": plan.nbytes,
        "nbytes_text": nbytes_text(plan.nbytes),
        "shape": list(plan.shape),
        "n_levels": len(plan.levels),
        "seconds": round(time.monotonic() - start_s, 3),
    }


def _refuse_what_does_not_fit(write_plan: WritePlan) -> None:
    """Refuse before the first byte what would have its workers killed after hours."""
    from ctlab_dask_zarr.errors import InvalidArgumentError
    from ctlab_dask_zarr.execution.scheduler import scheduler_resources
    from ctlab_dask_zarr.text import nbytes_text

    memory = scheduler_resources().thread_nbytes
    needed = write_plan.rechunk.peak_nbytes
    if memory is not None and needed > memory:
        raise InvalidArgumentError(
            f"a worker thread needs {nbytes_text(needed)} and has {nbytes_text(memory)}: use "
            "fewer --workers or --threads, a larger --memory-limit, or smaller --shards"
        )
