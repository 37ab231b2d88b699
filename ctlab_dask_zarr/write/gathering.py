"""Slabs that are gathered in the memory of one process, and encoded by its threads.

Slices are copied into the buffer of their layer. When a layer has all of its slices, a pool encodes
it, band by band, while the next slabs come in. There are as many buffers as layers in a row of
shards. When all of them have gaps, the one that was not used for longest goes to a file.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

import dask
import numpy as np
import numpy.typing as npt
from dask.system import CPU_COUNT

from ctlab_dask_zarr.write.slabs import Layer, SlabWrite, Voxels

Flags = npt.NDArray[np.bool_]


class _Buffer(NamedTuple):
    """The memory of a layer, and which of its slices are in it."""

    voxels: Voxels
    has: Flags


class _Encoding(NamedTuple):
    """A layer that is being encoded, and the files that are not needed after that."""

    layer: int
    voxels: Voxels
    names: list[str]
    bands: list[Future[None]]


class Gathering:
    """Takes slabs from any thread of the process that began the write."""

    def __init__(self, slabs: SlabWrite) -> None:
        self._slabs = slabs
        n_threads: int = dask.config.get("num_workers", None) or CPU_COUNT
        self._pool = ThreadPoolExecutor(n_threads)
        self._lock = Lock()
        #: Slices of each layer that somebody has, as far as this process knows.
        self._taken: dict[int, Flags] = {}
        self._open: OrderedDict[int, _Buffer] = OrderedDict()
        self._free: list[Voxels] = []
        self._encoding: deque[_Encoding] = deque()
        self._merging: list[Future[None]] = []
        self._failure: BaseException | None = None
        n_columns = len(slabs.columns(0))
        #: So many layers keep all threads busy.
        self._n_encoding = 1 + -(-n_threads // n_columns)
        self._n_buffers = slabs.layers_per_row

    def add(self, start: int, slab: Voxels) -> None:
        """Take a slab that begins at a slice; its memory may be used again when this returns."""
        slabs = self._slabs
        parts = list(slabs.parts(start, start + len(slab)))
        with self._lock:
            self._refuse_failed()
            slabs.refuse_repeated(parts, self._taken_of)
            try:
                for layer, first, stop in parts:
                    at = slabs.span(layer).start - start
                    self._copy(layer, first, slab[at + first : at + stop])
            except Exception as error:
                self._failure = error
                raise

    def _copy(self, layer: int, first: int, voxels: Voxels) -> None:
        buffer = self._open.get(layer) or self._new_buffer(layer)
        self._open.move_to_end(layer)
        at = slice(first, first + len(voxels))
        buffer.voxels[at] = voxels
        buffer.has[at] = self._taken[layer][at] = True
        if self._taken[layer].all():
            self._encode(layer)

    def missing(self) -> Flags:
        """Return which slices nobody has, as far as this process knows."""
        with self._lock:
            missing = self._slabs.missing()
            for layer, taken in self._taken.items():
                span = self._slabs.span(layer)
                missing[span.start : span.stop] &= ~taken
        return missing

    def close(self) -> None:
        """Encode what is complete, and put the rest into files; raise what has gone wrong."""
        try:
            with self._lock:
                self._refuse_failed()
                while self._open:
                    self._keep(next(iter(self._open)))
                self._wait()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def give_up(self) -> None:
        """Put what is in memory into files, as far as that can be done."""
        with suppress(Exception):
            self.close()

    def _taken_of(self, layer: int) -> Flags:
        if layer not in self._taken:
            found = self._slabs.found().get(layer, Layer())
            self._taken[layer] = found.has(len(self._slabs.span(layer)))
        return self._taken[layer]

    def _new_buffer(self, layer: int) -> _Buffer:
        """Return an empty buffer; waits for one, or empties one into a file."""
        self._reap(lambda: len(self._encoding) >= self._n_encoding)
        if not self._free and len(self._open) + len(self._encoding) >= self._n_buffers:
            if not self._encoding:
                self._keep(next(iter(self._open)))
            self._reap(lambda: not self._free)
        layout = self._slabs.layout
        dtype = self._slabs.write.request.levels[0].array.dtype
        shape = (min(layout.task_shape[0], layout.shape[0]), *layout.shape[1:])
        voxels = self._free.pop() if self._free else np.empty(shape, dtype)
        buffer = _Buffer(voxels, np.zeros(len(self._slabs.span(layer)), bool))
        self._open[layer] = buffer
        return buffer

    def _encode(self, layer: int) -> None:
        """Have the pool encode a layer whose slices are all there, here or in files."""
        slabs, buffer = self._slabs, self._open.pop(layer)
        voxels = buffer.voxels[: len(buffer.has)]
        names = [] if buffer.has.all() else slabs.fill(layer, voxels, buffer.has)
        bands = [self._pool.submit(slabs.encode, c, voxels) for c in slabs.columns(layer)]
        self._encoding.append(_Encoding(layer, buffer.voxels, names, bands))

    def _keep(self, layer: int) -> None:
        """Put a layer with gaps into files, or encode it where other processes have filled them."""
        slabs, has = self._slabs, self._open[layer].has
        others = slabs.found().get(layer, Layer())
        if (others.has(len(has)) | has).all():
            self._encode(layer)
            return
        voxels = self._open.pop(layer).voxels
        edges = np.flatnonzero(np.diff(has, prepend=False, append=False))
        for first, stop in edges.reshape(-1, 2).tolist():
            slabs.keep(layer, first, voxels[first:stop])
        self._free.append(voxels)
        slabs.settle(layer)

    def _reap(self, until_not: Callable[[], bool] = lambda: False) -> None:
        """Finish the layers that are encoded, and wait for more while `until_not` says so."""
        while self._encoding and (until_not() or all(b.done() for b in self._encoding[0].bands)):
            done = self._encoding.popleft()
            wait(done.bands)
            try:
                for band in done.bands:
                    band.result()
                shards = self._slabs.finish(done.layer, done.names, uuid.uuid4().hex)
            except BaseException as error:
                self._failure = error
                raise
            self._free.append(done.voxels)
            self._merging += [self._pool.submit(self._slabs.merge, c) for c in shards]
        self._merging = [merge for merge in self._merging if not _is_over(merge)]

    def _wait(self) -> None:
        self._reap(lambda: True)
        for merge in self._merging:
            merge.result()

    def _refuse_failed(self) -> None:
        if self._failure is not None:
            raise self._failure


def _is_over(merge: Future[Any]) -> bool:
    """Whether a future is done; raises what it raised."""
    if merge.done():
        merge.result()
    return merge.done()
