"""Which kind of output a name stands for."""

from __future__ import annotations

import os

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.export.hdf5 import CompressedHDF5Kind, HDF5Kind
from ctlab_dask_zarr.export.kind import Kind
from ctlab_dask_zarr.export.netcdf import NetCDFKind
from ctlab_dask_zarr.export.nrrd import NrrdKind
from ctlab_dask_zarr.export.raw import RawKind
from ctlab_dask_zarr.export.tiff import TiffSlicesKind, TiffStackKind
from ctlab_dask_zarr.volume import Volume, as_volume

TIFF_ENDINGS = (".tif", ".tiff")
_NETCDF_ENDINGS = (".nc", "_nc")
_HDF5_ENDINGS = (".h5", ".hdf5", ".nxs")
_HEADER_ENDING = ".nhdr"
#: Of names that stand for a kind, besides those of mango netCDF and raw voxels alone.
_ENDINGS = ("/", *TIFF_ENDINGS, *_HDF5_ENDINGS, _HEADER_ENDING)
#: Names for messages, and what they stand for.
_EXAMPLES = {
    "slices/": "a folder of TIFF, a file for each slice",
    "scan.tif": "one TIFF",
    "scan.ome.tif": "one OME-TIFF",
    "scan.nhdr": "raw voxels with a header of NRRD beside them",
    "scan.raw": "raw voxels without a header",
    "scan.h5": "HDF5 (NeXus)",
    "tomo_nc": "mango netCDF in blocks",
    "tomo.nc": "mango netCDF",
}


def kind_named(
    volume: Volume, path: str | os.PathLike[str], compression_level: int = 0
) -> tuple[Kind, str]:
    """Return the kind that a name stands for, and the path of its voxels.

    Raises
    ------
    InvalidArgumentError
        No kind has such a name, or it cannot hold these voxels, or not compressed.
    """
    text = os.fspath(path)
    name = text.lower()
    if compression_level and not name.rstrip("/").endswith(_HDF5_ENDINGS + _NETCDF_ENDINGS):
        raise InvalidArgumentError(
            f"{text} would not be compressed: compression_level={compression_level} is for "
            "HDF5 and netCDF"
        )
    folder = name.rstrip("/")
    if name.endswith("/") and not folder.endswith(("_nc", ".zarr")):
        return TiffSlicesKind.of(volume), text.rstrip("/")
    if name.endswith(TIFF_ENDINGS):
        is_ome = os.path.splitext(name)[0].endswith(".ome")
        return TiffStackKind.of(volume, ome=is_ome), text
    if folder.endswith(_NETCDF_ENDINGS):
        return NetCDFKind.of(volume, text, level=compression_level)
    if name.endswith(_HDF5_ENDINGS):
        level = compression_level
        return CompressedHDF5Kind.of(volume, level) if level else HDF5Kind.of(volume), text
    if name.endswith(_HEADER_ENDING):
        data = f"{text[: -len(_HEADER_ENDING)]}.raw"
        return NrrdKind.of(volume, os.path.basename(text), os.path.basename(data)), data
    if name.endswith(".raw"):
        return RawKind(volume.shape, volume.dtype), text
    names = "; ".join(f"{name} is {what}" for name, what in _EXAMPLES.items())
    zarr = "; a Zarr store is written by `convert` and dataset_to_zarr" * (".zarr" in name)
    raise InvalidArgumentError(f"{text!r} is a name of no kind of output: {names}{zarr}")


def filetype_of(path: str | os.PathLike[str], filetype: str, dataset: Volume) -> str:
    """Return the format to write, by its name or that of the path."""
    name = os.path.basename(os.fspath(path).rstrip("/"))
    if filetype.lower() in ("zarr", "netcdf", "raw"):
        return filetype.lower()
    ends = {".zarr": "zarr", ".nc": "netcdf", "_nc": "netcdf", ".raw": "raw"}
    found = next((kind for end, kind in ends.items() if name.endswith(end)), None)
    if found is None and os.fspath(path).lower().endswith(_ENDINGS):
        found = "files"
    datatype = as_volume(dataset).datatype
    if found is None and datatype is not None and name.startswith(datatype.value):
        found = "netcdf"
    if found is None or filetype != "auto":
        raise InvalidArgumentError(
            f"Unable to determine output format of {os.fspath(path)!r}, filetype {filetype!r}: "
            "use a name that ends in .zarr, .nc, _nc, .raw, .tif, .nhdr, .h5 or, for a folder of "
            "TIFF, in a slash; or filetype='zarr', 'NetCDF' or 'raw'"
        )
    return found
