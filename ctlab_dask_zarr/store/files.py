"""The effects on a file system that a write is made of, and nothing above them.

Everything that changes something on disk goes through one `Files`, so that tests can put one in
its place that dies after any effect, and loses what was not yet made durable.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ctlab_dask_zarr.errors import UnsupportedFormatError

__all__ = [
    *("DOCUMENT_NBYTES", "LOCAL_FILES", "Files", "Kind", "LocalFiles", "NewFile"),
    *("is_left_by_system", "keep_permissions", "refuse_larger", "remove_tree", "walk"),
]

Buffer = Any
Kind = Literal["file", "folder", "link", "other"]
#: More than any document about a dataset has: one that is larger is damaged, or hostile.
DOCUMENT_NBYTES = 64 << 20
#: Compressed chunks are some ten kilobytes: gathered, so that a shard is a few hundred writes.
_BUFFER_NBYTES = 1 << 20
#: What macOS, Windows and NFS leave in folders, which nobody has put there.
_LEFT_BY_SYSTEMS = re.compile(
    r"\.DS_Store|\._.+|\.nfs[0-9A-Fa-f]+|(?i:thumbs\.db|ehthumbs\.db|desktop\.ini)"
)
#: Copies of a folder that a file server shows in it, and that nobody can remove.
_SNAPSHOTS = ".snapshot"

#: What a file system answers that has no such operation, as some network and shared folders.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
#: File systems of which this process has told that they cannot sync, by number.
_told_not_to_sync: set[int] = set()


class NewFile(Protocol):
    """A file under construction."""

    def write(self, data: Buffer, /) -> Any:
        """Append `data`."""
        ...

    def flush(self) -> None:
        """Have everything in the file, as any process sees it."""
        ...

    def sync(self) -> None:
        """Make the content durable; the name is not, before its folder is synced."""
        ...

    def close(self) -> None:
        """End the writing."""
        ...

    def discard(self) -> None:
        """End the writing and remove the file, wherever its folder was moved meanwhile."""
        ...


class Files(Protocol):
    """Effects and questions; each raises OSError as the operating system does."""

    def kind(self, path: str) -> Kind | None:
        """Return what is at a path, links not followed; None for nothing."""
        ...

    def entries(self, folder: str) -> list[tuple[str, Kind]]:
        """Return name and kind of all that a folder holds."""
        ...

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return the content of a file; one that is larger than `limit` is not read."""
        ...

    def read_range(self, path: str, start: int, nbytes: int) -> bytes:
        """Return a part of a file."""
        ...

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of a file, and when it was last changed, in seconds since the epoch."""
        ...

    def make_folder(self, path: str) -> None:
        """Make one folder, in a folder that is there."""
        ...

    def permissions(self, path: str) -> int | None:
        """Return who may do what with a file or a folder, as bits; None where there is none."""
        ...

    def set_permissions(self, path: str, permissions: int) -> None:
        """Say who may do what with a file or a folder."""
        ...

    def open_new(self, path: str, permissions: int | None = None) -> NewFile:
        """Make a file that is not there yet; without `permissions` as the process makes files."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing another, or a folder, replacing an empty one."""
        ...

    def remove_file(self, path: str) -> None:
        """Remove a file or a link."""
        ...

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        ...

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable (a file's own sync does not promise its name)."""
        ...


class _LocalFile:
    """A new file that knows its folder, so that it finds itself after the folder was moved."""

    def __init__(self, path: str, permissions: int | None) -> None:
        self._path = path
        folder, self._name = os.path.split(path)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        mode = 0o666 if permissions is None else 0o600
        try:
            descriptor = os.open(self._name, flags, mode, dir_fd=self._folder)
        except BaseException:
            os.close(self._folder)
            raise
        if permissions is not None:
            # Where a file system has none of these, it is the owner's alone.
            with suppress(OSError):
                os.fchmod(descriptor, permissions)
        self._file = open(descriptor, "wb", buffering=_BUFFER_NBYTES)  # noqa: SIM115

    def write(self, data: Buffer) -> None:
        with _Named(self._path):
            self._file.write(data)

    def flush(self) -> None:
        with _Named(self._path):
            self._file.flush()

    def sync(self) -> None:
        self.flush()
        _sync(self._file.fileno(), self._path)

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            os.close(self._folder)

    def discard(self) -> None:
        # What could not be written is not to be written now; the first error is the one to tell.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder)
        os.close(self._folder)


class _Named:
    """Adds the path to the errors of a descriptor, which does not know its own."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, self._path) from error


@dataclass(frozen=True)
class LocalFiles:
    """The operating system's own file systems, local or parallel.

    Attributes
    ----------
    follows_links
        Whether links that lead out of a store are followed.
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
        """Return name and kind of all that a folder holds."""
        with os.scandir(folder) as found:
            return [(entry.name, _entry_kind(entry)) for entry in found]

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return the content of a file; one that is larger than `limit` is not read."""
        with open(_open_file(path), "rb") as file:
            refuse_larger(path, os.fstat(file.fileno()).st_size, limit)
            return file.read()

    def read_range(self, path: str, start: int, nbytes: int) -> bytes:
        """Return a part of a file."""
        descriptor = _open_file(path)
        try:
            parts = []
            # No call gives more than 2 GiB, and a network file system less when it likes.
            while nbytes and (part := os.pread(descriptor, nbytes, start)):
                parts.append(part)
                start, nbytes = start + len(part), nbytes - len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of a file, and when it was last changed, in seconds since the epoch."""
        found = os.stat(path)
        return found.st_size, found.st_mtime

    def make_folder(self, path: str) -> None:
        """Make one folder, in a folder that is there."""
        os.mkdir(path)

    def permissions(self, path: str) -> int | None:
        """Return who may do what with a file or a folder, as bits; None where there is none."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISLNK(mode) else mode & (0o777 | stat.S_ISGID)

    def set_permissions(self, path: str, permissions: int) -> None:
        """Say who may do what with a file or a folder."""
        with suppress(OSError):
            os.chmod(path, os.lstat(path).st_mode & 0o7000 | permissions)

    def open_new(self, path: str, permissions: int | None = None) -> NewFile:
        """Make a file that is not there yet; without `permissions` as the process makes files."""
        return _LocalFile(path, permissions)

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


def refuse_larger(path: str, nbytes: int, limit: int) -> None:
    """Raise `UnsupportedFormatError` for an object of `nbytes` bytes that may have `limit`."""
    if nbytes > limit:
        raise UnsupportedFormatError(
            f"{path} has {nbytes:,} bytes, and may have {limit:,}: it is damaged, or made to fill "
            "the memory, and is not read"
        )


def _sync(descriptor: int, path: str) -> None:
    """Make what a descriptor names durable, as far as its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise OSError(error.errno, error.strerror, path) from error
        device = os.fstat(descriptor).st_dev
        if device not in _told_not_to_sync:
            _told_not_to_sync.add(device)
            warnings.warn(
                f"the file system of {path} cannot sync what is written ({error.strerror}): a "
                "power failure may lose what was said to be written",
                stacklevel=2,
            )


def _open_file(path: str) -> int:
    """Open what has to be an ordinary file: a pipe would never answer, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsupportedFormatError(f"{path} is no ordinary file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _entry_kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def is_left_by_system(path: str) -> bool:
    """Whether an operating system, and nobody else, has left a file, by its path or key.

    Examples
    --------
    >>> [is_left_by_system(name) for name in ("0/.DS_Store", "._zarr.json", "zarr.json")]
    [True, True, False]
    """
    *folders, name = path.replace(os.sep, "/").split("/")
    return _SNAPSHOTS in folders or _LEFT_BY_SYSTEMS.fullmatch(name) is not None


def walk(
    files: Files, root: str, *, everything: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, folders in it, everything else in it), each folder before those it holds.

    Links are not followed. A folder that vanishes meanwhile holds nothing. What operating systems
    leave is no part of a store: it is yielded where `everything` is asked for. Who takes a folder
    out of the list is not led into it.
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
    """Let a store be read by those who may read another one, by its folder and its document."""
    document = "zarr.json"
    wanted = files.permissions(like), files.permissions(os.path.join(like, document))
    found = files.permissions(root), files.permissions(os.path.join(root, document))
    if None in wanted or wanted == found:
        return
    of_folders, of_files = wanted
    for folder, _, names in walk(files, root):
        # Their owner has to go on in them.
        files.set_permissions(folder, (of_folders or 0) | 0o700)
        for name in names:
            files.set_permissions(os.path.join(folder, name), of_files or 0)


def remove_tree(files: Files, root: str) -> None:
    """Remove a folder and all that it holds; what cannot be removed stays, and so does a link.

    Tried twice: a network file system may take a folder for stale once.
    """
    if files.kind(root) != "folder":
        return
    for _ in range(2):
        with suppress(OSError):
            visited = list(walk(files, root, everything=True))
            for folder, _folders, names in reversed(visited):
                for name in names:
                    with suppress(OSError):
                        files.remove_file(os.path.join(folder, name))
                with suppress(OSError):
                    files.remove_folder(folder)
            if files.kind(root) is None:
                return
