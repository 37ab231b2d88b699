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
        mask = None if self._mask_value is None else rows.dtype.type(self._mask_value)
        mixed = ~(np.isfinite(lows) & np.isfinite(highs))
        if mask is not None:
            mixed |= (lows <= mask) & (mask <= highs)
        self._extend(lows[~mixed], highs[~mixed])
        flags = np.where(mixed, np.uint8(MIXED), np.uint8(PLAIN))
        flags[lows == highs] = UNIFORM
        for n in np.flatnonzero(mixed):
            if flags[n] == UNIFORM and mask is not None and lows[n] == mask:
                continue
            if rows.dtype.kind in "iu":
                low, high = _valid_range(rows[n], lows[n], highs[n], mask)
                self._extend(low, high)
            else:
                row = rows[n]
                valid = np.isfinite(row)
                if mask is not None:
                    valid &= row != mask
                values = row[valid]
                self._extend(values, values)
        return flags

    def _extend(self, lows: npt.NDArray[Any], highs: npt.NDArray[Any]) -> None:
        if lows.size:
            low, high = lows.min().item(), highs.max().item()
            self.minimum = low if self.minimum is None else min(self.minimum, low)
            self.maximum = high if self.maximum is None else max(self.maximum, high)


def _valid_range(row: npt.NDArray[Any], low: Any, high: Any, mask: Any) -> tuple[Any, Any]:
    """Return the range of integers of which `low` and `high` are the extremes, without the mask.

    Only an extreme that is the mask itself has to be looked for: where that is not, in a copy with
    the other extreme in its place, which is a fraction of what selecting the valid ones costs.
    """
    if low == mask:
        low = np.where(row == mask, high, row).min()
    elif high == mask:
        high = np.where(row == mask, low, row).max()
    return low, high
