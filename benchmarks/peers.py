"""What a user might take instead, each in the layout and the codec that ours is given.

Every function writes a dask array to a path and returns the Zarr v3 array below it that holds the
voxels; where a package offers several ways, the one that its documentation gives for sharded Zarr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.data import codec_kwargs

Writer = Callable[..., str]

_AXES = ["z", "y", "x"]
_SIZE = {"z": 2.5, "y": 2.5, "x": 2.5}
_UNITS = {"z": "micrometer", "y": "micrometer", "x": "micrometer"}


def _layout(edge: int, codec: str) -> dict[str, Any]:
    return {"chunks": (32,) * 3, "shards": (edge,) * 3, **codec_kwargs(codec)}


def dask_to_zarr(array: Any, out: str, edge: int, codec: str) -> str:
    import dask.array as da

    da.to_zarr(
        array,
        out,
        component="0",
        **_layout(edge, codec),
    )
    return f"{out}/0"


def xarray_to_zarr(array: Any, out: str, edge: int, codec: str) -> str:
    import xarray as xr

    encoding = {"voxels": _layout(edge, codec)}
    dataset = xr.Dataset({"voxels": (_AXES, array)})
    dataset.to_zarr(out, zarr_format=3, consolidated=False, encoding=encoding)
    return f"{out}/voxels"


def ngff_zarr(
    array: Any, out: str, edge: int, codec: str, *, levels: int = 1, by_zarrista: bool = False
) -> str:
    from ngff_zarr import Methods, to_multiscales, to_ngff_image, to_ngff_zarr

    image = to_ngff_image(array, dims=_AXES, scale=_SIZE, axes_units=_UNITS)
    # Its means of whole voxels, which is the least work of what it has.
    multiscales = to_multiscales(
        image, scale_factors=_factors(levels), chunks=32, method=Methods.DASK_BIN_SHRINK
    )
    # Since 0.50 its option of that name writes by zarrista.
    to_ngff_zarr(
        out, multiscales, version="0.5", chunks_per_shard=edge // 32,
        use_tensorstore=by_zarrista,
    )  # fmt: skip
    return _finest_array(out)


def ngff_zarr_zarrista(array: Any, out: str, edge: int, codec: str, *, levels: int = 1) -> str:
    return ngff_zarr(array, out, edge, codec, levels=levels, by_zarrista=True)


def create_tensorstore(
    out: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    edge: int,
    codec: str,
    chunk: int = 32,
    **options: Any,
) -> Any:
    import tensorstore as ts

    little = {"name": "bytes", "configuration": {"endian": "little"}}
    compress: list[Any] = {
        "none": [],
        "zstd": [{"name": "zstd", "configuration": {"level": 0}}],
        "blosc": [{"name": "blosc", "configuration": {
            "cname": "zstd", "clevel": 5, "shuffle": "bitshuffle",
            "typesize": dtype.itemsize, "blocksize": 0}}],
    }[codec]  # fmt: skip
    sharding = {"chunk_shape": [chunk] * 3, "codecs": [little, *compress],
                "index_codecs": [little, {"name": "crc32c"}]}  # fmt: skip
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{out}/0"},
        "metadata": {
            "shape": list(shape),
            "data_type": str(dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [edge] * 3}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
    }
    return ts.open(spec, create=True, **options).result()


def tensorstore(array: Any, out: str, edge: int, codec: str) -> str:
    import dask

    store = create_tensorstore(out, array.shape, array.dtype, edge, codec)

    def write(block: np.ndarray, start: tuple[int, ...]) -> None:
        where = tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))
        store[where].write(block).result()

    lengths = [np.cumsum((0, *c)).tolist() for c in array.chunks]
    blocks = array.to_delayed()
    tasks = [
        dask.delayed(write)(blocks[index], tuple(lengths[a][i] for a, i in enumerate(index)))
        for index in np.ndindex(blocks.shape)
    ]
    dask.compute(*tasks, scheduler="threads")
    return f"{out}/0"


def ome_zarr(array: Any, out: str, edge: int, codec: str, *, levels: int = 1) -> str:
    import zarr
    from ome_zarr.format import FormatV05
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image

    group = zarr.open_group(out, mode="w", zarr_format=3)
    options = _layout(edge, codec)
    write_image(
        array, group, scale_factors=[dict.fromkeys(_AXES, n) for n in _factors(levels)],
        method=Methods.LOCAL_MEAN, fmt=FormatV05(), axes=_AXES, scale=_SIZE, axes_units=_UNITS,
        storage_options=options,
    )  # fmt: skip
    return _finest_array(out)


def bioio_ome_zarr(array: Any, out: str, edge: int, codec: str) -> str:
    from bioio_ome_zarr.writers import OMEZarrWriter

    writer = OMEZarrWriter(
        out, [array.shape], array.dtype, chunk_shape=(32,) * 3, shard_shape=(edge,) * 3,
        axes_names=_AXES, axes_types=["space"] * 3, zarr_format=3,
    )  # fmt: skip
    writer.write_full_volume(array)
    return _finest_array(out)


def icechunk(array: Any, out: str, edge: int, codec: str) -> str:
    """It keeps whole chunks in its own format: the shard is the inner chunk there."""
    import icechunk as ic
    import xarray as xr
    from icechunk.xarray import to_icechunk

    repository = ic.Repository.create(ic.local_filesystem_storage(out))
    session = repository.writable_session("main")
    encoding = {"voxels": _layout(edge, codec)}
    to_icechunk(xr.Dataset({"voxels": (_AXES, array)}), session, encoding=encoding)
    session.commit("written")
    return "icechunk"


WRITERS: dict[str, Writer] = {
    "dask.array.to_zarr": dask_to_zarr,
    "xarray to_zarr": xarray_to_zarr,
    "ngff-zarr": ngff_zarr,
    "ngff-zarr, zarrista": ngff_zarr_zarrista,
    "tensorstore": tensorstore,
    "ome-zarr": ome_zarr,
    "bioio-ome-zarr": bioio_ome_zarr,
    "icechunk": icechunk,
}


#: Which of them make levels too.
LEVEL_WRITERS = ("ngff-zarr", "ngff-zarr, zarrista", "ome-zarr")


def _factors(levels: int) -> list[int]:
    """Return by what the coarser levels are smaller than the first."""
    return [2**n for n in range(1, levels)]


def _finest_array(out: str) -> str:
    found = {}
    for folder, _, names in os.walk(out):
        if "zarr.json" in names:
            with open(os.path.join(folder, "zarr.json")) as file:
                document = json.load(file)
            if document["node_type"] == "array":
                found[folder] = np.prod(document["shape"])
    if not found:
        raise RuntimeError(f"{out} holds no array")
    return max(found, key=found.__getitem__)


def read_back(place: str, out: str) -> Any:
    """Return what slices of a written array are taken of, by a reader that is nobody's here."""
    import tensorstore as ts

    if place == "icechunk":
        import icechunk as ic
        import zarr

        repository = ic.Repository.open(ic.local_filesystem_storage(out))
        return zarr.open_group(repository.readonly_session("main").store, mode="r")["voxels"]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": place}}
    store = ts.open(spec).result()
    return _Sliced(store)


class _Sliced:
    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, index: slice) -> np.ndarray:
        return np.asarray(self._store[index].read().result())
