"""HDF5: a NeXus file with one NXdata (https://manual.nexusformat.org), contiguous or compressed.

HDF5 does one thing at a time in each process, and only one process may write to a file. So it is
asked for all but the voxels: those of a contiguous array have fixed places, and compressed chunks
are made elsewhere, in files of their own, and put into the file as they are.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.volume import Volume

#: About the size of a chunk: programs that show a slice read the whole chunk that has it.
_CHUNK_NBYTES = 4 << 20
#: About the size, in voxels, of a file of chunks.
_PIECE_NBYTES = 64 << 20
#: Before each chunk in a file of them: its size in bytes.
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class _HDF5:
    """What both forms have in common: all that the file says of the volume."""

    shape: Shape
    dtype: np.dtype[Any]
    axes: tuple[str, ...]
    origin: tuple[float, ...]
    voxel_size: tuple[float, ...]
    unit: VoxelUnit
    #: Of the array, of the entry, and the history as JSON.
    attributes: dict[str, Any]
    fields: dict[str, str]
    history: str
    name = "HDF5"
    is_folder = False

    @classmethod
    def _facts(cls, volume: Volume) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if volume.voxel_unit is not VoxelUnit.VOXEL:
            attributes["element_size_um"] = list(volume.voxel_size_with_unit(VoxelUnit.UM))
        if volume.datatype is not None:
            attributes["long_name"] = str(volume.datatype)
        if volume.mask_value is not None:
            attributes["mask_value"] = np.asarray(volume.mask_value, volume.dtype)
        fields = {} if volume.dataset_id is None else {"entry_identifier": volume.dataset_id}
        names = volume.dimension_names
        if not all(re.fullmatch(r"[A-Za-z]\w*", name) and name != "data" for name in names):
            names = ("z", "y", "x")[-len(names) :]
        return {
            "shape": volume.shape,
            "dtype": volume.dtype,
            "axes": names,
            "origin": volume.origin,
            "voxel_size": volume.voxel_size,
            "unit": volume.voxel_unit,
            "attributes": attributes,
            "fields": fields,
            "history": json.dumps(volume.history),
        }

    def settings(self) -> dict[str, Any]:
        """Return what the file says of the voxels."""
        where = {"origin": list(self.origin), "voxel_size": list(self.voxel_size)}
        return {**where, "voxel_unit": str(self.unit)}

    def is_own(self, name: str) -> bool:
        """Return False: it is no folder."""
        return False

    def _make(self, path: str, options: Any) -> int:
        """Make the file with an array of these options; return where a contiguous one begins."""
        import h5py

        with h5py.File(path, "w") as file:
            file.attrs.update({"NX_class": "NXroot", "default": "entry"})
            entry = _group(file, "entry", "NXentry", default="data")
            for name, text in {"program_name": "ctlab_dask_zarr", **self.fields}.items():
                entry[name] = text
            note = _group(entry, "history", "NXnote")
            note["type"], note["data"] = "application/json", self.history
            group = _group(entry, "data", "NXdata", signal="data", axes=list(self.axes))
            axes = zip(self.axes, self.origin, self.voxel_size, self.shape, strict=True)
            for number, (name, first, step, n) in enumerate(axes):
                group[name] = first + step * np.arange(n)
                group.attrs[f"{name}_indices"] = number
                if self.unit is not VoxelUnit.VOXEL:
                    group[name].attrs["units"] = str(self.unit)
            options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            dtype = h5py.h5t.py_create(self.dtype.newbyteorder("<"))
            space = h5py.h5s.create_simple(self.shape)
            array = h5py.Dataset(h5py.h5d.create(group.id, b"data", dtype, space, options))
            array.attrs.update(self.attributes)
            return int(array.id.get_offset() or 0)


@dataclass(frozen=True)
class HDF5Kind(_HDF5):
    """A file with a contiguous array; an `export.kind.FlatKind`."""

    @classmethod
    def of(cls, volume: Volume) -> HDF5Kind:
        """Return a volume as this kind."""
        return cls(**cls._facts(volume))

    def files(self) -> list[File]:
        """Return the one file."""
        return [File("volume.h5", 0, self.shape[0])]

    def allocate(self, path: str) -> tuple[int, Any]:
        """Make the file with room for its voxels."""
        import h5py

        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_layout(h5py.h5d.CONTIGUOUS)
        options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        return self._make(path, options), self.dtype.newbyteorder("<")


@dataclass(frozen=True)
class CompressedHDF5Kind(_HDF5):
    """A file of chunks of whole slices by shuffle and gzip; an `export.kind.JoinedKind`."""

    level: int

    @classmethod
    def of(cls, volume: Volume, level: int) -> CompressedHDF5Kind:
        """Return a volume as this kind, compressed by this level of gzip, 1 to 9."""
        return cls(**cls._facts(volume), level=level)

    def settings(self) -> dict[str, Any]:
        """Return what the file says, and how it is compressed."""
        return {**super().settings(), "compression_level": self.level}

    @property
    def _chunk(self) -> Shape:
        """Shape of a chunk: whole slices, or of an image whole lines."""
        nbytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return (max(1, min(_CHUNK_NBYTES // nbytes, self.shape[0])), *self.shape[1:])

    def files(self) -> list[File]:
        """Return the files of chunks, which `join` puts together."""
        n, chunk = self.shape[0], self._chunk
        chunk_nbytes = math.prod(chunk) * self.dtype.itemsize
        step = chunk[0] * max(1, _PIECE_NBYTES // chunk_nbytes)
        starts = range(0, n, step)
        return [File(f"chunks-{start:08d}", start, min(start + step, n)) for start in starts]

    def write(self, path: str, file: File, slabs: Iterator[npt.NDArray[Any]]) -> None:
        """Write chunks, compressed, one after another, each with its size before it."""
        with open(path, "wb") as out:
            for chunk in _in_steps(slabs, self._chunk[0]):
                data = self._compressed(chunk)
                out.write(_LENGTH.pack(len(data)))
                out.write(data)

    def _compressed(self, voxels: npt.NDArray[Any]) -> Any:
        from deflate import zlib_compress

        # At its end, a chunk reaches beyond the array.
        chunk = np.zeros(self._chunk, self.dtype.newbyteorder("<"))
        chunk[: len(voxels)] = voxels
        planes = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize)
        return zlib_compress(np.ascontiguousarray(planes.T), self.level)

    def join(self, paths: Sequence[str], path: str) -> None:
        """Make the file of the chunks in files, which are in the order of the volume."""
        import h5py

        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk(self._chunk)
        if self.dtype.itemsize > 1:
            options.set_shuffle()
        options.set_deflate(self.level)
        self._make(path, options)
        with h5py.File(path, "r+") as file:
            array = file["entry/data/data"]
            z = 0
            for piece in paths:
                with open(piece, "rb") as chunks:
                    while length := chunks.read(_LENGTH.size):
                        data = chunks.read(_LENGTH.unpack(length)[0])
                        start = (z, *[0] * (len(self.shape) - 1))
                        array.id.write_direct_chunk(start, data)
                        z += self._chunk[0]


def _group(parent: Any, name: str, nexus_class: str, **attributes: Any) -> Any:
    group = parent.create_group(name)
    group.attrs.update({"NX_class": nexus_class, **attributes})
    return group


def _in_steps(slabs: Iterator[npt.NDArray[Any]], step: int) -> Iterator[npt.NDArray[Any]]:
    """Yield `step` slices at a time, and at the end what is left."""
    left: npt.NDArray[Any] | None = None
    for slab in slabs:
        whole = slab if left is None else np.concatenate([left, slab])
        end = len(whole) // step * step
        for start in range(0, end, step):
            yield whole[start : start + step]
        left = whole[end:].copy() if end < len(whole) else None
        del whole, slab
    if left is not None:
        yield left
