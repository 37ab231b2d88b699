"""Copy a committed store to an object store and back: shards first, the root document last.

On an object store a copy takes its destination as a conversion does: by a ``plan.json`` in the
staging folder, which is put only where there is none. On a file system it arrives in a hidden
sibling whose name says which dataset it is, so that copies of two datasets never mix.
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
from functools import reduce

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    IncompleteDatasetError,
    StagingExistsError,
)
from ctlab_dask_zarr.formats.receipts import own_receipt
from ctlab_dask_zarr.manage.inventory import Inventory, take_inventory
from ctlab_dask_zarr.planning.occupied import refuse_long_name, refuse_missing_folder, store_around
from ctlab_dask_zarr.read.zarr import read_store_metadata
from ctlab_dask_zarr.read.zarr_documents import refuse_old
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.staging_plan import STAGED_PLAN, is_object_of
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.store.streaming import read_spans, whole_spans
from ctlab_dask_zarr.text import command_text

#: Objects that are copied at once, between folders and where requests wait for answers. Of each at
#: most 32 MiB are in memory, and as much again in an upload.
_N_LOCAL, _N_REMOTE = 4, 8


@dataclass(frozen=True)
class CopyResult:
    """What was copied where: `n_objects` of `nbytes` bytes, of which `n_skipped` were there before.

    All three are 0 where the whole dataset was there before.
    """

    destination: str
    n_objects: int
    n_skipped: int
    nbytes: int


def copy_dataset(
    source: str,
    destination: Destination,
    on_copied: Callable[[int, int], None] | None = None,
    *,
    n_threads: int | None = None,
) -> CopyResult:
    """Copy a committed store; may be repeated, and goes on where it was interrupted: see `push`.

    What arrives is compared with the checksums of the commit and with what was sent. Nothing can be
    read as a dataset before the end: on a file system it is put together in a hidden sibling, and
    on an object store the root document comes last. `on_copied` is called with the size of each
    object that is copied, and the size of all; first with 0.
    """
    metadata = read_store_metadata(source)
    refuse_old(metadata.path, metadata.zarr_format)
    root = metadata.store.get(ROOT_DOCUMENT)
    if _is_there(destination, root):
        return CopyResult(destination.path, 0, 0, 0)
    receipt = own_receipt(metadata.attributes) or {}
    # Our own root documents hold the checksums of what they describe; those of other programs may
    # be the same for two datasets.
    described = root if receipt else root + metadata.path.encode()
    identity = hashlib.sha256(described).hexdigest()
    claim = _Claim(destination, metadata.path, root, identity, receipt.get("staging_id"))
    claim.refuse_others()
    inventory = take_inventory(metadata)
    objects, expected = inventory.nbytes, inventory.crc32c
    incoming = claim.incoming()
    there = incoming.stats()
    foreign = min(there.keys() - objects.keys() - {ROOT_DOCUMENT}, default=None)
    if foreign is not None:
        raise DestinationExistsError(
            f"{incoming.root} holds {foreign!r}, which is not part of {source}: remove what is "
            "there, or choose another name"
        )
    claim.stake(inventory)
    if _is_there(destination, root):
        # Another copy was finished between the first look and the claim.
        claim.release()
        return CopyResult(destination.path, 0, 0, 0)
    total = sum(objects.values())
    n_skipped = 0
    report = on_copied or (lambda nbytes, total: None)
    report(0, total)

    def copy(key: str) -> bool:
        claim.refuse_lost()
        return _copy_object(metadata.store, incoming, key, expected.get(key), key in there)

    if n_threads is None:
        is_remote = is_url(metadata.store.root) or is_url(incoming.root)
        n_threads = _N_REMOTE if is_remote else _N_LOCAL
    with ThreadPoolExecutor(n_threads) as pool:
        copies = {pool.submit(copy, key): key for key in sorted(objects)}
        try:
            for done in as_completed(copies):
                n_skipped += done.result()
                report(objects[copies[done]], total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _publish(claim, incoming)
    return CopyResult(destination.path, len(objects) + 1, n_skipped, total + len(root))


@dataclass(frozen=True)
class _Claim:
    """The right of a copy to its destination; several processes may make the same copy.

    `identity` tells the dataset with this root document from every other one. Its `staging_id`
    shows that a claim belongs to a copy that has come to its end.
    """

    destination: Destination
    source: str
    root: bytes
    identity: str
    staging_id: str | None

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
        """Take the destination, or find that this copy has it already.

        The claim lists what is copied, so that aborting the copy removes that and nothing else.
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
        """Raise where another write has the destination, or no dataset can be there."""
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
                f"interrupted. Finish that first, remove it by {command_text('abort', path)}, or "
                "choose another name"
            )

    def is_ours(self) -> bool:
        return self.destination.staged_plan().get("run_id") == self.identity

    def refuse_lost(self) -> None:
        """Raise where this copy has lost the destination before it was complete."""
        destination = self.destination
        if destination.can_rename or self.is_ours() or _is_there(destination, self.root):
            return
        raise StagingExistsError(
            f"{destination.staging}, the claim of this copy to {destination.path}, was removed "
            "meanwhile: look whether another write is under way there, then try again"
        )

    def release(self) -> None:
        if self.is_ours():
            self.destination.notes.remove(STAGED_PLAN)


def _is_of_arrays(key: str, arrays: Mapping[str, str]) -> bool:
    prefixes = ((f"{path}/" if path else "", text) for path, text in arrays.items())
    return any(key.startswith(p) and is_object_of(text, key[len(p) :]) for p, text in prefixes)


def _is_there(destination: Destination, root: bytes) -> bool:
    """Whether the dataset is at the destination; raise where something else is."""
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
    source: Store, target: Store, key: str, expected: int | None, is_there: bool
) -> bool:
    """Copy one object unless it is there already and whole; return whether it was."""
    nbytes = source.nbytes(key)
    if is_there and target.nbytes(key) == nbytes:
        checksum = _checksum(source, key, nbytes) if expected is None else expected
        if _checksum(target, key, nbytes) == checksum:
            return True
    sent = 0
    with target.create(key) as writer:
        for part in _parts(source, key, nbytes):
            sent = google_crc32c.extend(sent, part)
            writer.write(part)
        if expected is not None and sent != expected:
            raise IncompleteDatasetError(
                f"{source.path(key)} is damaged: its checksum is not that of the commit; it is not "
                "copied"
            )
    if target.nbytes(key) != nbytes or _checksum(target, key, nbytes) != sent:
        raise IncompleteDatasetError(f"{target.path(key)} was not received as it was sent")
    return False


def _parts(store: Store, key: str, nbytes: int) -> Iterator[npt.NDArray[np.uint8]]:
    return read_spans(store, store.open(key), whole_spans(store, nbytes))


def _checksum(store: Store, key: str, nbytes: int) -> int:
    return reduce(google_crc32c.extend, _parts(store, key, nbytes), 0)


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
