"""To xarray and back; importing this gives every `xarray.DataArray` the accessor ``.ctlab``."""

from ctlab_dask_zarr.interop.xarray import CTLabAccessor, from_xarray, to_xarray

__all__ = ["CTLabAccessor", "from_xarray", "to_xarray"]
