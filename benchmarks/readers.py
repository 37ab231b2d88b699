"""Ways to read a stored volume, from a folder, over HTTP or from S3: open it, then take regions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.measure import in_turn

Region = tuple[slice, ...]
Read = Callable[[Region], Any]


def ours(url: str) -> Read:
    from ctlab_dask_zarr import dataset_from_zarr

    volume = dataset_from_zarr(url).data
    return lambda region: volume[region].compute()


def zarr_python(url: str) -> Read:
    import zarr

    array = zarr.open_array(f"{url}/0", mode="r")
    return lambda region: array[region]


def zarr_obstore(url: str) -> Read:
    import obstore.store
    import zarr
    from zarr.storage import ObjectStore

    options: dict[str, Any] = {}
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:"):
        options["client_options"] = {"allow_http": True}
    store = ObjectStore(obstore.store.from_url(url, **options), read_only=True)
    array = zarr.open_array(store, path="0", mode="r")
    return lambda region: array[region]


def dask_from_zarr(url: str) -> Read:
    import dask.array as da

    array = da.from_zarr(url, component="0")
    return lambda region: array[region].compute()


def xarray_open(url: str) -> Read:
    import xarray as xr

    group = xr.open_zarr(url, consolidated=False, zarr_format=3, chunks={})
    return lambda region: group["0"][region].values


def tensorstore(url: str) -> Read:
    import tensorstore as ts

    scheme, _, rest = url.rpartition("://")
    kvstore: Any = {"driver": "file", "path": f"{url}/0"}
    if scheme.startswith("http"):
        kvstore = f"{url}/0/"
    elif scheme == "s3":
        bucket, _, path = rest.partition("/")
        kvstore = {"driver": "s3", "bucket": bucket, "path": f"{path}/0/",
                   "aws_region": os.environ.get("AWS_REGION", "us-east-1")}  # fmt: skip
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            kvstore["endpoint"] = endpoint
    store = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    return lambda region: store[region].read().result()


def anu_ctlab_io(url: str) -> Read:
    from anu_ctlab_io.zarr import dataset_from_zarr

    volume = dataset_from_zarr(url).data
    return lambda region: volume[region].compute()


READERS: dict[str, Callable[[str], Read]] = {
    "ours": ours,
    "anu_ctlab_io": anu_ctlab_io,
    "zarr-python": zarr_python,
    "zarr, obstore": zarr_obstore,
    "dask.array.from_zarr": dask_from_zarr,
    "xarray.open_zarr": xarray_open,
    "tensorstore": tensorstore,
}

#: What of a volume is read; the edge of the cube is a fifth of the volume's.
WORKS = ("open", "open, slice z", "slice z", "slice y", "slice x", "cube", "whole")


def region_of(work: str, shape: Sequence[int]) -> Region:
    """Return what is read of a volume of this shape, at the same places for everybody."""
    region = [slice(0, n) for n in shape]
    if work == "cube":
        return tuple(slice(2 * (n // 5), 3 * (n // 5)) for n in shape)
    if work != "whole":
        axis = "zyx".index(work[-1])
        region[axis] = slice(shape[axis] // 5, shape[axis] // 5 + 1)
    return tuple(region)


def timed(
    url: str, readers: list[str], works: list[str], shape: list[int], n_rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each work and reader, a round each, in one process.

    A first round, which loads modules, does not count: in it, what each has read is compared.
    """
    found: dict[str, dict[str, list[float]]] = {}
    opened = {who: READERS[who](url) for who in readers}
    for work in works:
        found[work] = {who: [] for who in readers}
        results: dict[str, Any] = {}
        for number in range(n_rounds + 1):
            for who in in_turn(readers, number):
                start = time.perf_counter()
                read = READERS[who](url) if work.startswith("open") else opened[who]
                if work != "open":
                    voxels = read(region_of(work, shape))
                if number:
                    found[work][who].append(time.perf_counter() - start)
                elif work != "open":
                    results[who] = np.asarray(voxels)
        for who, voxels in results.items():
            np.testing.assert_array_equal(voxels, results["ours"], err_msg=f"{work}, {who}")
        results.clear()
    return found
