"""The label images in a store, and the colours of labels.

OME-Zarr 0.5, section "labels": ``labels/zarr.json`` lists their names. Each is an image group of
its own, whose ``image-label`` metadata may give colours.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.read.zarr import read_store_metadata, volume_of
from ctlab_dask_zarr.read.zarr_documents import read_label_names
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.volume import Volume

RGB = tuple[int, int, int]

#: The golden ratio as a fraction of 2**64. Its multiples spread evenly over the circle of hues, so
#: the colours of neighbouring labels are far apart.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class LabelImage:
    """A label image of a store, and the colours that its metadata gives to labels.

    0 is background, and the mask value of the volume, if there is one, is not a label.
    """

    name: str
    volume: Volume
    colors: Mapping[int, RGB]


def read_label_images(image: Volume) -> tuple[LabelImage, ...]:
    """Return the label images, of any dtype, in the store that a volume was opened from.

    Raises
    ------
    MetadataError
        The list of names, or the colours of a label image, do not follow OME-Zarr.
    """
    source = image.source
    if not isinstance(source, ZarrSource):
        return ()
    store = source.store
    names = read_label_names(store, strict=True)
    return tuple(_read_label_image(store, name) for name in names)


def _read_label_image(store: Store, name: str) -> LabelImage:
    path = store.path(f"labels/{name}")
    metadata = read_store_metadata(path, store.files)
    label = (metadata.attributes.get("ome") or {}).get("image-label") or {}
    try:
        entries = label.get("colors") or []
        colors = dict(_color(entry) for entry in entries if entry.get("rgba") is not None)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        name = ".zattrs" if metadata.zarr_format == 2 else "zarr.json"
        raise MetadataError(f"the colours in {path}/{name} are wrong: {error!r}") from error
    return LabelImage(name, volume_of(metadata), colors)


def _color(entry: Mapping[str, Any]) -> tuple[int, RGB]:
    """Return a label and its colour; some programs write no opacity."""
    red, green, blue = map(operator.index, entry["rgba"][:3])
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{entry['rgba']!r} is not a colour")
    return operator.index(entry["label-value"]), (red, green, blue)


def label_colors(
    labels: npt.NDArray[Any], given: Mapping[int, RGB] | None = None
) -> npt.NDArray[np.uint8]:
    """Return colours of labels, RGB along a further axis: the `given` ones, or bright ones."""
    values, places = np.unique(labels, return_inverse=True)
    colors = _hashed_colors(values)
    for value, color in (given or {}).items():
        colors[values == value] = color
    return colors[places.reshape(labels.shape)]


def _hashed_colors(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    # Wraps around, for negative labels as well.
    hashed = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
    hue = (hashed * _GOLDEN).astype(np.float64) / 2.0**64
    # People distinguish about twenty hues; three degrees of saturation make more colours.
    saturation = np.choose((hashed % np.uint64(3)).astype(int), (0.55, 0.85, 1.0))
    # The triangle wave of each primary colour around the circle.
    wave = np.abs((hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    shade: npt.NDArray[np.float64] = 1 - saturation[:, None] * (1 - np.clip(wave, 0, 1))
    return np.rint(shade * 255).astype(np.uint8)
