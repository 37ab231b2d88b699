"""A store: a root, and objects below it by their keys, in a folder or in an object store.

Every put is whole or not there. In a folder it is a temporary file beside the target, an fsync and
a rename. A put never makes the root itself: a task that comes late, after its write was committed
or removed, fails instead of bringing a folder back to life. In an object store it is one upload.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.store.connection import (
    configured_options,
    options_of_call,
    validated_options,
)
from ctlab_dask_zarr.store.files import (
    DOCUMENT_NBYTES,
    LOCAL_FILES,
    Files,
    LocalFiles,
    is_left_by_system,
    walk,
)
from ctlab_dask_zarr.store.folders import kept_folder
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.opened import OpenedObject
from ctlab_dask_zarr.store.paths import is_url

#: The name of a file that is being written: that of the object, and an id of this attempt.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.partial", re.DOTALL)


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a name is that of a file under construction (of one object alone: `of`)."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and of in (None, match["name"])


class Writer(Protocol):
    """An object under construction."""

    def write(self, data: Any, /) -> Any:
        """Append `data`."""


@dataclass(frozen=True)
class Store:
    """A folder, or a prefix of keys in an object store, and how it is reached."""

    root: str
    files: Files = LOCAL_FILES

    def path(self, key: str) -> str:
        """Return where the object with a key is kept."""
        return os.path.join(self.root, *key.split("/"))

    @contextmanager
    def create(
        self, key: str, *, durable: bool = True, permissions: int | None = None
    ) -> Iterator[Writer]:
        """Write one object piece by piece; it appears at a clean exit, whole and durable.

        What can be made again need not be `durable`. Without `permissions` it has those with which
        the process makes files.
        """
        path = self.path(key)
        if isinstance(self.files, ObjectFiles):
            with self.files.upload(path) as upload:
                yield upload
            return
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
        try:
            file = self._open_new(temporary, folder, permissions)
        except FileNotFoundError:
            self._make_folders(folder)
            file = self._open_new(temporary, folder, permissions)
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

    def _open_new(self, path: str, folder: str, permissions: int | None) -> Any:
        kept = None
        if isinstance(self.files, LocalFiles) and not self.files.follows_links:
            kept = kept_folder(self.root, folder)
        if kept is None:
            self._refuse_outside(folder)
        return self.files.open_new(path, permissions, kept)

    def put(self, key: str, data: Any) -> None:
        """Write one object; it appears whole and durable, or not at all.

        Whoever may read the object that is replaced may read the new one, and nobody else.
        """
        permissions = self.files.permissions(self.path(key))
        with self.create(key, permissions=permissions) as writer:
            writer.write(data)

    def get(self, key: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return an object of at most `limit` bytes, or raise FileNotFoundError."""
        return self.files.read(self._path_inside(key), limit)

    def open(self, key: str, version: Hashable = None) -> OpenedObject:
        """Open an object to read it, or raise FileNotFoundError, for remote ones when it is read.

        `version` is that of the object that was read before, None for any.
        """
        return self.files.open_object(self.path(key), self.root, self._refuse_outside, version)

    def nbytes(self, key: str) -> int:
        """Return the size of an object, or raise FileNotFoundError."""
        return self.files.stat(self._path_inside(key))[0]

    def may_have(self, key: str) -> bool:
        """Return False where a look at the path, links not followed, finds nothing."""
        return isinstance(self.files, ObjectFiles) or self.files.kind(self.path(key)) is not None

    def remove(self, key: str) -> None:
        """Remove an object, if it is there and can be removed."""
        with suppress(OSError):
            self.files.remove_file(self.path(key))

    def list(self) -> Iterator[str]:
        """Yield the key of every object, without unfinished ones."""
        if isinstance(self.files, ObjectFiles):
            yield from self.stats()
            return
        for folder, _, names in walk(self.files, self.root):
            for name in names:
                if not is_temporary(name):
                    path = os.path.relpath(os.path.join(folder, name), self.root)
                    yield path.replace(os.sep, "/")

    def stats(self) -> dict[str, tuple[int, float]]:
        """Return size and time of every object, by key, without unfinished ones."""
        if isinstance(self.files, ObjectFiles):
            found = self.files.stats(self.root)
            return {key: facts for key, facts in found.items() if not is_left_by_system(key)}
        found = {}
        for key in self.list():
            with suppress(FileNotFoundError):
                found[key] = self.files.stat(self.path(key))
        return found

    def _path_inside(self, key: str) -> str:
        path = self.path(key)
        self._refuse_outside(path)
        return path

    def _refuse_outside(self, path: str) -> None:
        """Raise where a link leads out of the store; if that is allowed, where it leads nowhere."""
        if isinstance(self.files, ObjectFiles):
            return
        if getattr(self.files, "follows_links", False):
            if os.path.islink(path) and not os.path.exists(path):
                raise MetadataError(f"{path} is a link to {os.readlink(path)}, which is not there")
            return
        root = os.path.join(os.path.realpath(self.root), "")
        if not os.path.join(os.path.realpath(path), "").startswith(root):
            raise MetadataError(
                f"{path} is a link that leads out of the store: it is not followed. Where that is "
                "meant, allow it by follow_links=True (--follow-links), or by the setting "
                "ctlab-zarr.follow-links"
            )

    def _make_folders(self, folder: str) -> None:
        """Make `folder` and those above it, but never the root."""
        try:
            if folder != self.root:
                self.files.make_folder(folder)
                return
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_folders(os.path.dirname(folder))
            self._make_folders(folder)
            return
        raise FileNotFoundError(
            errno.ENOENT, "the staging folder is gone (committed, or removed)", self.root
        )


def files_at(path: str) -> Files:
    """Return how a path is reached, with the storage options in force."""
    return ObjectFiles(configured_options()) if is_url(path) else LOCAL_FILES


def files_to_read(path: str, follow_links: bool | None = None) -> Files:
    """Return how a store is read, with or without links that lead out of it.

    None leaves that to dask's setting ``ctlab-zarr.follow-links``.
    """
    from ctlab_dask_zarr.settings import setting

    if is_url(path):
        return files_at(path)
    follows = setting("follow-links") if follow_links is None else follow_links
    return LocalFiles(follows_links=True) if follows else LOCAL_FILES


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
