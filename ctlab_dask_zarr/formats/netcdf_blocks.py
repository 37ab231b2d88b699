"""Whether the files of a mango netCDF folder make a whole volume.

Every block describes the whole volume, so blocks are checked against each other before a voxel is
read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ctlab_dask_zarr.formats.netcdf import BlockHeader, block_number
from ctlab_dask_zarr.formats.problems import Problem

#: What must be the same in every block: field, kind of the problem, name in the message.
_COMMON_FIELDS = (
    ("variable", "dataset", "variable"),
    ("dataset_id", "dataset", "dataset_id"),
    ("stored_dtype", "dtype", "stored dtype"),
    ("zdim_total", "total", "zdim_total"),
    ("number_of_files", "number_of_files", "number_of_files"),
    ("total_grid_size_xyz", "total", "total_grid_size_xyz"),
    ("voxel_unit", "voxel_unit", "voxel_unit"),
    ("voxel_size_xyz", "voxel_size", "voxel_size_xyz"),
)

Headers = Sequence[BlockHeader]


def validate_blocks(
    headers: Headers, failed: Mapping[str, tuple[str, str]] | None = None
) -> list[Problem]:
    """Return why files are not one whole volume, sorted by file.

    `failed` has, for each file that could not be opened, the kind of the problem and the reason;
    these files do not count as missing.
    """
    failed = failed or {}
    ordered = sorted(headers, key=lambda header: (header.z_start, header.number or 0))
    n_files = _most_common(header.number_of_files for header in headers) or 0
    present = {header.number for header in headers}
    unreadable = {n for n in map(block_number, failed) if n is not None} - present
    missing = set(range(n_files)) - present - unreadable
    # A block that cannot be read leaves a gap of its own.
    ranges = _expected_z_ranges(headers, missing | unreadable)
    problems = [
        _problem(
            name,
            kind,
            f"{kind}{_z_text(ranges.get(block_number(name)))}: {name} {reason}: copy it again from "
            "where the volume was made",
        )
        for name, (kind, reason) in failed.items()
    ]
    if headers:
        problems += _field_problems(ordered)
        problems += _size_problems(ordered)
        problems += _number_problems(ordered, n_files, {n: ranges.get(n) for n in missing})
        problems += _order_problems(ordered, n_files, missing | unreadable)
    return sorted(problems, key=lambda problem: problem.location)


def _problem(name: str, kind: str, text: str) -> Problem:
    number = block_number(name)
    return Problem(name, kind, f"{name if number is None else f'block {number:08d}'} {text}")


def _expected_z_ranges(
    headers: Headers, absent: Collection[int]
) -> dict[int | None, tuple[int, int]]:
    """Return the first and last slice of each of the blocks with these numbers, if known.

    The blocks on both sides of a gap tell its extent. Several blocks in one gap share it in steps
    of the usual size, if these fill it.
    """
    by_number = {header.number: header for header in headers}
    total = _most_common(header.zdim_total for header in headers)
    usual = _most_common(header.shape[0] for header in headers)
    ranges: dict[int | None, tuple[int, int]] = {}
    for _, numbered in groupby(enumerate(sorted(absent)), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in numbered]
        before, after = by_number.get(run[0] - 1), by_number.get(run[-1] + 1)
        start = 0 if run[0] == 0 else before.z_stop if before else None
        stop = after.z_start if after else total
        if start is None or stop is None or stop <= start:
            continue
        step = stop - start if len(run) == 1 else usual
        if step * (len(run) - 1) < stop - start <= step * len(run):
            for first, number in zip(range(start, stop, step), run, strict=True):
                ranges[number] = (first, min(first + step, stop) - 1)
    return ranges


def _most_common(values: Iterable[Any]) -> Any:
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _z_text(z_range: tuple[int, int] | None) -> str:
    return "" if z_range is None else f" (z {z_range[0]}-{z_range[1]})"


def _field_problems(headers: Headers) -> Iterator[Problem]:
    for field, kind, name in _COMMON_FIELDS:
        common = _most_common(getattr(header, field) for header in headers)
        for header in headers:
            value = getattr(header, field)
            # Only the first block has a dataset_id, and old files lack fields.
            if value is not None and not _is_same(value, common):
                yield _problem(
                    header.name,
                    kind,
                    f"does not belong to the others: its {name} is {_shown(value)}, theirs "
                    f"{_shown(common)}: put the block of this volume there",
                )


def _is_same(value: Any, common: Any) -> bool:
    if isinstance(value, tuple) and isinstance(value[0], float):
        return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(value, common, strict=True))
    return bool(value == common)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _size_problems(headers: Headers) -> Iterator[Problem]:
    plane = _most_common(header.shape[1:] for header in headers)
    for header in headers:
        n_slices = header.z_stop - header.z_start
        text = f"its slices are {_plane(header.shape[1:])}"
        if n_slices != header.shape[0]:
            text = (
                f"its zdim_range {header.z_start}-{header.z_stop - 1} is {n_slices} slices and "
                f"its variable {header.variable!r} has {header.shape[0]}"
            )
        elif header.shape[1:] != plane:
            text += f", those of the others {_plane(plane)}"
        elif not _fits_grid(header):
            text += f" and its total_grid_size_xyz {_shown(header.total_grid_size_xyz)}"
        else:
            continue
        advice = "copy it again, or have it written again"
        yield _problem(header.name, "size", f"has an impossible size: {text}: {advice}")


def _plane(shape: Sequence[int]) -> str:
    return f"{shape[0]} rows of {shape[1]}"


def _fits_grid(header: BlockHeader) -> bool:
    if header.total_grid_size_xyz is None:
        return True
    n_x, n_y, n_z = header.total_grid_size_xyz
    _, n_rows, n_columns = header.shape
    # A colour volume has four values a voxel, and its grid may be counted in voxels.
    fits_columns = n_columns == n_x or (header.variable == "rgba8" and n_columns == 4 * n_x)
    return fits_columns and n_rows == n_y and header.zdim_total in (None, n_z)


def _number_problems(
    headers: Headers, n_files: int, missing: Mapping[int, tuple[int, int] | None]
) -> Iterator[Problem]:
    if headers[0].number is None:
        if n_files > 1:
            text = f"is one file of {n_files} that make the volume: open the folder of all of them"
            yield _problem(headers[0].name, "missing", text)
        return
    for number, z_range in missing.items():
        name = f"block{number:08d}.nc"
        text = f"missing{_z_text(z_range)}: copy {name} into the folder again, the volume has"
        yield _problem(name, "missing", f"{text} {n_files} blocks")
    for header in headers:
        if n_files and header.number is not None and header.number >= n_files:
            yield _problem(
                header.name,
                "extra",
                f"is more than number_of_files allows, the volume has {n_files} blocks: take it "
                "out of the folder if it belongs to another volume",
            )


def _order_problems(headers: Headers, n_files: int, absent: set[int]) -> Iterator[Problem]:
    total = _most_common(header.zdim_total for header in headers)
    stop, next_number = 0, 0
    for header in headers:
        number = header.number or 0
        if header.z_start < stop:
            yield _problem(
                header.name,
                "overlap",
                f"overlaps{_z_text((header.z_start, stop - 1))} with the block before it: one of "
                "the two belongs to another volume, take it out",
            )
        elif header.z_start > stop and not absent.intersection(range(next_number, number)):
            yield _gap(header.name, stop, header.z_start - 1)
        stop, next_number = max(stop, header.z_stop), number + 1
    name = headers[-1].name
    if total is not None and stop > total:
        text = f"ends at slice {stop - 1} of a volume of {total}: its zdim_range or its zdim_total"
        yield _problem(name, "total", f"{text} is wrong, have it written again")
    elif (
        total is not None and stop < total and not absent.intersection(range(next_number, n_files))
    ):
        yield _gap(name, stop, total - 1)


def _gap(name: str, first: int, last: int) -> Problem:
    z_range = _z_text((first, last))
    text = f"stands beside a gap: no block holds slices {first} to {last}{z_range}"
    return _problem(name, "gap", f"{text}: have the volume written again")
