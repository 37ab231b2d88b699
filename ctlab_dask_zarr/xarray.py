"""To xarray and back, and xarray's engine ``ctlab``: stores of this package and mango netCDF.

Importing this gives every `xarray.DataArray` the accessor ``.ctlab``. xarray imports this module at
its first ``open_dataset``, so it imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.interop.xarray import CTLabAccessor, to_xarray

__all__ = ["CTLabAccessor", "CTLabBackendEntrypoint", "from_xarray", "to_xarray"]

CTLabAccessor.dataset_class = Dataset
from_xarray = Dataset.from_xarray


class CTLabBackendEntrypoint(BackendEntrypoint):
    """Opens volumes lazily with physical coordinates; ``chunks={}`` makes blocks of one shard.

    ``xr.open_dataset(path, engine="ctlab", level=1)`` opens one level; ``xr.open_datatree`` all of
    them, as ``/0``, ``/1``, ..., and labels as ``/labels/<name>/0``.
    """

    description = "OME-Zarr and mango netCDF of the CTLab, by ctlab_dask_zarr"
    supports_groups = True
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "level", "storage_options")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether it is a local mango netCDF or a local store with the CTLab's metadata.

        False for a URL: otherwise xarray would ask the network about every URL it is given.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        try:
            from ctlab_dask_zarr.read.source import is_ours

            return is_ours(filename_or_obj)
        except Exception:
            # Another engine may open it, or say what is wrong with it.
            return False

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        level: int = 0,
        storage_options: dict[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open one level."""
        # Only what is given: only Zarr sources have these options.
        given: dict[str, Any] = {"level": level or None, "storage_options": storage_options}
        options = {name: value for name, value in given.items() if value is not None}
        dataset = Dataset.from_path(filename_or_obj, **options)
        array = to_xarray(dataset)
        # ``chunks={}`` means these: blocks of one shard, which are read at once.
        array.encoding["preferred_chunks"] = {
            name: lengths[0] for name, lengths in zip(array.dims, dataset.data.chunks, strict=True)
        }
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
        return array.to_dataset().drop_vars(list(dropped), errors="ignore")

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open all levels and labels, with the options of `open_groups_as_dict`."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open all levels and labels, by their group."""
        from ctlab_dask_zarr.read.zarr_documents import read_label_names
        from ctlab_dask_zarr.read.zarr_source import ZarrSource

        options: dict[str, Any] = {}
        if storage_options is not None:
            options["storage_options"] = storage_options
        source = Dataset.from_path(filename_or_obj, **options).source
        images = {"": filename_or_obj}
        if isinstance(source, ZarrSource):
            for name in read_label_names(source.store):
                images[f"/labels/{name}"] = source.store.path(f"labels/{name}")
        groups = {"/": xr.Dataset()}
        for group, path in images.items():
            levels = Dataset.from_path(path, **options).levels
            for level in range(max(1, len(levels))):
                groups[f"{group}/{level}"] = self.open_dataset(
                    path, drop_variables=drop_variables, level=level, **options
                )
        return groups
