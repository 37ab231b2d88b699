"""What public functions have in common: prepare a write, find a client, show progress."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from dask.base import is_dask_collection

from ctlab_dask_zarr.api.choosing import plan_with_codec
from ctlab_dask_zarr.arguments import parameters_of, refuse_other_meanings
from ctlab_dask_zarr.errors import DestinationExistsError, InvalidArgumentError
from ctlab_dask_zarr.execution.graphs import SourceGraph, analyse_source
from ctlab_dask_zarr.execution.progress import Progress
from ctlab_dask_zarr.execution.scheduler import scheduler_resources
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.planning.codec import OF_CODECS
from ctlab_dask_zarr.planning.occupied import occupied_problem, refuse_missing_folder
from ctlab_dask_zarr.planning.plan import Overwrite, WritePlan
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.planning.resolve import (
    WriteOptions,
    plan_write,
    refuse_contradictions,
    resolve_destination,
)
from ctlab_dask_zarr.read.arrays import given_volume
from ctlab_dask_zarr.read.source import open_to_compare
from ctlab_dask_zarr.settings import setting
from ctlab_dask_zarr.views.progress import ProgressDisplay, outlet_for
from ctlab_dask_zarr.waits import current_watcher, logger, watched_by
from ctlab_dask_zarr.write.prepared import PreparedWrite, prepare
from ctlab_dask_zarr.write.run import run
from ctlab_dask_zarr.write.staging.commit import CommitResult

if TYPE_CHECKING:
    from distributed import Client

    from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.volume import Volume

P = ParamSpec("P")
T = TypeVar("T")
#: A client; a function that returns one, or None, when it is needed; for plans the size of workers.
Executor: TypeAlias = "Client | Callable[[], Client | None] | Resources | None"
#: None shows a bar in notebooks only, True everywhere; a function is called with the progress.
ProgressSink: TypeAlias = bool | Callable[[Progress], None] | None


@dataclass(frozen=True)
class RunOptions:
    """The arguments of `dataset_to_zarr` that say how a write is run."""

    resume: bool
    restart: bool
    part: tuple[int, int] | None
    storage_options: Mapping[str, Any] | None
    client: Executor
    progress: ProgressSink
    stop: Stop | None


def bound(record: Callable[..., T], given: Mapping[str, Any]) -> T:
    """Make a record of those arguments of a public function that the record has."""
    return record(**{name: given[name] for name in parameters_of(record) if name in given})


def bound_write(given: Mapping[str, Any]) -> tuple[Any, WriteOptions, RunOptions]:
    """Return the arguments of `dataset_to_zarr`: the dataset, as what it is written, and how."""
    dataset = given_volume(given["dataset"], "dataset")
    ignored = [name for name in ("chunk_size_mb", "max_shard_size_mb") if given[name] is not None]
    if ignored:
        warnings.warn(
            f"{', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored when writing "
            "Zarr. Use chunks/shards or 'auto' instead.",
            UserWarning,
            stacklevel=3,
        )
    refuse_other_meanings(given["extra_attrs"], given.keys() - {"dataset", "path", "extra_attrs"})
    return dataset, bound(WriteOptions, given), bound(RunOptions, given)


def takes_arguments_of(
    model: Callable[P, Any], without: str = ""
) -> Callable[[Callable[[Volume, str, WriteOptions, RunOptions], T]], Callable[P, T]]:
    """Give a function of a dataset, a path and options the signature of `dataset_to_zarr`."""
    signature = inspect.signature(model)
    parameters = [p for p in signature.parameters.values() if p.name != without]

    def decorate(function: Callable[[Volume, str, WriteOptions, RunOptions], T]) -> Callable[P, T]:
        returned = inspect.signature(function).return_annotation
        own = signature.replace(parameters=parameters, return_annotation=returned)

        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            given = own.bind(*args, **kwargs)
            given.apply_defaults()
            dataset, options, how = bound_write(given.arguments)
            return function(dataset, given.arguments["path"], options, how)

        names = ("__module__", "__name__", "__qualname__", "__doc__")
        update_wrapper(called, function, assigned=names)
        called.__signature__ = own  # type: ignore[attr-defined]
        return called

    return decorate


def plan_dataset(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    source: SourceGraph | None = None,
    *,
    levels: Sequence[Level] | None = None,
    resources: Resources | None = None,
    n_jobs: int = 1,
    goes_on: bool = False,
    finish: Callable[[WritePlan], WritePlan] | None = None,
) -> WritePlan:
    """Plan a write; nothing is touched.

    Pass `source` if the graph of the dataset is known already, and `levels` where `options` do not
    say them. `resources` are by default those of the scheduler in force, for each of the `n_jobs`
    that share the write. `goes_on` says whether it may be a write that has begun, and `finish`
    makes the plan of something else, as of labels, out of that of an image.
    """
    source = analysed_source(dataset) if source is None else source

    def planned(options: WriteOptions) -> WritePlan:
        found = plan_write(
            dataset,
            path,
            options,
            block_lengths=source.chunks,
            independent=source.is_independent,
            resources=scheduler_resources() if resources is None else resources,
            now=datetime.now(),
            levels=levels,
            n_jobs=n_jobs,
        )
        return found if finish is None else finish(found)

    return plan_with_codec(planned, _with_settings(options), source, goes_on=goes_on)


def prepare_write(
    dataset: Volume,
    path: str | os.PathLike[str],
    options: WriteOptions,
    *,
    resume: bool = False,
    restart: bool = False,
    part: tuple[int, int] | None = None,
    resources: Resources | None = None,
) -> PreparedWrite:
    """Plan a write and prepare it; nothing is touched."""
    refuse_contradictions(resume, restart, part)
    source = analysed_source(dataset)
    n_jobs = part[1] if part else 1
    write_plan = plan_dataset(
        dataset, path, options, source, resources=resources, n_jobs=n_jobs,
        goes_on=resume or part is not None,
    )  # fmt: skip
    return prepare(write_plan, source, resume=resume, restart=restart, part=part)


def _with_settings(options: WriteOptions) -> WriteOptions:
    """Return the options; dask's configuration fills in what was left open."""
    found: dict[str, Any] = {}
    for name in ("chunks", "shards"):
        if getattr(options, name) == "auto" and not options.input_aligned_chunks:
            value = setting(name)
            found[name] = tuple(value) if isinstance(value, list) else value
    if found.get("shards") == "none":
        found["shards"] = None
    if options.codec is None and not OF_CODECS.intersection(options.create_array_kwargs or ()):
        found["codec"] = str(setting("codec"))
    if options.levels is None:
        found["levels"] = setting("levels")
    if options.scale_placement is None:
        found["scale_placement"] = setting("scale-placement")
    return replace(options, **found)


