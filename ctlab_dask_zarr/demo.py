"""A synthetic micro-CT volume, and mango netCDF as CTLab's own programs write it.

For the demonstration, the tests and the benchmarks; reading and converting need nothing of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.export.netcdf_file import (
    add_attributes,
    add_checksum,
    add_variable,
    new_netcdf_file,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.netcdf_output import VOXELS_PER_FILE, common_attributes
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.lazy import split_index

#: Grey levels: the pores, then the minerals of the grains and how many grains are of each.
_PORE_LEVEL = 17_000.0
_GRAIN_LEVELS = (27_000.0, 31_000.0, 46_000.0)
_GRAIN_SHARES = (0.60, 0.36, 0.04)
#: Standard deviation of the noise. It fills the lower 11 bits, as in real tomograms, and no codec
#: can compress those.
_NOISE_SIGMA = 500.0
_MASK = 65535


class _Sliceable(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice, /) -> Any: ...


@dataclass(frozen=True, repr=False)
class SyntheticVolume:
    """A packing of grains in a cylinder, made slice by slice when it is sliced.

    Every voxel depends on the seed and its place alone, so slabs of any thickness show the same
    volume, and a volume of any size takes no memory.

    Attributes
    ----------
    shape
        Slices, rows, columns.
    grains
        One row a grain: z, y, x of its centre, radius, grey level.
    seed
        Of grains and noise.
    """

    shape: tuple[int, int, int]
    grains: npt.NDArray[np.float32]
    seed: int

    ndim = 3
    dtype = np.dtype("uint16")

    def __getitem__(self, index: Any) -> npt.NDArray[np.uint16]:
        """Return the voxels at integers and slices."""
        region, rest = split_index(index, self.shape)
        zs, ys, xs = region
        slices = np.empty((zs.stop - zs.start, *self.shape[1:]), self.dtype)
        n_y, n_x = self.shape[1:]
        y, x = np.ogrid[:n_y, :n_x]
        # The cylinder that was scanned.
        outside = np.hypot(y - (n_y - 1) / 2, x - (n_x - 1) / 2) > 0.49 * min(n_y, n_x)
        for z, target in zip(range(zs.start, zs.stop), slices, strict=True):
            self._render(z, target)
            target[outside] = _MASK
        voxels: npt.NDArray[np.uint16] = slices[:, ys, xs][rest]
        return voxels

    def _render(self, z: int, target: npt.NDArray[np.uint16]) -> None:
        grey = np.full(self.shape[1:], _PORE_LEVEL, np.float32)
        near = self.grains[np.abs(self.grains[:, 0] - z) < self.grains[:, 3] + 1]
        for grain_z, grain_y, grain_x, radius, level in near.tolist():
            y0, y1 = max(int(grain_y - radius) - 1, 0), int(grain_y + radius) + 3
            x0, x1 = max(int(grain_x - radius) - 1, 0), int(grain_x + radius) + 3
            part = grey[y0:y1, x0:x1]
            y = np.arange(y0, y0 + part.shape[0], dtype=np.float32)[:, None] - np.float32(grain_y)
            x = np.arange(x0, x0 + part.shape[1], dtype=np.float32) - np.float32(grain_x)
            distance = np.sqrt(y * y + x * x + np.float32((grain_z - z) ** 2))
            # An edge one voxel wide: the share of the voxel that the grain fills.
            share = np.clip(np.float32(radius + 0.5) - distance, 0, 1)
            part += (np.float32(level) - part) * share
        noise = np.random.default_rng((self.seed, z)).standard_normal(grey.shape, np.float32)
        grey += np.float32(_NOISE_SIGMA) * noise
        np.clip(grey, 0, _MASK - 1, out=grey)
        target[...] = grey


def synthetic_volume(shape: Sequence[int], *, seed: int = 0) -> SyntheticVolume:
    """Return a synthetic micro-CT volume: grains of three minerals, pores, noise, a masked rim.

    Parameters
    ----------
    shape
        Slices, rows, columns.
    seed
        The same seed and shape give the same voxels.

    Returns
    -------
    SyntheticVolume
        To be sliced: ``volume[10:20]`` makes ten slices, ``uint16``.

    Examples
    --------
    >>> volume = synthetic_volume((32, 64, 64))
    >>> volume[4:6].shape, int(volume[0, 0, 0])
    ((2, 64, 64), 65535)
    """
    n_z, n_y, n_x = (int(n) for n in shape)
    rng = np.random.default_rng(seed)
    typical_radius = max(min(n_y, n_x) / 20, 2.0)
    # Spheres placed at random overlap; this many leave about a quarter of the volume empty.
    n_grains = math.ceil(1.7 * n_z * n_y * n_x / (4 / 3 * math.pi * typical_radius**3))
    grains = np.empty((n_grains, 5), np.float32)
    grains[:, :3] = rng.uniform(0, (n_z, n_y, n_x), (n_grains, 3))
    grains[:, 3] = typical_radius * rng.lognormal(-0.15, 0.35, n_grains)
    grains[:, 4] = rng.choice(_GRAIN_LEVELS, n_grains, p=_GRAIN_SHARES)
    grains[:, 4] += rng.normal(0, 300, n_grains)
    return SyntheticVolume((n_z, n_y, n_x), grains, seed)


def write_mango_netcdf(
    path: str | os.PathLike[str],
    volume: _Sliceable,
    *,
    datatype: DataType | str = DataType.TOMO,
    voxel_size: Sequence[float] = (2.5, 2.5, 2.5),
    voxel_unit: VoxelUnit | str = VoxelUnit.UM,
    slices_per_block: int | None = None,
    compression_level: int | None = 2,
    shuffle: bool = False,
    hdf5_chunk_shape: Sequence[int] | None = None,
    md5: bool = True,
    dataset_id: str = "20250101_000000_synthetic",
    history: Mapping[str, tuple[str, str]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> str:
    """Write a volume as mango does: netCDF-4, a single file or a folder of blocks.

    Parameters
    ----------
    path
        A name that ends in ``.nc`` for a single file, else that of the folder, usually
        ``tomo..._nc``; it is made, and may be there already.
    volume
        Slices, rows, columns; read slab by slab.
    datatype
        Its dtype must be that of the volume.
    voxel_size
        z, y, x in `voxel_unit`.
    slices_per_block
        By default as many as mango takes, about 2^28 voxels.
    compression_level
        Of gzip; None writes the voxels as they are.
    shuffle
        Whether bytes are shuffled before they are compressed.
    hdf5_chunk_shape
        By default a block is one chunk, as mango's are.
    md5
        Whether each block gets its ``md5_checksum``.
    history
        By key, the text of the parameters and that of the output.
    attributes
        More attributes for each file, or other values for the usual ones.
    on_block
        Is called with the number of blocks written and their total.

    Returns
    -------
    The path.
    """
    kind = DataType.from_basename(str(datatype))
    n_z, n_y, n_x = map(int, volume.shape)
    root = os.fspath(path)
    is_single = root.endswith(".nc")
    if is_single:
        step = max(n_z, 1)
    else:
        os.makedirs(root, exist_ok=True)
        step = slices_per_block or max(VOXELS_PER_FILE // max(n_y * n_x, 1), 1)
    starts = range(0, n_z, step)
    unit = VoxelUnit.from_str(str(voxel_unit))
    common, _ = common_attributes(
        kind, (n_z, n_y, n_x), voxel_size, unit, ("z", "y", "x"), {}, len(starts)
    )
    of_first = {"dataset_id": dataset_id}
    for key, (parameters, output) in (history or {}).items():
        of_first |= {f"history_{key}": parameters, f"history_{key}_output": output}
    filters = {"chunks": hdf5_chunk_shape, "level": compression_level, "shuffle": shuffle}

    def write(number: int) -> None:
        start = starts[number]
        voxels = np.asarray(volume[start : min(start + step, n_z)])
        if voxels.dtype not in (kind.dtype, kind.stored_dtype):
            raise InvalidArgumentError(
                f"data type {kind.value!r} is {kind.dtype} and the volume is {voxels.dtype}"
            )
        z_range = {"zdim_range": np.array([start, start + len(voxels) - 1], np.int32)}
        own = {**common, **z_range, **({} if number else of_first), **(attributes or {})}
        name = root if is_single else os.path.join(root, f"block{number:08d}.nc")
        stored = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
        _write_file(name, kind, stored.view(kind.stored_dtype), own, md5, filters)

    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    with ThreadPoolExecutor(n_threads) as pool:
        for n_done, _ in enumerate(pool.map(write, range(len(starts))), start=1):
            if on_block is not None:
                on_block(n_done, len(starts))
    return root


def _write_file(
    name: str,
    kind: DataType,
    stored: npt.NDArray[Any],
    attributes: Mapping[str, Any],
    md5: bool,
    filters: Mapping[str, Any],
) -> None:
    chunks, level, shuffle = filters["chunks"], filters["level"], filters["shuffle"]
    is_compressed = level is not None and stored.size
    is_direct = chunks is None and is_compressed and not shuffle
    # Compressed before the file is opened: HDF5 would do it under its lock.
    compressed = zlib.compress(stored.data, level) if is_direct else None
    options: dict[str, Any] = {}
    if is_compressed:
        options = {"level": level, "shuffle": shuffle}
    if is_compressed or chunks:
        options["chunks"] = tuple(map(min, chunks or stored.shape, stored.shape))
    with new_netcdf_file(name) as file:
        variable = add_variable(file, kind, stored.shape, **options)
        if compressed is None:
            variable[...] = stored
        else:
            variable.id.write_direct_chunk((0, 0, 0), compressed)
        if md5:
            add_checksum(file, hashlib.md5(stored.data, usedforsecurity=False).digest())
        add_attributes(file, attributes)
