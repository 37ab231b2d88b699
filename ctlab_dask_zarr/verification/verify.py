"""Verify a dataset: every rule, every stored byte and, against its source, every voxel.

What is small is looked at while a verification is prepared. The other checks are tasks of one dask
graph, so that they run where the write did. Each returns a list of problems.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice, product
from math import prod
from typing import Any

from dask._task_spec import GraphNode, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.errors import CTLabError, DatasetNotFoundError
from ctlab_dask_zarr.execution.graphs import (
    SourceGraph,
    add_block_tasks,
    add_tree,
    analyse_source,
    is_read,
)
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.read.receipts import (
    TASK_NBYTES,
    array_receipts,
    expected_objects,
    seal_of,
)
from ctlab_dask_zarr.read.zarr import read_store_metadata, volume_of
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.store.store import Store, files_at
from ctlab_dask_zarr.verification.comparison import (
    block_problems,
    metadata_differences,
    native,
    of_source,
    refuse_itself,
)
from ctlab_dask_zarr.verification.contents import (
    Image,
    document_key,
    read_contents,
    read_images,
    stored_objects,
)
from ctlab_dask_zarr.verification.documents import (
    LABELS_LISTING,
    consolidated_problems,
    document_problems,
    has_unchecked_listing,
)
from ctlab_dask_zarr.verification.objects import (
    Finding,
    joined_findings,
    shard_problems,
    whole_object_problems,
)
from ctlab_dask_zarr.verification.scan import all_rows
from ctlab_dask_zarr.volume import Source, Volume

#: More than any file system holds; a document that claims so is damaged or hostile.
_MAX_OBJECTS = 100_000_000
#: At most this many missing objects are named. One more problem says how many others there are, so
#: that a claim of millions does not fill the memory.
_MAX_MISSING = 1000
#: So many tasks for each thread, so that the last ones do not wait long for one another; but none
#: has less to look at than this.
_TASKS_PER_THREAD, _LEAST_NBYTES = 4, 4 << 20


class Verification:
    """Checks that are prepared, and the problems that are known before they run.

    Attributes
    ----------
    problems
        What the documents and the listing alone have shown.
    nbytes
        Size of the voxels that will be looked at, for progress.
    scope
        What was verified if there is no problem.
    notes
        What a user should know about the source, though it is not a problem of the dataset.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex[:8]
        self.tasks: dict[Any, GraphNode] = {}
        self.keys: list[Any] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.nbytes = 0
        self.scope = ""

    def add(self, name: str, check: Callable[..., Sequence[Finding]], *arguments: Any) -> None:
        """Add a check."""
        key = (f"{name}-{self.token}", len(self.keys))
        self.tasks[key] = Task(key, check, *arguments)
        self.keys.append(key)

    @cached_property
    def graph(self) -> Delayed:
        """All checks; the result is a list of the problems that they find."""
        root = add_tree(self.tasks, self.keys, _joined, f"join-problems-{self.token}")
        end = f"verify-{self.token}"
        self.tasks[end] = Task(end, joined_findings, TaskRef(root))
        return Delayed(end, HighLevelGraph({end: MaterializedLayer(self.tasks)}, {end: set()}))


def _joined(parts: Sequence[Sequence[Finding]]) -> list[Finding]:
    return [finding for part in parts for finding in part]


def prepare_verification(
    path: str | os.PathLike[str],
    source: Volume | None,
    *,
    checksums: bool,
    n_threads: Callable[[], int],
) -> Verification:
    """Look at everything that is small, and prepare tasks for the rest.

    `n_threads` returns how many run them; it may start them, and is called once all can be opened.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    """
    root = storage_path(path)
    store = Store(root, files_at(root))
    checks = Verification()
    if store.files.kind(store.path(ROOT_DOCUMENT)) is None:
        try:
            read_store_metadata(store.root, store.files)
        except DatasetNotFoundError:
            raise
        except CTLabError as error:
            checks.problems.append(Problem(store.root, "unreadable", str(error)))
            return checks
    contents = read_contents(store)
    images = list(read_images(contents))
    objects = stored_objects(contents, images)
    checks.problems += [*contents.broken.values(), *contents.problems]
    checks.problems += consolidated_problems(contents)
    n_objects = n_unchecked = 0
    threads = n_threads()
    for image in images:
        found = list(document_problems(contents, image))
        for path_below, array in image.arrays:
            n = prod(array.grid_shape)
            if n > _MAX_OBJECTS:
                key = document_key(path_below)
                text = f"{key} claims an array of {array.shape}, which would be {n:,} objects"
                found.append(Problem(key, "shape", text))
                continue
            there = objects[f"{image.prefix}{path_below}"]
            is_checked, more = _add_objects(
                checks, store, image, path_below, there, read=checksums, n_threads=threads
            )
            found += more
            n_objects += n
            n_unchecked += 0 if is_checked else n
        checks.problems += [
            Problem(f"{image.prefix}{p.location}", p.kind, f"{image.prefix}{p.message}")
            for p in found
        ]
    if source is not None:
        _compare(checks, images[0], source)
    checks.scope = "documents and index verified"
    if checksums and n_unchecked:
        checks.scope = (
            f"every chunk decoded ({n_unchecked} of {n_objects} objects have no checksums except "
            "those of their codec, if any)"
        )
    elif checksums:
        checks.scope = "every byte verified"
        if has_unchecked_listing(contents):
            checks.scope += f" except {LABELS_LISTING}, which has no checksum"
    return checks


