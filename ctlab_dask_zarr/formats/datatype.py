"""The data types of mango: what a volume's voxels mean and how they are stored."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Any, NamedTuple, cast

import numpy as np


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
        """Return the data type with this name; `ValueError` if there is none."""
        try:
            return cls(basename)
        except ValueError:
            raise ValueError(
                f"{basename!r} is not a mango data type; there are {', '.join(cls)}"
            ) from None

    @classmethod
    def infer_from_path(cls, path: str | os.PathLike[str]) -> DataType:
        """Return the data type with which a file's name begins, after an optional ``cntr_``.

        The longest name counts: ``tomo_float_x.nc`` is ``tomo_float`` and not ``tomo``.

        Raises
        ------
        ValueError
            The name does not begin with a data type.
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
        return np.dtype(_PROPERTIES[self.value].dtype)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """NumPy dtype that netCDF files declare: mango stores unsigned integers as signed."""
        kind = "i" if self.dtype.kind == "u" else self.dtype.kind
        return np.dtype(f"{kind}{self.dtype.itemsize}")

    @property
    def is_discrete(self) -> bool:
        """Whether values name classes, so that a mean of them means nothing."""
        return _PROPERTIES[self.value].is_discrete

    @property
    def mask_value(self) -> np.generic | None:
        """The value, of `dtype`, of voxels outside the sample; None if the type has none."""
        mask = _PROPERTIES[self.value].mask
        return None if mask is None else cast(np.generic, self.dtype.type(mask))


class _Properties(NamedTuple):
    dtype: str
    mask: float | None = None
    is_discrete: bool = False


_PROPERTIES = {
    "proju16": _Properties("uint16"),
    "projf32": _Properties("float32"),
    "tomo_float": _Properties("float32", 1e30),
    "tomo": _Properties("uint16", 65535),
    "float16": _Properties("float16"),
    "float64": _Properties("float64", 1e300),
    "segmented": _Properties("uint8", 255, is_discrete=True),
    "distance_map": _Properties("float32", -2.0),
    "labels": _Properties("int32", 2147483647, is_discrete=True),
    "rgba8": _Properties("uint8"),
}
