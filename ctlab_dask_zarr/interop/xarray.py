"""To xarray and back: physical coordinates, names, attributes.

Importing this module gives every `xarray.DataArray` the accessor ``.ctlab``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import plain_json
from ctlab_dask_zarr.read.arrays import (
    DATATYPE,
    DISCRETE,
    EXTRA,
    FOREIGN,
    HISTORY,
    ID,
    NAME,
    SPACING,
)
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from dask.delayed import Delayed


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
            {"units": unit} | ({SPACING: size} if n == 1 else {}),
        )
        for name, n, size, start in zip(
            dataset.dimension_names, dataset.shape, dataset.voxel_size, dataset.origin, strict=True
        )
    }
    extra = plain_json(dataset.extra_attrs, "extra_attrs")
    foreign = extra.pop(FOREIGN) if _is_foreign(extra.get(FOREIGN)) else {}
    attributes: dict[str, Any] = dict(foreign.get("attributes", {}))
    if dataset.datatype is not None:
        attributes[DATATYPE] = str(dataset.datatype)
    if dataset.dataset_id is not None:
        attributes[ID] = dataset.dataset_id
    if dataset.history:
        attributes[HISTORY] = json.dumps(plain_json(dataset.history, "history"))
    if extra:
        attributes[EXTRA] = json.dumps(extra)
    if dataset.is_discrete != (dataset.datatype is not None and dataset.datatype.is_discrete):
        attributes[DISCRETE] = int(dataset.is_discrete)
    return xr.DataArray(
        dataset.data,
        coords,
        dataset.dimension_names,
        name=foreign.get("name", attributes.get(DATATYPE, NAME)),
        attrs=attributes,
    )


def _is_foreign(value: Any) -> bool:
    """Whether `_foreign` made this: a store may have anything under that name."""
    if not isinstance(value, dict) or not value.keys() <= {"name", "attributes"}:
        return False
    return isinstance(value.get("attributes", {}), dict) and isinstance(value.get("name", ""), str)


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
        datatype = self._array.attrs.get(DATATYPE)
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
