"""Verify a dataset: every rule, every stored byte and, against its source, every voxel.

What is small is looked at while a verification is prepared. The other checks are tasks of one dask
graph, so that they run where the write did. Each returns a list of problems.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice, product
from math import prod

from ctlab_dask_zarr.errors import CTLabError, DatasetNotFoundError
from ctlab_dask_zarr.execution.progress import topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import ABSENT
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.read.receipts import (
    TASK_NBYTES,
    array_receipts,
    expected_objects,
    seal_of,
)
from ctlab_dask_zarr.read.zarr import read_store_metadata
from ctlab_dask_zarr.read.zarr_documents import refuse_old
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.store.store import Store, files_at
from ctlab_dask_zarr.verification.checks import Verification, reported
from ctlab_dask_zarr.verification.contents import (
    Contents,
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
from ctlab_dask_zarr.verification.objects import shard_problems, whole_object_problems
from ctlab_dask_zarr.verification.scan import all_rows
from ctlab_dask_zarr.verification.source import SourceComparison
from ctlab_dask_zarr.volume import Volume

#: More than any file system holds; a document that claims so is damaged or hostile.
MAX_OBJECTS = 100_000_000
#: At most this many missing objects are named. One more problem says how many others there are, so
#: that a claim of millions does not fill the memory.
_MAX_MISSING = 1000
#: So many tasks for each thread, so that the last ones do not wait long for one another; but none
#: has less to look at than this.
_TASKS_PER_THREAD, _LEAST_NBYTES = 4, 4 << 20


def prepare_verification(
    path: str | os.PathLike[str],
    source: Volume | None,
    *,
    checksums: bool,
    resources: Callable[[], Resources],
) -> Verification:
    """Look at everything that is small, and prepare tasks for the rest.

    `resources` returns what runs them; it may start workers, and is called when all is opened.

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
            refuse_old(root, read_store_metadata(root, store.files).zarr_format)
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
    comparison = None if source is None else SourceComparison(checks, images[0], source)
    n_objects = n_unchecked = 0
    running_on = resources()
    for image in images:
        found = list(document_problems(contents, image))
        for path_below, array in image.arrays:
            n = prod(array.grid_shape)
            if n > MAX_OBJECTS:
                key = document_key(path_below)
                text = f"{key} claims an array of {array.shape}, which would be {n:,} objects"
                found.append(Problem(key, "shape", text))
                continue
            there = objects[f"{image.prefix}{path_below}"]
            is_checked, more = _add_objects(
                checks,
                store,
                image,
                path_below,
                there,
                read=checksums,
                resources=running_on,
                comparison=comparison if image is images[0] else None,
            )
            found += more
            n_objects += n
            n_unchecked += 0 if is_checked else n
        checks.problems += image.placed(found)
    if comparison is not None:
        comparison.add_rest()
    checks.scope = "documents and index verified"
    if checksums:
        checks.scope = _scope(contents, n_objects, n_unchecked)
    return checks


def _scope(contents: Contents, n_objects: int, n_unchecked: int) -> str:
    if n_unchecked:
        return (
            f"every chunk decoded ({n_unchecked} of {n_objects} objects have no checksums except "
            "those of their codec, if any)"
        )
    if has_unchecked_listing(contents):
        return f"every byte verified except {LABELS_LISTING}, which has no checksum"
    return "every byte verified"


def _add_objects(
    checks: Verification,
    store: Store,
    image: Image,
    path: str,
    there: set[Shape],
    *,
    read: bool,
    resources: Resources,
    comparison: SourceComparison | None,
) -> tuple[bool, list[Problem]]:
    """Add checks of the objects of an array; return whether it has checksums, and problems."""
    array = dict(image.arrays)[path]
    seal = seal_of(image.metadata.attributes, path)
    table, problems = array_receipts(image.metadata.store, path, array, seal)
    missing = (c for c in product(*map(range, array.grid_shape)) if c not in there)
    absent: list[Shape] = []
    if table is not None and (table.nbytes == ABSENT).any():
        lost = table.nbytes != ABSENT
        absent = [c for c in product(*map(range, array.grid_shape)) if not (lost[c] or c in there)]
        missing = (c for c in product(*map(range, array.grid_shape)) if lost[c] and c not in there)
    n_missing = prod(array.grid_shape) - len(there) - len(absent)
    named = islice(missing, min(n_missing, _MAX_MISSING))
    if n_missing > _MAX_MISSING:
        place = path or ROOT_DOCUMENT
        text = f"{place}: and {n_missing - _MAX_MISSING:,} more objects are missing"
        problems.append(Problem(place, "missing", text))
    checks.nbytes += prod(array.shape) * array.dtype.itemsize
    objects, place = sorted([*there, *named]), f"{image.prefix}{path}"
    rechunk = None if comparison is None else comparison.rechunk(path, array, resources)
    if comparison is not None and rechunk is not None:
        groups = expected_objects(array, [*objects, *absent], table)
        comparison.add_rows(
            store, place, array, [one for group in groups for one in group], rechunk
        )
        return table is not None, problems
    itemsize, topic = array.dtype.itemsize, topic_of(checks.token)
    object_nbytes = prod(array.object_shape) * itemsize
    nbytes_each = task_nbytes(array, resources)
    is_scanned = read and array.is_direct and array.is_sharded
    n_bands = min(object_nbytes // nbytes_each, len(all_rows(array))) if is_scanned else 1
    for group in expected_objects(array, objects, table, min(nbytes_each, TASK_NBYTES)):
        nbytes = len(group) * object_nbytes
        arguments = store, place, array.document, group
        for rows in _cut(all_rows(array), n_bands):
            report = "verify-shard", reported, topic, nbytes * len(rows) // len(all_rows(array))
            if is_scanned:
                checks.add(*report, shard_problems, *arguments, rows)
            else:
                checks.add(*report, whole_object_problems, *arguments, read)
    return table is not None, problems


def task_nbytes(array: StoredArray, resources: Resources) -> int:
    """Return how many bytes of the voxels of an array one task should look at."""
    n_tasks = _TASKS_PER_THREAD * resources.n_threads
    return max(_LEAST_NBYTES, prod(array.shape) * array.dtype.itemsize // n_tasks)


def _cut(rows: range, n_parts: int) -> Iterator[range]:
    n_parts = max(1, n_parts)
    for n in range(n_parts):
        yield rows[n * len(rows) // n_parts : (n + 1) * len(rows) // n_parts]
