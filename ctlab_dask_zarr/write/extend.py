"""What is added to an image that is there: further levels, and labels.

Further levels are staged beside the store like any write. At the commit their folders are moved
into the store, where no document names them yet, and then its root document is replaced by one
that does. Labels are an image of their own below ``labels/``, staged beside the image they belong
to, which a last document, that of the group ``labels``, makes known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError
from ctlab_dask_zarr.formats.ome import add_ome_levels, build_image_label
from ctlab_dask_zarr.formats.receipts import RECEIPT_ATTRIBUTE
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.read.zarr import StoredLevel, StoreMetadata, ZarrVolume, dataset_from_zarr
from ctlab_dask_zarr.write.destination import Destination
from ctlab_dask_zarr.write.layout import Layout, resolve_layout
from ctlab_dask_zarr.write.plan import Document, Level, WritePlan, plan_fingerprint, plan_identity
from ctlab_dask_zarr.write.pyramid import LevelSpec, level_geometries, resolve_downsample
from ctlab_dask_zarr.write.resolve import coarser_levels
from ctlab_dask_zarr.write.stage import StageRequest, plain_mask_value

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.formats.zarr_array import StoredArray

__all__ = ["level_request", "plan_labels", "refuse_unfit_labels"]


def level_request(
    metadata: StoreMetadata,
    levels: LevelSpec,
    downsample: str | None,
    run_id: str,
    *,
    resume: bool,
    restart: bool,
) -> StageRequest:
    """Return what staging is asked for to give an image its further levels.

    Raises
    ------
    InvalidArgumentError, UnsupportedFormatError
        The store has levels already, or is none that can have them.
    """
    if metadata.ome is None:
        raise UnsupportedFormatError(
            f"{metadata.path} is a plain array, which has one level: convert it to an OME-Zarr "
            "group first"
        )
    if len(metadata.arrays) > 1:
        raise InvalidArgumentError(f"{metadata.path} has {len(metadata.arrays)} levels already")
    dataset = dataset_from_zarr(metadata.path)
    volume: ZarrVolume = dataset.source
    stored = volume.stored
    geometries = level_geometries(stored.shape, dataset.voxel_size, levels)
    if len(geometries) == 1:
        raise InvalidArgumentError(
            f"levels={levels!r} adds none to {metadata.path}: its longest axis has "
            f"{max(stored.shape)} voxels"
        )
    finest = Level(volume.array_path, _stored_layout(stored), volume.document)
    every = (finest, *coarser_levels(finest, geometries))
    destination = Destination(metadata.path, metadata.files)
    method = resolve_downsample(downsample, dataset.datatype, stored.dtype.kind)
    root = json.loads(metadata.store.get(ROOT_DOCUMENT))
    attributes = root["attributes"]
    added = [(level.path, level.factors) for level in every[1:]]
    attributes["ome"] = add_ome_levels(attributes["ome"], added, method)
    attributes.setdefault(RECEIPT_ATTRIBUTE, {"levels": []})
    documents = [Document(f"{level.path}/{ROOT_DOCUMENT}", level.document) for level in every[1:]]
    documents.append(Document(ROOT_DOCUMENT, json.dumps(root)))
    identity = plan_identity(every, dataset.datatype, volume.identity(), method)
    return StageRequest(
        destination=destination,
        levels=every,
        documents=tuple(documents),
        overwrite=False,
        resume=resume,
        restart=restart,
        identity=identity,
        fingerprint=plan_fingerprint(identity),
        run_id=run_id,
        mask_value=plain_mask_value(dataset.datatype),
        downsample=method,
        is_grey=dataset.datatype is None or not dataset.datatype.is_discrete,
        extends=metadata.root_hash,
    )


def _stored_layout(stored: StoredArray) -> Layout:
    if stored.is_sharded:
        shard = stored.object_shape
        return Layout(stored.shape, stored.inner_chunk_shape, shard, shard)
    return resolve_layout(stored.shape, chunks=stored.object_shape, shards=None)


def refuse_unfit_labels(labels: Dataset, image: Dataset, path: str) -> None:
    """Raise `InvalidArgumentError` where labels do not belong to an image."""
    if np.dtype(labels.dtype).kind not in "iu":
        raise InvalidArgumentError(
            f"labels are of dtype {labels.dtype}, but name classes by integers: convert them with "
            "data.astype('uint8'), for example"
        )
    if labels.shape != image.shape or labels.dimension_names != image.dimension_names:
        raise InvalidArgumentError(
            f"the labels are {_axes(labels)}, the image {path} is {_axes(image)}: they have to be "
            "the same"
        )
    units = (labels.voxel_unit, image.voxel_unit)
    # A voxel is no length: it is the same as itself only.
    is_comparable = units[0] == units[1] or VoxelUnit.VOXEL not in units
    if not is_comparable or not are_same_sizes(
        labels.voxel_size_with_unit(image.voxel_unit), image.voxel_size
    ):
        raise InvalidArgumentError(
            f"the labels' voxels are {labels.voxel_size} {labels.voxel_unit}, those of the image "
            f"{path} {image.voxel_size} {image.voxel_unit}: they have to be the same"
        )


def _axes(dataset: Dataset) -> str:
    axes = zip(dataset.dimension_names, dataset.shape, strict=True)
    return ", ".join(f"{name}: {n}" for name, n in axes)


def plan_labels(
    plan: WritePlan,
    image_path: str,
    name: str,
    levels: Sequence[StoredLevel],
    colors: Mapping[int, Sequence[int]] | None,
) -> WritePlan:
    """Return the plan of an image as that of labels of the image at `image_path`.

    Raises
    ------
    InvalidArgumentError
        The name, a colour, or the image's levels cannot be used.
    """
    if name in ("", ".", "..") or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise InvalidArgumentError(f"{name!r} is no name for labels: use one as 'phases'")
    shapes = [level.shape for level in levels]
    if shapes != [level.layout.shape for level in plan.levels]:
        raise InvalidArgumentError(
            f"the levels of {image_path} have the shapes {shapes}, which are not those that labels "
            "are given here: labels need the same levels as their image"
        )
    (root,) = [document for document in plan.documents if document.key == ROOT_DOCUMENT]
    content = json.loads(root.text)
    label = build_image_label(colors, plan.levels[0].array.dtype)
    content["attributes"]["ome"]["image-label"] = label
    documents = [document for document in plan.documents if document.key != ROOT_DOCUMENT]
    return replace(
        plan,
        destination=os.path.join(image_path, "labels", name),
        documents=(*documents, Document(ROOT_DOCUMENT, json.dumps(content))),
        labels_of=image_path,
    )
