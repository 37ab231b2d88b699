"""What of the problems of a store can be mended, and whether what was made may be put there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import google_crc32c
import numpy as np

from ctlab_dask_zarr.codec.extents import cells
from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import (
    ABSENT,
    RECEIPT_ATTRIBUTE,
    RECEIPTS_OBJECT,
    SEALED,
    Number,
    ReceiptTable,
    ShardReceipt,
    build_receipts,
    level_entry,
    object_key,
    seal,
)
from ctlab_dask_zarr.formats.zarr_array import StoredArray, grid_of, key_in
from ctlab_dask_zarr.planning.levels import DownsampleMethod, resolve_downsample
from ctlab_dask_zarr.read.receipts import array_receipts, seal_of
from ctlab_dask_zarr.read.zarr import volume_of
from ctlab_dask_zarr.store.documents import CONSOLIDATED
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT, ome_of
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.comparison import native
from ctlab_dask_zarr.verification.contents import (
    Image,
    read_contents,
    read_images,
    stored_objects,
)
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.write.repairing import MendedArray, StagedRepair, method_of
from ctlab_dask_zarr.write.staging.mended import NewRoot

#: Of objects, what is mended; and of documents, what leaves open how.
_OF_OBJECTS = ("checksum", "decode", "index", "missing", "size", "unreadable")
_OF_DOCUMENTS = ("checksum", "missing", "receipts", "shape", "unreadable")
_METHODS: tuple[DownsampleMethod, ...] = ("mean", "nearest", "mode", "max")

#: Compares level 0 with the source: the keys that differ, None where there is nothing to compare.
Proof = Callable[[], list[str] | None]


@dataclass(frozen=True)
class RepairResult:
    """What was repaired.

    Attributes
    ----------
    path
        The store.
    repaired
        The keys of the objects that were written again: ``0/c/1/0/2``.
    nbytes
        Their size in bytes, as stored.
    problems
        What is left of what `verify` names, and why it could not be repaired.
    """

    path: str
    repaired: tuple[str, ...] = ()
    nbytes: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass
class _Level:
    """One level of an image, and what is damaged of it: problems by coordinates."""

    image: Image
    path: str
    number: int
    array: StoredArray
    there: set[Shape]
    table: ReceiptTable | None = None
    damage: dict[Shape, Problem] = field(default_factory=dict)
    #: Why the damaged objects stay as they are.
    reasons: dict[Shape, str] = field(default_factory=dict)
    factors: Shape = ()
    methods: tuple[DownsampleMethod, ...] = ()
    is_ours: bool = False

    @property
    def place(self) -> str:
        return f"{self.image.prefix}{self.path}"

    def key(self, coords: Shape) -> str:
        return object_key(self.place, self.array, coords)

    def leave(self, coords: Iterable[Shape], reason: str) -> None:
        for c in coords:
            self.reasons.setdefault(c, reason)

    @property
    def mended(self) -> set[Shape]:
        return self.damage.keys() - self.reasons.keys()

    def mended_array(self, finer: int | None, mask_value: Number | None) -> MendedArray:
        grid = product(*map(range, self.array.grid_shape))
        absent: set[Shape] = set()
        if self.table is not None:
            absent = set(map(tuple, np.argwhere(self.table.nbytes == ABSENT).tolist()))
        gone = set(grid) - self.there - absent
        return MendedArray(
            self.place, self.array, frozenset(self.mended), frozenset(absent - self.damage.keys()),
            frozenset((gone | self.damage.keys()) - self.mended), mask_value, finer, self.factors,
            self.methods[0] if self.methods else "mean",
        )  # fmt: skip


class Repairs:
    """The damage of a store that `problems` name, and what can be done about it.

    `source` is what level 0 was made from; None where there is none.
    """

    def __init__(self, store: Store, problems: Sequence[Problem], source: Volume | None) -> None:
        self._contents = read_contents(store)
        images = [image for image in read_images(self._contents) if image.document]
        objects = stored_objects(self._contents, images)
        self._levels = [
            _Level(image, path, n, array, objects[f"{image.prefix}{path}"])
            for image in images
            for n, (path, array) in enumerate(image.arrays)
        ]
        self._left = [problem for problem in problems if not self._is_of_object(problem)]
        self._block_by_documents()
        self._masks = {image.prefix: _mask_value(image) for image in images}
        for n, level in enumerate(self._levels):
            if level.number == 0:
                self._decide_finest(level, source)
            else:
                self._decide_coarser(level, self._levels[n - 1])

    @property
    def needs_source(self) -> bool:
        """Whether objects are made of the source."""
        return bool(self._levels) and bool(self._levels[0].mended)

    @property
    def arrays(self) -> list[MendedArray]:
        """All arrays, as they are repaired; none where nothing can be."""
        if not any(level.mended for level in self._levels):
            return []
        return [
            level.mended_array(n - 1 if level.number else None, self._masks[level.image.prefix])
            for n, level in enumerate(self._levels)
        ]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is left, and why."""
        left = [
            replace(problem, message=f"{problem.message}; not repaired: {level.reasons[coords]}")
            for level in self._levels
            for coords, problem in level.damage.items()
            if coords in level.reasons
        ]
        return (*self._left, *left)

    def _is_of_object(self, problem: Problem) -> bool:
        """Whether a problem is damage of an object, which is noted then."""
        key = problem.location
        for level in self._levels:
            below = key.removeprefix(f"{level.place}/") if level.place else key
            coords = level.array.coords(below) if below != key or not level.place else None
            if coords is not None and level.array.is_inside(coords):
                if problem.kind in _OF_OBJECTS:
                    level.damage.setdefault(coords, problem)
                    return True
                return False
        return False

    def _block_by_documents(self) -> None:
        """Leave what documents describe that are damaged themselves."""
        damaged = {
            problem.location.rpartition("/")[0]
            for problem in self._left
            if problem.kind in _OF_DOCUMENTS
            and problem.location.endswith((ROOT_DOCUMENT, RECEIPTS_OBJECT))
        }
        for level in self._levels:
            for place in {level.place, level.image.prefix.rstrip("/")} & damaged:
                name = f"{place or 'the root'}"
                text = f"the documents or the receipts of {name} are damaged: put them back first"
                level.leave(level.damage, text)
            noted = seal_of(level.image.metadata.attributes, level.path)
            if noted is not None:
                store = level.image.metadata.store
                level.table, _ = array_receipts(store, level.path, level.array, noted)

    def _decide_finest(self, level: _Level, source: Volume | None) -> None:
        array, place = level.array, level.image.metadata.path
        if level.image.prefix:
            text = f"these are labels: repair {place} by itself, from what they were made of"
        elif source is None:
            text = "the finest level is made of the source, and none was given (--source)"
        elif not level.image.has_finest:
            text = "it is not known to be the finest level"
        elif source.shape != array.shape:
            text = f"the source has the shape {source.shape}, and the array {array.shape}"
        elif native(source.dtype) != native(array.dtype):
            text = f"the voxels of the source are {source.dtype}, those of the array {array.dtype}"
        else:
            return
        level.leave(level.damage, text)

    def _decide_coarser(self, level: _Level, finer: _Level) -> None:
        array, attributes = level.array, level.image.metadata.attributes
        level.factors = _factors(finer.array.shape, array.shape)
        if not level.factors or array.dtype != finer.array.dtype or len(array.shape) not in (2, 3):
            level.leave(level.damage, f"it is not at half the resolution of {finer.place}")
            return
        entry = level_entry(attributes, level.path)
        level.is_ours = entry is not None and SEALED not in entry
        level.methods = _methods(level.image, array.dtype.kind)
        self._leave_below(level, finer)

    @staticmethod
    def _leave_below(level: _Level, finer: _Level) -> None:
        """Leave what is made of objects that stay damaged."""
        broken = finer.reasons.keys()
        for coords in level.mended if broken else ():
            region = level.array.object_region(coords)
            places = zip(region, level.factors, finer.array.shape, strict=True)
            above = tuple(slice(p.start * f, min(p.stop * f, n)) for p, f, n in places)
            if any(c in broken for c, _, _ in cells(above, finer.array.object_shape)):
                level.leave([coords], f"what it is made of in {finer.place} is damaged")

    def with_methods(self, staged: StagedRepair) -> StagedRepair:
        """Return the repair with the methods by which coarser levels were made, as they show."""
        arrays = list(staged.arrays)
        for n, level in enumerate(self._levels):
            if level.number and level.mended and not level.is_ours:
                method = method_of(staged, n, level.methods)
                level.methods = level.methods if method is None else (method,)
                arrays[n] = replace(arrays[n], method=level.methods[0])
        return replace(staged, arrays=tuple(arrays))

    def accept(self, receipts: Mapping[str, ShardReceipt], proof: Proof) -> dict[str, ShardReceipt]:
        """Return what may be put in its place, of what was made; the rest is left as it is."""
        accepted: dict[str, ShardReceipt] = {}
        for n, level in enumerate(self._levels):
            if level.number:
                self._leave_below(level, self._levels[n - 1])
            unequal = {c for c in level.mended if not self._is_as_before(level, c, receipts)}
            if unequal and level.number == 0:
                reason = _reason_of(proof())
                level.leave(unequal if reason else (), reason or "")
            elif not level.is_ours and len(level.methods) > 1:
                text = "it does not follow from the finer level in a way that is known here"
                level.leave(unequal, text)
            accepted |= {level.key(c): receipts[level.key(c)] for c in level.mended}
        return accepted

    @staticmethod
    def _is_as_before(level: _Level, coords: Shape, made: Mapping[str, ShardReceipt]) -> bool:
        receipt, table = made[level.key(coords)], level.table
        if table is None:
            return False
        wanted = int(table.nbytes[coords]), int(table.crc32c[coords])
        return (receipt.nbytes, receipt.crc32c) == wanted

    def documents(
        self, accepted: Mapping[str, ShardReceipt]
    ) -> tuple[dict[str, str], list[NewRoot]]:
        """Return the receipts that change, by key, and the root documents that name them."""
        texts: dict[str, str] = {}
        roots: dict[str, dict[str, Any]] = {}
        for level in self._levels:
            changed = [c for c in level.mended if not self._is_as_before(level, c, accepted)]
            if level.table is None or not changed:
                continue
            nbytes, crc32c = level.table.nbytes.copy(), level.table.crc32c.copy()
            for coords in changed:
                receipt = accepted[level.key(coords)]
                nbytes[coords], crc32c[coords] = receipt.nbytes, receipt.crc32c
            receipts = {
                level.key(c): ShardReceipt(level.key(c), int(nbytes[c]), int(crc32c[c]))
                for c in product(*map(range, level.array.grid_shape))
            }
            text = build_receipts(level.place, level.array, receipts)
            texts[key_in(level.place, RECEIPTS_OBJECT)] = text
            prefix = level.image.prefix
            root = roots.setdefault(prefix, json.loads(json.dumps(level.image.document)))
            entry = level_entry(root["attributes"], level.path)
            assert entry is not None
            entry["receipts_crc32c"] = google_crc32c.value(text.encode())
            facts, grown = root["attributes"][RECEIPT_ATTRIBUTE], nbytes - level.table.nbytes
            if "nbytes" in facts:
                facts["nbytes"] += int(grown.sum())
        if len(roots) > 1 and "" in roots:
            # What changes in labels below would make these copies wrong.
            roots[""].pop(CONSOLIDATED, None)
        hashes = {one.image.prefix: one.image.metadata.root_hash for one in self._levels}
        return texts, [
            NewRoot(prefix, hashes[prefix], json.dumps(seal(root), indent=2))
            for prefix, root in sorted(roots.items())
        ]


