"""One shard against its limit: the same chunks, in order already, compressed and written."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import Any

import numpy as np
from zarr.codecs import BloscCodec

from benchmarks import data
from benchmarks.measure import Row
from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.shard import is_fill
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.layout import resolve_layout
from ctlab_dask_zarr.planning.plan import array_document
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.shard import write_shards

CODECS: dict[str, dict[str, Any]] = {
    "zstd": {},
    "blosc (zstd, bitshuffle)": {
        "compressors": [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")]
    },
    "none": {"compressors": None},
}


def shard_rows(folder: str, size: int, n_pairs: int) -> list[Row]:
    edge = size // 2
    raw = np.memmap(data.make_raw(folder, size), "u2", "r", shape=(size,) * 3)
    block = np.array(raw[:edge, :edge, :edge])
    rows = []
    for name, kwargs in CODECS.items():
        layout, document = _described(block, kwargs)
        for n_threads in (1, 2):
            values = []
            for number in range(n_pairs + 1):
                ours = _in_threads(n_threads, partial(_ours, folder, layout, document, block))
                limit = _in_threads(n_threads, partial(_limit, folder, document, block))
                if number:  # the first round warms up
                    values.append(ours / limit)
            rows.append(Row(f"one {edge}^3 shard, {name}, {n_threads} thread(s): compress and "
                            "write only", "at most 1.15 x", values))  # fmt: skip
    return rows


def written_limit(folder: str, block: np.ndarray, n: int) -> Any:
    """Return what compresses a shard, whose chunks lie in order already, by zstd and writes it."""
    _, document = _described(block, {})
    return _limit(folder, document, block, n)


def _described(block: np.ndarray, kwargs: dict[str, Any]) -> tuple[Any, str]:
    """Return layout and document of an array that is one shard."""
    layout = resolve_layout(block.shape, (32,) * 3, block.shape)
    document = array_document(
        layout, block.dtype, fill_value=data.MASK, dimension_names=("z", "y", "x"),
        attributes={}, separator_threshold=64, create_array_kwargs=kwargs,
    )  # fmt: skip
    return layout, document


def _in_threads(n_threads: int, work: Any) -> float:
    """Return the seconds that the timed part of `work` took, the slowest thread's."""
    seconds = [0.0] * n_threads
    barrier = threading.Barrier(n_threads)

    def run(n: int) -> None:
        timed = work(n)
        barrier.wait()
        start = time.perf_counter()
        timed()
        seconds[n] = time.perf_counter() - start

    threads = [threading.Thread(target=run, args=(n,)) for n in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(seconds)


def _ours(folder: str, layout: Any, document: str, block: np.ndarray, n: int) -> Any:
    root = os.path.join(folder, f"shard-{n}")
    os.makedirs(root, exist_ok=True)
    staged = StagedArray(Store(root), "", parse_array_document(document))
    whole = LazyBlock((0, 0, 0), block.shape, lambda: block)
    return lambda: write_shards(staged, [(0, 0, 0)], [whole])


def _limit(folder: str, document: str, block: np.ndarray, n: int) -> Any:
    array = parse_array_document(document)
    n_rows = block.shape[0] // 32
    ordered = np.ascontiguousarray(
        block.reshape(n_rows, 32, n_rows, 32, n_rows, 32).transpose(0, 2, 4, 1, 3, 5)
    ).reshape(-1, 32**3)
    absent = is_fill(ordered, array)

    def run() -> None:
        codec = chunk_codec(array.codecs)
        with open(os.path.join(folder, f"limit-{n}"), "wb") as file:
            for chunk, is_absent in zip(ordered.view(np.uint8), absent, strict=True):
                if not is_absent:
                    file.write(codec.encode(chunk))

    return run
