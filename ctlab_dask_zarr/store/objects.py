"""Object stores (S3, Google Cloud, Azure, plain HTTP) as a place for files, through obstore.

A path is a URL. Folders are prefixes of keys: they are there when something is in them, and need
no making. There is no rename, so that an object appears under its final key, by one request, when
all of it has been uploaded.

Credentials come from the environment, what it names, or the machine's role. They are never options
here, nor in a URL, so that none is in a graph, a plan or a log.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, lru_cache
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from ctlab_dask_zarr.errors import InvalidArgumentError, MissingExtraError, StorageError
from ctlab_dask_zarr.store.files import DOCUMENT_NBYTES, Kind, refuse_larger
from ctlab_dask_zarr.text import shown

__all__ = [
    "ObjectFiles",
    "configured_options",
    "endpoint_in_force",
    "options_of_call",
    "validated_options",
]

#: Parts of an upload, and how many are under way at once: what a shard holds in memory.
_PART_NBYTES = 8 << 20
_N_PARTS_AT_ONCE = 2
#: A request that fails is tried again for this long: a server that restarts is waited for.
_RETRY_TIMEOUT = timedelta(seconds=120)
#: Between two tries, drawn at random from the first up to thrice the one before. None is shorter
#: than the first: left at its 0.1 s, ten tries were over before a server was back from a restart.
_FIRST_WAIT = timedelta(seconds=1)
_LONGEST_WAIT = timedelta(seconds=15)
_REQUEST_TIMEOUT = timedelta(seconds=60)
_CONNECT_TIMEOUT = timedelta(seconds=10)
#: What may not be given as an option, by parts of the name, and what is none of it.
_SECRET = ("secret", "token", "password", "key", "sas", "credential", "header")
_NO_SECRET = ("sse_kms_key_id", "sse_bucket_key_enabled")
#: Where the credentials of S3 are looked for, before the role of the machine.
_S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
#: The same of the others, by how the names of variables begin and what is in them, and of options:
#: whatever may be a credential, or say that none is needed, is left to obstore.
_VARIABLES = {"gs": ("GOOGLE_", "SERVICE_ACCOUNT"), "az": ("AZURE_", "IDENTITY_", "MSI_")}
#: How the names begin of all that a store is opened by: proxies are for all.
_READ_VARIABLES = ("AWS_", "GCE_", *_VARIABLES["gs"], *_VARIABLES["az"])
_READ_VARIABLES += ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CREDENTIAL = re.compile(
    "KEY|TOKEN|SECRET|SAS|CREDENTIAL|SERVICE_ACCOUNT|CLIENT|TENANT|AUTHORITY|IDENTITY|MSI|AZURE_CLI"
    "|FABRIC|EMULATOR|SKIP_SIGNATURE"
)
#: Where Google's own tools leave them.
_GOOGLE_FILE = "~/.config/gcloud/application_default_credentials.json"
#: Of a machine in a cloud, where it learns its role.
_METADATA_SERVICE = "http://169.254.169.254"
_METADATA_TIMEOUT_S = 2.0
#: Google's may not answer at once where a container has just been started.
_N_METADATA_TRIES = 3
_NO_CREDENTIALS = (
    "no credentials were found: they are looked for in the environment (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_KEY), not in "
    "~/.aws, and then in the role of this machine, which has none. What everybody may read needs "
    "none with the storage option skip_signature=true"
)
#: Where the environment says that a server of one's own is, for each scheme.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
#: Options of the HTTP client, and not of a store.
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "user_agent")
#: The storage options that were given to the call under way; other threads and tasks of asyncio
#: have their own. What is put into a graph carries its options with it.
options_of_call: ContextVar[tuple[tuple[str, str], ...] | None] = ContextVar(
    "options_of_call", default=None
)


def validated_options(options: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Return options of a store in a form that can be compared and sent to workers.

    Raises
    ------
    InvalidArgumentError
        One of them is a credential, or a URL with one.

    Examples
    --------
    >>> validated_options({"region": "ap-southeast-2", "allow_http": True})
    (('allow_http', 'true'), ('region', 'ap-southeast-2'))
    """
    found = {}
    for name, value in (options or {}).items():
        key = str(name).lower().removeprefix("aws_").removeprefix("google_").removeprefix("azure_")
        if any(part in key for part in _SECRET) and key not in _NO_SECRET:
            raise InvalidArgumentError(
                f"storage option {name!r}: credentials are not taken as options, where they would "
                "be seen in logs and graphs; set them in the environment (AWS_ACCESS_KEY_ID, ...) "
                "or in the files of your vendor's tools"
            )
        found[key] = str(value).lower() if isinstance(value, bool) else str(value)
        if key.endswith(("endpoint", "url")):
            _refuse_credentials_in(found[key], f"storage option {name!r}")
    return tuple(sorted(found.items()))


