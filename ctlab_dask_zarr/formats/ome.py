"""OME-Zarr 0.5 image metadata, both directions.

Specification: https://ngff.openmicroscopy.org/0.5/ , section "multiscales" metadata.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.json_values import are_numbers
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.units import NOTHING_GIVEN, Given, VoxelUnit, common_unit

_DESCRIPTIONS = {
    "mean": "mean of the voxels that are not masked",
    "mode": "most frequent of the voxels that are not masked",
    "max": "largest of the voxels that are not masked",
    "nearest": "first of the voxels",
}
_MASK_RULE = "a voxel is masked where at least half of those it is made of are"

#: The type of an axis with this name if it has none; all other axes are spatial.
_KINDS = {"t": "time", "c": "channel"}

ScalePlacement = Literal["dataset", "multiscales"]


class OMEZarrVersion(Enum):
    """Version of the OME-Zarr specification to write."""

    v05 = "0.5"


@dataclass(frozen=True)
class OMEImage:
    """What the ``ome`` attribute of a group says about one multiscale image.

    `axes`, `voxel_unit` and `levels` cover the spatial axes only; `array_axes` are all axes of the
    arrays. Levels have no shape here, which only their arrays say. `unknown_units` are the units of
    axes, as messages show them, that are not known here: lengths along them are taken as voxels.
    """

    name: str
    axes: tuple[str, ...]
    voxel_unit: VoxelUnit
    levels: tuple[Level, ...]
    array_axes: tuple[str, ...]
    unknown_units: tuple[str, ...] = ()


def build_ome_attributes(
    *,
    version: OMEZarrVersion,
    name: str,
    axes: Sequence[str],
    voxel_unit: VoxelUnit,
    levels: Sequence[Level],
    scale_placement: ScalePlacement,
    downsample: str | None = None,
) -> dict[str, Any]:
    """Return the ``ome`` attribute of an image group.

    With `scale_placement` ``'dataset'`` every level has its physical scale, which ome-zarr-py,
    napari-ome-zarr and ngff-zarr read. With ``'multiscales'`` the multiscales entry has the scale
    of the finest level, and each level has only its factor, as in mango's own files; Drishti
    expects that. `downsample` is how levels were made, if there are several.
    """
    unit = {} if voxel_unit == VoxelUnit.VOXEL else {"unit": voxel_unit.to_full_name()}
    base = levels[0].voxel_size if scale_placement == "multiscales" else (1.0,) * len(axes)
    datasets = [
        _dataset(
            level.path,
            [s / b for s, b in zip(level.voxel_size, base, strict=True)],
            [t / b for t, b in zip(level.origin, base, strict=True)],
        )
        for level in levels
    ]
    multiscale: dict[str, Any] = {
        "name": name,
        # Neuroglancer rejects null, and every unit that the specification does not list.
        "axes": [{"name": axis, "type": "space", **unit} for axis in axes],
        "datasets": datasets,
    }
    if downsample is not None:
        multiscale.update(_described(downsample))
    if scale_placement == "multiscales":
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": list(base)}]
    return {"version": version.value, "multiscales": [multiscale]}


def _dataset(path: str, scale: Sequence[float], translation: Sequence[float]) -> dict[str, Any]:
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": list(scale)}]
    if any(translation):
        transforms.append({"type": "translation", "translation": list(translation)})
    return {"path": path, "coordinateTransformations": transforms}


def _described(downsample: str) -> dict[str, Any]:
    """Return what a multiscale says about how its levels were made."""
    return {
        "type": downsample,
        "metadata": {
            "description": f"{_DESCRIPTIONS[downsample]}, by factors of 2; {_MASK_RULE}",
            "method": "ctlab_dask_zarr.codec.downsample.halve",
            "version": __version__,
            "kwargs": {"method": downsample},
        },
    }


def add_ome_levels(
    ome: Mapping[str, Any], added: Sequence[tuple[str, Sequence[int]]], downsample: str
) -> dict[str, Any]:
    """Return the ``ome`` attribute of an image with one level, and with further ones added.

    `added` has the path of each new level, and its factors to the one before along each axis.
    """
    multiscale, *others = ome["multiscales"]
    (finest,) = multiscale["datasets"]
    ndim = len(multiscale["axes"])
    scale, translation = _parse_transforms(finest["coordinateTransformations"], ndim)
    datasets = [finest]
    for path, factors in added:
        # The centre of a voxel is in the middle of the finer voxels that it is made of.
        translation = tuple(
            t + s * (f - 1) / 2 for t, s, f in zip(translation, scale, factors, strict=True)
        )
        scale = tuple(s * f for s, f in zip(scale, factors, strict=True))
        datasets.append(_dataset(path, scale, translation))
    changed = {**multiscale, "datasets": datasets, **_described(downsample)}
    return {**ome, "multiscales": [changed, *others]}


def build_image_label(
    colors: Mapping[int, Sequence[int]] | None, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return the ``image-label`` attribute of labels in their image.

    `colors` are red, green, blue and optionally opacity, 0 to 255 each, by label.
    """
    label: dict[str, Any] = {"source": {"image": "../../"}}
    if colors:
        limits = np.iinfo(dtype)
        entries = []
        for value, color in colors.items():
            try:
                parts = [operator.index(part) for part in color]
            except TypeError:
                parts = []
            parts += [255] * (len(parts) == 3)
            is_color = len(parts) == 4 and all(0 <= part <= 255 for part in parts)
            if not is_color or not limits.min <= value <= limits.max:
                raise InvalidArgumentError(
                    f"the colour {list(color)} of label {value} is not three or four numbers from "
                    f"0 to 255 for a value of {dtype}"
                )
            entries.append({"label-value": int(value), "rgba": parts})
        label["colors"] = entries
    return label


