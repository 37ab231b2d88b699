"""What is put into the header of a mango netCDF file that is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.mango import CARRIED_DEFAULTS, RESERVED_KEYS, to_xyz
from ctlab_dask_zarr.formats.netcdf import BOOKKEEPING_KEYS
from ctlab_dask_zarr.formats.units import VoxelUnit

#: mango closes a file at about this many voxels.
VOXELS_PER_FILE = 2**28
#: Of fields that mango has in the first file alone.
_OF_FIRST_FILE = frozenset({"data_min_max"})
_DTYPES = {
    "intensity_f2i_offset_scale": "float32",
    "offset_to_coordinate_origin_xyz": "float32",
    "coordinate_origin_xyz": "int32",
}


def slices_of_file(shape: Sequence[int], n_elements: int, *, rounds: bool = True) -> int:
    """Return how many slices of a volume mango puts into a file of about `n_elements` voxels.

    As many as it takes to have so many, rounded down, with `rounds`, to a number without prime
    factors above 5: of 2520 x 2520 voxels there are 40 slices in a file of 2^28 and not 43.

    Examples
    --------
    >>> slices_of_file((2520, 2520, 2520), 2**28), slices_of_file((100, 200, 300), 2**20)
    (40, 18)
    """
    n_slices = min(shape[0], 1 + (n_elements - 1) // max(math.prod(shape[1:]), 1))
    if n_slices == shape[0] or not rounds:
        return n_slices
    return next(n for n in range(n_slices, 0, -1) if _is_smooth(n))


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def common_attributes(
    datatype: DataType,
    shape: Sequence[int],
    voxel_size: Sequence[float],
    voxel_unit: VoxelUnit,
    dimension_names: Sequence[str],
    extra: Mapping[str, Any],
    n_files: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of all files of a volume, and further ones of the first."""
    taken = sorted(
        key
        for key in extra
        if key in RESERVED_KEYS | BOOKKEEPING_KEYS or key.startswith("history") or "/" in key
    )
    if taken:
        raise InvalidArgumentError(
            f"extra attribute {taken[0]!r} would replace what a mango netCDF file has of its own: "
            "set it on the dataset, or give it another name"
        )
    attributes: dict[str, Any] = {
        "zdim_total": np.array(shape[:1], np.int32),
        "number_of_files": np.array([n_files], np.int32),
        "data_description": f"Volume <{datatype.dtype.name}>",
        "voxel_size_xyz": np.array(to_xyz(voxel_size, dimension_names), np.float32),
        "voxel_unit": str(voxel_unit),
        "total_grid_size_xyz": np.array(shape[::-1], np.int32),
    }
    of_first: dict[str, Any] = {}
    for key, value in (CARRIED_DEFAULTS | dict(extra)).items():
        if value is None:
            continue
        target = of_first if key in _OF_FIRST_FILE else attributes
        target[key] = _attribute(key, value)
    # netCDF has no empty text but a line end.
    attributes["coord_transform"] = attributes["coord_transform"] or "\n"
    return attributes, of_first


def _attribute(key: str, value: Any) -> Any:
    """Return a value as netCDF holds it: text, or an array; what has a structure, as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return np.array([value], np.int8)
    try:
        found = np.array(value if isinstance(value, Sequence) else [value], _DTYPES.get(key))
    except (TypeError, ValueError):
        found = np.array(None)
    if found.ndim == 1 and found.size and found.dtype.kind in "iuf":
        return found.astype(np.int32) if _is_short(found) else found
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"extra attribute {key!r} cannot be written: {error}") from error


def _is_short(values: Any) -> bool:
    info = np.iinfo(np.int32)
    is_whole = values.dtype.kind in "iu"
    return is_whole and info.min <= int(values.min()) and int(values.max()) <= info.max
