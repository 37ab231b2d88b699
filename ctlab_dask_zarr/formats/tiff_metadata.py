"""The voxel size that ImageJ and OME write into TIFF files.

ImageJ's description has ``unit=`` and ``spacing=``, the distance between slices; pixels per unit
are in the resolution tags. OME-XML has ``PhysicalSizeX`` and the like, in micrometres by default
(https://docs.openmicroscopy.org/ome-model). No tag of TIFF itself has the distance of slices.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ctlab_dask_zarr.formats.units import VoxelUnit

#: More than the metadata of any image of one channel.
_MAX_XML_NBYTES = 16 << 20


class VoxelSize(NamedTuple):
    """Edge lengths along z, y, x, None where one is not known, and their unit."""

    lengths: tuple[float | None, float | None, float | None]
    unit: VoxelUnit | None


def imagej_voxel_size(
    metadata: Mapping[str, Any], resolution: Sequence[tuple[int, int] | None]
) -> VoxelSize | None:
    """Return the voxel size that ImageJ wrote; None if it names no unit of length.

    `resolution` are pixels per unit along y and x, each a fraction or None.

    Examples
    --------
    >>> imagej_voxel_size({"unit": "micron", "spacing": 2.0}, [(4, 10), (4, 10)])
    VoxelSize(lengths=(2.0, 2.5, 2.5), unit=<VoxelUnit.UM: 'um'>)
    """
    # ImageJ escapes the micro sign as Java does.
    unit = _unit(str(metadata.get("unit", "")).replace("\\u00B5", "u"))
    if unit is None:
        return None
    y, x = (
        None if part is None or not part[0] or not part[1] else part[1] / part[0]
        for part in resolution
    )
    return VoxelSize((_length(metadata.get("spacing")), y, x), unit)


def ome_voxel_size(xml: str) -> VoxelSize | None:
    """Return the voxel size of the first image in OME-XML; None if it names none.

    Lengths with different units are converted to that of x.
    """
    if len(xml) > _MAX_XML_NBYTES or "<!ENTITY" in xml:
        return None
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return None
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None or pixels.get("PhysicalSizeX") is None:
        return None
    unit = _unit(pixels.get("PhysicalSizeXUnit", "um"))
    if unit is None:
        return None
    lengths: list[float | None] = []
    for axis in "ZYX":
        length = _length(pixels.get(f"PhysicalSize{axis}"))
        own = _unit(pixels.get(f"PhysicalSize{axis}Unit", "um"))
        if length is None or own is None:
            lengths.append(None)
        else:
            lengths.append(length * own.conversion_factor(unit))
    z, y, x = lengths
    return VoxelSize((z, y, x), unit)


def ome_files(xml: str) -> tuple[frozenset[str], str | None]:
    """Return the names of the files that hold the planes, as OME-XML lists them, and the master.

    The master is named where the XML is only a reference to that of another file.

    Examples
    --------
    >>> ome_files('<OME><BinaryOnly MetadataFile="a.ome.tif" UUID="u"/></OME>')
    (frozenset(), 'a.ome.tif')
    """
    if len(xml) > _MAX_XML_NBYTES or "<!ENTITY" in xml:
        return frozenset(), None
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return frozenset(), None
    names, master = set(), None
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag == "UUID" and element.get("FileName"):
            names.add(str(element.get("FileName")))
        if tag == "BinaryOnly":
            master = element.get("MetadataFile")
    return frozenset(names), master


def _length(value: Any) -> float | None:
    try:
        length = float(value)
    except (TypeError, ValueError):
        return None
    return length if math.isfinite(length) and length > 0 else None


def _unit(text: str) -> VoxelUnit | None:
    try:
        unit = VoxelUnit.from_str(text)
    except ValueError:
        return None
    return None if unit is VoxelUnit.VOXEL else unit
