"""Where objects are kept: a small protocol, and the file system behind it.

A store is a root and keys below it. Every put is whole or not there: a temporary file beside the
target, fsync, rename. The root itself is never made by a put, so that a task that comes late,
after the write was committed or removed, fails instead of bringing a folder back to life.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError

__all__ = ["TEMPORARY_SUFFIX", "LocalStore", "ObjectWriter", "Store", "local_path"]

Buffer = Any
#: A scheme (RFC 3986), chained ones as fsspec writes them, and one slash or more: a `Path` made of
#: a URL has lost the second.
_URL = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
#: Ends the name of a file that is being written.
TEMPORARY_SUFFIX = ".partial"


def local_path(path: str | os.PathLike[str]) -> str:
    """Return an absolute local path, or raise for a URL.

    A URL is never taken for the name of a local folder; ``file://`` names one.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"path {text!r} is not text")
    match = _URL.match(text)
    if match is not None:
        scheme, rest = match.groups()
        if scheme.lower() == "file":
            return os.path.abspath(unquote("/" + rest.removeprefix("localhost").lstrip("/")))
        raise UnsupportedFormatError(
            f"{text} is a URL with the scheme {scheme!r}; only local paths and file:// are "
            "supported so far"
        )
    if not text:
        raise InvalidArgumentError("the path is empty")
    return os.path.abspath(os.path.expanduser(text))


class ObjectWriter(Protocol):
    """An object under construction."""

    def write(self, data: Buffer, /) -> Any:
        """Append `data`."""
        ...


class Store(Protocol):
    """What reading and writing need of a place for objects."""

    def create(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Write one object piece by piece; it appears, whole and durable, at a clean exit."""
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Write one object; it appears whole and durable, or not at all."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object, or raise FileNotFoundError."""
        ...

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        """Return a part of an object, or raise FileNotFoundError."""
        ...

    def nbytes(self, key: str) -> int:
        """Return the size of an object, or raise FileNotFoundError."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """A folder of a local or parallel file system."""

    root: str

    def path(self, key: str) -> str:
        """Return where `key` is kept."""
        return os.path.join(self.root, *key.split("/"))

    @contextmanager
    def create(self, key: str) -> Iterator[ObjectWriter]:
        """Write one object through a temporary file of this attempt's own."""
        path = self.path(key)
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        file = self._open_new(temporary)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # The first error is the one to tell; the name marks what could not be removed.
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def put(self, key: str, data: Buffer) -> None:
        """Write one object; it appears whole and durable, or not at all."""
        with self.create(key) as writer:
            writer.write(data)

    def get(self, key: str) -> bytes:
        """Return an object."""
        with open(self.path(key), "rb") as file:
            return file.read()

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        """Return a part of an object."""
        with open(self.path(key), "rb", buffering=0) as file:
            return os.pread(file.fileno(), nbytes, start)

    def nbytes(self, key: str) -> int:
        """Return the size of an object."""
        return os.stat(self.path(key)).st_size

    def _open_new(self, path: str) -> Any:
        try:
            return open(path, "xb", buffering=1 << 20)
        except FileNotFoundError:
            self._make_folders(os.path.dirname(path))
            return open(path, "xb", buffering=1 << 20)

    def _make_folders(self, folder: str) -> None:
        """Make `folder`, but never the root."""
        if not os.path.isdir(self.root):
            raise FileNotFoundError(
                errno.ENOENT, "the staging folder is gone (committed, or removed)", self.root
            )
        relative = os.path.relpath(folder, self.root)
        parts = [] if relative == os.curdir else relative.split(os.sep)
        path = self.root
        for part in parts:
            path = os.path.join(path, part)
            try:
                os.mkdir(path)
            except FileExistsError:
                continue
