"""What a path means: a local folder, or a place in an object store, which has a URL."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError
from ctlab_dask_zarr.text import shown

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https", "memory")
#: A scheme (RFC 3986), chained ones as fsspec writes them, and one slash or more: a `Path` made of
#: a URL has lost the second.
_URL = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


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
    if not text:
        raise InvalidArgumentError("the path is empty")
    match = _URL.match(text)
    if match is None:
        return _absolute(os.path.expanduser(text))
    scheme, rest = match[1].lower(), match[2]
    _, is_given, host = rest.split("/")[0].rpartition("@")
    if is_given:
        raise InvalidArgumentError(
            f"the URL {scheme}://...@{host} names a user or a password, which would be seen in "
            "logs and plans: leave them out, and set credentials in the environment "
            "(AWS_ACCESS_KEY_ID, ...)"
        )
    if scheme == "file":
        return _absolute(unquote("/" + rest.removeprefix("localhost").lstrip("/")))
    if scheme not in OBJECT_SCHEMES:
        raise UnsupportedFormatError(
            f"{text} is a URL with the scheme {match[1]!r}; there are local paths, file:// and "
            f"{', '.join(f'{name}://' for name in OBJECT_SCHEMES)}"
        )
    _refuse_query(scheme, rest)
    if shown(text) != text:
        raise InvalidArgumentError(f"{text}: names of objects cannot have these characters")
    parts = rest.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidArgumentError(f"{text}: an object store has no '.', '..' or '//'")
    return f"{scheme}://{'/'.join(parts)}"


def _refuse_query(scheme: str, rest: str) -> None:
    """Raise for a URL with a query, such as a signed one, without showing the query."""
    place, mark, _ = rest.partition("?")
    if not mark and scheme.startswith("http"):
        place, mark, _ = rest.partition("#")
    if mark:
        raise InvalidArgumentError(
            f"the URL {scheme}://{place} goes on with {mark!r}: a store is many objects, and a "
            "query, or a signature, is for one. Leave it out, and have credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_TOKEN, ...)"
        )


def _absolute(text: str) -> str:
    """Return an absolute path, in which ``LINK/..`` is the folder that the system takes it for."""
    if "\0" in text:
        raise InvalidArgumentError(f"the path {text!r} has a NUL in it, which no name has")
    path = os.path.join(os.getcwd(), text)
    parts = path.split(os.sep)
    if os.pardir in parts:
        # No others, so that a link to a dataset, or a mounted folder, keeps its name.
        n = len(parts) - parts[::-1].index(os.pardir)
        path = os.path.join(os.path.realpath(os.sep.join(parts[:n])), *parts[n:])
    return os.path.normpath(path)
