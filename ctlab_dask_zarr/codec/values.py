"""Values of voxels: their range, their contrast, and where two sets of them differ."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number

#: What is known of some voxels: none is masked or huge, all are the same, or neither.
PLAIN, UNIFORM, MIXED = 0, 1, 2
#: Grey levels run between these percentiles of the voxels that are not masked.
_PERCENTILES = (0.5, 99.5)
#: Up to this size eight voxels can be added up in the widest type of floats that there is.
SUMMABLE = float(np.finfo(np.float64).max) / 8


class ValueRange:
    """The least and the largest voxel, of those added, that is finite and not `mask_value`."""

    def __init__(self, mask_value: Number | None) -> None:
        self._mask_value = mask_value
        self.minimum: Number | None = None
        self.maximum: Number | None = None

    def add(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Add voxels, shape (rows, voxels of a row); return what is seen of each row.

        That is `PLAIN` where none is masked, not finite or beyond `SUMMABLE`, `UNIFORM` where all
        are the same, and else `MIXED`. A row takes two reductions, and one that is mixed another
        look. So rows should be compact in space, as inner chunks are.
        """
        with np.errstate(invalid="ignore"):
            lows, highs = rows.min(axis=1), rows.max(axis=1)
        mask = None if self._mask_value is None else rows.dtype.type(self._mask_value)
        mixed = ~(np.isfinite(lows) & np.isfinite(highs))
        if rows.dtype == np.float64:
            mixed |= (lows < -SUMMABLE) | (highs > SUMMABLE)
        if mask is not None:
            mixed |= (lows <= mask) & (mask <= highs)
        flags = np.where(mixed, np.uint8(MIXED), np.uint8(PLAIN))
        flags[lows == highs] = UNIFORM
        valid = ~mixed
        if mask is not None:
            valid |= _step_inside(rows, lows, highs, mask, mixed & (lows != highs))
        if rows.dtype.kind == "f":
            for n in np.flatnonzero(~valid):
                if flags[n] != UNIFORM and (found := _finite_range(rows[n], mask)):
                    lows[n], highs[n] = found
                    valid[n] = True
        self._extend(lows[valid], highs[valid])
        return flags

    def _extend(self, lows: npt.NDArray[Any], highs: npt.NDArray[Any]) -> None:
        if lows.size:
            low, high = lows.min().item(), highs.max().item()
            self.minimum = low if self.minimum is None else min(self.minimum, low)
            self.maximum = high if self.maximum is None else max(self.maximum, high)


