"""What a read needs of one stored object, as steps: open it, read chunks, decode them.

The ranges of a shard follow from its index before the first of them is read. Chunks that lie close
together are read together.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import ChunkCodec, chunk_codec
from ctlab_dask_zarr.codec.extents import (
    Extent,
    Region,
    Touched,
    along_axis,
    extents_of,
    groups_of,
    touched_chunks,
)
from ctlab_dask_zarr.codec.pace import Pace
from ctlab_dask_zarr.codec.shard import ABSENT, copy_runs
from ctlab_dask_zarr.codec.shard_index import confirm_shard, open_shard
from ctlab_dask_zarr.codec.together import Step
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.codecs import Buffer
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import ObjectChangedError, OpenedObject
from ctlab_dask_zarr.store.store import Store

#: Requests to an object store that one read has under way at once.
N_REQUESTS = 64
#: Of a file, chunks are read together while the gap between them is no longer, and together they
#: are no longer than that. Of an object store its `Pace` knows.
_GAP_NBYTES, _TOGETHER_NBYTES = 64 << 10, 512 << 10
#: What is read of an object store with the index, where it is wanted; or of a small shard anyway.
_TAIL_NBYTES, _SMALL_TAIL_NBYTES = 8 << 20, 256 << 10
#: Of a shard in a file, chunks that have fewer bytes together, decoded, are read in one short step.
_SHORT_NBYTES = 128 << 10
#: Absent chunks that are filled in one step.
_N_FILLED = 256
#: Memory of a thread up to this size is kept for its next step.
_KEPT_NBYTES = 4 << 20

_thread = threading.local()


class _Joined(NamedTuple):
    """Memory of a thread for the chunks of a short step, and what is made of it."""

    array: StoredArray
    touched: Touched
    codec: ChunkCodec
    #: Of each chunk.
    parts: list[memoryview]
    chunks: npt.NDArray[Any]
    #: The axes of `chunks` in the order of the region.
    ordered: npt.NDArray[Any]


def _joined(array: StoredArray, touched: Touched) -> _Joined:
    """Return this thread's memory; most shards of a read take the same."""
    kept: _Joined | None = getattr(_thread, "joined", None)
    if kept is None or kept.array is not array or kept.touched is not touched:
        nbytes, n_chunks = array.inner_chunk_nbytes, len(touched.numbers)
        memory = memoryview(bytearray(n_chunks * nbytes))
        parts = [memory[n * nbytes : (n + 1) * nbytes] for n in range(n_chunks)]
        chunks = np.frombuffer(memory, array.dtype).reshape(-1, *array.inner_chunk_shape)
        grid = chunks.reshape(*touched.grid, *array.inner_chunk_shape)[touched.before]
        ordered = grid.transpose(touched.order)
        kept = _Joined(array, touched, chunk_codec(array.codecs), parts, chunks, ordered)
        _thread.joined = kept
    return kept


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
    decode. `pace` is that of an object store, None for a file.
    """

    store: Store
    key: str
    array: StoredArray
    wanted: Region
    target: npt.NDArray[Any]
    strict: bool
    turns: threading.Semaphore
    pace: Pace | None
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
        touched = self._touched()
        nbytes = len(touched.numbers) * array.inner_chunk_nbytes
        # The bytes of chunks may be a little more than what they decode to.
        is_short = self.pace is None and nbytes <= _SHORT_NBYTES
        tail_nbytes = self._tail_nbytes(nbytes)
        held = 2 * array.index_nbytes + tail_nbytes + (4 * _SHORT_NBYTES if is_short else 0)
        run = partial(self._named, self._open, touched, is_short, tail_nbytes)
        return Step(held, run, is_short)

    def _tail_nbytes(self, nbytes: int) -> int:
        """Return how much to read with the index, so that no request is needed for it."""
        if self.pace is None:
            return 0
        shard_nbytes = prod(self.array.object_shape) * self.array.dtype.itemsize
        if shard_nbytes > _SMALL_TAIL_NBYTES and 2 * nbytes < shard_nbytes:
            return 0
        return min(shard_nbytes, _TAIL_NBYTES)

    def _touched(self) -> Touched:
        wanted = tuple((part.start, part.stop) for part in self.wanted)
        return touched_chunks(wanted, self.array.inner_chunk_shape, self.array.chunks_per_object)

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

    def _open(self, touched: Touched, is_short: bool, tail_nbytes: int) -> Iterable[Step]:
        """Open the shard; return the steps that read its chunks, unless that is done at once."""
        array = self.array
        dataset = self.confirmation.dataset
        shard = open_shard(self.store, self.key, array, dataset, tail_nbytes)
        opened, index = shard.opened, shard.entries
        if not shard.is_confirmed:
            self.confirmation.add(self.store, self.key, array, opened.version)
        numbers = touched.numbers
        if is_short and self._read_at_once(opened, touched, index[numbers].tolist()):
            return []
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
        chunks = np.column_stack([stored, index[stored].astype(np.int64)])
        chunks = chunks[np.argsort(chunks[:, 1], kind="stable")]
        if tail_nbytes and shard.tail:
            tail_start = opened.nbytes - len(shard.tail)
            n_before = int(np.searchsorted(chunks[:, 1], tail_start))
            extent = Extent(tail_start, opened.nbytes, chunks[n_before:])
            chunks = chunks[:n_before]
            run = partial(self._decode_extent, places, extent, shard.tail)
            # First, so that the thread that has read it goes on with it.
            steps.insert(0, Step(len(shard.tail), partial(self._named, run), is_held=True))
        extents = extents_of(chunks, *self._limits()) if len(chunks) else []
        opened.expect((extent.start, extent.stop) for extent in extents)
        for group in groups_of(extents, 1 if self.pace else _TOGETHER_NBYTES // 2):
            nbytes = sum(extent.stop - extent.start for extent in group)
            run = partial(self._read_extents, opened, places, group)
            steps.append(Step(nbytes + array.inner_chunk_nbytes, partial(self._named, run)))
        return steps

    def _limits(self) -> tuple[int, int]:
        """Return the longest gap between chunks that are read together, and how long they are."""
        if self.pace is None:
            return _GAP_NBYTES, _TOGETHER_NBYTES
        return self.pace.gap_nbytes(), self.pace.together_nbytes()

    def _read_at_once(
        self, opened: OpenedObject, touched: Touched, entries: list[list[int]]
    ) -> bool:
        """Read and decode all chunks in one go; return False where they are far apart."""
        array = self.array
        first = min([offset for offset, _ in entries])
        if first == ABSENT:
            self.target[...] = array.fill_value
            return True
        last = max([offset + size for offset, size in entries if offset != ABSENT])
        if last - first > _GAP_NBYTES + _SHORT_NBYTES:
            return False
        data = opened.read(first, last - first, _memory("read"))
        joined = _joined(array, touched)
        with self.turns:
            for n, ((offset, size), part) in enumerate(zip(entries, joined.parts, strict=True)):
                if offset == ABSENT:
                    joined.chunks[n] = array.fill_value
                    continue
                chunk = data[offset - first : offset - first + size]
                decoded = self._decoded(
                    joined.codec, chunk, (touched.numbers[n], offset, size), part
                )
                if decoded is not part:
                    part[:] = decoded
            self.target[...] = joined.ordered.reshape(touched.shape)[touched.after]
            return True

    def _places(self) -> list[dict[int, tuple[slice, slice]]]:
        """Return, by axis and number of a chunk along it, what of it is wanted, and where."""
        return [
            {n: (wanted, at) for n, wanted, at in along_axis(part, size)}
            for part, size in zip(self.wanted, self.array.inner_chunk_shape, strict=True)
        ]

    def _fill(self, places: Any, numbers: npt.NDArray[np.intp]) -> tuple[()]:
        for coords in _coords(numbers, self.array):
            at = tuple(along[c][1] for along, c in zip(places, coords, strict=True))
            self.target[at] = self.array.fill_value
        return ()

    def _read_extents(self, opened: OpenedObject, places: Any, extents: list[Extent]) -> None:
        for extent in extents:
            nbytes = extent.stop - extent.start
            with nullcontext() if self.pace is None else self.pace.request(nbytes):
                data = opened.read(extent.start, nbytes, _memory("read"))
            self._decode_extent(places, extent, data)

    def _decode_extent(self, places: Any, extent: Extent, data: Any) -> None:
        """Put the chunks of an extent, of which these are the bytes, in their places."""
        array = self.array
        codec = chunk_codec(array.codecs)
        with self.turns:
            memory = _memory("chunk")(array.inner_chunk_nbytes)
            for coords, (number, offset, size) in zip(
                _coords(extent.chunks[:, 0], array), extent.chunks.tolist(), strict=True
            ):
                start = offset - extent.start
                chunk = data[start : start + size]
                decoded = self._decoded(codec, chunk, (number, offset, size), memory)
                voxels = np.frombuffer(decoded, array.dtype).reshape(array.inner_chunk_shape)
                inside, at = zip(
                    *[along[c] for along, c in zip(places, coords, strict=True)], strict=True
                )
                copy_runs(voxels[inside], self.target[at])

    def _decoded(
        self, codec: ChunkCodec, chunk: Buffer, entry: Sequence[int], memory: Buffer
    ) -> Buffer:
        """Decode an inner chunk with its number in the shard, offset and size."""
        number, offset, size = entry
        try:
            if len(chunk) < size:
                raise ShardDecodeError("the shard ends before it does")
            return codec.decode(chunk, self.array.inner_chunk_nbytes, memory)
        except ShardDecodeError as error:
            coords = _coords(np.array([number]), self.array)[0]
            raise ShardDecodeError(f"inner chunk {coords} at byte {offset}: {error}") from error


def _coords(numbers: npt.NDArray[Any], array: StoredArray) -> list[Shape]:
    """Return the coordinates in a shard of the inner chunks with these numbers."""
    axes = np.unravel_index(numbers, array.chunks_per_object)
    return list(zip(*[axis.tolist() for axis in axes], strict=True))


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
