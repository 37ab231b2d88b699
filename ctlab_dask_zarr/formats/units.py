"""The axes of a volume: names, edge lengths of a voxel and their unit, the origin."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError

__all__ = [
    "VoxelUnit",
    "are_same_positions",
    "are_same_sizes",
    "size_text",
    "validated_axes",
    "validated_origin",
]


#: Relative difference up to which two voxel sizes are the same: some are kept as float32.
_TOLERANCE = 1e-6


class VoxelUnit(StrEnum):
    """Unit of the size of a voxel; equal to its short name.

    Examples
    --------
    >>> VoxelUnit.from_str("Micrometers") is VoxelUnit.UM
    True
    >>> VoxelUnit.MM == "mm", str(VoxelUnit.MM), VoxelUnit.MM.to_full_name()
    (True, 'mm', 'millimeter')
    """

    M = "m"
    CM = "cm"
    MM = "mm"
    UM = "um"
    NM = "nm"
    ANGSTROM = "angstrom"
    VOXEL = "voxel"

    @classmethod
    def from_str(cls, text: str) -> VoxelUnit:
        """Return the unit that `text` names: a short name, a full name or a usual symbol.

        Upper and lower case, white space around, and the NULs that C programs leave at the end
        of an attribute make no difference. There is one letter for micro and one for angstrom:
        the sign and the Greek or Latin letter that looks like it are taken as the same.

        Raises
        ------
        ValueError
            For anything else; the message lists what is accepted.
        """
        if isinstance(text, str):
            unit = _UNIT_BY_NAME.get(_fold(text.strip("\0 \t\r\n")))
            if unit is not None:
                return unit
        accepted = "; ".join(
            f"{unit}: {', '.join(dict.fromkeys((unit.value, *_NAMES[unit.value])))}" for unit in cls
        )
        raise ValueError(f"{text!r} is not a voxel unit. Accepted, in any case: {accepted}")

    def to_full_name(self) -> str:
        """Return the full name, as OME-Zarr spells it (``'millimeter'``)."""
        return _NAMES[self.value][0]

    def conversion_factor(self, to: VoxelUnit) -> float:
        """Return what a size in this unit is multiplied by to have it in unit `to`.

        Raises
        ------
        ValueError
            If one of the two is `VOXEL`, which is no length.

        Examples
        --------
        >>> VoxelUnit.MM.conversion_factor(VoxelUnit.UM)
        1000.0
        """
        for unit in (self, to):
            if unit is VoxelUnit.VOXEL:
                raise ValueError(
                    f"cannot convert from {self} to {to}: a voxel is no length; give the dataset "
                    "a voxel size in a length unit first"
                )
        # Parsed as decimal, because products and quotients of powers of ten are not exact.
        return float(f"1e{_EXPONENTS[self.value] - _EXPONENTS[to.value]}")


def are_same_sizes(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether two voxel sizes, in one unit and one order of axes, are the same.

    Examples
    --------
    >>> are_same_sizes((2.5, 2.5), (2.5, 2.5000001)), are_same_sizes((2.5, 2.5), (2.5, 2.51))
    (True, False)
    """
    return bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=0))


def are_same_positions(
    found: Sequence[float], wanted: Sequence[float], voxel_size: Sequence[float]
) -> bool:
    """Whether two positions, in the unit of a voxel size, are within a thousandth of a voxel."""
    return all(
        abs(f - w) <= 1e-3 * size for f, w, size in zip(found, wanted, voxel_size, strict=True)
    )


def size_text(size: Sequence[float], unit: VoxelUnit) -> str:
    """Return a voxel size for people.

    Examples
    --------
    >>> size_text((2.5, 2.5, 2.5), VoxelUnit.UM), size_text((3.0, 2.5), VoxelUnit.MM)
    ('2.5 um', '3 x 2.5 mm')
    """
    sizes = size[:1] if len(set(size)) == 1 else size
    return f"{' x '.join(f'{v:.6g}' for v in sizes)} {unit}"


def validated_axes(
    dimension_names: Sequence[str], voxel_size: Sequence[float], ndim: int
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return names and voxel size if they fit `ndim` axes and are possible.

    Raises
    ------
    InvalidArgumentError
        A wrong number of either, a name that stands twice, a size that is no length.
    """
    is_list_of_names = isinstance(dimension_names, Sequence) and all(
        isinstance(name, str) and name for name in dimension_names
    )
    if not is_list_of_names:
        raise InvalidArgumentError(
            f"dimension_names={dimension_names!r} is not one name an axis, as in ('z', 'y', 'x')"
        )
    names = tuple(dimension_names)
    try:
        size = tuple(float(v) for v in voxel_size)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"voxel_size={voxel_size!r} is not one length an axis, as in (2.5, 2.5, 2.5)"
        ) from error
    if len(names) != ndim or len(set(names)) != ndim:
        raise InvalidArgumentError(
            f"dimension_names {names} do not name the {ndim} axes of the data, once each"
        )
    if len(size) != ndim:
        raise InvalidArgumentError(f"voxel_size {size} has {len(size)} values for {ndim} axes")
    if not all(math.isfinite(v) and v > 0 for v in size):
        raise InvalidArgumentError(f"voxel_size {size} holds a value that is no length")
    return names, size


def validated_origin(origin: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """Return an origin if it is one position an axis; zero where none is given.

    Raises
    ------
    InvalidArgumentError
        It is not.
    """
    try:
        found = (0.0,) * ndim if origin is None else tuple(float(v) for v in origin)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != ndim or not all(map(math.isfinite, found)):
        raise InvalidArgumentError(
            f"origin={origin!r} is not one position an axis, as in {(0.0,) * ndim}"
        )
    return found


def _fold(text: str) -> str:
    # NFKC joins the micro sign to the Greek mu and the angstrom sign to the Latin letter.
    return unicodedata.normalize("NFKC", text).casefold()


#: Power of ten of each unit, in metres.
_EXPONENTS = {"m": 0, "cm": -2, "mm": -3, "um": -6, "nm": -9, "angstrom": -10}

#: By value of the unit: the full name, then what else it is called.
_NAMES: dict[str, tuple[str, ...]] = {
    "m": ("meter", "meters", "metre", "metres"),
    "cm": ("centimeter", "centimeters", "centimetre", "centimetres"),
    "mm": ("millimeter", "millimeters", "millimetre", "millimetres"),
    "um": (
        *("micrometer", "micrometers", "micrometre", "micrometres"),
        *("micron", "microns", "\N{GREEK SMALL LETTER MU}m", "mu", "\N{GREEK SMALL LETTER MU}"),
    ),
    "nm": ("nanometer", "nanometers", "nanometre", "nanometres"),
    "angstrom": (
        *("angstrom", "angstroms", "\N{LATIN SMALL LETTER A WITH RING ABOVE}", "a", "au", "a.u."),
        *("\N{LATIN SMALL LETTER A WITH RING ABOVE}ngstr\N{LATIN SMALL LETTER O WITH DIAERESIS}m",),
    ),
    "voxel": ("voxel", "voxels"),
}

_UNIT_BY_NAME: dict[str, VoxelUnit] = {
    _fold(name): unit for unit in VoxelUnit for name in (unit.value, *_NAMES[unit.value])
}
