"""Verify a dataset: every rule, every stored byte and, against its source, every voxel.

The checks are tasks of one dask graph, so that they run where the write did.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy.typing as npt
from dask._task_spec import GraphNode, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.dataset import Dataset
from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import ReceiptTable
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT, label_names, read_ome
from ctlab_dask_zarr.read.netcdf_volume import NetCDFVolume
from ctlab_dask_zarr.read.zarr import StoreMetadata, dataset_from_zarr, read_store_metadata
from ctlab_dask_zarr.runtime.reporting import Reporter, topic_of
from ctlab_dask_zarr.runtime.storage import LocalStore
from ctlab_dask_zarr.runtime.trees import add_tree
from ctlab_dask_zarr.verification.comparison import block_problems, metadata_differences
from ctlab_dask_zarr.verification.documents import (
    array_receipts,
    document_problems,
    stray_problems,
)
from ctlab_dask_zarr.verification.objects import Expected, object_problems
from ctlab_dask_zarr.write.graph import add_block_tasks, analyse_source

__all__ = ["Verification", "build_source_check", "build_verification"]

#: Objects that one task looks at, where they are small: chunks of an array without sharding.
_TASK_NBYTES = 256 << 20
#: More than any file system holds; a document that claims so is damaged or hostile.
_MAX_OBJECTS = 100_000_000

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
    """

    problems: list[Problem]
    graph: Delayed
    nbytes: int
    n_tasks: int


def build_verification(
    path: str | os.PathLike[str], source: Dataset | None, *, checksums: bool
) -> Verification:
    """Look at everything that is small, and prepare tasks for the rest."""
    token = uuid.uuid4().hex[:8]
    graph: dict[Key, GraphNode] = {}
    problems: list[Problem] = []
    nbytes = 0
    try:
        metadata = read_store_metadata(path)
        arrays = [(p, parse_array_document(text)) for p, text in metadata.arrays]
    except CTLabError as error:
        problems = [Problem(os.fspath(path), "unreadable", str(error))]
        return Verification(problems, _delayed(graph, [], token), 0, 0)
    problems += stray_problems(metadata)
    keys: list[Key] = []
    for prefix, image in [("", metadata), *_labels(metadata, problems)]:
        found = list(document_problems(image))
        if image is not metadata:
            arrays = [(p, parse_array_document(text)) for p, text in image.arrays]
        for array_path, array in arrays:
            n_objects = prod(array.grid_shape)
            if n_objects > _MAX_OBJECTS:
                document = f"{array_path}/zarr.json".lstrip("/")
                text = f"{document} claims {n_objects:,} objects, an array of {array.shape}"
                found.append(Problem(document, "shape", text))
                continue
            table, of_receipts = array_receipts(image, array_path, array)
            found += of_receipts
            for n, group in enumerate(_groups(array, table)):
                below = f"{prefix}{array_path}"
                key = (f"verify-shard-{token}", below, n)
                graph[key] = Task(
                    key, _check_objects, metadata.store, below, array.document, group, checksums,
                    topic_of(token),
                )  # fmt: skip
                keys.append(key)
            nbytes += _nbytes(array)
        problems += [
            Problem(f"{prefix}{p.location}", p.kind, f"{prefix}{p.message}") for p in found
        ]
    if source is not None:
        found, more = _compare(graph, metadata, source, token)
        problems += found
        keys += more
        nbytes += int(source.data.nbytes) if more else 0
    return Verification(problems, _delayed(graph, keys, token), nbytes, len(keys))


