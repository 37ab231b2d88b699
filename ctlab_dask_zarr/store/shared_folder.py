"""Whether workers and this process see the same folder, found out before any work."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ctlab_dask_zarr.errors import ClusterError

#: Seconds between two looks for new workers.
_INTERVAL_S = 2.0
#: Seconds for a look under way to end.
_JOIN_S = 1.0


class SharedFolder:
    """Has each worker probed once, also those that come while the work is under way; a context.

    A worker plugin could not do it alone: a new worker would have to wait for this process to
    answer, in vain if the process was killed. `problem` is that of a worker that came late.
    """

    def __init__(self, client: Any, folder: str) -> None:
        self._client = client
        self._folder = folder
        self._probed: set[str] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        # In a thread of its own, so that a worker that does not answer holds up no stop.
        self._thread = threading.Thread(target=self._watch, name="probe", daemon=True)
        self.problem: ClusterError | None = None

    def __enter__(self) -> SharedFolder:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join(_JOIN_S)

    def check(self) -> None:
        """Probe the workers that have not been probed yet; raise the problem of any."""
        with self._lock:
            workers = set(self._client.scheduler_info(n_workers=-1)["workers"])
            new = sorted(workers - self._probed)
            if new and self.problem is None:
                check_shared_folder(self._client, self._folder, new)
                self._probed.update(new)
        if self.problem is not None:
            raise self.problem

    def check_late(self) -> None:
        """Do the same while, or after, the work is done."""
        try:
            self.check()
        except ClusterError as error:
            if self.problem is None:
                self.problem = ClusterError(
                    f"{error}. That worker came while the write was under way; what others have "
                    "written stays, go on by resume=True (--resume)"
                )
            raise self.problem from error
        except Exception:
            # The work itself tells what else is wrong with the cluster.
            return

    def _watch(self) -> None:
        while self.problem is None and not self._end.wait(_INTERVAL_S):
            with suppress(ClusterError):
                self.check_late()


def check_shared_folder(client: Any, folder: str, workers: Sequence[str] | None = None) -> None:
    """Have workers (None: all) write a file into a folder, and read it here, else ClusterError.

    Where the folder is not there, the nearest one above it is taken.
    """
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    token = uuid.uuid4().hex
    # What happens to a worker that dies meanwhile, or lacks this package, is told elsewhere.
    left = client.run(_leave_probe, folder, token, workers=workers, on_error="ignore")
    problems = []
    for address, (host, said) in left.items():
        if not os.path.isabs(said):
            problems.append(f"worker {address} on {host} cannot write into {folder}: {said}")
            continue
        try:
            with open(said) as file:
                is_seen = file.read() == token
            os.unlink(said)
        except OSError:
            is_seen = False
        if not is_seen:
            here = f"this process on {socket.gethostname()}"
            problems.append(f"worker {address} on {host} has another {folder} than {here}")
    if problems:
        client.run(_remove_probe, folder, token, workers=workers, on_error="ignore")
        _, said = _leave_probe(folder, token)
        if not os.path.isabs(said):
            # Nobody can write there, which the write itself tells.
            return
        os.unlink(said)
        more = f" (and {len(problems) - 1} workers more)" if len(problems) > 1 else ""
        raise ClusterError(
            f"the destination is not shared: {problems[0]}{more}. Use a folder that all nodes "
            "mount under the same path"
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
        return socket.gethostname(), error.strerror or repr(error)
    return socket.gethostname(), path


def _remove_probe(folder: str, token: str) -> None:
    """Remove what this worker has written where this process does not see it."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(f".ctlab-zarr-probe.{token}."):
                os.unlink(os.path.join(folder, name))
