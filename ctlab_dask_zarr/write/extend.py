"""Plan what is added to an image that is there: further levels, and labels.

Further levels are staged beside the store like any write. The commit moves their folders into the
store, where no document names them yet, and then replaces the root document by one that does.
Labels are an image of their own below ``labels/``, staged beside their image. The document of the
group ``labels``, put last, makes them known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.ome import add_ome_levels, build_image_label
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_positions, are_same_sizes
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.identity import plan_identity
from ctlab_dask_zarr.planning.levels import (
    LevelSpec,
    plan_levels,
    refuse_other_factors,
    resolve_downsample,
)
from ctlab_dask_zarr.planning.plan import Document, ImageIdentity, WritePlan
from ctlab_dask_zarr.planning.resolve import planned_levels
from ctlab_dask_zarr.read.zarr import (
    StoreMetadata,
    read_store_metadata,
    source_of,
    volume_of,
)
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import CONSOLIDATED
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, label_names
from ctlab_dask_zarr.write.staging.request import StageRequest

if TYPE_CHECKING:
    from ctlab_dask_zarr.volume import Volume


def images_to_extend(
    metadata: StoreMetadata, levels: LevelSpec
) -> tuple[tuple[Level, ...], list[StoreMetadata]]:
    """Return the levels that an image and its labels should have, and which of these lack them.

    Labels come first, so that they never have fewer levels than their image.
    """
    path = metadata.path
    if metadata.ome is None:
        raise UnsupportedFormatError(
            f"{path} is a plain array, which has one level: convert it to an OME-Zarr group first"
        )
    if metadata.is_labels:
        raise InvalidArgumentError(
            f"{path} is labels of an image, which get their levels with it: give the path of the "
            "image"
        )
    if metadata.ome.array_axes != metadata.ome.axes:
        raise UnsupportedFormatError(
            f"{path} has the axes {', '.join(metadata.ome.array_axes)}; levels are made for images "
            "with axes of space alone: convert it first"
        )
    image = volume_of(metadata)
    wanted = halved_levels(image, path)
    if len(wanted) == 1:
        wanted = plan_levels(wanted[0], levels)
    if len(wanted) == 1:
        raise InvalidArgumentError(
            f"levels={levels!r} adds none to {path}: its longest axis has {max(image.shape)} voxels"
        )
    wanted_shapes = [level.shape for level in wanted]
    images = []
    folder = os.path.join(path, "labels")
    for name in label_names(metadata.files, path):
        labels = read_store_metadata(os.path.join(folder, name), metadata.files)
        if not labels.is_labels:
            continue
        shapes = [parse_array_document(document).shape for _, document in labels.arrays]
        if shapes == wanted_shapes[:1]:
            images.append(labels)
        elif shapes != wanted_shapes:
            raise InvalidArgumentError(
                f"the labels {name!r} have levels of the shapes {shapes}, where the image {path} "
                f"has, or would get, {wanted_shapes}: labels need the same levels as their image"
            )
    if len(metadata.arrays) == 1:
        images.append(metadata)
    return wanted, images


def halved_levels(image: Volume, path: str) -> tuple[Level, ...]:
    """Return the levels of an image; raise if other levels cannot be made like them."""
    try:
        refuse_other_factors(image.levels)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error
    return image.levels


def level_request(
    metadata: StoreMetadata,
    levels: Sequence[Level],
    downsample: str | None,
    *,
    labels_of: str | None,
    resume: bool,
    restart: bool,
) -> StageRequest:
    """Return what staging has to do to give an image with one level its further ones."""
    dataset = volume_of(metadata)
    volume = source_of(metadata, 0)
    stored = volume.stored
    every = planned_levels(levels, volume.document, volume.array_path)
    destination = Destination(metadata.path, metadata.files, labels_of)
    method = resolve_downsample(downsample, stored.dtype.kind, is_discrete=dataset.is_discrete)
    root = json.loads(metadata.store.get(ROOT_DOCUMENT))
    root.pop(CONSOLIDATED, None)
    attributes = root["attributes"]
    added = [(level.path, level.factors) for level in every[1:]]
    attributes["ome"] = add_ome_levels(attributes["ome"], added, method)
    texts = {f"{level.path}/{ROOT_DOCUMENT}": level.document for level in every[1:]}
    texts[ROOT_DOCUMENT] = json.dumps(root)
    identity = plan_identity(every, dataset.datatype, volume.identity(), method)
    return StageRequest(
        destination=destination,
        levels=every,
        documents=tuple(Document(key, text) for key, text in texts.items()),
        resume=resume,
        restart=restart,
        identity=identity,
        datatype=dataset.datatype,
        downsample=method,
        is_discrete=dataset.is_discrete,
        extends=metadata.root_hash,
    )


def refuse_unfit_labels(labels: Volume, image: Volume, path: str) -> None:
    """Raise if labels do not have the dtype, shape, voxel size or place that their image asks."""
    if np.dtype(labels.dtype).kind not in "iu":
        raise InvalidArgumentError(
            f"labels are of dtype {labels.dtype}, but name classes by integers: convert them with "
            "data.astype('uint8'), for example"
        )
    if labels.datatype is not None and not labels.is_discrete:
        raise InvalidArgumentError(
            f"the labels are of data type {labels.datatype}, whose values are greys and name no "
            "classes: segment them first. Where they are classes all the same, pass the array "
            "alone, labels.data, or Dataset.from_modified(labels, is_discrete=True)"
        )
    if labels.shape != image.shape or labels.dimension_names != image.dimension_names:
        raise InvalidArgumentError(
            f"the labels are {_axes(labels)}, the image {path} is {_axes(image)}: they have to be "
            "the same"
        )
    units = (labels.voxel_unit, image.voxel_unit)
    # A voxel is not a length, and can only be compared with itself.
    is_comparable = units[0] == units[1] or VoxelUnit.VOXEL not in units
    if not is_comparable or not are_same_sizes(
        labels.voxel_size_with_unit(image.voxel_unit), image.voxel_size
    ):
        raise InvalidArgumentError(
            f"the labels' voxels are {labels.voxel_size} {labels.voxel_unit}, those of the image "
            f"{path} {image.voxel_size} {image.voxel_unit}: they have to be the same"
        )
    # Labels without an origin, as in mango's files, begin where their image does.
    if any(labels.origin) and not are_same_positions(labels.origin, image.origin, image.voxel_size):
        raise InvalidArgumentError(
            f"the labels begin at {labels.origin} {labels.voxel_unit}, the image {path} at "
            f"{image.origin}: where they belong to the same voxels all the same, pass "
            f"Dataset.from_modified(labels, origin={image.origin})"
        )


def _axes(dataset: Volume) -> str:
    axes = zip(dataset.dimension_names, dataset.shape, strict=True)
    return ", ".join(f"{name}: {n}" for name, n in axes)


def plan_labels(
    plan: WritePlan,
    image_path: str,
    name: str,
    colors: Mapping[int, Sequence[int]] | None,
    image: ImageIdentity | None = None,
) -> WritePlan:
    """Make labels of the image at `image_path` out of the plan of an image.

    `image` tells that image from another one that takes its place before the labels are there.
    """
    # A folder with the name of the document would hide it, and with it all labels.
    is_taken = name.lower() == ROOT_DOCUMENT
    is_odd = name != name.strip() or name.startswith((".", "-")) or not name.isprintable()
    if is_taken or not name or is_odd or any(c in name for c in "/\\'\"`"):
        raise InvalidArgumentError(
            f"{name!r} is not a name for labels, of which a folder and lines of commands are made: "
            "use one like 'phases', without slashes, quotes, or a dot or dash at its beginning"
        )
    *documents, root = plan.documents
    content = json.loads(root.text)
    label = build_image_label(colors, plan.levels[0].array.dtype)
    content["attributes"]["ome"]["image-label"] = label
    return replace(
        plan,
        destination=os.path.join(image_path, "labels", name),
        documents=(*documents, Document(ROOT_DOCUMENT, json.dumps(content))),
        requested={**(plan.requested or {}), "image-label": label},
        is_discrete=True,
        labels_of=image_path,
        image=image,
    )
