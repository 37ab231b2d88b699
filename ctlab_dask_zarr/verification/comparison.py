"""A dataset compared with the source that it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.mango import CARRIED_DEFAULTS
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import object_key
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_positions, are_same_sizes
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.verification.contents import document_key
from ctlab_dask_zarr.volume import VOXEL_DERIVED_FIELDS, Source, Volume


def metadata_differences(found: Volume, source: Volume) -> Iterator[Problem]:
    """Yield what of the source's metadata did not carry over.

    The source may be a dataset of another package, such as anu_ctlab_io, which has less of it.
    """
    for name in ("shape", "dimension_names"):
        yield from _difference(name, getattr(found, name), getattr(source, name))
    yield from _difference("dtype", native(found.dtype), native(source.dtype))
    # A source without a voxel size has this unit; the caller gave its size when it was converted.
    if source.voxel_unit != VoxelUnit.VOXEL:
        yield from _difference("voxel_unit", found.voxel_unit, source.voxel_unit)
        if not are_same_sizes(found.voxel_size, source.voxel_size):
            yield from _difference("voxel_size", found.voxel_size, source.voxel_size)
        origin = getattr(source, "origin", ())
        if any(origin) and not are_same_positions(found.origin, origin, found.voxel_size):
            yield from _difference("origin", found.origin, origin)
    # A write may add entries that the source does not have. An entry that is made when the source
    # is opened, as that of a crop, has the time of now in its key.
    stored = found.history
    for key, entry in source.history.items():
        if key in stored or _plain(entry) not in map(_plain, stored.values()):
            yield from _difference(f"history[{key!r}]", stored.get(key), entry)
    if getattr(source, "datatype", None) == found.datatype and hasattr(source, "is_discrete"):
        yield from _difference("is_discrete", found.is_discrete, source.is_discrete)
    for name in ("datatype", "dataset_id"):
        wanted = getattr(source, name, None)
        if wanted is not None:
            yield from _difference(name, getattr(found, name), wanted)
    extra = getattr(source, "extra_attrs", {})
    for name in sorted(extra.keys() - VOXEL_DERIVED_FIELDS):
        default = CARRIED_DEFAULTS.get(name)
        yield from _difference(name, found.extra_attrs.get(name, default), extra[name])


def native(dtype: Any) -> np.dtype[Any]:
    """Return a dtype in the byte order of this machine: stored voxels may have the other one."""
    found: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return found


def _difference(name: str, found: Any, wanted: Any) -> Iterator[Problem]:
    if str(_plain(found)) != str(_plain(wanted)):
        text = f"{name} is {_short(found)}, the source has {_short(wanted)}"
        yield Problem("metadata", "metadata", text)


def _plain(value: Any) -> Any:
    """Return a value as JSON keeps it: a tuple becomes a list."""
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def of_source(problem: Problem) -> Problem:
    """Return a problem with a message that says that the source has it."""
    return replace(problem, message=f"source: {problem.message}")


def refuse_itself(sources: Iterable[Source], metadata: StoreMetadata) -> None:
    """Raise `InvalidArgumentError` where a source is a level of the image that is verified."""
    own = [
        metadata.store.path(key)
        for path, document in metadata.arrays
        for key in _keys(path, document)
    ]
    for source in sources:
        if not isinstance(source, ZarrSource):
            continue
        read = map(source.store.path, _keys(source.array_path, source.document))
        pairs = zip([*read] * len(metadata.arrays), own, strict=True)
        if any(_is_same_file(*pair) for pair in pairs):
            raise InvalidArgumentError(
                f"{metadata.path} was to be compared with itself, {source.location}: give as "
                "source what it was made from, or none"
            )


def _keys(path: str, document: str) -> list[str]:
    """Return an array's document and its first chunk, which copies may share with hard links."""
    array = parse_array_document(document)
    return [document_key(path), object_key(path, array, (0,) * len(array.shape))]


def _is_same_file(one: str, other: str) -> bool:
    if is_url(one) or is_url(other):
        return one == other
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
