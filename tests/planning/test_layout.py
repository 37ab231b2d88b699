from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.planning.layout import align_specs, resolve_layout


@pytest.mark.parametrize(
    ("shape", "shard", "inner"),
    [
        ((40, 65, 97), (64, 96, 128), (32, 32, 32)),
        ((1, 600, 700), (1, 768, 768), (1, 256, 256)),
        ((600, 700), (768, 768), (256, 256)),
        ((21, 200, 300), (21, 224, 320), (21, 32, 32)),
        ((2048, 2520, 2520), (512, 512, 512), (32, 32, 32)),
        ((1, 20000, 9000), (1, 8192, 8192), (1, 256, 256)),
    ],
)
def test_defaults(shape: tuple[int, ...], shard: tuple[int, ...], inner: tuple[int, ...]) -> None:
    layout = resolve_layout(shape)
    assert (layout.shard_shape, layout.inner_chunk_shape) == (shard, inner)


@pytest.mark.parametrize(
    ("chunks", "shards", "inner", "shard"),
    [
        (64**3 - 1, "auto", (64, 64, 64), (512, 512, 512)),
        (64**3 + 1, "auto", (64, 64, 64), (512, 512, 512)),
        (32**3, 128**3, (32, 32, 32), (128, 128, 128)),
        ((48, 48, 48), "auto", (48, 48, 48), (528, 528, 528)),
        ((0, 32, 32), (64, 64, 64), (64, 32, 32), (64, 64, 64)),
        ((32, 32, 32), (0, 64, 64), (32, 32, 32), (1024, 64, 64)),
        ((30, 32, 32), (0, 64, 64), (30, 32, 32), (1020, 64, 64)),
        ((0, 0, 0), (0, 64, 0), (1000, 64, 1000), (1000, 64, 1000)),
        ((0, 32, 32), "auto", (512, 32, 32), (512, 512, 512)),
        ("auto", None, (32, 32, 32), None),
        ((0, 16, 0), None, (1000, 16, 1000), None),
    ],
)
def test_each_form_of_chunks_and_shards(chunks, shards, inner, shard) -> None:
    layout = resolve_layout((1000, 1000, 1000), chunks, shards)
    assert (layout.inner_chunk_shape, layout.shard_shape) == (inner, shard)


@pytest.mark.parametrize(
    ("chunks", "shards", "message"),
    [
        ("auto", (64, 64, 64), "a shape of chunks that divides it"),
        ((32, 32, 32), (48, 64, 64), "do not divide"),
        ((32, 32), "auto", "dimensions"),
        ((32, 32, 32), (64, 64), "dimensions"),
        ((-32, 32, 32), "auto", "negative"),
        ((32, 32, 32), (64, 64, -64), "negative"),
        (True, "auto", "bool"),
        ((32, True, 32), "auto", "bool"),
        (0, "auto", "at least 1"),
        ("auto", 0, "at least 1"),
        ("auto", False, "bool"),
        ((32.0, 32, 32), "auto", "integers"),
        ("big", "auto", "not understood"),
        ("auto", "big", "not understood"),
    ],
)
def test_a_layout_that_cannot_be_is_a_clear_error(chunks, shards, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layout((100, 100, 100), chunks, shards)


def lengths_of(shape: tuple[int, ...], block: tuple[int, ...]) -> list[list[int]]:
    """The lengths of equal blocks along each axis; the last may be shorter."""
    return [
        [min(n - start, b) for start in range(0, n, b)] for n, b in zip(shape, block, strict=True)
    ]


@pytest.mark.parametrize(
    ("shape", "block", "options", "shard", "inner"),
    [
        ((40, 50, 60), (20, 50, 60), {}, (20, 50, 60), (20, 25, 30)),
        ((45, 55, 65), (20, 50, 60), {}, (20, 50, 60), (20, 25, 30)),
        ((40, 50, 60), (20, 50, 60), {"shards": None}, None, (20, 50, 60)),
        ((40, 50, 60), (20, 50, 60), {"shards": None, "chunks": (10, 0, 30)}, None, (10, 50, 30)),
        ((40, 50, 60), (20, 50, 60), {"shards": (10, 0, 30)}, (10, 50, 30), (10, 25, 30)),
        ((40, 50, 60), (20, 50, 60), {"chunks": (5, 0, 15)}, (20, 50, 60), (5, 50, 15)),
        ((512,) * 3, (256,) * 3, {"shards": 64**3, "chunks": 8**3}, (64,) * 3, (8,) * 3),
        # A long axis of one block takes whole chunks, as no block ends inside it.
        ((68, 2914, 2914), (32, 2914, 2914), {}, (32, 2944, 2944), (32, 32, 32)),
        # A prime has no divisor near 32.
        ((68, 1994, 1994), (32, 997, 997), {}, (32, 997, 997), (32, 997, 997)),
        ((1, 600, 700), (1, 300, 700), {}, (1, 300, 700), (1, 300, 350)),
        ((600, 700), (300, 350), {}, (300, 350), (300, 350)),
    ],
)
def test_shards_that_are_the_blocks_of_the_data(shape, block, options, shard, inner) -> None:
    layout = resolve_layout(shape, *align_specs(lengths_of(shape, block), **options))
    assert (layout.shard_shape, layout.inner_chunk_shape) == (shard, inner)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([[20, 10, 20], [50], [60]], {}, "regular aligned chunks.*axis 0.*20, 10, 20"),
        ([[20, 30], [50], [60]], {}, "regular aligned chunks"),
        ([[20, 20], [50], [60]], {"shards": (15, 50, 60)}, "evenly divide.*axis 0"),
        ([[20, 20], [50], [60]], {"shards": (40, 50, 60)}, "evenly divide"),
        ([[20, 20], [50], [60]], {"shards": None, "chunks": (7, 50, 60)}, "evenly divide"),
        ([[20, 20], [50], [60]], {"chunks": (7, 25, 30)}, "do not divide shards"),
        ([[20, 20], [50], [60]], {"chunks": (20, 25)}, "dimensions"),
    ],
)
def test_blocks_that_cannot_be_shards_are_a_clear_error(lengths, options, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_layout(tuple(map(sum, lengths)), *align_specs(lengths, **options))


@pytest.mark.parametrize("shape", [(10,), (2, 3, 4, 5), (0, 3, 4), (3, 4, True)])
def test_a_shape_that_is_no_volume_is_a_clear_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve_layout(shape)


lengths = st.integers(1, 40)


@st.composite
def layouts(draw):
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(lengths) for _ in range(ndim))
    chunk = tuple(draw(st.integers(1, 12)) for _ in range(ndim))
    factor = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    shard = tuple(c * f for c, f in zip(chunk, factor, strict=True))
    return resolve_layout(shape, chunk, draw(st.sampled_from([shard, None])))


@given(layouts())
def test_every_voxel_is_in_one_task_and_every_object_too(layout) -> None:
    voxels: Counter[tuple[int, ...]] = Counter()
    objects: Counter[tuple[int, ...]] = Counter()
    for coords in layout.task_coords():
        region = layout.region(coords)
        voxels.update(itertools.product(*(range(r.start, r.stop) for r in region)))
        objects.update(layout.object_coords(coords))
    assert set(voxels) == set(itertools.product(*map(range, layout.shape)))
    assert set(voxels.values()) == {1}
    assert len(objects) == layout.n_objects
    assert set(objects.values()) == {1}
