"""One measured run, in a process of its own: ``python -m benchmarks.one JSON``.

Prints one line of JSON: seconds, and the peak memory in MiB of each process that worked, above
its start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks import data

ZARRS = "zarrs.ZarrsCodecPipeline"
VOXEL = {"voxel_unit": "um", "voxel_size": (2.5, 2.5, 2.5)}


def peak_mib() -> float:
    """Return the most memory of its own (not of mapped files) this process had since a reset."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) / 1024


def reset_peak() -> float:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak_mib()


def source(task: dict[str, Any]) -> Any:
    """Return the dask array to write, or None for netCDF, which each writer opens by itself."""
    size = task["size"]
    if task["work"] == "netcdf":
        return None
    edge = size // 2
    blocks = {"aligned": (edge,) * 3, "slabs": (16, size, size)}[task["work"]]
    return data.raw_array(data.make_raw(task["folder"], size), size, blocks)


def write_ours(task: dict[str, Any], out: str) -> Callable[[], Any]:
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    array = source(task)
    edge = task["size"] // 2

    def run() -> None:
        dataset = (
            Dataset.from_path(data.make_netcdf(task["folder"], task["size"]))
            if array is None
            else Dataset(array, dimension_names="zyx", datatype="tomo", **VOXEL)
        )
        dataset_to_zarr(dataset, out, chunks=(32,) * 3, shards=(edge,) * 3)

    return run


def write_reference(task: dict[str, Any], out: str) -> Callable[[], Any]:
    from anu_ctlab_io import Dataset, DataType, VoxelUnit
    from anu_ctlab_io.zarr import dataset_to_zarr

    array = source(task)
    edge = task["size"] // 2

    def run() -> None:
        dataset = (
            Dataset.from_path(data.make_netcdf(task["folder"], task["size"]))
            if array is None
            else Dataset(
                array,
                dimension_names=("z", "y", "x"),
                datatype=DataType.TOMO,
                voxel_unit=VoxelUnit.UM,
                voxel_size=VOXEL["voxel_size"],
            )
        )
        dataset_to_zarr(dataset, out, chunks=(32,) * 3, shards=(edge,) * 3)

    return run


def read_ours(store: str) -> Callable[[], Any]:
    from ctlab_dask_zarr import dataset_from_zarr

    return lambda: _touch(dataset_from_zarr(store).data)


def read_reference(store: str) -> Callable[[], Any]:
    import dask.array as da

    # At its best: blocks of a shard, where the reference would take inner chunks.
    def run() -> None:
        array = da.from_zarr(store, component="0")
        import zarr

        shards = zarr.open_array(f"{store}/0", mode="r").shards
        _touch(da.from_zarr(store, component="0", chunks=shards, name=array.name))

    return run


def _touch(array: Any) -> None:
    """Have every block computed, and keep next to nothing."""
    array.map_blocks(lambda b: b[:1, :1, :1].copy(), dtype=array.dtype).compute()


def main() -> None:
    task = json.loads(sys.argv[1])
    pipeline = ZARRS if task["who"] == "zarrs" else None
    if pipeline:
        os.environ["ZARR_CODEC_PIPELINE__PATH"] = pipeline
        import zarrs  # noqa: F401
    out = os.path.join(task["folder"], "out.zarr")
    if task["work"] == "read":
        run = (read_ours if task["who"] == "ours" else read_reference)(task["store"])
    else:
        run = (write_ours if task["who"] == "ours" else write_reference)(task, out)
    with ExitStack() as stack:
        client = None
        if task["scheduler"] == "cluster":
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=2,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                )
            )
            client = stack.enter_context(Client(cluster))
            if pipeline:
                client.run(_use_pipeline, pipeline)
        starts = client.run(reset_peak) if client else {"here": reset_peak()}
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peaks = client.run(peak_mib) if client else {"here": peak_mib()}
    print(json.dumps({"seconds": seconds, "mib": [peaks[w] - starts[w] for w in starts]}))


def _use_pipeline(pipeline: str) -> None:
    import zarr
    import zarrs  # noqa: F401

    zarr.config.set({"codec_pipeline.path": pipeline})


if __name__ == "__main__":
    main()
