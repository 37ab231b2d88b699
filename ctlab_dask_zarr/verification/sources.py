"""Whether a source is as its own checksums say, and is another than what is verified by it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from dask._task_spec import GraphNode, Task

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import ReceiptTable, object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.netcdf_volume import NetCDFVolume
from ctlab_dask_zarr.read.receipts import array_receipts
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.read.zarr_volume import ZarrVolume
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.documents import stored_objects
from ctlab_dask_zarr.verification.images import document_key
from ctlab_dask_zarr.verification.objects import Expected, expected_objects, object_problems

__all__ = ["add_source_checks", "refuse_itself"]

Key = Any


def add_source_checks(
    graph: dict[Key, GraphNode], volumes: Iterable[Any], token: str
) -> tuple[list[Key], list[Problem], list[str]]:
    """Add tasks that hold what is read against the checksums that are kept of it.

    Those are the MD5 of a block by mango, and the receipts of a store of ours.

    Returns
    -------
    The tasks' keys, what is wrong with the checksums themselves, and what else there is to say.
    """
    keys: list[Key] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for volume in volumes:
        volume.check_unchanged()
        if isinstance(volume, NetCDFVolume):
            place, n_objects = volume.folder, len(volume.blocks)
            kept = [n for n, block in enumerate(volume.blocks) if block.md5_checksum is not None]
            n_kept = len(kept)
            for n in kept:
                key: Key = (f"check-source-{token}", len(keys))
                graph[key] = Task(key, _block_problems, volume, n)
                keys.append(key)
        elif isinstance(volume, ZarrVolume):
            place, n_objects = volume.path, prod(volume.stored.grid_shape)
            store = Store(volume.path, volume.files)
            table, found = array_receipts(store, volume.array_path, volume.stored, volume.seal)
            problems += map(_of_source, found)
            n_kept = 0 if table is None else n_objects
            for group in _groups(volume.stored, table):
                key = (f"check-source-{token}", len(keys))
                graph[key] = Task(key, _object_problems, volume, group)
                keys.append(key)
            notes += _missing(volume)
        else:
            continue
        if n_kept < n_objects:
            notes.append(
                f"the source {place} keeps no checksums of {n_objects - n_kept} of {n_objects} "
                "objects: damage that can be decoded is not found in them"
            )
    return keys, problems, notes


def _groups(array: StoredArray, table: ReceiptTable | None) -> Iterator[tuple[Expected, ...]]:
    """Yield what a task looks at of the objects that there are checksums of."""
    if table is None:
        return iter(())
    return expected_objects(array, product(*map(range, array.grid_shape)), table)


def _missing(volume: ZarrVolume) -> list[str]:
    """Say how many objects are read as fill values, since they are not there."""
    if volume.strict:
        return []
    array = volume.stored
    store = Store(volume.path, volume.files)
    n_objects = prod(array.grid_shape)
    n_missing = n_objects - len(stored_objects(store, volume.array_path, array)[0])
    if not n_missing:
        return []
    return [
        f"{n_missing} of {n_objects} objects of the source {volume.path} are not there: they are "
        "read as fill values"
    ]


def _block_problems(volume: NetCDFVolume, number: int) -> list[Problem]:
    return [*map(_of_source, volume.verify_md5(slice(number, number + 1)))]


def _object_problems(volume: ZarrVolume, group: Sequence[Expected]) -> list[Problem]:
    """Compare checksums alone: what passes decodes, and its voxels are read elsewhere."""
    store = Store(volume.path, volume.files)
    found = object_problems(store, volume.array_path, volume.stored, group, read=True, decode=False)
    return [*map(_of_source, found)]


def _of_source(problem: Problem) -> Problem:
    return replace(problem, message=f"source: {problem.message}")


def refuse_itself(volumes: Iterable[Any], metadata: StoreMetadata) -> None:
    """Raise `InvalidArgumentError` where a source is a level of the image that is verified."""
    for volume in volumes:
        if not isinstance(volume, ZarrVolume):
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
