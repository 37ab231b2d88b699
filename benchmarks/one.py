"""One measured run, in a process of its own (`measure.run_one`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

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
    edge = task.get("edge", size // 2)
    blocks = {"aligned": (edge,) * 3, "slabs": (16, size, size)}[task["work"]]
    path = data.make_raw(task["folder"], size)
    array = data.raw_array(path, size, blocks, task.get("repeat", 1))
    return data.as_dtype(array, task.get("dtype", "uint16"))


def write_peer(task: dict[str, Any], out: str) -> Callable[[], Any]:
    from benchmarks.peers import WRITERS

    array, edge = source(task), task.get("edge", task["size"] // 2)
    options = {"levels": task["levels"]} if task.get("levels", 1) > 1 else {}
    return lambda: WRITERS[task["who"]](array, out, edge, task.get("codec", "zstd"), **options)


def write_ours(task: dict[str, Any], out: str) -> Callable[[], Any]:
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    array = source(task)
    edge = task.get("edge", task["size"] // 2)
    kind = data.DATATYPES[task.get("dtype", "uint16")]

    def run() -> str:
        dataset = (
            Dataset.from_path(data.make_netcdf(task["folder"], task["size"]))
            if array is None
            else Dataset(array, dimension_names=("z", "y", "x"), datatype=kind, **VOXEL)
        )
        levels = task.get("levels", 1)
        dataset_to_zarr(
            dataset, out, chunks=(32,) * 3, shards=(edge,) * 3, levels=levels,
            create_array_kwargs=data.codec_kwargs(task.get("codec", "zstd")),
        )  # fmt: skip
        return f"{out}/0"

    return run


def compress_only(n_tasks: int = 64) -> None:
    """Have the workers compress, out of caches and into nothing: what dask and the cores do."""
    from distributed import get_client

    client = get_client()
    client.gather(client.map(_compress, range(n_tasks), pure=False))


def _compress(number: int) -> None:
    from zstandard import ZstdCompressor

    # As many chunks as a shard of 256^3 has, of which each fits into a core's cache.
    chunk = np.random.default_rng(number).integers(0, 2**11, 32**3, "u2").tobytes()
    codec = ZstdCompressor()
    for _ in range(8**3):
        codec.compress(chunk)


def warm_up(dtype: str) -> None:
    """Load what writes and what makes levels of a dtype: a process spends that once."""
    import dask
    import dask.array as da

    from ctlab_dask_zarr import Dataset, dataset_to_zarr
    from ctlab_dask_zarr.codec import downsample

    tiny = da.zeros((64,) * 3, chunks=32, dtype=dtype)
    dataset = Dataset(
        tiny, dimension_names=("z", "y", "x"), datatype=data.DATATYPES[dtype], **VOXEL
    )
    options = {"chunks": (16,) * 3, "shards": (32,) * 3, "overwrite": True}
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="synchronous"):
        dataset_to_zarr(dataset, f"{folder}/o.zarr", levels=2, **options)
        if importlib.util.find_spec("ctlab_dask_zarr.codec.compiled") is None:
            # An older checkout, which compiles by itself.
            return
        # Small volumes are halved without it, and another process compiles.
        downsample.N_BEFORE_COMPILING = 0
        compiled = importlib.import_module("ctlab_dask_zarr.codec.compiled")
        while not compiled.loaded:
            dataset_to_zarr(dataset, f"{folder}/o.zarr", levels=2, **options)


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


def verify_ours(store: str, source: str | None) -> Callable[[], Any]:
    # A process loads it once, which takes longer than to verify a small store.
    importlib.import_module("ome_zarr_models.v05")
    from ctlab_dask_zarr import verify

    def work() -> None:
        problems = verify(store, source)
        assert problems == [], problems

    return work


def decode_only(store: str) -> Callable[[], Any]:
    """Return what has tensorstore decode shard after shard, on all cores, and keep nothing."""
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store}/0"}}
    array = ts.open(spec, read=True).result()
    shard = array.chunk_layout.write_chunk.shape

    def work() -> None:
        grid = [-(-n // s) for n, s in zip(array.shape, shard, strict=True)]
        for coords in np.ndindex(*grid):
            where = tuple(slice(c * s, min((c + 1) * s, n))
                          for c, s, n in zip(coords, shard, array.shape, strict=True))  # fmt: skip
            array[where].read().result()

    return work


def read_reference(store: str) -> Callable[[], Any]:
    import dask.array as da

    # At its best: blocks of a shard, where the reference would take inner chunks.
    def run() -> None:
        array = da.from_zarr(store, component="0")
        import zarr

        shards = zarr.open_array(f"{store}/0", mode="r").shards
        _touch(da.from_zarr(store, component="0", chunks=shards, name=array.name))

    return run


def netcdf_limit(task: dict[str, Any]) -> float:
    """Return the seconds of nothing but inflating the source, compressing shards and writing.

    Two processes, each with a half of the volume, as two workers would; what brings voxels from
    slices into the order of chunks is not counted.
    """
    from concurrent.futures import ProcessPoolExecutor

    data.make_netcdf(task["folder"], task["size"])
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(int, range(2)))
        return max(pool.map(_half_of_limit, [task] * 2, range(2)))


def _half_of_limit(task: dict[str, Any], half: int) -> float:
    from benchmarks.shard import written_limit
    from ctlab_dask_zarr import Dataset

    size, folder = task["size"], task["folder"]
    edge = size // 2
    source = Dataset.from_path(data.make_netcdf(folder, size)).data
    blocks = [source.blocks[n] for n in range(source.numblocks[0])]
    mine = blocks[half * len(blocks) // 2 : (half + 1) * len(blocks) // 2]
    start = time.perf_counter()
    for block in mine:
        block.compute(scheduler="sync")
    seconds = time.perf_counter() - start
    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    for y in (0, edge):
        for x in (0, edge):
            where = np.s_[half * edge : (half + 1) * edge, y : y + edge, x : x + edge]
            write = written_limit(folder, np.array(raw[where]), half)
            start = time.perf_counter()
            write()
            seconds += time.perf_counter() - start
    return seconds


def _touch(array: Any) -> None:
    """Have every block computed, and keep next to nothing."""
    array.map_blocks(lambda b: b[:1, :1, :1].copy(), dtype=array.dtype).compute()


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Return seconds, and the peak memory in MiB of each process that worked, above its start."""
    pipeline = ZARRS if task["who"] == "zarrs" else None
    if pipeline:
        os.environ["ZARR_CODEC_PIPELINE__PATH"] = pipeline
        import zarrs  # noqa: F401
    # A process spends that once, whoever writes; workers that are not warm still do. dask loads
    # distributed when it first looks for a scheduler.
    for module in ("dask.array", "distributed", "zarr"):
        importlib.import_module(module)
    out = os.path.join(task["folder"], "out.zarr")
    if task["work"] == "read":
        readers = {"ours": read_ours, "tensorstore": decode_only}
        work = readers.get(task["who"], read_reference)(task["store"])
    elif task["work"] == "verify":
        netcdf = data.make_netcdf(task["folder"], task["size"]) if task.get("source") else None
        work = verify_ours(task["store"], netcdf)
    elif task["who"] == "limit":
        return {"seconds": netcdf_limit(task), "mib": [0]}
    elif task["work"] == "compress":
        work = compress_only
    elif task["who"] not in ("ours", "default", "zarrs"):
        work = write_peer(task, out)
    else:
        work = (write_ours if task["who"] == "ours" else write_reference)(task, out)
    with ExitStack() as stack:
        client = None
        if task["scheduler"] == "cluster":
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=task.get("n_workers", 2),
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                )
            )
            client = stack.enter_context(Client(cluster))
            if pipeline:
                client.run(_use_pipeline, pipeline)
        if task.get("warm"):
            dtype = task.get("dtype", "uint16")
            client.run(warm_up, dtype) if client else warm_up(dtype)
        starts = client.run(reset_peak) if client else {"here": reset_peak()}
        start = time.perf_counter()
        place = work()
        seconds = time.perf_counter() - start
        peaks = client.run(peak_mib) if client else {"here": peak_mib()}
    return {"seconds": seconds, "mib": [peaks[w] - starts[w] for w in starts],
            "place": place if isinstance(place, str) else None,
            "n_objects": sum(len(names) for _, _, names in os.walk(out))}  # fmt: skip


def _use_pipeline(pipeline: str) -> None:
    import zarr
    import zarrs  # noqa: F401

    zarr.config.set({"codec_pipeline.path": pipeline})
