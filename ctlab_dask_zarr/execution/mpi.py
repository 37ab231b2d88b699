"""Workers as ranks of MPI, by dask-mpi."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dask
from distributed import Client

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.execution.allocation import allocated_resources, choose_interface
from ctlab_dask_zarr.execution.local import WORKERS_SHARE
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.text import install_text

#: One rank each for the scheduler, for the client, and at least one for workers.
_LEAST_RANKS = 3


@dataclass(frozen=True)
class MPIWorkers:
    """The ranks of ``mpirun``: a scheduler (rank 0), this client (rank 1), and workers."""

    def resources(self) -> Resources:
        """Return one thread, since the number of ranks is not known before they run."""
        return Resources(1)

    @contextmanager
    def start(self) -> Iterator[str]:
        """Give ranks their roles, and yield the scheduler's address.

        Only rank 1 gets past this: the others work until it leaves, and then end their processes.
        """
        try:
            from dask_mpi import initialize, send_close_signal
            from mpi4py import MPI
        except ImportError as error:
            raise InvalidArgumentError(
                "workers as ranks of MPI need dask-mpi, mpi4py and an MPI library: "
                f"{install_text('mpi')} ({error})"
            ) from error
        ranks = MPI.COMM_WORLD
        n_ranks = ranks.Get_size()
        if n_ranks < _LEAST_RANKS:
            raise InvalidArgumentError(
                f"{n_ranks} rank of MPI, and at least {_LEAST_RANKS} are needed (scheduler, client "
                "and a worker): start it by mpirun -np 4 ctlab-zarr ..., or by srun --mpi"
            )
        n_here = ranks.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
        allocation = allocated_resources()
        # dask-mpi leaves the address in dask's settings, where it must not stay after the end.
        with dask.config.set({"scheduler-address": None}):
            is_client = initialize(
                interface=choose_interface(only_this_host=n_here == n_ranks),
                local_directory=allocation.local_directory,
                memory_limit=int(allocation.nbytes * WORKERS_SHARE) // n_here,
                dashboard=False,
                dashboard_address="127.0.0.1:0",
                # A nanny forks, which MPI libraries do not allow.
                worker_class="distributed.Worker",
                exit=False,
            )
            if not is_client:
                sys.exit()
            address = str(dask.config.get("scheduler-address"))
            try:
                # Workers start together with this rank, and the plan of a write counts them.
                with Client(address, set_as_default=False) as client:
                    client.wait_for_workers(
                        n_ranks - 2, dask.config.get("distributed.comm.timeouts.connect")
                    )
                yield address
            finally:
                send_close_signal()
