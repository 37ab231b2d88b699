"""Object stores (S3, Google Cloud, Azure, plain HTTP) as a place for files, through obstore.

A path is a URL. Folders are prefixes of keys: they are there when something is in them, and need
no making. There is no rename, so that an object appears under its final key, by one request, when
all of it has been uploaded.

Credentials come from where each vendor's own tools find them: the environment, its files, the
machine's role. They are never options here, so that none is in a graph, a plan or a log.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from ctlab_dask_zarr.errors import InvalidArgumentError, MissingExtraError, StorageError
from ctlab_dask_zarr.runtime.files import Kind

__all__ = ["OBJECT_SCHEMES", "ObjectFiles", "configured_options", "validated_options"]

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https", "memory")
#: Parts of an upload, and how many are under way at once: what a shard holds in memory.
_PART_NBYTES = 8 << 20
_N_PARTS_AT_ONCE = 2
#: A request that fails is tried again for this long: a server that restarts is waited for.
_RETRY_TIMEOUT = timedelta(seconds=120)
_MAX_RETRIES = 8
_REQUEST_TIMEOUT = timedelta(seconds=60)
_CONNECT_TIMEOUT = timedelta(seconds=10)
#: What may not be given as an option, by parts of the name.
_SECRET = ("secret", "token", "password", "access_key", "account_key", "sas", "credential")
#: Where the environment says that a server of one's own is, for each scheme.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
#: Options of the HTTP client, and not of a store.
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "user_agent")


def validated_options(options: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Return options of a store in a form that can be compared and sent to workers.

    Raises
    ------
    InvalidArgumentError
        One of them is a credential.

    Examples
    --------
    >>> validated_options({"region": "ap-southeast-2", "allow_http": True})
    (('allow_http', 'true'), ('region', 'ap-southeast-2'))
    """
    found = {}
    for name, value in (options or {}).items():
        key = str(name).lower().removeprefix("aws_").removeprefix("google_").removeprefix("azure_")
        if any(part in key for part in _SECRET):
            raise InvalidArgumentError(
                f"storage option {name!r}: credentials are not taken as options, where they would "
                "be seen in logs and graphs; set them in the environment (AWS_ACCESS_KEY_ID, ...) "
                "or in the files of your vendor's tools"
            )
        found[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return tuple(sorted(found.items()))


def configured_options() -> tuple[tuple[str, str], ...]:
    """Return the storage options in force: dask's setting ``ctlab-zarr.storage-options``."""
    from ctlab_dask_zarr.runtime.settings import setting

    return validated_options(setting("storage-options"))


@lru_cache(maxsize=64)
def _open(root: str, options: tuple[tuple[str, str], ...]) -> Any:
    """Return the store of a bucket, one for all threads of this process."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise MissingExtraError(
            f"{root} is an object store: pip install 'ctlab-dask-zarr[objects]'"
        ) from error
    if root.startswith("memory:"):
        return MemoryStore()
    client: Any = {"timeout": _REQUEST_TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT}
    config: Any = {}
    for key, value in options:
        (client if key in _CLIENT_OPTIONS else config)[key] = value
    if "allow_http" in client:
        client["allow_http"] = client["allow_http"] == "true"
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS.get(root.split(":")[0], ())]
    if any(url.startswith("http://") for url in (root, config.get("endpoint", ""), *endpoints)):
        client["allow_http"] = True
    if root.startswith("az:") and "AZURE_STORAGE_ACCOUNT_NAME" in os.environ:
        # obstore finds it there too, but a store that was not told of it cannot be printed, which
        # zarr does.
        config.setdefault("account_name", os.environ["AZURE_STORAGE_ACCOUNT_NAME"])
    retry: Any = {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT}
    try:
        return from_url(root, client_options=client, retry_config=retry, **config)
    except (BaseError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{root}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Raise what obstore raises as the error that the operating system would."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (FileNotFoundError, BaseError) as error:
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise StorageError(errno.ENXIO, "there is no such bucket or container", path) from None
        raise _as_os_error(error, path) from None


def _as_os_error(error: Exception, path: str) -> OSError:
    from obstore.exceptions import (
        AlreadyExistsError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, _first_line(error), path)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return FileExistsError(errno.EEXIST, "there is such an object already", path)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        text = f"the store refuses access ({_first_line(error)}): look at the credentials in the "
        return StorageError(errno.EACCES, f"{text}environment", path)
    return StorageError(errno.EIO, _first_line(error), path)


@dataclass(frozen=True)
class ObjectFiles:
    """The effects and questions of `runtime.files.Files`, on keys.

    Attributes
    ----------
    options
        Of the store: region, endpoint and the like, by obstore's names; see `validated_options`.
    """

    options: tuple[tuple[str, str], ...] = ()

    def _at(self, path: str) -> tuple[Any, str]:
        """Return the store of a URL and the key in it."""
        parts = urlsplit(path)
        # The path as it stands: keys may hold what a browser would quote.
        prefix = f"{parts.scheme}://{parts.netloc}"
        key = path[len(prefix) :].strip("/")
        return _open(prefix, self.options), key

    def zarr_location(self, path: str) -> tuple[Any, str]:
        """Return the store of a URL for zarr, read-only, and the path in it."""
        from zarr.storage import ObjectStore

        store, key = self._at(path)
        return ObjectStore(store, read_only=True), key

    def kind(self, path: str) -> Kind | None:
        """Return what is at a URL; None for nothing."""
        import obstore

        store, key = self._at(path)
        if not key:
            return "folder"
        with _as_os_errors(path):
            try:
                obstore.head(store, key)
                return "file"
            except FileNotFoundError:
                if path.startswith("http"):
                    # Plain HTTP cannot list.
                    return None
            found = next(iter(obstore.list(store, f"{key}/", chunk_size=1)), None)
        return "folder" if found else None

    def entries(self, folder: str) -> list[tuple[str, Kind]]:
        """Return name and kind of all that a prefix holds."""
        import obstore

        store, key = self._at(folder)
        with _as_os_errors(folder):
            found = obstore.list_with_delimiter(store, key or None)
        folders: list[tuple[str, Kind]] = [
            (str(name).rstrip("/").rsplit("/", 1)[-1], "folder")
            for name in found["common_prefixes"]
        ]
        files: list[tuple[str, Kind]] = [
            (str(entry["path"]).rsplit("/", 1)[-1], "file") for entry in found["objects"]
        ]
        return folders + files

    def stats(self, folder: str) -> dict[str, tuple[int, float]]:
        """Return size and time of every object below a prefix, by key relative to it."""
        import obstore

        store, key = self._at(folder)
        with _as_os_errors(folder):
            return {
                str(entry["path"])[len(key) :].lstrip("/"): (
                    int(entry["size"]),
                    entry["last_modified"].timestamp(),
                )
                for batch in obstore.list(store, f"{key}/" if key else None)
                for entry in batch
            }

    def read(self, path: str) -> bytes:
        """Return an object."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            return bytes(obstore.get(store, key).bytes())

    def read_range(self, path: str, start: int, nbytes: int) -> bytes:
        """Return a part of an object."""
        import obstore

        store, key = self._at(path)
        if nbytes == 0:
            return b""
        with _as_os_errors(path):
            return bytes(obstore.get_range(store, key, start=start, length=nbytes))

    def nbytes(self, path: str) -> int:
        """Return the size of an object."""
        return self.stat(path)[0]

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of an object, and when it was put, in seconds since the epoch."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            found = obstore.head(store, key)
        return int(found["size"]), found["last_modified"].timestamp()

    @contextmanager
    def upload(self, path: str) -> Iterator[Any]:
        """Write one object piece by piece; it appears at a clean exit, and not otherwise."""
        import obstore

        store, key = self._at(path)
        with (
            _as_os_errors(path),
            obstore.open_writer(
                store, key, buffer_size=_PART_NBYTES, max_concurrency=_N_PARTS_AT_ONCE
            ) as writer,
        ):
            yield writer

    def create(self, path: str, data: bytes) -> None:
        """Put an object if there is none of that name, else raise FileExistsError; one wins."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            obstore.put(store, key, data, mode="create")

    def remove_file(self, path: str) -> None:
        """Remove an object."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            obstore.delete(store, key)

    def remove_all(self, folder: str) -> None:
        """Remove every object below a prefix."""
        import obstore

        store, key = self._at(folder)
        with _as_os_errors(folder), suppress(FileNotFoundError):
            for batch in obstore.list(store, f"{key}/"):
                obstore.delete(store, [entry["path"] for entry in batch])

    # What needs no doing where folders are prefixes, and an upload that ended is durable.

    def make_folder(self, path: str) -> None:
        """Do nothing."""

    def remove_folder(self, path: str) -> None:
        """Do nothing."""

    def sync_folder(self, path: str) -> None:
        """Do nothing."""

    def open_new(self, path: str) -> Any:
        """Refuse: objects are made by `upload`."""
        raise NotImplementedError

    def rename(self, source: str, target: str) -> None:
        """Refuse: object stores cannot."""
        raise NotImplementedError
