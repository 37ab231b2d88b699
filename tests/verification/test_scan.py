"""Shards are read once, whole or by several tasks, and damage is found and named either way."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import dataset_to_zarr
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.receipts import Expected
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.store.opened import LocalObject
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.objects import joined_findings, shard_problems
from ctlab_dask_zarr.verification.scan import ShardScan, joined_crc32c
from tests.builders import make_dataset, random_voxels

N_ROWS = 4
KEY = "0/c.0.0.0"


class CountedObject:
    """An open file that remembers how often each byte was read."""

    def __init__(self, opened: LocalObject, counts: Counter[int]) -> None:
        self._opened, self._counts = opened, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def read(self, start: int, nbytes: int, memory: Any) -> memoryview:
        self._counts.update(range(start, start + nbytes))
        return self._opened.read(start, nbytes, memory)

    def read_end(self, nbytes: int) -> bytes:
        self._counts.update(range(max(self.nbytes - nbytes, 0), self.nbytes))
        return self._opened.read_end(nbytes)


@dataclass(frozen=True)
class CountedFiles(LocalFiles):
    """Files that remember how often each byte was read."""

    counts: Counter[int] = field(default_factory=Counter, compare=False)

    def open_object(self, *arguments: Any) -> Any:
        return CountedObject(super().open_object(*arguments), self.counts)


@pytest.fixture(params=[None, "zstd"])
def shard(request: Any, tmp_path: Path) -> tuple[Store, StoredArray, Expected]:
    """Return one shard of four rows, one of which is fill value alone, and what it has to be."""
    voxels = random_voxels((16, 16, 16))
    voxels[4:8] = 65535
    compressors = None if request.param is None else [zarr.codecs.ZstdCodec(level=1)]
    options = {"create_array_kwargs": {"compressors": compressors, "fill_value": 65535}}
    dataset_to_zarr(
        make_dataset(voxels, 8), tmp_path / "a", chunks=(4, 8, 8), shards=16**3, **options
    )
    store = Store(str(tmp_path / "a.zarr"), CountedFiles())
    content = Path(store.path(KEY)).read_bytes()
    array = parse_array_document(Path(store.path("0/zarr.json")).read_text())
    return store, array, Expected((0, 0, 0), len(content), google_crc32c.value(content))


def scanned(store: Store, array: StoredArray) -> ShardScan:
    opened = store.open(KEY)
    return ShardScan(store, opened, array, opened.read_end(array.index_nbytes))


def problems_of(shard: tuple[Store, StoredArray, Expected], cuts: list[int]) -> Counter[str]:
    store, array, expected = shard
    bounds = zip([0, *cuts], [*cuts, N_ROWS], strict=True)
    findings = [
        finding
        for start, stop in bounds
        for finding in shard_problems(store, "0", array.document, [expected], range(start, stop))
    ]
    found = joined_findings(findings)
    assert {problem.location for problem in found} <= {KEY}
    return Counter(problem.kind for problem in found)


@pytest.mark.parametrize("cuts", [[], [2], [1, 2, 3]])
def test_a_task_reads_each_byte_of_its_part_once(
    cuts: list[int], shard: tuple[Store, StoredArray, Expected]
) -> None:
    store, array, expected = shard
    assert problems_of(shard, cuts) == Counter()
    index = set(range(expected.nbytes - array.index_nbytes, expected.nbytes))
    counts = store.files.counts
    assert {counts[n] for n in range(expected.nbytes) if n not in index} == {1}
    # The index is asked for at the beginning, by each of them, and is a part of the checksum.
    assert {counts[n] for n in index} == {len(cuts) + 2}


def test_any_changed_byte_is_found_by_those_that_share_a_shard_as_by_one(
    shard: tuple[Store, StoredArray, Expected],
) -> None:
    store, array, _ = shard
    path = Path(store.path(KEY))
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 40)
    for place in [0, len(whole) - array.index_nbytes, len(whole) - 1, *places]:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        alone, shared = problems_of(shard, []), problems_of(shard, [1, 2, 3])
        assert alone["checksum"] == 1
        assert shared == alone
    for content, kind in ((whole[:-3], "size"), (b"", "size")):
        path.write_bytes(content)
        assert problems_of(shard, [1, 2, 3]) == problems_of(shard, []) == Counter([kind, "index"])
    path.unlink()
    assert problems_of(shard, [1, 2, 3]) == problems_of(shard, []) == Counter(["missing"])


def test_a_shard_that_is_replaced_while_tasks_share_it_is_not_said_to_be_whole(
    shard: tuple[Store, StoredArray, Expected],
) -> None:
    store, array, expected = shard
    arguments = store, "0", array.document, [expected]
    first = shard_problems(*arguments, range(2))
    assert [p.kind for p in joined_findings(first)] == ["unreadable"]
    last = shard_problems(*arguments, range(2, 4))
    moved = [band._replace(start=band.start + 1) for band in last]
    assert [p.kind for p in joined_findings([*last, *first])] == []
    assert [p.kind for p in joined_findings([*first, *moved])] == ["unreadable"]


def test_shards_of_others_are_read_in_any_order_and_with_gaps(
    shard: tuple[Store, StoredArray, Expected],
) -> None:
    store, array = Store(shard[0].root), shard[1]
    path = Path(store.path(KEY))
    whole = path.read_bytes()
    index = np.frombuffer(whole[-array.index_nbytes : -4], "<u8").reshape(-1, 2)
    content, entries = bytearray(b"gap"), index.copy()
    for number in reversed(range(len(index))):
        offset, nbytes = map(int, index[number])
        if offset < len(whole):
            entries[number, 0] = len(content)
            content += whole[offset : offset + nbytes] + bytes(3 << 20)
    table = entries.tobytes()
    content += table + google_crc32c.value(table).to_bytes(4, "little")
    path.write_bytes(content)
    expected = Expected((0, 0, 0), len(content), google_crc32c.value(bytes(content)))
    for cuts in ([], [1, 3]):
        assert problems_of((store, array, expected), cuts) == Counter()
        wrong = expected._replace(crc32c=expected.crc32c ^ 1)
        assert problems_of((store, array, wrong), cuts) == Counter(["checksum"])
    scan = scanned(store, array)
    assert not scan.in_order
    voxels = {number: chunk.copy() for number, chunk in scan.decoded(range(N_ROWS))}
    path.write_bytes(whole)
    mine = {n: chunk.copy() for n, chunk in scanned(store, array).decoded(range(N_ROWS))}
    assert voxels.keys() == mine.keys()
    assert all(np.array_equal(voxels[n], mine[n]) for n in mine)


def test_checksums_of_parts_are_joined() -> None:
    rng = random.Random(1)
    for nbytes in (0, 1, 2, 3, 1000, 65537):
        first, second = rng.randbytes(rng.randrange(100)), rng.randbytes(nbytes)
        joined = joined_crc32c(google_crc32c.value(first), google_crc32c.value(second), nbytes)
        assert joined == google_crc32c.value(first + second)
