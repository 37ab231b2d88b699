"""Reading: parts of a store from memory, over HTTP and from S3, whole stores, and `verify`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.measure import Job, Row, Setting, interleave, quotients, ratios, run_apart
from benchmarks.readers import WORKS
from benchmarks.slow_http import served
from benchmarks.writes import ASKED, check_equal, installed_peers, reference_rows, written_store

#: What is read within a shard.
_REGIONS = [work for work in WORKS if not work.startswith("open")]
#: How late the server answers.
_DELAY_S = 0.02
#: Shards along each axis of a store of 10^5, and the edge of one.
_N_TINY, _TINY_EDGE = 47, 16


def write_noise(url: str, size: int, edge: int) -> None:
    """Write 12 bits of noise, of which no chunk is left out, and compare what is stored."""
    import dask.array as da
    import numpy as np

    from benchmarks.one import VOXEL
    from benchmarks.readers import READERS
    from ctlab_dask_zarr import Dataset, dataset_to_zarr

    noise = np.random.default_rng(0).integers(0, 4000, (size,) * 3, "u2")
    dataset = Dataset(da.from_array(noise, chunks=edge), dimension_names=("z", "y", "x"),
                      datatype="tomo", **VOXEL)  # fmt: skip
    dataset_to_zarr(dataset, url, chunks=(32,) * 3, shards=(edge,) * 3, overwrite=True)
    np.testing.assert_array_equal(READERS["tensorstore"](url)((slice(0, size),) * 3), noise)


def shard_read_rows(setting: Setting) -> list[Row]:
    """Reads within one shard, in the page cache."""
    url = os.path.join(setting.folder, "noise.zarr")
    run_apart("benchmarks.reads:write_noise", url=url, size=setting.size, edge=setting.size)
    rows = _region_rows(setting, f"read within a shard of {setting.size}^3", url)
    shutil.rmtree(url)
    return rows


def http_read_rows(setting: Setting) -> list[Row]:
    edge = setting.size // 2
    url = os.path.join(setting.folder, "noise.zarr")
    run_apart("benchmarks.reads:write_noise", url=url, size=setting.size, edge=edge)
    name = f"read over HTTP, {_DELAY_S * 1e3:.0f} ms a request, shards of {edge}^3"
    with served(os.path.realpath(setting.folder), _DELAY_S) as root:
        rows = _region_rows(setting, name, f"{root}/noise.zarr")
    shutil.rmtree(url)
    return rows


def s3_read_rows(setting: Setting) -> list[Row]:
    """From the store that is named, or else from moto, against the faster of two others."""
    edge = setting.size // 2
    readers = ["tensorstore"] + (["zarr, obstore"] if find_spec("obstore") else [])
    with _s3(setting) as (found, environment):
        name = f"read from S3, shards of {edge}^3"
        if not found.startswith("s3://"):
            return [Row(name, [], against=", ".join(readers), at_least=1, note=found)]
        url = f"{found.rstrip('/')}/noise.zarr"
        run_apart("benchmarks.reads:write_noise", environment=environment, url=url,
                  size=setting.size, edge=edge)  # fmt: skip
        name += "" if setting.s3 else ", moto"
        return _region_rows(setting, name, url, readers, environment)


@contextmanager
def _s3(setting: Setting) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a URL that may be written and variables that lead there; or why there is none."""
    if setting.s3:
        yield setting.s3, {}
        return
    command = shutil.which("moto_server")
    if command is None or not find_spec("botocore"):
        yield "no --s3, and moto_server or botocore is not installed", {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    server = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        run_apart("benchmarks.reads:make_bucket", environment=environment, name="bench")
        yield "s3://bench", environment
    finally:
        server.kill()
        server.wait()


def make_bucket(name: str) -> None:
    from botocore.exceptions import EndpointConnectionError
    from botocore.session import get_session

    client = get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for _ in range(100):
        try:
            client.create_bucket(Bucket=name)
            return
        except EndpointConnectionError:  # It has only just been started.
            time.sleep(0.2)
    raise RuntimeError("moto_server does not answer")


def _region_rows(
    setting: Setting,
    name: str,
    url: str,
    others: list[str] | None = None,
    environment: dict[str, str] | None = None,
) -> list[Row]:
    others = others or ["tensorstore"]
    found = run_apart(
        "benchmarks.readers:timed", environment=environment, url=url, readers=["ours", *others],
        works=_REGIONS, shape=[setting.size] * 3, n_rounds=setting.n_pairs,
    )  # fmt: skip
    return [_fastest(f"{name}: {work}", seconds, others, 1.0) for work, seconds in found.items()]


def _fastest(
    name: str, seconds: dict[str, list[float]], others: list[str], at_least: float | None
) -> Row:
    """Return the row against the one of the others that is faster."""
    medians = {who: statistics.median(seconds[who]) for who in ("ours", *others)}
    best = min(others, key=medians.__getitem__)
    note = ", ".join(f"{who} {1e3 * value:.3g} ms" for who, value in medians.items())
    values = quotients(seconds[best], seconds["ours"])
    return Row(name, values, against=best, at_least=at_least, note=note)


def part_rows(setting: Setting) -> list[Row]:
    """Opening a store, one slice, one cube: everybody."""
    store = written_store(setting)
    others = ["zarr-python", "dask.array.from_zarr", "xarray.open_zarr", "tensorstore"]
    others += ["anu_ctlab_io"] if find_spec("anu_ctlab_io") else []
    found = run_apart(
        "benchmarks.readers:timed", url=store, readers=["ours", *others],
        works=["open", "slice z", "cube"], shape=[setting.size] * 3, n_rounds=setting.n_pairs,
    )  # fmt: skip
    shutil.rmtree(store)
    return [
        _fastest(f"{work}, shards of {setting.size // 2}^3", seconds, [who], None)
        for work, seconds in found.items()
        for who in others
    ]


def many_rows(setting: Setting) -> list[Row]:
    """A store of 10^5 shards: opening it, and one slice, which is in 2,209 of them."""
    n = 10 if setting.quick else _N_TINY
    url = os.path.join(setting.folder, "many.zarr")
    run_apart("benchmarks.reads:link_store", url=url, grid=[n] * 3, edge=_TINY_EDGE,
              chunk=_TINY_EDGE // 2)  # fmt: skip
    found = run_apart(
        "benchmarks.readers:timed", url=url, readers=["ours", "tensorstore"],
        works=["open", "open, slice z"], shape=[n * _TINY_EDGE] * 3, n_rounds=setting.n_pairs,
    )  # fmt: skip
    shutil.rmtree(url)
    name = f"store of {n**3:,} shards: "
    opening = Row(f"{name}open", found["open"]["ours"], "s", at_most=0.2)
    return [
        opening,
        _fastest(f"{name}open, then one slice", found["open, slice z"], ["tensorstore"], 1.0),
    ]


def link_store(url: str, grid: list[int], edge: int, chunk: int) -> None:
    """Make a store of many shards that are all the same: most are names of one file."""
    import dask.array as da

    from benchmarks.one import VOXEL
    from ctlab_dask_zarr import Dataset, dataset_to_zarr, plan

    options: dict[str, Any] = {"chunks": (chunk,) * 3, "shards": (edge,) * 3}
    one_url = f"{url.removesuffix('.zarr')}-one.zarr"
    noise = np.random.default_rng(0).integers(0, 4000, (edge,) * 3, "u2")
    one = Dataset(da.from_array(noise, chunks=edge), dimension_names=("z", "y", "x"),
                  datatype="tomo", **VOXEL)  # fmt: skip
    dataset_to_zarr(one, one_url, **options)
    shape = tuple(n * edge for n in grid)
    whole = Dataset(da.zeros(shape, chunks=shape, dtype="u2"), dimension_names=("z", "y", "x"),
                    datatype="tomo", **VOXEL)  # fmt: skip
    documents = plan(whole, url, **options).documents
    for document in documents:
        target = os.path.join(url, document.key)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            file.write(document.text)
    (source,) = (
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.join(one_url, "0"))
        for name in names
        if not name.endswith(".json")
    )
    # Few shards have their coordinates in their names, more of them in folders.
    with open(os.path.join(url, "0", "zarr.json")) as file:
        separator = json.load(file)["chunk_key_encoding"]["configuration"]["separator"]
    # No file system has to have more than some ten thousand names of a file.
    most = 20_000
    for number, coords in enumerate(np.ndindex(*grid)):
        target = os.path.join(url, "0", separator.join(("c", *map(str, coords))))
        if not coords[-1]:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        if number % most:
            os.link(source, target)
        else:
            source = shutil.copy(source, target)
    shutil.rmtree(one_url)


def read_rows(setting: Setting) -> list[Row]:
    store = written_store(setting)
    task = _task(setting, store, "read")
    readers = ["ours", *installed_peers()]
    results = interleave({who: {**task, "who": who} for who in readers}, setting.n_pairs)
    shutil.rmtree(store)
    return reference_rows("read back, threads", results, ASKED["read", "threads"])


def _task(setting: Setting, store: str, work: str) -> dict[str, Any]:
    return {"folder": setting.folder, "size": setting.size, "store": store, "work": work,
            "scheduler": "threads", "who": "ours"}  # fmt: skip


def verify_rows(setting: Setting) -> list[Row]:
    """Checking a store, beside decoding every shard of it by tensorstore, which checks less."""
    size = setting.large
    store = written_store(setting, size)
    task = {**_task(setting, store, "verify"), "size": size}
    results = interleave(
        {"ours": task, "decode": {**task, "work": "read", "who": "tensorstore"}}, setting.n_pairs
    )
    shutil.rmtree(store)
    return [
        Row(f"verify, {2 * size**3 / 1e9:.1f} GB, threads",
            [1 / r for r in ratios(results, "decode")],
            against="tensorstore decoding every shard", at_most=1.2),
    ]  # fmt: skip


def source_rows(setting: Setting) -> list[Row]:
    """`verify --source` beside the conversion it checks, on threads."""
    size = setting.large
    data.make_netcdf(setting.folder, size)
    task = {"folder": setting.folder, "size": size, "scheduler": "threads", "who": "ours"}
    convert = {**task, "work": "netcdf"}
    store = os.path.join(setting.folder, "store.zarr")
    results = []
    for _ in range(setting.n_long):
        seconds = interleave({"ours": convert}, 1)["ours"][0]["seconds"]
        os.rename(os.path.join(setting.folder, "out.zarr"), store)
        checked = interleave({"ours": {**task, "work": "verify", "store": store,
                                       "source": True}}, 1)["ours"][0]["seconds"]  # fmt: skip
        os.rename(store, os.path.join(setting.folder, "out.zarr"))
        results.append(checked / seconds)
    check_equal(setting.folder, size)
    return [Row(f"verify --source, {2 * size**3 / 1e9:.1f} GB of mango netCDF, threads", results,
                against="the conversion", at_most=1)]  # fmt: skip


JOBS: dict[str, Job] = {
    "read": read_rows,
    "read-parts": part_rows,
    "read-shard": shard_read_rows,
    "read-http": http_read_rows,
    "read-s3": s3_read_rows,
    "read-many": many_rows,
    "verify": verify_rows,
    "verify-source": source_rows,
}
