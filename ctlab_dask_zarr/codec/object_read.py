"""What a read needs of one stored object, as steps: open it, read chunks, decode them.

The ranges of a shard follow from its index before the first of them is read. Chunks that lie close
together are read together.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, copy_runs
from ctlab_dask_zarr.codec.shard_index import confirm_shard, open_shard
from ctlab_dask_zarr.codec.together import Step
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import ObjectChangedError, OpenedObject
from ctlab_dask_zarr.store.store import Store

Region = tuple[slice, ...]

#: Requests to an object store that one read has under way at once.
N_REQUESTS = 64
#: Chunks are read together while the gap between them is no longer, in files and in object stores,
#: and together they are no longer than that.
_GAP_NBYTES = {False: 64 << 10, True: 256 << 10}
_TOGETHER_NBYTES = {False: 512 << 10, True: 4 << 20}
#: Absent chunks that are filled in one step.
_N_FILLED = 256
#: Memory of a thread up to this size is kept for its next step.
_KEPT_NBYTES = 4 << 20

_thread = threading.local()


@dataclass(frozen=True)
class _Extent:
    """Bytes of a shard that are read together, and the chunks in them."""

    start: int
    stop: int
    #: Number in the shard, offset and size of each, shape (n, 3).
    chunks: npt.NDArray[np.int64]


def cells(region: Region, cell: Shape) -> Iterator[tuple[Shape, Shape, Region]]:
    """Yield (coords, origin, what of the region it holds) of each cell that the region touches."""
    ranges = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(region, cell, strict=True)
    ]
    for coords in product(*ranges):
        origin = tuple(c * size for c, size in zip(coords, cell, strict=True))
        inside = tuple(
            slice(max(part.start, o), min(part.stop, o + size))
            for part, o, size in zip(region, origin, cell, strict=True)
        )
        yield coords, origin, inside


def relative(region: Region, origin: Shape) -> Region:
    """Return a region as it is seen from `origin`."""
    return tuple(slice(p.start - o, p.stop - o) for p, o in zip(region, origin, strict=True))


class Confirmation:
    """Whether what was read is known to belong to the dataset that the reader has opened.

    It is where each shard has the version that it had in an earlier read, after which the dataset
    was found to be there still. Otherwise the reader has to look, and says so by `confirm`.
    """

    def __init__(self, dataset: Hashable = None) -> None:
        self.dataset = dataset
        self.is_needed = False
        self._new: list[tuple[Store, str, StoredArray, Hashable]] = []

    def add(self, store: Store, key: str, array: StoredArray, version: Hashable) -> None:
        """Note a shard of which nobody knows."""
        self.is_needed = True
        self._new.append((store, key, array, version))

    def confirm(self) -> None:
        """Keep in mind that all of these shards belong to the dataset."""
        for shard in self._new:
            confirm_shard(*shard, self.dataset)


@dataclass
class ObjectRead:
    """The region `wanted` of one stored object, to be put into `target`.

    A missing object is an error with `strict`, and else fill values. Threads take `turns` to
    decode.
    """

    store: Store
    key: str
    array: StoredArray
    wanted: Region
    target: npt.NDArray[Any]
    strict: bool
    turns: threading.Semaphore
    is_remote: bool
    confirmation: Confirmation

    def first_step(self) -> Step:
        """Return the step that all others come from."""
        array = self.array
        if not (array.is_direct and array.is_sharded):
            self.confirmation.is_needed = True
        if not array.is_direct:
            nbytes = 3 * prod(array.object_shape) * array.dtype.itemsize
            return Step(nbytes, partial(self._named, self._read_by_zarr))
        if not array.is_sharded:
            return Step(2 * array.inner_chunk_nbytes, partial(self._named, self._read_chunk))
        return Step(2 * array.index_nbytes, partial(self._named, self._open))

    def _named(self, run: Any, *arguments: Any) -> Iterable[Step]:
        """Run a step; errors name the object."""
        try:
            return run(*arguments) or ()
        except FileNotFoundError:
            if self.strict:
                raise IncompleteDatasetError(
                    f"{self.key} is missing: the dataset is incomplete. Restore or write it again; "
                    "to read it as fill values all the same, open with strict=False"
                ) from None
            self.confirmation.is_needed = True
            self.target[...] = self.array.fill_value
            return ()
        except ObjectChangedError as error:
            raise ObjectChangedError(f"{self.key}: {error}") from error
        except ShardDecodeError as error:
            raise ShardDecodeError(f"{self.key}: {error}") from error

    def _read_by_zarr(self) -> None:
        with self.turns:
            self.target[...] = read_object(self.store, self.key, self.array)[self.wanted]

    def _read_chunk(self) -> None:
        array = self.array
        data = self.store.open(self.key).read_whole(array.object_limit)
        with self.turns:
            decoded = chunk_codec(array.codecs).decode(data, array.inner_chunk_nbytes)
            chunk = np.frombuffer(decoded, array.dtype).reshape(array.inner_chunk_shape)
            copy_runs(chunk[self.wanted], self.target)

    def _open(self) -> Iterable[Step]:
        """Open the shard; return the steps that read its chunks."""
        array = self.array
        shard = open_shard(self.store, self.key, array, self.confirmation.dataset)
        opened, index = shard.opened, shard.entries
        if not shard.is_confirmed:
            self.confirmation.add(self.store, self.key, array, opened.version)
        axes = [
            np.arange(part.start // size, -(-part.stop // size))
            for part, size in zip(self.wanted, array.inner_chunk_shape, strict=True)
        ]
        numbers = np.ravel_multi_index(np.ix_(*axes), array.chunks_per_object).ravel()
        is_absent = index[numbers, 0] == ABSENT
        absent, stored = numbers[is_absent], numbers[~is_absent]
        if not len(stored):
            self.target[...] = array.fill_value
            return []
        places = self._places()
        steps = [
            Step(0, partial(self._fill, places, absent[n : n + _N_FILLED]))
            for n in range(0, len(absent), _N_FILLED)
        ]
        extents = _extents(stored, index[stored].astype(np.int64), self.is_remote)
        opened.expect((extent.start, extent.stop) for extent in extents)
        for group in _groups(extents, self.is_remote):
            nbytes = sum(extent.stop - extent.start for extent in group)
            run = partial(self._read_extents, opened, places, group)
            steps.append(Step(nbytes + array.inner_chunk_nbytes, partial(self._named, run)))
        return steps

    def _places(self) -> list[list[tuple[slice, slice]]]:
        """Return, by axis and number of a chunk along it, what of it is wanted, and where."""
        places = []
        for part, size in zip(self.wanted, self.array.inner_chunk_shape, strict=True):
            along = [(slice(0), slice(0))] * (part.start // size)
            for n in range(part.start // size, -(-part.stop // size)):
                first, last = max(part.start, n * size), min(part.stop, (n + 1) * size)
                along.append(
                    (
                        slice(first - n * size, last - n * size),
                        slice(first - part.start, last - part.start),
                    )
                )
            places.append(along)
        return places

    def _fill(self, places: Any, numbers: npt.NDArray[np.intp]) -> tuple[()]:
        for coords in _coords(numbers, self.array):
            at = tuple(along[c][1] for along, c in zip(places, coords, strict=True))
            self.target[at] = self.array.fill_value
        return ()

    def _read_extents(self, opened: OpenedObject, places: Any, extents: list[_Extent]) -> None:
        array, nbytes = self.array, self.array.inner_chunk_nbytes
        codec = chunk_codec(array.codecs)
        for extent in extents:
            data = opened.read(extent.start, extent.stop - extent.start, _memory("read"))
            with self.turns:
                memory = _memory("chunk")(nbytes)
                for coords, (_, offset, size) in zip(
                    _coords(extent.chunks[:, 0], array), extent.chunks.tolist(), strict=True
                ):
                    start = offset - extent.start
                    chunk = data[start : start + size]
                    try:
                        if len(chunk) < size:
                            raise ShardDecodeError("the shard ends before it does")
                        decoded = codec.decode(chunk, nbytes, memory)
                    except ShardDecodeError as error:
                        raise ShardDecodeError(
                            f"inner chunk {coords} at byte {offset}: {error}"
                        ) from error
                    voxels = np.frombuffer(decoded, array.dtype).reshape(array.inner_chunk_shape)
                    inside, at = zip(
                        *[along[c] for along, c in zip(places, coords, strict=True)], strict=True
                    )
                    copy_runs(voxels[inside], self.target[at])


def _coords(numbers: npt.NDArray[Any], array: StoredArray) -> list[Shape]:
    """Return the coordinates in a shard of the inner chunks with these numbers."""
    axes = np.unravel_index(numbers, array.chunks_per_object)
    return list(zip(*[axis.tolist() for axis in axes], strict=True))


def _extents(
    numbers: npt.NDArray[np.intp], entries: npt.NDArray[np.int64], is_remote: bool
) -> list[_Extent]:
    """Return what to read of a shard: chunks with small gaps are together, up to a size."""
    order = np.argsort(entries[:, 0], kind="stable")
    chunks = np.column_stack([numbers, entries])[order]
    start, stop = chunks[:, 1], np.maximum.accumulate(chunks[:, 1] + chunks[:, 2])
    is_first = np.append(True, start[1:] - stop[:-1] > _GAP_NBYTES[is_remote])
    begins = start[is_first][np.cumsum(is_first) - 1]
    piece = (start - begins) // _TOGETHER_NBYTES[is_remote]
    is_first[1:] |= piece[1:] != piece[:-1]
    cuts = [*np.flatnonzero(is_first).tolist(), len(chunks)]
    return [_Extent(int(start[a]), int(stop[b - 1]), chunks[a:b]) for a, b in pairwise(cuts)]


def _groups(extents: list[_Extent], is_remote: bool) -> Iterator[list[_Extent]]:
    """Yield what one step reads: one request, or reads of a file up to a size."""
    group: list[_Extent] = []
    nbytes = 0
    for extent in extents:
        group.append(extent)
        nbytes += extent.stop - extent.start
        if is_remote or nbytes >= _TOGETHER_NBYTES[is_remote] // 2:
            yield group
            group, nbytes = [], 0
    if group:
        yield group


def _memory(name: str) -> Any:
    """Return what gives memory of this thread; it is used again for the same name."""

    def give(nbytes: int) -> memoryview:
        kept: memoryview = getattr(_thread, name, memoryview(b""))
        if kept.nbytes < nbytes:
            kept = memoryview(np.empty(nbytes, np.uint8))
            if nbytes <= _KEPT_NBYTES:
                setattr(_thread, name, kept)
        return kept[:nbytes]

    return give
