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
from ctlab_dask_zarr.export.named import TIFF_ENDINGS, kind_named
from ctlab_dask_zarr.export.raw import RawKind
from ctlab_dask_zarr.export.run import prepare_export, run_export
from ctlab_dask_zarr.export.staged import ExportResult
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
    found = export_as(kind, dataset, path, compute, locals())
    return None if isinstance(found, ExportResult) else found


def dataset_to_tiff(
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
    """Write TIFF, uncompressed: a folder with a file for each slice, or one file of all slices.

    ImageJ finds size and unit of the voxels in it. One file of more than 4 GiB is a BigTIFF, which
    Fiji opens by Bio-Formats; size and unit are then those of OME-XML.

    Parameters
    ----------
    dataset
        What to write: integers of 8, 16 or 32 bits, or floats of 32 or 64. ImageJ makes floats of
        32 bits of integers of 32 bits and of floats of 64.
    path
        One file if it ends in ``.tif`` or ``.tiff``, described as OME-TIFF if in ``.ome.tif``. Else
        a folder, which gets ``slice_0000.tif`` and so on.
    compute, overwrite, resume, restart, client, progress, stop
        As in `dataset_to_raw`. A folder is replaced only if it holds nothing but such slices.

    Raises
    ------
    MissingExtraError
        tifffile is not installed: the extra ``tiff``.
    InvalidArgumentError, DestinationExistsError, StagingExistsError, WriteFailedError,
    WriteStoppedError
        As in `dataset_to_raw`.

    Examples
    --------
    >>> import dask.array as da, os, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_tiff
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_tiff(ds, folder + "/slices")
    ...     sorted(os.listdir(folder + "/slices"))[-1]
    'slice_0039.tif'
    """
    analysed_source(dataset)
    text = os.fspath(path)
    is_file = text.lower().endswith(TIFF_ENDINGS)
    kind, place = kind_named(dataset, text if is_file else f"{text}/")
    found = export_as(kind, dataset, place, compute, locals())
    return None if isinstance(found, ExportResult) else found


def export_dataset(
    dataset: Volume,
    path: str | os.PathLike[str],
    *,
    compression_level: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    client: Executor = None,
    progress: ProgressSink = False,
    stop: Stop | None = None,
) -> ExportResult:
    """Write a dataset as files of another format, and tell what was written.

    Parameters
    ----------
    dataset
        What to write.
    path
        Its name says the format. ``slices/``, with a slash at its end, is a folder of TIFF, and
        ``scan.tif`` one file (`dataset_to_tiff`). ``scan.nhdr`` is ``scan.raw`` with a header of
        NRRD beside it, and ``scan.raw`` has no header (`dataset_to_raw`). ``scan.h5``,
        ``scan.hdf5`` and ``scan.nxs`` are HDF5, with the array ``/entry/data/data`` and the
        positions of its axes as NeXus has them (NXdata), and an attribute ``element_size_um``.
    compression_level
        Of gzip, 1 to 9, for HDF5; 0 does not compress. Compressed chunks, of whole slices, need
        twice their space until they are put together.
    overwrite, resume, restart, client, progress, stop
        As in `dataset_to_raw`.

    Raises
    ------
    MissingExtraError
        A package is needed that is not installed.
    InvalidArgumentError, DestinationExistsError, StagingExistsError, WriteFailedError,
    WriteStoppedError
        As in `dataset_to_raw`.

    Examples
    --------
    >>> import dask.array as da, os, tempfile
    >>> from ctlab_dask_zarr import Dataset, export_dataset
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_dataset(ds, folder + "/scan.nhdr").n_files
    ...     Dataset.from_path(folder + "/scan.nhdr").voxel_size
    2
    (2.5, 2.5, 2.5)
    """
    analysed_source(dataset)
    if compression_level not in range(10):
        raise InvalidArgumentError(f"compression_level={compression_level!r} is none of 0 to 9")
    kind, place = kind_named(dataset, path, compression_level)
    found = export_as(kind, dataset, place, True, locals())
    assert isinstance(found, ExportResult)
    return found


def export_as(
    kind: Kind,
    dataset: Volume,
    path: str | os.PathLike[str],
    compute: bool,
    given: dict[str, Any],
) -> Delayed | ExportResult:
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
        return run_export(prepared, client, tell, given["stop"])
