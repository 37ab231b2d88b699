"""The voxels of a stored Zarr array, read from the store as it was opened when they are sliced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import read_confirmed
from ctlab_dask_zarr.codec.zarr_fallback import dtype_in_zarr
from ctlab_dask_zarr.errors import DatasetNotFoundError, IncompleteSourceError
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.zarr_array import StoredArray, key_in, parse_array_document
from ctlab_dask_zarr.read.lazy import split_index
from ctlab_dask_zarr.read.receipts import (
    Expected,
    Seal,
    array_receipts,
    expected_objects,
    object_change,
    object_problems,
    seal_of,
)
from ctlab_dask_zarr.store.files import Files
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.volume import SourceChecks

#: Size and time of modification of a file.
Version = tuple[int, float]


@dataclass(frozen=True)
class ZarrSource:
    """A `volume.Source` of one array of a Zarr store."""

    store: Store
    #: '' where the root is the array.
    array_path: str
    document: str
    #: Of the root document: a store that was written again is another source.
    root_hash: str
    #: Whether a missing object is an error.
    strict: bool
    levels: tuple[Level, ...] = ()
    #: Which axes of the array are of space, None for all. The others have one element each.
    space: tuple[int, ...] | None = None
    #: What the root document says of the array's bytes; None where this package did not write it.
    seal: Seal | None = None
    #: Of the document that tells the store from another, when it was opened: the root's where
    #: there is a seal, else the array's. None where it is not known.
    version: Version | None = None
    #: Of the image that the array belongs to; None for an array by itself.
    ome_version: str | None = None
    #: Name, contrast and colours, as JSON: a copy of the image keeps them.
    shown_as: str = "{}"

    @property
    def stored(self) -> StoredArray:
        """What the array's document says."""
        return parse_array_document(self.document)

    @property
    def document_key(self) -> str:
        """The key of the array's document."""
        return key_in(self.array_path, self.stored.document_name)

    @property
    def location(self) -> str:
        """The root of the store."""
        return self.store.root

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array along its axes of space."""
        return self.along_space(self.stored.shape)

    def along_space(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part of a shape that belongs to the axes of space."""
        return shape if self.space is None else tuple(shape[axis] for axis in self.space)

    @property
    def ndim(self) -> int:
        """Number of axes of space."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the voxels."""
        stored = self.stored
        return stored.dtype if stored.is_direct else dtype_in_zarr(stored)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        region, rest = split_index(index, self.shape)
        shape = tuple(part.stop - part.start for part in region)
        if self.space is not None:
            parts = dict(zip(self.space, region, strict=True))
            region = tuple(parts.get(n, slice(0, 1)) for n in range(len(self.stored.shape)))
        stored = replace(self.stored, dtype=self.dtype)
        try:
            block, confirmation = read_confirmed(
                *(self.store, self.array_path, stored, region),
                strict=self.strict,
                dataset=(self.root_hash, self.document),
            )
        except Exception:
            # If the store was replaced or removed, say that, and not that it is damaged.
            self.check_unchanged()
            raise
        if confirmation.is_needed:
            # After the read, to see a store that replaced this one meanwhile.
            self.check_unchanged()
            confirmation.confirm()
        selected: npt.NDArray[Any] = block.reshape(shape)[rest]
        return selected

    def check_unchanged(self) -> None:
        """Raise unless the voxels in the store are still those that were opened.

        Further levels and corrected metadata are no change. Where this package wrote the store, the
        checksums of its commit are compared; of another's store the array's document has to be the
        same, written at the same time. It costs one question about a file, or in an object store
        one request.
        """
        key = self.document_key if self.seal is None else ROOT_DOCUMENT
        root = self.store.root
        try:
            version = read_version(self.store.files, self.store.path(key))
            if version is not None and version == self.version:
                return
            change = _change(self) if version is None else _change_of_version(self, version)
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFoundError(
                f"{root} is not there any more: it was renamed or removed since it was opened. "
                "Open it where it is now"
            ) from None
        if change is not None:
            raise IncompleteSourceError(
                f"{root} changed since it was opened: {change}. Open it again, and begin again "
                "what was being made of it"
            )

    def checks(self) -> SourceChecks:
        """Return the comparison of the array's objects with their receipts."""
        array = self.stored
        n_objects = prod(array.grid_shape)
        table, problems = array_receipts(self.store, self.array_path, array, self.seal)
        objects = product(*map(range, array.grid_shape))
        groups = () if table is None else expected_objects(array, objects, table)
        tasks = [partial(_object_problems, self, group) for group in groups]
        n_unchecked = n_objects if table is None else 0
        notes = []
        n_missing = 0 if self.strict else n_objects - self._n_stored()
        if n_missing:
            notes.append(
                f"{n_missing} of {n_objects} objects of the source {self.location} are not there: "
                "they are read as fill values"
            )
        return SourceChecks(tasks, n_objects, n_unchecked, problems, notes)

    def _n_stored(self) -> int:
        array, below = self.stored, self.store.path(self.array_path).rstrip("/")
        keys = Store(below, self.store.files).list()
        found = {coords for key in keys if (coords := array.coords(key)) is not None}
        return sum(map(array.is_inside, found))

    def facts(self) -> dict[str, Any]:
        """Return the format and the layout."""
        stored = self.stored
        kind = f"OME-Zarr {self.ome_version}" if self.ome_version else "plain array"
        return {
            **json_object_or_empty(self.shown_as),
            "format": f"Zarr v{stored.zarr_format}, {kind}",
            "shards": stored.object_shape if stored.is_sharded else None,
            "chunks": stored.inner_chunk_shape,
            "codecs": [spec.name for spec in stored.codecs] if stored.is_direct else None,
        }

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from another."""
        return {
            "kind": "zarr",
            "path": self.location,
            "array": self.array_path,
            "document": hashlib.sha256(self.document.encode()).hexdigest(),
            "root": self.root_hash,
        }


def read_version(files: Files, path: str) -> Version | None:
    """Return the version of a document; None in an object store, where times are whole seconds.

    There the document is read again instead.
    """
    return None if is_url(path) else files.stat(path)


def _object_problems(source: ZarrSource, group: Sequence[Expected]) -> list[Problem]:
    """Compare the checksums of some objects; decoding them is left to those who read voxels."""
    store = source.store

    def look(key: str, one: Expected) -> Any:
        return object_change(store, key, store.nbytes(key), one)

    return object_problems(source.array_path, source.stored, group, look)


@lru_cache(maxsize=256)
def _change_of_version(source: ZarrSource, version: Version) -> str | None:
    """Return `_change`; once for each version, so that a process reads an edited document once."""
    return _change(source, version)


def _change(source: ZarrSource, version: Version | None = None) -> str | None:
    """Return how a source differs from what was opened; None where its voxels are the same."""
    store = source.store
    if source.seal is None:
        key = source.document_key
        if store.get(key) != source.document.encode():
            return f"its {key} says something else now"
        is_known = version is not None and source.version is not None
        return f"its {key} was written again" if is_known and version != source.version else None
    root = json_object_or_empty(store.get(ROOT_DOCUMENT))
    if seal_of(root.get("attributes"), source.array_path) != source.seal:
        return "another dataset is in its place, by the checksums in its zarr.json"
    opened = json_object_or_empty(source.document)
    if not source.array_path and root | {"attributes": 0} != opened | {"attributes": 0}:
        return f"its {ROOT_DOCUMENT} describes another array"
    return None
