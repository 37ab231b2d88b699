"""Ways to read a part of a stored volume: open it, then take regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Region = tuple[slice, ...]
Read = Callable[[Region], Any]


def ours(path: str) -> Read:
    from ctlab_dask_zarr import dataset_from_zarr

    volume = dataset_from_zarr(path).data
    return lambda region: volume[region].compute()


def zarr_python(path: str) -> Read:
    import zarr

    array = zarr.open_array(f"{path}/0", mode="r")
    return lambda region: array[region]


def dask_from_zarr(path: str) -> Read:
    import dask.array as da

    array = da.from_zarr(path, component="0")
    return lambda region: array[region].compute()


def xarray_open(path: str) -> Read:
    import xarray as xr

    group = xr.open_zarr(path, consolidated=False, zarr_format=3, chunks={})
    return lambda region: group["0"][region].values


def tensorstore(path: str) -> Read:
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/0"}}
    store = ts.open(spec).result()
    return lambda region: store[region].read().result()


def anu_ctlab_io(path: str) -> Read:
    from anu_ctlab_io.zarr import dataset_from_zarr

    volume = dataset_from_zarr(path).data
    return lambda region: volume[region].compute()


READERS: dict[str, Callable[[str], Read]] = {
    "ours": ours,
    "anu_ctlab_io": anu_ctlab_io,
    "zarr-python": zarr_python,
    "dask.array.from_zarr": dask_from_zarr,
    "xarray.open_zarr": xarray_open,
    "tensorstore": tensorstore,
}
