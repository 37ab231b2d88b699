"""Seal a store of any writer: read each object once, and keep its size and its checksum.

Nothing is changed until every object was read and decoded. Then the receipts are put beside the
arrays, where readers look only for chunks, and one attribute of each root document names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from math import prod
from typing import Any

import google_crc32c

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.zarr_fallback import decode_bounded, encoded_limit
from ctlab_dask_zarr.errors import CTLabError, VerificationError, WriteFailedError
from ctlab_dask_zarr.execution.progress import topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    ABSENT,
    N_ABSENT,
    RECEIPT_ATTRIBUTE,
    RECEIPTS_OBJECT,
    SEALED,
    ShardReceipt,
    build_receipts,
    object_key,
    own_receipt,
    seal,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray, key_in, parse_array_document
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.read.receipts import (
    CHECKSUM_TEXT,
    TASK_NBYTES,
    Expected,
    array_receipts,
    expected_objects,
    seal_of,
)
from ctlab_dask_zarr.store.documents import CONSOLIDATED, change_document
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.checks import Verification, reported
from ctlab_dask_zarr.verification.contents import (
    Contents,
    Image,
    document_key,
    read_contents,
    read_images,
    stored_objects,
)
from ctlab_dask_zarr.verification.documents import consolidated_problems, document_problems
from ctlab_dask_zarr.verification.objects import ShardCheck
from ctlab_dask_zarr.verification.scan import all_rows
from ctlab_dask_zarr.verification.verify import MAX_OBJECTS, task_nbytes
from ctlab_dask_zarr.write.staging.mended import settle

#: Of documents: what shows that a store is damaged. Other problems are told, and sealing goes on.
_DAMAGE = ("checksum", "missing", "receipts", "shape", "unreadable")
#: So many problems are named in the message of an error.
_N_NAMED = 20


@dataclass(frozen=True)
class SealResult:
    """What was sealed.

    Attributes
    ----------
    path
        The store.
    arrays
        The arrays that have receipts now and had none: ``0``, ``labels/phases/0``. Empty if all of
        them were sealed already; then nothing was read or changed.
    n_objects, nbytes
        Number and size of the stored objects of these arrays, each of which was read and decoded.
    n_absent
        Number of objects that are not stored, since they are all fill value; they are recorded as
        absent.
    problems
        What `verify` will report all the same, though no byte is lost: rules that the metadata
        breaks, and files that are no part of the dataset.
    """

    path: str
    arrays: tuple[str, ...] = ()
    n_objects: int = 0
    nbytes: int = 0
    n_absent: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Array:
    """An array without receipts; keys begin with its place in the store."""

    image: Image
    path: str
    array: StoredArray
    there: list[Shape]

    @property
    def place(self) -> str:
        return f"{self.image.prefix}{self.path}"

    @property
    def n_absent(self) -> int:
        return prod(self.array.grid_shape) - len(self.there)


@dataclass
class Sealing:
    """A store that was looked at; `checks` read what has no receipts, for `publish`."""

    contents: Contents
    checks: Verification = field(default_factory=lambda: Verification(end=list))
    arrays: list[_Array] = field(default_factory=list)
    #: Why nothing may be sealed, and what is told only.
    damage: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse_damage(self, found: Iterable[Any] = ()) -> None:
        """Raise `VerificationError` where something cannot be read; it is named."""
        damage = [*self.damage, *(f for f in found if isinstance(f, Problem))]
        if not damage:
            return
        named = "; ".join(str(problem) for problem in damage[:_N_NAMED])
        more = f"; and {len(damage) - _N_NAMED} more" if len(damage) > _N_NAMED else ""
        raise VerificationError(
            f"{self.contents.store.root} is damaged, and is not sealed: {named}{more}. Put these "
            "back from a copy, or write them again (`ctlab-zarr repair`)"
        )

    def publish(self, found: Sequence[ShardReceipt]) -> SealResult:
        """Put the receipts of all objects, then name them in the root documents, the image's last.

        Raises `WriteFailedError` where something else changed a document meanwhile.
        """
        store = self.contents.store
        if not self.arrays:
            return SealResult(store.root, problems=tuple(self.problems))
        receipts = {receipt.key: receipt for receipt in found}
        entries: dict[str, list[dict[str, Any]]] = {}
        for one in self.arrays:
            entries.setdefault(one.image.prefix, []).append(self._put_receipts(one, receipts))
        images = {one.image.prefix: one.image for one in self.arrays}
        changed: dict[str, dict[str, Any]] = {}
        # The image has no prefix, and comes last.
        for prefix in sorted(images, reverse=True):
            document = self._name_receipts(images[prefix], entries[prefix], changed)
            changed[prefix.rstrip("/")] = document
        return SealResult(
            store.root,
            tuple(one.place for one in self.arrays),
            len(found),
            sum(receipt.nbytes for receipt in found),
            sum(one.n_absent for one in self.arrays),
            tuple(self.problems),
        )

    def _put_receipts(self, one: _Array, found: Mapping[str, ShardReceipt]) -> dict[str, Any]:
        """Put the receipts of an array; return what its root document will say of it."""
        store, array, place = self.contents.store, one.array, one.place
        keys = (object_key(place, array, c) for c in product(*map(range, array.grid_shape)))
        receipts = {key: found.get(key) or ShardReceipt(key, ABSENT, 0) for key in keys}
        text = build_receipts(place, array, receipts).encode()
        store.put(key_in(place, RECEIPTS_OBJECT), text)
        # Its name has to outlast a power failure before a document refers to it.
        settle(store, [key_in(place, RECEIPTS_OBJECT)])
        entry = {
            "path": one.path,
            "shards": array.object_shape if array.is_sharded else None,
            "chunks": array.inner_chunk_shape,
            "n_objects": prod(array.grid_shape),
            "receipts_crc32c": google_crc32c.value(text),
            SEALED: datetime.now(UTC).isoformat(timespec="seconds"),
            N_ABSENT: one.n_absent,
        }
        if one.path:
            entry["document_crc32c"] = google_crc32c.value(array.document.encode())
        return entry

    def _name_receipts(
        self,
        image: Image,
        entries: Sequence[dict[str, Any]],
        changed: Mapping[str, dict[str, Any]],
    ) -> dict[str, Any]:
        """Have a root document name receipts; return it. `changed` are documents below it."""
        place, original = image.metadata.store, image.document
        facts = dict(own_receipt(original.get("attributes")) or {})
        listed = facts.get("levels")
        facts.setdefault("version", __version__)
        facts["levels"] = [*(listed if isinstance(listed, list) else ()), *entries]
        attributes = {**(original.get("attributes") or {}), RECEIPT_ATTRIBUTE: facts}
        # The copies of documents are put back that the labels' new ones were dropped for.
        new = seal({**_with_copies(original, changed), "attributes": attributes})

        def naming(document: dict[str, Any] | None) -> dict[str, Any]:
            below = [(path, text) for path, text in image.metadata.arrays if path]
            is_same = _is_same(document, original) and all(
                place.get(document_key(path)) == text.encode() for path, text in below
            )
            if not (is_same or document == new):
                raise WriteFailedError(
                    f"{place.root} was changed by something else while it was sealed, and is not "
                    "sealed: seal it again when nothing writes to it"
                )
            return new

        change_document(place, naming)
        return new


def _is_same(found: Mapping[str, Any] | None, original: Mapping[str, Any]) -> bool:
    """Whether a document is the same but for copies of those below it; it may hold NaN."""
    texts = [
        json.dumps({name: value for name, value in document.items() if name != CONSOLIDATED})
        for document in (found or {}, original)
    ]
    return texts[0] == texts[1]


def _with_copies(document: dict[str, Any], changed: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a document whose copies of those below it are the changed ones."""
    copies = document.get(CONSOLIDATED)
    listed = copies.get("metadata") if isinstance(copies, dict) else None
    if not isinstance(copies, dict) or not isinstance(listed, dict):
        return document
    new = {
        path: {**copy, "attributes": changed[path]["attributes"]} if path in changed else copy
        for path, copy in listed.items()
    }
    return {**document, CONSOLIDATED: {**copies, "metadata": new}}


