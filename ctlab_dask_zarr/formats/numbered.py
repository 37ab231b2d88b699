"""Slices by the numbers in the names of their files."""

from __future__ import annotations

import itertools
import os

from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError


def numbered(names: list[str], folder: str) -> list[tuple[int, str]]:
    """Return the number and the name of each slice, in the order of the numbers.

    The number is the only one in the names that is not the same in all of them.

    Raises
    ------
    UnsupportedFormatError
        The names differ in their text, or in several numbers.
    """
    parts = {name: _split(name) for name in names}
    texts = {tuple(p[::2]): name for name, p in sorted(parts.items(), reverse=True)}
    if len(texts) > 1:
        examples = " and ".join(sorted(texts.values())[:2])
        raise UnsupportedFormatError(
            f"{folder} holds files of several volumes, as {examples}: give the names of one with "
            "pattern= (--pattern 'slice_*.tif'), or move the others away"
        )
    columns = list(zip(*(p[1::2] for p in parts.values()), strict=True))
    varying = [n for n, column in enumerate(columns) if len(set(map(int, column))) > 1]
    if len(varying) > 1:
        first, last = min(names), max(names)
        raise UnsupportedFormatError(
            f"the names in {folder} have several numbers that differ ({first}, {last}): only the "
            "number of the slice may; give the names of one volume with pattern="
        )
    which = varying[0] if varying else len(columns) - 1
    found = sorted((int(p[1::2][which]) if columns else 0, name) for name, p in parts.items())
    for (number, name), (other, twin) in itertools.pairwise(found):
        if number == other:
            raise UnsupportedFormatError(
                f"{folder} has two files with the number {number}: {name} and {twin}"
            )
    return found


def _split(name: str) -> list[str]:
    """Return text and numbers in turn; the first and the last are text, without the ending."""
    stem = os.path.splitext(name)[0]
    parts: list[str] = [""]
    for is_number, run in itertools.groupby(stem, str.isdecimal):
        if is_number or len(parts) % 2 == 0:
            parts.append("".join(run))
        else:
            parts[-1] += "".join(run)
    return parts if len(parts) % 2 else [*parts, ""]


def missing_numbers(found: list[tuple[int, str]], limits: slice) -> list[int]:
    """Return the numbers that are not there between the first and the last one, or the limits."""
    numbers = {number for number, _ in found}
    first = min(numbers) if limits.start is None else limits.start
    last = max(numbers) + 1 if limits.stop is None else limits.stop
    return [n for n in range(first, last) if n not in numbers]


def parse_slices(slices: slice | str | None) -> slice:
    """Return a run of slices, ``"100:900"`` as Python's ``slice(100, 900)``.

    Examples
    --------
    >>> parse_slices("100:900"), parse_slices(":50")
    (slice(100, 900, None), slice(None, 50, None))
    """
    if slices is None:
        return slice(None)
    if isinstance(slices, str):
        low, colon, high = slices.partition(":")
        texts = low.strip(), high.strip()
        if not colon or any(text and not text.isdecimal() for text in texts):
            raise InvalidArgumentError(
                f"slices={slices!r} is not a run as in '100:900', from 100 to 899"
            )
        slices = slice(*(int(text) if text else None for text in texts))
    start, stop = slices.start, slices.stop
    if (
        slices.step not in (None, 1)
        or (start or 0) < 0
        or (stop is not None and stop <= (start or 0))
    ):
        raise InvalidArgumentError(
            f"slices={slices} is not a run of at least one slice: give 100:900, from 100 to 899"
        )
    return slice(start, stop)
