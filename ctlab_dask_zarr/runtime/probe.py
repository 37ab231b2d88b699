"""Whether workers and this process see the same folder, found out before any work."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress
from typing import Any

from ctlab_dask_zarr.errors import ClusterError

__all__ = ["check_shared_folder"]


def check_shared_folder(client: Any, folder: str) -> None:
    """Have every worker write a file into `folder`, and read them here.

    Parameters
    ----------
    client
        A `distributed.Client`; workers that come later are not asked.
    folder
        The folder of the destination, or the nearest one above it that is there.

    Raises
    ------
    ClusterError
        A worker cannot write there, or what it has written is not seen here.
    """
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    token = uuid.uuid4().hex
    # A worker that dies meanwhile, or lacks this package, is told of by others.
    left = client.run(_leave_probe, folder, token, on_error="ignore")
    problems = []
    for address, (host, said) in left.items():
        where = f"worker {address} on {host}"
        if not os.path.isabs(said):
            problems.append(f"{where} cannot write into {folder}: {said}")
            continue
        try:
            with open(said) as file:
                is_seen = file.read() == token
            os.unlink(said)
        except OSError:
            is_seen = False
        if not is_seen:
            problems.append(f"{where} has another {folder} than this process on {_host()}")
    if problems:
        client.run(_remove_probe, folder, token)
        _, said = _leave_probe(folder, token)
        if not os.path.isabs(said):
            # No matter of sharing: nobody can write there, which the write itself will tell.
            return
        os.unlink(said)
        raise ClusterError(
            f"the destination is not shared: {problems[0]}"
            + (f" (and {len(problems) - 1} workers more)" if len(problems) > 1 else "")
            + ". Use a folder that all nodes mount under the same path"
        )


def _leave_probe(folder: str, token: str) -> tuple[str, str]:
    """Write the file; return this host, and the path or what went wrong."""
    path = os.path.join(folder, f".ctlab-zarr-probe.{token}.{uuid.uuid4().hex}")
    try:
        with open(path, "x") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        return _host(), error.strerror or repr(error)
    return _host(), path


def _remove_probe(folder: str, token: str) -> None:
    """Remove what this worker has written where the client does not see it."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(f".ctlab-zarr-probe.{token}."):
                os.unlink(os.path.join(folder, name))


def _host() -> str:
    return socket.gethostname()