def prepare_sealing(store: Store, resources: Callable[[], Resources]) -> Sealing:
    """Look at everything that is small, and prepare to read the objects that have no receipts.

    `resources` returns what runs that; it may start workers, and is called when all is opened.
    """
    contents = read_contents(store)
    images = [image for image in read_images(contents) if image.document]
    objects = stored_objects(contents, images)
    sealing = Sealing(contents)
    sealing.damage += contents.broken.values()
    sealing.problems += [*contents.problems, *consolidated_problems(contents)]
    for image in images:
        for problem in image.placed(document_problems(contents, image)):
            (sealing.damage if problem.kind in _DAMAGE else sealing.problems).append(problem)
    todo = [
        found
        for image in images
        for path, _ in image.arrays
        if (found := _unsealed(sealing, image, path, objects[f"{image.prefix}{path}"]))
    ]
    sealing.arrays = [one for one, _ in todo]
    if sealing.damage or not todo:
        return sealing
    running_on = resources()
    for one, groups in todo:
        nbytes = task_nbytes(one.array, running_on)
        _add_objects(sealing.checks, store, one, groups(min(nbytes, TASK_NBYTES)))
    return sealing


#: Makes the groups of objects that one task each reads, of so many bytes.
_Groups = Callable[[int], Iterable[Sequence[Expected]]]


