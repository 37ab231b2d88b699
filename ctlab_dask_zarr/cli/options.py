"""Options that commands share, and how they are passed to the Python API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.output import LOG_LEVEL, allow_many_files, exit_codes, say
from ctlab_dask_zarr.cli.parameters import (
    CODEC,
    CROP,
    DEADLINE,
    LAYOUT,
    LEVELS,
    NBYTES,
    PART,
    SHAPE,
    SHAPE_OR_NONE,
    VOXEL_SIZE,
    VOXEL_UNIT,
    WINDOW,
)
from ctlab_dask_zarr.errors import MissingExtraError
from ctlab_dask_zarr.text import install_text

if TYPE_CHECKING:
    from distributed import Client

    from ctlab_dask_zarr import Stop

Command = Callable[..., Any]
#: Options by the names of their values, which are those of the API's arguments.
Options = dict[str, Callable[[Command], Command]]


def option(name: str, help: str, **more: Any) -> Callable[[Command], Command]:
    """Return an option without a default: what is not given, the API decides."""
    # A default, be it None, would stand in for an option that has to be given.
    if more.get("is_flag") is None and not more.get("required"):
        more.setdefault("default", None)
    return click.option(*name.split(), help=help, **more)


SOURCE: Options = {
    "datatype": option(
        "--datatype", "mango data type, if the source has none or a wrong one."
    ),
    "dataset_id": option("--dataset-id", "Identifier; by default the source's own."),
    "voxel_size": option(
        "--voxel-size", "Instead of the source's: 2.5um, or z,y,x as in 3,2.5,2.5um.",
        type=VOXEL_SIZE,
    ),
    "yes": option(
        "--yes", "Take a voxel size ten times as large as the source's, or as small.",
        is_flag=True, default=None,
    ),
    "voxel_unit": option(
        "--voxel-unit", "Instead of the source's: mm, um, nm, ...", type=VOXEL_UNIT
    ),
    "level": option("--level", "Level of detail of a store, 0 the finest.", type=click.IntRange(0)),
    "crop": option("--crop", "A part of the source: 100:200,:,0:512 along z,y,x.", type=CROP),
    "bin": option("--bin", "Voxels so many times as large: 2, 4, 8, ...", type=click.IntRange(2)),
    "to": option(
        "--to", "Grey values in another type.", type=click.Choice(["uint8", "uint16", "float32"])
    ),
    "window": option(
        "--window", "With --to: percentiles to keep, 0.5:99.5.  [default: 0:100]", type=WINDOW
    ),
    "values": option("--values", "With --to: grey values to keep, 1000:30000.", type=WINDOW),
    "slices": option(
        "--slices", "A run of slices of TIFF: 100:900, by the numbers in the files' names."
    ),
    "pattern": option("--pattern", "Names of the slices in a folder of TIFF: 'slice_*.tif'."),
    "shape": option("--shape", "Of raw voxels without a header: z,y,x.", type=SHAPE),
    "dtype": option("--dtype", "Of raw voxels without a header: uint16, float32, ..."),
    "byte_order": option(
        "--byte-order", "Of raw voxels without a header.  [default: little]",
        type=click.Choice(["little", "big"]),
    ),
    "offset": option(
        "--offset", "Where raw voxels without a header begin, in bytes.", type=click.IntRange(0)
    ),
}  # fmt: skip
WRITE: Options = {
    "chunks": option(
        "--chunks", "Inner chunk: 32,32,32, a number of elements, or auto (32^3; 256^2 in 2-D).  "
        "[default: auto]", type=SHAPE,
    ),
    "shards": option(
        "--shards", "Shard: 512,512,512, a number of elements, auto (512^3; 8192^2 in 2-D), or "
        "none for no sharding. 0 spans an axis.  [default: auto]", type=SHAPE_OR_NONE,
    ),
    "input_aligned_chunks": option(
        "--input-aligned input_aligned_chunks", "Make each block of the source a shard.",
        is_flag=True,
    ),
    "codec": option(
        "--codec", "zstd[:LEVEL], blosc[:CNAME:CLEVEL:SHUFFLE], gzip[:LEVEL], lz4 or none; or "
        "auto, auto:small, auto:fast, chosen by measuring.  [default: zstd]", type=CODEC,
    ),
    **SOURCE,
    "layout": option(
        "--layout", "An OME-Zarr group, or a plain Zarr v3 array.  [default: ome]",
        type=LAYOUT,
    ),
    "ome_version": option(
        "--ome-version", "Version of OME-Zarr; few programs read 0.6.  [default: 0.5]",
        type=click.Choice(["0.5", "0.6"]),
    ),
    "scale_placement": option(
        "--scale-placement", "Where OME metadata holds the voxel size; mango's own files: "
        "multiscales.  [default: dataset]", type=click.Choice(["dataset", "multiscales"]),
    ),
    "levels": option(
        "--levels", "Levels of detail including the data itself; auto: down to a picture.  "
        "[default: 1]", type=LEVELS,
    ),
    "downsample": option(
        "--downsample", "How a level becomes the next one.  [default: by data type]",
        type=click.Choice(["mean", "mode", "nearest", "max"]),
    ),
    "overwrite": option(
        "--overwrite", "Replace a Zarr store at the destination, once the new one is complete.",
        is_flag=True,
    ),
    "drop_labels": option(
        "--drop-labels", "With --overwrite: the labels of what is replaced are lost.", is_flag=True
    ),
}  # fmt: skip
RESUME: Options = {
    "resume": option("--resume", "Continue an interrupted write.", is_flag=True),
    "restart": option(
        "--restart", "First remove what an interrupted write has left.", is_flag=True
    ),
    "part": option(
        "--part", "Write only this part, as 3/8, when N jobs share a write; `commit` publishes it.",
        type=PART,
    ),
}  # fmt: skip
DEADLINE_OPTION = option(
    "--deadline stop", "Stop in time, so that the work can be continued (exit code 75): 1h50m, or "
    "auto for what is left of the SLURM or PBS job.", type=DEADLINE,
)  # fmt: skip
MKDIR = option("--mkdir", "Make the folder of DESTINATION where it is missing.", is_flag=True)
QUIET = option("-q --quiet", "No progress.", is_flag=True)
JSON = option("--json as_json", "Print the result as JSON.", is_flag=True)


def _storage_options(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> None:
    if not values:
        return
    import dask

    wrong = [value for value in values if "=" not in value]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    options = dict(value.split("=", 1) for value in values)
    context.with_resource(dask.config.set({"ctlab-zarr.storage-options": options}))


def _follow_links(context: click.Context, parameter: click.Parameter, is_asked_for: bool) -> None:
    if is_asked_for:
        import dask

        context.with_resource(dask.config.set({"ctlab-zarr.follow-links": True}))


def _log_level(context: click.Context, parameter: click.Parameter, level: str | None) -> None:
    if level is not None:
        context.meta[LOG_LEVEL] = level


STORAGE = [
    option(
        "--storage-option", "Option of an object store, as endpoint=http://host:9000 or "
        "region=ap-southeast-2; credentials come from the environment.", metavar="KEY=VALUE",
        multiple=True, expose_value=False, callback=_storage_options,
    ),
    option(
        "--follow-links", "Follow links that lead out of a store that is read, as git-annex makes "
        "them.", is_flag=True, expose_value=False, callback=_follow_links,
    ),
]  # fmt: skip
#: Voxels of about a second of work, in bytes: workers take as long to start.
_FEW_NBYTES = 256 << 20
CLUSTER = [
    option(
        "-j --workers", "Worker processes.  [default: one for each allocated CPU]",
        type=click.IntRange(1),
    ),
    option("--threads", "Threads in each worker.  [default: 1]", type=click.IntRange(1)),
    option(
        "--memory-limit", "Memory of one worker, as 4GiB.  [default: its share of the allocation]",
        type=NBYTES,
    ),
    option(
        "--scheduler", "Use a running dask scheduler, as tcp://node1:8786.", metavar="ADDRESS"
    ),
    option(
        "--scheduler-file", "Use a running dask scheduler, by the file (.json) that it wrote.",
        type=click.Path(),
    ),
    option(
        "--cluster", "Start workers as a dask configuration says; cluster-configs/ has some.",
        metavar="FILE.yaml|local|slurm|pbs|mpi",
    ),
    option(
        "--jobs", "Number of jobs of --cluster; a lost job is replaced.  [default: 1]",
        type=click.IntRange(1),
    ),
    *STORAGE,
    option(
        "--log-level", "Show only messages as grave as this; --quiet leaves progress out.  "
        "[default: WARNING]",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        expose_value=False, callback=_log_level,
    ),
]  # fmt: skip


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Give a command several options, in their order."""

    def decorate(command: Command) -> Command:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate


