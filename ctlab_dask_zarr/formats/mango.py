"""The mango attribute block: what CTLab programs know about a volume, beside its voxels.

The block holds its voxel size as ``voxel_size_xyz``, in the order x, y, z whatever the order of
the array's axes; everywhere else in this package a voxel size is in the order of the dimension
names. The two meet in `_to_xyz` and `_from_xyz`, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import plain_json
from ctlab_dask_zarr.formats.units import NOTHING_GIVEN, Given, VoxelUnit, common_unit

__all__ = [
    "CARRIED_DEFAULTS",
    "METADATA_VERSION",
    "RESERVED_KEYS",
    "MangoBlock",
    "build_mango_block",
    "edit_mango_block",
    "new_dataset_id",
    "parse_mango_block",
]

METADATA_VERSION = (1, 0)

#: Fields that are carried through from the source, and what stands there when it has none.
CARRIED_DEFAULTS: dict[str, Any] = {
    "coord_transform": "",
    "intensity_f2i_offset_scale": [0.0, 1.0],
    "offset_to_coordinate_origin_xyz": [0.0, 0.0, 0.0],
    "coordinate_origin_xyz": [0, 0, 0],
}

#: Fields that come from the dataset itself, so that no extra attribute may stand in for them.
RESERVED_KEYS = frozenset(
    {
        "metadata_version_major",
        "metadata_version_minor",
        "basename",
        "dataset_id",
        "history",
        "voxel_size_xyz",
        "voxel_unit",
    }
)


@dataclass(frozen=True)
class MangoBlock:
    """A mango block as read.

    Attributes
    ----------
    datatype
        From ``basename``; None where the block has none.
    voxel_size
        In the order of the array's dimension names, in `voxel_unit`; None where it is missing.
    extra_attrs
        Every other field, to be written again.
    """

    datatype: DataType | None
    dataset_id: str | None
    history: dict[str, Any]
    voxel_size: tuple[float, ...] | None
    voxel_unit: VoxelUnit | None
    extra_attrs: dict[str, Any] = field(default_factory=dict)


def build_mango_block(
    *,
    datatype: DataType | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
    voxel_size: Sequence[float],
    voxel_unit: VoxelUnit,
    dimension_names: Sequence[str],
    extra_attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the block as it is written, plain JSON.

    Raises
    ------
    MetadataError
        For a value that JSON cannot hold, a reserved key among `extra_attrs`, or a carried field
        of the wrong form.
    """
    block: dict[str, Any] = {
        "metadata_version_major": METADATA_VERSION[0],
        "metadata_version_minor": METADATA_VERSION[1],
    }
    if datatype is not None:
        block["basename"] = str(datatype)
    if dataset_id is not None:
        block["dataset_id"] = plain_json(dataset_id, "dataset_id")
    block["history"] = plain_json(history, "history")
    block["voxel_size_xyz"] = _to_xyz(voxel_size, dimension_names)
    block["voxel_unit"] = str(voxel_unit)
    reserved = sorted(RESERVED_KEYS.intersection(extra_attrs))
    if reserved:
        raise MetadataError(
            f"extra attribute {reserved[0]!r} would replace a field of the mango block: set it on "
            "the dataset, or by the argument of that name"
        )
    extra = {key: plain_json(value, key) for key, value in extra_attrs.items()}
    for key, default in CARRIED_DEFAULTS.items():
        value = extra.pop(key, default)
        if type(value) is not type(default) or (
            isinstance(default, list) and not _numbers(value, len(default))
        ):
            raise MetadataError(f"{key}={value!r} does not have the form of {default!r}")
        block[key] = value
    return block | extra


