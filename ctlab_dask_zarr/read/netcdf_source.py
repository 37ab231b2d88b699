"""The voxels of a mango netCDF volume, read from its files when they are sliced."""

from __future__ import annotations

import hashlib
import os
import pickle
import zlib
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.read.files import FilesSource, Region
from ctlab_dask_zarr.read.netcdf_storage import Contiguous, StoredBlock, read_block
from ctlab_dask_zarr.volume import SourceChecks

#: Names the format to users, and the kind in the identity of a source.
FORMAT = "mango netCDF"


@dataclass(frozen=True, repr=False)
class NetCDFSource(FilesSource):
    """A `volume.Source` of a mango netCDF file or folder, whose blocks are its files.

    Pickled, it takes tens of bytes a block. The blocks hold every slice once.
    """

    files: tuple[StoredBlock, ...] = field(hash=False)
    variable: str
    dataset_id: str | None

    @property
    def blocks(self) -> tuple[StoredBlock, ...]:
        """The files in the order of z."""
        return self.files

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of the largest unit of decoding, which has to be decoded to read one voxel."""
        shapes = []
        for block in self.blocks:
            if isinstance(block.storage, Contiguous):
                shapes.append((1, 1, self.shape[2]))
            else:
                n_z, n_y, n_x = block.storage.chunk_shape
                shapes.append((min(n_z, block.z_stop - block.z_start), n_y, n_x))
        return tuple(map(max, zip(*shapes, strict=True)))

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        zs, *plane = region
        parts = [
            block for block in self.blocks if block.z_start < zs.stop and zs.start < block.z_stop
        ]
        if len(parts) == 1:
            return self._read(parts[0], region)
        voxels = np.empty(tuple(part.stop - part.start for part in region), self.dtype)
        for block in parts:
            low, high = max(zs.start, block.z_start), min(zs.stop, block.z_stop)
            piece = self._read(block, (slice(low, high), *plane))
            voxels[low - zs.start : high - zs.start] = piece
        return voxels

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_packed(self),)

    def __dask_tokenize__(self) -> str:
        return hashlib.sha256(_packed(self)).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from others; the same voxels by another name are not it."""
        return super().identity() | {"variable": self.variable, "dataset_id": self.dataset_id}

    def checks(self) -> SourceChecks:
        """Return the comparison of each block with the MD5 that mango stored in it."""
        kept = [block for block in self.blocks if block.md5_checksum is not None]
        tasks = [partial(self.verify_md5, block) for block in kept]
        regions = [
            ((block.z_start, 0, 0), (block.z_stop - block.z_start, *self.shape[1:]))
            for block in kept
        ]
        n_unchecked = len(self.blocks) - len(kept)
        return SourceChecks(tasks, len(self.blocks), n_unchecked, regions=regions)

    def verify_md5(
        self, block: StoredBlock, voxels: npt.NDArray[Any] | None = None
    ) -> list[Problem]:
        """Compare the voxels of a block, which are read if not given, with its ``md5_checksum``."""
        assert block.md5_checksum is not None
        try:
            if voxels is None:
                voxels = self[block.z_start : block.z_stop]
        except ValueError as error:
            return [Problem(block.name, "unreadable", str(error))]
        # mango computes the sum over the bytes in the memory of a little-endian machine.
        little = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
        digest = hashlib.md5(
            np.ascontiguousarray(little).reshape(-1).view(np.uint8), usedforsecurity=False
        ).digest()
        if digest == block.md5_checksum:
            return []
        text = (
            f"{block.name} (z {block.z_start}-{block.z_stop - 1}) is damaged: the MD5 of its "
            f"voxels is {digest.hex()}, its md5_checksum {block.md5_checksum.hex()}: copy it again"
        )
        return [Problem(block.name, "md5", text)]

    def _read(self, block: StoredBlock, region: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Return a region of the volume that lies in one block."""
        zs, *plane = region
        return read_block(
            os.path.join(self.folder, block.name),
            self.variable,
            block,
            (block.z_stop - block.z_start, *self.shape[1:]),
            (slice(zs.start - block.z_start, zs.stop - block.z_start), *plane),
            self.dtype,
        )


@lru_cache(maxsize=16)
def _packed(source: NetCDFSource) -> bytes:
    """Return a source as bytes, made once: every task of a graph holds the source."""
    fields = (source.folder, source.files, source.shape, source.dtype.str, source.variable)
    return zlib.compress(pickle.dumps((*fields, source.dataset_id), protocol=5))


@lru_cache(maxsize=16)
def _restored(packed: bytes) -> NetCDFSource:
    folder, files, shape, dtype, variable, dataset_id = pickle.loads(zlib.decompress(packed))
    return NetCDFSource(FORMAT, folder, files, shape, np.dtype(dtype), variable, dataset_id)
