"""Workers have to be of the same versions as the client, or a store may not be what it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin
from distributed.versions import get_versions

from ctlab_dask_zarr.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Worker

__all__ = ["check_versions", "same_versions"]

#: What decides about the bytes that are written, and how client and workers talk.
_PACKAGES = ("ctlab-dask-zarr", "zarr", "numpy", "numcodecs", "dask", "distributed")

_logger = logging.getLogger(__name__)
Versions = Mapping[str, str | None]


def check_versions(client: Client) -> None:
    """Raise an error where a worker has other versions than this process.

    Asked is each worker's server, in dask's own words, so that even a worker without this package
    answers. Workers that come later are not seen: see `same_versions`.

    Raises
    ------
    ClusterError
        Naming the worker, the package and both versions.

    Examples
    --------
    >>> from distributed import Client, LocalCluster
    >>> with (
    ...     LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
    ...     Client(cluster) as client,
    ... ):
    ...     check_versions(client)
    """
    told: Any = client.get_versions(packages=list(_PACKAGES))
    here = _only_ours(told["client"])
    for address, worker in told["workers"].items():
        difference = _difference(here, _only_ours(worker))
        if difference:
            raise ClusterError(_message(address, difference))


@contextmanager
def same_versions(client: Client) -> Iterator[None]:
    """Check the workers that are there, and send away those that join later with other versions.

    A worker that joins later is asked by a plugin, which the scheduler gives it before any task; a
    check of the client's would come too late. It leaves, and this process logs why; the others go
    on.
    """
    check_versions(client)
    name = f"ctlab-zarr-versions-{client.id}"
    here = _only_ours(get_versions(_PACKAGES))
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
        difference = _difference(self._wanted, _only_ours(get_versions(_PACKAGES)))
        if difference:
            message = _message(worker.address, difference)
            _logger.error("%s", message)
            worker.log_event(self._topic, message)
            await worker.close(reason="ctlab-zarr-versions")


def _only_ours(versions: Mapping[str, Any]) -> Versions:
    return {package: versions["packages"].get(package) for package in _PACKAGES}


def _difference(wanted: Versions, found: Versions) -> str:
    """Return in words what is not the same, or nothing.

    Examples
    --------
    >>> _difference({"zarr": "3.1.5", "dask": "2026.1"}, {"zarr": "3.0", "dask": "2026.1"})
    'zarr 3.0 and not 3.1.5'
    """
    return ", ".join(
        f"{package} {found.get(package) or 'missing'} and not {version or 'missing'}"
        for package, version in wanted.items()
        if found.get(package) != version
    )


def _message(address: str, difference: str) -> str:
    return (
        f"worker {address} has {difference} as this process: start workers and client from the "
        "same environment"
    )
