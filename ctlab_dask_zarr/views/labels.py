"""The label images that lie in a store, and the colours of labels.

OME-Zarr 0.5, section "labels": ``labels/zarr.json`` lists the names, each is an image group of its
own, with ``image-label`` metadata in which colours may be given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.zarr_array import is_key
from ctlab_dask_zarr.read.zarr import ZarrVolume, dataset_of, read_store_metadata
from ctlab_dask_zarr.store.storage import LocalStore, store_at
from ctlab_dask_zarr.volume import Volume

__all__ = ["LabelImage", "label_colors", "read_label_images"]

RGB = tuple[int, int, int]

#: The golden ratio as a fraction of 2**64: multiples of it are spread evenly over the circle of
#: hues, so that neighbouring labels get colours that are far apart.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class LabelImage:
    """A label image of a store.

    Attributes
    ----------
    name
        As ``labels/zarr.json`` lists it.
    dataset
        Its voxels; 0 is background, and its mask value, where it has one, is no label.
    colors
        Those that its metadata gives, by value.
    """

    name: str
    dataset: Volume
    colors: Mapping[int, RGB]


def read_label_images(dataset: Volume) -> tuple[LabelImage, ...]:
    """Return the label images of the store that a dataset was opened from.

    Of any dtype: what is no integer is for those who draw them to refuse.

    Raises
    ------
    MetadataError
        The list of names or a label image's colours are not as OME-Zarr says.
    """
    if not isinstance(dataset.source, ZarrVolume):
        return ()
    source = dataset.source
    store = store_at(source.path, source.files)
    return tuple(_read_label_image(store, name) for name in _label_names(store))


def _label_names(store: LocalStore) -> list[str]:
    where = f"{store.root}/labels/zarr.json"
    try:
        document = json.loads(store.get("labels/zarr.json"))
        names = document["attributes"]["ome"]["labels"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise MetadataError(f"{where} does not list labels as OME-Zarr 0.5 says: {error!r}") from (
            error
        )
    if not isinstance(names, list) or not all(is_key(name) for name in names):
        raise MetadataError(f"{where} lists {names!r}: not the names of groups below it")
    return names


def _read_label_image(store: LocalStore, name: str) -> LabelImage:
    path = store.path(f"labels/{name}")
    metadata = read_store_metadata(path, store.files)
    dataset = dataset_of(metadata)
    ome = metadata.attributes.get("ome") or {}
    try:
        colors = {
            _integer(entry["label-value"]): _rgb(entry["rgba"])
            for entry in (ome.get("image-label") or {}).get("colors") or []
            if entry.get("rgba") is not None
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MetadataError(f"the colours in {path}/zarr.json: {error!r}") from error
    return LabelImage(name, dataset, colors)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no integer")
    return value


def _rgb(rgba: Any) -> RGB:
    # Some leave the opacity out.
    red, green, blue, *_ = (_integer(value) for value in rgba[:4])
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"{rgba!r} is no colour")
    return red, green, blue


def label_colors(
    labels: npt.NDArray[Any], given: Mapping[int, RGB] | None = None
) -> npt.NDArray[np.uint8]:
    """Return the colours of labels: those given, and a bright one of its own for any other.

    Parameters
    ----------
    labels
        Integers, of any shape.
    given
        Colours by label.

    Returns
    -------
    Red, green, blue along a further, last axis.

    Examples
    --------
    >>> label_colors(np.array([1, 5]), {5: (0, 0, 255)}).tolist()
    [[38, 101, 255], [0, 0, 255]]
    """
    values, places = np.unique(labels, return_inverse=True)
    colors = _hashed_colors(values)
    for value, color in (given or {}).items():
        colors[values == value] = color
    return colors[places.reshape(labels.shape)]


def _hashed_colors(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    # Wraps around, for negative labels as well.
    hashed = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
    hue = (hashed * _GOLDEN).astype(np.float64) / 2.0**64
    # Hue alone tells some twenty colours apart; three degrees of saturation make it more.
    saturation = np.choose((hashed % np.uint64(3)).astype(int), (0.55, 0.85, 1.0))
    # The triangle wave of each primary colour around the circle.
    wave = np.abs((hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    primaries = np.clip(wave, 0, 1)
    shade: npt.NDArray[np.float64] = 1 - saturation[:, None] * (1 - primaries)
    return np.rint(shade * 255).astype(np.uint8)
