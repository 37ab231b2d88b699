"""Write a dataset as files of other formats."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    analysed_source,
    in_force,
    reported,
    started,
)
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.export.kind import Kind
from ctlab_dask_zarr.export.raw import RawKind
from ctlab_dask_zarr.export.run import prepare_export, run_export
from ctlab_dask_zarr.planning.rechunk import Resources

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.volume import Volume


def dataset_to_raw(
    dataset: Volume,
    path: str | os.PathLike[str],
    compute: bool = True,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    client: Executor = None,
    progress: ProgressSink = False,
    stop: Stop | None = None,
) -> Delayed | None:
    """Write the voxels alone, in C order and little-endian, in one file without a header.

    Nothing is visible at the path before every voxel is written. A failed or killed export leaves
    a hidden folder beside it, and what was there before as it was. A worker thread holds one or two
    blocks, which for a dataset that was opened are slabs of about 128 MiB.

    Parameters
    ----------
    dataset
        What to write; its dtype is kept.
    path
        The file to make.
    compute
        False returns a `dask.delayed.Delayed`; computing it writes the file.
    overwrite
        Replace a file that is there, at the moment when the new one is complete.
    resume
        Go on with an interrupted export of the same dataset.
    restart
        First remove what an interrupted export has left.
    client, progress, stop
        As in `dataset_to_zarr`; progress counts files.

    Raises
    ------
    InvalidArgumentError
        Something is wrong with the arguments; nothing was touched.
    DestinationExistsError, StagingExistsError
        Something is at the path, or an interrupted export beside it; it was not touched.
    WriteFailedError, WriteStoppedError
        A task failed, or `stop` ended the export; what was at the path is as it was.

    Examples
    --------
    >>> import dask.array as da, os, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_raw
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_raw(ds, folder + "/scan.raw")
    ...     os.path.getsize(folder + "/scan.raw")
    504400
    """
    analysed_source(dataset)
    kind = RawKind(tuple(dataset.data.shape), dataset.data.dtype)
    return export_as(kind, dataset, path, compute, locals())


def export_as(
    kind: Kind,
    dataset: Volume,
    path: str | os.PathLike[str],
    compute: bool,
    given: dict[str, Any],
) -> Delayed | None:
    """Export a dataset, or return the graph that does; `given` has the arguments of all exports."""
    client = started(given["client"])
    with in_force(client) as resources:
        prepared = prepare_export(
            dataset, path, kind, resources,
            **{name: given[name] for name in ("overwrite", "resume", "restart")},
        )  # fmt: skip
        if not compute:
            return prepared.graph
    if isinstance(client, Resources):
        raise InvalidArgumentError(f"client={client}: a size of workers is enough for plans only")
    with reported(given["progress"], client, "files") as tell:
        run_export(prepared, client, tell, given["stop"])
    return None
