"""To xarray and back, and xarray's engine ``ctlab``: stores of this package and mango netCDF.

Importing this gives every `xarray.DataArray` the accessor ``.ctlab``. xarray imports it with its
first ``open_dataset``, so that it imports nothing heavy.
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
    """Opens volumes lazily, with ``chunks={}`` in blocks of a shard, with physical coordinates.

    ``xr.open_dataset(path, engine="ctlab", level=1)`` opens one level; ``xr.open_datatree`` all of
    them, as ``/0``, ``/1``, ..., and labels as ``/labels/<name>/0``.
    """

    description = "OME-Zarr and mango netCDF of the CTLab, by ctlab_dask_zarr"
    supports_groups = True
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "level", "storage_options")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether it is a mango netCDF, or a store with the CTLab's marks, on this machine.

        Never of a URL: to guess would be to ask the network, for every URL that xarray is given.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        try:
            from ctlab_dask_zarr.read.source import is_ours

            return is_ours(filename_or_obj)
        except Exception:
            # Whatever it is, it is for others to open, and to complain of.
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
        # Only what is given: sources of other kinds than Zarr have neither.
        given: dict[str, Any] = {"level": level or None, "storage_options": storage_options}
        options = {name: value for name, value in given.items() if value is not None}
        dataset = Dataset.from_path(filename_or_obj, **options)
        array = to_xarray(dataset)
        # What ``chunks={}`` stands for: the blocks that are read at once, a shard each.
        array.encoding["preferred_chunks"] = {
            name: lengths[0] for name, lengths in zip(array.dims, dataset.data.chunks, strict=True)
        }
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
        return array.to_dataset().drop_vars(list(dropped), errors="ignore")

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open all levels and labels; options are those of `open_groups_as_dict`."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open all levels and labels, by their group."""
        from ctlab_dask_zarr.read.zarr_source import ZarrSource
        from ctlab_dask_zarr.store.hierarchy import label_names

        options: dict[str, Any] = {}
        if storage_options is not None:
            options["storage_options"] = storage_options
        source = Dataset.from_path(filename_or_obj, **options).source
        images = {"": filename_or_obj}
        if isinstance(source, ZarrSource):
            for name in label_names(source.store.files, source.location):
                images[f"/labels/{name}"] = source.store.path(f"labels/{name}")
        groups = {"/": xr.Dataset()}
        for group, path in images.items():
            levels = Dataset.from_path(path, **options).levels
            for level in range(max(1, len(levels))):
                groups[f"{group}/{level}"] = self.open_dataset(
                    path, drop_variables=drop_variables, level=level, **options
                )
        return groups
