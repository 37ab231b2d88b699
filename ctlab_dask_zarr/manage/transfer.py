"""Copy a committed store to an object store and back: shards first, the root document last.

On an object store a copy has its destination to itself as a conversion does: by a ``plan.json`` in
the staging folder, put only where there is none. On a file system it arrives in a hidden sibling
whose name tells which dataset it is, so that copies of two never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass

import google_crc32c

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    StagingExistsError,
)
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.manage.inventory import Inventory, take_inventory
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import remove_tree
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.occupied import refuse_long_name, refuse_missing_folder, store_around
from ctlab_dask_zarr.store.staging_plan import STAGED_PLAN, is_object_of
from ctlab_dask_zarr.store.store import Store

__all__ = ["CopyResult", "copy_dataset", "discard_incoming"]

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
        The store, local or not; of one behind plain HTTP, which lists nothing, all that its own
        documents tell.
    destination
        Where to; nothing may be there but what an interrupted copy of the same store has left.
    on_copied
        Told the size of each object that is copied, and of all; first of all 0.

    Raises
    ------
    DestinationExistsError
        There is another dataset.
    StagingExistsError
        A conversion, or a copy of another dataset, is under way there or was interrupted.
    IncompleteDatasetError
        An object of the source is missing or damaged, or was not received as sent.
    UnsupportedFormatError
        The source is behind plain HTTP, and was written by another program.
    """
    metadata = read_store_metadata(source)
    root = metadata.store.get(ROOT_DOCUMENT)
    if _is_there(destination, root):
        return CopyResult(destination.path, 0, 0, 0)
    claim = _Claim.of(metadata, root, destination)
    claim.refuse_others()
    inventory = take_inventory(metadata)
    objects, expected = inventory.nbytes, inventory.crc32c
    incoming = claim.incoming()
    there = incoming.stats()
    foreign = sorted(there.keys() - objects.keys() - {ROOT_DOCUMENT})
    if foreign:
        raise DestinationExistsError(
            f"{incoming.root} holds {foreign[0]!r}, which is no part of {source}: remove what is "
            "there, or choose another name"
        )
    claim.stake(inventory)
    if _is_there(destination, root):
        # It came between the first look and the claim.
        claim.release()
        return CopyResult(destination.path, 0, 0, 0)
    total = sum(objects.values())
    n_skipped = 0
    if on_copied is not None:
        on_copied(0, total)
    with ThreadPoolExecutor(_N_THREADS) as pool:
        copies = {
            pool.submit(
                _copy_object, claim, metadata.store, incoming, key, expected.get(key), key in there
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
    _publish(claim, incoming)
    return CopyResult(destination.path, len(objects) + 1, n_skipped, total + len(root))


@dataclass(frozen=True)
class _Claim:
    """That a destination is that of the copy of one dataset, which may be made by several.

    Attributes
    ----------
    source
        The store that is copied.
    identity
        What tells its dataset from every other one.
    staging_id
        Of the dataset, by which a claim is known as one that has come to its end.
    root
        The root document.
    """

    destination: Destination
    source: str
    identity: str
    staging_id: str | None
    root: bytes

    @classmethod
    def of(cls, metadata: StoreMetadata, root: bytes, destination: Destination) -> _Claim:
        receipt = own_receipt(metadata.attributes)
        # Our own root documents hold the checksums of what they are of; those of others may be
        # the same for two datasets.
        told = root if receipt else root + metadata.path.encode()
        identity = hashlib.sha256(told).hexdigest()
        staging_id = (receipt or {}).get("staging_id")
        return cls(destination, metadata.path, identity, staging_id, root)

    def incoming(self) -> Store:
        """Return where objects arrive."""
        destination = self.destination
        if not destination.can_rename:
            return destination.store
        incoming = destination.incoming(self.identity)
        with suppress(FileExistsError):
            destination.files.make_folder(incoming)
        return Store(incoming, destination.files)

    def stake(self, inventory: Inventory) -> None:
        """Take the destination, or find that it is this copy's already.

        What is copied is said, so that who gives it up knows what to remove.
        """
        objects = self.destination.objects
        if objects is None:
            return
        others = [key for key in inventory.nbytes if not _is_of_arrays(key, inventory.arrays)]
        content = {
            "levels": [{"path": p, "document": text} for p, text in inventory.arrays.items()],
            "documents": [{"key": key} for key in others],
            "staging_id": self.staging_id,
            "run_id": self.identity,
            "copy_of": self.source,
            "started_s": time.time(),
            "version": __version__,
        }
        try:
            objects.create(self.destination.notes.path(STAGED_PLAN), json.dumps(content).encode())
        except FileExistsError:
            self.refuse_others()

    def refuse_others(self) -> None:
        """Raise where another write has the destination, or it can be no place for a dataset."""
        refuse_missing_folder(self.destination)
        refuse_long_name(self.destination)
        store = store_around(self.destination)
        if store is not None:
            raise DestinationExistsError(
                f"{self.destination.path} would be inside {store}, which is a Zarr store: choose a "
                "place outside of it"
            )
        if self.destination.can_rename:
            return
        found = self.destination.staged_plan()
        if found and found.get("run_id") != self.identity:
            other = f"a copy of {found['copy_of']}" if "copy_of" in found else "a conversion"
            path = self.destination.path
            raise StagingExistsError(
                f"{self.destination.staging} is there: {other} to {path} is under way, or was "
                f"interrupted. Finish that first, remove it by `ctlab-zarr abort {path}`, or "
                "choose another name"
            )

    def refuse_lost(self) -> None:
        """Raise where the destination was taken from this copy; not where another has ended it."""
        destination = self.destination
        if destination.can_rename or destination.staged_plan().get("run_id") == self.identity:
            return
        if not _is_there(destination, self.root):
            raise StagingExistsError(
                f"{destination.staging}, by which {destination.path} was this copy's, was removed "
                "meanwhile: look whether another write is under way there, then try again"
            )

    def release(self) -> None:
        """Leave the destination to others."""
        if self.destination.staged_plan().get("run_id") == self.identity:
            self.destination.notes.remove(STAGED_PLAN)


def _is_of_arrays(key: str, arrays: Mapping[str, str]) -> bool:
    prefixes = ((f"{path}/" if path else "", text) for path, text in arrays.items())
    return any(key.startswith(p) and is_object_of(text, key[len(p) :]) for p, text in prefixes)


def discard_incoming(destination: Destination) -> bool:
    """Remove what interrupted copies to a file system have left; return whether there was any."""
    found = destination.all_incoming()
    for folder in found:
        remove_tree(destination.files, folder)
    return bool(found)


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


def _copy_object(
    claim: _Claim,
    source: Store,
    target: Store,
    key: str,
    expected: int | None,
    is_there: bool,
) -> bool:
    """Copy one object, unless it is there whole; return whether it was."""
    claim.refuse_lost()
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


def _blocks(store: Store, key: str, nbytes: int) -> Iterator[bytes]:
    for start in range(0, nbytes, _BLOCK_NBYTES):
        yield store.get_range(key, start, min(_BLOCK_NBYTES, nbytes - start))


def _checksum(store: Store, key: str, nbytes: int) -> int:
    checksum = 0
    for block in _blocks(store, key, nbytes):
        checksum = google_crc32c.extend(checksum, block)
    return checksum


def _publish(claim: _Claim, incoming: Store) -> None:
    destination, root = claim.destination, claim.root
    files, objects = destination.files, destination.objects
    if objects is not None:
        claim.refuse_lost()
        try:
            objects.create(destination.store.path(ROOT_DOCUMENT), root)
        except FileExistsError:
            if not _is_there(destination, root):
                raise
        claim.release()
        return
    incoming.put(ROOT_DOCUMENT, root)
    try:
        files.rename(incoming.root, destination.path)
    except OSError as error:
        raise DestinationExistsError(
            f"{destination.path} came to be meanwhile; the copy is complete in {incoming.root}"
        ) from error
    files.sync_folder(os.path.dirname(destination.path))
