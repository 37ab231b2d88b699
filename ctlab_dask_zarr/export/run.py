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
from ctlab_dask_zarr.execution.stopping import Stop, compute_until
from ctlab_dask_zarr.export.graph import Blocks, build_graph
from ctlab_dask_zarr.export.kind import FlatKind, Kind
from ctlab_dask_zarr.export.staged import ExportRequest, ExportResult
from ctlab_dask_zarr.planning.identity import source_identity
from ctlab_dask_zarr.planning.occupied import refuse_place
from ctlab_dask_zarr.planning.resolve import refuse_contradictions
from ctlab_dask_zarr.read.files import slab_blocks
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.source_array import SourceArray
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.store.shared_folder import SharedFolder
from ctlab_dask_zarr.write.run import compute_here

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.execution.graphs import SourceGraph
    from ctlab_dask_zarr.planning.rechunk import Resources
    from ctlab_dask_zarr.volume import Volume

#: A slab of whole slices that is read again and again is made of at most so many bytes; of a
#: source whose units of decoding would take more, blocks are read as they are.
_MAX_SLAB_NBYTES = 1 << 30
#: About the size of a slab of a volume that was opened.
_SLAB_NBYTES = 128 << 20


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

    `volume` is one that can be written (`analysed_source` has accepted it).
    """
    folder, name = os.path.split(local_path(path))
    # The staging folder is beside the files themselves, not beside a link to their folder.
    destination = Destination.at(os.path.join(os.path.realpath(folder), name))
    refuse_contradictions(resume, restart)
    refuse_place(destination, volume.source)
    source = slabs_of(volume)
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


def slabs_of(volume: Volume) -> SourceGraph:
    """Return the graph of a volume; what was opened, or a part of it, is read in whole slices."""
    data, source = volume.data, volume.source
    region = (source, (slice(None),) * data.ndim) if source is not None else None
    if isinstance(data, SourceArray):
        region = data.region
    if region is None or data.ndim < 2:
        return analyse_source(data)
    source, index = region
    axis = next(n for n, part in enumerate(index) if isinstance(part, slice))
    # Of all axes that are stored, these are the last ones.
    chunks: Any = source.facts().get("chunks")
    unit = int(chunks[len(chunks) - len(index) + axis]) if chunks else max(data.chunks[0])
    height = slab_blocks(data.shape, data.dtype.itemsize, unit, _SLAB_NBYTES)[0][0]
    is_small = height * data.nbytes // data.shape[0] <= _MAX_SLAB_NBYTES
    if is_small or all(len(lengths) == 1 for lengths in data.chunks[1:]):
        blocks = tuple(height if n == axis else -1 for n in range(len(index)))
        data = lazy_array(source, "slabs", blocks, {})[index]
    return analyse_source(data)


def run_export(
    prepared: PreparedExport,
    client: Any = None,
    tell: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
) -> ExportResult:
    """Compute a prepared export and wait for its end."""
    running = client or current_client()
    destination = prepared.request.destination
    result: ExportResult
    with (
        waiting_for(prepared.graph, running),
        counted(prepared.graph, prepared.total, running, tell=tell, stop=stop),
    ):
        try:
            if running is None:
                result = compute_here(prepared.graph, stop)
                return result
            with SharedFolder(running, os.path.dirname(destination.staging)) as shared:
                shared.check()
                result = compute_until(prepared.graph, running, stop, shared=shared)
                return result
        except WriteStoppedError:
            raise
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
