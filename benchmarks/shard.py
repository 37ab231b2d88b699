"""One shard by one thread, the whole call: against tensorstore, and against its limit.

The limit is the same chunks, in order already, compressed, written and synced.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import Job, Row, Setting, in_turn, quotients, run_apart

_CHUNK = 32
#: Of each codec: what is asked of the speed against tensorstore, and of the time against the limit.
_ASKED = {"zstd": (1.4, 1.15), "blosc": (1.2, 1.1), "none": (1.2, 1.5)}


def shard_rows(setting: Setting) -> list[Row]:
    rows = []
    for codec, (faster, longer) in _ASKED.items():
        seconds = run_apart("benchmarks.shard:timed", folder=setting.folder, edge=setting.size,
                            codec=codec, n_rounds=setting.n_pairs)  # fmt: skip
        name = f"one shard of {setting.size}^3, {codec}, one thread, whole call"
        note = ", ".join(f"{who} {np.median(times):.2f} s" for who, times in seconds.items())
        rows += [
            Row(name, quotients(seconds["tensorstore"], seconds["ours"]), against="tensorstore",
                at_least=faster, note=note),
            Row(name, quotients(seconds["ours"], seconds["limit"]),
                against="compress and write alone", at_most=longer, note=note),
        ]  # fmt: skip
    return rows


def timed(folder: str, edge: int, codec: str, n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, round by round; in a first round modules are loaded."""
    shape = (edge,) * 3
    # Without a rim, so that nobody leaves chunks out.
    block = np.random.default_rng(0).normal(20000, data.NOISE, shape).astype("u2")
    n = edge // _CHUNK
    ordered = np.ascontiguousarray(
        block.reshape(n, _CHUNK, n, _CHUNK, n, _CHUNK).transpose(0, 2, 4, 1, 3, 5)
    ).reshape(-1, _CHUNK**3)
    works = {"ours": _ours(block, codec), "tensorstore": _tensorstore(block, codec),
             "limit": _limit(ordered, codec)}  # fmt: skip
    seconds: dict[str, list[float]] = {who: [] for who in works}
    out = os.path.join(folder, "out.zarr")
    for number in range(n_rounds + 1):
        for who in in_turn(works, number):
            path = f"{out}.limit" if who == "limit" else out
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            works[who](path)
            if number:
                seconds[who].append(time.perf_counter() - start)
            elif who != "limit":
                _check(out, block)
    shutil.rmtree(out, ignore_errors=True)
    os.unlink(f"{out}.limit")
    return seconds


def written_limit(folder: str, block: np.ndarray, n: int) -> Callable[[], None]:
    """Return what compresses a shard, as if its chunks lay in order, by zstd and writes it."""
    write = _limit(block.reshape(-1, _CHUNK**3), "zstd")
    return lambda: write(os.path.join(folder, f"limit-{n}"))


def _ours(block: np.ndarray, codec: str) -> Callable[[str], Any]:
    import dask
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    options: dict[str, Any] = {"chunks": (_CHUNK,) * 3, "shards": block.shape}
    options["create_array_kwargs"] = data.codec_kwargs(codec)
    array = da.from_array(block, chunks=block.shape, name="block")
    dataset = Dataset(array, dimension_names=("z", "y", "x"), datatype="tomo", **VOXEL)

    def write(out: str) -> None:
        with dask.config.set(scheduler="threads", num_workers=1):
            dataset_to_zarr(dataset, out, **options)

    return write


def _tensorstore(block: np.ndarray, codec: str) -> Callable[[str], Any]:
    import tensorstore as ts

    from benchmarks.peers import create_tensorstore

    one = {"limit": 1}
    context = ts.Context({"data_copy_concurrency": one, "file_io_concurrency": one})

    def write(out: str) -> None:
        made = create_tensorstore(out, block.shape, block.dtype, block.shape[0], codec,
                                  context=context)  # fmt: skip
        made.write(block).result()

    return write


def _limit(ordered: np.ndarray, codec: str) -> Callable[[str], Any]:
    encode = _encoder(codec, ordered.dtype.itemsize)

    def write(path: str) -> None:
        with open(path, "wb") as file:
            for chunk in ordered:
                file.write(encode(chunk))
            file.flush()
            os.fsync(file.fileno())

    return write


def _encoder(codec: str, itemsize: int) -> Callable[[np.ndarray], Any]:
    if codec == "none":
        return lambda chunk: chunk
    if codec == "zstd":
        from zstandard import ZstdCompressor

        return ZstdCompressor().compress
    from numcodecs import blosc

    blosc.use_threads = False
    return lambda chunk: blosc.compress(chunk, b"zstd", 5, blosc.BITSHUFFLE, 0, itemsize)


def _check(out: str, block: np.ndarray) -> None:
    from benchmarks.peers import read_back

    np.testing.assert_array_equal(read_back(f"{out}/0", out)[:], block)


JOBS: dict[str, Job] = {"shard": shard_rows}