def api_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a write that were given, as arguments of the API."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("drop_labels", False):
        if not given.get("overwrite"):
            raise click.UsageError("--drop-labels says what --overwrite does: give both")
        given["overwrite"] = "drop_labels"
    if given.get("shards") == "none":
        given["shards"] = None
    version = given.pop("ome_version", None)
    if given.pop("layout", "ome") == "plain":
        if version is not None:
            raise click.UsageError("a plain array is no OME-Zarr: leave --ome-version out")
        given["ome_zarr_version"] = None
    elif version is not None:
        from ctlab_dask_zarr import OMEZarrVersion

        given["ome_zarr_version"] = OMEZarrVersion(version)
    return given


def workers_of(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `CLUSTER` out of `options`, as arguments of `cluster_from_config`."""
    names = ("workers", "threads", "memory_limit", "scheduler", "scheduler_file", "cluster", "jobs")
    taken = {name: options.pop(name, None) for name in names}
    given = [f"--{name.replace('_', '-')}" for name in names if taken[name] is not None]
    running = [name for name in given if name.startswith("--scheduler")]
    if running and len(given) > 1:
        other = next(name for name in given if name != running[0])
        raise click.UsageError(
            f"{running[0]} uses the workers of a running scheduler: leave {other} out"
        )
    others = [name for name in given if name not in ("--cluster", "--jobs")]
    if taken["cluster"] is not None and others:
        raise click.UsageError(f"--cluster says what its workers are: leave {others[0]} out")
    if taken["cluster"] is None and taken["jobs"] is not None:
        raise click.UsageError("--jobs needs --cluster: say which one")
    file = taken["scheduler_file"] and os.path.abspath(taken["scheduler_file"])
    return {
        "config": taken["cluster"] or taken["scheduler"] or file,
        "jobs": taken["jobs"] or taken["workers"],
        "threads": taken["threads"],
        "memory_limit": taken["memory_limit"],
    }


@contextmanager
def running(
    options: dict[str, Any], stop: Stop | None = None, *, quiet: bool, report: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the API's arguments client, progress and stop, and turn errors into exit codes.

    Takes the options of `CLUSTER` out of `options`. The workers start when the client is first
    needed, and end with the context. `report` is a file for dask's own performance report.
    """
    from ctlab_dask_zarr import Stop

    allow_many_files()
    workers = workers_of(options)
    stop = stop or Stop()
    with exit_codes(), stop.on_signals(), ExitStack() as stack:
        if report is not None and find_spec("bokeh") is None:
            raise MissingExtraError(f"--report needs bokeh: {install_text('report')}")
        client = CommandClient(workers, stop, stack, quiet, report)
        yield {"client": client, "progress": not quiet, "stop": stop}


class CommandClient:
    """What a command computes on: workers that start when they are first asked for, or no others.

    It is called for the client, or for None where this process does the work.
    """

    def __init__(
        self, workers: dict[str, Any], stop: Stop, stack: ExitStack, quiet: bool, report: str | None
    ) -> None:
        self._workers, self._stop, self._stack = workers, stop, stack
        self._quiet, self._report = quiet, report
        self._is_here = False
        self._client: Client | None = None

    def expect(self, nbytes: int) -> None:
        """Have this process do the work where that takes less time than workers take to start.

        `nbytes` is the size of its voxels. Whoever says what the workers are gets them.
        """
        from ctlab_dask_zarr import settings_in_force

        found = {setting.name: setting.value for setting in settings_in_force()}
        wanted = [*self._workers.values(), self._report]
        wanted += [found["cluster"], found["workers"], found["memory-limit"], found["threads"] != 1]
        if nbytes > _FEW_NBYTES or self._client is not None or any(wanted):
            return
        import dask
        import dask.threaded

        # By its name, dask would import distributed to find it.
        in_threads = dask.config.set(scheduler=dask.threaded.get)
        self._stack.enter_context(in_threads)
        self._is_here = True

    def __call__(self) -> Client | None:
        """Return the client, whose workers start at the first call."""
        if self._client is None and not self._is_here:
            self._client = self._started()
        return self._client

    def _started(self) -> Client:
        from distributed import Client, performance_report

        from ctlab_dask_zarr import cluster_from_config

        enter = self._stack.enter_context
        client: Client = enter(Client(enter(cluster_from_config(**self._workers, stop=self._stop))))
        if not self._quiet:
            for line in _dashboard_lines(client):
                say(line, err=True)
        if self._report is not None:
            enter(performance_report(filename=self._report))
        return client


def _dashboard_lines(client: Client) -> Iterator[str]:
    """Yield where dask's dashboard is, and how to reach it where this is not one's own machine."""
    link = client.dashboard_link
    if find_spec("bokeh") is None or not link:
        return
    yield f"dashboard: {link}"
    host, _, port = link.partition("://")[2].partition("/")[0].rpartition(":")
    if any(os.environ.get(name) for name in ("SSH_CONNECTION", "SLURM_JOB_ID", "PBS_JOBID")):
        from getpass import getuser
        from socket import gethostname

        yield (
            f"  from your own machine: ssh -N -L 8787:{host}:{port} {getuser()}@{gethostname()}, "
            "then http://127.0.0.1:8787/status"
        )


def make_folder_of(destination: str) -> None:
    """Make the folder that will hold a store, and those above it."""
    if "://" not in destination:
        os.makedirs(os.path.dirname(os.path.abspath(destination)), exist_ok=True)
