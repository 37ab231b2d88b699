"""Units of a voxel's edge length."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

__all__ = ["VoxelUnit", "are_same_sizes", "size_text"]


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


def size_text(size: Sequence[float], unit: VoxelUnit) -> str:
    """Return a voxel size for people.

    Examples
    --------
    >>> size_text((2.5, 2.5, 2.5), VoxelUnit.UM), size_text((3.0, 2.5), VoxelUnit.MM)
    ('2.5 um', '3 x 2.5 mm')
    """
    sizes = size[:1] if len(set(size)) == 1 else size
    return f"{' x '.join(f'{v:.6g}' for v in sizes)} {unit}"


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
