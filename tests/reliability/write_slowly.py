"""A write for two hosts, as a command: ``write_slowly SCHEDULER DESTINATION NOTES``.

In the folder NOTES each attempt at a block leaves a file, and what is made on the far host waits
there until the file ``healed`` appears, so that it is in the middle of its work when the link is
cut, and comes late when it is healed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from uuid import uuid4

import dask.array as da
import numpy as np
from distributed import Client

from ctlab_dask_zarr import dataset_to_zarr
from tests.builders import make_dataset
from tests.reliability.faults import LAYOUT, NEW_VOXELS, wait_until


def noted(block: np.ndarray, notes: str, block_info: dict | None = None) -> np.ndarray:
    """Note which block is made on which host."""
    host = os.environ.get("HOST_OF_TEST", "near")
    place = "-".join(map(str, (block_info or {})[0]["chunk-location"]))
    note = Path(notes) / f"{place}.{host}.{uuid4().hex}"
    note.touch()
    if host == "far":
        wait_until((Path(notes) / "healed").exists, "the link")
        (Path(notes) / "late").touch()
    else:
        # So that the far host gets some of the work.
        time.sleep(0.2)
    return block


def main(scheduler: str, destination: str, notes: str) -> None:
    """Write `NEW_VOXELS` on the cluster."""
    data = da.from_array(NEW_VOXELS, chunks=32).map_blocks(
        noted, notes, dtype=NEW_VOXELS.dtype, meta=NEW_VOXELS[:0]
    )
    dataset = make_dataset(data, dataset_id="20200202_000000_tomo")
    with Client(scheduler) as client:
        client.wait_for_workers(2, timeout=240)
        dataset_to_zarr(dataset, destination, **LAYOUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
