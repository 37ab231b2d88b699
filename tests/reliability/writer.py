"""A process that writes when it is told to, together with another one."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from ctlab_dask_zarr import CTLabError, dataset_to_zarr
from tests.builders import make_dataset, random_voxels

LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16), "levels": 2}
VOXELS = {
    "a": random_voxels((32, 32, 32)),
    "b": random_voxels((32, 32, 32))[::-1] + np.uint16(1),
    "old": random_voxels((16, 16, 16)),
}
CODECS: dict[str, Any] = {
    "zstd": {},
    "gzip": {"create_array_kwargs": {"compressors": [{"name": "gzip", "configuration": {}}]}},
}


class Job(NamedTuple):
    """One write."""

    voxels: str
    flags: tuple[str, ...] = ()
    codec: str = "zstd"

    def write(self, destination: Path, voxels: SlowArray | None = None) -> None:
        """Write; `voxels` are the job's own, read at another pace."""
        source = SlowArray(self.voxels, 0) if voxels is None else voxels
        data = da.from_array(source, chunks=16, name=self.voxels)
        dataset = make_dataset(data, datatype="tomo", dataset_id="20200101_000000_tomo")
        flags = dict.fromkeys(self.flags, True)
        with dask.config.set(scheduler="sync"):
            dataset_to_zarr(dataset, destination, **LAYOUT, **CODECS[self.codec], **flags)


class SlowArray:
    """Voxels that take their time, so that two writes meet at another place each time."""

    def __init__(self, name: str, delay_s: float) -> None:
        self._voxels = VOXELS[name]
        self._delay_s = delay_s
        self.shape, self.dtype, self.ndim = self._voxels.shape, self._voxels.dtype, 3

    def __getitem__(self, region: Any) -> np.ndarray:
        time.sleep(self._delay_s)
        return self._voxels[region]


class Outcome(NamedTuple):
    """What came of a write: no error, or its message and whether this package raised it."""

    error: str | None = None
    is_expected: bool = True


def serve(jobs: Connection, barrier: Any) -> None:
    """Do the jobs that come, each at the same moment as the other process, until None comes."""
    while (job := jobs.recv()) is not None:
        write, destination, delay_s = job
        barrier.wait(240)
        try:
            write.write(destination, SlowArray(write.voxels, delay_s))
        except CTLabError as error:
            jobs.send(Outcome(str(error)))
        except Exception as error:
            jobs.send(Outcome(f"{type(error).__name__}: {error}", is_expected=False))
        else:
            jobs.send(Outcome())
