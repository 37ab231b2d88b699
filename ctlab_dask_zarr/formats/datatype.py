"""The data types of mango: what a volume's voxels mean and how they are stored."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DataType"]


class DataType(StrEnum):
    """A kind of volume that mango produces; equal to its name.

    Examples
    --------
    >>> DataType.infer_from_path("cntr_tomo_float_SS_nc") is DataType.TOMO_FLOAT
    True
    >>> DataType.TOMO.dtype, DataType.TOMO.stored_dtype, int(DataType.TOMO.mask_value)
    (dtype('uint16'), dtype('int16'), 65535)
    """

    PROJU16 = "proju16"
    PROJF32 = "projf32"
    TOMO_FLOAT = "tomo_float"
    TOMO = "tomo"
    FLOAT16 = "float16"
    FLOAT64 = "float64"
    SEGMENTED = "segmented"
    DISTANCE_MAP = "distance_map"
    LABELS = "labels"
    RGBA8 = "rgba8"

    @classmethod
    def from_basename(cls, basename: str) -> DataType:
        """Return the data type of this name.

        Raises
        ------
        ValueError
            There is none.
        """
        try:
            return cls(basename)
        except ValueError:
            raise ValueError(
                f"{basename!r} is not a mango data type; there are {', '.join(cls)}"
            ) from None

    @classmethod
    def infer_from_path(cls, path: str | os.PathLike[str]) -> DataType:
        """Return the data type that a file's name begins with, after an optional ``cntr_``.

        Where several match, the longest counts: ``tomo_float_x.nc`` is no ``tomo``.

        Raises
        ------
        ValueError
            The name begins with none of them.
        """
        name = os.path.basename(os.path.normpath(os.fspath(path))).removeprefix("cntr_")
        matches = [datatype for datatype in cls if name.startswith(datatype.value)]
        if not matches:
            raise ValueError(
                f"the name {name!r} does not begin with a mango data type ({', '.join(cls)}): "
                "say which it is with datatype="
            )
        return max(matches, key=lambda datatype: len(datatype.value))

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the voxels."""
        return _PROPERTIES[self.value].dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """NumPy dtype that netCDF files declare: mango stores unsigned integers as signed."""
        kind = "i" if self.dtype.kind == "u" else self.dtype.kind
        return np.dtype(f"{kind}{self.dtype.itemsize}")

    @property
    def is_discrete(self) -> bool:
        """Whether the values are classes, so that a mean of two of them means nothing."""
        return _PROPERTIES[self.value].is_discrete

    @property
    def mask_value(self) -> np.generic | None:
        """The value, of `dtype`, of voxels outside the sample; None where the type has none."""
        properties = _PROPERTIES[self.value]
        if properties.mask is None:
            return None
        value: np.generic = properties.dtype.type(properties.mask)
        return value


class _Properties(NamedTuple):
    dtype: np.dtype[Any]
    mask: float | None
    is_discrete: bool = False


_PROPERTIES: dict[str, _Properties] = {
    "proju16": _Properties(np.dtype("uint16"), None),
    "projf32": _Properties(np.dtype("float32"), None),
    "tomo_float": _Properties(np.dtype("float32"), 1e30),
    "tomo": _Properties(np.dtype("uint16"), 65535),
    "float16": _Properties(np.dtype("float16"), None),
    "float64": _Properties(np.dtype("float64"), 1e300),
    "segmented": _Properties(np.dtype("uint8"), 255, is_discrete=True),
    "distance_map": _Properties(np.dtype("float32"), -2.0),
    "labels": _Properties(np.dtype("int32"), 2147483647, is_discrete=True),
    "rgba8": _Properties(np.dtype("uint8"), None),
}
