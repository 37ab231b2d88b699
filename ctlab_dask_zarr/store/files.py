"""The effects on a file system that a write is made of, and nothing above them.

Everything that changes something on disk goes through one `Files`. Tests put another in its place,
which dies before any effect and loses what was not yet made durable.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ctlab_dask_zarr.store.folders import FOLDER_FLAGS, Folder, forget_folders
from ctlab_dask_zarr.store.opened import LocalObject, OpenedObject

Kind = Literal["file", "folder", "link", "other"]
#: More than any document about a dataset has: one that is larger is damaged, or hostile.
DOCUMENT_NBYTES = 64 << 20
#: Compressed chunks have some ten kilobytes. Gathered, a shard takes a few hundred writes.
_BUFFER_NBYTES = 1 << 20
#: What macOS, Windows and NFS leave in folders.
_LEFT_BY_SYSTEMS = re.compile(
    r"\.DS_Store|\._.+|\.nfs[0-9A-Fa-f]+|(?i:thumbs\.db|ehthumbs\.db|desktop\.ini)"
)
#: Copies of a folder that a file server shows in it, and that nobody can remove.
_SNAPSHOTS = ".snapshot"
#: Errors of file systems that lack an operation, such as some network and shared folders.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
#: Numbers of the file systems that this process has warned of, because they cannot sync.
devices_without_sync: set[int] = set()


class Files(Protocol):
    """Effects and questions; each raises OSError as the operating system does."""

    def kind(self, path: str) -> Kind | None:
        """Return what is at a path, links not followed; None for nothing."""

    def entries(self, folder: str) -> list[tuple[str, Kind]]:
        """Return name and kind of everything in a folder."""

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return the content of a file; one that is larger than `limit` is refused."""

    def open_object(
        self, path: str, root: str, refuse: Callable[[str], None], version: Hashable = None
    ) -> OpenedObject:
        """Open an object to read it.

        `refuse` raises where a link leads out of `root`. `version` is that of an object which was
        read before, for stores that would have to be asked.
        """

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of a file, and when it was last changed, in seconds since the epoch."""

    def make_folder(self, path: str) -> None:
        """Make one folder, in a folder that is there."""

    def permissions(self, path: str) -> int | None:
        """Return the permission bits of a file or a folder; None where there is none."""

    def set_permissions(self, path: str, permissions: int) -> None:
        """Set the permission bits of a file or a folder, where its file system has them."""

    def open_new(
        self, path: str, permissions: int | None = None, folder: Folder | None = None
    ) -> NewFile:
        """Make a file that is not there yet; without `permissions` as the process makes files.

        `folder` is the one that it is in, if that is open already.
        """

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing another, or a folder, replacing an empty one."""

    def remove_file(self, path: str) -> None:
        """Remove a file or a link."""

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable, or the content of a file (not its name)."""


@dataclass(frozen=True)
class LocalFiles:
    """The operating system's own file systems, local or parallel.

    `follows_links` tells whether links that lead out of a store are followed.
    """

    follows_links: bool = False

    def kind(self, path: str) -> Kind | None:
        """Return what is at a path, links not followed; None for nothing."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            return "link"
        if stat.S_ISDIR(mode):
            return "folder"
        return "file" if stat.S_ISREG(mode) else "other"

    def entries(self, folder: str) -> list[tuple[str, Kind]]:
        """Return name and kind of everything in a folder."""
        with os.scandir(folder) as found:
            return [(entry.name, _entry_kind(entry)) for entry in found]

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return the content of a file; one that is larger than `limit` is refused."""
        return LocalObject(path, None, lambda _: None).read_whole(limit)

    def open_object(
        self, path: str, root: str, refuse: Callable[[str], None], version: Hashable = None
    ) -> OpenedObject:
        """Open a file to read it; without `follows_links` it lies in `root`, wherever links are."""
        return LocalObject(path, None if self.follows_links else root, refuse, version)

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of a file, and when it was last changed, in seconds since the epoch."""
        found = os.stat(path)
        return found.st_size, found.st_mtime

    def make_folder(self, path: str) -> None:
        """Make one folder, in a folder that is there."""
        os.mkdir(path)

    def permissions(self, path: str) -> int | None:
        """Return the permission bits of a file or a folder; None where there is none."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISLNK(mode) else mode & (0o777 | stat.S_ISGID)

    def set_permissions(self, path: str, permissions: int) -> None:
        """Set the permission bits of a file or a folder, where its file system has them."""
        with suppress(OSError):
            os.chmod(path, os.lstat(path).st_mode & 0o7000 | permissions)

    def open_new(
        self, path: str, permissions: int | None = None, folder: Folder | None = None
    ) -> NewFile:
        """Make a file that is not there yet; without `permissions` as the process makes files."""
        if folder is None:
            folder = Folder(os.open(os.path.dirname(path), FOLDER_FLAGS))
        return NewFile(path, permissions, folder)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing another, or a folder, replacing an empty one."""
        os.rename(source, target)

    def remove_file(self, path: str) -> None:
        """Remove a file or a link."""
        os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _sync(descriptor, path)
        finally:
            os.close(descriptor)


