"""Object stores (S3, Google Cloud, Azure, plain HTTP) as a place for files, through obstore.

A path is a URL. Folders are prefixes of keys: they are there when something is in them, and need
no making. There is no rename, so that an object appears under its final key, by one request, when
all of it has been uploaded.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ctlab_dask_zarr.errors import InvalidArgumentError, StorageError
from ctlab_dask_zarr.formats.problems import refuse_larger
from ctlab_dask_zarr.store.connection import (
    NO_CREDENTIALS,
    Options,
    connect,
    endpoint_in_force,
    first_line,
    this_process,
)
from ctlab_dask_zarr.store.files import DOCUMENT_NBYTES, Kind
from ctlab_dask_zarr.store.opened import Memory, ObjectChangedError

#: Parts of an upload, and how many are under way at once: what a shard holds in memory.
_PART_NBYTES, _N_PARTS_AT_ONCE = 8 << 20, 2
#: Errors of servers that cannot give the end; some give a range that begins before the object.
_NO_END = ("status code: 4", "CONTENT_RANGE")
#: Times of objects are whole seconds.
_CLOCK_STEP_S = 3


class EndedUploads(NamedTuple):
    """How many uploads were ended, and for what problem others may be left."""

    n_uploads: int
    problem: str | None = None


@dataclass(frozen=True)
class ObjectFiles:
    """The effects and questions of `Files`, on keys, with the options of a store.

    `process` is the one in whose memory ``memory://`` objects are: host and number.
    """

    options: Options = ()
    process: tuple[str, int] = field(default_factory=this_process, compare=False, repr=False)

    def _connect(self, path: str, *, retries: bool = True) -> tuple[Any, str]:
        """Return the store of a URL, and the key in it as it stands: nothing in it is quoted."""
        parts = urlsplit(path)
        root = f"{parts.scheme}://{parts.netloc}"
        if parts.scheme == "memory" and self.process != this_process():
            raise InvalidArgumentError(
                f"{path} is in the memory of another process, and would be lost with this one: "
                "write it to a place that all workers see, or without a cluster of processes"
            )
        return connect(root, self.options, retries=retries), path[len(root) :].strip("/")

    @contextmanager
    def _at(self, path: str, *, lists: bool = False) -> Iterator[tuple[Any, str]]:
        """Have the store of a URL and the key in it; obstore's errors become OSErrors."""
        # The answer of plain HTTP to a listing looks like a failure of the server, but is final.
        store, key = self._connect(path, retries=not (lists and path.startswith("http")))
        from obstore.exceptions import BaseError

        try:
            yield store, key
        except (FileNotFoundError, BaseError) as error:
            raise _as_os_error(error, path) from None

    def kind(self, path: str) -> Kind | None:
        """Return what is at a URL; None for nothing."""
        with self._at(path) as (store, key):
            if not key:
                return "folder"
            try:
                store.head(key)
                return "file"
            except FileNotFoundError:
                if path.startswith("http"):
                    # Plain HTTP cannot list.
                    return None
            return "folder" if next(iter(store.list(f"{key}/", chunk_size=1)), None) else None

    def entries(self, folder: str) -> list[tuple[str, Kind]]:
        """Return name and kind of everything below a prefix, up to the next slash."""
        with self._at(folder, lists=True) as (store, key):
            found = store.list_with_delimiter(key or None)
        paths: list[tuple[str, Kind]] = [(str(p), "folder") for p in found["common_prefixes"]]
        paths += [(str(entry["path"]), "file") for entry in found["objects"]]
        return [(path.rstrip("/").rsplit("/", 1)[-1], kind) for path, kind in paths]

    def stats(self, folder: str) -> dict[str, tuple[int, float]]:
        """Return size and time of every object below a prefix, by key relative to it."""
        with self._at(folder, lists=True) as (store, key):
            return {
                str(entry["path"])[len(key) :].lstrip("/"): _stat(entry)
                for batch in store.list(f"{key}/" if key else None)
                for entry in batch
            }

    def read(self, path: str, limit: int = DOCUMENT_NBYTES) -> bytes:
        """Return an object; one that is larger than `limit` is refused."""
        with self._at(path) as (store, key):
            found = store.get(key)
            refuse_larger(path, found.meta["size"], limit)
            return bytes(found.bytes())

    def open_object(
        self, path: str, root: str, refuse: Callable[[str], None], version: Hashable = None
    ) -> RemoteObject:
        """Return an object to read; nothing is asked yet."""
        return RemoteObject(self, path, version)

    def get(self, path: str, extent: Any = None) -> tuple[Any, memoryview]:
        """Return what a store says of an object, and its bytes: all of it, or of an `extent`.

        An extent is (start, stop), or the number of bytes at the end.
        """
        with self._at(path) as (store, key):
            if isinstance(extent, int):
                found = _get_end(store, key, extent, path)
            else:
                found = store.get(key, options={} if extent is None else {"range": extent})
            return found.meta, memoryview(found.bytes())

    def stat(self, path: str) -> tuple[int, float]:
        """Return the size of an object, and when it was put, in seconds since the epoch."""
        with self._at(path) as (store, key):
            return _stat(store.head(key))

    @contextmanager
    def upload(self, path: str) -> Iterator[Any]:
        """Write one object piece by piece; it appears at a clean exit, and not otherwise."""
        import obstore

        with (
            self._at(path) as (store, key),
            obstore.open_writer(
                store, key, buffer_size=_PART_NBYTES, max_concurrency=_N_PARTS_AT_ONCE
            ) as writer,
        ):
            yield _CopyingWriter(writer)

    def create(self, path: str, data: bytes) -> None:
        """Put an object if there is none of that name, else raise FileExistsError; one wins."""
        with self._at(path) as (store, key):
            store.put(key, data, mode="create")

    def replace(self, path: str, is_same: Callable[[bytes], bool], data: bytes) -> bool:
        """Replace an object if it `is_same` as before, in one step; return whether it was."""
        with self._at(path) as (store, key):
            from obstore.exceptions import PreconditionError

            found = store.get(key)
            tags = {name: found.meta.get(name) for name in ("e_tag", "version")}
            if not is_same(bytes(found.bytes())):
                return False
            # Ceph sends a tag in quotes, and refuses one in quotes: try it without them first.
            for quotes in ("", '"'):
                mode = {name: tag.strip(quotes) for name, tag in tags.items() if tag}
                try:
                    store.put(key, data, mode=mode)
                    return True
                except PreconditionError:
                    now = store.get(key)
                    if now.meta.get("e_tag") != tags["e_tag"]:
                        # obstore asks again where an answer is lost, and then finds our own object.
                        return bytes(now.bytes()) == data
        return False

    def remove_file(self, path: str) -> None:
        """Remove an object."""
        with self._at(path) as (store, key):
            store.delete(key)

    def remove_all(self, folder: str, is_meant: Callable[[str], bool]) -> None:
        """Remove the objects below a prefix that are meant, by their keys below it."""
        with self._at(folder) as (store, key), suppress(FileNotFoundError):
            for batch in store.list(f"{key}/"):
                paths = [str(entry["path"]) for entry in batch]
                store.delete([path for path in paths if is_meant(path[len(key) + 1 :])])

    def abort_uploads(self, path: str) -> EndedUploads:
        """End the uploads below an S3 URL that were cut off: they are not listed, and cost as much.

        obstore has no request for it, so botocore is used, if it is installed. Stores that are not
        S3 forget such uploads by themselves.
        """
        parts = urlsplit(path)
        if parts.scheme != "s3":
            return EndedUploads(0)
        try:
            import botocore.session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            return EndedUploads(0, "botocore is not installed")
        given = dict(self.options)
        n_uploads = 0
        try:
            # botocore does not read all variables that obstore reads.
            client = botocore.session.get_session().create_client(
                "s3",
                endpoint_url=endpoint_in_force("s3", given),
                region_name=given.get("region") or os.environ.get("AWS_REGION"),
                config=Config(connect_timeout=10, retries={"total_max_attempts": 3}),
            )
            pages = client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=parts.netloc, Prefix=f"{parts.path.strip('/')}/"):
                for upload in page.get("Uploads", ()):
                    # It may have been ended meanwhile.
                    with suppress(client.exceptions.NoSuchUpload):
                        client.abort_multipart_upload(
                            Bucket=parts.netloc, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        n_uploads += 1
        # botocore raises ValueError for a wrong endpoint.
        except (BotoCoreError, ClientError, ValueError) as error:
            return EndedUploads(n_uploads, str(error))
        return EndedUploads(n_uploads)

    # Folders are prefixes, an upload that ended is durable, and who may do what is said elsewhere.

    def make_folder(self, path: str) -> None:
        """Do nothing."""

    remove_folder = sync_folder = make_folder

    def permissions(self, path: str) -> None:
        """Return None."""

    def set_permissions(self, path: str, permissions: int) -> None:
        """Do nothing."""

    def open_new(self, *_: Any, **__: Any) -> Any:
        """Refuse: objects are made by `upload`, and cannot be renamed."""
        raise NotImplementedError

    rename = open_new


class _CopyingWriter:
    """Takes pieces of an upload whose memory is used again for the next one."""

    def __init__(self, writer: Any) -> None:
        # It does not copy what it is given, and sends it later.
        self._writer = writer

    def write(self, data: Any) -> None:
        self._writer.write(data if isinstance(data, bytes) else bytes(data))


class RemoteObject:
    """An object of an object store; every answer tells which version it is of."""

    def __init__(self, files: ObjectFiles, path: str, version: Hashable) -> None:
        self._files = files
        self._path = path
        self.version = version
        self.nbytes: int = version[0] if isinstance(version, tuple) else -1
        self.is_settled = False

    def read(self, start: int, nbytes: int, memory: Memory) -> memoryview:
        """Return a part; `memory` is not needed."""
        return self._get((start, start + nbytes)) if nbytes else memoryview(b"")

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Do nothing: what is asked for is asked for together."""

    def read_end(self, nbytes: int) -> memoryview:
        """Return the last bytes, or all where it has no more."""
        return self._get(nbytes)

    def read_whole(self, limit: int) -> bytes:
        """Return all of it; more than `limit` bytes are refused."""
        return self._files.read(self._path, limit)

    def _get(self, extent: Any) -> memoryview:
        meta, data = self._files.get(self._path, extent)
        tag, changed = meta.get("e_tag"), meta["last_modified"].timestamp()
        version = (meta["size"], tag, meta.get("version"), changed)
        if self.version is None:
            self.version, self.nbytes = version, meta["size"]
            # Tags too are made of time and size, by many servers.
            self.is_settled = time.time() - changed > _CLOCK_STEP_S
        elif version != self.version:
            raise ObjectChangedError("it was written again while it was read")
        return data


def _get_end(store: Any, key: str, nbytes: int, path: str) -> Any:
    """Return the end of an object, or all: Azure and some plain HTTP have no request for it."""
    from obstore.exceptions import GenericError

    if not path.startswith("az:"):
        try:
            return store.get(key, options={"range": {"suffix": nbytes}})
        except GenericError as error:
            if not path.startswith("http") or not any(s in str(error) for s in _NO_END):
                raise
    size = store.head(key)["size"]
    return store.get(key, options={"range": (max(size - nbytes, 0), size)})


def _stat(entry: Any) -> tuple[int, float]:
    return int(entry["size"]), entry["last_modified"].timestamp()


def _as_os_error(error: Exception, path: str) -> OSError:
    """Return an error of obstore as the one that the operating system would raise."""
    from obstore import exceptions

    told, said = str(error), first_line(error)
    if "NoSuchBucket" in told or "ContainerNotFound" in told:
        return StorageError(errno.ENXIO, "there is no such bucket or container", path)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, said, path)
    if "PROPFIND" in told:
        text = (
            "this server does not list what it has, as plain HTTP does not: what is there can be "
            "opened and pulled, but not verified. Verify a copy, or use the URL of the object "
            "store (s3://)"
        )
        return StorageError(errno.EOPNOTSUPP, text, path)
    if "169.254.169.254" in told or "metadata.google.internal" in told:
        return StorageError(errno.EACCES, NO_CREDENTIALS, path)
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return FileExistsError(errno.EEXIST, "there is such an object already", path)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        text = f"the store refuses access ({said}): look at the credentials in the environment"
        return StorageError(errno.EACCES, text, path)
    return StorageError(errno.EIO, said, path)
