"""Arrays of NumPy, dask, xarray, h5py and Zarr as volumes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError, is_delayed, no_dataset
from ctlab_dask_zarr.formats.json_values import parse_json_object, plain_json
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    import xarray as xr

#: Attributes of the array. Nested ones are JSON text, which netCDF can keep too.
DATATYPE, ID, HISTORY, EXTRA = "datatype", "dataset_id", "ctlab_history", "ctlab_attributes"
#: Set only where it differs from what the data type says: 1 or 0, as netCDF has no booleans.
DISCRETE = "is_discrete"
#: Attribute of a coordinate with one position, from which the edge of a voxel is not known. Longer
#: coordinates must not have it: after `coarsen` it would be wrong.
SPACING = "spacing"
#: Positions may be off a regular grid by this part of a voxel, as float32 positions are.
_TOLERANCE = 1e-2
#: Names of axes that are not spatial.
_NOT_OF_SPACE = frozenset({"t", "time", "c", "channel", "channels"})
#: Field that keeps the name and the attributes of an array of another program.
FOREIGN = "xarray"
#: The name of an array whose data type is not known.
NAME = "voxels"


def given_volume(value: Any, argument: str) -> Any:
    """Return what was given as a dataset: itself, or a `xarray.DataArray` that says its voxel size.

    `argument` is its name in the error for anything else, which shows the line to write.
    """
    if says_voxel_size(value):
        return volume_from_xarray(value)
    is_array = hasattr(value, "dtype") and not hasattr(value, "dimension_names")
    if is_delayed(value) or is_array or not hasattr(value, "data"):
        raise no_dataset(value, argument)
    return value


def volume_from_array(array: Any, *, chunks: Any = "auto", **facts: Any) -> Volume:
    """Return an array as a volume: see `Dataset.from_array`."""
    import dask.array as da

    if _is_data_array(array):
        facts = {"dimension_names": tuple(map(str, array.dims))} | facts
        array = array.data
    if is_delayed(array) or not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise no_dataset(array, "array", "an array")
    if not hasattr(array, "dask"):
        array = da.from_array(array, chunks=chunks)
    elif chunks != "auto":
        array = array.rechunk(chunks)
    return Volume(array, **facts)


def says_voxel_size(value: Any) -> bool:
    """Whether a value is a `xarray.DataArray` with coordinates along its axes."""
    return _is_data_array(value) and any(name in value.coords for name in value.dims)


def _is_data_array(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.startswith("xarray.") and kind.__name__ == "DataArray"


def volume_from_xarray(array: xr.DataArray, *, datatype: str | None = None) -> Volume:
    """Return a `xarray.DataArray` as a volume: see `Dataset.from_xarray`."""
    import dask.array as da

    if not _is_data_array(array):
        raise InvalidArgumentError(
            f"a {type(array).__name__} is not a DataArray: choose a variable of a Dataset, as "
            "ds['tomo']"
        )
    names = tuple(map(str, array.dims))
    _refuse_other_axes(array, names)
    size, unit, origin = _spacing(array, names)
    data = array.data if hasattr(array.data, "dask") else da.from_array(array.data)
    attributes = array.attrs
    # A data type that differs from the attribute's decides instead of the attributes.
    is_same = datatype in (None, attributes.get(DATATYPE))
    said = attributes.get(DISCRETE) if is_same else None
    try:
        return Volume(
            data,
            dimension_names=names,
            voxel_unit=unit,
            voxel_size=size,
            datatype=datatype or attributes.get(DATATYPE),
            history=_mapping(array, HISTORY),
            dataset_id=attributes.get(ID),
            extra_attrs={**_mapping(array, EXTRA), **_foreign(array)},
            origin=origin,
            is_discrete=None if said is None else bool(said),
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def _refuse_other_axes(array: xr.DataArray, names: Sequence[str]) -> None:
    if array.ndim not in (2, 3):
        raise InvalidArgumentError(
            f"the array has the axes {names}; volumes have two or three spatial axes: select one "
            "position on the others, as array.isel(t=0)"
        )
    for name, n in zip(names, array.shape, strict=True):
        if name.lower() in _NOT_OF_SPACE:
            raise InvalidArgumentError(
                f"the axis {name!r} is not spatial: select one position, as array.isel({name}=0)"
            )
        if n == 0:
            raise InvalidArgumentError(
                f"the array is empty along {name!r}: check the selection; coordinates are the "
                "centres of voxels"
            )


def _mapping(array: xr.DataArray, name: str) -> Mapping[str, Any]:
    try:
        return parse_json_object(array.attrs.get(name, "{}"), f"the attribute {name}")
    except MetadataError as error:
        raise InvalidArgumentError(str(error)) from error


def _foreign(array: xr.DataArray) -> dict[str, Any]:
    """Return the name and the attributes of an array that have no place of their own."""
    attributes, refused = {}, []
    for key, value in array.attrs.items():
        if key in (DATATYPE, ID, HISTORY, EXTRA, DISCRETE):
            continue
        try:
            attributes[str(key)] = plain_json(value, str(key))
        except MetadataError:
            refused.append(str(key))
    if refused:
        text = f"left out the attributes {', '.join(refused)}, whose values JSON cannot hold"
        warnings.warn(shown(text), stacklevel=3)
    found: dict[str, Any] = {"attributes": attributes} if attributes else {}
    if array.name not in (None, NAME, array.attrs.get(DATATYPE)):
        found["name"] = str(array.name)
    return {FOREIGN: found} if found else {}


def _spacing(
    array: xr.DataArray, names: Sequence[str]
) -> tuple[tuple[float, ...], VoxelUnit, tuple[float, ...]]:
    """Return voxel size, unit and origin, from the coordinates."""
    missing = [name for name in names if name not in array.coords]
    if len(missing) == len(names):
        return (1.0,) * len(names), VoxelUnit.VOXEL, (0.0,) * len(names)
    if missing:
        raise InvalidArgumentError(f"the axis {missing[0]!r} has no coordinates, but others have")
    sizes = [_spacing_along(array.coords[name], name) for name in names]
    units = [_unit(array.coords[name], name) for name in names]
    first = units[0]
    try:
        factors = [1.0 if unit == first else unit.conversion_factor(first) for unit in units]
    except ValueError as error:
        raise InvalidArgumentError(f"the units of the axes cannot be combined: {error}") from error
    starts = (float(array.coords[name].values[0]) for name in names)
    return (
        tuple(size * factor for size, factor in zip(sizes, factors, strict=True)),
        first,
        tuple(start * factor for start, factor in zip(starts, factors, strict=True)),
    )


def _spacing_along(coordinate: xr.DataArray, name: str) -> float:
    values = coordinate.values
    if values.dtype.kind not in "iuf":
        raise InvalidArgumentError(
            f"the coordinates along {name!r} are {values.dtype}, not lengths"
        )
    if len(values) == 1:
        return _one_length(coordinate, name)
    positions = values.astype(float)
    step = float((positions[-1] - positions[0]) / (len(positions) - 1))
    if not step > 0:
        raise InvalidArgumentError(
            f"the coordinates along {name!r} do not increase: reverse the axis, as "
            f"array.isel({name}=slice(None, None, -1))"
        )
    regular = np.linspace(positions[0], positions[-1], len(positions))
    off = float(np.abs(positions - regular).max() / step)
    if not off <= _TOLERANCE:
        raise InvalidArgumentError(
            f"the coordinates along {name!r} are not regular: one is {off:.2g} voxels off a grid "
            f"with steps of {step:.6g}; all voxels have one size, so interpolate first"
        )
    return step


def _one_length(coordinate: xr.DataArray, name: str) -> float:
    attribute = f"array.{name}.attrs['{SPACING}']"
    if SPACING not in coordinate.attrs:
        raise InvalidArgumentError(
            f"the axis {name!r} has one voxel, whose size one coordinate cannot tell: set "
            f"{attribute}"
        )
    value = coordinate.attrs[SPACING]
    try:
        length = float(value)
    except (TypeError, ValueError):
        length = math.nan
    if not 0 < length < math.inf:
        raise InvalidArgumentError(
            f"{attribute} is {value!r}, which is not a length: set it to the edge of a voxel"
        )
    return length


def _unit(coordinate: xr.DataArray, name: str) -> VoxelUnit:
    text = coordinate.attrs.get("units")
    if text is None:
        raise InvalidArgumentError(
            f"the coordinates along {name!r} have no units: set array.{name}.attrs['units'] = 'um'"
        )
    try:
        return VoxelUnit.from_str(str(text))
    except ValueError as error:
        raise InvalidArgumentError(f"the units {text!r} along {name!r} are not lengths") from error
