"""Stores made to do harm: a clear error, bounded memory, and nothing outside the store is read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
import zstandard

from ctlab_dask_zarr import (
    CTLabError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.formats.codecs import crc32c
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((16, 16, 16))
LAYOUT = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    dataset_to_zarr(make_dataset(VOXELS, 16), tmp_path / "a", **LAYOUT)
    return tmp_path / "a.zarr"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(path: Path) -> str:
    """Open and read a store; return the clear error that has to come."""
    with dask.config.set(scheduler="sync"), pytest.raises(CTLabError) as error:
        dataset_from_zarr(path).data.compute()
    assert verify(path)
    return str(error.value)


@pytest.mark.parametrize("path", ["..", "../other", "0/../../x", "/etc", "", ".", "a\\b", "\0"])
def test_dataset_paths_that_lead_out_of_the_store(path: str, store: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path

    edit(store / "zarr.json", change)
    refused(store)


@pytest.mark.parametrize("what", ["0", "0/zarr.json", "0/c.0.0.0"])
def test_links_that_lead_out_of_the_store(what: str, store: Path, tmp_path: Path) -> None:
    path = store / what
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    assert "out of the store" in refused(store)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "l.zarr"
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(make_dataset(VOXELS, 16), path, levels=2, **LAYOUT)
        labels_to_zarr((VOXELS // 30).astype("u1"), path, "ph", **LAYOUT)
    return path


#: Where the paths that are opened or listed are noted; an audit hook cannot be taken away again.
_seen: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    opened = _seen is not None and event in ("open", "os.listdir", "os.scandir")
    if opened and isinstance(arguments[0], str | bytes):
        folder, name = os.path.split(os.fsdecode(arguments[0]))
        if event == "open" and arguments[2] & os.O_NOFOLLOW:
            # A link in this place is an error of the call, and is not followed.
            _seen.append(os.path.join(os.path.realpath(folder), name))
        else:
            _seen.append(os.path.realpath(os.path.join(folder, name)))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Return the list to which all that is opened from now on is added, links resolved."""
    global _seen
    if _seen is None:
        sys.addaudithook(_note)
    _seen = []
    yield _seen
    _seen = None


PLACES = [
    *("zarr.json", "0/zarr.json", "0/receipts.json", "0/c.0.0.0"),
    *("labels/zarr.json", "labels/ph/zarr.json", "labels/ph/0/zarr.json"),
    *("labels/ph/1/receipts.json", "labels/ph/1/c.0.0.0"),
]


@pytest.mark.parametrize("what", [*PLACES, "0", "labels", "labels/ph", "labels/ph/0"])
def test_verify_reads_nothing_outside_of_the_store(
    what: str, labelled: Path, tmp_path: Path, opened: list[str]
) -> None:
    outside = tmp_path / "outside"
    (labelled / what).rename(outside)
    (labelled / what).symlink_to(outside)
    del opened[:]
    with dask.config.set(scheduler="sync"):
        problems = verify(labelled)
    assert any(problem.location == what and "link" in str(problem) for problem in problems)
    assert any(path.startswith(str(labelled)) for path in opened), "the hook sees what is opened"
    assert not [path for path in opened if path.startswith(str(outside))]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_verify_never_waits_for_what_is_no_file_and_names_it(
    kind: str, what: str, labelled: Path
) -> None:
    path = labelled / what
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with dask.config.set(scheduler="sync"):
        problems = verify(labelled)
    assert any(p.location == what and "not an ordinary file" in str(p) for p in problems)


def test_the_store_itself_may_be_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(store)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "link.zarr").data, VOXELS)


@pytest.mark.parametrize(
    "entry", [(2**63, 10), (0, 2**63), (10**6, 10), (2**64 - 2, 4), (0, 2**64 - 1), (5, 10**9)]
)
def test_index_entries_beyond_the_file(entry: tuple[int, int], store: Path) -> None:
    shard = store / "0" / "c.0.0.0"
    data = bytearray(shard.read_bytes())
    index_nbytes = 8 * 16 + 4
    index = bytearray(data[-index_nbytes:-4])
    index[:16] = struct.pack("<QQ", *entry)
    shard.write_bytes(bytes(data[:-index_nbytes]) + index + crc32c(bytes(index)))
    refused(store)


def test_overlapping_entries_are_reported(store: Path) -> None:
    shard = store / "0" / "c.0.0.0"
    data = bytearray(shard.read_bytes())
    index = bytearray(data[-132:-4])
    index[16:32] = index[:16]
    shard.write_bytes(bytes(data[:-132]) + index + crc32c(bytes(index)))
    assert any("overlap" in str(problem) for problem in verify(store))


BOMB = bytes(2**28)


@pytest.mark.parametrize(
    ("codec", "chunk"),
    [
        (zarr.codecs.ZstdCodec(level=1), zstandard.compress(BOMB)),
        (
            zarr.codecs.ZstdCodec(level=1),
            zstandard.ZstdCompressor(write_content_size=False).compress(BOMB),
        ),
        (zarr.codecs.GzipCodec(level=1), gzip.compress(BOMB, 1)),
        (
            zarr.codecs.BloscCodec(),
            struct.pack("<BBBBIII", 2, 1, 1, 2, 2**31, 2**20, 40) + bytes(24),
        ),
    ],
    ids=["zstd", "zstd without a size", "gzip", "blosc"],
)
def test_a_chunk_that_inflates_past_its_shape(codec: Any, chunk: bytes, tmp_path: Path) -> None:
    options = {"chunks": (16, 16, 16), "shards": (16, 16, 16)}
    dataset_to_zarr(
        make_dataset(VOXELS, 16), tmp_path / "a", create_array_kwargs={"compressors": codec},
        **options,
    )  # fmt: skip
    index = struct.pack("<QQ", 0, len(chunk))
    (tmp_path / "a.zarr" / "0" / "c.0.0.0").write_bytes(chunk + index + crc32c(index))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a.zarr")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < len(BOMB) / 2 / 1024


