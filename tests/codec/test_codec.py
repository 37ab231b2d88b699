"""Objects of every form: written here, read by ours, zarr, zarrs and tensorstore, to the bit."""

from __future__ import annotations

import contextlib
import gc
import itertools
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from ctlab_dask_zarr.codec.chunk import ChunkCodec, chunk_codec
from ctlab_dask_zarr.codec.shard import ABSENT, ChunkRow, parse_index
from ctlab_dask_zarr.codec.zarr_fallback import read_object
from ctlab_dask_zarr.errors import ShardDecodeError
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.planning.layout import Layout, resolve_layout
from ctlab_dask_zarr.planning.plan import array_document
from ctlab_dask_zarr.read.zarr import ZarrSource
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.array import LazyBlock, StagedArray
from ctlab_dask_zarr.write.shards.shard import write_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*not in the Zarr version 3 specification")

DIRECT: dict[str, Any] = {
    "zstd": {"compressors": [ZstdCodec(level=1)]},
    "zstd with checksum": {"compressors": [ZstdCodec(level=0, checksum=True)]},
    "blosc": {"compressors": [BloscCodec(cname="blosclz", clevel=9, shuffle="shuffle")]},
    "gzip": {"compressors": [GzipCodec(level=1)]},
    "lz4": {"compressors": [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}]},
    "zlib": {"compressors": [{"name": "numcodecs.zlib", "configuration": {"level": 1}}]},
    "crc32c": {"compressors": [Crc32cCodec()]},
    "zstd, crc32c": {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "none": {"compressors": None},
}
ODD: dict[str, Any] = {
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "transposed": {"filters": [TransposeCodec(order=(1, 0))]},
    "nested shards": {"serializer": ShardingCodec(chunk_shape=(1, 1)), "compressors": None},
}
DTYPES = [f"{kind}{n}" for kind in "ui" for n in (1, 2, 4, 8)] + ["f2", "f4", "f8"]


def document_of(layout: Layout, dtype: str, fill: Any, codec: str) -> str:
    ndim = len(layout.shape)
    arguments = dict((DIRECT | ODD)[codec])
    if codec == "transposed":
        arguments["filters"] = [TransposeCodec(order=tuple(reversed(range(ndim))))]
    if codec == "nested shards":
        arguments["serializer"] = ShardingCodec(chunk_shape=(1,) * ndim)
    return array_document(
        layout,
        np.dtype(dtype),
        fill_value=fill,
        dimension_names=("z", "y", "x")[-ndim:],
        attributes={},
        separator_threshold=4,
        create_array_kwargs=arguments,
    )


