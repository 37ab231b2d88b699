"""TIFF: a file for each slice, or one file of all slices.

tifffile writes all but the voxels, which then have fixed places. A description of ImageJ's has the
unit and the distance between slices, the resolution tags have pixels per unit. ImageJ itself reads
no BigTIFF; Bio-Formats, which Fiji has, reads it, and takes size and unit from OME-XML.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError, MissingExtraError
from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.text import install_text
from ctlab_dask_zarr.volume import Volume

#: What OME-XML and ImageJ both know; ImageJ alone would take int8 for unsigned.
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
#: Offsets of TIFF have 32 bits; this much is left for the tags of all pages.
_MAX_NBYTES = (1 << 32) - (1 << 25)
#: Numbers of a fraction in a tag have 32 bits.
_MAX_UINT32 = (1 << 32) - 1
#: Shorter edges are given in a finer unit, so that a fraction of 32 bits has all their digits.
_SHORTEST = 1e-3
_FINER = (VoxelUnit.MM, VoxelUnit.UM, VoxelUnit.NM, VoxelUnit.ANGSTROM)
#: More digits where there are more slices.
_N_DIGITS = 4


@dataclass(frozen=True)
class _Tiff:
    """What both forms have in common; lengths are along z, y and x."""

    shape: Shape
    dtype: np.dtype[Any]
    voxel_size: tuple[float, ...]
    unit: VoxelUnit
    name = "TIFF"

    def settings(self) -> dict[str, Any]:
        """Return what the tags say of the voxels."""
        return {"voxel_size": list(self.voxel_size), "voxel_unit": str(self.unit)}


@dataclass(frozen=True)
class TiffSlicesKind(_Tiff):
    """A folder with a file for each slice, numbered from 0; an `export.kind.Kind`.

    Each file has the voxels of its slice between `head` and `tail`, which are those of all.
    """

    head: bytes
    tail: bytes
    is_folder = True

    @classmethod
    def of(cls, volume: Volume) -> TiffSlicesKind:
        """Return a volume as this kind; raises where it cannot be one."""
        _refuse_type(volume.dtype)
        if len(volume.shape) == 2:
            raise InvalidArgumentError(
                "an image of two axes has no slices for a folder: give a name that ends in .tif"
            )
        file = io.BytesIO()
        facts = volume.dtype, volume.voxel_size, volume.voxel_unit
        begins = _write_all_but_voxels(file, volume.shape[-2:], *facts)
        content = file.getvalue()
        ends = begins + math.prod(volume.shape[-2:]) * volume.dtype.itemsize
        return cls(volume.shape, *facts, content[:begins], content[ends:])

    def files(self) -> list[File]:
        """Return a file for each slice."""
        digits = max(_N_DIGITS, len(str(self.shape[0] - 1)))
        return [File(f"slice_{z:0{digits}d}.tif", z, z + 1) for z in range(self.shape[0])]

    def is_own(self, name: str) -> bool:
        """Whether it is the name of a slice."""
        return re.fullmatch(rf"slice_\d{{{_N_DIGITS},}}\.tif", name) is not None

    def write(self, path: str, file: File, slabs: Iterator[npt.NDArray[Any]]) -> None:
        """Write a slice."""
        with open(path, "wb") as out:
            out.write(self.head)
            for slab in slabs:
                out.write(np.ascontiguousarray(slab, self.dtype.newbyteorder("<")).data)
            out.write(self.tail)


@dataclass(frozen=True)
class TiffStackKind(_Tiff):
    """One file with a page for each slice; an `export.kind.FlatKind`."""

    ome: bool
    is_folder = False

    @classmethod
    def of(cls, volume: Volume, *, ome: bool) -> TiffStackKind:
        """Return a volume as this kind, described as OME does if `ome`; raises where it cannot."""
        _refuse_type(volume.dtype)
        require_tifffile()
        return cls(volume.shape, volume.dtype, volume.voxel_size, volume.voxel_unit, ome)

    def files(self) -> list[File]:
        """Return the one file."""
        return [File("volume.tif", 0, self.shape[0])]

    def settings(self) -> dict[str, Any]:
        """Return what the tags say."""
        return {**super().settings(), "ome": self.ome}

    def is_own(self, name: str) -> bool:
        """Return False: it is no folder."""
        return False

    def allocate(self, path: str) -> tuple[int, Any]:
        """Make the file with room for its voxels."""
        facts = self.shape, self.dtype, self.voxel_size, self.unit
        with open(path, "w+b") as file:
            return _write_all_but_voxels(file, *facts, ome=self.ome), self.dtype.newbyteorder("<")


def require_tifffile() -> Any:
    """Return the module tifffile, or raise `MissingExtraError`."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(f"to write TIFF needs tifffile: {install_text('tiff')}") from error
    return tifffile


