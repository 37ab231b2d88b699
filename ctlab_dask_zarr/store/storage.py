"""Where objects are kept: a small protocol, and file systems and object stores behind it.

A store is a root and keys below it. Every put is whole or not there. On a file system: a temporary
file beside the target, fsync, rename; the root itself is never made by a put, so that a task that
comes late, after the write was committed or removed, fails instead of bringing a folder back to
life. On an object store: one upload.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.store.files import (
    DOCUMENT_NBYTES,
    LOCAL_FILES,
    Files,
    LocalFiles,
    NewFile,
    is_left_by_system,
    walk,
)
from ctlab_dask_zarr.store.objects import (
    OBJECT_SCHEMES,
    ObjectFiles,
    configured_options,
    options_of_call,
    validated_options,
)
from ctlab_dask_zarr.text import shown

__all__ = [
    "LocalStore",
    "ObjectStore",
    "ObjectWriter",
    "Store",
    "files_at",
    "files_to_read",
    "is_temporary",
    "is_url",
    "local_path",
    "storage_options_in_force",
    "storage_path",
    "store_at",
]

Buffer = Any
#: A scheme (RFC 3986), chained ones as fsspec writes them, and one slash or more: a `Path` made of
#: a URL has lost the second.
_URL = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
#: The name of a file that is being written: that of the object, and an id of this attempt.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.partial", re.DOTALL)


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a name is that of a file under construction (of one object alone: `of`)."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and of in (None, match["name"])


def is_url(path: str) -> bool:
    """Whether a path, as `storage_path` returns it, is one of an object store."""
    return "://" in path


def local_path(path: str | os.PathLike[str]) -> str:
    """Return an absolute local path, or raise for a URL of an object store."""
    found = storage_path(path)
    if is_url(found):
        raise UnsupportedFormatError(f"{found} is a URL; here only local paths are supported")
    return found


def storage_path(path: str | os.PathLike[str]) -> str:
    """Return an absolute local path, or the URL of a place in an object store.

    A URL is never taken for the name of a local folder; ``file://`` names one.

    Examples
    --------
    >>> storage_path("s3://bucket/scans/a.zarr/"), storage_path("file:///scans/a.zarr")
    ('s3://bucket/scans/a.zarr', '/scans/a.zarr')
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"path {text!r} is not text")
    match = _URL.match(text)
    if match is not None:
        scheme, rest = match.groups()
        _, is_given, host = rest.split("/")[0].rpartition("@")
        if is_given:
            raise InvalidArgumentError(
                f"the URL {scheme}://...@{host} names a user or a password, which would be seen in "
                "logs and plans: leave them out, and set credentials in the environment "
                "(AWS_ACCESS_KEY_ID, ...)"
            )
        if scheme.lower() == "file":
            return _absolute(unquote("/" + rest.removeprefix("localhost").lstrip("/")))
        if scheme.lower() in OBJECT_SCHEMES:
            _refuse_query(scheme.lower(), rest)
            if shown(text) != text:
                raise InvalidArgumentError(f"{text}: the name of an object has no such characters")
            parts = rest.strip("/").split("/")
            if any(part in ("", ".", "..") for part in parts):
                raise InvalidArgumentError(f"{text}: an object store has no '.', '..' or '//'")
            return f"{scheme.lower()}://{'/'.join(parts)}"
        raise UnsupportedFormatError(
            f"{text} is a URL with the scheme {scheme!r}; there are local paths, file:// and "
            f"{', '.join(f'{name}://' for name in OBJECT_SCHEMES)}"
        )
    if not text:
        raise InvalidArgumentError("the path is empty")
    return _absolute(os.path.expanduser(text))


def _absolute(text: str) -> str:
    """Return an absolute path; ``LINK/..`` is what the system takes it for.

    Links are followed where a ``..`` comes after them, and nowhere else: a link to a dataset keeps
    its name, and so does a folder that is mounted where it is looked for.
    """
    if "\0" in text:
        raise InvalidArgumentError(f"the path {text!r} has a NUL in it, which no name has")
    path = os.path.join(os.getcwd(), text)
    parts = path.split(os.sep)
    if os.pardir in parts:
        n = len(parts) - parts[::-1].index(os.pardir)
        path = os.path.join(os.path.realpath(os.sep.join(parts[:n])), *parts[n:])
    return os.path.normpath(path)


def _refuse_query(scheme: str, rest: str) -> None:
    """Raise where a URL has a query, as a signed one has, of which nothing is shown."""
    place, mark, _ = rest.partition("?")
    if not mark and scheme.startswith("http"):
        place, mark, _ = rest.partition("#")
    if mark:
        raise InvalidArgumentError(
            f"the URL {scheme}://{place} goes on with {mark!r}: a store is many objects, and a "
            "query, or a signature, is for one. Leave it out, and have credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_TOKEN, ...)"
        )


class ObjectWriter(Protocol):
    """An object under construction."""

    def write(self, data: Buffer, /) -> Any:
        """Append `data`."""
        ...


