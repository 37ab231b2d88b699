"""The loops of `downsample`, compiled by numba for each data type (docs/design/pyramids.md)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from ctlab_dask_zarr.codec.downsample import METHOD_CODES, WIDE_MEAN
from ctlab_dask_zarr.codec.values import PLAIN, UNIFORM

Factors = tuple[int, ...]

_MEAN, _MODE, _NEAREST, _MAX = (METHOD_CODES[name] for name in ("mean", "mode", "nearest", "max"))
_compiled = numba.njit(nogil=True)


def _eighth(total: Any) -> Any:
    raise NotImplementedError("replaced by the compiler")


@overload(_eighth, inline="always")
def _eighth_by_type(total: Any) -> Any:
    def half_up(total: Any) -> Any:
        return (total + 4) >> 3

    def exact(total: Any) -> Any:
        return total * 0.125

    return half_up if isinstance(total, types.Integer) else exact


@_compiled
def _is_masked(value: Any, mask: Any) -> Any:
    if mask is None:
        return False
    # Only NaN differs from itself.
    return value == mask or value != value


def halve_every_chunk(
    chunks: Any,
    flags: Any,
    extent: Factors,
    factors: Factors,
    code: int,
    mask: Any,
    zero: Any,
    out: Any,
    origin: Factors,
) -> None:
    """Downsample a block in chunk order, chunk by chunk (`downsample.halve_chunks`)."""
    n0, n1, n2, c0, c1, c2 = chunks.shape
    f0, f1, f2 = factors
    voxels = chunks.reshape(chunks.size)
    for i, j, k in np.ndindex(n0, n1, n2):
        z, y, x = i * c0, j * c1, k * c2
        within = (min(c0, extent[0] - z), min(c1, extent[1] - y), min(c2, extent[2] - x))
        if min(within) > 0:
            number = (i * n1 + j) * n2 + k
            start = (origin[0] + z // f0, origin[1] + y // f1, origin[2] + x // f2)
            chunk = voxels[number * c0 * c1 * c2 : (number + 1) * c0 * c1 * c2]
            _halve_chunk(
                chunk, flags[number], (c1, c2), within, factors, code, mask, zero, out, start
            )


@_compiled
def _halve_chunk(
    chunk: Any,
    flag: int,
    edges: tuple[int, int],
    within: Factors,
    factors: Factors,
    code: int,
    mask: Any,
    zero: Any,
    out: Any,
    start: Factors,
) -> None:
    """Halve the part `within` a chunk, given flat with its last two `edges`.

    Where there is one parent along an axis instead of two it is taken twice, which changes neither
    a mean, nor a majority, nor whether half of the parents are masked.
    """
    f0, f1, f2 = factors
    n_pairs = within[2] // f2
    n_columns = -(-within[2] // f2)
    target = out.reshape(out.size)
    for z in range(-(-within[0] // f0)):
        i, k = z * f0, min(z * f0 + f0 - 1, within[0] - 1)
        for y in range(-(-within[1] // f1)):
            j, m = y * f1, min(y * f1 + f1 - 1, within[1] - 1)
            # Unsigned, so that the compiler need not look for indices from the end.
            rows = (
                np.uintp((i * edges[0] + j) * edges[1]),
                np.uintp((i * edges[0] + m) * edges[1]),
                np.uintp((k * edges[0] + j) * edges[1]),
                np.uintp((k * edges[0] + m) * edges[1]),
            )
            to = np.uintp(((start[0] + z) * out.shape[1] + start[1] + y) * out.shape[2] + start[2])
            if flag == UNIFORM or code == _NEAREST:
                for x in range(np.uintp(n_columns)):
                    target[to + x] = chunk[rows[0] + x * np.uintp(f2)]
                continue
            n_done = 0
            if f2 == 2:
                n_done = n_pairs
                if code != _MEAN:
                    _pick_row(chunk, rows, np.uintp(n_pairs), code, mask, zero, target, to)
                elif flag == PLAIN:
                    _mean_row(chunk, rows, np.uintp(n_pairs), zero, target, to)
                else:
                    _masked_mean_row(chunk, rows, np.uintp(n_pairs), mask, zero, target, to)
            for x in range(n_done, n_columns):
                s = np.uintp(x * f2)
                t = np.uintp(min(x * f2 + f2 - 1, within[2] - 1))
                target[to + np.uintp(x)] = _from_parents(
                    _parents(chunk, rows, s, t), code, mask, zero
                )


@_compiled
def _parents(chunk: Any, rows: Any, s: Any, t: Any) -> Any:
    a, b, c, d = rows
    return (
        *(chunk[a + s], chunk[a + t], chunk[b + s], chunk[b + t]),
        *(chunk[c + s], chunk[c + t], chunk[d + s], chunk[d + t]),
    )


@_compiled
def _mean_row(chunk: Any, rows: Any, n: Any, zero: Any, target: Any, to: Any) -> None:
    for x in range(n):
        total = zero
        for value in _parents(chunk, rows, x + x, x + x + np.uintp(1)):
            total += value
        target[to + x] = _eighth(total)


@_compiled
def _masked_mean_row(
    chunk: Any, rows: Any, n: Any, mask: Any, zero: Any, target: Any, to: Any
) -> None:
    for x in range(n):
        s = x + x
        total = zero
        n_valid = 0
        for row in rows:
            for at in (row + s, row + s + np.uintp(1)):
                value = chunk[at]
                is_valid = not _is_masked(value, mask)
                total += value if is_valid else zero
                n_valid += is_valid
        if n_valid == 8 or (mask is None):
            target[to + x] = _eighth(total)
        elif n_valid <= 4:
            target[to + x] = mask
        else:
            target[to + x] = _from_parents(
                _parents(chunk, rows, s, s + np.uintp(1)), _MEAN, mask, zero
            )
        if mask is not None and n_valid == 8 and _is_masked(target[to + x], mask):
            target[to + x] = chunk[rows[0] + s]


@_compiled
def _pick_row(
    chunk: Any, rows: Any, n: Any, code: int, mask: Any, zero: Any, target: Any, to: Any
) -> None:
    """Fill a row of labels: nearly every voxel has eight equal parents, which is tried first."""
    one = np.uintp(1)
    n_different = np.uint32(0)
    for x in range(n):
        parents = _parents(chunk, rows, x + x, x + x + one)
        target[to + x] = parents[0]
        for value in parents:
            n_different += np.uint32(value != parents[0])
    if n_different:
        for x in range(n):
            parents = _parents(chunk, rows, x + x, x + x + one)
            target[to + x] = _from_parents(parents, code, mask, zero)


@_compiled
def _from_parents(parents: Any, code: int, mask: Any, zero: Any) -> Any:
    first = parents[0]
    n_first = 0
    for value in parents:
        n_first += value == first
    if n_first == 8:
        return first
    n_valid = 0
    total = zero
    best = first
    for value in parents:
        if not _is_masked(value, mask):
            if n_valid == 0 or (code == _MAX and value > best):
                best = value
            n_valid += 1
            total += value
    if mask is not None and n_valid <= 4:
        return mask
    if code == _MAX:
        return best
    if code == _MODE:
        return _most_frequent(parents, best, mask)
    mean = _mean(parents, total, n_valid, mask, code == WIDE_MEAN)
    return best if _is_masked(mean, mask) else mean


def _mean(parents: Any, total: Any, n_valid: int, mask: Any, is_wide: bool) -> Any:
    raise NotImplementedError("replaced by the compiler")


@overload(_mean, inline="always")
def _mean_by_type(parents: Any, total: Any, n_valid: Any, mask: Any, is_wide: Any) -> Any:
    def of_integers(parents: Any, total: Any, n_valid: Any, mask: Any, is_wide: Any) -> Any:
        as_voxel = type(parents[0])
        if not is_wide:
            return as_voxel((2 * total + n_valid) // (2 * n_valid))
        # Sums of quotients and of remainders are no larger than the voxels.
        n = as_voxel(n_valid)
        whole, rest = as_voxel(0), as_voxel(0)
        for value in parents:
            if not _is_masked(value, mask):
                whole += as_voxel(value // n)
                rest += as_voxel(value % n)
        whole += as_voxel(rest // n)
        return as_voxel(whole + as_voxel(2 * (rest % n) >= n))

    def of_floats(parents: Any, total: Any, n_valid: Any, mask: Any, is_wide: Any) -> Any:
        as_voxel = type(parents[0])
        if not is_wide:
            return as_voxel(total / n_valid)
        # Dividing by a power of two changes no digit.
        eighths, lowest, highest = 0.0, np.inf, -np.inf
        for value in parents:
            if not _is_masked(value, mask):
                eighths += value * 0.125
                lowest, highest = min(lowest, value), max(highest, value)
        mean = eighths / n_valid * 8.0
        # The mean of the largest number of the type could be rounded up to infinity.
        return as_voxel(highest if mean > highest else lowest if mean < lowest else mean)

    return of_integers if isinstance(parents.dtype, types.Integer) else of_floats


@_compiled
def _most_frequent(parents: Any, best: Any, mask: Any) -> Any:
    n_best = 0
    for value in parents:
        if not _is_masked(value, mask):
            n_same = 0
            for other in parents:
                n_same += other == value
            if n_same > n_best or (n_same == n_best and value < best):
                best, n_best = value, n_same
    return best
