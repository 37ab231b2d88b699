"""Documents that several programs may change at once: for the others, each change is one step.

A file system has no request that replaces a file only if it is still the same. Everywhere, network
and parallel file systems included, a folder can be renamed onto an empty one or none, and a file
can be renamed once. So a change is first announced, complete, in a folder whose name says which
state of the document it changes::

    .zarr.json.<hash of zarr.json>.partial/.zarr.json.<unique>.partial     what it will be

Of all who would change that state, one makes this folder. Whoever comes first then renames its file
onto the document: its maker or, where that one has died or is slow, the next who wants to change
the document. There is no lock that could be left behind, and nothing to wait for. A change that was
announced is made; one that was not has no effect.

In an object store it is one conditional request.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError, WriteFailedError
from ctlab_dask_zarr.formats.json_values import parse_json_object
from ctlab_dask_zarr.store.files import Files, remove_tree
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.paths import is_url
from ctlab_dask_zarr.store.store import Store, is_temporary
from ctlab_dask_zarr.text import shown

_DOCUMENT = "zarr.json"
#: Where zarr keeps copies of the documents below a group, which readers believe.
CONSOLIDATED = "consolidated_metadata"
#: A try fails when somebody else has made a change: this many seconds of tries are enough.
_LONGEST_WAIT_S = 60.0
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.5
#: Somebody else has announced a change, or taken this folder for the rest of a dead process.
_NOT_ANNOUNCED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
_REPAIR = ". Repair it, then try again"


def change_document(
    store: Store, change: Callable[[dict[str, Any] | None], dict[str, Any] | None]
) -> None:
    """Change the ``zarr.json`` of a store in one step, whoever else changes it at the same time.

    `change` is given the document, None where there is none, and returns the new one, None to leave
    it. It is asked again where another program was faster.
    """

    def step() -> bool:
        text = _read(store)
        path = store.path(_DOCUMENT)
        content = None if text is None else parse_json_object(text, path, _REPAIR)
        changed = change(content)
        if changed is None or changed == content:
            return True
        # zarr-python writes and reads NaN: what others have written so is kept.
        return swap_document(store, _hash(text), json.dumps(changed, indent=2).encode())

    until_done(store, step)


def until_done(store: Store, step: Callable[[], bool]) -> None:
    """Take a step that changes the ``zarr.json`` of a store until it returns True, for a minute."""
    pause, until = _FIRST_PAUSE_S, time.monotonic() + _LONGEST_WAIT_S
    while not step():
        if time.monotonic() > until:
            path = store.path(_DOCUMENT)
            names = [name for name, _ in store.files.entries(store.root)]
            held = [name for name in names if is_temporary(name, _DOCUMENT)]
            by = f", or {store.path(held[0])} holds it (remove it, if nobody is at work)"
            raise WriteFailedError(
                f"{path} could not be changed for {_LONGEST_WAIT_S:.0f} s: others change it all "
                f"the time{by if held else ''}. Try again"
            )
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def discard_announced(store: Store) -> None:
    """Remove changes of a document that were announced and not made, if nobody is at work."""
    for name, kind in store.files.entries(store.root):
        if is_temporary(name, _DOCUMENT):
            path = store.path(name)
            remove_tree(store.files, path) if kind == "folder" else store.files.remove_file(path)


def swap_document(store: Store, before: str | None, new: bytes) -> bool:
    """Replace the ``zarr.json`` of a store if its SHA-256 is still `before`; return whether it was.

    `before` is None for no document. Nothing is lost where this process dies: the document is the
    old one or the new one, at the latest when somebody changes it next. Copies of it in the groups
    above are dropped.
    """
    for folder in _above(store.root):
        drop_consolidated(store.files, folder)
    files, path = store.files, store.path(_DOCUMENT)
    if isinstance(files, ObjectFiles):
        try:
            if before is not None:
                return files.replace(path, lambda found: _hash(found) == before, new)
            files.create(path, new)
        except (FileExistsError, FileNotFoundError):
            return False
        return True
    claim = store.path(_temporary(before or hashlib.sha256().hexdigest()))
    own = os.path.join(claim, _temporary(uuid.uuid4().hex))
    if not _announce(store, claim, own, new):
        _finish_others(store, claim, before)
        return False
    try:
        if _hash(_read(store)) == before:
            files.rename(own, path)
            files.sync_folder(store.root)
            return True
        # The document changed before this was announced: nobody takes it up any more.
        files.remove_file(own)
        return False
    except FileNotFoundError:
        # Somebody else has made the change for us, or removed it, unless the whole store is gone.
        files.stat(path)
        files.sync_folder(store.root)
        return _hash(_read(store)) != before
    finally:
        with suppress(OSError):
            files.remove_file(own)
        with suppress(OSError):
            files.remove_folder(claim)


def _announce(store: Store, claim: str, own: str, new: bytes) -> bool:
    """Make the folder of the claim with the new document in it; return False if there is one."""
    files = store.files
    prepared = store.path(_temporary(uuid.uuid4().hex))
    files.make_folder(prepared)
    try:
        permissions = files.permissions(store.path(_DOCUMENT))
        file = files.open_new(os.path.join(prepared, os.path.basename(own)), permissions)
        try:
            file.write(new)
            file.sync()
        except BaseException:
            file.discard()
            raise
        file.close()
        files.rename(prepared, claim)
    except BaseException as error:
        remove_tree(files, prepared)
        if isinstance(error, OSError) and error.errno in _NOT_ANNOUNCED:
            return False
        raise
    return True


def _finish_others(store: Store, claim: str, before: str | None) -> None:
    """Make the change that another process has announced, which may have died."""
    files = store.files
    # Only its maker can make the change where its folder belongs to another user.
    with suppress(FileNotFoundError, PermissionError):
        # The names are read before the document: while the announced file is there, nothing but its
        # own rename changes the document.
        names = [name for name, _ in files.entries(claim) if is_temporary(name, _DOCUMENT)]
        if _hash(_read(store)) == before:
            for name in names:
                files.rename(os.path.join(claim, name), store.path(_DOCUMENT))
            files.sync_folder(store.root)
    with suppress(OSError):
        files.remove_folder(claim)


def _temporary(unique: str) -> str:
    return f".{_DOCUMENT}.{unique[:32]}.partial"


def _read(store: Store) -> bytes | None:
    try:
        return store.get(_DOCUMENT)
    except FileNotFoundError:
        return None


def _hash(text: bytes | None) -> str | None:
    return None if text is None else hashlib.sha256(text).hexdigest()


def drop_consolidated(files: Files, folder: str) -> None:
    """Drop the copies of documents below them that a group, and those above it, keep.

    This is done before something below changes: without copies, readers look at the documents
    themselves. Warns of copies that cannot be dropped.
    """
    if not (is_url(folder) or os.path.isabs(folder)):
        return
    store = Store(folder, files)
    try:
        text = _read(store)
        if text is None:
            return
        if CONSOLIDATED.encode() in text:
            change_document(store, _without_copies)
    except (MetadataError, UnsupportedFormatError):
        return
    except OSError as error:
        warnings.warn(
            f"{shown(store.path(_DOCUMENT))} may hold copies of documents that are changed now "
            f"({CONSOLIDATED}) and cannot be changed itself ({error}): readers that believe them "
            "see what was there before. Consolidate it anew",
            UserWarning,
            stacklevel=2,
        )
        return
    for above in _above(folder):
        drop_consolidated(files, above)


def _above(path: str) -> set[str]:
    """Return the folder that something lies in, and for a link also that of what it leads to."""
    places = {path} if is_url(path) else {path, os.path.realpath(path)}
    return {os.path.dirname(place) for place in places} - {path}


def _without_copies(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return document and {key: value for key, value in document.items() if key != CONSOLIDATED}
