"""Workers of a dask scheduler that runs already."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dask
from dask.utils import parse_timedelta
from distributed import Client

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.scheduler import scheduler_resources
from ctlab_dask_zarr.execution.versions import same_versions
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.waits import doing, unknown_host


@dataclass(frozen=True)
class RunningWorkers:
    """The workers of a scheduler, by its address or by the file that it wrote."""

    address: str | None = None
    scheduler_file: str | None = None

    def resources(self) -> Resources:
        """Return what the scheduler's workers have together at the moment."""
        with self.start() as address, Client(address) as client, same_versions(client):
            return scheduler_resources()

    @contextmanager
    def start(self) -> Iterator[str]:
        """Yield the scheduler's address, if one answers there.

        Raises
        ------
        InvalidArgumentError
            None answers within dask's ``distributed.comm.timeouts.connect``.
        """
        try:
            address = self.address or self._address_in_file()
            if problem := unknown_host(address):
                raise ValueError(problem)
            with (
                doing(f"connecting to the scheduler at {address}", "Look whether it runs there"),
                Client(address, set_as_default=False) as client,
            ):
                address = str(client.scheduler_info()["address"])
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"no dask scheduler answers at {self.address or self.scheduler_file}: {error}"
            ) from error
        yield address

    def _address_in_file(self) -> str:
        """Return the address that a scheduler writes, which may just be starting.

        dask itself would wait for the file for ever.
        """
        timeout_s = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        stop_s = time.monotonic() + timeout_s
        start = f"start one by `dask scheduler --scheduler-file {self.scheduler_file}`"
        with doing(
            f"waiting for a scheduler to write {self.scheduler_file}",
            f"If it is not another file, {start}; this gives up after {timeout_s:.0f} s",
        ):
            while True:
                try:
                    with open(str(self.scheduler_file)) as file:
                        return str(json.load(file)["address"])
                except (OSError, ValueError, KeyError, TypeError) as error:
                    if time.monotonic() > stop_s:
                        raise ValueError(
                            f"no address in that file after {timeout_s:.0f} s: {start}"
                        ) from error
                time.sleep(0.1)
