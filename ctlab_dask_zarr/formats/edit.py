"""Changes of what a root document says, whoever wrote it; everything else it says is kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ctlab_dask_zarr.errors import UnsupportedFormatError
from ctlab_dask_zarr.formats.mango import build_mango_block, edit_mango_block
from ctlab_dask_zarr.formats.ome import spatial_axes
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE
from ctlab_dask_zarr.formats.units import VoxelUnit, common_unit

__all__ = ["edit_attributes", "rename_ome", "rescale_ome"]


def edit_attributes(
    attributes: Mapping[str, Any],
    found: tuple[Sequence[float], VoxelUnit, Sequence[str]],
    found_id: str | None,
    size: tuple[Sequence[float], VoxelUnit] | None,
    dataset_id: str | None,
    history: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the attributes of a root document with what is given changed.

    Parameters
    ----------
    found
        Voxel size, its unit and the dimension names, as they are read from these attributes.
    found_id
        The identifier that they give.
    size, dataset_id
        Voxel size and unit, and identifier, to be; None to leave them.
    history
        Entries to add.
    """
    changed = dict(attributes)
    found_size, found_unit, names = found
    if "ome" in changed and size is not None:
        changed["ome"] = rescale_ome(changed["ome"], found_size, *size)
    if "ome" in changed and dataset_id is not None and found_id is not None:
        changed["ome"] = rename_ome(changed["ome"], found_id, dataset_id)
    # A dataset without data type has its block beside those of this package's receipt; a store of
    # another writer, which has neither, is given one there.
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
    home[key] = edit_mango_block(
        block,
        dataset_id=dataset_id,
        history=history,
        voxel_size=None if size is None else (*size, names),
    )
    return home if is_mango else {**changed, RECEIPT_ATTRIBUTE: home}


def rescale_ome(
    ome: Mapping[str, Any],
    before: Sequence[float],
    after: Sequence[float],
    voxel_unit: VoxelUnit,
) -> dict[str, Any]:
    """Return the ``ome`` attribute of an image whose voxels are of another size.

    Every position and every level changes by the same factor along an axis; whatever else it says
    is kept, its placement of the scale too.

    Parameters
    ----------
    ome
        As it is.
    before, after
        Voxel size of the finest level, in the order of the axes.
    voxel_unit
        Unit of `after`.

    Raises
    ------
    UnsupportedFormatError
        There are several multiscales, of which only the first is read here.
    """
    if len(ome["multiscales"]) != 1:
        raise UnsupportedFormatError(
            f"the image has {len(ome['multiscales'])} multiscales; only one can be changed here"
        )
    multiscale = dict(ome["multiscales"][0])
    axes = multiscale["axes"]
    space = spatial_axes(multiscale)
    # What is stored is in the unit of each axis; sizes are given in one for all.
    factors = common_unit([axes[n].get("unit") for n in space]).factors
    changes = dict(zip(space, zip(factors, before, after, strict=True), strict=True))

    def rescaled(transform: Mapping[str, Any]) -> dict[str, Any]:
        kind = transform["type"]
        if kind == "identity":
            return dict(transform)
        values = list(transform[kind])
        for n, (factor, old, new) in changes.items():
            # Divided first, so that factors of two between levels stay exact.
            values[n] = values[n] * factor / old * new
        return {**transform, kind: values}

    outer = multiscale.get("coordinateTransformations") or []
    if outer:
        multiscale["coordinateTransformations"] = [rescaled(transform) for transform in outer]
    # To an outer scale the levels are relative.
    if not any(transform["type"] == "scale" for transform in outer):
        multiscale["datasets"] = [
            {
                **dataset,
                "coordinateTransformations": [
                    rescaled(transform) for transform in dataset["coordinateTransformations"]
                ],
            }
            for dataset in multiscale["datasets"]
        ]
    unit = voxel_unit.to_full_name()
    multiscale["axes"] = [
        {**axis, "unit": unit} if n in space else axis for n, axis in enumerate(axes)
    ]
    return {**ome, "multiscales": [multiscale]}


def rename_ome(ome: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    """Return the ``ome`` attribute with another name where it bears the name `before`."""
    changed = copy.deepcopy(dict(ome))
    for multiscale in changed["multiscales"]:
        if multiscale.get("name") == before:
            multiscale["name"] = after
    for channel in (changed.get("omero") or {}).get("channels") or []:
        if channel.get("label") == before:
            channel["label"] = after
    return changed
