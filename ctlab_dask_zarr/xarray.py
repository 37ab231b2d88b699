"""To xarray and back: physical coordinates, names, attributes.

Importing this module gives every `xarray.DataArray` the accessor ``.ctlab``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.units import VoxelUnit

if TYPE_CHECKING:
    from dask.delayed import Delayed

__all__ = ["CTLabAccessor", "from_xarray", "to_xarray"]

#: Attributes of the array. Nested ones are JSON text, which netCDF can keep too.
_DATATYPE, _ID, _HISTORY, _EXTRA = "datatype", "dataset_id", "ctlab_history", "ctlab_attributes"
#: Attribute of a coordinate: the voxel's edge, which one position alone does not tell.
_SPACING = "spacing"
#: Positions may differ from regular ones by this part of a voxel.
_TOLERANCE = 1e-3


def to_xarray(dataset: Dataset, origin: Sequence[float] | None = None) -> xr.DataArray:
    """Return a dataset as a `xarray.DataArray`; the voxels stay lazy.

    Parameters
    ----------
    dataset
        What to convert.
    origin
        Position of the first voxel's centre along each axis, in the unit of the voxel size; by
        default zero.

    Examples
    --------
    >>> import dask.array as da
    >>> ds = Dataset(
    ...     da.zeros((4, 5, 6), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> array = to_xarray(ds)
    >>> array.z.values.tolist(), array.z.attrs["units"]
    ([0.0, 2.5, 5.0, 7.5], 'um')
    >>> from_xarray(array.sel(x=slice(0, 5)))
    <Dataset tomo (z: 4, y: 5, x: 3) uint16, voxel 2.5 um>
    """
    starts = origin or (0.0,) * len(dataset.shape)
    unit = str(dataset.voxel_unit)
    coords = {
        name: xr.Variable(name, start + size * np.arange(n), {"units": unit, _SPACING: size})
        for name, n, size, start in zip(
            dataset.dimension_names, dataset.shape, dataset.voxel_size, starts, strict=True
        )
    }
    attributes: dict[str, Any] = {}
    if dataset.datatype is not None:
        attributes[_DATATYPE] = str(dataset.datatype)
    if dataset.dataset_id is not None:
        attributes[_ID] = dataset.dataset_id
    if dataset.history:
        attributes[_HISTORY] = json.dumps(dataset.history)
    if dataset.extra_attrs:
        attributes[_EXTRA] = json.dumps(dataset.extra_attrs)
    return xr.DataArray(
        dataset.data,
        coords,
        dataset.dimension_names,
        name=attributes.get(_DATATYPE, "voxels"),
        attrs=attributes,
    )


def from_xarray(array: xr.DataArray, *, datatype: str | None = None) -> Dataset:
    """Return a `xarray.DataArray` as a dataset; lazy voxels stay lazy.

    The voxel size is the spacing of the coordinates, its unit their ``units``. Positions begin at
    zero again: a dataset keeps no origin.

    Parameters
    ----------
    array
        Two or three axes of space, with regular increasing coordinates, or with none at all (the
        unit is then the voxel).
    datatype
        The mango data type; by default the attribute ``datatype``.

    Raises
    ------
    InvalidArgumentError
        Other axes, coordinates that are not regular, units that are no lengths or not the same, or
        attributes that cannot be read.
    """
    import dask.array as da

    if not isinstance(array, xr.DataArray):
        raise InvalidArgumentError(
            f"a {type(array).__name__} is no DataArray: of a Dataset, choose a variable, as "
            "ds['tomo']"
        )
    names = tuple(str(name) for name in array.dims)
    if array.ndim not in (2, 3):
        raise InvalidArgumentError(
            f"the array has the axes {names}; volumes have two or three of space: choose one of "
            "the others, as array.isel(t=0)"
        )
    size, unit = _spacing(array, names)
    data = array.data
    if not hasattr(data, "dask"):
        data = da.from_array(data)
    try:
        return Dataset(
            data,
            dimension_names=names,
            voxel_unit=unit,
            voxel_size=size,
            datatype=datatype or array.attrs.get(_DATATYPE),
            history=_mapping(array, _HISTORY),
            dataset_id=array.attrs.get(_ID),
            extra_attrs=_mapping(array, _EXTRA),
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def _mapping(array: xr.DataArray, name: str) -> Mapping[str, Any]:
    text = array.attrs.get(name, "{}")
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the attribute {name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"the attribute {name} is no JSON object")
    return found


def _spacing(array: xr.DataArray, names: Sequence[str]) -> tuple[tuple[float, ...], VoxelUnit]:
    """Return the voxel size, and its unit, that the coordinates tell."""
    with_coords = [name for name in names if name in array.coords]
    if not with_coords:
        return (1.0,) * len(names), VoxelUnit.VOXEL
    if len(with_coords) < len(names):
        missing = next(name for name in names if name not in with_coords)
        raise InvalidArgumentError(f"the axis {missing!r} has no coordinates, and others have")
    sizes = tuple(_spacing_along(array.coords[name], name) for name in names)
    units = {name: _unit(array.coords[name], name) for name in names}
    first = units[names[0]]
    try:
        return (
            tuple(
                size if unit == first else size * unit.conversion_factor(first)
                for size, unit in zip(sizes, units.values(), strict=True)
            ),
            first,
        )
    except ValueError as error:
        raise InvalidArgumentError(f"the units of the axes do not go together: {error}") from error


def _spacing_along(coordinate: xr.DataArray, name: str) -> float:
    values = coordinate.values
    if values.dtype.kind not in "iuf":
        raise InvalidArgumentError(
            f"the coordinates along {name!r} are {values.dtype}, not lengths"
        )
    if len(values) == 1:
        if _SPACING not in coordinate.attrs:
            raise InvalidArgumentError(
                f"the axis {name!r} has one voxel, of which the coordinates do not tell the size: "
                f"set array.{name}.attrs['{_SPACING}']"
            )
        return float(coordinate.attrs[_SPACING])
    steps = np.diff(values.astype(float))
    step = float((values[-1] - values[0]) / (len(values) - 1))
    if not step > 0:
        raise InvalidArgumentError(
            f"the coordinates along {name!r} do not increase: turn the axis round, as "
            f"array.isel({name}=slice(None, None, -1))"
        )
    if not np.allclose(steps, step, rtol=0, atol=_TOLERANCE * step):
        raise InvalidArgumentError(
            f"the coordinates along {name!r} are not regular: steps from {steps.min():.6g} to "
            f"{steps.max():.6g}; voxels are all of one size, so interpolate first"
        )
    return step


def _unit(coordinate: xr.DataArray, name: str) -> VoxelUnit:
    text = coordinate.attrs.get("units")
    if text is None:
        raise InvalidArgumentError(
            f"the coordinates along {name!r} have no units: set array.{name}.attrs['units'] = 'um'"
        )
    try:
        return VoxelUnit.from_str(str(text))
    except ValueError as error:
        raise InvalidArgumentError(f"the units {text!r} along {name!r} are no lengths") from error


@xr.register_dataarray_accessor("ctlab")  # type: ignore[no-untyped-call]
class CTLabAccessor:
    """What this package does with an array: ``array.ctlab``."""

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def to_dataset(self, *, datatype: str | None = None) -> Dataset:
        """Return the array as a `Dataset`: see `from_xarray`."""
        return from_xarray(self._array, datatype=datatype)

    def to_zarr(self, path: Any, *, datatype: str | None = None, **options: Any) -> Delayed | None:
        """Write the array: see `ctlab_dask_zarr.dataset_to_zarr` for the options."""
        from ctlab_dask_zarr.api import dataset_to_zarr

        return dataset_to_zarr(self.to_dataset(datatype=datatype), path, **options)
