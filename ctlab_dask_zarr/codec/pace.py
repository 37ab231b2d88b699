"""How fast an object store answers, learned from what this process asks it.

It decides what is cheaper: bytes that nobody wants between two inner chunks, or another request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

#: Chunks are asked for together while the gap between them is no longer: at first, and at most,
#: which is what other readers of Zarr read at any store.
_GAP_NBYTES, _MAX_GAP_NBYTES = 256 << 10, 1 << 20
#: What is asked for at once: at first, and at most; and so many times the gap.
_TOGETHER_NBYTES, _MAX_TOGETHER_NBYTES, _TOGETHER_GAPS = 8 << 20, 32 << 20, 8
#: A request counts as small, which tells what one takes, and as large, which tells the rate.
_SMALL_NBYTES, _LARGE_NBYTES = 128 << 10, 1 << 20
#: What a small one takes is known only beside so many others: fewer wait side by side for free.
_MANY = 32
#: What earlier requests still count after each further one.
_KEPT = 63 / 64


class Pace:
    """The seconds that a request to one store takes from all others, and the bytes in a second.

    Each moment is shared by the requests that are under way. Where they wait side by side, a share
    is a small part of the time that a request takes; of a server that does one after the other it
    is what each of them takes.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._n_under_way = 0
        #: The share of a request that would have been under way all the time, until `_at`.
        self._share_s = self._at = 0.0
        #: Of small requests their number and the sum of their shares, of large ones their bytes.
        self._small, self._large = _Known(), _Known()
        self._is_to_try = True

    @contextmanager
    def request(self, nbytes: int) -> Iterator[None]:
        """Learn from the request that is done within."""
        begin_s, _ = self._pass(1)
        yield
        end_s, n = self._pass(-1)
        self.learn(nbytes, end_s - begin_s, n)

    def _pass(self, n_more: int) -> tuple[float, int]:
        with self._lock:
            now, n = self._clock(), self._n_under_way
            self._share_s += (now - self._at) / n if n else 0.0
            self._at, self._n_under_way = now, n + n_more
            return self._share_s, n

    def learn(self, nbytes: int, share_s: float, n_under_way: int) -> None:
        """Take in the share of a request that ended beside others."""
        with self._lock:
            if nbytes >= _LARGE_NBYTES:
                self._large.add(nbytes, share_s)
            elif nbytes <= _SMALL_NBYTES and n_under_way >= _MANY:
                self._small.add(1, share_s)

    def gap_nbytes(self) -> int:
        """Return how many bytes take as long as a request."""
        if self._small.amount and not self._large.amount and self._is_to_try:
            # Once: only a large request tells the rate.
            self._is_to_try = False
            return _MAX_GAP_NBYTES
        return min(max(_GAP_NBYTES, self._request_nbytes()), _MAX_GAP_NBYTES)

    def together_nbytes(self) -> int:
        """Return how many bytes are asked for at once."""
        wanted = _TOGETHER_GAPS * self._request_nbytes()
        return min(max(_TOGETHER_NBYTES, wanted), _MAX_TOGETHER_NBYTES)

    def _request_nbytes(self) -> int:
        small, large = self._small, self._large
        if not small.amount or not large.seconds:
            return 0
        return int(small.seconds / small.amount * large.amount / large.seconds)


@dataclass
class _Known:
    amount: float = 0.0
    seconds: float = 0.0

    def add(self, amount: float, seconds: float) -> None:
        self.amount = _KEPT * self.amount + amount
        self.seconds = _KEPT * self.seconds + seconds


@cache
def pace_of(place: str, process: int) -> Pace:
    """Return what this process, by its number, knows of the store at a place."""
    return Pace()