def _refuse_credentials_in(url: str, name: str) -> None:
    if any(mark in url for mark in "@?#"):
        raise InvalidArgumentError(
            f"{name} is a URL with a user, a password or a query, which would be seen in logs: "
            "leave them out, and set credentials in the environment (AWS_ACCESS_KEY_ID, ...)"
        )


def configured_options() -> tuple[tuple[str, str], ...]:
    """Return the storage options in force: the call's, or else those of dask's settings."""
    from ctlab_dask_zarr.settings import setting

    given = options_of_call.get()
    return validated_options(setting("storage-options")) if given is None else given


def endpoint_in_force(scheme: str, options: Mapping[str, str]) -> str | None:
    """Return where a server of one's own is, by the options or the environment; None for none."""
    for name in ("endpoint", "endpoint_url", "base_url"):
        if name in options:
            return options[name]
    for name in _ENDPOINTS.get(scheme, ()):
        if os.environ.get(name):
            _refuse_credentials_in(os.environ[name], name)
            return os.environ[name]
    return None


@cache
def _open_memory(root: str) -> Any:
    """Return the store of a name in memory, one for as long as this process lives."""
    from obstore.store import MemoryStore

    return MemoryStore()


def _this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _variables() -> tuple[tuple[str, str], ...]:
    """Return what of the environment decides which server is asked, by whom and how."""
    return tuple(item for item in os.environ.items() if item[0].upper().startswith(_READ_VARIABLES))


