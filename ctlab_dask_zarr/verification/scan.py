"""A stored shard, read once: its checksum is taken and its inner chunks are decoded as they come.

What this package writes has its rows of inner chunks one after the other. So a run of rows is a
range of bytes, several tasks can share a shard, and their checksums are joined in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, parse_index, row_axis_of
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.store.opened import OpenedObject
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.store.streaming import Span, read_spans, span_nbytes

#: Numbers of inner chunks that lie in one span.
_Numbers = npt.NDArray[np.intp]


class ShardScan:
    """One shard; raises `ShardDecodeError` where it has no whole index.

    `tail` is the end of it, as long as the index or all that it has.

    Attributes
    ----------
    absent
        Which inner chunks are not stored, because they are all fill value.
    overlaps
        Whether inner chunks share bytes, as none may.
    in_order
        Whether the bytes of a row of inner chunks lie before those of the next one.
    crc32c
        Of the bytes that were read in order so far.
    broken
        (number of the inner chunk, what is wrong with it) of those that could not be decoded.
    """

    def __init__(self, store: Store, shard: OpenedObject, array: StoredArray, tail: bytes) -> None:
        self._store, self._shard, self._array = store, shard, array
        nbytes = shard.nbytes
        index = parse_index(tail, array, nbytes)
        self.absent = index[:, 0] == ABSENT
        self.n_rows = len(all_rows(array))
        self.row_length = prod(array.chunks_per_object) // self.n_rows
        numbers = np.flatnonzero(~self.absent)
        self._numbers = numbers[np.argsort(index[numbers, 0], kind="stable")]
        starts, sizes = index[self._numbers].astype(np.int64).T
        self._starts, self._stops = starts, starts + sizes
        self._rows = self._numbers // self.row_length
        self.overlaps = bool((self._starts[1:] < self._stops[:-1]).any())
        self.in_order = not self.overlaps and bool((np.diff(self._rows) >= 0).all())
        #: Where the bytes of each row begin; all of a shard that is out of order are one row's.
        self._bounds = [0, nbytes]
        if self.in_order:
            firsts = np.searchsorted(self._rows, np.arange(1, self.n_rows))
            ends = np.append(self._starts, nbytes - len(tail))
            self._bounds[1:1] = ends[firsts].tolist()
        self.crc32c = self._n_read = 0
        self._nbytes = nbytes
        self.broken: list[tuple[int, str]] = []

    def span(self, rows: range) -> Span:
        """Return the bytes that belong to rows of a shard in order, or to all rows of another.

        Together rows have every byte; those of the index belong to the last.
        """
        return self._bounds[rows.start], self._bounds[min(rows.stop, len(self._bounds) - 1)]

    @property
    def is_read_whole(self) -> bool:
        """Whether `crc32c` is of every byte of the shard."""
        return self._n_read == self._nbytes

    def decoded(self, rows: range) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield number and elements of the inner chunks of some rows, in the order of their bytes.

        They are valid until the next one. Those that are not stored, and those that are broken, are
        left out. The bytes between inner
        chunks are read too, for the checksum, where they belong to these rows alone.
        """
        array, codec = self._array, chunk_codec(self._array.codecs)
        is_complete = self.in_order or (len(rows) == self.n_rows and not self.overlaps)
        mine = np.flatnonzero((self._rows >= rows.start) & (self._rows < rows.stop))
        pieces = list(self._pieces(mine, self.span(rows) if is_complete else None))
        spans = [span for span, _ in pieces]
        parts = read_spans(self._store, self._shard, spans)
        for ((start, _), places), data in zip(pieces, parts, strict=True):
            if is_complete:
                self.crc32c = google_crc32c.extend(self.crc32c, data)
                self._n_read += len(data)
            view = memoryview(data)
            offsets, stops = self._starts[places] - start, self._stops[places] - start
            table = zip(
                self._numbers[places].tolist(), offsets.tolist(), stops.tolist(), strict=True
            )
            for number, first, stop in table:
                try:
                    chunk = codec.decode(view[first:stop], array.inner_chunk_nbytes)
                except ShardDecodeError as error:
                    self.broken.append((number, str(error)))
                else:
                    yield number, np.frombuffer(chunk, array.dtype)

    def _pieces(self, mine: _Numbers, covered: Span | None) -> Iterator[tuple[Span, _Numbers]]:
        """Cut inner chunks, by their places in the order of bytes, into spans to read at once.

        The spans cover all bytes of `covered`, or else hardly more than the inner chunks.
        """
        step = span_nbytes(self._store)
        stops = self._stops[mine]
        is_last = np.diff(stops // step, append=-1) != 0
        if self.overlaps:
            is_last[:] = True
        position = covered[0] if covered else 0
        for places in np.split(mine, np.flatnonzero(is_last)[:-1] + 1) if len(mine) else ():
            start, stop = int(self._starts[places[0]]), int(self._stops[places[-1]])
            if covered is None:
                position = start
            while start - position > step:
                yield (position, position + step), places[:0]
                position += step
            yield (position, stop), places
            position = stop
        while covered and position < covered[1]:
            end = min(position + step, covered[1])
            yield (position, end), mine[:0]
            position = end


def all_rows(array: StoredArray) -> range:
    """Return the numbers of the rows of inner chunks that each shard has."""
    return range(array.chunks_per_object[row_axis_of(array)])


def joined_crc32c(first: int, second: int, second_nbytes: int) -> int:
    """Return the CRC-32C of two pieces of data, one after the other, from those of each.

    The bits of a CRC are a polynomial over GF(2). Zeros after the first piece multiply its CRC by a
    power of x, modulo the polynomial of Castagnoli; the two then add up. Bits are reflected, so
    that the highest one is x**0.

    Examples
    --------
    >>> import google_crc32c
    >>> value = google_crc32c.value
    >>> joined_crc32c(value(b"shard"), value(b" by row"), 7) == value(b"shard by row")
    True
    """
    power, shift = 1 << 31, _X_8
    n = second_nbytes
    while n:
        if n & 1:
            power = _product(power, shift)
        shift = _product(shift, shift)
        n >>= 1
    return _product(power, first) ^ second


#: x**8, as one zero byte multiplies; and the polynomial, reflected.
_X_8 = 1 << 23
_CASTAGNOLI = 0x82F63B78


def _product(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_CASTAGNOLI if b & 1 else 0)
    return product
