"""A hundred thousand damaged inputs: each gives a result or an error of this package.

It runs in a process of its own with a limit of memory, so that a crash of a codec, a hang and a
frame that claims terabytes are all seen as a failure.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import CTLabError
from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.formats.codecs import crc32c
from ctlab_dask_zarr.formats.mango import parse_mango_block
from ctlab_dask_zarr.formats.ome import parse_ome_attributes
from ctlab_dask_zarr.formats.receipts import parse_receipts
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.planning.layout import resolve_layout
from ctlab_dask_zarr.planning.plan import array_document
from ctlab_dask_zarr.store.store import Store
from tests.reliability.fake_files import OneObject

CODECS: dict[str, Any] = {
    "zstd": {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
    "blosc": {
        "name": "blosc",
        "configuration": {
            "cname": "lz4", "clevel": 1, "shuffle": "bitshuffle", "typesize": 2, "blocksize": 0
        },
    },
    "gzip": {"name": "gzip", "configuration": {"level": 1}},
    "crc32c": {"name": "crc32c"},
    "none": None,
}  # fmt: skip
N_SHARDS = 15_000
N_DOCUMENTS = 25_000


class OneFile:
    """Files of which every one has the same content."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, path: str, limit: int = 0) -> bytes:
        return self.data

    def open_object(self, path: str, *_: Any) -> OneObject:
        return OneObject(self.data)

    def stat(self, path: str) -> tuple[int, float]:
        return len(self.data), 0.0


def one_shard(codec: str) -> tuple[StoredArray, bytes]:
    from ctlab_dask_zarr.codec.shard import ChunkRow, row_encoder

    layout = resolve_layout((8, 8, 16), (4, 8, 8), (8, 8, 16))
    document = array_document(
        layout, np.dtype("<u2"), fill_value=0, dimension_names=("z", "y", "x"), attributes={},
        separator_threshold=64, create_array_kwargs={"compressors": CODECS[codec]},
    )  # fmt: skip
    array = parse_array_document(document)
    voxels = np.random.default_rng(0).integers(0, 50, layout.shape).astype("u2")
    encoder = row_encoder(array)
    data = b""
    for start in (0, 4):
        row = ChunkRow(array, (start, 0, 0))
        row.put(voxels, (0, 0, 0))
        data += b"".join(map(bytes, encoder.encode_row(row)))
    return array, data + encoder.finish()


def damaged(data: bytes, rng: np.random.Generator, index_nbytes: int) -> bytes:
    """Flip, cut, insert, swap or lie in the index; the index's checksum may be made right again."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.integers(0, 6)
        at = int(rng.integers(0, max(len(out), 1)))
        if kind == 0 and out:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = rng.bytes(int(rng.integers(1, 20)))
        elif kind == 3:
            other = int(rng.integers(0, max(len(out), 1)))
            out[at : at + 8], out[other : other + 8] = out[other : other + 8], out[at : at + 8]
        elif kind == 4:
            out[at : at + 8] = b"\xff" * 8
        elif len(out) > index_nbytes:
            entry = len(out) - index_nbytes + 8 * int(rng.integers(0, (index_nbytes - 4) // 8))
            values = (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, 2**64 - 2, int(rng.integers(0, 999)))
            out[entry : entry + 8] = int(rng.choice(np.array(values, object))).to_bytes(8, "little")
    if rng.integers(0, 2) and len(out) > index_nbytes:
        out[-4:] = crc32c(bytes(out[-index_nbytes:-4]))
    return bytes(out)


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """Change one thing somewhere in a JSON value."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        "",
        "x" * 50,
        [],
        {},
        [[]],
        "NaN",
        "../..",
        -0.0,
    ]
    if rng.integers(0, 4) == 0 or not isinstance(value, dict | list) or not value:
        return odd[int(rng.integers(0, len(odd)))]
    if isinstance(value, dict):
        key = list(value)[int(rng.integers(0, len(value)))]
        if rng.integers(0, 6) == 0:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], rng)}
    n = int(rng.integers(0, len(value)))
    if rng.integers(0, 6) == 0:
        return value[:n] + value[n + 1 :]
    return [*value[:n], mutated(value[n], rng), *value[n + 1 :]]


def attempt(function: Any, *arguments: Any) -> None:
    with suppress(CTLabError):
        function(*arguments)


def fuzz_shards(codec: str) -> None:
    array, data = one_shard(codec)
    rng = np.random.default_rng(0)
    region = tuple(slice(0, n) for n in array.shape)
    for number in range(N_SHARDS):
        files: Any = OneFile(damaged(data, rng, array.index_nbytes))
        store = Store("/store", files)
        try:
            attempt(lambda store=store: read_region(store, "", array, region, strict=True))
        except BaseException:
            print(f"case {number}: {files.data!r}", file=sys.stderr)
            raise


def fuzz_documents() -> None:
    array, _ = one_shard("zstd")
    document = json.loads(array.document)
    scale = {"type": "scale", "scale": [1.0, 2.0, 3.0]}
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets, "name": "a"}]}
    mango = {
        "metadata_version_major": 1, "basename": "tomo", "dataset_id": "a", "history": {},
        "voxel_size_xyz": [1.0, 1.0, 1.0], "voxel_unit": "mm",
    }  # fmt: skip
    receipts = {
        "format": "ctlab_dask_zarr receipts 1", "grid_shape": [1, 1, 1], "nbytes": [1],
        "crc32c": [2],
    }  # fmt: skip
    rng = np.random.default_rng(1)
    for number in range(N_DOCUMENTS):
        which = number % 4
        value = (document, ome, mango, receipts)[which]
        for _ in range(int(rng.integers(1, 4))):
            value = mutated(value, rng)
        try:
            if which == 0:
                attempt(parse_array_document, json.dumps(value))
            elif which == 1:
                attempt(parse_ome_attributes, value)
            elif which == 2:
                attempt(parse_mango_block, value, ("z", "y", "x"))
            else:
                attempt(parse_receipts, json.dumps(value).encode(), array)
        except BaseException:
            print(f"case {number}: {value!r}", file=sys.stderr)
            raise


@pytest.mark.parametrize("what", [*CODECS, "documents"])
def test_damaged_input_gives_a_result_or_a_clear_error(what: str) -> None:
    command = [sys.executable, __file__, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    # Libraries reserve address space that they never use: twice what is needed is no luxury.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    fuzz_documents() if sys.argv[1] == "documents" else fuzz_shards(sys.argv[1])