@lru_cache(maxsize=64)
def _open(
    root: str,
    options: tuple[tuple[str, str], ...],
    variables: tuple[tuple[str, str], ...],
    retry_timeout: timedelta | None = None,
) -> Any:
    """Return the store of a bucket, one for all threads of this process.

    `variables` are those of the environment that obstore reads when it opens a store: where they
    have changed, it is another store.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError(
            f"{root} is an object store: pip install 'ctlab-dask-zarr[objects]'"
        ) from error
    if root.startswith("memory:"):
        return _open_memory(root)
    client: Any = {"timeout": _REQUEST_TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT}
    config: Any = {}
    for key, value in options:
        (client if key in _CLIENT_OPTIONS else config)[key] = value
    if "allow_http" in client:
        client["allow_http"] = client["allow_http"] == "true"
    endpoint = endpoint_in_force(root.split(":")[0], config) or root
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    if root.startswith(("s3:", "gs:", "az:")) and not _may_have_credentials(root, config):
        raise StorageError(errno.EACCES, _NO_CREDENTIALS, root)
    if root.startswith("az:") and "AZURE_STORAGE_ACCOUNT_NAME" in os.environ:
        # obstore finds it there too, but a store that was not told of it cannot be printed, which
        # zarr does.
        config.setdefault("account_name", os.environ["AZURE_STORAGE_ACCOUNT_NAME"])
    retry_timeout = _RETRY_TIMEOUT if retry_timeout is None else retry_timeout
    retry: Any = {
        # As many as there can be: it is time that ends them.
        "max_retries": retry_timeout // _FIRST_WAIT,
        "retry_timeout": retry_timeout,
        "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 3},
    }
    try:
        return from_url(root, client_options=client, retry_config=retry, **config)
    except (BaseError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{root}: {_first_line(error)}") from error


def _may_have_credentials(root: str, options: Mapping[str, str]) -> bool:
    """Return False where there can be none: the service that tells a role is tried for minutes."""
    scheme = root.split(":")[0]
    if scheme == "s3":
        is_unsigned = options.get("skip_signature") or os.environ.get("AWS_SKIP_SIGNATURE")
        if is_unsigned or any(os.environ.get(name) for name in _S3_CREDENTIALS):
            return True
        service = os.environ.get("AWS_METADATA_ENDPOINT", _METADATA_SERVICE)
        return _listens(options.get("metadata_endpoint", service))
    given = [name.upper() for name in options]
    given += [n for n, value in os.environ.items() if value and n.startswith(_VARIABLES[scheme])]
    if any(_CREDENTIAL.search(name) for name in given):
        return True
    if scheme == "az":
        return _listens(_METADATA_SERVICE)
    return os.path.exists(os.path.expanduser(_GOOGLE_FILE)) or _is_at_google()


def _listens(service: str) -> bool:
    parts = urlsplit(service)
    try:
        socket.create_connection((parts.hostname, parts.port or 80), _METADATA_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _is_at_google() -> bool:
    """Return whether Google's service answers, as Google's own tools find out.

    Other clouds have theirs at the same address, and some networks answer for it.
    """
    if os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_ROOT"):
        return True
    address = os.environ.get("GCE_METADATA_IP") or str(urlsplit(_METADATA_SERVICE).hostname)
    for number in range(_N_METADATA_TRIES):
        if number:
            time.sleep(_FIRST_WAIT.total_seconds())
        connection = HTTPConnection(address, timeout=_METADATA_TIMEOUT_S)
        try:
            connection.request("GET", "/", headers={"Metadata-Flavor": "Google"})
            return connection.getresponse().headers.get("Metadata-Flavor") == "Google"
        except (OSError, HTTPException):
            continue
        finally:
            connection.close()
    return False


def _first_line(error: BaseException) -> str:
    return shown(str(error).splitlines()[0]) if str(error) else type(error).__name__


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
    if "PROPFIND" in str(error):
        text = "this server does not list what it has, as plain HTTP does not: what is there can be"
        text += " opened and pulled, but not verified. Verify a copy, or use the URL of the object "
        text += "store (s3://)"
        return StorageError(errno.EOPNOTSUPP, text, path)
    if any(name in str(error) for name in ("169.254.169.254", "metadata.google.internal")):
        return StorageError(errno.EACCES, _NO_CREDENTIALS, path)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return FileExistsError(errno.EEXIST, "there is such an object already", path)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        text = f"the store refuses access ({_first_line(error)}): look at the credentials in the "
        return StorageError(errno.EACCES, f"{text}environment", path)
    return StorageError(errno.EIO, _first_line(error), path)


def _root_and_key(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    # The path as it stands: keys may hold what a browser would quote.
    root = f"{parts.scheme}://{parts.netloc}"
    return root, url[len(root) :].strip("/")


@dataclass(frozen=True)
class ObjectFiles:
    """The effects and questions of `runtime.files.Files`, on keys.

    Attributes
    ----------
    options
        Of the store: region, endpoint and the like, by obstore's names; see `validated_options`.
    process
        In whose memory objects are that are in memory: host and number.
    """

    options: tuple[tuple[str, str], ...] = ()
    process: tuple[str, int] = field(default_factory=_this_process, compare=False, repr=False)

    def _at(self, path: str) -> tuple[Any, str]:
        """Return the store of a URL and the key in it."""
        root, key = _root_and_key(path)
        if root.startswith("memory:") and self.process != _this_process():
            raise InvalidArgumentError(
                f"{path} is in the memory of another process, and would be lost with this one: "
                "write it to a place that all workers see, or without a cluster of processes"
            )
        return _open(root, self.options, _variables()), key

    def _at_to_list(self, path: str) -> tuple[Any, str]:
        """Return the store of a URL and the prefix in it, of which to ask what there is."""
        if not path.startswith("http"):
            return self._at(path)
        # What plain HTTP answers to this sounds like a failure of the server, and is its last word.
        root, key = _root_and_key(path)
        return _open(root, self.options, _variables(), timedelta(0)), key

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

        store, key = self._at_to_list(folder)
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

        store, key = self._at_to_list(folder)
        with _as_os_errors(folder):
            return {
                str(entry["path"])[len(key) :].lstrip("/"): (
                    int(entry["size"]),
                    entry["last_modified"].timestamp(),
                )
                for batch in obstore.list(store, f"{key}/" if key else None)
                for entry in batch
            }

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return an object; one that is larger than `limit` is not read."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            found = obstore.get(store, key)
            refuse_larger(path, found.meta["size"], limit)
            return bytes(found.bytes())

    def read_range(self, path: str, start: int, nbytes: int) -> bytes:
        """Return a part of an object."""
        import obstore

        store, key = self._at(path)
        if nbytes == 0:
            return b""
        with _as_os_errors(path):
            return bytes(obstore.get_range(store, key, start=start, length=nbytes))

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

    def replace(self, path: str, is_same: Callable[[bytes], bool], data: bytes) -> bool:
        """Replace an object if it `is_same` as before, in one step; return whether it was."""
        import obstore
        from obstore.exceptions import PreconditionError

        store, key = self._at(path)
        with _as_os_errors(path):
            found = obstore.get(store, key)
            tags: dict[str, Any] = {n: found.meta.get(n) for n in ("e_tag", "version")}
            if not is_same(bytes(found.bytes())):
                return False
            # Ceph compares a tag without the quotes that it sends it with, and refuses one with
            # them: a tag that is still that of the object is tried without.
            for quotes in ("", '"'):
                mode: Any = {name: tag.strip(quotes) for name, tag in tags.items() if tag}
                try:
                    obstore.put(store, key, data, mode=mode)
                    return True
                except PreconditionError:
                    now = obstore.get(store, key)
                    if now.meta.get("e_tag") != tags["e_tag"]:
                        # An answer that was lost is asked for again: what is there is our own then.
                        return bytes(now.bytes()) == data
        return False

    def remove_file(self, path: str) -> None:
        """Remove an object."""
        import obstore

        store, key = self._at(path)
        with _as_os_errors(path):
            obstore.delete(store, key)

    def remove_all(self, folder: str, is_meant: Callable[[str], bool] = lambda key: True) -> None:
        """Remove the objects below a prefix that are meant, by their keys below it."""
        import obstore

        store, key = self._at(folder)
        with _as_os_errors(folder), suppress(FileNotFoundError):
            for batch in obstore.list(store, f"{key}/"):
                paths = [str(entry["path"]) for entry in batch]
                obstore.delete(store, [path for path in paths if is_meant(path[len(key) + 1 :])])

    # What needs no doing where folders are prefixes, and an upload that ended is durable.

    def make_folder(self, path: str) -> None:
        """Do nothing."""

    def remove_folder(self, path: str) -> None:
        """Do nothing."""

    def sync_folder(self, path: str) -> None:
        """Do nothing."""

    def permissions(self, path: str) -> None:
        """Return None: who may do what is said elsewhere."""

    def set_permissions(self, path: str, permissions: int) -> None:
        """Do nothing."""

    def open_new(self, path: str, permissions: int | None = None) -> Any:
        """Refuse: objects are made by `upload`."""
        raise NotImplementedError

    def rename(self, source: str, target: str) -> None:
        """Refuse: object stores cannot."""
        raise NotImplementedError
