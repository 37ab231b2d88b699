"""Voxels alone, in C order and little-endian, in one file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.formats.level import Shape


@dataclass(frozen=True)
class RawKind:
    """A volume of this shape and dtype as a file without a header; an `export.kind.FlatKind`."""

    shape: Shape
    dtype: np.dtype[Any]
    name = "raw"
    is_folder = False

    def files(self) -> list[File]:
        """Return the one file."""
        return [File("volume.raw", 0, self.shape[0])]

    def settings(self) -> dict[str, Any]:
        """Return nothing: shape and dtype say it all."""
        return {}

    def is_own(self, name: str) -> bool:
        """Return False: it is no folder."""
        return False

    def allocate(self, path: str) -> tuple[int, Any]:
        """Make the file in its whole size."""
        with open(path, "wb") as out:
            out.truncate(math.prod(self.shape) * self.dtype.itemsize)
        return 0, self.dtype.newbyteorder("<")
