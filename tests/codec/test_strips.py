"""Strips change how a row is encoded, and nothing of what is stored."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import dataset_to_zarr
from ctlab_dask_zarr.codec import shard
from ctlab_dask_zarr.codec.shard import strips_of
from ctlab_dask_zarr.planning.layout import resolve_layout
from ctlab_dask_zarr.write.shards.array import LazyBlock
from ctlab_dask_zarr.write.shards.shard import write_shards
from tests.builders import make_dataset
from tests.write.shards.test_shard import CODECS, DIRECT, stage

SHAPE, SHARD, CHUNK = (13, 22, 27), (16, 24, 32), (4, 6, 4)
#: Of one chunk, of five chunks of uint16 (rows of 8), of one and a half rows of them, of all.
STRIPS = [1, 5 * 4 * 6 * 4 * 2, 12 * 4 * 6 * 4 * 2, 1 << 30]


def voxels_of(dtype: str, mask: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    voxels = rng.integers(1, 90, SHAPE).astype(kind)
    if kind.kind == "f":
        voxels[rng.random(SHAPE) < 0.1] = -0.0
        voxels[:4, :6] = 0.0
        voxels[:4, 6:12, :4] = -0.0
        voxels[4:8, 6:8] = np.nan
    voxels[:, 12:] = mask
    voxels[8:, :6, 4:8] = mask
    voxels[5, 13, 9] = 7
    voxels[8:, :6, 8:12] = 7
    return voxels


def blocks_of(voxels: np.ndarray, *cuts: list[int]) -> list[LazyBlock]:
    blocks = []
    for spans in product(*(pairwise([0, *c, n]) for c, n in zip(cuts, SHAPE, strict=True))):
        block = voxels[tuple(slice(*span) for span in spans)]
        start = tuple(a for a, _ in spans)
        blocks.append(LazyBlock(start, block.shape, lambda block=block: block))
    return blocks


VALUES: list[tuple[str, Any, Any]] = [
    ("u2", 65535, 65535), ("u2", 65535, 0), ("u1", 0, 0), ("i2", -7, 3), ("f4", 1e30, 1e30),
    ("f4", -5.0, 0.0), ("f8", 0.0, float("nan")),
]  # fmt: skip
#: zarr encodes whole shards of other codecs: types make no difference to strips there.
CASES = [
    (codec, *values)
    for codec in sorted(CODECS)
    for values in VALUES
    if codec in DIRECT or values[0] == "u2"
]


@pytest.mark.parametrize(("codec", "dtype", "mask", "fill"), CASES)
def test_every_size_of_strips_stores_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, dtype: str, mask: Any, fill: Any
) -> None:
    voxels = voxels_of(dtype, mask)
    # Blocks that are in the order of another axis, and that begin inside of chunks.
    turned = np.asfortranarray(voxels)
    layout = resolve_layout(SHAPE, CHUNK, SHARD)
    found = []
    for number, nbytes in enumerate(STRIPS):
        monkeypatch.setattr(shard, "_STRIP_NBYTES", nbytes)
        monkeypatch.setattr(shard, "_READ_AHEAD_NBYTES", 100 if number % 2 else 1 << 18)
        for source, cuts in ((voxels, ([], [], [])), (turned, ([5], [7, 11], [26]))):
            root = tmp_path / f"{len(found)}"
            staged = stage(root, layout, dtype, fill, codec)
            staged = type(staged)(staged.store, "", staged.array, mask)
            (receipt,) = write_shards(staged, [(0, 0, 0)], blocks_of(source, *cuts))
            found.append((receipt, (root / receipt.key).read_bytes()))
    assert all(one == found[0] for one in found)
    stored = zarr.open_array(root, mode="r")[...]
    np.testing.assert_array_equal(stored.view("u1"), voxels.view("u1"))
    valid = voxels[np.isfinite(voxels) & (voxels != np.dtype(dtype).type(mask))]
    assert (found[0][0].minimum, found[0][0].maximum) == (valid.min(), valid.max())


def test_a_row_of_many_blocks_is_cut_into_fewer_strips(tmp_path: Path) -> None:
    layout = resolve_layout((64, 512, 512), (32, 32, 32), (64, 512, 512))
    array = stage(tmp_path, layout, "u2", 0, "none").array
    for n_blocks, expected in ((1, 4), (16, 4), (32, 2), (1000, 1)):
        strips = [(strip.start, strip.blocks.shape[:3]) for strip in
                  strips_of(array, (0, 0, 0), n_blocks)]  # fmt: skip
        assert len(strips) == expected
        assert [start for start, _ in strips] == sorted(start for start, _ in strips)
        assert sum(int(np.prod(counts)) for _, counts in strips) == 256


@pytest.mark.parametrize("chunk", [(4, 6, 4), (5, 11, 9)])
def test_levels_are_the_same_from_every_size_of_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: tuple[int, ...]
) -> None:
    voxels = voxels_of("u2", 65535)
    shards = tuple(2 * c if c % 2 == 0 else 4 * c for c in chunk)
    stored = []
    for nbytes in STRIPS:
        monkeypatch.setattr(shard, "_STRIP_NBYTES", nbytes)
        out = tmp_path / f"{nbytes}.zarr"
        dataset = make_dataset(voxels, blocks=(5, -1, -1), datatype="tomo")
        dataset_to_zarr(dataset, out, levels=3, chunks=chunk, shards=shards)
        stored.append({p.relative_to(out): p.read_bytes() for p in out.glob("[012]/c*")})
    assert len(stored[0]) >= 3
    assert all(one == stored[0] for one in stored)