@contextmanager
def little_memory(nbytes: int) -> Iterator[None]:
    """Let this process have only so much more memory than it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@cache
def inflates_to(nbytes: int, codec: str) -> bytes:
    """Return zeros, encoded."""
    part = bytes(2**22)
    if codec == "bz2":
        # Streams that follow one another are one content.
        return bz2.compress(part, 1) * (nbytes // len(part))
    if codec == "gzip":
        return gzip.compress(part, 9) * (nbytes // len(part))
    compressor: Any = zlib.compressobj(9) if codec == "zlib" else lzma.LZMACompressor(preset=0)
    parts = [compressor.compress(part) for _ in range(nbytes // len(part))]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in a checksum"])
@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "plain"])
@pytest.mark.parametrize("codec", ["bz2", "zlib", "lzma", "gzip"])
def test_a_chunk_of_a_rarer_codec_that_inflates_past_its_shape(
    codec: str, sharded: bool, wrapped: bool, tmp_path: Path
) -> None:
    name = {"bz2": "BZ2", "zlib": "Zlib", "lzma": "LZMA", "gzip": "GZip"}[codec]
    codecs = [getattr(zarr.codecs.numcodecs, name)()]
    if wrapped:
        codecs.append(zarr.codecs.numcodecs.Adler32())
    voxels = random_voxels((64, 64, 64))
    layout = {"chunks": (64, 64, 64), "shards": (64, 64, 64) if sharded else None}
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(
            make_dataset(voxels, 64), tmp_path / "a",
            create_array_kwargs={"compressors": codecs}, **layout,
        )  # fmt: skip
        store = tmp_path / "a.zarr"
        np.testing.assert_array_equal(dataset_from_zarr(store).data.compute(), voxels)
        assert verify(store) == []
        chunk = inflates_to(2**30, codec)
        if wrapped:
            chunk = zlib.adler32(chunk).to_bytes(4, "little") + chunk
        index = struct.pack("<QQ", 0, len(chunk))
        end = index + crc32c(index) if sharded else b""
        (store / "0" / "c.0.0.0").write_bytes(chunk + end)
        with little_memory(2**28):
            problem = refused(store)
        is_ours = codec == "zlib" and not wrapped
        assert ("or longer than 524288 bytes" if is_ours else "would become more") in problem


@pytest.mark.parametrize(
    "name", ["zarr.json", "0/zarr.json", "0/receipts.json", "labels/zarr.json"]
)
def test_documents_of_gigabytes_are_not_read(name: str, labelled: Path) -> None:
    os.truncate(labelled / name, 2**33)
    with little_memory(2**28), dask.config.set(scheduler="sync"):
        problems = verify(labelled)
        if name in ("zarr.json", "0/zarr.json"):
            with pytest.raises(CTLabError, match="8,589,934,592 bytes"):
                dataset_from_zarr(labelled)
    assert any(p.location == name and "8,589,934,592 bytes" in str(p) for p in problems)


@pytest.mark.parametrize("codec", ["none", "gzip", "big-endian"])
def test_chunks_of_gigabytes_are_not_read(codec: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "none": {"compressors": None},
        "gzip": {"compressors": zarr.codecs.GzipCodec()},
        "big-endian": {"compressors": None, "serializer": zarr.codecs.BytesCodec(endian="big")},
    }[codec]
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(
            make_dataset(VOXELS, 16), tmp_path / "a", chunks=(16, 16, 16), shards=None,
            create_array_kwargs=options,
        )  # fmt: skip
    os.truncate(tmp_path / "a.zarr" / "0" / "c.0.0.0", 2**33)
    with little_memory(2**28):
        assert "8,589,934,592 bytes" in refused(tmp_path / "a.zarr")


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "plain"])
def test_a_claim_of_a_hundred_million_objects_that_are_not_there_is_told_in_short(
    sharded: bool, tmp_path: Path
) -> None:
    shards = (16, 16, 16) if sharded else None
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(make_dataset(VOXELS, 16), tmp_path / "a", chunks=(8, 8, 8), shards=shards)
        store = tmp_path / "a.zarr"
        n = 16 * 464 if sharded else 8 * 464
        edit(store / "0" / "zarr.json", lambda d: d.update(shape=[n, n, n]))
        edit(store / "zarr.json", lambda d: d["attributes"].pop("ctlab_dask_zarr"))
        os.remove(store / "0" / "receipts.json")
        with little_memory(2**28):
            problems = verify(store)
    missing = [p for p in problems if p.kind == "missing"]
    assert len(missing) < 2000
    n_named = sum(p.location.startswith("0/c") for p in missing)
    n_more = 464**3 - (1 if sharded else 8) - n_named
    assert f"0: and {n_more:,} more objects are missing" in map(str, missing)


def test_absurd_shapes_are_refused_before_a_graph_is_built(store: Path) -> None:
    edit(store / "0" / "zarr.json", lambda d: d.update(shape=[2**40, 2**40, 16]))
    assert "blocks" in refused(store)


def test_deep_json_is_no_metadata(store: Path) -> None:
    (store / "zarr.json").write_text("[" * 200_000 + "]" * 200_000)
    refused(store)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "0/c.0.0.0"])
@pytest.mark.parametrize(
    "kind", ["fifo", "folder", pytest.param("device", marks=pytest.mark.root), "not text"]
)
def test_what_is_no_file_where_one_is_expected_never_hangs(
    kind: str, name: str, store: Path
) -> None:
    path = store / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root can make a device")
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    else:
        path.write_bytes(b"\xff\xfe{}")
    refused(store)