def _refuse_type(dtype: np.dtype[Any]) -> None:
    """Raise `InvalidArgumentError` for a dtype that programs for images do not read in TIFF."""
    if dtype.name not in _TYPES:
        raise InvalidArgumentError(
            f"TIFF of {dtype} is read by neither ImageJ nor Bio-Formats: it has to be one of "
            f"{', '.join(_TYPES)}. Give the voxels another type first, as by --to float32"
        )


def _write_all_but_voxels(
    file: BinaryIO,
    shape: Shape,
    dtype: np.dtype[Any],
    voxel_size: Sequence[float],
    unit: VoxelUnit,
    *,
    ome: bool = False,
) -> int:
    """Write a TIFF file with room for voxels, and return where they begin, in bytes.

    The voxels of all pages follow one another there, little-endian and in C order.

    Parameters
    ----------
    file
        An empty file that can be sought in.
    shape
        Of the file: (z, y, x), or (y, x).
    voxel_size
        Along z, y and x, also for a file of one slice.
    ome
        Whether to describe it as OME does; else as ImageJ, unless that could not read it.
    """
    tifffile = require_tifffile()
    is_big = math.prod(shape) * dtype.itemsize > _MAX_NBYTES
    options: dict[str, Any] = {"shape": shape, "dtype": dtype.newbyteorder("<")}
    options["software"] = "ctlab_dask_zarr"
    # Three or four slices are no colours.
    options["photometric"] = "minisblack"
    axes = "ZYX"[-len(shape) :]
    voxel_size, unit = _in_readable_unit(voxel_size, unit)
    *z, y, x = voxel_size
    if ome or is_big or dtype.name == "int8":
        sizes = _ome_sizes(voxel_size, unit)
        options |= {"metadata": {"axes": axes} | sizes, "resolutionunit": "NONE"}
        if unit is not VoxelUnit.VOXEL:
            cm = unit.conversion_factor(VoxelUnit.CM)
            options |= {"resolution": _per_unit(x * cm, y * cm), "resolutionunit": "CENTIMETER"}
        ome = True
    else:
        spacing = {"spacing": float(z[0])} if z else {}
        name = "pixel" if unit is VoxelUnit.VOXEL else str(unit)
        text = tifffile.imagej_description(shape, axes=axes, unit=name, **spacing)
        options |= {"description": text, "metadata": None, "resolutionunit": "NONE"}
        options["resolution"] = _per_unit(x, y)
    with tifffile.TiffWriter(file, byteorder="<", bigtiff=is_big, ome=ome) as writer:
        begins, _ = writer.write(returnoffset=True, **options)
    return int(begins)


def _in_readable_unit(
    voxel_size: Sequence[float], unit: VoxelUnit
) -> tuple[Sequence[float], VoxelUnit]:
    if unit is VoxelUnit.VOXEL or min(voxel_size) >= _SHORTEST:
        return voxel_size, unit
    factors = [(unit.conversion_factor(finer), finer) for finer in _FINER]
    fits = (pair for pair in factors if min(voxel_size) * pair[0] >= _SHORTEST)
    factor, finer = next(fits, factors[-1])
    return [length * factor for length in voxel_size], finer


def _per_unit(x: float, y: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return pixels per unit along x and y as fractions that give the lengths back."""
    found = []
    for length in (x, y):
        exact = Fraction(repr(float(length)))
        most = int(_MAX_UINT32 / max(length, 1.0))
        near = exact.limit_denominator(max(most, 1))
        found.append((near.denominator, max(near.numerator, 1)))
    return found[0], found[1]


def _ome_sizes(voxel_size: Sequence[float], unit: VoxelUnit) -> dict[str, Any]:
    """Return the edge lengths by the names and units of OME-XML."""
    names = {VoxelUnit.UM: "\N{MICRO SIGN}m", VoxelUnit.ANGSTROM: "\N{ANGSTROM SIGN}"}
    name = names.get(unit, "pixel" if unit is VoxelUnit.VOXEL else str(unit))
    sizes: dict[str, Any] = {}
    for axis, length in zip("ZYX"[-len(voxel_size) :], voxel_size, strict=True):
        sizes |= {f"PhysicalSize{axis}": float(length), f"PhysicalSize{axis}Unit": name}
    return sizes
