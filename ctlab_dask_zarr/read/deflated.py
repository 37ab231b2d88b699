"""Voxels in one gzip or zlib stream, which has to be inflated from its beginning.

A process keeps copies of the inflater's state on the way, about every 64 MiB, so that a slab is not
inflated from the beginning each time. A process that reads only the end has to inflate everything
before it once.
"""

from __future__ import annotations

import bisect
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import IncompleteSourceError
from ctlab_dask_zarr.read.files import FilesSource, OpenedFile, Region

#: Bytes of compressed data that are read at once, and of inflated data between two kept states.
_READ_NBYTES = 1 << 20
_STEP_NBYTES = 64 << 20
#: zlib finds out whether a stream is one of gzip or of its own.
_ANY_STREAM = 47
_GZIP_MAGIC = b"\x1f\x8b"


class _State(NamedTuple):
    """An inflater that has made `n_inflated` bytes and needs its input from byte `position`."""

    n_inflated: int
    position: int
    inflater: Any
    #: What was read of the file and not inflated yet.
    rest: bytes


class _States:
    """The states that this process keeps of one stream."""

    def __init__(self, begins: int) -> None:
        self._lock = threading.Lock()
        self._kept = [_State(0, begins, zlib.decompressobj(_ANY_STREAM), b"")]

    def before(self, n_inflated: int) -> _State:
        """Return a copy of the last state that has not passed a byte of the inflated data."""
        with self._lock:
            place = bisect.bisect_right(self._kept, n_inflated, key=lambda state: state.n_inflated)
            state = self._kept[place - 1]
            return state._replace(inflater=state.inflater.copy())

    def keep(self, state: _State) -> None:
        """Keep a copy of a state, if it is a step behind the last one."""
        with self._lock:
            if state.n_inflated >= self._kept[-1].n_inflated + _STEP_NBYTES:
                self._kept.append(state._replace(inflater=state.inflater.copy()))


@lru_cache(maxsize=8)
def _states_of(path: str, begins: int, nbytes: int, mtime_ns: int) -> _States:
    # Size and time are the version of the file.
    return _States(begins)


@dataclass(frozen=True, repr=False)
class DeflatedSource(FilesSource):
    """Voxels in one compressed stream that begins at byte `begins` of one file."""

    begins: int
    is_swapped: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from others: also where its stream begins."""
        return super().identity() | {"begins": [self.begins], "is_swapped": self.is_swapped}

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        outer = region[0]
        slices = np.empty((outer.stop - outer.start, *self.shape[1:]), self.dtype)
        if slices.size:
            start = outer.start * (slices.nbytes // len(slices))
            with self.opened(0) as file:
                self._inflate(file, start, memoryview(slices.reshape(-1).view(np.uint8)))
        if self.is_swapped:
            slices.byteswap(inplace=True)
        part = slices[(slice(None), *region[1:])]
        return part if part.flags.c_contiguous else part.copy()

    def _inflate(self, file: OpenedFile, start: int, target: memoryview) -> None:
        """Fill `target` with the inflated bytes from `start`."""
        known = self.files[0]
        states = _states_of(file.path, self.begins, known.nbytes, known.mtime_ns)
        n_inflated, position, inflater, rest = states.before(start)
        stop = start + len(target)
        try:
            while n_inflated < stop:
                if not rest and position < known.nbytes:
                    rest = file.read(position, min(_READ_NBYTES, known.nbytes - position)).tobytes()
                    position += len(rest)
                data = inflater.decompress(rest, _READ_NBYTES)
                rest = inflater.unconsumed_tail
                if not data and not rest and (inflater.eof or position >= known.nbytes):
                    raise zlib.error(f"it ends after {n_inflated:,} bytes")
                low, high = max(start, n_inflated), min(stop, n_inflated + len(data))
                if low < high:
                    target[low - start : high - start] = data[low - n_inflated : high - n_inflated]
                n_inflated += len(data)
                states.keep(_State(n_inflated, position, inflater, rest))
        except zlib.error as error:
            raise IncompleteSourceError(
                f"{file.path} is damaged: its compressed voxels cannot be read ({error}): copy it "
                "again from where it was made"
            ) from error


def inflated_nbytes(path: str, begins: int) -> int | None:
    """Return the size, modulo 2^32, that a gzip stream says at its end; None for zlib's own."""
    with open(path, "rb") as file:
        file.seek(max(begins, 0))
        if file.read(2) != _GZIP_MAGIC:
            return None
        file.seek(-4, os.SEEK_END)
        (nbytes,) = struct.unpack("<I", file.read(4))
    return int(nbytes)
