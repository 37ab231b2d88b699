"""OME-Zarr image metadata, both directions: 0.5, and what others say by way of it.

Specification: https://ngff.openmicroscopy.org/0.5/ , section "multiscales" metadata.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    CTLabError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.json_values import are_numbers
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.ome_versions import (
    OLD_VERSIONS,
    example_inside,
    other_systems,
    plain_multiscale,
    refuse_other_version,
    with_multiscale,
)
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

_SIZE_ADVICE = ": open it with a voxel_size=, as 2.5 (--voxel-size 2.5um)"

ScalePlacement = Literal["dataset", "multiscales"]


class OMEZarrVersion(Enum):
    """Version of the OME-Zarr specification to write."""

    v05 = "0.5"
    v06 = "0.6"


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
    version: str = OMEZarrVersion.v05.value
    #: Transformations that are not applied, as messages name them.
    not_applied: tuple[str, ...] = ()
    #: Axes whose scale is 0, which is taken as 1: they have to have one element.
    unscaled: tuple[str, ...] = ()


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
    if scale_placement == "multiscales" and version is OMEZarrVersion.v06:
        raise InvalidArgumentError(
            "scale_placement='multiscales' is for OME-Zarr 0.5: in 0.6 each level says its own"
        )
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
    return with_multiscale({"version": version.value}, multiscale)


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
    multiscale = plain_multiscale(ome)
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
    return with_multiscale(ome, changed)


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
    """Read the ``ome`` attribute of an image group of any program and version.

    The transformations of a level and of the multiscales entry are combined. Of several multiscales
    the first is read. Axes of different units get one unit. What is `given` may be wrong here: then
    a scale that is not a length becomes 1, a transformation that is not of lengths is left out, and
    lengths are taken as they are.

    Raises
    ------
    UnsupportedFormatError
        The version is not known, the image does not have two or three spatial axes, or its voxels
        do not lie along them.
    MetadataError
        Something that the specification requires is missing or contradicts itself.
    """
    if not isinstance(ome, Mapping):
        raise MetadataError(f"the ome attribute is a {type(ome).__name__}, not an object")
    refuse_other_version(ome)
    if "multiscales" not in ome:
        raise UnsupportedFormatError(
            f"this OME-Zarr group is not an image (it holds {', '.join(sorted(ome))}): give the "
            f"path of an image inside it{example_inside(ome)}"
        )
    try:
        return _parse_multiscale(plain_multiscale(ome), given, ome["version"], other_systems(ome))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise MetadataError(
            f"multiscales lacks or misspells a required part ({error!r})"
        ) from error


def _parse_multiscale(
    multiscale: Mapping[str, Any], given: Given, version: str, other_systems: tuple[str, ...]
) -> OMEImage:
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
    read = _Transforms(axes, space, given)
    outer_scale, outer_shift = read.parsed(multiscale.get("coordinateTransformations") or [])
    levels = []
    for dataset in multiscale["datasets"]:
        key = "coordinateTransformations"
        is_old = given.size or version in OLD_VERSIONS
        transforms = (dataset.get(key) or []) if is_old else dataset[key]
        if not transforms and not given.size:
            raise MetadataError(f"dataset {dataset['path']!r} has no scale{_SIZE_ADVICE}")
        scale, shift = read.parsed(transforms)
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
        name=str(multiscale.get("name") or ""),
        axes=tuple(axes[n] for n in space),
        voxel_unit=unit,
        levels=tuple(levels),
        array_axes=axes,
        unknown_units=unknown,
        version=version,
        not_applied=(*read.left_out, *other_systems),
        unscaled=tuple(axes[n] for n in space if n in read.unscaled),
    )


class _Transforms:
    """Reads transformations of an image, and notes what it could not take as it stands."""

    def __init__(self, axes: Sequence[str], space: Sequence[int], given: Given) -> None:
        self._axes, self._space, self._given = axes, space, given
        self.left_out: dict[str, None] = {}
        #: Axes, by their number, whose scale is 0.
        self.unscaled: set[int] = set()

    def parsed(self, transforms: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        """Return scale and translation along the spatial axes."""
        ndim = len(self._axes)
        try:
            every_scale, every_shift = _parse_transforms(transforms, ndim)
        except (CTLabError, LookupError, TypeError) as error:
            if not self._given.size:
                raise
            kinds = ", ".join(str(t.get("type")) for t in transforms if isinstance(t, Mapping))
            self.left_out[f"{kinds} ({error})"] = None
            every_scale, every_shift = (1.0,) * ndim, (0.0,) * ndim
        scale = {n: every_scale[n] for n in self._space}
        if not self._given.size:
            if min(scale.values()) < 0:
                sizes = list(scale.values())
                raise MetadataError(
                    f"the scale {sizes} holds a value that is not a length{_SIZE_ADVICE}"
                )
            self.unscaled.update(n for n, size in scale.items() if size == 0)
        sizes = [size if size > 0 else 1.0 for size in scale.values()]
        return sizes, [every_shift[n] for n in self._space]


def refuse_unscaled(image: OMEImage, shapes: Iterable[Sequence[int]]) -> None:
    """Raise `MetadataError` where an axis of several elements has a scale of 0.

    `shapes` are those of the arrays, along all of their axes.
    """
    for shape in shapes:
        for axis, n in zip(image.array_axes, shape, strict=False):
            if axis in image.unscaled and n != 1:
                raise MetadataError(
                    f"the scale of the axis {axis!r}, of {n} elements, is 0, which is not a length"
                    f"{_SIZE_ADVICE}"
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
            raise UnsupportedFormatError(
                f"the transformation {dict(transform)} is not read here: voxels lie along the "
                f"axes, moved and scaled alone{_SIZE_ADVICE}"
            )
        # OME-Zarr 0.5: "exactly one scale", then optionally one translation.
        if kind in found or (kind == "scale" and found):
            raise MetadataError(f"the transformations {transforms} are not scale and translation")
        values = transform[kind]
        if not are_numbers(values, ndim):
            raise MetadataError(f"the {kind} {values} does not fit {ndim} axes")
        found[kind] = tuple(float(v) for v in values)
    return found.get("scale", (1.0,) * ndim), found.get("translation", (0.0,) * ndim)