#: The one that everything uses but tests.
LOCAL_FILES: Files = LocalFiles()


class NewFile:
    """A new file that keeps its folder open, so that it is found after the folder was moved."""

    # Python's own files ask for the size and the place of a file before they write to it.

    def __init__(self, path: str, permissions: int | None, folder: Folder) -> None:
        self._path, self._name = path, os.path.basename(path)
        self._folder = folder
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = 0o666 if permissions is None else 0o600
        try:
            self._descriptor = os.open(self._name, flags, mode, dir_fd=folder.descriptor)
        except OSError as error:
            raise _with_path(error, path) from error
        if permissions is not None:
            # A file system without permissions leaves the file to its owner alone.
            with suppress(OSError):
                os.fchmod(self._descriptor, permissions)
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._n_buffered = 0

    def write(self, data: Any) -> None:
        """Append data."""
        part = memoryview(data)
        if not part.nbytes:
            return
        part = part.cast("B")
        if self._n_buffered + part.nbytes > _BUFFER_NBYTES:
            self.flush()
        if part.nbytes > _BUFFER_NBYTES:
            self._write_out(part)
            return
        self._buffer[self._n_buffered : self._n_buffered + part.nbytes] = part
        self._n_buffered += part.nbytes

    def flush(self) -> None:
        """Write what was gathered."""
        self._write_out(self._buffer[: self._n_buffered])
        self._n_buffered = 0

    def _write_out(self, part: memoryview) -> None:
        try:
            # A file system may take less than it is given.
            while part:
                part = part[os.write(self._descriptor, part) :]
        except OSError as error:
            raise _with_path(error, self._path) from error

    def sync(self) -> None:
        """Make the content durable, but not the name."""
        self.flush()
        _sync(self._descriptor, self._path)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def discard(self) -> None:
        """Close and remove it."""
        with suppress(OSError):
            os.close(self._descriptor)
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder.descriptor)


def _with_path(error: OSError, path: str) -> OSError:
    """Return the error of a descriptor with the path, which a descriptor does not know."""
    return OSError(error.errno, error.strerror, path)


def _sync(descriptor: int, path: str) -> None:
    """Make what a descriptor names durable, as far as its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise _with_path(error, path) from error
        device = os.fstat(descriptor).st_dev
        if device not in devices_without_sync:
            devices_without_sync.add(device)
            warnings.warn(
                f"the file system of {path} cannot sync what is written ({error.strerror}): a "
                "power failure may lose what was said to be written",
                stacklevel=2,
            )


def _entry_kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def is_left_by_system(path: str) -> bool:
    """Whether a file, by its path or key, was left by an operating system and not by a person."""
    *folders, name = path.replace(os.sep, "/").split("/")
    return _SNAPSHOTS in folders or _LEFT_BY_SYSTEMS.fullmatch(name) is not None


def walk(
    files: Files, root: str, *, everything: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, folders in it, everything else in it), each folder before those it holds.

    Links are not followed, and a folder that vanishes meanwhile is left out. The caller may take
    folders out of the list, to leave them out. Without `everything`, what operating systems leave
    is left out too.
    """
    todo = [root]
    while todo:
        folder = todo.pop()
        try:
            entries = files.entries(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        folders = [name for name, kind in entries if kind == "folder"]
        names = [name for name, kind in entries if kind != "folder"]
        if not everything:
            folders = [name for name in folders if name != _SNAPSHOTS]
            names = [name for name in names if not is_left_by_system(name)]
        yield folder, folders, names
        todo += [os.path.join(folder, name) for name in folders]


def keep_permissions(files: Files, root: str, like: str) -> None:
    """Give a store the permissions of another one, of its folder and of its document."""
    document = "zarr.json"
    wanted = files.permissions(like), files.permissions(os.path.join(like, document))
    found = files.permissions(root), files.permissions(os.path.join(root, document))
    if None in wanted or wanted == found:
        return
    of_folders, of_files = wanted
    for folder, _, names in walk(files, root):
        # The owner still has work to do in them.
        files.set_permissions(folder, (of_folders or 0) | 0o700)
        for name in names:
            files.set_permissions(os.path.join(folder, name), of_files or 0)


def remove_tree(files: Files, root: str) -> None:
    """Remove a folder and all that it holds; a link, and what cannot be removed, stays."""
    if files.kind(root) != "folder":
        return
    forget_folders()
    # A network file system may fail once with a stale handle.
    for _ in range(2):
        with suppress(OSError):
            for folder, _folders, names in reversed(list(walk(files, root, everything=True))):
                for name in names:
                    with suppress(OSError):
                        files.remove_file(os.path.join(folder, name))
                with suppress(OSError):
                    files.remove_folder(folder)
            if files.kind(root) is None:
                return
