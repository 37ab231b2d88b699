"""Whether stored objects are there, are the bytes that were committed, and decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.region import object_crc32c
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import CTLabError, ShardDecodeError
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.receipts import (
    CHECKSUM_TEXT,
    Expected,
    object_change,
    object_problems,
)
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.scan import ShardScan, joined_crc32c


class BandChecksum(NamedTuple):
    """The CRC-32C of a part of a shard, from one of the tasks that share it."""

    key: str
    start: int
    stop: int
    crc32c: int
    #: Of the whole shard: its size, and the checksum that was committed.
    nbytes: int
    committed: int


OVERLAP_TEXT = "has inner chunks that overlap"
#: What a task finds.
Finding = Problem | BandChecksum


class ShardCheck:
    """Looks at some rows of inner chunks of one shard, or at all, and reads each byte once.

    Of tasks that share a shard, the one with the first row looks at what is the same for all.
    """

    def __init__(
        self, store: Store, path: str, array: StoredArray, expected: Expected, rows: range
    ) -> None:
        self._store, self._array, self._expected, self._rows = store, array, expected, rows
        self._key = object_key(path, array, expected.coords)
        self._is_first = rows.start == 0
        self._found: list[Finding] = []
        self._scan: ShardScan | None = None
        self.nbytes = 0
        try:
            self._open()
        except FileNotFoundError:
            if not expected.is_absent:
                self._tell_once("missing", "is missing")
        except (OSError, CTLabError) as error:
            self._tell_once("unreadable", f"cannot be read: {error}")

    def _open(self) -> None:
        store, key, expected = self._store, self._key, self._expected
        shard = store.open(key)
        tail = bytes(shard.read_end(self._array.index_nbytes))
        self.nbytes = shard.nbytes
        for kind, text in object_change(store, key, self.nbytes, expected, read=False):
            self._tell_once(kind, text)
            self._expected = expected._replace(crc32c=None)
        try:
            self._scan = ShardScan(store, shard, self._array, tail)
        except ShardDecodeError as error:
            self._tell_once("index", f"has no whole index: {error}")
            self._compare_whole()
            return
        if self._scan.overlaps:
            self._tell_once("index", OVERLAP_TEXT)

    @property
    def absent(self) -> npt.NDArray[np.bool_]:
        """Which inner chunks of the shard are not stored, as they are all fill value."""
        if self._scan is None:
            n_chunks = prod(self._array.chunks_per_object) if self._expected.is_absent else 0
            return np.ones(n_chunks, bool)
        absent: npt.NDArray[np.bool_] = self._scan.absent
        return absent

    @property
    def crc32c(self) -> int:
        """The checksum of the shard, after all rows were read together and nothing was found."""
        assert self._scan is not None
        assert self._scan.is_read_whole
        return self._scan.crc32c

    def chunks(self, rows: range) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield number and elements of each inner chunk of some rows that can be had."""
        if self._scan is None:
            return
        try:
            yield from self._scan.decoded(rows)
        except (OSError, CTLabError) as error:
            self._tell("unreadable", f"cannot be read: {error}")
            self._scan = None

    def end(self) -> list[Finding]:
        """Return what was found, after all rows."""
        scan, committed = self._scan, self._expected.crc32c
        if scan is None:
            return self._found
        for number, text in scan.broken:
            place = np.unravel_index(number, self._array.chunks_per_object)
            coords = tuple(map(int, place))
            self._tell("decode", f"has an inner chunk {coords} that cannot be decoded: {text}")
        if not (scan.in_order or scan.is_read_whole):
            self._compare_whole()
        elif committed is not None and len(self._rows) < scan.n_rows:
            band = (*scan.span(self._rows), scan.crc32c)
            self._found.append(BandChecksum(self._key, *band, self.nbytes, committed))
        elif committed not in (None, scan.crc32c):
            self._tell("checksum", CHECKSUM_TEXT)
        return self._found

    def _compare_whole(self) -> None:
        committed = self._expected.crc32c
        if not self._is_first or committed is None:
            return
        if object_crc32c(self._store, self._key, self.nbytes) != committed:
            self._tell("checksum", CHECKSUM_TEXT)

    def _tell_once(self, kind: str, text: str) -> None:
        if self._is_first:
            self._tell(kind, text)

    def _tell(self, kind: str, text: str) -> None:
        self._found.append(Problem(self._key, kind, f"{self._key} {text}"))


def shard_problems(
    store: Store, path: str, document: str, expected: Sequence[Expected], rows: range
) -> list[Finding]:
    """Read the `rows` of inner chunks of some shards, or all; return what is found."""
    array = parse_array_document(document)
    found: list[Finding] = []
    for one in expected:
        check = ShardCheck(store, path, array, one, rows)
        for _ in check.chunks(rows):
            pass
        found += check.end()
    return found


def whole_object_problems(
    store: Store, path: str, document: str, expected: Sequence[Expected], read: bool
) -> list[Problem]:
    """Return everything that is wrong with some objects of the array at `path`.

    With `read` they are read whole, which `shard_problems` does faster with shards: checksums are
    compared, and every inner chunk is decoded. Otherwise only presence, size and the index are
    looked at.
    """
    array = parse_array_document(document)
    return object_problems(path, array, expected, partial(_problems, store, array, read))


def _problems(
    store: Store, array: StoredArray, read: bool, key: str, expected: Expected
) -> Iterator[tuple[str, str]]:
    nbytes = store.nbytes(key)
    yield from object_change(store, key, nbytes, expected, read=read)
    if array.is_direct and array.is_sharded:
        try:
            shard = store.open(key)
            tail = bytes(shard.read_end(array.index_nbytes))
            if ShardScan(store, shard, array, tail).overlaps:
                yield "index", OVERLAP_TEXT
        except ShardDecodeError as error:
            yield "index", f"has no whole index: {error}"
    elif read:
        try:
            if array.is_direct:
                chunk = store.get(key, array.object_limit)
                chunk_codec(array.codecs).decode(chunk, array.inner_chunk_nbytes)
            else:
                read_object(store, key, array)
        except CTLabError as error:
            yield "decode", f"cannot be decoded: {error}"


def joined_findings(findings: Iterable[Finding]) -> list[Problem]:
    """Return the problems among findings, and those that the parts of shards have together."""
    found = list(findings)
    problems = [f for f in found if isinstance(f, Problem)]
    bands = sorted(f for f in found if isinstance(f, BandChecksum))
    told = {problem.location for problem in problems}
    for key, group in groupby(bands, lambda band: band.key):
        parts = list(group)
        bounds = [0, *(n for p in parts for n in (p.start, p.stop)), parts[-1].nbytes]
        is_whole = all(a == b for a, b in zip(bounds[::2], bounds[1::2], strict=True))
        is_one = len({(part.nbytes, part.committed) for part in parts}) == 1
        if not (is_whole and is_one):
            if key not in told:
                text = f"{key} was written again, or in part not read, while it was looked at"
                problems.append(Problem(key, "unreadable", text))
            continue
        crc32c = reduce(lambda value, p: joined_crc32c(value, p.crc32c, p.stop - p.start), parts, 0)
        if crc32c != parts[0].committed:
            problems.append(Problem(key, "checksum", f"{key} {CHECKSUM_TEXT}"))
    return problems
