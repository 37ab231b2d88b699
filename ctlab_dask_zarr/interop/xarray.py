"""To xarray and back: physical coordinates, names, attributes.

Importing this module gives every `xarray.DataArray` the accessor ``.ctlab``.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import parse_json_object, plain_json
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from dask.delayed import Delayed

#: Attributes of the array. Nested ones are JSON text, which netCDF can keep too.
_DATATYPE, _ID, _HISTORY, _EXTRA = "datatype", "dataset_id", "ctlab_history", "ctlab_attributes"
#: Set only where it differs from what the data type says: 1 or 0, as netCDF has no booleans.
_DISCRETE = "is_discrete"
#: Attribute of a coordinate with one position, from which the edge of a voxel is not known. Longer
#: coordinates must not have it: after `coarsen` it would be wrong.
_SPACING = "spacing"
#: Positions may be off a regular grid by this part of a voxel, as float32 positions are.
_TOLERANCE = 1e-2
#: Names of axes that are not spatial.
_NOT_OF_SPACE = frozenset({"t", "time", "c", "channel", "channels"})
#: Field that keeps the name and the attributes of an array of another program.
_FOREIGN = "xarray"
#: The name of an array whose data type is not known.
_NAME = "voxels"


def to_xarray(dataset: Volume) -> xr.DataArray:
    """Return a dataset as a `xarray.DataArray`; the voxels stay lazy.

    Raises `MetadataError` for a history or a further attribute that JSON cannot hold.

    Examples
    --------
    >>> import dask.array as da
    >>> from ctlab_dask_zarr import Dataset
    >>> ds = Dataset(
    ...     da.zeros((4, 5, 6), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> array = to_xarray(ds)
    >>> array.z.values.tolist(), array.z.attrs["units"]
    ([0.0, 2.5, 5.0, 7.5], 'um')
    >>> Dataset.from_xarray(array.sel(x=slice(0, 5)))
    <Dataset tomo (z: 4, y: 5, x: 3) uint16, voxel 2.5 um>
    """
    unit = str(dataset.voxel_unit)
    coords = {
        name: xr.Variable(
            name,
            start + size * np.arange(n),
            {"units": unit} | ({_SPACING: size} if n == 1 else {}),
        )
        for name, n, size, start in zip(
            dataset.dimension_names, dataset.shape, dataset.voxel_size, dataset.origin, strict=True
        )
    }
    extra = plain_json(dataset.extra_attrs, "extra_attrs")
    foreign = extra.pop(_FOREIGN) if _is_foreign(extra.get(_FOREIGN)) else {}
    attributes: dict[str, Any] = dict(foreign.get("attributes", {}))
    if dataset.datatype is not None:
        attributes[_DATATYPE] = str(dataset.datatype)
    if dataset.dataset_id is not None:
        attributes[_ID] = dataset.dataset_id
    if dataset.history:
        attributes[_HISTORY] = json.dumps(plain_json(dataset.history, "history"))
    if extra:
        attributes[_EXTRA] = json.dumps(extra)
    if dataset.is_discrete != (dataset.datatype is not None and dataset.datatype.is_discrete):
        attributes[_DISCRETE] = int(dataset.is_discrete)
    return xr.DataArray(
        dataset.data,
        coords,
        dataset.dimension_names,
        name=foreign.get("name", attributes.get(_DATATYPE, _NAME)),
        attrs=attributes,
    )


def volume_from_xarray(array: xr.DataArray, *, datatype: str | None = None) -> Volume:
    """Return a `xarray.DataArray` as a volume: see `Dataset.from_xarray`."""
    import dask.array as da

    if not isinstance(array, xr.DataArray):
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
    is_same = datatype in (None, attributes.get(_DATATYPE))
    said = attributes.get(_DISCRETE) if is_same else None
    try:
        return Volume(
            data,
            dimension_names=names,
            voxel_unit=unit,
            voxel_size=size,
            datatype=datatype or attributes.get(_DATATYPE),
            history=_mapping(array, _HISTORY),
            dataset_id=attributes.get(_ID),
            extra_attrs={**_mapping(array, _EXTRA), **_foreign(array)},
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
        if key in (_DATATYPE, _ID, _HISTORY, _EXTRA, _DISCRETE):
            continue
        try:
            attributes[str(key)] = plain_json(value, str(key))
        except MetadataError:
            refused.append(str(key))
    if refused:
        text = f"left out the attributes {', '.join(refused)}, whose values JSON cannot hold"
        warnings.warn(shown(text), stacklevel=3)
    found: dict[str, Any] = {"attributes": attributes} if attributes else {}
    if array.name not in (None, _NAME, array.attrs.get(_DATATYPE)):
        found["name"] = str(array.name)
    return {_FOREIGN: found} if found else {}


def _is_foreign(value: Any) -> bool:
    """Whether `_foreign` made this: a store may have anything under that name."""
    if not isinstance(value, dict) or not value.keys() <= {"name", "attributes"}:
        return False
    return isinstance(value.get("attributes", {}), dict) and isinstance(value.get("name", ""), str)


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
    attribute = f"array.{name}.attrs['{_SPACING}']"
    if _SPACING not in coordinate.attrs:
        raise InvalidArgumentError(
            f"the axis {name!r} has one voxel, whose size one coordinate cannot tell: set "
            f"{attribute}"
        )
    value = coordinate.attrs[_SPACING]
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


@xr.register_dataarray_accessor("ctlab")  # type: ignore[no-untyped-call]
class CTLabAccessor:
    """What this package does with an array: ``array.ctlab``."""

    #: What `to_dataset` returns. `Dataset`, which imports this module, puts itself here.
    dataset_class: ClassVar[Any] = None

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    @property
    def mask_value(self) -> Any:
        """The value of masked voxels, from the attribute ``datatype``; None if it has none."""
        datatype = self._array.attrs.get(_DATATYPE)
        try:
            return None if datatype is None else DataType.from_basename(str(datatype)).mask_value
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error

    @property
    def mask(self) -> xr.DataArray:
        """Which voxels are masked, lazy if the array is: ``array.where(~array.ctlab.mask)``."""
        if self.mask_value is None:
            return xr.zeros_like(self._array, dtype=bool)
        mask: xr.DataArray = self._array == self.mask_value
        return mask

    def to_dataset(self, *, datatype: str | None = None) -> Any:
        """Return the array as a `Dataset`: see `from_xarray`."""
        return self.dataset_class.from_xarray(self._array, datatype=datatype)

    def to_zarr(self, path: Any, *, datatype: str | None = None, **options: Any) -> Delayed | None:
        """Write the array: see `ctlab_dask_zarr.dataset_to_zarr` for the options."""
        from ctlab_dask_zarr.api.write import dataset_to_zarr

        return dataset_to_zarr(self.to_dataset(datatype=datatype), path, **options)
