"""The axes of a volume: names, edge lengths of a voxel and their unit, the origin."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError, VoxelSizeError

_PREFIXES = {
    **{"yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9},
    **{"micro": -6, "milli": -3, "centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3},
    **{"mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18, "zetta": 21, "yotta": 24},
}
#: Every unit of length that OME-Zarr 0.5 lists, in metres. Decimal numbers, because quotients of
#: powers of ten are exact only there.
_METRES = {f"{prefix}meter": Decimal(f"1e{power}") for prefix, power in _PREFIXES.items()} | {
    "angstrom": Decimal("1e-10"),
    "inch": Decimal("0.0254"),
    "foot": Decimal("0.3048"),
    "yard": Decimal("0.9144"),
    "mile": Decimal("1609.344"),
    "parsec": Decimal("3.0856775814913673e16"),
}
OME_UNITS = frozenset(_METRES)
_MU, _RING = "\N{GREEK SMALL LETTER MU}", "\N{LATIN SMALL LETTER A WITH RING ABOVE}"
#: Other names of units, the short one of a `VoxelUnit` first.
_OTHER_NAMES = {
    **{"meter": "m", "centimeter": "cm", "millimeter": "mm", "nanometer": "nm", "voxel": "voxel"},
    "micrometer": f"um micron microns {_MU}m mu {_MU}",
    "angstrom": f"angstrom {_RING} a au a.u. {_RING}ngstr\N{LATIN SMALL LETTER O WITH DIAERESIS}m",
    **{"femtometer": "fm", "picometer": "pm", "decimeter": "dm", "kilometer": "km"},
    **{"inch": "in inches", "foot": "ft feet", "yard": "yd", "mile": "mi"},
}
_FULL_NAMES = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
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

        Case, surrounding white space, and the NULs that C programs leave at the end of an
        attribute make no difference. The micro sign and the Greek letter, the angstrom sign and
        the Latin letter are taken as the same.

        Raises
        ------
        ValueError
            For anything else; the message lists what is accepted.
        """
        full_name = _full_name(text)
        for unit in cls:
            if unit.to_full_name() == full_name:
                return unit
        accepted = []
        for unit in cls:
            name = unit.to_full_name()
            names = dict.fromkeys((unit, name, *_OTHER_NAMES[name].split()))
            accepted.append(f"{unit}: {', '.join(names)}")
        raise ValueError(
            f"{text!r} is not a voxel unit. Accepted, in any case and in the plural: "
            f"{'; '.join(accepted)}"
        )

    @classmethod
    def size_from_str(cls, text: str) -> tuple[tuple[float, ...], VoxelUnit | None]:
        """Return the lengths, one or one for each axis, and the unit, if there is one, of a text.

        Raises
        ------
        InvalidArgumentError
            The text is no voxel size.

        Examples
        --------
        >>> VoxelUnit.size_from_str("3,2.5,2.5um")
        ((3.0, 2.5, 2.5), <VoxelUnit.UM: 'um'>)
        """
        number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZµμÅå ")
        unit = text[len(number) :].strip()
        try:
            sizes = tuple(float(part) for part in number.split(","))
            found = cls.from_str(unit) if unit else None
        except ValueError as error:
            names = ", ".join(cls)
            raise InvalidArgumentError(
                f"{text!r} is not a voxel size: write 2.5um, or z,y,x as in 3,2.5,2.5um; units are "
                f"{names}"
            ) from error
        if not all(math.isfinite(size) and size > 0 for size in sizes):
            raise InvalidArgumentError(f"{text!r} holds a value that is not a length")
        return sizes, found

    def to_full_name(self) -> str:
        """Return the full name, as OME-Zarr spells it (``'millimeter'``)."""
        return _FULL_NAMES[self.value]

    def conversion_factor(self, to: VoxelUnit) -> float:
        """Return the factor that converts a size in this unit to unit `to`.

        Raises
        ------
        ValueError
            One of the two is `VOXEL`, which is not a length.

        Examples
        --------
        >>> VoxelUnit.MM.conversion_factor(VoxelUnit.UM)
        1000.0
        """
        if VoxelUnit.VOXEL in (self, to):
            raise ValueError(
                f"cannot convert from {self} to {to}: a voxel is not a length; give the dataset a "
                "voxel size in a length unit first"
            )
        return float(_METRES[self.to_full_name()] / _METRES[to.to_full_name()])


class Given(NamedTuple):
    """The voxel size and unit from the caller, about which the file may be wrong."""

    size: bool = False
    unit: bool = False


NOTHING_GIVEN = Given()


class CommonUnit(NamedTuple):
    """One unit for several axes: `VoxelUnit.VOXEL` unless every axis has a length.

    `factors` convert lengths along each axis to it; `unknown` are the names, as messages show
    them, that are not a unit of length.
    """

    unit: VoxelUnit
    factors: tuple[float, ...]
    unknown: tuple[str, ...]


