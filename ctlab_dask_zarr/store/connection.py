"""How an object store is reached, through obstore: options, credentials and the connection.

Credentials come from the environment, what it names, or the machine's role. They are never options
here, nor in a URL, so that none is in a graph, a plan or a log.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import cache, lru_cache
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from ctlab_dask_zarr.errors import InvalidArgumentError, MissingExtraError, StorageError
from ctlab_dask_zarr.text import install_text, shown
from ctlab_dask_zarr.waits import unknown_host

#: Options of a store by obstore's names, as they are compared and sent to workers.
Options = tuple[tuple[str, str], ...]

#: A request that fails is tried again for this long, so that a server may restart meanwhile.
RETRY_TIMEOUT = timedelta(seconds=120)
#: The wait between two tries is drawn from the first up to three times the one before. With
#: obstore's first wait, 0.1 s, ten tries were over before a server was back from a restart.
_FIRST_WAIT = timedelta(seconds=1)
_LONGEST_WAIT = timedelta(seconds=15)
_REQUEST_TIMEOUT, _CONNECT_TIMEOUT = timedelta(seconds=60), timedelta(seconds=10)
#: Parts of the names of options that are refused as credentials, and names that are none.
_SECRET = ("secret", "token", "password", "key", "sas", "credential", "header")
_NO_SECRET = ("sse_kms_key_id", "sse_bucket_key_enabled")
#: How the variables of each cloud begin, and what is in the names of variables and options that may
#: be credentials, or say that none are needed. obstore, which does not read ~/.aws, tries them.
_VARIABLES = {
    "s3": ("AWS_",),
    "gs": ("GOOGLE_", "SERVICE_ACCOUNT"),
    "az": ("AZURE_", "IDENTITY_", "MSI_"),
}
_CREDENTIAL = re.compile(
    "(?<!SSE_KMS_)(?<!SSE_BUCKET_)KEY|TOKEN|SECRET|SAS|(?<!SHARED_)CREDENTIAL|SERVICE_ACCOUNT"
    "|CLIENT|TENANT|AUTHORITY|IDENTITY|MSI|AZURE_CLI|FABRIC|EMULATOR|SKIP_SIGNATURE"
)
#: How the names of all variables begin that obstore reads when it opens a store.
_READ_VARIABLES = tuple(start for starts in _VARIABLES.values() for start in starts)
_READ_VARIABLES += ("GCE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
#: Where Google's own tools leave credentials.
_GOOGLE_FILE = "~/.config/gcloud/application_default_credentials.json"
#: Where a machine in a cloud learns its role. Google's may be slow in a container just started.
_METADATA_SERVICE = "http://169.254.169.254"
_METADATA_TIMEOUT_S = 2.0
_N_METADATA_TRIES = 3
NO_CREDENTIALS = (
    "no credentials were found: they are looked for in the environment (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_KEY), not in "
    "~/.aws, and then in the role of this machine, which has none. What everybody may read needs "
    "none with the storage option skip_signature=true"
)
#: Where the environment names a server of one's own, for each scheme.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
#: Options of the HTTP client, and not of a store.
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "user_agent")
#: The storage options given to the call under way; other threads and tasks of asyncio have their
#: own. Whatever goes into a graph carries its options with it.
options_of_call: ContextVar[Options | None] = ContextVar("options_of_call", default=None)


def validated_options(options: Mapping[str, Any] | None) -> Options:
    """Return options of a store, sorted, by obstore's names without prefixes; no credentials.

    >>> validated_options({"aws_region": "ap-southeast-2", "allow_http": True})
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


def configured_options() -> Options:
    """Return the storage options in force: the call's, or else those of dask's settings."""
    from ctlab_dask_zarr.settings import setting

    given = options_of_call.get()
    return validated_options(setting("storage-options")) if given is None else given


def endpoint_in_force(scheme: str, options: Mapping[str, str]) -> str | None:
    """Return the URL of a server of one's own, by the options or the environment; None for none."""
    for name in ("endpoint", "endpoint_url", "base_url"):
        if name in options:
            return options[name]
    for name in _ENDPOINTS.get(scheme, ()):
        if os.environ.get(name):
            _refuse_credentials_in(os.environ[name], name)
            return os.environ[name]
    return None


