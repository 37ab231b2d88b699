"""Write a dataset as files of other formats."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    in_force,
    refuse_resources,
    refuse_unwritable,
    reported,
    started,
)
from ctlab_dask_zarr.arguments import refuse_other_meanings, refuse_unknown
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.export.kind import Kind
from ctlab_dask_zarr.export.named import TIFF_ENDINGS, kind_named
from ctlab_dask_zarr.export.netcdf import NetCDFKind
from ctlab_dask_zarr.export.raw import RawKind
from ctlab_dask_zarr.export.run import prepare_export, run_export
from ctlab_dask_zarr.export.staged import ExportResult
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.netcdf_output import VOXELS_PER_FILE
from ctlab_dask_zarr.read.arrays import given_volume
from ctlab_dask_zarr.volume import Volume, as_volume

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ctlab_dask_zarr.formats.history import History


def dataset_to_netcdf(
    dataset: Volume,
    path: str | os.PathLike[str],
    datatype: DataType | str | None = None,
    dataset_id: str | None = None,
    max_file_size_mb: float | None = None,
    compression_level: int = 0,
    history: History | None = None,
    elements_per_file: int | None = VOXELS_PER_FILE,
    mango_compatible_slices_per_file_rounding: bool = True,
    compute: bool = True,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    **extra_attrs: Any,
) -> Delayed | None:
    """Write a dataset as mango netCDF, which the CTLab's own programs read: a file, or blocks.

    Nothing is visible at the path before every block is written. A failed or killed export leaves
    a hidden folder beside it, and what was there before as it was. A worker thread holds one or two
    blocks of the dask array, for a dataset that was opened slabs of about 128 MiB, and up to 64 MiB
    more where it compresses.

    The voxel size is in the order x, y, z, as mango has it; anu_ctlab_io writes and reads it in the
    order of the axes, so that it takes z for x if they differ. Unsigned voxels are stored as
    signed, and each block has the MD5 of its voxels, which `check_source` compares.

    Parameters
    ----------
    dataset
        What to write; three axes, z, y, x.
    path
        A name that ends in ``.nc`` for one file, or in ``_nc`` for a folder of blocks; ``.nc``
        becomes ``_nc`` where several files are needed, and without either the ending is added. It
        should begin with the data type, ``tomo_scan.nc``: mango and anu_ctlab_io take it from
        there.
    datatype
        The mango data type; by default the dataset's own, or the one with which the name begins.
        Its dtype has to be that of the dataset.
    dataset_id
        The identifier. By default the dataset's own, or if it has none, one made from the local
        time and the data type.
    max_file_size_mb
        How many MiB of voxels a file holds at most; by default `elements_per_file` decides.
    compression_level
        Of gzip, from 1 to 9; 0 stores voxels as they are, which all programs read fastest.
    history
        Entries to add to those of the dataset; an entry replaces one with the same key.
    elements_per_file
        About how many voxels a file holds; None for all.
    mango_compatible_slices_per_file_rounding
        Whether the number of slices of a file is rounded down as mango does it, to a number
        without prime factors above 5.
    compute
        False returns a `dask.delayed.Delayed`; computing it writes the files.
    overwrite
        Replace blocks, or a file, that are there, at the moment when the new ones are complete.
    resume
        Go on with an interrupted export of the same dataset, from the blocks that are complete.
    restart
        First remove what an interrupted export has left.
    client, progress, stop
        As in `dataset_to_zarr`; progress counts files.
    **extra_attrs
        Further attributes of the files. Names that are parameters elsewhere are refused.

    Raises
    ------
    InvalidArgumentError
        Something is wrong with the arguments, or mango has no such data; nothing was touched.
    DestinationExistsError, StagingExistsError
        Something is at the path, or an interrupted export beside it; it was not touched.
    WriteFailedError, WriteStoppedError
        A task failed, or `stop` ended the export; what was at the path is as it was.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_from_netcdf, dataset_to_netcdf
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(3.0, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_netcdf(ds, folder + "/tomo_nc", elements_per_file=100_000)
    ...     dataset_from_netcdf(folder + "/tomo_nc")
    <Dataset tomo (z: 40, y: 65, x: 97) uint16, voxel 3 x 2.5 x 2.5 um>
    """
    given = locals()
    refuse_other_meanings(extra_attrs, given.keys() - {"dataset", "path", "extra_attrs"})
    volume = _to_export(dataset)
    kind, place = NetCDFKind.of(
        volume,
        os.fspath(path),
        datatype,
        dataset_id=dataset_id,
        history=history,
        extra_attrs=extra_attrs,
        max_file_size_mb=max_file_size_mb,
        n_elements=elements_per_file,
        rounds=mango_compatible_slices_per_file_rounding,
        level=compression_level,
    )
    volume = Volume.from_modified(volume, datatype=kind.datatype)
    found = export_as(kind, volume, place, compute, given)
    return None if isinstance(found, ExportResult) else found


def dataset_to_raw(
    dataset: Volume,
    path: str | os.PathLike[str],
    compute: bool = True,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    client: Executor = None,
    progress: ProgressSink = None,
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
    volume = _to_export(dataset)
    kind = RawKind(volume.shape, volume.dtype)
    found = export_as(kind, volume, path, compute, locals())
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
    progress: ProgressSink = None,
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
    volume = _to_export(dataset)
    text = os.fspath(path)
    is_file = text.lower().endswith(TIFF_ENDINGS)
    kind, place = kind_named(volume, text if is_file else f"{text}/")
    found = export_as(kind, volume, place, compute, locals())
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
    progress: ProgressSink = None,
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
        ``tomo.nc`` and ``tomo_nc`` are mango netCDF (`dataset_to_netcdf`).
    compression_level
        Of gzip, 1 to 9, for HDF5 and mango netCDF; 0 does not compress. HDF5
        needs twice its space until the compressed chunks, of whole slices, are put together.
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
    found = _export_named(dataset, path, compression_level, True, locals())
    assert isinstance(found, ExportResult)
    return found


def export_to_path(
    dataset: Volume, path: str | os.PathLike[str], compute: bool, options: dict[str, Any]
) -> Delayed | None:
    """Do what `export_dataset` does with these options, or return the graph that does."""
    refuse_unknown(export_dataset, options, "Dataset.to_path of files")
    parameters = inspect.signature(export_dataset).parameters.values()
    given = {p.name: p.default for p in parameters} | options
    found = _export_named(dataset, path, given["compression_level"], compute, given)
    return None if isinstance(found, ExportResult) else found


def _export_named(
    dataset: Volume,
    path: str | os.PathLike[str],
    compression_level: int,
    compute: bool,
    given: dict[str, Any],
) -> Delayed | ExportResult:
    volume = _to_export(dataset)
    if compression_level not in range(10):
        raise InvalidArgumentError(f"compression_level={compression_level!r} is none of 0 to 9")
    kind, place = kind_named(volume, path, compression_level)
    return export_as(kind, volume, place, compute, given)


def _to_export(dataset: Volume) -> Volume:
    """Return a dataset as a record, if its voxels can be written."""
    volume = as_volume(given_volume(dataset, "dataset"))
    refuse_unwritable(volume)
    return volume


def export_as(
    kind: Kind,
    volume: Volume,
    path: str | os.PathLike[str],
    compute: bool,
    given: dict[str, Any],
) -> Delayed | ExportResult:
    """Export a volume, or return the graph that does; `given` has the arguments of all exports."""
    with reported(given["progress"] if compute else False, noun="files"):
        client = started(given["client"])
        with in_force(client) as resources:
            prepared = prepare_export(
                volume, path, kind, resources,
                **{name: given[name] for name in ("overwrite", "resume", "restart")},
            )  # fmt: skip
            if not compute:
                return prepared.graph
        running = refuse_resources(client)
        with reported(given["progress"], running, "files") as tell:
            return run_export(prepared, running, tell, given["stop"])
