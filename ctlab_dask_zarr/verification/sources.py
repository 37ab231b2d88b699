"""Whether a source is as its own checksums say, and is another than what is verified by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from dask._task_spec import GraphNode, Task

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.images import document_key
from ctlab_dask_zarr.volume import Source

__all__ = ["add_source_checks", "refuse_itself"]

Key = Any


def add_source_checks(
    graph: dict[Key, GraphNode], sources: Iterable[Source], token: str
) -> tuple[list[Key], list[Problem], list[str]]:
    """Add tasks that compare what is read with the checksums that its source keeps.

    Returns
    -------
    The tasks' keys, what is wrong with the checksums themselves, and what else there is to say.
    """
    keys: list[Key] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for source in sources:
        source.check_unchanged()
        checks = source.checks()
        problems += map(_of_source, checks.problems)
        notes += checks.notes
        for check in checks.tasks:
            key: Key = (f"check-source-{token}", len(keys))
            graph[key] = Task(key, _problems, check)
            keys.append(key)
        if checks.n_unchecked:
            notes.append(
                f"the source {source.location} keeps no checksums of {checks.n_unchecked} of "
                f"{checks.n_objects} objects: damage that can be decoded is not found in them"
            )
    return keys, problems, notes


def _problems(check: Callable[[], list[Problem]]) -> list[Problem]:
    return [*map(_of_source, check())]


def _of_source(problem: Problem) -> Problem:
    return replace(problem, message=f"source: {problem.message}")


def refuse_itself(volumes: Iterable[Any], metadata: StoreMetadata) -> None:
    """Raise `InvalidArgumentError` where a source is a level of the image that is verified."""
    for volume in volumes:
        if not isinstance(volume, ZarrSource):
            continue
        store = Store(volume.path, volume.files)
        # Copies that share files, as backups do, share voxels where documents differ.
        read = [volume.document_key, _first_key(volume.array_path, volume.stored)]
        for path, document in metadata.arrays:
            own = [document_key(path), _first_key(path, parse_array_document(document))]
            pairs = zip(map(store.path, read), map(metadata.store.path, own), strict=True)
            if any(_is_same_file(*pair) for pair in pairs):
                raise InvalidArgumentError(
                    f"{metadata.path} was to be compared with itself, {volume.path}: give as "
                    "source what it was made from, or none"
                )


def _first_key(path: str, array: StoredArray) -> str:
    return object_key(path, array, (0,) * len(array.shape))


def _is_same_file(one: str, other: str) -> bool:
    if is_url(one) or is_url(other):
        return one == other
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
