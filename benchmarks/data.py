"""What is written: CT-like voxels in a raw file, so that every writer's source costs a copy."""

from __future__ import annotations

import os
from typing import Any

import dask.array as da
import numpy as np

#: Slices made at a time.
_SLAB = 64
#: Standard deviation of the noise in grey levels: about 11 bits that no codec can compress.
NOISE = 500.0
MASK = 65535


def make_raw(folder: str, size: int) -> str:
    """Make a cylinder of noisy grey levels in a masked rim, once; return its path."""
    path = os.path.join(folder, f"volume-{size}.raw")
    if os.path.exists(path) and os.path.getsize(path) == size**3 * 2:
        return path
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:size, :size]
    outside = np.hypot(y - size / 2, x - size / 2) > 0.49 * size
    with open(path, "wb") as file:
        for z in range(0, size, _SLAB):
            slab = rng.normal(20000 + 40 * (z // _SLAB), NOISE, (_SLAB, size, size)).astype("u2")
            slab[:, outside] = MASK
            slab.tofile(file)
    return path


def _load(path: str, size: int, block_info: Any = None) -> np.ndarray:
    volume = np.memmap(path, "u2", "r", shape=(size,) * 3)
    where = block_info[None]["array-location"]
    return np.array(volume[tuple(slice(a % size, a % size + b - a) for a, b in where)])


def raw_array(path: str, size: int, blocks: tuple[int, int, int], repeat: int = 1) -> da.Array:
    """Return the raw file, so many times along z, as a dask array with the given blocks.

    Blocks may not reach from one repetition into the next.
    """
    return da.map_blocks(
        _load,
        path,
        size,
        chunks=da.core.normalize_chunks(blocks, (size * repeat, size, size)),
        dtype="u2",
        meta=np.empty((0, 0, 0), "u2"),
    )


#: mango's data type of the dtypes that are measured.
DATATYPES = {"uint16": "tomo", "float32": "tomo_float", "uint8": "segmented"}


def codec_kwargs(codec: str) -> dict[str, Any]:
    """Return what zarr, and whoever takes its options, is given for a codec."""
    from zarr.codecs import BloscCodec, ZstdCodec

    return {
        "zstd": {"compressors": [ZstdCodec(level=0)]},
        "blosc": {"compressors": [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")]},
        "none": {"compressors": None},
    }[codec]


#: Edge of the grains of a segmented volume, in voxels; divides every edge of a block.
_GRAIN = 8


def as_dtype(array: Any, dtype: str) -> Any:
    """Return the volume as another type: grey values as floats, or grains of two phases."""
    if dtype == "float32":
        return array.astype("f4")
    if dtype == "uint8":
        if isinstance(array, np.ndarray):
            return _segmented(array)
        return array.map_blocks(_segmented, dtype="u1", meta=np.empty((0, 0, 0), "u1"))
    return array


def _segmented(block: np.ndarray) -> np.ndarray:
    """Give each grain the phase that its first voxel tells; the rim stays masked."""
    phases = 1 + (block[(slice(None, None, _GRAIN),) * 3] > 20000).astype("u1")
    for axis in range(3):
        phases = phases.repeat(_GRAIN, axis)
    phases[block == MASK] = 255
    return phases


def make_netcdf(folder: str, size: int) -> str:
    """Make the same volume as a mango netCDF folder: gzip 2, blocks of 64 slices in one chunk."""
    from ctlab_dask_zarr.demo import write_mango_netcdf

    path = os.path.join(folder, f"tomoBench{size}_nc")
    if not os.path.isdir(path):
        raw = np.memmap(make_raw(folder, size), "u2", "r", shape=(size,) * 3)
        write_mango_netcdf(path, raw, slices_per_block=64)
    return path
