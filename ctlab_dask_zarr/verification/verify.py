"""Verify a dataset: every rule, every stored byte and, against its source, every voxel.

The checks are tasks of one dask graph, so that they run where the write did.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

from dask._task_spec import GraphNode, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.errors import CTLabError, DatasetNotFoundError
from ctlab_dask_zarr.execution.graphs import add_block_tasks, add_tree, analyse_source, is_read
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.receipts import Expected, array_receipts, expected_objects, seal_of
from ctlab_dask_zarr.read.zarr import ZarrSource, read_store_metadata, volume_of
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.store.store import Store, files_at
from ctlab_dask_zarr.verification.comparison import block_problems, metadata_differences, native
from ctlab_dask_zarr.verification.documents import (
    LABELS_LISTING,
    consolidated_problems,
    document_problems,
    has_unchecked_listing,
    objects_to_check,
    stray_problems,
)
from ctlab_dask_zarr.verification.images import (
    Image,
    document_key,
    read_documents,
    read_images,
)
from ctlab_dask_zarr.verification.objects import whole_object_problems
from ctlab_dask_zarr.verification.sources import add_source_checks, refuse_itself
from ctlab_dask_zarr.volume import Volume

__all__ = ["Verification", "build_source_check", "build_verification"]

#: More than any file system holds; a document that claims so is damaged or hostile.
_MAX_OBJECTS = 100_000_000

_EVERY_BYTE = "every byte verified"

Key = Any


class Verification(NamedTuple):
    """Checks that are prepared.

    Attributes
    ----------
    problems
        What documents and listing alone have shown.
    graph
        Computes to the rest of the problems.
    nbytes
        Of voxels that will be looked at, for progress.
    n_tasks
        How many checks there are.
    scope
        What can be said where nothing is wrong.
    notes
        What there is to say of the source, and is no problem of the dataset.
    """

    problems: list[Problem]
    graph: Delayed
    nbytes: int
    n_tasks: int
    scope: str = ""
    notes: tuple[str, ...] = ()


def build_verification(
    path: str | os.PathLike[str], source: Volume | None, *, checksums: bool
) -> Verification:
    """Look at everything that is small, and prepare tasks for the rest.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    """
    token = uuid.uuid4().hex[:8]
    graph: dict[Key, GraphNode] = {}
    root = storage_path(path)
    store = Store(root, files_at(root))
    problems = _no_store_problems(store)
    if problems:
        return Verification(problems, _delayed(graph, [], token), 0, 0)
    documents = read_documents(store)
    problems += documents.problems.values()
    images = list(read_images(documents, problems))
    problems += stray_problems(documents, images)
    problems += consolidated_problems(documents)
    keys: list[Key] = []
    notes: list[str] = []
    nbytes = n_all = n_without = 0
    for image in images:
        found = list(document_problems(documents, image))
        for array_path, array in image.arrays:
            n_objects = prod(array.grid_shape)
            if n_objects > _MAX_OBJECTS:
                document = document_key(array_path)
                text = f"{document} claims {n_objects:,} objects, an array of {array.shape}"
                found.append(Problem(document, "shape", text))
                continue
            own, seal = image.metadata.store, seal_of(image.metadata.attributes, array_path)
            objects, of_listing = objects_to_check(own, array_path, array)
            table, of_receipts = array_receipts(own, array_path, array, seal)
            found += of_listing + of_receipts
            n_all += n_objects
            n_without += n_objects if table is None else 0
            below = f"{image.prefix}{array_path}"
            for n, group in enumerate(expected_objects(array, objects, table)):
                key = (f"verify-shard-{token}", below, n)
                graph[key] = Task(
                    key, _check_objects, store, below, array.document, group, checksums,
                    topic_of(token),
                )  # fmt: skip
                keys.append(key)
            nbytes += _nbytes(array)
        problems += [
            Problem(f"{image.prefix}{p.location}", p.kind, f"{image.prefix}{p.message}")
            for p in found
        ]
    if source is not None:
        found, more, notes = _compare(graph, images[0], source, token)
        problems += found
        keys += more
        nbytes += int(source.data.nbytes) if more else 0
    scope = _scope(n_all, n_without, checksums=checksums)
    if scope == _EVERY_BYTE and has_unchecked_listing(documents):
        scope += f" but those of {LABELS_LISTING}, of which there is no checksum"
    delayed = _delayed(graph, keys, token)
    return Verification(problems, delayed, nbytes, len(keys), scope, tuple(notes))


def _scope(n_objects: int, n_without: int, *, checksums: bool) -> str:
    """Say what was verified."""
    if not checksums:
        return "documents and index verified"
    if not n_without:
        return _EVERY_BYTE
    return (
        f"every chunk decoded (of {n_without} of {n_objects} objects there are no checksums but "
        "those of their codec, if any)"
    )


def _no_store_problems(store: Store) -> list[Problem]:
    """Return what opening says of a path that is no Zarr v3 store; raise where nothing is there."""
    if store.files.kind(os.path.join(store.root, ROOT_DOCUMENT)) is not None:
        return []
    try:
        read_store_metadata(store.root, store.files)
    except DatasetNotFoundError:
        raise
    except CTLabError as error:
        return [Problem(store.root, "unreadable", str(error))]
    return []


def _delayed(graph: dict[Key, GraphNode], keys: Sequence[Key], token: str) -> Delayed:
    root = add_tree(graph, keys, _joined, f"join-problems-{token}")
    end = f"verify-{token}"
    graph[end] = Task(end, list, TaskRef(root))
    return Delayed(end, HighLevelGraph({end: MaterializedLayer(graph)}, {end: set()}))


def _joined(parts: Sequence[Sequence[Problem]]) -> list[Problem]:
    return [problem for part in parts for problem in part]


def _nbytes(array: StoredArray) -> int:
    return prod(array.shape) * array.dtype.itemsize


def _check_objects(
    store: Store,
    path: str,
    document: str,
    group: Sequence[Expected],
    read: bool,
    topic: str,
) -> list[Problem]:
    array = parse_array_document(document)
    reporter = Reporter(topic)
    problems = whole_object_problems(store, path, array, group, read=read)
    reporter.add(len(group) * prod(array.object_shape) * array.dtype.itemsize)
    reporter.finish()
    return problems


def _compare(
    graph: dict[Key, GraphNode], image: Image, source: Volume, token: str
) -> tuple[list[Problem], list[Key], list[str]]:
    """Compare metadata; add tasks that compare voxels, and the source with its own checksums."""
    path = image.metadata.path
    blocks = analyse_source(source.data)
    if is_read(source.data):
        # What was computed from the dataset may well be compared with it.
        refuse_itself(blocks.volumes, image.metadata)
    keys, problems, notes = add_source_checks(graph, blocks.volumes, token)
    if not image.has_finest:
        message = (
            f"{path} was not compared with the source: the documents of its finest level are broken"
        )
        return [*problems, Problem(path, "unreadable", message)], keys, notes
    try:
        found = volume_of(image.metadata, strict=True)
    except CTLabError as error:
        message = f"{path} was not compared with the source: {error}"
        return [*problems, Problem(path, "unreadable", message)], keys, notes
    problems += metadata_differences(found, source)
    if found.shape == source.shape and native(found.dtype) == native(source.dtype):
        check = partial(_check_block, topic_of(token), found.source, found.mask_value)
        keys = add_block_tasks(graph, blocks, check, f"compare-block-{token}") + keys
    return problems, keys, notes


def _check_block(
    topic: str,
    volume: ZarrSource,
    mask_value: Number | None,
    start: Shape,
    shape: Shape,
    block: Any,
) -> list[Problem]:
    reporter = Reporter(topic)
    problems = block_problems(volume, mask_value, start, shape, block)
    reporter.add(prod(shape) * volume.dtype.itemsize)
    reporter.finish()
    return problems


def build_source_check(source: Volume) -> Verification:
    """Prepare to hold what a dataset is read from against the checksums that are kept of it."""
    token = uuid.uuid4().hex[:8]
    graph: dict[Key, GraphNode] = {}
    volumes = analyse_source(source.data).volumes
    keys, problems, notes = add_source_checks(graph, volumes, token)
    return Verification(problems, _delayed(graph, keys, token), 0, len(keys), notes=tuple(notes))
