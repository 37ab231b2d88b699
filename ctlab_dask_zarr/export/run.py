"""Prepare an export, and run it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.errors import CTLabError, WriteFailedError, WriteStoppedError
from ctlab_dask_zarr.execution.allocation import files_problem
from ctlab_dask_zarr.execution.graphs import analyse_source
from ctlab_dask_zarr.execution.progress import Progress, counted
from ctlab_dask_zarr.execution.scheduler import current_client, waiting_for
from ctlab_dask_zarr.execution.stopping import MORE_TIME, Stop, compute_until
from ctlab_dask_zarr.export.graph import Blocks, build_graph
from ctlab_dask_zarr.export.kind import FlatKind, Kind
from ctlab_dask_zarr.export.staged import ExportRequest, ExportResult, result_of
from ctlab_dask_zarr.planning.identity import source_identity
from ctlab_dask_zarr.planning.occupied import refuse_place
from ctlab_dask_zarr.planning.resolve import refuse_contradictions
from ctlab_dask_zarr.read.source import in_slabs
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.store.shared_folder import SharedFolder
from ctlab_dask_zarr.text import nbytes_text
from ctlab_dask_zarr.write.run import compute_here

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.planning.rechunk import Resources
    from ctlab_dask_zarr.volume import Volume


@dataclass(frozen=True)
class PreparedExport:
    """An export that is ready to run."""

    graph: Delayed
    request: ExportRequest
    total: Progress


def prepare_export(
    volume: Volume,
    path: str | os.PathLike[str],
    kind: Kind,
    resources: Resources,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
) -> PreparedExport:
    """Look at what is there, and build the graph of an export; nothing is touched.

    `volume` is one that can be written (`refuse_unwritable` has accepted it).
    """
    folder, name = os.path.split(local_path(path))
    # The staging folder is beside the files themselves, not beside a link to their folder.
    destination = Destination.at(os.path.join(os.path.realpath(folder), name))
    refuse_contradictions(resume, restart)
    refuse_place(destination, volume.source)
    source = analyse_source(in_slabs(volume).data)
    blocks = Blocks.of(volume, source)
    settings = {"shape": list(volume.shape), "dtype": str(blocks.dtype), **kind.settings()}
    if not blocks.are_slabs or isinstance(kind, FlatKind):
        # Blocks have marks.
        settings["blocks"] = [list(lengths) for lengths in source.chunks]
    request = ExportRequest(
        destination, kind, source_identity(volume).fields, settings, uuid.uuid4().hex,
        overwrite=overwrite, resume=resume, restart=restart,
    )  # fmt: skip
    request.refuse()
    graph = build_graph(request, blocks, resources.n_threads)
    total = Progress(len(kind.files()), int(volume.data.nbytes), 0)
    return PreparedExport(graph, request, total)


def run_export(
    prepared: PreparedExport,
    client: Any = None,
    tell: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
) -> ExportResult:
    """Compute a prepared export and wait for its end."""
    running = client or current_client()
    destination = prepared.request.destination
    before = _found_at(destination)
    result: ExportResult
    with (
        waiting_for(prepared.graph, running),
        counted(prepared.graph, prepared.total, running, tell=tell, stop=stop) as told,
    ):
        try:
            if running is None:
                result = compute_here(prepared.graph, stop)
                return result
            with SharedFolder(running, os.path.dirname(destination.staging)) as shared:
                shared.check()
                result = compute_until(prepared.graph, running, stop, shared=shared)
                return result
        except WriteStoppedError as error:
            if not destination.staged_plan() and _found_at(destination) not in (None, before):
                # The commit was what was finished last.
                return result_of(prepared.request)
            raise error if stop is None else _stopped(prepared, stop, told()) from error
        except Exception as error:
            if isinstance(error, CTLabError):
                raise
            problem = files_problem(error)
            raise WriteFailedError(
                f"writing {destination.path} failed: {type(error).__name__}: {error}"
                f"{f' ({problem})' if problem else ''}. The destination is as it was; the files "
                f"written so far are in {destination.staging}. Go on by resume=True (--resume), or "
                "start anew by restart=True (--restart)"
            ) from error


def _found_at(destination: Destination) -> tuple[int, float] | None:
    """Return size and time of what is at a destination; None for nothing."""
    files, path = destination.files, destination.path
    return None if files.kind(path) is None else files.stat(path)


def _stopped(prepared: PreparedExport, stop: Stop, told: Progress) -> CTLabError:
    """Return the error after a stop: it can go on, unless it would get no further another time."""
    path = prepared.request.destination.path
    why = f"stopped ({stop.reason()}): "
    if stop.is_futile():
        # Not the exit code of a stop: job scripts would repeat it for ever.
        return WriteFailedError(
            f"{why}no file of {path} was finished in the {stop.time_spent()} that there were. With "
            f"as much time it would get no further: give it {MORE_TIME} or more workers"
        )
    return WriteStoppedError(
        f"{why}about {nbytes_text(told.nbytes_done)} of {nbytes_text(told.nbytes)} are written, "
        f"and {path} is as it was; go on by resume=True (--resume)"
    )