def build_omero(
    label: str, value_range: tuple[float, float], contrast: tuple[float, float]
) -> dict[str, Any]:
    """Return the ``omero`` attribute that tells viewers how to show a grey image.

    `value_range` are the smallest and the largest voxel, `contrast` the grey levels that are black
    and white.
    """
    low, high = value_range
    black, white = contrast
    channel = {
        "label": label,
        "color": "FFFFFF",
        "active": True,
        "coefficient": 1,
        "family": "linear",
        "inverted": False,
        "window": {"min": low, "max": high, "start": black, "end": white},
    }
    return {"channels": [channel], "rdefs": {"model": "greyscale"}}


def parse_ome_attributes(ome: Any, given: Given = NOTHING_GIVEN) -> OMEImage:
    """Read the ``ome`` attribute of an image group of any program.

    The transformations of a level and of the multiscales entry are combined. Of several multiscales
    the first is read. Axes of different units get one unit. What is `given` may be wrong here: then
    a scale that is not a length becomes 1, and lengths are taken as they are.

    Raises
    ------
    UnsupportedFormatError
        The version is not 0.5, or the image does not have two or three spatial axes.
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
            f"this OME-Zarr group is not an image (it holds {', '.join(sorted(ome))}): give the "
            "path of an image inside it"
        )
    try:
        return _parse_multiscale(ome["multiscales"][0], given)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise MetadataError(
            f"multiscales lacks or misspells a required part ({error!r})"
        ) from error


def _parse_multiscale(multiscale: Mapping[str, Any], given: Given) -> OMEImage:
    axes = tuple(str(axis["name"]) for axis in multiscale["axes"])
    if len(set(axes)) != len(axes):
        raise MetadataError(f"the axes {', '.join(axes)} are not named once each")
    space = spatial_axes(multiscale)
    if len(space) not in (2, 3):
        raise UnsupportedFormatError(
            f"the image has the axes {', '.join(axes)}, {len(space)} of them spatial; images with "
            "two or three are read here"
        )
    units = [None if given.unit else multiscale["axes"][number].get("unit") for number in space]
    unit, factors, unknown = common_unit(units)

    def parsed(transforms: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        """Return scale and translation along the spatial axes."""
        every_scale, every_shift = _parse_transforms(transforms, len(axes))
        scale = [every_scale[n] for n in space]
        if given.size:
            scale = [size if size > 0 else 1.0 for size in scale]
        if min(scale) <= 0:
            raise MetadataError(f"the scale {scale} holds a value that is not a length")
        return scale, [every_shift[n] for n in space]

    outer_scale, outer_shift = parsed(multiscale.get("coordinateTransformations") or [])
    levels = []
    for dataset in multiscale["datasets"]:
        key = "coordinateTransformations"
        transforms = (dataset.get(key) or []) if given.size else dataset[key]
        if not transforms and not given.size:
            raise MetadataError(f"dataset {dataset['path']!r} has no scale")
        scale, shift = parsed(transforms)
        along = list(zip(scale, shift, outer_scale, outer_shift, factors, strict=True))
        levels.append(
            Level(
                str(dataset["path"]),
                voxel_size=tuple(s * o * f for s, _, o, _, f in along),
                origin=tuple((t * o + by) * f for _, t, o, by, f in along),
            )
        )
    if not levels:
        raise MetadataError("multiscales lists no datasets")
    return OMEImage(
        name=str(multiscale.get("name", "")),
        axes=tuple(axes[n] for n in space),
        voxel_unit=unit,
        levels=tuple(levels),
        array_axes=axes,
        unknown_units=unknown,
    )


def spatial_axes(multiscale: Mapping[str, Any]) -> list[int]:
    """Return which axes of an image are spatial; the type of an axis may be left out."""
    kinds = [axis.get("type") or _KINDS.get(axis["name"], "space") for axis in multiscale["axes"]]
    return [number for number, kind in enumerate(kinds) if kind == "space"]


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
        # OME-Zarr 0.5: "exactly one scale", then optionally one translation.
        if kind in found or (kind == "scale" and found):
            raise MetadataError(f"the transformations {transforms} are not scale and translation")
        values = transform[kind]
        if not are_numbers(values, ndim):
            raise MetadataError(f"the {kind} {values} does not fit {ndim} axes")
        found[kind] = tuple(float(v) for v in values)
    return found.get("scale", (1.0,) * ndim), found.get("translation", (0.0,) * ndim)
