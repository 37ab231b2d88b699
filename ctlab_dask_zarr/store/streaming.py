"""Bytes of one object, in the order in which they are wanted, in bounded memory.

Of an object store the next spans are on their way while one is used. A file is read into the same
memory again and again, which stays in the cache of a core: the operating system reads ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.store.opened import Memory, OpenedObject, new_memory
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store

#: First byte, and the one after the last.
Span = tuple[int, int]

#: What is read at once. Of a file it stays in the cache of a core; a request takes far longer.
_FILE_NBYTES, _REQUEST_NBYTES = 1 << 20, 8 << 20
#: Requests that are under way while the bytes of one are used.
_N_AHEAD = 3


def span_nbytes(store: Store) -> int:
    """Return how many bytes of an object are best read at once."""
    return _REQUEST_NBYTES if is_url(store.root) else _FILE_NBYTES


def whole_spans(store: Store, nbytes: int) -> Iterator[Span]:
    """Yield spans that cover an object of `nbytes` bytes."""
    step = span_nbytes(store)
    for start in range(0, nbytes, step):
        yield start, min(start + step, nbytes)


def read_spans(
    store: Store, source: OpenedObject, spans: Iterable[Span]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the bytes of each span, valid until the next; fewer where the object ends before.

    Of an object store at most `_N_AHEAD` more spans are in memory.
    """
    if not is_url(store.root):
        memory = _one_memory()
        for start, stop in spans:
            yield _read(source, start, stop, memory)
        return
    pool = ThreadPoolExecutor(_N_AHEAD)
    pending: deque[Future[npt.NDArray[np.uint8]]] = deque()
    try:
        for start, stop in spans:
            pending.append(pool.submit(_read, source, start, stop, new_memory))
            if len(pending) > _N_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: OpenedObject, start: int, stop: int, memory: Memory) -> npt.NDArray[np.uint8]:
    # No memoryview, which checksums do not take.
    return np.frombuffer(source.read(start, stop - start, memory), np.uint8)


def _one_memory() -> Memory:
    """Return what gives the same memory each time, or more if that is not enough."""
    kept = memoryview(b"")

    def memory(nbytes: int) -> memoryview:
        nonlocal kept
        if kept.nbytes < nbytes:
            kept = memoryview(np.empty(nbytes, np.uint8))
        return kept[:nbytes]

    return memory
