"""Tell by its content, then by its name, what kind of source a path is."""

from __future__ import annotations

import os
from typing import Any

from ctlab_dask_zarr.errors import DatasetNotFoundError, UnsupportedFormatError
from ctlab_dask_zarr.read.netcdf import dataset_from_netcdf
from ctlab_dask_zarr.read.zarr import volume_from_zarr
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.volume import Volume

__all__ = ["guess_filetype", "open_volume"]

_NETCDF_MAGIC = (b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02", b"CDF\x05")
_ZARR_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def guess_filetype(path: str | os.PathLike[str]) -> str:
    """Return ``'NetCDF'`` or ``'zarr'``.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path, nor a name that a reader could explain further.
    UnsupportedFormatError
        Neither content nor name is of a format that is read here.
    """
    local = storage_path(path)
    if is_url(local):
        return "zarr"
    if os.path.isdir(local):
        entries = os.listdir(local)
        if any(document in entries for document in _ZARR_DOCUMENTS):
            return "zarr"
        if any(entry.endswith(".nc") for entry in entries):
            return "NetCDF"
    elif os.path.isfile(local):
        with open(local, "rb") as file:
            if file.read(8).startswith(_NETCDF_MAGIC):
                return "NetCDF"
    name = os.path.basename(local.rstrip("/"))
    if name.endswith(".zarr"):
        return "zarr"
    if name.endswith(("_nc", ".nc")):
        return "NetCDF"
    if not os.path.lexists(local):
        raise DatasetNotFoundError(f"{local} does not exist")
    raise UnsupportedFormatError(
        f"{local} is neither a mango netCDF file, a folder of netCDF blocks nor a Zarr store"
    )


def open_volume(
    path: str | os.PathLike[str],
    filetype: str = "auto",
    *,
    parse_history: bool = True,
    **kwargs: Any,
) -> Volume:
    """Open whatever is read here: see `Dataset.from_path`."""
    kind = guess_filetype(path) if filetype == "auto" else filetype
    if kind.lower() == "netcdf":
        return dataset_from_netcdf(path, parse_history=parse_history, **kwargs)
    if kind.lower() == "zarr":
        return volume_from_zarr(path, **kwargs)
    raise UnsupportedFormatError(f"filetype {filetype!r} is none of 'NetCDF', 'zarr', 'auto'")
