"""OME-Zarr 0.5 image metadata, both directions.

Specification: https://ngff.openmicroscopy.org/0.5/ , section "multiscales" metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.units import VoxelUnit

__all__ = [
    "OMEImage",
    "OMELevel",
    "OMEZarrVersion",
    "ScalePlacement",
    "build_ome_attributes",
    "parse_ome_attributes",
]

ScalePlacement = Literal["dataset", "multiscales"]


class OMEZarrVersion(Enum):
    """Version of the OME-Zarr specification to write."""

    v05 = "0.5"


@dataclass(frozen=True)
class OMELevel:
    """One level: where its array is, its voxel size and the position of its first voxel.

    `scale` and `translation` are in the order of the axes, in the axes' unit.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class OMEImage:
    """What the ``ome`` attribute of a group says about one multiscale image."""

    name: str
    axes: tuple[str, ...]
    voxel_unit: VoxelUnit
    levels: tuple[OMELevel, ...]


def build_ome_attributes(
    *,
    version: OMEZarrVersion,
    name: str,
    axes: Sequence[str],
    voxel_unit: VoxelUnit,
    levels: Sequence[OMELevel],
    scale_placement: ScalePlacement,
) -> dict[str, Any]:
    """Return the ``ome`` attribute of an image group.

    With `scale_placement` ``'dataset'`` every level has its full physical scale, which is what
    ome-zarr-py, napari-ome-zarr and ngff-zarr read. With ``'multiscales'`` the finest level's
    scale stands on the multiscales entry and each level has its factor only, as mango's own
    files do and Drishti expects.
    """
    unit = {} if voxel_unit == VoxelUnit.VOXEL else {"unit": voxel_unit.to_full_name()}
    base = levels[0].scale if scale_placement == "multiscales" else (1.0,) * len(axes)
    datasets = []
    for level in levels:
        scale = [s / b for s, b in zip(level.scale, base, strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(level.translation):
            translation = [t / b for t, b in zip(level.translation, base, strict=True)]
            transforms.append({"type": "translation", "translation": translation})
        datasets.append({"path": level.path, "coordinateTransformations": transforms})
    multiscale: dict[str, Any] = {
        "name": name,
        # Neuroglancer rejects a unit outside the specification's list and a null: none at all
        # then.
        "axes": [{"name": axis, "type": "space", **unit} for axis in axes],
        "datasets": datasets,
    }
    if scale_placement == "multiscales":
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": list(base)}]
    return {"version": version.value, "multiscales": [multiscale]}


def parse_ome_attributes(ome: Any) -> OMEImage:
    """Read the ``ome`` attribute of an image group, whoever wrote it.

    The transformations of a level and of the multiscales entry are combined; the first of
    several multiscales is taken.

    Raises
    ------
    UnsupportedFormatError
        Another version than 0.5, or an image with axes that are not two or three of space.
    MetadataError
        Something that the specification requires is missing or contradicts itself.
    """
    if not isinstance(ome, Mapping):
        raise MetadataError(f"the ome attribute is a {type(ome).__name__}, not an object")
    version = ome.get("version")
    if version != OMEZarrVersion.v05.value:
        raise UnsupportedFormatError(f"OME-Zarr version {version!r} is not read here, only '0.5'")
    if "multiscales" not in ome:
        raise UnsupportedFormatError(
            f"this OME-Zarr group is no image (it holds {', '.join(sorted(ome))}): give the path "
            "of an image inside it"
        )
    try:
        return _parse_multiscale(ome["multiscales"][0])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise MetadataError(
            f"multiscales lacks or misspells a required part ({error!r})"
        ) from error


def _parse_multiscale(multiscale: Mapping[str, Any]) -> OMEImage:
    axes = tuple(str(axis["name"]) for axis in multiscale["axes"])
    if len(set(axes)) != len(axes):
        raise MetadataError(f"the axes {', '.join(axes)} are not named once each")
    kinds = {axis.get("type", "space") for axis in multiscale["axes"]}
    if len(axes) not in (2, 3) or kinds != {"space"}:
        raise UnsupportedFormatError(
            f"the image has the axes {', '.join(axes)}; two or three axes of space are read here"
        )
    units = {axis.get("unit") for axis in multiscale["axes"]}
    if len(units) != 1:
        raise UnsupportedFormatError(
            f"the axes have different units ({', '.join(sorted(map(str, units)))}); they have to "
            "be the same here"
        )
    unit = units.pop()
    try:
        voxel_unit = VoxelUnit.VOXEL if unit is None else VoxelUnit.from_str(unit)
    except ValueError as error:
        raise MetadataError(f"axes: {error}") from error
    outer_scale, outer_translation = _parse_transforms(
        multiscale.get("coordinateTransformations") or [], len(axes)
    )
    levels = []
    for dataset in multiscale["datasets"]:
        scale, translation = _parse_transforms(dataset["coordinateTransformations"], len(axes))
        levels.append(
            OMELevel(
                path=str(dataset["path"]),
                scale=tuple(a * b for a, b in zip(scale, outer_scale, strict=True)),
                translation=tuple(
                    t * s + o
                    for t, s, o in zip(translation, outer_scale, outer_translation, strict=True)
                ),
            )
        )
    if not levels:
        raise MetadataError("multiscales lists no datasets")
    return OMEImage(str(multiscale.get("name", "")), axes, voxel_unit, tuple(levels))


def _parse_transforms(
    transforms: Sequence[Mapping[str, Any]], ndim: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for transform in transforms:
        kind = transform["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or not isinstance(transform.get(kind), list):
            raise UnsupportedFormatError(f"the transformation {dict(transform)} is not read here")
        # OME-Zarr 0.5: exactly one scale, then optionally one translation.
        if kind in found or (kind == "scale" and found):
            raise MetadataError(
                f"the transformations {list(transforms)} are no scale and translation"
            )
        values = transform[kind]
        if len(values) != ndim or not all(_is_finite_number(v) for v in values):
            raise MetadataError(f"the {kind} {values} does not fit {ndim} axes")
        if kind == "scale" and min(values) <= 0:
            raise MetadataError(f"the scale {values} holds a value that is no length")
        found[kind] = tuple(float(v) for v in values)
    return found.get("scale", (1.0,) * ndim), found.get("translation", (0.0,) * ndim)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
