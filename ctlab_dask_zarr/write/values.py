"""The range of the voxels that count: finite and not masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.receipts import Number

__all__ = ["MIXED", "PLAIN", "UNIFORM", "ValueRange"]

#: What is known of some voxels: none is masked, all are the same, or neither.
PLAIN, UNIFORM, MIXED = 0, 1, 2


class ValueRange:
    """The least and the largest valid voxel of all that was added.

    Parameters
    ----------
    mask_value
        Of masked voxels; None where the data type has none.

    Examples
    --------
    >>> values = ValueRange(65535)
    >>> flags = values.add(np.array([[3, 65535], [65535, 65535]], "uint16"))
    >>> values.minimum, values.maximum
    (3, 3)
    """

    def __init__(self, mask_value: Number | None) -> None:
        self._mask_value = mask_value
        self.minimum: Number | None = None
        self.maximum: Number | None = None

    def add(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Add voxels, shape (rows, voxels of a row); return what is seen of each row.

        That is `PLAIN` where none is masked or without a value, `UNIFORM` where all are the same,
        and else `MIXED`. A row costs two reductions; only one that is mixed is looked at again. So
        rows should be compact in space: inner chunks.
        """
        with np.errstate(invalid="ignore"):
            lows, highs = rows.min(axis=1), rows.max(axis=1)
        mixed = ~(np.isfinite(lows) & np.isfinite(highs))
        if self._mask_value is not None:
            mask = rows.dtype.type(self._mask_value)
            mixed |= (lows <= mask) & (mask <= highs)
        self._extend(lows[~mixed], highs[~mixed])
        flags = np.where(mixed, np.uint8(MIXED), np.uint8(PLAIN))
        flags[lows == highs] = UNIFORM
        for n in np.flatnonzero(mixed):
            if flags[n] == UNIFORM and (self._mask_value is not None and lows[n] == mask):
                continue
            row = rows[n]
            valid = np.isfinite(row)
            if self._mask_value is not None:
                valid &= row != mask
            self._extend(row[valid], row[valid])
        return flags

    def _extend(self, lows: npt.NDArray[Any], highs: npt.NDArray[Any]) -> None:
        if lows.size:
            low, high = lows.min().item(), highs.max().item()
            self.minimum = low if self.minimum is None else min(self.minimum, low)
            self.maximum = high if self.maximum is None else max(self.maximum, high)
