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
        return _open(filename_or_obj, level, storage_options, drop_variables)

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> xr.DataTree:
        """Open all levels and labels."""
        groups = self.open_groups_as_dict(
            filename_or_obj, drop_variables=drop_variables, storage_options=storage_options
        )
        return xr.DataTree.from_dict(groups)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open all levels and labels, by their group."""
        from ctlab_dask_zarr.read.zarr import ZarrSource
        from ctlab_dask_zarr.store.hierarchy import label_names

        path = os.fspath(filename_or_obj)
        opened = Dataset.from_path(path, **_options(path, storage_options))
        groups = {"/": xr.Dataset()}
        for number in range(max(1, len(opened.levels))):
            groups[f"/{number}"] = _open(path, number, storage_options, drop_variables)
        source = opened.source
        if isinstance(source, ZarrSource):
            folder = source.store.path("labels")
            for name in label_names(source.store.files, source.location):
                label = os.path.join(folder, name)
                n_levels = len(Dataset.from_path(label, **_options(label, storage_options)).levels)
                for number in range(n_levels):
                    groups[f"/labels/{name}/{number}"] = _open(
                        label, number, storage_options, drop_variables
                    )
        return groups


def _options(path: str, storage_options: dict[str, Any] | None) -> dict[str, Any]:
    return {} if storage_options is None else {"storage_options": storage_options}


def _open(
    path: Any,
    level: int,
    storage_options: dict[str, Any] | None,
    drop_variables: str | Iterable[str] | None,
) -> xr.Dataset:
    options = _options(os.fspath(path), storage_options)
    if level:
        options["level"] = level
    dataset = Dataset.from_path(path, **options)
    array = to_xarray(dataset)
    # What ``chunks={}`` stands for: the blocks that are read at once, a shard each.
    array.encoding["preferred_chunks"] = {
        name: lengths[0] for name, lengths in zip(array.dims, dataset.data.chunks, strict=True)
    }
    opened = array.to_dataset()
    dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
    return opened.drop_vars(dropped, errors="ignore")