def _reason_of(differing: Collection[str] | None) -> str | None:
    if differing is None:
        return (
            "the source gives other bytes than were committed, and nothing whole is left of the "
            "level to tell whether it is the same source"
        )
    if not differing:
        return None
    others = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    return f"the source is another one: it also differs from {min(differing)}{others}"


def _mask_value(image: Image) -> Number | None:
    """Return the value of masked voxels of an image; None where that is not known."""
    try:
        value = volume_of(image.metadata).mask_value
    except CTLabError:
        return None
    return None if value is None else value.item()


def _factors(finer: Shape, coarser: Shape) -> Shape:
    """Return by which factors, 1 or 2, one shape becomes the other; empty if by no such ones.

    Others leave out the last voxel of an odd number.

    Examples
    --------
    >>> _factors((5, 8, 8), (3, 4, 8)), _factors((5, 8), (2, 4)), _factors((8, 8), (2, 4))
    ((2, 2, 1), (2, 2), ())
    """
    if len(finer) != len(coarser):
        return ()
    found = []
    for n, m in zip(finer, coarser, strict=True):
        factor = 1 if n == m else 2
        if factor == 2 and m not in (n // 2, *grid_of((n,), (2,))):
            return ()
        found.append(factor)
    return tuple(found)


def _methods(image: Image, dtype_kind: str) -> tuple[DownsampleMethod, ...]:
    """Return how the levels of an image may have been made, the likeliest first."""
    multiscales = ome_of(image.document).get("multiscales")
    first = multiscales[0] if isinstance(multiscales, list) and multiscales else {}
    stated = first.get("type") if isinstance(first, dict) else None
    usual = resolve_downsample(None, dtype_kind, is_discrete=image.metadata.is_labels)
    possible = [m for m in _METHODS if m != "mode" or dtype_kind != "f"]
    ordered = [m for m in possible if m == stated] + [usual, *possible]
    return tuple(dict.fromkeys(ordered))
