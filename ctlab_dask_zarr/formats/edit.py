"""Changes of a root document of any program; the rest of the document is kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ctlab_dask_zarr.errors import UnsupportedFormatError
from ctlab_dask_zarr.formats.json_values import plain_json
from ctlab_dask_zarr.formats.mango import build_mango_block, to_xyz
from ctlab_dask_zarr.formats.ome import spatial_axes
from ctlab_dask_zarr.formats.ome_versions import plain_multiscale, with_multiscale
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE
from ctlab_dask_zarr.formats.units import VoxelUnit, common_unit


def edit_attributes(
    attributes: Mapping[str, Any],
    found: tuple[Sequence[float], VoxelUnit, Sequence[str]],
    found_id: str | None,
    size: tuple[Sequence[float], VoxelUnit] | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the attributes of a root document, changed as the arguments say.

    `found` are the voxel size, unit and dimension names that were read from them, and `found_id` is
    the identifier. `size` (with its unit) and `dataset_id` are the new ones, or None to keep the
    old; the entries of `history` are added.
    """
    changed = dict(attributes)
    found_size, found_unit, names = found
    if "ome" in changed and size is not None:
        changed["ome"] = _rescaled(changed["ome"], found_size, *size)
    if "ome" in changed and dataset_id is not None and found_id is not None:
        changed["ome"] = _renamed(changed["ome"], found_id, dataset_id)
    # A dataset without data type has its block in this package's receipt. So does a store of
    # another writer after a change.
    is_mango = "mango" in changed
    home = changed if is_mango else dict(changed.get(RECEIPT_ATTRIBUTE) or {"levels": []})
    key = "mango" if is_mango else "dataset"
    block = home.get(key) or build_mango_block(
        datatype=None,
        dataset_id=None,
        history={},
        voxel_size=found_size,
        voxel_unit=found_unit,
        dimension_names=names,
        extra_attrs={},
    )
    home[key] = block = dict(block)
    if dataset_id is not None:
        block["dataset_id"] = plain_json(dataset_id, "dataset_id")
    if history:
        block["history"] = {**block.get("history", {}), **plain_json(history, "history")}
    if size is not None:
        block |= {"voxel_size_xyz": to_xyz(size[0], names), "voxel_unit": str(size[1])}
    return home if is_mango else {**changed, RECEIPT_ATTRIBUTE: home}


def _rescaled(
    ome: Mapping[str, Any],
    before: Sequence[float],
    after: Sequence[float],
    voxel_unit: VoxelUnit,
) -> dict[str, Any]:
    """Return the ``ome`` attribute of an image with voxels of another size.

    All positions and levels change by the same factor along an axis. `before` and `after` are voxel
    sizes of the finest level, `after` in `voxel_unit`.
    """
    if len(ome["multiscales"]) != 1:
        raise UnsupportedFormatError(
            f"the image has {len(ome['multiscales'])} multiscales; only one can be changed here"
        )
    multiscale = plain_multiscale(ome)
    axes = multiscale["axes"]
    space = spatial_axes(multiscale)
    # Each axis of the file has its own unit; `before` and `after` are in one unit for all axes.
    factors = common_unit([axes[n].get("unit") for n in space]).factors
    changes = dict(zip(space, zip(factors, before, after, strict=True), strict=True))

    def rescaled(transform: Mapping[str, Any]) -> dict[str, Any]:
        kind = transform["type"]
        if kind == "identity":
            return dict(transform)
        values = list(transform[kind])
        for n, (factor, old, new) in changes.items():
            # Division comes first: factors of two between levels stay exact.
            values[n] = values[n] * factor / old * new
        return {**transform, kind: values}

    outer = multiscale.get("coordinateTransformations") or []
    if outer:
        multiscale["coordinateTransformations"] = [rescaled(transform) for transform in outer]
    # With an outer scale, the scales of the levels are relative to it.
    if not any(transform["type"] == "scale" for transform in outer):
        key = "coordinateTransformations"
        multiscale["datasets"] = [
            {**dataset, key: [rescaled(transform) for transform in dataset[key]]}
            for dataset in multiscale["datasets"]
        ]
    unit = voxel_unit.to_full_name()
    multiscale["axes"] = [
        {**axis, "unit": unit} if n in space else axis for n, axis in enumerate(axes)
    ]
    return with_multiscale(ome, multiscale)


def _renamed(ome: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    """Return the ``ome`` attribute with another name if its name is `before`."""
    changed = copy.deepcopy(dict(ome))
    for multiscale in changed["multiscales"]:
        if multiscale.get("name") == before:
            multiscale["name"] = after
    for channel in (changed.get("omero") or {}).get("channels") or []:
        if channel.get("label") == before:
            channel["label"] = after
    return changed