def _add_objects(
    checks: Verification,
    store: Store,
    image: Image,
    path: str,
    there: set[Shape],
    *,
    read: bool,
    n_threads: int,
) -> tuple[bool, list[Problem]]:
    """Add checks of the objects of an array; return whether it has checksums, and problems."""
    array = dict(image.arrays)[path]
    seal = seal_of(image.metadata.attributes, path)
    table, problems = array_receipts(image.metadata.store, path, array, seal)
    n_missing = prod(array.grid_shape) - len(there)
    missing = (c for c in product(*map(range, array.grid_shape)) if c not in there)
    named = islice(missing, min(n_missing, _MAX_MISSING))
    if n_missing > _MAX_MISSING:
        place = path or ROOT_DOCUMENT
        text = f"{place}: and {n_missing - _MAX_MISSING:,} more objects are missing"
        problems.append(Problem(place, "missing", text))
    itemsize, topic = array.dtype.itemsize, topic_of(checks.token)
    object_nbytes = prod(array.object_shape) * itemsize
    n_tasks = _TASKS_PER_THREAD * n_threads
    task_nbytes = max(_LEAST_NBYTES, prod(array.shape) * itemsize // n_tasks)
    is_scanned = read and array.is_direct and array.is_sharded
    n_bands = min(object_nbytes // task_nbytes, len(all_rows(array))) if is_scanned else 1
    objects = sorted([*there, *named])
    for group in expected_objects(array, objects, table, min(task_nbytes, TASK_NBYTES)):
        nbytes = len(group) * object_nbytes
        arguments = store, f"{image.prefix}{path}", array.document, group
        for rows in _cut(all_rows(array), n_bands):
            report = "verify-shard", _reporting, topic, nbytes * len(rows) // len(all_rows(array))
            if is_scanned:
                checks.add(*report, shard_problems, *arguments, rows)
            else:
                checks.add(*report, whole_object_problems, *arguments, read)
    checks.nbytes += prod(array.shape) * itemsize
    return table is not None, problems


def _cut(rows: range, n_parts: int) -> Iterator[range]:
    n_parts = max(1, n_parts)
    for n in range(n_parts):
        yield rows[n * len(rows) // n_parts : (n + 1) * len(rows) // n_parts]


def _compare(checks: Verification, image: Image, source: Volume) -> None:
    """Compare metadata; add checks of the voxels, and of the source by its own checksums."""
    path = image.metadata.path
    blocks = analyse_source(source.data)
    if is_read(source.data):
        # What was computed from the dataset may be compared with it.
        refuse_itself(blocks.volumes, image.metadata)
    message = None
    if not image.has_finest:
        message = "the documents of its finest level are broken"
    else:
        try:
            _compare_voxels(checks, volume_of(image.metadata, strict=True), source, blocks)
        except CTLabError as error:
            message = str(error)
    if message is not None:
        text = f"{path} was not compared with the source: {message}"
        checks.problems.append(Problem(path, "unreadable", text))
    _add_source_checks(checks, blocks)


def _compare_voxels(
    checks: Verification, found: Volume, source: Volume, blocks: SourceGraph
) -> None:
    checks.problems += metadata_differences(found, source)
    if found.shape == source.shape and native(found.dtype) == native(source.dtype):
        stored = found.source
        assert stored is not None
        check = partial(_check_block, topic_of(checks.token), stored, found.mask_value)
        name = f"compare-block-{checks.token}"
        checks.keys += add_block_tasks(checks.tasks, blocks, check, name)
        checks.nbytes += int(source.data.nbytes)


def _check_block(
    topic: str,
    stored: Source,
    mask_value: Number | None,
    start: Shape,
    shape: Shape,
    block: Any,
) -> list[Finding]:
    nbytes = prod(shape) * stored.dtype.itemsize
    return _reporting(topic, nbytes, block_problems, stored, mask_value, start, shape, block)


def _reporting(
    topic: str, nbytes: int, check: Callable[..., Sequence[Finding]], *arguments: Any
) -> list[Finding]:
    """Run a check, then tell that it has looked at so many bytes of voxels."""
    reporter = Reporter(topic)
    found = [*check(*arguments)]
    reporter.add(nbytes)
    reporter.finish()
    return found


def prepare_source_check(source: Volume) -> Verification:
    """Prepare to compare what a dataset is read from with the checksums that its source keeps."""
    checks = Verification()
    _add_source_checks(checks, analyse_source(source.data))
    return checks


def _add_source_checks(checks: Verification, blocks: SourceGraph) -> None:
    for source in blocks.volumes:
        source.check_unchanged()
        found = source.checks()
        checks.problems += map(of_source, found.problems)
        checks.notes += found.notes
        for check in found.tasks:
            checks.add("check-source", _check_source, check)
        if found.n_unchecked:
            checks.notes.append(
                f"the source {source.location} keeps no checksums of {found.n_unchecked} of "
                f"{found.n_objects} objects: damage that can be decoded is not found in them"
            )


def _check_source(check: Callable[[], list[Problem]]) -> list[Problem]:
    return [*map(of_source, check())]