class Store(Protocol):
    """What reading and writing need of a place for objects."""

    def create(self, key: str, *, durable: bool = True) -> AbstractContextManager[ObjectWriter]:
        """Write one object piece by piece; it appears at a clean exit, whole and durable.

        What can be made again need not be `durable`.
        """
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Write one object; it appears whole and durable, or not at all."""
        ...

    def get(self, key: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return an object of at most `limit` bytes, or raise FileNotFoundError."""
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
    files: Files = LOCAL_FILES

    def path(self, key: str) -> str:
        """Return where `key` is kept."""
        return os.path.join(self.root, *key.split("/"))

    @contextmanager
    def create(self, key: str, *, durable: bool = True) -> Iterator[ObjectWriter]:
        """Write one object through a temporary file of this attempt's own.

        What may read an object that is replaced may read the new one, and nobody else.
        """
        path = self.path(key)
        folder, name = os.path.split(path)
        self._refuse_outside(folder)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
        file = self._open_new(temporary, self.files.permissions(path))
        try:
            yield file
            if durable:
                file.sync()
            else:
                file.flush()
            self.files.rename(temporary, path)
        except BaseException:
            file.discard()
            raise
        file.close()

    def put(self, key: str, data: Buffer) -> None:
        """Write one object; it appears whole and durable, or not at all."""
        with self.create(key) as writer:
            writer.write(data)

    def get(self, key: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return an object; one that is larger than `limit` is not read."""
        return self.files.read(self._path_inside(key), limit)

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        """Return a part of an object."""
        return self.files.read_range(self.path(key), start, nbytes)

    def nbytes(self, key: str) -> int:
        """Return the size of an object."""
        return self.files.nbytes(self._path_inside(key))

    def _path_inside(self, key: str) -> str:
        """Return where `key` is, unless a link leads out of the store.

        Every read of an object begins with its size, or takes it whole.
        """
        path = self.path(key)
        self._refuse_outside(path)
        return path

    def _refuse_outside(self, path: str) -> None:
        """Raise where a link leads out of the store, unless it may; and to nothing then."""
        if getattr(self.files, "follows_links", False):
            if os.path.islink(path) and not os.path.exists(path):
                raise MetadataError(f"{path} is a link to {os.readlink(path)}, which is not there")
            return
        if not os.path.join(os.path.realpath(path), "").startswith(
            os.path.join(os.path.realpath(self.root), "")
        ):
            raise MetadataError(
                f"{path} is a link that leads out of the store: it is not followed. Where that is "
                "meant, allow it by follow_links=True (--follow-links), or by the setting "
                "ctlab-zarr.follow-links"
            )

    def remove(self, key: str) -> None:
        """Remove an object that is no longer needed, if it is there and can be removed."""
        with suppress(OSError):
            self.files.remove_file(self.path(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the key of every object below `prefix`; unfinished ones are none."""
        top = self.path(prefix) if prefix else self.root
        for folder, _, names in walk(self.files, top):
            for name in names:
                if not is_temporary(name):
                    path = os.path.relpath(os.path.join(folder, name), self.root)
                    yield path.replace(os.sep, "/")

    def _open_new(self, path: str, permissions: int | None) -> NewFile:
        try:
            return self.files.open_new(path, permissions)
        except FileNotFoundError:
            self._make_folders(os.path.dirname(path))
            return self.files.open_new(path, permissions)

    def stats(self) -> dict[str, tuple[int, float]]:
        """Return size and time of every object, by key; unfinished ones are none."""
        found = {}
        for key in self.list():
            with suppress(FileNotFoundError):
                found[key] = self.files.stat(self.path(key))
        return found

    def _make_folders(self, folder: str) -> None:
        """Make `folder`, but never the root."""
        if self.files.kind(self.root) != "folder":
            raise FileNotFoundError(
                errno.ENOENT, "the staging folder is gone (committed, or removed)", self.root
            )
        relative = os.path.relpath(folder, self.root)
        parts = [] if relative == os.curdir else relative.split(os.sep)
        path = self.root
        for part in parts:
            path = os.path.join(path, part)
            with suppress(FileExistsError):
                self.files.make_folder(path)


_ANY_STORE = ObjectFiles()


@dataclass(frozen=True)
class ObjectStore(LocalStore):
    """A prefix of keys in an object store."""

    files: ObjectFiles = _ANY_STORE

    @contextmanager
    def create(self, key: str, *, durable: bool = True) -> Iterator[ObjectWriter]:
        """Write one object by an upload in parts, which ends with the context."""
        with self.files.upload(self.path(key)) as writer:
            yield writer

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the key of every object below `prefix`."""
        for key in store_at(self.path(prefix), self.files).stats() if prefix else self.stats():
            yield f"{prefix}/{key}" if prefix else key

    def stats(self) -> dict[str, tuple[int, float]]:
        """Return size and time of every object, by key."""
        found = self.files.stats(self.root)
        return {key: facts for key, facts in found.items() if not is_left_by_system(key)}

    def _path_inside(self, key: str) -> str:
        return self.path(key)


def files_at(path: str) -> Files:
    """Return through what a path is reached, with the storage options in force."""
    return ObjectFiles(configured_options()) if is_url(path) else LOCAL_FILES


def files_to_read(path: str, follow_links: bool | None = None) -> Files:
    """Return through what a store is read: `files_at`, with links that may lead out of it or not.

    None is as dask's setting ``ctlab-zarr.follow-links`` says. It travels with the files.
    """
    from ctlab_dask_zarr.settings import setting

    if is_url(path):
        return files_at(path)
    follows = setting("follow-links") if follow_links is None else follow_links
    return LocalFiles(follows_links=True) if follows else LOCAL_FILES


def store_at(root: str, files: Files | None = None) -> LocalStore:
    """Return the store at `root`, of the kind that its files are."""
    files = files_at(root) if files is None else files
    return ObjectStore(root, files) if isinstance(files, ObjectFiles) else LocalStore(root, files)


@contextmanager
def storage_options_in_force(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Have `files_at` use these options of object stores; None leaves those in force."""
    if options is None:
        yield
        return
    before = options_of_call.set(validated_options(options))
    try:
        yield
    finally:
        options_of_call.reset(before)