def common_unit(names: Sequence[Any]) -> CommonUnit:
    """Return one unit for axes whose units have these names (None for an axis without unit).

    It is the finest of them, or the next finer `VoxelUnit` if that is not one. A name that is not
    text raises `TypeError`.

    Examples
    --------
    >>> common_unit(["nanometer", "micrometer"])
    CommonUnit(unit=<VoxelUnit.NM: 'nm'>, factors=(1.0, 1000.0), unknown=())
    >>> common_unit(["inch", "inch"]).factors, common_unit(["pixel", "pixel"]).unknown
    ((25.4, 25.4), ("'pixel'",))
    """
    for name in names:
        if not isinstance(name, str | None):
            raise TypeError(f"{name!r} is not a name of a unit")
    full_names = [_full_name(name) for name in names]
    lengths = [_METRES[name] for name in full_names if name in _METRES]
    if len(lengths) < len(names):
        wrong = [n for n, full in zip(names, full_names, strict=True) if full not in _METRES]
        is_plain = all(name is None or _full_name(name) == "voxel" for name in names)
        texts = ("none" if name is None else repr(name) for name in wrong)
        unknown = () if is_plain else tuple(dict.fromkeys(texts))
        return CommonUnit(VoxelUnit.VOXEL, (1.0,) * len(names), unknown)
    finest = min(lengths)
    by_length = {_METRES[u.to_full_name()]: u for u in VoxelUnit if u is not VoxelUnit.VOXEL}
    usual = (VoxelUnit.M, VoxelUnit.MM, VoxelUnit.UM, VoxelUnit.NM)
    finer = [unit for unit in usual if _METRES[unit.to_full_name()] <= finest]
    unit = by_length.get(finest) or (*finer, VoxelUnit.NM)[0]
    metres = _METRES[unit.to_full_name()]
    return CommonUnit(unit, tuple(float(length / metres) for length in lengths), ())


def _full_name(name: Any) -> str | None:
    """Return the full name of the unit that `name` means; None if it is not known."""
    if not isinstance(name, str):
        return None
    # NFKC turns the micro sign into the Greek mu, and the angstrom sign into the Latin letter.
    text = unicodedata.normalize("NFKC", name.strip("\0 \t\r\n")).casefold()
    full = text.replace("metre", "meter")
    known = (n for n in (full, full.removesuffix("s")) if n in _METRES or n == "voxel")
    return next(known, _FULL_NAMES.get(text))


def are_same_sizes(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether two voxel sizes, in one unit and one order of axes, are the same."""
    return bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=0))


def are_same_positions(
    found: Sequence[float], wanted: Sequence[float], voxel_size: Sequence[float]
) -> bool:
    """Whether two positions, in the unit of a voxel size, are within a thousandth of a voxel."""
    return all(
        abs(f - w) <= 1e-3 * size for f, w, size in zip(found, wanted, voxel_size, strict=True)
    )


def given_size(voxel_size: Any, voxel_unit: VoxelUnit | str | None) -> tuple[Any, Any]:
    """Return the size and the unit of a caller; a size that is text may say both."""
    if not isinstance(voxel_size, str):
        return voxel_size, voxel_unit
    size, unit = VoxelUnit.size_from_str(voxel_size)
    if unit is not None and voxel_unit is not None and unit != voxel_unit:
        raise InvalidArgumentError(
            f"voxel_size={voxel_size!r} and voxel_unit={str(voxel_unit)!r} say two units: give one"
        )
    return size, voxel_unit or unit


def lengths_along(ndim: int, voxel_size: Any) -> Sequence[float]:
    """Return one length for each axis, from one for all axes or one for each."""
    lengths = _floats((voxel_size,) if np.ndim(voxel_size) == 0 else voxel_size)
    if lengths is None:
        raise InvalidArgumentError(
            f"voxel_size={voxel_size!r} : pass one length, one for each axis as (3, 2.5, 2.5), or "
            "text as '2.5um'"
        )
    return lengths * ndim if len(lengths) == 1 else lengths


def chosen_voxel_size(
    where: str,
    ndim: int,
    stored: tuple[Sequence[float] | None, VoxelUnit | None],
    voxel_size: Sequence[float] | float | None,
    voxel_unit: VoxelUnit | str | None,
) -> tuple[Sequence[float], VoxelUnit | str]:
    """Return the caller's voxel size and unit, or those that a source has `stored`.

    Raises `VoxelSizeError` for one that neither says; `where` names the source.
    """
    voxel_size, voxel_unit = given_size(voxel_size, voxel_unit)
    size = stored[0] if voxel_size is None else lengths_along(ndim, voxel_size)
    unit = stored[1] if voxel_unit is None else voxel_unit
    if size is None or unit is None:
        missing = "voxel size" if size is None else f"unit of its voxel size {tuple(size)}"
        keywords = f"voxel_size=({', '.join('zyx'[-ndim:])})" if size is None else "voxel_unit="
        raise VoxelSizeError(
            f"{where} does not say the {missing}: give it with {keywords} (--voxel-size 2.5um)"
        )
    return size, unit


def validated_axes(
    dimension_names: Sequence[str], voxel_size: Any, ndim: int
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return dimension names and voxel size, or raise `InvalidArgumentError`."""
    is_list_of_names = isinstance(dimension_names, Sequence) and all(
        isinstance(name, str) and name for name in dimension_names
    )
    if not is_list_of_names:
        raise InvalidArgumentError(
            f"dimension_names={dimension_names!r}: pass one name for each axis, as ('z', 'y', 'x')"
        )
    names, size = tuple(dimension_names), tuple(lengths_along(ndim, voxel_size))
    if len(names) != ndim or len(set(names)) != ndim:
        raise InvalidArgumentError(
            f"dimension_names {names} do not name the {ndim} axes of the data, once each"
        )
    if len(size) != ndim:
        raise InvalidArgumentError(f"voxel_size {size} has {len(size)} values for {ndim} axes")
    if not all(math.isfinite(v) and v > 0 for v in size):
        raise InvalidArgumentError(f"voxel_size {size} holds a value that is not a length")
    return names, size


def validated_origin(origin: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """Return an origin, by default zero, or raise `InvalidArgumentError`."""
    found = (0.0,) * ndim if origin is None else _floats(origin)
    if found is None or len(found) != ndim or not all(map(math.isfinite, found)):
        raise InvalidArgumentError(
            f"origin={origin!r} : pass one position for each axis, as {(0.0,) * ndim}"
        )
    return found


def _floats(values: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        return None
