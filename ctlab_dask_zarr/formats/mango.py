"""The mango attribute block: the metadata of a volume that CTLab programs read and write.

The block holds its voxel size as ``voxel_size_xyz``, whatever the order of the array's axes;
everywhere else in this package a voxel size is in the order of the dimension names. `to_xyz` and
`_from_xyz` convert, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import are_numbers, plain_json
from ctlab_dask_zarr.formats.units import NOTHING_GIVEN, Given, VoxelUnit, common_unit

_MAJOR, _MINOR = 1, 0

#: Fields that are carried over from the source, and their values if it has none.
CARRIED_DEFAULTS: dict[str, Any] = {
    "coord_transform": "",
    "intensity_f2i_offset_scale": [0.0, 1.0],
    "offset_to_coordinate_origin_xyz": [0.0, 0.0, 0.0],
    "coordinate_origin_xyz": [0, 0, 0],
}

#: Fields that come from the dataset itself; extra attributes may not replace them.
RESERVED_KEYS = frozenset(
    {
        *("metadata_version_major", "metadata_version_minor", "basename", "dataset_id"),
        *("history", "voxel_size_xyz", "voxel_unit"),
    }
)


@dataclass(frozen=True)
class MangoBlock:
    """A mango block as read; fields that it lacks are None.

    `voxel_size` is in the order of the array's dimension names, in `voxel_unit`. `extra_attrs` are
    all other fields.
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
    """Return the block to write, as plain JSON, or raise `MetadataError`."""
    block: dict[str, Any] = {
        "metadata_version_major": _MAJOR,
        "metadata_version_minor": _MINOR,
    }
    if datatype is not None:
        block["basename"] = str(datatype)
    if dataset_id is not None:
        block["dataset_id"] = plain_json(dataset_id, "dataset_id")
    block["history"] = plain_json(history, "history")
    block["voxel_size_xyz"] = to_xyz(voxel_size, dimension_names)
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
            isinstance(default, list) and not are_numbers(value, len(default))
        ):
            raise MetadataError(f"{key}={value!r} does not have the form of {default!r}")
        block[key] = value
    return block | extra


def parse_mango_block(
    block: Any, dimension_names: Sequence[str], given: Given = NOTHING_GIVEN
) -> MangoBlock:
    """Read the block of a store, except what is `given`, which may be wrong in the block."""
    if not isinstance(block, Mapping):
        raise MetadataError(f"the mango attribute is a {type(block).__name__}, not an object")
    major = block.get("metadata_version_major", _MAJOR)
    if not isinstance(major, int) or major > _MAJOR:
        raise UnsupportedFormatError(
            f"mango metadata version {major}.{block.get('metadata_version_minor', 0)} is newer "
            f"than {_MAJOR}.x, which this version reads: update ctlab-dask-zarr"
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


def to_xyz(voxel_size: Sequence[float], dimension_names: Sequence[str]) -> list[float]:
    """Return a voxel size as x, y, z; 1.0 for an axis that the array does not have."""
    if set(dimension_names) <= set("xyz"):
        by_name = dict(zip(dimension_names, voxel_size, strict=True))
        return [float(by_name.get(name, 1.0)) for name in "xyz"]
    sizes = [float(size) for size in reversed(voxel_size)]
    return sizes + [1.0] * (3 - len(sizes))


def _from_xyz(sizes: Any, dimension_names: Sequence[str]) -> tuple[float, ...]:
    if not isinstance(sizes, Sequence) or not are_numbers(sizes, 3) or not min(sizes) > 0:
        raise MetadataError(f"voxel_size_xyz {sizes!r} is not three lengths")
    if set(dimension_names) <= set("xyz"):
        by_name = dict(zip("xyz", sizes, strict=True))
        return tuple(float(by_name[name]) for name in dimension_names)
    return tuple(float(size) for size in reversed(sizes[: len(dimension_names)]))