def _unsealed(
    sealing: Sealing, image: Image, path: str, there: set[Shape]
) -> tuple[_Array, _Groups] | None:
    """Return an array that has no receipts, or None; what is wrong with it is added as damage."""
    array = dict(image.arrays)[path]
    place, key = f"{image.prefix}{path}", document_key(path)
    noted = seal_of(image.metadata.attributes, path)
    if prod(array.grid_shape) > MAX_OBJECTS:
        text = f"{key} claims an array of {array.shape}: {prod(array.grid_shape):,} objects"
        sealing.damage += image.placed([Problem(key, "shape", text)])
        return None
    table, problems = array_receipts(image.metadata.store, path, array, noted)
    if noted is not None or table is None:
        sealing.damage += image.placed(problems)
        if noted is not None:
            return None
    elif table is not None:
        # Of an interrupted run, or of a document that another program rewrote: they still count.
        lost = [c for c in product(*map(range, array.grid_shape)) if c not in there]
        for lost_key in (object_key(place, array, c) for c in lost if table.nbytes[c] != ABSENT):
            sealing.damage.append(Problem(lost_key, "missing", f"{lost_key} is missing"))
    coords = sorted(there)
    return _Array(image, path, array, coords), lambda nbytes: expected_objects(
        array, coords, table, nbytes
    )


def _add_objects(
    checks: Verification, store: Store, one: _Array, groups: Iterable[Sequence[Expected]]
) -> None:
    object_nbytes = prod(one.array.object_shape) * one.array.dtype.itemsize
    for group in groups:
        nbytes = len(group) * object_nbytes
        checks.nbytes += nbytes
        report = "seal-object", reported, topic_of(checks.token), nbytes
        checks.add(*report, _read_objects, store, one.place, one.array.document, group)


def _read_objects(
    store: Store, place: str, document: str, expected: Sequence[Expected]
) -> list[ShardReceipt | Problem]:
    """Read and decode some objects once; return the receipt of each, or what is wrong with it."""
    array = parse_array_document(document)
    found: list[ShardReceipt | Problem] = []
    for one in expected:
        if array.is_direct and array.is_sharded:
            check = ShardCheck(store, place, array, one, all_rows(array))
            for _ in check.chunks(all_rows(array)):
                pass
            problems = [f for f in check.end() if isinstance(f, Problem)]
            key = object_key(place, array, one.coords)
            found += problems or [ShardReceipt(key, check.nbytes, check.crc32c)]
        else:
            found.append(_read_whole(store, place, array, one))
    return found


def _read_whole(
    store: Store, place: str, array: StoredArray, expected: Expected
) -> ShardReceipt | Problem:
    """Do that with an object that is not a shard as this package reads them."""
    key = object_key(place, array, expected.coords)
    try:
        data = store.get(key, array.object_limit if array.is_direct else encoded_limit(array))
    except FileNotFoundError:
        return Problem(key, "missing", f"{key} is missing")
    except (OSError, CTLabError) as error:
        return Problem(key, "unreadable", f"{key} cannot be read: {error}")
    receipt = ShardReceipt(key, len(data), google_crc32c.value(data))
    if expected.nbytes is not None and receipt[1:3] != expected[1:]:
        return Problem(key, "checksum", f"{key} {CHECKSUM_TEXT}")
    try:
        if array.is_direct:
            chunk_codec(array.codecs).decode(data, array.inner_chunk_nbytes)
        else:
            decode_bounded(array, data)
    except CTLabError as error:
        return Problem(key, "decode", f"{key} cannot be decoded: {error}")
    return receipt