def _step_inside(
    rows: npt.NDArray[Any],
    lows: npt.NDArray[Any],
    highs: npt.NDArray[Any],
    mask: Any,
    mixed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Put the nearest valid voxel where an extreme of a `mixed` row is the mask.

    Return for which rows the extremes are valid now. In modular unsigned arithmetic the neighbour
    of the mask is the farthest from it: two passes, a fraction of what selecting valid ones takes.
    Of floats of one sign, the larger the bits the farther from 0.
    """
    is_float = rows.dtype.kind == "f"
    bits, origin = rows.view(f"u{rows.itemsize}"), mask.view(f"u{rows.itemsize}")
    if is_float:
        mixed = mixed & np.isfinite(lows) & np.isfinite(highs)
    valid: npt.NDArray[np.bool_] = mixed & (lows != mask) & (highs != mask)
    for extremes, is_low in ((lows, True), (highs, False)):
        at = np.flatnonzero(mixed & (extremes == mask))
        if not at.size or (is_float and (mask == 0 or (mask < 0) != is_low)):
            continue
        if is_low and not is_float:
            nearest = origin - np.array([(origin - bits[n]).max() for n in at])
        else:
            nearest = origin + np.array([(bits[n] - origin).max() for n in at])
        found = nearest.view(rows.dtype)
        if is_float:
            # One of the other sign is not the nearest: their order is another one.
            at, found = at[(found < 0) == is_low], found[(found < 0) == is_low]
        extremes[at] = found
        valid[at] = True
    return valid


def _finite_range(row: npt.NDArray[Any], mask: Any) -> tuple[Any, Any] | None:
    """Return the range of the finite numbers that are not the mask; None where there are none."""
    low, high = np.fmin.reduce(row), np.fmax.reduce(row)
    if np.isfinite(low) and np.isfinite(high) and (mask is None or not low <= mask <= high):
        return low, high  # all others are NaN
    values = row[valid_voxels(row, mask)]
    return (values.min(), values.max()) if values.size else None


def voxel_difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any], start: Shape) -> str | None:
    """Compare bit by bit; say which voxels of the region at `start` differ, or None.

    Examples
    --------
    >>> voxel_difference(np.array([[1, 2]]), np.array([[1, 3]]), (5, 0))
    'voxels 5:6, 0:2: 1 of 2 differ from the source, the first at (5, 1): 2 instead of 3'
    """
    difference = Differences()
    for n in range(len(wanted)):
        # A slice at a time, and not all in one more array.
        difference.add(found[n], wanted[n], (start[0] + n, *start[1:]))
    return difference.told(start, wanted.shape)


class Differences:
    """Voxels that are not the same bits in two places, as they are found."""

    def __init__(self) -> None:
        self._n_different = 0
        self._first: tuple[Shape, str] | None = None

    def add(self, found: npt.NDArray[Any], wanted: npt.NDArray[Any], start: Shape) -> None:
        """Compare voxels at `start`, which has as many axes as they have or more before them."""
        dtype = wanted.dtype.newbyteorder("<")
        bits = np.dtype(f"u{dtype.itemsize}")
        stored = np.ascontiguousarray(found, dtype).view(bits)
        differs = stored != np.ascontiguousarray(wanted, dtype).view(bits)
        n_different = int(np.count_nonzero(differs))
        if not n_different:
            return
        self._n_different += n_different
        first = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(differs)))[: found.ndim]
        n_before = len(start) - found.ndim
        inside = zip(start[n_before:], first, strict=True)
        at = (*start[:n_before], *(s + f for s, f in inside))
        if self._first is None or at < self._first[0]:
            self._first = at, f"{found[first]} instead of {wanted[first]}"

    def told(self, start: Shape, shape: Shape) -> str | None:
        """Say what differs in the region that was compared; None where nothing does."""
        if self._first is None:
            return None
        place = ", ".join(f"{s}:{s + n}" for s, n in zip(start, shape, strict=True))
        at, values = self._first
        return (
            f"voxels {place}: {self._n_different} of {prod(shape)} differ from the source, the "
            f"first at {at}: {values}"
        )


def have_same_bits(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two contiguous arrays of one dtype are the same to the bit.

    They are compared in words of eight bytes, twice as fast as element by element.
    """
    word = np.uint64 if one.nbytes % 8 == 0 else np.uint8
    return np.array_equal(one.reshape(-1).view(word), other.reshape(-1).view(word))


def valid_voxels(voxels: npt.NDArray[Any], mask_value: Number | None) -> npt.NDArray[np.bool_]:
    """Return which voxels are finite and not masked."""
    valid: npt.NDArray[np.bool_] = np.isfinite(voxels)
    return valid if mask_value is None else valid & (voxels != mask_value)


def contrast_of(voxels: npt.NDArray[Any], mask_value: Number | None) -> tuple[float, float]:
    """Return the grey levels of black and white for some voxels; black is below white.

    Examples
    --------
    >>> contrast_of(np.arange(1001), None)
    (5.0, 995.0)
    >>> contrast_of(np.array([7, 7, 9]), 9)
    (6.5, 7.5)
    """
    values = voxels[valid_voxels(voxels, mask_value)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, _PERCENTILES))
    if high <= low:
        # All voxels have one value, or nearly so: it is shown in medium grey.
        half = max(0.5, abs(low) * 1e-6)
        return low - half, low + half
    return low, high
