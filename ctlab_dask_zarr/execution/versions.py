"""Workers need the same versions as the client, or a store may not be what it claims."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Client, Worker, WorkerPlugin
from distributed.versions import get_versions

from ctlab_dask_zarr.errors import ClusterError

#: These decide about the bytes that are written, and about how client and workers talk.
_PACKAGES = ("ctlab-dask-zarr", "zarr", "numpy", "numcodecs", "dask", "distributed")

_logger = logging.getLogger(__name__)
Versions = Mapping[str, str | None]


@contextmanager
def same_versions(client: Client) -> Iterator[None]:
    """Check the workers that are there, and send away those that join later with other versions.

    The scheduler gives a plugin to each later worker before any task; a check by the client would
    come too late. Such a worker leaves, this process logs why, and the others go on.

    Raises
    ------
    ClusterError
        A worker has other versions; the message names it, the package and both versions.
    """
    # dask's own server answers, so that a worker without this package does, too.
    told: Any = client.get_versions(packages=list(_PACKAGES))
    here = _only_ours(told["client"])
    for address, worker in told["workers"].items():
        problem = _problem(address, here, _only_ours(worker))
        if problem is not None:
            raise ClusterError(problem)
    name = f"ctlab-zarr-versions-{client.id}"
    client.subscribe_topic(name, lambda event: _logger.error("%s", event[1]))
    client.register_plugin(_LeaveUnlessSame(here, name), name=name)
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)
            client.unsubscribe_topic(name)


class _LeaveUnlessSame(WorkerPlugin):
    """Closes a worker that has other versions than the client."""

    def __init__(self, wanted: Versions, topic: str) -> None:
        self._wanted = wanted
        self._topic = topic

    async def setup(self, worker: Worker) -> None:
        problem = _problem(worker.address, self._wanted, _only_ours(get_versions(_PACKAGES)))
        if problem is not None:
            _logger.error("%s", problem)
            worker.log_event(self._topic, problem)
            await worker.close(reason="ctlab-zarr-versions")


def _only_ours(versions: Mapping[str, Any]) -> Versions:
    return {package: versions["packages"].get(package) for package in _PACKAGES}


def _problem(address: str, wanted: Versions, found: Versions) -> str | None:
    """Say in words what is not the same; None if nothing is."""
    differences = ", ".join(
        f"{package} {found.get(package) or 'missing'} and not {version or 'missing'}"
        for package, version in wanted.items()
        if found.get(package) != version
    )
    if not differences:
        return None
    return (
        f"worker {address} has {differences} as this process: start workers and client from the "
        "same environment"
    )
