"""A mango netCDF volume as something to slice: reads just what is asked for, from any process."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import zlib
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.read.lazy import split_index
from ctlab_dask_zarr.read.netcdf_storage import Contiguous, StoredBlock, check_file, read_block
from ctlab_dask_zarr.volume import SourceChecks

__all__ = ["NetCDFSource"]


@dataclass(frozen=True, repr=False)
class NetCDFSource:
    """The voxels of a mango netCDF file or folder, read when they are sliced.

    It holds no open file and no lock, so it can be used by many threads and processes at once;
    pickled it takes tens of bytes a block.

    Attributes
    ----------
    folder
        Absolute path of the folder that holds the files.
    variable
        Name of the variable.
    dtype
        Of the voxels: the true one, in native byte order.
    shape
        Slices, rows, columns.
    blocks
        One for each file, in the order of z; together they hold every slice once.
    dataset_id
        mango's identifier; None where there is none.
    """

    folder: str
    variable: str
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    blocks: tuple[StoredBlock, ...] = field(hash=False)
    dataset_id: str | None

    @property
    def ndim(self) -> int:
        """Number of axes, three."""
        return 3

    @property
    def nbytes(self) -> int:
        """Size of all voxels, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """What is decoded as a unit, at most: to read one voxel costs a region of this shape."""
        unit = (1, 1, 1)
        for block in self.blocks:
            n_slices = block.z_stop - block.z_start
            if isinstance(block.storage, Contiguous):
                shape = (1, 1, self.shape[2])
            else:
                n_z, n_y, n_x = block.storage.chunk_shape
                shape = (min(n_z, n_slices), n_y, n_x)
            unit = (max(unit[0], shape[0]), max(unit[1], shape[1]), max(unit[2], shape[2]))
        return unit

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Return the voxels at integers and slices, a new array."""
        region, rest = split_index(index, self.shape)
        voxels: npt.NDArray[Any] = self._read(region)[rest]
        return voxels

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Return all voxels."""
        if copy is False:
            raise ValueError("a volume on disk cannot become an array without a copy")
        voxels = self[...]
        return voxels if dtype is None else voxels.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return (
            f"<NetCDFSource {self.shape} {self.dtype}, {len(self.blocks)} blocks in {self.folder}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (_pack(self),)

    def __dask_tokenize__(self) -> str:
        return hashlib.sha256(_pack(self)).hexdigest()

    @property
    def location(self) -> str:
        """The file, or the folder of the blocks."""
        return self.folder if self._is_folder else os.path.join(self.folder, self.blocks[0].name)

    @property
    def _is_folder(self) -> bool:
        return len(self.blocks) > 1

    @property
    def levels(self) -> tuple[Any, ...]:
        """None: netCDF has one resolution."""
        return ()

    def facts(self) -> dict[str, Any]:
        """Return what there is to know of how the voxels are stored."""
        names = [block.name for block in self.blocks]
        files = f"{names[0]} to {names[-1]}, {len(names):,} files"
        return {"format": "mango netCDF"} | ({"files": files} if self._is_folder else {})

    def checks(self) -> SourceChecks:
        """Return the comparison of each block with its ``md5_checksum``."""
        kept = [n for n, block in enumerate(self.blocks) if block.md5_checksum is not None]
        tasks = [partial(self.verify_md5, slice(n, n + 1)) for n in kept]
        return SourceChecks(tasks, len(self.blocks), len(self.blocks) - len(kept))

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from another, plain JSON.

        The files' names, sizes and times of modification stand for their content, and the folder
        does not count, so a volume that was moved is still the same.
        """
        return {
            "kind": "mango netCDF",
            "variable": self.variable,
            "dtype": self.dtype.str,
            "shape": list(self.shape),
            "dataset_id": self.dataset_id,
            "files": [[block.name, block.nbytes, block.mtime_ns] for block in self.blocks],
        }

    def check_unchanged(self) -> None:
        """Raise `IncompleteSourceError` unless every file is the one that was opened."""
        for block in self.blocks:
            check_file(os.path.join(self.folder, block.name), block)

    def verify_md5(self, blocks: slice = slice(None)) -> list[Problem]:
        """Compare the voxels of each block with the MD5 that mango stored beside them.

        Parameters
        ----------
        blocks
            Which of `self.blocks`; all by default. Blocks without a checksum pass.

        Returns
        -------
        list of Problem
            Of kind ``md5``, or ``unreadable``; empty where all is well.
        """
        problems = []
        for block in self.blocks[blocks]:
            if block.md5_checksum is None:
                continue
            try:
                voxels = self._read_from(block, (slice(block.z_start, block.z_stop), *self._plane))
            except ValueError as error:
                problems.append(Problem(block.name, "unreadable", str(error)))
                continue
            # mango takes the sum of the bytes as a little-endian machine has them in memory.
            little = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
            digest = hashlib.md5(little.reshape(-1).view(np.uint8), usedforsecurity=False).digest()
            if digest != block.md5_checksum:
                problems.append(
                    Problem(
                        block.name,
                        "md5",
                        f"{block.name} (z {block.z_start}-{block.z_stop - 1}) is damaged: the MD5 "
                        f"of its voxels is {digest.hex()}, its md5_checksum "
                        f"{block.md5_checksum.hex()}: copy it again",
                    )
                )
        return problems

    @property
    def _plane(self) -> tuple[slice, slice]:
        return slice(0, self.shape[1], 1), slice(0, self.shape[2], 1)

    def _read(self, region: tuple[slice, ...]) -> npt.NDArray[Any]:
        zs, ys, xs = region
        parts = [
            block for block in self.blocks if block.z_start < zs.stop and zs.start < block.z_stop
        ]
        if len(parts) == 1:
            return self._read_from(parts[0], (zs, ys, xs))
        voxels = np.empty(tuple(part.stop - part.start for part in region), self.dtype)
        for block in parts:
            low, high = max(zs.start, block.z_start), min(zs.stop, block.z_stop)
            piece = self._read_from(block, (slice(low, high), ys, xs))
            voxels[low - zs.start : high - zs.start] = piece
        return voxels

    def _read_from(
        self, block: StoredBlock, region: tuple[slice, slice, slice]
    ) -> npt.NDArray[Any]:
        zs, ys, xs = region
        return read_block(
            os.path.join(self.folder, block.name),
            self.variable,
            block,
            self.shape[1:],
            (slice(zs.start - block.z_start, zs.stop - block.z_start), ys, xs),
            self.dtype,
        )


@lru_cache(maxsize=16)
def _pack(volume: NetCDFSource) -> bytes:
    """Return a volume as bytes; once, because every task of a graph holds the volume."""
    state = (
        *(volume.folder, volume.variable, volume.dtype.str, volume.shape),
        *(volume.blocks, volume.dataset_id),
    )
    return zlib.compress(pickle.dumps(state, protocol=5))


@lru_cache(maxsize=16)
def _restore(packed: bytes) -> NetCDFSource:
    folder, variable, dtype, shape, blocks, dataset_id = pickle.loads(zlib.decompress(packed))
    return NetCDFSource(folder, variable, np.dtype(dtype), shape, blocks, dataset_id)
