"""Stores with levels and labels, made by zarr itself, for tests of how they are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr


def write_store(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    voxel_size: Sequence[float] = (2.0, 2.0, 2.0),
    unit: str | None = "micrometer",
    datatype: str | None = None,
    image_label: Mapping[str, Any] | None = None,
    **array_options: Any,
) -> Path:
    """Write an OME-Zarr 0.5 image whose levels have the same extent."""
    axes = "zyx"[-levels[0].ndim :]
    extents = [n * v for n, v in zip(levels[0].shape, voxel_size, strict=True)]
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [e / n for e, n in zip(extents, level.shape, strict=True)],
                }
            ],
        }
        for number, level in enumerate(levels)
    ]
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": "image",
                "axes": [
                    {"name": name, "type": "space"} | ({"unit": unit} if unit else {})
                    for name in axes
                ],
                "datasets": datasets,
            }
        ],
    }
    if image_label is not None:
        ome["image-label"] = dict(image_label)
    attributes: dict[str, Any] = {"ome": ome}
    if datatype is not None:
        attributes["mango"] = {"basename": datatype}
    group = zarr.create_group(path, attributes=attributes)
    for number, level in enumerate(levels):
        options: dict[str, Any] = {"chunks": tuple(min(16, n) for n in level.shape)}
        options |= array_options
        array = group.create_array(
            str(number),
            shape=level.shape,
            dtype=level.dtype,
            dimension_names=list(axes),
            **options,
        )
        array[...] = level
    return path


def write_labels(store: Path, name: str, *arguments: Any, **options: Any) -> None:
    """Add a label image to a store, and its name to the list of them."""
    group = zarr.open_group(store / "labels", mode="a")
    names = group.attrs.asdict().get("ome", {}).get("labels", [])
    group.attrs["ome"] = {"version": "0.5", "labels": [*names, name]}
    options.setdefault("image_label", {})
    write_store(store / "labels" / name, *arguments, **options)


def halved(volume: np.ndarray) -> np.ndarray:
    return volume[tuple(slice(None, None, 2) for _ in volume.shape)]