def connect(root: str, options: Options, *, retries: bool = True) -> Any:
    """Return obstore's store of a bucket, one for all threads of this process.

    It is another one where the environment has changed, which obstore reads when it opens a store.
    """
    read = tuple(item for item in os.environ.items() if item[0].upper().startswith(_READ_VARIABLES))
    return _open(root, options, read, RETRY_TIMEOUT if retries else timedelta(0))


def this_process() -> tuple[str, int]:
    """Return the host and the number of this process, in whose memory objects may be."""
    return socket.gethostname(), os.getpid()


@cache
def _open_memory(root: str) -> Any:
    """Return the store in memory with a name, one for as long as this process lives."""
    from obstore.store import MemoryStore

    return MemoryStore()


@lru_cache(maxsize=64)
def _open(root: str, options: Options, variables: Options, retry_timeout: timedelta) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError(f"{root} is an object store: {install_text('objects')}") from error
    scheme = root.split(":")[0]
    if scheme == "memory":
        return _open_memory(root)
    client: Any = {"timeout": _REQUEST_TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT}
    config: Any = {}
    for key, value in options:
        (client if key in _CLIENT_OPTIONS else config)[key] = value
    server = endpoint_in_force(scheme, config) or root
    if server.startswith("http://"):
        client["allow_http"] = True
    if server.startswith("http") and "proxy_url" not in client and (why := unknown_host(server)):
        raise StorageError(errno.EHOSTUNREACH, why, root)
    if scheme in ("s3", "gs", "az") and not _may_have_credentials(scheme, config):
        raise StorageError(errno.EACCES, NO_CREDENTIALS, root)
    if scheme == "az" and "AZURE_STORAGE_ACCOUNT_NAME" in os.environ:
        # obstore finds it there too, but panics when a store that was not told of it is printed,
        # which zarr does.
        config.setdefault("account_name", os.environ["AZURE_STORAGE_ACCOUNT_NAME"])
    retry: Any = {
        # As many as there can be: the time ends them.
        "max_retries": retry_timeout // _FIRST_WAIT,
        "retry_timeout": retry_timeout,
        "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 3},
    }
    try:
        return from_url(root, client_options=client, retry_config=retry, **config)
    except (BaseError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{root}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return what an error of obstore says, without the details of its source."""
    return shown(str(error).splitlines()[0]) if str(error) else type(error).__name__


def _may_have_credentials(scheme: str, options: Mapping[str, str]) -> bool:
    """Return False where there are none: obstore would ask for a role for minutes."""
    names = [name.upper() for name in options]
    names += [n for n, value in os.environ.items() if value and n.startswith(_VARIABLES[scheme])]
    if any(map(_CREDENTIAL.search, names)):
        return True
    if scheme == "gs":
        return os.path.exists(os.path.expanduser(_GOOGLE_FILE)) or _is_at_google()
    service = os.environ.get("AWS_METADATA_ENDPOINT") if scheme == "s3" else None
    return _listens(options.get("metadata_endpoint") or service or _METADATA_SERVICE)


def _listens(service: str) -> bool:
    parts = urlsplit(service)
    with suppress(OSError):
        socket.create_connection((parts.hostname, parts.port or 80), _METADATA_TIMEOUT_S).close()
        return True
    return False


def _is_at_google() -> bool:
    """Return whether Google's service answers, as Google's own tools find out."""
    # Other clouds have theirs at the same address, and some networks answer for it.
    if os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_ROOT"):
        return True
    address = os.environ.get("GCE_METADATA_IP") or str(urlsplit(_METADATA_SERVICE).hostname)
    for number in range(_N_METADATA_TRIES):
        if number:
            time.sleep(_FIRST_WAIT.total_seconds())
        connection = HTTPConnection(address, timeout=_METADATA_TIMEOUT_S)
        with suppress(OSError, HTTPException), closing(connection):
            connection.request("GET", "/", headers={"Metadata-Flavor": "Google"})
            return connection.getresponse().headers.get("Metadata-Flavor") == "Google"
    return False
