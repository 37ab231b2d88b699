"""The end of a repair: objects that were made go into their places, then what knows of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ctlab_dask_zarr.errors import WriteFailedError
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.documents import swap_document
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.store import Store, is_temporary
from ctlab_dask_zarr.store.streaming import read_spans, whole_spans
from ctlab_dask_zarr.write.staging.stage import is_repair
from ctlab_dask_zarr.write.staging.staged import StagedWrite

#: In the staging folder: what is put where, once it is certain.
_DECIDED = "publish.json"


@dataclass(frozen=True)
class NewRoot:
    """A root document that names other receipts: of the image at a prefix, before and after."""

    prefix: str
    before: str
    text: str


def publish(
    staged: StagedWrite,
    objects: Sequence[ShardReceipt],
    receipts: Mapping[str, str],
    roots: Sequence[NewRoot],
) -> None:
    """Put objects that were made into their places, then `receipts` by key and root documents.

    What is put is decided first: whoever repairs next brings a publication that was killed to its
    end.
    """
    decided = {
        "objects": [[one.key, one.nbytes] for one in objects],
        "receipts": dict(receipts),
        "roots": [vars(root) for root in roots],
    }
    staged.pieces.put(_DECIDED, json.dumps(decided).encode())
    finish_published(staged.request.destination)


def finish_published(destination: Destination) -> None:
    """Bring the publication of a repair to its end, if one has begun; then remove its staging."""
    plan = destination.staged_plan()
    if not is_repair(plan):
        return
    staged, store = destination.staged("store", plan["staging_id"]), destination.store
    try:
        decided = json.loads(destination.staged("pieces", plan["staging_id"]).get(_DECIDED))
    except FileNotFoundError:
        return
    for key, nbytes in decided["objects"]:
        if staged.may_have(key):
            with store.create(key, permissions=store.files.permissions(store.path(key))) as writer:
                for part in read_spans(staged, staged.open(key), whole_spans(staged, nbytes)):
                    writer.write(part)
    for key, text in decided["receipts"].items():
        store.put(key, text.encode())
    put = [*(key for key, _ in decided["objects"]), *decided["receipts"]]
    settle(store, put)
    for root in decided["roots"]:
        image = Store(store.path(root["prefix"].rstrip("/")), store.files)
        image = image if root["prefix"] else store
        is_put = swap_document(image, root["before"], root["text"].encode())
        if not is_put and image.get(ROOT_DOCUMENT) != root["text"].encode():
            raise WriteFailedError(
                f"{image.path(ROOT_DOCUMENT)} was changed by something else while the dataset was "
                "repaired: it does not know the checksums of what was made again. Let `ctlab-zarr "
                f"abort {destination.path}` remove what is staged, then verify and repair again"
            )
    destination.discard_staging()


def settle(store: Store, keys: Iterable[str]) -> None:
    """Make objects that were put durable, and remove what killed attempts left of the same ones."""
    if isinstance(store.files, ObjectFiles):
        return
    folders: dict[str, set[str]] = {}
    for key in keys:
        folder, name = os.path.split(store.path(key))
        folders.setdefault(folder, set()).add(name)
    for folder, names in folders.items():
        left = [entry for entry, _ in store.files.entries(folder) if is_temporary(entry)]
        for entry in left:
            if any(is_temporary(entry, of=name) for name in names):
                with suppress(FileNotFoundError):
                    store.files.remove_file(os.path.join(folder, entry))
        store.files.sync_folder(folder)
