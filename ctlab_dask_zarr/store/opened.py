"""Objects that are open to be read, a part at a time, by several threads at once."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Protocol

from ctlab_dask_zarr.errors import ShardDecodeError, UnsupportedFormatError
from ctlab_dask_zarr.formats.problems import refuse_larger

#: A file is told from a later one of the same size by its time, which a clock with this step gives.
_CLOCK_STEP_NS = 2_000_000_000
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
#: Returns memory of a size, which may be used until it is asked again in the same thread.
Memory = Callable[[int], memoryview]


class ObjectChangedError(ShardDecodeError):
    """An object is another one than when it was opened."""


class OpenedObject(Protocol):
    """An object that is open; what is read of it is of one version, or `ObjectChangedError`."""

    #: Its size, and what tells it from what is written under its name later: both are known once
    #: something was read, or where a version was given when it was opened.
    nbytes: int
    version: Hashable
    #: Whether what is written from now on will have another version.
    is_settled: bool

    def read(self, start: int, nbytes: int, memory: Memory) -> memoryview:
        """Return a part, shorter where the object ends before; it may be in `memory`."""

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say what is going to be read: (first byte, the one after the last) of each part."""

    def read_end(self, nbytes: int) -> bytes | memoryview:
        """Return the last bytes, or all where it has no more."""

    def read_whole(self, limit: int) -> bytes:
        """Return all of it; more than `limit` bytes are refused."""


class LocalObject:
    """A file that is open; another one renamed to its name meanwhile is not seen.

    One call opens it, and one tells where it is: `refuse` is asked where that is not below `root`.
    A file that has the `version` of an earlier read is the one that was below it then. It is closed
    with its last reference, as threads may be reading when another one gives up.
    """

    #: Of a file up to this size all is read with its end: a call takes no longer for so few bytes.
    small_nbytes = 64 << 10

    def __init__(
        self, path: str, root: str | None, refuse: Callable[[str], None], version: Hashable = None
    ) -> None:
        self.path = path
        self._descriptor = -1
        self._content = b""
        try:
            self._descriptor = os.open(path, _FLAGS | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                raise
            # A link may lead to another place in the store: that is asked before it is followed.
            refuse(path)
            self._descriptor = os.open(path, _FLAGS)
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            # A pipe would never answer, and a device never end.
            raise UnsupportedFormatError(f"{path} is not an ordinary file")
        self.nbytes = found.st_size
        self.version: Hashable = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if root is not None and self.version != version and not _is_below(self._descriptor, root):
            refuse(path)
        self.is_settled = time.time_ns() - found.st_mtime_ns > _CLOCK_STEP_NS

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, start: int, nbytes: int, memory: Memory) -> memoryview:
        """Return a part, in `memory` if it was not read before; shorter where the file ends."""
        if self._content:
            return memoryview(self._content)[start : start + nbytes]
        part, done = memory(nbytes), 0
        # One call returns at most 2 GiB, and a network file system may return less.
        while done < nbytes and (n := os.preadv(self._descriptor, [part[done:]], start + done)):
            done += n
        return part[:done]

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Have the operating system read these parts ahead, all together."""
        if hasattr(os, "posix_fadvise"):
            for start, stop in spans:
                os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)

    def read_end(self, nbytes: int) -> bytes:
        """Return the last bytes, or all where it has no more."""
        if 0 < self.nbytes <= self.small_nbytes and not self._content:
            self._content = bytes(self.read(0, self.nbytes, new_memory))
        nbytes = min(nbytes, self.nbytes)
        return bytes(self.read(self.nbytes - nbytes, nbytes, new_memory))

    def read_whole(self, limit: int) -> bytes:
        """Return all of it; more than `limit` bytes are refused."""
        refuse_larger(self.path, self.nbytes, limit)
        return self.read_end(self.nbytes)


def new_memory(nbytes: int) -> memoryview:
    """Return memory that nobody else uses."""
    return memoryview(bytearray(nbytes))


def _is_below(descriptor: int, root: str) -> bool:
    """Whether an open file is below the folder `root`; False where that cannot be told."""
    # The kernel tells where the file that is open is, whatever became of its path meanwhile.
    with suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return path.startswith(_real_folder(root))
    return False


@lru_cache(maxsize=64)
def _real_folder(root: str) -> str:
    return os.path.join(os.path.realpath(root), "")