def edit_mango_block(
    block: Mapping[str, Any],
    *,
    dataset_id: str | None = None,
    history: Mapping[str, Any] | None = None,
    voxel_size: tuple[Sequence[float], VoxelUnit, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return a block, whoever wrote it, with some of its fields changed.

    Parameters
    ----------
    block
        As it is; every other field is kept.
    history
        Entries to add.
    voxel_size
        Voxel size, its unit, and the dimension names in whose order it is.
    """
    changed = dict(block)
    if dataset_id is not None:
        changed["dataset_id"] = plain_json(dataset_id, "dataset_id")
    if history:
        changed["history"] = {**block.get("history", {}), **plain_json(history, "history")}
    if voxel_size is not None:
        size, unit, names = voxel_size
        changed |= {"voxel_size_xyz": _to_xyz(size, names), "voxel_unit": str(unit)}
    return changed


def parse_mango_block(
    block: Any, dimension_names: Sequence[str], given: Given = NOTHING_GIVEN
) -> MangoBlock:
    """Read a block as found in a store.

    What is `given` from elsewhere may be wrong here, and is not read.

    Raises
    ------
    UnsupportedFormatError
        The block is of a higher major version than is known here.
    MetadataError
        A field is not what its name says; an unknown data type.
    """
    if not isinstance(block, Mapping):
        raise MetadataError(f"the mango attribute is a {type(block).__name__}, not an object")
    major = block.get("metadata_version_major", METADATA_VERSION[0])
    if not isinstance(major, int) or major > METADATA_VERSION[0]:
        raise UnsupportedFormatError(
            f"mango metadata version {major}.{block.get('metadata_version_minor', 0)} is newer "
            f"than {METADATA_VERSION[0]}.x, which this version reads: update ctlab-dask-zarr"
        )
    basename = block.get("basename")
    name = None if given.unit else block.get("voxel_unit")
    history = block.get("history", {})
    if not isinstance(history, Mapping):
        raise MetadataError(f"mango history is a {type(history).__name__}, not an object")
    try:
        datatype = None if basename is None else DataType.from_basename(basename)
        unit, (factor,), _ = common_unit([name])
    except (ValueError, AttributeError, TypeError) as error:
        raise MetadataError(f"mango block: {error}") from error
    xyz = None if given.size else block.get("voxel_size_xyz")
    size = None if xyz is None else _from_xyz(xyz, dimension_names)
    dataset_id = block.get("dataset_id")
    return MangoBlock(
        datatype=datatype,
        dataset_id=None if dataset_id is None else str(dataset_id),
        history=dict(history),
        voxel_size=None if size is None else tuple(length * factor for length in size),
        voxel_unit=None if name is None else unit,
        extra_attrs={k: v for k, v in block.items() if k not in RESERVED_KEYS},
    )


def new_dataset_id(name: object, now: datetime) -> str:
    """Return an identifier in mango's form, ``YYYYMMDD_HHMMSS_<name>``, local time."""
    return f"{now:%Y%m%d_%H%M%S}_{name or 'volume'}"


def _numbers(values: Sequence[Any], n: int) -> bool:
    return len(values) == n and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )


def _are_lengths(sizes: Sequence[float]) -> bool:
    return all(0 < size < math.inf for size in sizes)


def _to_xyz(voxel_size: Sequence[float], dimension_names: Sequence[str]) -> list[float]:
    """Return x, y, z; an axis that the array does not have counts as 1.0."""
    if set(dimension_names) <= set("xyz"):
        by_name = dict(zip(dimension_names, voxel_size, strict=True))
        return [float(by_name.get(name, 1.0)) for name in "xyz"]
    sizes = [float(size) for size in reversed(voxel_size)]
    return sizes + [1.0] * (3 - len(sizes))


def _from_xyz(sizes: Any, dimension_names: Sequence[str]) -> tuple[float, ...]:
    if not isinstance(sizes, Sequence) or not _numbers(sizes, 3) or not _are_lengths(sizes):
        raise MetadataError(f"voxel_size_xyz {sizes!r} is not three lengths")
    if set(dimension_names) <= set("xyz"):
        by_name = dict(zip("xyz", sizes, strict=True))
        return tuple(float(by_name[name]) for name in dimension_names)
    return tuple(float(size) for size in reversed(sizes[: len(dimension_names)]))
