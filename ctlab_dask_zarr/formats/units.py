"""The axes of a volume: names, edge lengths of a voxel and their unit, the origin."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError

__all__ = [
    "NOTHING_GIVEN",
    "OME_UNITS",
    "CommonUnit",
    "Given",
    "VoxelUnit",
    "are_same_positions",
    "are_same_sizes",
    "common_unit",
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
        unit = _known_unit(text)
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
        # As decimal numbers, because products and quotients of powers of ten are not exact.
        return float(Decimal(_METRES[self.to_full_name()]) / Decimal(_METRES[to.to_full_name()]))


class Given(NamedTuple):
    """What of the voxel size somebody has said who knows it, so that it may be wrong elsewhere."""

    size: bool = False
    unit: bool = False


NOTHING_GIVEN = Given()


class CommonUnit(NamedTuple):
    """One unit for several axes.

    Attributes
    ----------
    unit
        A length where every axis has one, else `VoxelUnit.VOXEL`.
    factors
        What lengths along each axis are multiplied by to have them in `unit`.
    unknown
        The names, as they are shown, that are no unit of length known here.
    """

    unit: VoxelUnit
    factors: tuple[float, ...]
    unknown: tuple[str, ...]


def common_unit(names: Sequence[Any]) -> CommonUnit:
    """Return the unit in which lengths along axes can be given whose units have these names.

    The unit of the finest axis, or the next one below it where it is none of `VoxelUnit`. None on
    every axis is no unit, and nothing unknown.

    Raises
    ------
    TypeError
        A name is no text.

    Examples
    --------
    >>> common_unit(["nanometer", "micrometer", "micrometer"])
    CommonUnit(unit=<VoxelUnit.NM: 'nm'>, factors=(1.0, 1000.0, 1000.0), unknown=())
    >>> common_unit(["inch", "inch"]).factors, common_unit(["pixel", "pixel"]).unknown
    ((25.4, 25.4), ("'pixel'",))
    """
    wrong = [name for name in names if not isinstance(name, str | None)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is no name of a unit")
    no_unit = CommonUnit(VoxelUnit.VOXEL, (1.0,) * len(names), ())
    if all(name is None or _known_unit(name) is VoxelUnit.VOXEL for name in names):
        return no_unit
    metres = [_metres(name) for name in names]
    known = [length for length in metres if length is not None]
    if len(known) < len(names):
        unknown = [n for n, length in zip(names, metres, strict=True) if length is None]
        texts = ["none" if name is None else repr(name) for name in unknown]
        return no_unit._replace(unknown=tuple(dict.fromkeys(texts)))
    by_length = {_metres(unit): unit for unit in VoxelUnit if unit is not VoxelUnit.VOXEL}
    smaller = (unit for unit in _USUAL if _metres(unit) <= min(known))  # type: ignore[operator]
    unit: VoxelUnit = by_length.get(min(known)) or next(smaller, VoxelUnit.NM)
    one = Decimal(_METRES[unit.to_full_name()])
    return CommonUnit(unit, tuple(float(length / one) for length in known), ())


def _known_unit(name: Any) -> VoxelUnit | None:
    return _UNIT_BY_NAME.get(_fold(name.strip("\0 \t\r\n"))) if isinstance(name, str) else None


def _metres(name: Any) -> Decimal | None:
    """Return the length of a unit in metres, as a decimal number; None where it is not known."""
    unit = _known_unit(name)
    text = _fold(str(name).strip()) if unit is None else unit.to_full_name()
    for known in (text, text.removesuffix("s"), _SYMBOLS.get(text, "")):
        length = _METRES.get(known.replace("metre", "meter"))
        if length is not None:
            return Decimal(length)
    return None


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


#: Of every unit of length that OME-Zarr 0.5 lists, what it is in metres.
_METRES = {
    "yoctometer": "1e-24", "zeptometer": "1e-21", "attometer": "1e-18", "femtometer": "1e-15",
    "picometer": "1e-12", "angstrom": "1e-10", "nanometer": "1e-9", "micrometer": "1e-6",
    "millimeter": "1e-3", "centimeter": "1e-2", "decimeter": "1e-1", "meter": "1",
    "hectometer": "1e2", "kilometer": "1e3", "megameter": "1e6", "gigameter": "1e9",
    "terameter": "1e12", "petameter": "1e15", "exameter": "1e18", "zettameter": "1e21",
    "yottameter": "1e24", "inch": "0.0254", "foot": "0.3048", "yard": "0.9144",
    "mile": "1609.344", "parsec": "3.0856775814913673e16",
}  # fmt: skip
OME_UNITS = frozenset(_METRES)
#: What they are called besides, and what has no place in a `VoxelUnit`.
_SYMBOLS = {
    "fm": "femtometer", "pm": "picometer", "dm": "decimeter", "km": "kilometer", "in": "inch",
    "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile",
}  # fmt: skip

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

#: What lengths are converted to, where their own unit is not one of them, largest first.
_USUAL = (VoxelUnit.M, VoxelUnit.MM, VoxelUnit.UM, VoxelUnit.NM)
