"""A write in a process of its own, made to be killed at any moment."""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import dask
import numpy as np

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.manage.discard import abort_write
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.files import LOCAL_FILES
from ctlab_dask_zarr.write.staging.commit import commit
from ctlab_dask_zarr.write.staging.stage import open_staged

# Compiled before a process is forked, or it would be killed before its first shard, every time.
halve(np.zeros((2, 2, 2), "uint16"), (1, 2, 2), "mean", 65535)


def write(source: str, destination: str, pause_s: float, ready: Connection) -> None:
    """Resume a write of `source` whose every block takes `pause_s` longer."""
    os.setsid()
    dataset = Dataset.from_path(source)

    def slowly(block: np.ndarray) -> np.ndarray:
        time.sleep(pause_s)
        return block

    blocks = dataset.data.rechunk((16, 32, 32)).map_blocks(slowly, meta=dataset.data._meta)
    slow = Dataset(
        blocks,
        dimension_names=dataset.dimension_names,
        voxel_unit=dataset.voxel_unit,
        voxel_size=dataset.voxel_size,
        datatype=dataset.datatype,
        history=dataset.history,
        dataset_id=dataset.dataset_id,
        extra_attrs=dataset.extra_attrs,
        source=dataset.source,
    )
    ready.send("ready")
    with dask.config.set(scheduler="threads", num_workers=2):
        layout = {"shards": (16, 32, 32), "chunks": (8, 16, 16), "levels": 2}
        dataset_to_zarr(slow, destination, **layout, resume=True)


def write_labels(
    image: str, name: str, modulus: int, pause_s: float, resume: bool, connection: Connection
) -> None:
    """Write labels of an image, slowly, and tell how that ended."""
    os.setsid()
    voxels = dataset_from_zarr(image).data

    def slowly(block: np.ndarray) -> np.ndarray:
        time.sleep(pause_s)
        return (block % modulus).astype("uint8")

    labels = voxels.rechunk((16, 32, 32)).map_blocks(
        slowly, dtype="uint8", meta=np.empty((0, 0, 0), "uint8")
    )
    connection.send("ready")
    connection.recv()
    try:
        with dask.config.set(scheduler="threads", num_workers=2):
            labels_to_zarr(
                labels, image, name, shards=(16, 32, 32), chunks=(8, 16, 16), resume=resume
            )
    except CTLabError as error:
        connection.send(type(error).__name__)
    else:
        connection.send("done")


class Deadly:
    """Files, or one of them, that kill their process before the effect with a number."""

    EFFECTS = frozenset(
        {"make_folder", "open_new", "rename", "remove_file", "remove_folder", "sync_folder"}
        | {"write", "sync", "discard"}
    )

    def __init__(self, target: Any, number: int, numbers: Any = None) -> None:
        self._target = target
        self._number = number
        self._numbers = count() if numbers is None else numbers

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if name not in self.EFFECTS:
            return method

        def call(*arguments: Any) -> Any:
            if next(self._numbers) == self._number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments)
            is_file = name == "open_new"
            return Deadly(result, self._number, self._numbers) if is_file else result

        return call


def commit_and_die(destination: str, number: int) -> None:
    """Commit what is staged, and die before an effect of it; with too large a number live on."""
    commit(open_staged(Destination(destination, Deadly(LOCAL_FILES, number))))


def abort_and_die(destination: str, number: int) -> None:
    """Abort what is staged, and die before an effect of it; with too large a number live on."""
    abort_write(Destination(destination, Deadly(LOCAL_FILES, number)))
