"""Bytes of one object, in the order in which they are wanted, in bounded memory.

Of an object store the next spans are on their way while one is used. From files one is read after
the other: the operating system reads ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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


def read_spans(store: Store, key: str, spans: Iterable[Span]) -> Iterator[bytes]:
    """Yield the bytes of each span; fewer than that where the object ends before."""
    if not is_url(store.root):
        for start, stop in spans:
            yield store.get_range(key, start, stop - start)
        return
    pool = ThreadPoolExecutor(_N_AHEAD)
    pending: deque[Future[bytes]] = deque()
    try:
        for start, stop in spans:
            pending.append(pool.submit(store.get_range, key, start, stop - start))
            if len(pending) > _N_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
