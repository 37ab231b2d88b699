"""Copy a committed store to an object store and back: shards first, the root document last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import google_crc32c

from ctlab_dask_zarr.errors import DestinationExistsError, IncompleteDatasetError
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.read.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.runtime.objects import ObjectFiles
from ctlab_dask_zarr.runtime.storage import TEMPORARY_SUFFIX, LocalStore, store_at
from ctlab_dask_zarr.verification.documents import array_receipts
from ctlab_dask_zarr.write.destination import Destination

__all__ = ["CopyResult", "copy_dataset"]

#: Read and written at once.
_BLOCK_NBYTES = 8 << 20
#: Objects under way at once; what counts is the latency of a request.
_N_THREADS = 4


@dataclass(frozen=True)
class CopyResult:
    """What was copied: where to, how many objects there are, how many were there, and bytes."""

    destination: str
    n_objects: int
    n_skipped: int
    nbytes: int


def copy_dataset(
    source: str, destination: Destination, on_copied: Callable[[int, int], None] | None = None
) -> CopyResult:
    """Copy a committed store; may be repeated, and goes on where it was interrupted.

    What is copied is held against the checksums that the commit kept, and its size and checksum at
    the destination against what was sent. Nothing is readable as a dataset there before the end: on
    a file system it is put together in a hidden sibling, and on an object store the root document
    comes last.

    Parameters
    ----------
    source
        The store, local or not.
    destination
        Where to; nothing may be there but what an interrupted copy of the same store has left.
    on_copied
        Told, after each object, its size and the size of all; from another thread.

    Raises
    ------
    DestinationExistsError
        There is another dataset.
    IncompleteDatasetError
        An object of the source is missing or damaged, or was not received as sent.
    """
    metadata = read_store_metadata(source)
    root = metadata.store.get(ROOT_DOCUMENT)
    incoming = _incoming(destination)
    if _is_there(destination, root):
        return CopyResult(destination.path, 0, 0, 0)
    expected = _checksums(metadata)
    objects = {
        key: nbytes
        for key, (nbytes, _) in metadata.store.stats().items()
        if key != ROOT_DOCUMENT and not key.endswith(TEMPORARY_SUFFIX)
    }
    missing = sorted(expected.keys() - objects.keys())
    if missing:
        raise IncompleteDatasetError(f"{source} lacks {missing[0]}: it is not copied")
    there = incoming.stats()
    strangers = sorted(there.keys() - objects.keys() - {ROOT_DOCUMENT})
    if strangers:
        raise DestinationExistsError(
            f"{incoming.root} holds {strangers[0]!r}, which is no part of {source}: remove what is "
            "there, or choose another name"
        )
    total = sum(objects.values())
    n_skipped = 0
    with ThreadPoolExecutor(_N_THREADS) as pool:
        copies = {
            pool.submit(
                _copy_object, metadata.store, incoming, key, expected.get(key), key in there
            ): key
            for key in sorted(objects)
        }
        try:
            for done in as_completed(copies):
                n_skipped += done.result()
                if on_copied is not None:
                    on_copied(objects[copies[done]], total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _publish(destination, incoming, root)
    return CopyResult(destination.path, len(objects) + 1, n_skipped, total + len(root))


def _incoming(destination: Destination) -> LocalStore:
    """Return where objects arrive."""
    if not destination.can_rename:
        return destination.store
    folder, name = os.path.split(destination.path)
    incoming = os.path.join(folder, f".{name}.incoming")
    with suppress(FileExistsError):
        os.makedirs(incoming)
    return store_at(incoming, destination.files)


def _is_there(destination: Destination, root: bytes) -> bool:
    try:
        found = destination.store.get(ROOT_DOCUMENT)
    except (FileNotFoundError, NotADirectoryError):
        if destination.can_rename and destination.files.kind(destination.path) is not None:
            raise DestinationExistsError(
                f"{destination.path} exists: choose another name"
            ) from None
        return False
    if found != root:
        raise DestinationExistsError(
            f"{destination.path} exists and is another dataset: choose another name, or remove it "
            "first"
        )
    return True


def _checksums(metadata: StoreMetadata) -> dict[str, int]:
    """Return the CRC-32C of every shard for which the commit kept one, by key."""
    found: dict[str, int] = {}
    if own_receipt(metadata.attributes) is None:
        return found
    for path, text in metadata.arrays:
        array = parse_array_document(text)
        table, problems = array_receipts(metadata, path, array)
        if problems:
            raise IncompleteDatasetError(f"{metadata.path}: {problems[0].message}")
        if table is not None:
            for coords, checksum in _entries(table.crc32c):
                found[f"{path}/{array.key(coords)}".lstrip("/")] = checksum
    return found


def _entries(table: Any) -> Iterator[tuple[tuple[int, ...], int]]:
    import numpy as np

    for coords in np.ndindex(table.shape):
        yield coords, int(table[coords])


def _copy_object(
    source: LocalStore, target: LocalStore, key: str, expected: int | None, is_there: bool
) -> bool:
    """Copy one object, unless it is there whole; return whether it was."""
    nbytes = source.nbytes(key)
    if is_there and target.nbytes(key) == nbytes:
        checksum = _checksum(source, key, nbytes) if expected is None else expected
        if _checksum(target, key, nbytes) == checksum:
            return True
    sent = 0
    with target.create(key) as writer:
        for block in _blocks(source, key, nbytes):
            sent = google_crc32c.extend(sent, block)
            writer.write(block)
        if expected is not None and sent != expected:
            raise IncompleteDatasetError(
                f"{source.path(key)} is damaged: its checksum is not that of the commit; it is not "
                "copied"
            )
    if target.nbytes(key) != nbytes or _checksum(target, key, nbytes) != sent:
        raise IncompleteDatasetError(f"{target.path(key)} was not received as it was sent")
    return False


def _blocks(store: LocalStore, key: str, nbytes: int) -> Iterator[bytes]:
    for start in range(0, nbytes, _BLOCK_NBYTES):
        yield store.get_range(key, start, min(_BLOCK_NBYTES, nbytes - start))


def _checksum(store: LocalStore, key: str, nbytes: int) -> int:
    checksum = 0
    for block in _blocks(store, key, nbytes):
        checksum = google_crc32c.extend(checksum, block)
    return checksum


def _publish(destination: Destination, incoming: LocalStore, root: bytes) -> None:
    files = destination.files
    if isinstance(files, ObjectFiles):
        try:
            files.create(destination.store.path(ROOT_DOCUMENT), root)
        except FileExistsError:
            if not _is_there(destination, root):
                raise
        return
    incoming.put(ROOT_DOCUMENT, root)
    try:
        files.rename(incoming.root, destination.path)
    except OSError as error:
        raise DestinationExistsError(
            f"{destination.path} came to be meanwhile; the copy is complete in {incoming.root}"
        ) from error
    files.sync_folder(os.path.dirname(destination.path))
