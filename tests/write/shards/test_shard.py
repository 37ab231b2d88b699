from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.codec.shard import parse_index
from ctlab_dask_zarr.errors import IncompleteDatasetError, ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.layout import Layout, resolve_layout
from ctlab_dask_zarr.planning.plan import array_document
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.shard import write_shards

tensorstore = pytest.importorskip("tensorstore")

CODECS: dict[str, dict[str, Any]] = {
    "zstd": {},
    "zstd with checksum": {"compressors": [zarr.codecs.ZstdCodec(level=1, checksum=True)]},
    "blosc": {"compressors": [zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle")]},
    "gzip": {"compressors": [zarr.codecs.GzipCodec(level=1)]},
    "crc32c": {"compressors": [zarr.codecs.Crc32cCodec()]},
    "zstd, crc32c": {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
    "none": {"compressors": None},
    "transposed": {"filters": [zarr.codecs.TransposeCodec(order=(2, 1, 0))]},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
}
DIRECT = [name for name in CODECS if name not in ("transposed", "big-endian")]
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def stage(root: Path, layout: Layout, dtype: str, fill: Any, codec: str) -> StagedArray:
    document = array_document(
        layout,
        np.dtype(dtype),
        fill_value=fill,
        dimension_names=("z", "y", "x"),
        attributes={},
        separator_threshold=64,
        create_array_kwargs=CODECS[codec],
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "zarr.json").write_text(document)
    return StagedArray(Store(str(root)), "", parse_array_document(document))


def blocks_of(voxels: np.ndarray, cuts: list[int]) -> list[LazyBlock]:
    bounds = [0, *sorted({c for c in cuts if 0 < c < voxels.shape[0]}), voxels.shape[0]]
    return [
        LazyBlock((a, 0, 0), (b - a, *voxels.shape[1:]), lambda a=a, b=b: voxels[a:b])
        for a, b in itertools.pairwise(bounds)
    ]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@st.composite
def volumes(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.integers(1, 14)) for _ in range(3))
    # Few values, so that whole chunks are fill value, as a masked rim is.
    values = [0, 1, 100] if dtype.kind != "f" else [0.0, -0.0, 1.5, np.nan, np.inf]
    elements = st.sampled_from([dtype.type(v) for v in values])
    voxels = draw(hnp.arrays(dtype, shape, elements=elements, fill=elements))
    chunk = tuple(draw(st.integers(1, 6)) for _ in range(3))
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    layout = resolve_layout(shape, chunk, draw(st.sampled_from([shard, None])))
    cuts = draw(st.lists(st.integers(1, 13), max_size=4))
    return voxels, layout, draw(st.sampled_from(values)), cuts


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(volumes(), st.sampled_from(list(CODECS)))
def test_what_is_written_reads_back_to_the_bit_everywhere(
    tmp_path_factory: pytest.TempPathFactory, volume, codec: str
) -> None:
    voxels, layout, fill, cuts = volume
    root = tmp_path_factory.mktemp("shards")
    staged = stage(root, layout, voxels.dtype.str, fill, codec)
    receipts = []
    for row in range(layout.grid_shape[0]):
        tasks = [c for c in layout.task_coords() if c[0] == row]
        span = layout.region(tasks[0])[0]
        blocks = [
            p for p in blocks_of(voxels, cuts)
            if p.start[0] < span.stop and p.start[0] + p.shape[0] > span.start
        ]  # fmt: skip
        receipts += write_shards(staged, tasks, blocks)
    assert len(receipts) == layout.n_objects
    assert all(os.path.getsize(root / r.key) == r.nbytes for r in receipts)
    region = tuple(slice(0, n) for n in voxels.shape)
    if staged.array.is_direct:
        ours = read_region(staged.store, "", staged.array, region, strict=True)
        assert same_bits(ours, voxels)
    assert same_bits(np.asarray(zarr.open_array(root, mode="r")[...]), voxels)
    if codec != "transposed":
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root)}}
        assert same_bits(tensorstore.open(store).result().read().result(), voxels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_region_reads_like_numpy(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    voxels = np.arange(13 * 11 * 9, dtype="u2").reshape(13, 11, 9)
    layout = resolve_layout(voxels.shape, (3, 4, 2), (6, 8, 4))
    root = tmp_path_factory.mktemp("region")
    staged = stage(root, layout, "u2", 0, data.draw(st.sampled_from(DIRECT)))
    for coords in layout.task_coords():
        write_shards(staged, [coords], _one_block(layout, coords, voxels))
    for _ in range(5):
        bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in voxels.shape]
        region = tuple(slice(a, b) for a, b in bounds)
        read = read_region(staged.store, "", staged.array, region, strict=True)
        assert same_bits(read, np.ascontiguousarray(voxels[region]))


def _one_block(layout: Layout, coords: tuple[int, ...], voxels: np.ndarray) -> list[LazyBlock]:
    region = layout.region(coords)
    start = tuple(r.start for r in region)
    return [LazyBlock(start, voxels[region].shape, lambda: voxels[region])]


def _one_shard(tmp_path: Path, codec: str = "zstd") -> tuple[StagedArray, np.ndarray, Path]:
    voxels = np.random.default_rng(1).integers(0, 50, (16, 16, 16), dtype="u2")
    layout = resolve_layout(voxels.shape, (8, 8, 8), (16, 16, 16))
    staged = stage(tmp_path / "a", layout, "u2", 0, codec)
    write_shards(staged, [(0, 0, 0)], _one_block(layout, (0, 0, 0), voxels))
    return staged, voxels, tmp_path / "a" / "c.0.0.0"


def test_a_shard_of_fill_value_is_there_and_is_its_index_alone(tmp_path: Path) -> None:
    layout = resolve_layout((16, 16, 16), (8, 8, 8), (16, 16, 16))
    staged = stage(tmp_path / "a", layout, "u2", 7, "zstd")
    voxels = np.full((16, 16, 16), 7, "u2")
    (receipt,) = write_shards(staged, [(0, 0, 0)], _one_block(layout, (0, 0, 0), voxels))
    assert receipt.nbytes == staged.array.index_nbytes


def test_blocks_that_leave_a_hole_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    layout = resolve_layout((16, 16, 16), (8, 8, 8), (16, 16, 16))
    staged = stage(tmp_path / "a", layout, "u2", 0, "zstd")
    half = LazyBlock((0, 0, 0), (16, 16, 12), lambda: np.zeros((16, 16, 12), "u2"))
    with pytest.raises(RuntimeError, match="do not cover"):
        write_shards(staged, [(0, 0, 0)], [half])
    assert os.listdir(tmp_path / "a") == ["zarr.json"]


def test_a_block_of_another_shape_than_its_chunks_say_is_refused(tmp_path: Path) -> None:
    layout = resolve_layout((16, 16, 16), (8, 8, 8), (16, 16, 16))
    staged = stage(tmp_path / "a", layout, "u2", 0, "zstd")
    lie = LazyBlock((0, 0, 0), (16, 16, 16), lambda: np.zeros((16, 16, 15), "u2"))
    with pytest.raises(ValueError, match="instead of"):
        write_shards(staged, [(0, 0, 0)], [lie])
    assert os.listdir(tmp_path / "a") == ["zarr.json"]


def test_no_more_than_two_slabs_are_alive_while_streaming(tmp_path: Path) -> None:
    import weakref

    layout = resolve_layout((64, 32, 32), (8, 8, 8), (64, 16, 16))
    staged = stage(tmp_path / "a", layout, "u2", 0, "zstd")
    alive: list[weakref.ref] = []
    most = 0

    def load() -> np.ndarray:
        nonlocal most
        slab = np.ones((5, 32, 32), "u2")
        alive.append(weakref.ref(slab))
        most = max(most, sum(ref() is not None for ref in alive))
        return slab

    starts = range(0, 60, 5)
    blocks = [LazyBlock((z, 0, 0), (5, 32, 32), load) for z in starts]
    blocks.append(LazyBlock((60, 0, 0), (4, 32, 32), lambda: load()[:4]))
    write_shards(staged, list(layout.task_coords()), blocks)
    # A row of 8 slices needs at most three slabs of 5.
    assert most <= 3


@pytest.mark.parametrize("codec", ["zstd", "blosc", "gzip", "crc32c"])
def test_damaged_bytes_are_a_clear_error_and_nothing_else(tmp_path: Path, codec: str) -> None:
    staged, voxels, path = _one_shard(tmp_path, codec)
    intact = path.read_bytes()
    region = (slice(0, 16),) * 3
    rng = np.random.default_rng(2)
    for _ in range(300):
        damaged = bytearray(intact)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for place in rng.integers(0, len(damaged), rng.integers(1, 20)):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ShardDecodeError):
            read = read_region(staged.store, "", staged.array, region, strict=True)
            assert read.shape == voxels.shape
    path.write_bytes(intact[:-1])
    with pytest.raises(ShardDecodeError, match=r"c\.0\.0\.0"):
        read_region(staged.store, "", staged.array, region, strict=True)


