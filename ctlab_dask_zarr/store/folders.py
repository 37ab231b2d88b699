"""Folders of stores that stay open, so that no path is looked up, or checked for links, twice.

A parallel file system takes up to a millisecond for each part of a path that it is asked for. A
folder that was opened without following a link below the root of its store is inside that store,
whatever happens to its path afterwards, and so is everything that is opened by a name in it.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections import OrderedDict
from threading import Lock

#: So many folders stay open for the tasks of this process; a file limit of 64 leaves room for them.
_N_KEPT = 16
#: Where there is O_PATH, a folder can be opened by whoever may only pass through it.
FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
#: A link in the place of a folder gives the first on Linux and the second on other systems.
_IS_LINK = (errno.ENOTDIR, errno.ELOOP)
_kept: OrderedDict[tuple[str, str], Folder] = OrderedDict()
_lock = Lock()


class Folder:
    """A folder of a store, open for as long as somebody refers to it.

    Names in it are opened by ``dir_fd=folder.descriptor`` with ``O_NOFOLLOW``.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._identity = _identity(os.fstat(descriptor))

    def is_at(self, path: str, *, follows_link: bool) -> bool:
        """Whether this is the folder at a path still; one call to the file system."""
        try:
            return _identity(os.stat(path, follow_symlinks=follows_link)) == self._identity
        except OSError:
            return False


def open_folder(root: str, path: str) -> Folder | None:
    """Open the folder at a path below the root of a store, or the root, which may be a link.

    None means that a link is on the way: its target has to be looked at. Raises
    `FileNotFoundError` where there is nothing.
    """
    names: list[str] = []
    if path != root:
        if not path.startswith(os.path.join(root, "")):
            return None
        names = path[len(root) :].strip(os.sep).split(os.sep)
        if not {"", ".", ".."}.isdisjoint(names):
            return None
    descriptor = os.open(root, FOLDER_FLAGS)
    for name in names:
        above = descriptor
        try:
            descriptor = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above)
        except OSError as error:
            if error.errno in _IS_LINK:
                return None
            raise type(error)(error.errno, error.strerror, path) from error
        finally:
            os.close(above)
    return Folder(descriptor)


def kept_folder(root: str, path: str) -> Folder | None:
    """Do the same for a task; the folder of an earlier task is taken if it is still there."""
    with _lock:
        folder = _kept.get((root, path))
    if folder is None or not folder.is_at(path, follows_link=path == root):
        folder = _opened(root, path)
    with _lock:
        _kept.pop((root, path), None)
        if folder is not None:
            _kept[root, path] = folder
        while len(_kept) > _N_KEPT:
            _kept.popitem(last=False)
    return folder


def _opened(root: str, path: str) -> Folder | None:
    try:
        return open_folder(root, path)
    except OSError as error:
        if error.errno != errno.EMFILE or not _kept:
            raise
        forget_folders()
        return open_folder(root, path)


def forget_folders() -> None:
    """Close the folders that were kept for tasks, unless one of these still uses them."""
    with _lock:
        _kept.clear()


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
