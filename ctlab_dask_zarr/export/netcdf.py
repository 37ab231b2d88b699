"""mango netCDF: a file, or a folder of blocks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.export.netcdf_file import write_netcdf_file
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.history import history_attributes
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.mango import new_dataset_id
from ctlab_dask_zarr.formats.netcdf import block_number
from ctlab_dask_zarr.formats.netcdf_output import (
    VOXELS_PER_FILE,
    common_attributes,
    slices_of_file,
)
from ctlab_dask_zarr.volume import Volume, copied_mapping


@dataclass(frozen=True)
class NetCDFKind:
    """A volume as mango netCDF; an `export.kind.SlabKind`.

    A block has `n_slices` slices. `attributes` are those of every file, and `of_first` those that
    the first has besides. `dataset_id` is None where the first gets one that is made from the time.
    """

    shape: Shape
    datatype: DataType
    n_slices: int
    is_folder: bool
    attributes: Mapping[str, Any] = field(hash=False)
    of_first: Mapping[str, Any] = field(hash=False)
    dataset_id: str | None
    level: int = 0
    name = "mango netCDF"

    @classmethod
    def of(
        cls,
        volume: Volume,
        path: str,
        datatype: DataType | str | None = None,
        *,
        dataset_id: str | None = None,
        history: Mapping[str, Any] | None = None,
        extra_attrs: Mapping[str, Any] | None = None,
        max_file_size_mb: float | None = None,
        n_elements: int | None = VOXELS_PER_FILE,
        rounds: bool = True,
        level: int = 0,
    ) -> tuple[NetCDFKind, str]:
        """Return the kind of a volume, and its path with the right ending: see `api.export`."""
        path = path.rstrip("/")
        kind = _datatype(volume, path, datatype)
        n_slices = _slices_of_file(volume, max_file_size_mb, n_elements, rounds, level)
        is_folder = path.endswith("_nc") or n_slices < volume.shape[0]
        attributes, of_first = common_attributes(
            kind, volume.shape, volume.voxel_size, volume.voxel_unit, volume.dimension_names,
            volume.extra_attrs | dict(extra_attrs or {}), len(range(0, volume.shape[0], n_slices)),
        )  # fmt: skip
        of_first |= history_attributes(volume.history | copied_mapping("history", history))
        name = dataset_id or volume.dataset_id
        of_first["dataset_id"] = name or new_dataset_id(kind, datetime.now())
        written = cls(volume.shape, kind, n_slices, is_folder, attributes, of_first, name, level)
        stem = path.removesuffix(".nc").removesuffix("_nc")
        return written, stem + ("_nc" if is_folder else ".nc")

    def files(self) -> list[File]:
        """Return the blocks."""
        n_z, step = self.shape[0], self.n_slices
        return [
            File(f"block{number:08d}.nc", z, min(z + step, n_z))
            for number, z in enumerate(range(0, n_z, step))
        ]

    def settings(self) -> dict[str, Any]:
        """Return what all files say of the volume, and how they are made.

        The history is that of the run that has written the first file: entries have the time.
        """
        said = {f"attribute {key}": _plain(value) for key, value in self.attributes.items()}
        return said | {
            "datatype": str(self.datatype),
            "n_slices": self.n_slices,
            "compression_level": self.level,
            "dataset_id": self.dataset_id,
        }

    def is_own(self, name: str) -> bool:
        """Whether a file is a block."""
        return block_number(name) is not None

    def write(self, path: str, file: File, slabs: Iterator[npt.NDArray[Any]]) -> None:
        """Write one block."""
        attributes = dict(self.attributes)
        attributes["zdim_range"] = np.array([file.start, file.stop - 1], np.int32)
        if file.start == 0:
            attributes |= self.of_first
        shape = (file.stop - file.start, *self.shape[1:])
        write_netcdf_file(path, self.datatype, shape, attributes, slabs, self.level)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _datatype(volume: Volume, path: str, datatype: DataType | str | None) -> DataType:
    """Return the data type to write, or raise where the dataset cannot be of it."""
    found = datatype or volume.datatype
    try:
        kind = (
            DataType.infer_from_path(path) if found is None else DataType.from_basename(str(found))
        )
    except ValueError as error:
        raise InvalidArgumentError(
            f"mango netCDF needs a data type: {error}" if found is None else f"datatype: {error}"
        ) from error
    data = volume.data
    if data.dtype.newbyteorder("=") != kind.dtype:
        raise InvalidArgumentError(
            f"data type {kind.value!r} is {kind.dtype} and the dataset is {data.dtype}: pass the "
            "datatype that it is, or Dataset.from_modified(dataset, data=...) with other voxels"
        )
    names = tuple(volume.dimension_names)
    if data.ndim != 3 or (set(names) == set("xyz") and names != ("z", "y", "x")):
        raise InvalidArgumentError(
            f"mango netCDF has the axes z, y, x and the dataset {', '.join(names)}: transpose its "
            "array, or add an axis of one slice"
        )
    name = os.path.basename(path).removeprefix("cntr_")
    if not name.startswith(kind.value):
        warnings.warn(
            f"the name {name!r} does not begin with {kind.value!r}: mango and anu_ctlab_io take "
            "the data type from the name",
            stacklevel=4,
        )
    return kind


def _slices_of_file(
    volume: Volume, max_file_size_mb: float | None, n_elements: int | None, rounds: bool, level: int
) -> int:
    """Return how many slices a file has, after a look at the numbers that say so."""
    shape = volume.shape
    if not isinstance(level, int) or not 0 <= level <= 9:
        raise InvalidArgumentError(f"compression_level={level!r} is not a number from 0 to 9")
    for name, value in (("max_file_size_mb", max_file_size_mb), ("elements_per_file", n_elements)):
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise InvalidArgumentError(f"{name}={value!r} is not a number above 0")
    if max_file_size_mb is not None:
        slice_nbytes = shape[1] * shape[2] * int(volume.dtype.itemsize)
        return max(1, min(shape[0], int(max_file_size_mb * 2**20 / slice_nbytes)))
    if n_elements is None:
        return shape[0]
    return slices_of_file(shape, int(n_elements), rounds=rounds)
