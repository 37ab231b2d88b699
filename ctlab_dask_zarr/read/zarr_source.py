"""The voxels of a stored Zarr array, read from the store as it was opened when they are sliced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.codec.zarr_fallback import dtype_in_zarr
from ctlab_dask_zarr.errors import DatasetNotFoundError, IncompleteSourceError
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
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
from ctlab_dask_zarr.store.files import LOCAL_FILES, Files
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.volume import SourceChecks

__all__ = ["Version", "ZarrSource", "read_version"]

#: Size and time of modification of a file.
Version = tuple[int, float]


@dataclass(frozen=True)
class ZarrSource:
    """A stored array that reads regions; small to pickle, holds nothing open.

    Parameters
    ----------
    path
        The root of the store, a local folder.
    array_path
        The array below it; '' where the root is the array.
    document
        The array's ``zarr.json``.
    root_hash
        Of the root document, so that a store written anew is known as another source.
    strict
        Whether a missing object is an error.
    levels
        Every level of the image that the array belongs to, finest first.
    files
        Through what the store is reached.
    space
        Which axes of the array are of space, all by default; the others have one element each and
        are left out.
    seal
        What the root document says of the array's bytes; None where this package did not write it.
    version
        Of the document that tells the store from another, when it was opened: of the root's where
        there is a seal, else of the array's. None where it is not known.
    """

    path: str
    array_path: str
    document: str
    root_hash: str
    strict: bool
    levels: tuple[Level, ...] = ()
    files: Files = LOCAL_FILES
    space: tuple[int, ...] | None = None
    seal: Seal | None = None
    version: Version | None = None

    @property
    def stored(self) -> StoredArray:
        """The array's metadata."""
        return parse_array_document(self.document)

    @property
    def document_key(self) -> str:
        """The key of the array's document."""
        return f"{self.array_path}/{ROOT_DOCUMENT}".lstrip("/")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array along its axes of space."""
        return self.along_space(self.stored.shape)

    def along_space(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return what a shape, of the stored array's axes, is along those of space."""
        return shape if self.space is None else tuple(shape[axis] for axis in self.space)

    @property
    def ndim(self) -> int:
        """Number of axes."""
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
            others = [slice(0, 1)] * len(self.stored.shape)
            for axis, part in zip(self.space, region, strict=True):
                others[axis] = part
            region = tuple(others)
        stored = replace(self.stored, dtype=self.dtype)
        store = Store(self.path, self.files)
        try:
            block = read_region(store, self.array_path, stored, region, strict=self.strict)
        except Exception:
            # Of another store, or of none, what failed would be told as damage of this one.
            self.check_unchanged()
            raise
        # After the read: a store that takes this one's place meanwhile is seen then.
        self.check_unchanged()
        selected: npt.NDArray[Any] = block.reshape(shape)[rest]
        return selected

    def check_unchanged(self) -> None:
        """Raise unless the voxels at the path are still those that were opened.

        Further levels and corrected metadata are no change: where this package wrote the store,
        the checksums of its commit are compared. Of another's store it is the array's document
        that has to be the same, written at the same time. It costs one question about a file, or
        in an object store one request.

        Raises
        ------
        DatasetNotFoundError
            The store is not there any more.
        IncompleteSourceError
            There is another one, or the array was written again.
        """
        key = self.document_key if self.seal is None else ROOT_DOCUMENT
        try:
            version = read_version(self.files, Store(self.path, self.files).path(key))
            if version is None:
                change = _change(self, version)
            else:
                change = None if version == self.version else _change_of_version(self, version)
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFoundError(
                f"{self.path} is not there any more: it was renamed or removed since it was "
                "opened. Open it where it is now"
            ) from None
        if change is not None:
            raise IncompleteSourceError(
                f"{self.path} changed since it was opened: {change}. Open it again; what was being "
                "made of it has to be begun anew"
            )

    @property
    def location(self) -> str:
        """The root of the store."""
        return self.path

    @property
    def store(self) -> Store:
        """The store."""
        return Store(self.path, self.files)

    def facts(self) -> dict[str, Any]:
        """Return what there is to know of how the array is stored."""
        stored = self.stored
        return {
            "levels": [asdict(level) for level in self.levels],
            "format": "Zarr v3, OME-Zarr 0.5" if self.array_path else "Zarr v3, plain array",
            "shards": list(stored.object_shape) if stored.is_sharded else None,
            "chunks": list(stored.inner_chunk_shape),
            "codecs": [spec.name for spec in stored.codecs] if stored.is_direct else None,
        }

    def checks(self) -> SourceChecks:
        """Return the comparison of the array's objects with their receipts."""
        array, store = self.stored, self.store
        n_objects = prod(array.grid_shape)
        table, problems = array_receipts(store, self.array_path, array, self.seal)
        objects = product(*map(range, array.grid_shape))
        groups = () if table is None else expected_objects(array, objects, table)
        tasks = [partial(_object_problems, self, group) for group in groups]
        notes = []
        if not self.strict:
            keys = Store(store.path(self.array_path), self.files).list()
            found = {coords for key in keys if (coords := array.coords(key)) is not None}
            n_missing = n_objects - sum(map(array.is_inside, found))
            if n_missing:
                notes.append(
                    f"{n_missing} of {n_objects} objects of the source {self.path} are not there: "
                    "they are read as fill values"
                )
        return SourceChecks(tasks, n_objects, 0 if table else n_objects, problems, notes)

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from another, plain JSON."""
        return {
            "kind": "zarr",
            "path": self.path,
            "array": self.array_path,
            "document": hashlib.sha256(self.document.encode()).hexdigest(),
            "root": self.root_hash,
        }


def read_version(files: Files, path: str) -> Version | None:
    """Return the version of a document; None in an object store, where it is read again instead.

    Times there are whole seconds.
    """
    return None if is_url(path) else files.stat(path)


def _object_problems(source: ZarrSource, group: Sequence[Expected]) -> list[Problem]:
    """Compare the checksums of some objects; decoding them is left to those who read voxels."""
    store = source.store

    def look(key: str, one: Expected) -> Any:
        return object_change(store, key, store.nbytes(key), one)

    return object_problems(source.array_path, source.stored, group, look)


@lru_cache(maxsize=256)
def _change_of_version(volume: ZarrSource, version: Version) -> str | None:
    """Return `_change`; once a version, so that an edited document is read once by a process."""
    return _change(volume, version)


def _change(volume: ZarrSource, version: Version | None) -> str | None:
    """Return what is not as it was when a volume was opened; None where its voxels are."""
    store = Store(volume.path, volume.files)
    if volume.seal is None:
        key = volume.document_key
        if store.get(key) != volume.document.encode():
            return f"its {key} says something else now"
        is_known = version is not None and volume.version is not None
        return f"its {key} was written again" if is_known and version != volume.version else None
    root = json_object_or_empty(store.get(ROOT_DOCUMENT))
    if seal_of(root.get("attributes"), volume.array_path) != volume.seal:
        return "another dataset is in its place, by the checksums in its zarr.json"
    if not volume.array_path and _without_attributes(root) != _without_attributes(
        json_object_or_empty(volume.document)
    ):
        return f"its {ROOT_DOCUMENT} describes another array"
    return None


def _without_attributes(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "attributes"}
