"""Whether the blocks of a mango netCDF folder make a whole volume."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any

from ctlab_dask_zarr.formats.netcdf import BlockHeader
from ctlab_dask_zarr.formats.problems import Problem

__all__ = ["block_label", "expected_z_ranges", "validate_blocks", "z_text"]

#: Field, kind of problem and how it is called, of what has to be the same in every block.
_COMMON_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("variable", "dataset", "variable"),
    ("dataset_id", "dataset", "dataset_id"),
    ("stored_dtype", "dtype", "stored dtype"),
    ("zdim_total", "total", "zdim_total"),
    ("number_of_files", "number_of_files", "number_of_files"),
    ("total_grid_size_xyz", "total", "total_grid_size_xyz"),
    ("voxel_unit", "voxel_unit", "voxel_unit"),
    ("voxel_size_xyz", "voxel_size", "voxel_size_xyz"),
)


def validate_blocks(
    headers: Sequence[BlockHeader], *, unreadable: Collection[int] = ()
) -> list[Problem]:
    """Return everything that keeps blocks from being one whole volume.

    Parameters
    ----------
    headers
        Of every file that could be opened, in any order; not empty.
    unreadable
        Numbers of the files that are there and could not be opened; they are not missing, and
        another problem tells about them.

    Returns
    -------
    list of Problem
        In the order of the volume; the kinds are ``missing``, ``extra``, ``gap``, ``overlap``,
        ``size``, ``dtype``, ``dataset``, ``total``, ``number_of_files``, ``voxel_unit`` and
        ``voxel_size``.
    """
    ordered = sorted(headers, key=lambda header: (header.z_start, header.number or 0))
    problems = [
        *_common_field_problems(ordered),
        *_size_problems(ordered),
        *_missing_problems(ordered, unreadable),
        *_extra_problems(ordered),
        *_order_problems(ordered, unreadable),
    ]
    return sorted(problems, key=lambda problem: problem.location)


def expected_z_ranges(
    headers: Sequence[BlockHeader], absent: Collection[int]
) -> dict[int, tuple[int, int]]:
    """Return which slices, first and last, the blocks of these numbers hold, as far as known.

    The blocks at both sides leave a hole; several blocks in one hole share it in steps of the
    size that the blocks have, if that fills it, and are left out otherwise.
    """
    by_number = {header.number: header for header in headers if header.number is not None}
    total = _most_common([header.zdim_total for header in headers])
    sizes = _most_common([header.shape[0] for header in headers])
    ranges: dict[int, tuple[int, int]] = {}
    for run in _runs(absent):
        before, after = by_number.get(run[0] - 1), by_number.get(run[-1] + 1)
        start = 0 if run[0] == 0 else before.z_stop if before else None
        stop = after.z_start if after else total
        if start is None or stop is None or stop <= start:
            continue
        step = stop - start if len(run) == 1 else sizes
        if not step * (len(run) - 1) < stop - start <= step * len(run):
            continue
        for index, number in enumerate(run):
            first = start + index * step
            ranges[number] = (first, min(first + step, stop) - 1)
    return ranges


def block_label(header_or_name: BlockHeader | int | str) -> str:
    """Return how messages call a block: ``block 00000003``, or the name of a single file."""
    if isinstance(header_or_name, BlockHeader):
        header_or_name = header_or_name.name if (n := header_or_name.number) is None else n
    return f"block {header_or_name:08d}" if isinstance(header_or_name, int) else header_or_name


def z_text(z_range: tuple[int, int] | None) -> str:
    """Return `` (z 54-71)`` for first and last slice, and nothing where they are not known."""
    return "" if z_range is None else f" (z {z_range[0]}-{z_range[1]})"


def _most_common(values: Sequence[Any]) -> Any:
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _runs(numbers: Collection[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _common_field_problems(headers: Sequence[BlockHeader]) -> list[Problem]:
    problems = []
    for field, kind, name in _COMMON_FIELDS:
        get = attrgetter(field)
        common = _most_common([get(header) for header in headers])
        for header in headers:
            value = get(header)
            # Only the first block has a dataset_id, and old files lack fields.
            if value is None or _same(value, common):
                continue
            problems.append(
                Problem(
                    header.name,
                    kind,
                    f"{block_label(header)} does not belong to the others: its {name} is "
                    f"{_show(value)}, theirs {_show(common)}: put the block of this volume there",
                )
            )
    return problems


def _same(value: Any, common: Any) -> bool:
    if isinstance(value, tuple) and isinstance(value[0], float):
        return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(value, common, strict=True))
    return bool(value == common)


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _size_problems(headers: Sequence[BlockHeader]) -> list[Problem]:
    problems = []
    plane = _most_common([header.shape[1:] for header in headers])
    for header in headers:
        n_slices = header.z_stop - header.z_start
        if n_slices != header.shape[0]:
            text = (
                f"its zdim_range {header.z_start}-{header.z_stop - 1} is {n_slices} slices and "
                f"its variable {header.variable!r} has {header.shape[0]}"
            )
        elif header.shape[1:] != plane:
            text = f"its slices are {_plane(header.shape[1:])}, those of the others {_plane(plane)}"
        elif not _fits_grid(header):
            text = (
                f"its slices are {_plane(header.shape[1:])} and its total_grid_size_xyz "
                f"{_show(header.total_grid_size_xyz)}"
            )
        else:
            continue
        problems.append(
            Problem(
                header.name,
                "size",
                f"{block_label(header)} has a size that cannot be: {text}: copy it again, or have "
                "it written again",
            )
        )
    return problems


def _plane(shape: Sequence[int]) -> str:
    return f"{shape[0]} rows of {shape[1]}"


def _fits_grid(header: BlockHeader) -> bool:
    if header.total_grid_size_xyz is None:
        return True
    n_x, n_y, n_z = header.total_grid_size_xyz
    n_columns = header.shape[2]
    # Four values a voxel in colour volumes, whose grid may be counted in voxels.
    fits_columns = n_columns == n_x or (header.variable == "rgba8" and n_columns == 4 * n_x)
    return fits_columns and header.shape[1] == n_y and header.zdim_total in (None, n_z)


def _missing_problems(headers: Sequence[BlockHeader], unreadable: Collection[int]) -> list[Problem]:
    expected = _most_common([header.number_of_files for header in headers])
    if expected is None:
        return []
    if headers[0].number is None:
        if expected == 1:
            return []
        name = headers[0].name
        return [
            Problem(
                name,
                "missing",
                f"{name} is one file of {expected} that make the volume: open the folder of "
                "all the blocks",
            )
        ]
    missing = set(range(expected)) - {header.number for header in headers} - set(unreadable)
    # A block that cannot be read leaves a hole of its own.
    ranges = expected_z_ranges(headers, {*missing, *unreadable})
    return [
        Problem(
            f"block{number:08d}.nc",
            "missing",
            f"{block_label(number)} missing{z_text(ranges.get(number))}: copy "
            f"block{number:08d}.nc into the folder again, the volume has {expected} blocks",
        )
        for number in sorted(missing)
    ]


def _extra_problems(headers: Sequence[BlockHeader]) -> list[Problem]:
    expected = _most_common([header.number_of_files for header in headers])
    return [
        Problem(
            header.name,
            "extra",
            f"{block_label(header)} is more than number_of_files allows, the volume has "
            f"{expected} blocks: take it out of the folder if it belongs to another volume",
        )
        for header in headers
        if expected is not None and header.number is not None and header.number >= expected
    ]


def _order_problems(headers: Sequence[BlockHeader], unreadable: Collection[int]) -> list[Problem]:
    problems = []
    present = {header.number for header in headers}
    expected = _most_common([header.number_of_files for header in headers]) or 0
    absent = {n for n in range(expected) if n not in present} | set(unreadable)
    total = _most_common([header.zdim_total for header in headers])
    stop = 0
    last_number = -1
    for header in headers:
        number = header.number or 0
        if header.z_start < stop:
            problems.append(
                Problem(
                    header.name,
                    "overlap",
                    f"{block_label(header)} overlaps{z_text((header.z_start, stop - 1))} with "
                    "the block before it: one of the two belongs to another volume, take it out",
                )
            )
        elif header.z_start > stop and not absent.intersection(range(last_number + 1, number)):
            problems.append(_gap(header.name, stop, header.z_start - 1))
        stop, last_number = max(stop, header.z_stop), number
    last_absent = absent.intersection(range(last_number + 1, expected))
    if total is not None and stop < total and not last_absent:
        problems.append(_gap(headers[-1].name, stop, total - 1))
    if total is not None and stop > total:
        problems.append(
            Problem(
                headers[-1].name,
                "total",
                f"{block_label(headers[-1])} ends at slice {stop - 1} of a volume of {total}: "
                "its zdim_range or its zdim_total is wrong, have it written again",
            )
        )
    return problems


def _gap(name: str, first: int, last: int) -> Problem:
    return Problem(
        name,
        "gap",
        f"no block holds slices {first} to {last}{z_text((first, last))}: have the volume written "
        f"again, {name} stands beside the gap",
    )