@given(st.binary(max_size=200), st.sampled_from(DIRECT))
def test_no_bytes_make_a_decoder_do_anything_but_refuse(data: bytes, codec: str) -> None:
    layout = resolve_layout((8, 8, 8), (8, 8, 8), (8, 8, 8))
    document = array_document(
        layout, np.dtype("u2"), fill_value=0, dimension_names=("z", "y", "x"), attributes={},
        separator_threshold=64, create_array_kwargs=CODECS[codec],
    )  # fmt: skip
    array = parse_array_document(document)
    with contextlib.suppress(ShardDecodeError):
        assert memoryview(chunk_codec(array.codecs).decode(data, 1024)).nbytes == 1024
    with pytest.raises(ShardDecodeError):
        parse_index(data[: array.index_nbytes].ljust(array.index_nbytes, b"\1"), array, 10)


def test_a_frame_that_claims_a_terabyte_allocates_nothing(tmp_path: Path) -> None:
    staged, _, _ = _one_shard(tmp_path)
    # A zstd frame header: magic, single segment with an 8-byte content size, then nothing.
    frame = b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little")
    with pytest.raises(ShardDecodeError, match="claims more"):
        chunk_codec(staged.array.codecs).decode(frame, 1024)


def test_a_missing_object_is_an_error_or_fill_value_as_asked(tmp_path: Path) -> None:
    staged, _, path = _one_shard(tmp_path)
    path.unlink()
    region = (slice(0, 4),) * 3
    with pytest.raises(IncompleteDatasetError, match=r"c\.0\.0\.0"):
        read_region(staged.store, "", staged.array, region, strict=True)
    assert not read_region(staged.store, "", staged.array, region, strict=False).any()