def _labels(
    metadata: StoreMetadata, problems: list[Problem]
) -> Iterator[tuple[str, StoreMetadata]]:
    """Yield (prefix, documents) of each labels image; add to `problems` what cannot be read."""
    folder = os.path.join(metadata.path, "labels")
    found = list(label_names(metadata.files, folder))
    listed = read_ome(metadata.files, folder).get("labels")
    listed = [str(name) for name in listed] if isinstance(listed, list) else []
    for name in sorted({*found, *listed}):
        place = f"labels/{name}"
        if name not in found:
            problems.append(Problem(place, "missing", f"{place} is listed, but no image of labels"))
            continue
        if name not in listed:
            problems.append(
                Problem(place, "unlisted", f"labels/{ROOT_DOCUMENT} does not list {name}")
            )
        try:
            yield f"{place}/", read_store_metadata(os.path.join(folder, name))
        except CTLabError as error:
            problems.append(Problem(place, "unreadable", str(error)))


def _delayed(graph: dict[Key, GraphNode], keys: Sequence[Key], token: str) -> Delayed:
    root = add_tree(graph, keys, _joined, f"join-problems-{token}")
    end = f"verify-{token}"
    graph[end] = Task(end, list, TaskRef(root))
    return Delayed(end, HighLevelGraph({end: MaterializedLayer(graph)}, {end: set()}))


def _joined(parts: Sequence[Sequence[Problem]]) -> list[Problem]:
    return [problem for part in parts for problem in part]


def _nbytes(array: StoredArray) -> int:
    return prod(array.shape) * array.dtype.itemsize


def _groups(array: StoredArray, table: ReceiptTable | None) -> Iterator[tuple[Expected, ...]]:
    """Yield the objects of each task: one shard, or as many chunks as make one."""
    object_nbytes = prod(array.object_shape) * array.dtype.itemsize
    n_objects = max(1, _TASK_NBYTES // max(object_nbytes, 1))
    group: list[Expected] = []
    for coords in product(*map(range, array.grid_shape)):
        if table is None:
            group.append(Expected(coords))
        else:
            group.append(Expected(coords, int(table.nbytes[coords]), int(table.crc32c[coords])))
        if len(group) >= n_objects:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _check_objects(
    store: LocalStore,
    path: str,
    document: str,
    group: Sequence[Expected],
    read: bool,
    topic: str,
) -> list[Problem]:
    array = parse_array_document(document)
    reporter = Reporter(topic)
    problems = object_problems(store, path, array, group, read=read)
    reporter.add(len(group) * prod(array.object_shape) * array.dtype.itemsize)
    reporter.finish()
    return problems


def _compare(
    graph: dict[Key, GraphNode], metadata: StoreMetadata, source: Dataset, token: str
) -> tuple[list[Problem], list[Key]]:
    """Compare metadata; add tasks that compare voxels, and the checksums of a netCDF source."""
    try:
        found = dataset_from_zarr(metadata.path, strict=True)
    except CTLabError as error:
        return [Problem(metadata.path, "unreadable", str(error))], []
    problems = list(metadata_differences(found, source))
    if found.shape != source.shape or found.dtype != source.dtype:
        return problems, []
    keys = add_block_tasks(
        graph,
        analyse_source(source.data),
        partial(_check_block, found.source, topic_of(token)),
        f"compare-block-{token}",
    )
    return problems, keys + _add_source_checks(graph, source, token)


def _check_block(
    volume: Any, topic: str, start: tuple[int, ...], block: npt.NDArray[Any]
) -> list[Problem]:
    reporter = Reporter(topic)
    problems = block_problems(volume, start, block)
    reporter.add(block.nbytes)
    reporter.finish()
    return problems


def _add_source_checks(graph: dict[Key, GraphNode], source: Dataset, token: str) -> list[Key]:
    volume = getattr(source, "source", None)
    if not isinstance(volume, NetCDFVolume):
        return []
    keys: list[Key] = []
    for n in range(len(volume.blocks)):
        key = (f"md5-{token}", n)
        graph[key] = Task(key, volume.verify_md5, slice(n, n + 1))
        keys.append(key)
    return keys


def build_source_check(source: Dataset) -> Delayed:
    """Return a Delayed that computes to the problems of a netCDF source's blocks, by their MD5."""
    token = uuid.uuid4().hex[:8]
    graph: dict[Key, GraphNode] = {}
    return _delayed(graph, _add_source_checks(graph, source, token), token)