def analysed_source(dataset: Volume) -> SourceGraph:
    """Return the graph of a dataset's voxels, or raise if it cannot be written."""
    refuse_unwritable(dataset)
    return analyse_source(dataset.data)


def refuse_unwritable(dataset: Volume) -> None:
    """Raise if a dataset's voxels cannot be written."""
    data: Any = dataset.data
    if not is_dask_collection(data) or not hasattr(data, "chunks"):
        raise InvalidArgumentError(
            f"dataset.data is a {type(data).__name__}; it has to be a dask array, as "
            "dask.array.from_array makes one"
        )
    if any(np.isnan(n) for n in data.shape):
        raise InvalidArgumentError(
            "the dask array has axes of unknown length: call its compute_chunk_sizes() first"
        )
    if 0 in data.shape:
        raise InvalidArgumentError(f"the array {data.shape} has an axis without elements")


def started(client: Executor) -> Client | Resources | None:
    """Return the client to run on: a function is called, which may start it."""
    return client() if callable(client) else client


class Starting:
    """A client that is started where what it offers is first asked for, if at all."""

    def __init__(self, client: Executor) -> None:
        self._asked_for = client
        self.client: Client | Resources | None = None

    def start(self) -> None:
        """Start the client."""
        self.client = started(self._asked_for)

    def resources(self) -> Resources:
        """Start the client, and return what its workers have to offer."""
        self.start()
        with in_force(self.client) as found:
            return found


def source_to_compare(source: Any) -> Any:
    """Return what a store is compared with, opened where it is a path; None for nothing."""
    if isinstance(source, str | os.PathLike):
        return open_to_compare(source)
    return source if source is None else given_volume(source, "source")


@contextmanager
def in_force(client: Client | Resources | None) -> Iterator[Resources]:
    """Make a client the one that dask uses, and yield what its workers have to offer."""
    if isinstance(client, Resources):
        yield client
        return
    with ExitStack() as stack:
        if client is not None:
            stack.enter_context(client.as_current())
        yield scheduler_resources()


def refuse_resources(client: Client | Resources | None) -> Client | None:
    """Return a client that can compute, or raise for the size of one."""
    if isinstance(client, Resources):
        raise InvalidArgumentError(f"client={client}: a size of workers is enough for plans only")
    return client


def run_reported(
    prepared: PreparedWrite,
    client: Client | Resources | None,
    progress: ProgressSink,
    stop: Stop | None,
) -> CommitResult:
    """Run a prepared write on a client, or on the scheduler in force, and show its progress."""
    running = refuse_resources(client)
    with reported(progress, running) as tell:
        return run(prepared, client=running, progress=tell, stop=stop)


@contextmanager
def reported(
    progress: ProgressSink, client: Client | None = None, noun: str = "shards"
) -> Iterator[Callable[[Progress], None] | None]:
    """Yield the function that is told of progress; None if nobody asked for it.

    Within another one, as where a public function starts its workers before it runs, that one's
    display goes on. `client` computes, and `noun` is what its tasks make.
    """
    display = current_watcher()
    with ExitStack() as stack:
        if not isinstance(display, ProgressDisplay):
            if callable(progress):
                yield progress
                return
            outlet = outlet_for(progress)
            if outlet is None and not logger.isEnabledFor(logging.INFO):
                yield None
                return
            display = stack.enter_context(ProgressDisplay(outlet))
            stack.enter_context(watched_by(display))
        display.noun = noun
        if client is not None:
            display.count_workers = lambda: len(client.scheduler_info(-1)["workers"])
        yield display.tell


def refuse_taken(path: str | os.PathLike[str], *, overwrite: Overwrite) -> None:
    """Raise where nothing can be written, before workers are started for nothing."""
    place = resolve_destination(path)
    refuse_missing_folder(place)
    problem = occupied_problem(place, overwrite=overwrite)
    if problem is not None:
        raise DestinationExistsError(problem)


def refuse_too_little_memory(plan: WritePlan) -> None:
    """Raise before the first byte if the workers it was planned for would be killed after hours."""
    if plan.memory_problem is not None:
        raise InvalidArgumentError(plan.memory_problem)
