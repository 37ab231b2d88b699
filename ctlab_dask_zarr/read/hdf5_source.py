"""The voxels of an HDF5 dataset, read when they are sliced."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.read.files import FilesSource, Region
from ctlab_dask_zarr.read.netcdf_storage import ByHDF5, Storage, StoredBlock, read_block


@dataclass(frozen=True, repr=False)
class HDF5Source(FilesSource):
    """An array of an HDF5 file, as z, y, x.

    `files` are the file itself and those that a virtual dataset is made of. `order` tells which
    axis of the stored array each axis is.
    """

    dataset: str
    order: Shape
    storage: Storage
    is_swapped: bool

    @property
    def location(self) -> str:
        """The file and the path of the array in it."""
        return f"{os.path.join(self.folder, self.files[0].name)}::{self.dataset}"

    def facts(self) -> dict[str, Any]:
        """Return the format, and how many other files hold voxels."""
        others = len(self.files) - 1
        return {"format": self.format} | ({"files": f"{others:,} more files"} if others else {})

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from others: also the path of the array in the file."""
        return super().identity() | {"dataset": self.dataset, "order": list(self.order)}

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        stored, parts = [0] * self.ndim, [slice(0)] * self.ndim
        for axis, place in enumerate(self.order):
            stored[place], parts[place] = self.shape[axis], region[axis]
        file = self.files[0]
        path = os.path.join(self.folder, file.name)
        block = StoredBlock(
            file.name, file.nbytes, file.mtime_ns, 0, stored[0], self.is_swapped, self.storage, None
        )
        if isinstance(self.storage, ByHDF5):
            load_filters()
        voxels = read_block(path, self.dataset, block, tuple(stored), tuple(parts), self.dtype)
        if len(self.files) > 1:
            # HDF5 gives fill values for a file that is not there.
            self.check_unchanged()
        return np.ascontiguousarray(voxels.transpose(self.order))


def load_filters() -> None:
    """Let HDF5 find the filters of hdf5plugin, if that is installed."""
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401