def write(root: Path, voxels: np.ndarray, document: str, cuts: Any) -> StagedArray:
    """Write every object, each task from blocks cut at `cuts`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "zarr.json").write_text(document)
    staged = StagedArray(Store(str(root)), "", parse_array_document(document))
    for coords in staged.layout.task_coords():
        region = staged.layout.region(coords)
        axes = []
        for part, inner in zip(region, cuts, strict=True):
            places = [c for c in sorted(inner) if part.start < c < part.stop]
            axes.append(list(itertools.pairwise([part.start, *places, part.stop])))
        blocks = []
        for bounds in itertools.product(*axes):
            block = voxels[tuple(slice(a, b) for a, b in bounds)]
            blocks.append(LazyBlock(tuple(a for a, _ in bounds), block.shape, lambda b=block: b))
        write_shards(staged, [coords], blocks)
    return staged


def assert_same_bits(found: Any, voxels: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.dtype == voxels.dtype
    assert found.shape == voxels.shape
    assert found.tobytes() == voxels.tobytes()


def open_here(root: Path) -> ZarrSource:
    return ZarrSource(Store(str(root)), "", (root / "zarr.json").read_text(), "", strict=True)


def read_with_zarrs(root: Path) -> Any:
    pytest.importorskip("zarrs", reason="the zarrs codec pipeline is not installed")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(root, mode="r")[...]


def read_with_tensorstore(root: Path) -> Any:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root)}}
    return tensorstore.open(store).result().read().result()


#: What each reader does not know, by its own documentation.
READERS = {
    "ours": (lambda root: open_here(root)[...], ()),
    "zarr": (lambda root: zarr.open_array(root, mode="r")[...], ()),
    "zarrs": (read_with_zarrs, ("lz4",)),
    "tensorstore": (read_with_tensorstore, ("lz4", "zlib")),
}

#: Signalling and quiet NaNs with a payload of their own, and -0.0: bits that values lose.
_BITS = {
    2: [0x0000, 0x8000, 0x3C00, 0x7E00, 0x7E01, 0xFE00, 0x7C00],
    4: [0, 0x80000000, 0x3F800000, 0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800000],
    8: [0, 1 << 63, 0x3FF << 52, 0x7FF8 << 48, (0x7FF8 << 48) + 1, 0xFFF8 << 48, 0x7FF << 52],
}


@st.composite
def volumes(draw: Any) -> tuple[np.ndarray, Layout, Any, list[list[int]]]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=2, max_size=3)))
    if dtype.kind == "f":
        bits = hnp.arrays(
            f"u{dtype.itemsize}", shape, elements=st.sampled_from(_BITS[dtype.itemsize])
        )
        voxels = draw(bits).view(dtype)
        fill = draw(st.sampled_from([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf]))
    else:
        values = [0, 1, np.iinfo(dtype).min, np.iinfo(dtype).max]
        voxels = draw(hnp.arrays(dtype, shape, elements=st.sampled_from(values)))
        fill = draw(st.sampled_from(values))
    if draw(st.booleans()):
        voxels[tuple(slice(n // 2) for n in shape)] = fill
    chunk = tuple(draw(st.integers(1, 6)) for _ in shape)
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    layout = resolve_layout(shape, chunk, draw(st.sampled_from([shard, shard, None])))
    # The axis along which rows follow one another may be cut anywhere; others too, as long as
    # the blocks come in its order, which `write` promises for cuts of one axis only.
    axis = draw(st.integers(0, len(shape) - 1))
    cuts = [
        draw(st.lists(st.integers(1, 11), max_size=4)) if a == axis else []
        for a in range(len(shape))
    ]
    order = draw(st.sampled_from(["C", "F"]))
    big = draw(st.booleans())
    voxels = np.array(voxels, order=order)
    return (
        (voxels.astype(dtype.newbyteorder(">")) if big and dtype.kind != "f" else voxels),
        layout,
        fill,
        cuts,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(volumes(), st.sampled_from(list(DIRECT | ODD)))
def test_every_reader_gets_every_bit_back(
    tmp_path_factory: pytest.TempPathFactory, volume: Any, codec: str
) -> None:
    voxels, layout, fill, cuts = volume
    root = tmp_path_factory.mktemp("a")
    native = voxels.astype(voxels.dtype.newbyteorder("<"))
    write(root, voxels, document_of(layout, native.dtype.str, fill, codec), cuts)
    for read, unknown in READERS.values():
        if codec in unknown or (codec in ODD and read is read_with_zarrs):
            continue
        if codec in ODD and read is read_with_tensorstore and codec == "nested shards":
            continue
        found = read(root)
        if codec in ODD and native.dtype.kind == "f":
            # zarr's own encoder decides by value what is fill: -0.0 and NaNs are its affair.
            np.testing.assert_array_equal(found, native)
        else:
            assert_same_bits(found, native)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), codec=st.sampled_from(list(DIRECT | ODD)))
def test_any_index_reads_what_numpy_gives(
    tmp_path_factory: pytest.TempPathFactory, data: Any, codec: str
) -> None:
    shape = data.draw(st.sampled_from([(13, 11, 9), (1, 17, 10), (12, 10)]))
    voxels = np.arange(np.prod(shape), dtype="u2").reshape(shape)
    layout = resolve_layout(shape, (1, 4, 3)[-len(shape) :], (4, 8, 6)[-len(shape) :])
    root = tmp_path_factory.mktemp("a")
    write(root, voxels, document_of(layout, "u2", 0, codec), [[]] * len(shape))
    volume = open_here(root)
    for _ in range(8):
        index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
        np.testing.assert_array_equal(volume[index], voxels[index])


def one_shard(root: Path, codec: str) -> tuple[StoredArray, np.ndarray, Path]:
    voxels = np.random.default_rng(1).integers(0, 50, (16, 16, 16), dtype="u2")
    layout = resolve_layout(voxels.shape, (8, 8, 8), (16, 16, 16))
    staged = write(root, voxels, document_of(layout, "u2", 0, codec), [[]] * 3)
    return staged.array, voxels, root / "c.0.0.0"


@pytest.mark.parametrize("codec", list(DIRECT | ODD))
def test_a_damaged_shard_is_a_clear_error_and_nothing_else(tmp_path: Path, codec: str) -> None:
    _, voxels, path = one_shard(tmp_path / "a", codec)
    intact = path.read_bytes()
    volume = open_here(tmp_path / "a")
    rng = np.random.default_rng(2)
    for _ in range(60):
        damaged = bytearray(intact)
        if rng.random() < 0.4:
            del damaged[rng.integers(len(damaged)) :]
        for place in rng.integers(0, max(len(damaged), 1), rng.integers(1, 20)):
            damaged[place : place + 1] = bytes([rng.integers(256)])
        path.write_bytes(damaged)
        with contextlib.suppress(ShardDecodeError):
            assert volume[...].shape == voxels.shape


@pytest.mark.parametrize("codec", [c for c in DIRECT if c != "none"])
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 400))
def test_a_decoder_refuses_or_returns_what_was_asked(codec: str, data: bytes, cut: int) -> None:
    layout = resolve_layout((8, 8, 8), (8, 8, 8), (8, 8, 8))
    array = parse_array_document(document_of(layout, "u2", 0, codec))
    coder: ChunkCodec = chunk_codec(array.codecs)
    whole = bytes(coder.encode(np.arange(512, dtype="u2").view(np.uint8)))
    for sample in (data, whole[:cut], whole[:cut] + data, whole[:4] + data):
        with contextlib.suppress(ShardDecodeError):
            assert memoryview(coder.decode(sample, 1024)).nbytes == 1024


@pytest.mark.parametrize(
    ("codec", "frame"),
    [
        ("zstd", b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little")),
        ("blosc", bytes([2, 1, 0, 2]) + (2**31 - 1).to_bytes(4, "little") + bytes(8)),
        ("lz4", (2**31 - 1).to_bytes(4, "little") + bytes(20)),
        ("gzip", None),
    ],
)
def test_a_frame_that_claims_too_much_allocates_nothing(codec: str, frame: bytes | None) -> None:
    layout = resolve_layout((8, 8, 8), (8, 8, 8), (8, 8, 8))
    array = parse_array_document(document_of(layout, "u2", 0, codec))
    coder = chunk_codec(array.codecs)
    bomb = frame or bytes(coder.encode(np.zeros(50_000_000, np.uint8)))
    tracemalloc.start()
    try:
        with pytest.raises(ShardDecodeError):
            coder.decode(bomb, 1024)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1) | st.integers(0, 60),
            st.integers(0, 2**64 - 1) | st.integers(0, 60),
        ),
        min_size=8,
        max_size=8,
    )
)
def test_an_index_is_inside_its_shard_or_refused(entries: list[tuple[int, int]]) -> None:
    layout = resolve_layout((8, 8, 8), (4, 4, 4), (8, 8, 8))
    array = parse_array_document(document_of(layout, "u2", 0, "zstd"))
    from ctlab_dask_zarr.formats.codecs import crc32c

    data = np.array(entries, "<u8").tobytes()
    nbytes = 50 + array.index_nbytes
    inside = all(e == (ABSENT, ABSENT) or e[0] + e[1] <= 50 for e in entries)
    if inside:
        index = parse_index(data + crc32c(data), array, nbytes)
        assert [tuple(map(int, row)) for row in index] == entries
    else:
        with pytest.raises(ShardDecodeError, match="outside"):
            parse_index(data + crc32c(data), array, nbytes)
    with pytest.raises(ShardDecodeError, match="crc32c"):
        parse_index(data + bytes(4 * [crc32c(data)[0] ^ 1]), array, nbytes)


def test_an_odd_object_of_nonsense_is_a_clear_error(tmp_path: Path) -> None:
    array, _, _ = one_shard(tmp_path / "a", "big-endian")
    store = Store(str(tmp_path))
    for data in (b"", b"\0", bytes(500)):
        (tmp_path / "object").write_bytes(data)
        with pytest.raises(ShardDecodeError, match=r"codec rejects|zarr cannot decode|fewer than"):
            read_object(store, "object", array)


def test_big_endian_blocks_as_old_netcdf_has_them_are_stored_little_endian(tmp_path: Path) -> None:
    voxels = np.arange(10 * 9 * 8, dtype=">f4").reshape(10, 9, 8)
    layout = resolve_layout(voxels.shape, (4, 4, 4), (8, 8, 8))
    write(tmp_path, voxels, document_of(layout, "<f4", 0, "zstd"), [[3], [], []])
    np.testing.assert_array_equal(zarr.open_array(tmp_path, mode="r")[...], voxels)


def test_blocks_of_one_shard_are_dropped_as_soon_as_they_are_encoded(tmp_path: Path) -> None:
    layout = resolve_layout((64, 16, 16), (8, 8, 8), (64, 16, 16))
    document = document_of(layout, "u2", 0, "zstd")
    (tmp_path / "zarr.json").write_text(document)
    staged = StagedArray(Store(str(tmp_path)), "", parse_array_document(document))
    alive: list[weakref.ref[Any]] = []
    most = 0

    def load() -> np.ndarray:
        nonlocal most
        gc.collect()
        block = np.ones((8, 8, 16), "u2")
        alive.append(weakref.ref(block))
        most = max(most, sum(ref() is not None for ref in alive))
        return block

    blocks = [LazyBlock((z, y, 0), (8, 8, 16), load) for z in range(0, 64, 8) for y in (0, 8)]
    write_shards(staged, [(0, 0, 0)], blocks)
    assert len(alive) == 16
    assert most <= 2


def _row(edge: int) -> ChunkRow:
    layout = resolve_layout((64, edge, edge), (32, edge, edge), (64, edge, edge))
    text = array_document(
        layout, np.dtype("u2"), fill_value=0, dimension_names=("z", "y", "x"), attributes={},
        separator_threshold=64, create_array_kwargs={},
    )  # fmt: skip
    return ChunkRow(parse_array_document(text), (0, 0, 0))


def test_the_memory_of_a_wide_row_ends_with_its_rows_and_that_of_others_is_used_again() -> None:
    wide = _row(1200)
    memory = weakref.ref(wide.blocks.base)
    assert memory().nbytes > 64 << 20
    following = _row(1200)
    assert np.shares_memory(wide.blocks, following.blocks)
    del wide
    assert memory() is not None
    del following
    assert memory() is None
    first = _row(64).blocks.__array_interface__["data"]
    assert _row(64).blocks.__array_interface__["data"] == first
