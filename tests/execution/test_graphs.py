"""What the functions of users return: wrong dtypes, masks, lists, one buffer again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask._task_spec import Task
from distributed import Client

from ctlab_dask_zarr import (
    BlockError,
    InvalidArgumentError,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.codec.own_memory import OwnMemory
from ctlab_dask_zarr.execution.graphs import accepted_block, analyse_source
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from tests.builders import make_dataset

SHAPE = (32, 32, 32)
MASK = 65535
VOXELS = np.random.default_rng(0).integers(0, 60000, SHAPE).astype("u2")
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
META = np.empty((0, 0, 0), "u2")
ODD = {
    "create_array_kwargs": {
        "filters": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}]
    }
}
#: Ways of writing, by name: the blocks, further arguments, and how blocks become shards.
WAYS: dict[str, tuple[tuple[int, int, int], dict[str, Any], str]] = {
    "blocks in shards": ((8, 8, 8), LAYOUT, "none"),
    "slabs": ((5, 32, 32), LAYOUT, "stream"),
    "overlapping blocks": ((8, 16, 16), LAYOUT, "none"),
    "overlapping blocks that are cut": ((12, 32, 32), LAYOUT, "tasks"),
    "another codec": ((5, 32, 32), LAYOUT | ODD, "stream"),
    "no shards": ((5, 32, 32), {"chunks": (8, 8, 8), "shards": None}, "none"),
    "levels": ((5, 32, 32), LAYOUT | {"levels": 2}, "stream"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def source(way: str, function: Callable[[np.ndarray], Any]) -> da.Array:
    """The voxels, each block of which `function` returns as uint16, or so it is declared."""
    x = da.from_array(VOXELS, chunks=WAYS[way][0])
    if way.startswith("overlapping"):
        x = x.map_overlap(lambda b: b, depth=1, boundary="none")
    return x.map_blocks(function, dtype="u2", meta=META)


def write(way: str, data: da.Array, path: Path, **options: Any) -> None:
    _, layout, method = WAYS[way]
    dataset = make_dataset(data, voxel_size=(1, 1, 1))
    assert plan(dataset, path, **layout, **options).rechunk.method == method
    dataset_to_zarr(dataset, path, **layout, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_block_of_another_dtype_than_declared_fails_the_write(way: str, tmp_path: Path) -> None:
    data = source(way, lambda b: b * 1.500011)
    with pytest.raises(WriteFailedError, match=r"at voxels \d+:.*of float64.*declares uint16"):
        write(way, data, tmp_path / "a")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("returned", ["int16", "float32", "complex64", "bool", ">i2"])
def test_no_dtype_is_cast_in_silence(returned: str, tmp_path: Path) -> None:
    data = source("slabs", lambda b: b.astype(returned))
    with pytest.raises(WriteFailedError, match="BlockError"):
        write("slabs", data, tmp_path / "a")


def test_a_block_of_the_other_byte_order_is_the_same_voxels(tmp_path: Path) -> None:
    write("slabs", source("slabs", lambda b: b.astype(">u2")), tmp_path / "a")
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda b: b.tolist(), "is a list and no NumPy array"),
        (lambda b: b.max(), "is a uint16 and no NumPy array"),
        (lambda b: None, "is a NoneType and no NumPy array"),
        (lambda b: b[1:], "instead of"),
        (lambda b: b[None], "instead of"),
    ],
    ids=["list", "number", "nothing", "smaller", "further axis"],
)
@pytest.mark.parametrize("way", ["slabs", "overlapping blocks", "overlapping blocks that are cut"])
def test_what_is_no_block_of_its_place_fails_the_write(
    way: str, function: Callable[[np.ndarray], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(WriteFailedError, match=said):
        write(way, source(way, function), tmp_path / "a")


@pytest.mark.parametrize("way", WAYS)
def test_masked_voxels_become_the_mask_value(way: str, tmp_path: Path) -> None:
    data = source(way, lambda b: np.ma.masked_greater(b, 30000))
    write(way, data, tmp_path / "a")
    stored = dataset_from_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(stored.data, np.where(VOXELS > 30000, MASK, VOXELS))
    assert verify(tmp_path / "a.zarr", make_dataset(data, voxel_size=(1, 1, 1))) == []
    if "levels" in WAYS[way][1]:
        kept = np.where(VOXELS > 30000, np.nan, VOXELS).reshape(16, 2, 16, 2, 16, 2)
        kept = kept.transpose(0, 2, 4, 1, 3, 5).reshape(16, 16, 16, 8)
        is_valid = np.isfinite(kept).sum(-1) > 4
        coarse = dataset_from_zarr(tmp_path / "a.zarr", level=1).data.compute()
        assert (coarse[~is_valid] == MASK).all()
        means = np.floor(np.nanmean(kept[is_valid], -1) + 0.5)
        np.testing.assert_array_equal(coarse[is_valid], means)


def test_masked_labels_are_not_unmasked(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    classes = make_dataset((VOXELS % 7).astype("u1"), (5, 32, 32)).data
    masked = make_dataset(classes.map_blocks(lambda b: np.ma.masked_equal(b, 3), dtype="u1"))
    with pytest.raises(InvalidArgumentError, match="no value for masked voxels"):
        labels_to_zarr(masked, tmp_path / "a.zarr", "classes")
    undeclared = classes.map_blocks(
        lambda b: np.ma.masked_equal(b, 3), dtype="u1", meta=np.empty((0, 0, 0), "u1")
    )
    with pytest.raises(WriteFailedError, match="masked voxels"):
        labels_to_zarr(make_dataset(undeclared), tmp_path / "a.zarr", "classes")


def test_masked_arrays_without_a_mask_value_are_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    masked = da.ma.masked_greater(da.from_array(VOXELS, chunks=8), 100)
    with pytest.raises(InvalidArgumentError, match=r"no value for masked voxels.*filled"):
        plan(make_dataset(masked, datatype=None), tmp_path / "a")
    with pytest.raises(InvalidArgumentError, match="proju16 has no value for masked voxels"):
        dataset_to_zarr(make_dataset(masked, datatype="proju16"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_masked_array_that_masks_nothing_is_written_as_it_is(tmp_path: Path) -> None:
    data = source("slabs", np.ma.masked_array)
    dataset_to_zarr(make_dataset(data, datatype=None), tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def _refilled(as_returned: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Any]:
    """A block function that fills one buffer, of each thread, again and again."""
    buffers: dict[Any, np.ndarray] = {}

    def function(block: np.ndarray) -> np.ndarray:
        place = (threading.get_ident(), block.shape)
        buffer = buffers.setdefault(place, np.empty_like(block, order="C"))
        buffer[...] = block
        return as_returned(buffer)

    return function


_RETURNED: dict[str, Callable[[np.ndarray], Any]] = {
    "itself": lambda b: b,
    "a view": lambda b: b[:],
    "a view of bytes": lambda b: np.frombuffer(memoryview(b).cast("B"), "u2").reshape(b.shape),
    "masked": lambda b: np.ma.masked_array(b),
    "read-only": lambda b: np.broadcast_to(b, b.shape),
}


@pytest.mark.parametrize(
    ("way", "returned"),
    [
        *((way, "itself") for way in WAYS),
        *(("slabs", returned) for returned in list(_RETURNED)[1:]),
    ],
)
def test_a_buffer_that_is_filled_again_and_again_gives_right_voxels(
    way: str, returned: str, tmp_path: Path
) -> None:
    write(way, source(way, _refilled(_RETURNED[returned])), tmp_path / "a")
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def test_a_block_is_copied_only_where_somebody_else_holds_its_memory() -> None:
    kept: list[Any] = []

    def new() -> Any:
        return np.asarray(OwnMemory(bytearray(b"12345678")))

    def kept_array() -> Any:
        kept.append(new())
        return kept[-1].view("u2")

    def kept_memory() -> Any:
        kept.append(OwnMemory(bytearray(b"12345678")))
        return np.asarray(kept[-1])

    for make, is_copied in {new: False, kept_array: True, kept_memory: True}.items():
        block = BlockRecipe((0,), (8,), (Task("block", make),)).make({})
        assert block.tobytes() == b"12345678"
        assert block.flags.owndata == is_copied


@pytest.mark.parametrize("way", ["slabs", "overlapping blocks that are cut"])
def test_a_buffer_of_each_thread_gives_right_voxels_in_threads(way: str, tmp_path: Path) -> None:
    data = source(way, _refilled(lambda b: b))
    with dask.config.set(scheduler="threads", num_workers=2):
        dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


@pytest.mark.parametrize("chunks", [(8, 16, 16), (5, 32, 32), (12, 32, 32)])
@pytest.mark.parametrize("rearranged", ["rechunked", "beside itself", "both in one shard"])
def test_a_buffer_that_is_filled_again_gives_right_voxels_of_blocks_that_are_rearranged(
    rearranged: str, chunks: tuple[int, int, int], tmp_path: Path
) -> None:
    filled = da.from_array(VOXELS, chunks=chunks).map_blocks(
        _refilled(lambda b: b), dtype="u2", meta=META
    )
    data, expected = {
        "rechunked": lambda: (filled.rechunk(20), VOXELS),
        "beside itself": lambda: (da.concatenate([filled, filled]), np.concatenate([VOXELS] * 2)),
        "both in one shard": lambda: (filled.rechunk(16), VOXELS),
    }[rearranged]()
    dataset = make_dataset(data)
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, expected)
    assert verify(tmp_path / "a.zarr", dataset) == []
    dataset_to_zarr(dataset, tmp_path / "a", resume=True, **LAYOUT)


def test_a_file_that_is_mapped_read_only_is_not_read_whole_to_hold_it(tmp_path: Path) -> None:
    np.save(tmp_path / "voxels.npy", VOXELS)
    node = Task("a", np.load, tmp_path / "voxels.npy", mmap_mode="r")
    assert isinstance(BlockRecipe((), (), (node,)).make({}), np.memmap)


class _Reader:
    """Opens as an array, and reads each part into one buffer."""

    shape, dtype, ndim = SHAPE, np.dtype("u2"), 3

    def __init__(self) -> None:
        self._buffer = np.empty(VOXELS.size, "u2")

    def __getitem__(self, index: Any) -> np.ndarray:
        part = VOXELS[index]
        found = self._buffer[: part.size].reshape(part.shape)
        found[...] = part
        return found


def test_a_reader_that_has_one_buffer_gives_right_voxels(tmp_path: Path) -> None:
    data = da.from_array(_Reader(), chunks=(5, 32, 32), asarray=False)
    dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def _made(data: da.Array) -> np.ndarray:
    """The first block, as a task makes it that writes it."""
    found = analyse_source(data)
    shape = tuple(lengths[0] for lengths in data.chunks)
    recipe, needed = found.recipe((0, 0, 0), (0, 0, 0), shape)
    block: np.ndarray = recipe.make({key: found.nodes[key]() for key in needed})
    return block


@pytest.mark.parametrize(
    "function",
    [lambda b: b + 1, lambda b: (b + 1)[:], lambda b: (b + 1).T, lambda b: np.ma.array(b + 1)],
    ids=["new", "part of what is new", "transposed", "masked"],
)
def test_a_block_that_nobody_else_has_is_not_copied(function: Callable[..., Any]) -> None:
    addresses = []

    def telling(block: np.ndarray) -> np.ndarray:
        made = function(block)
        addresses.append(made.__array_interface__["data"][0])
        return made

    data = da.from_array(VOXELS, chunks=16).map_blocks(telling, dtype="u2", meta=META)
    for _ in range(50):  # also when the interpreter has specialised what runs often
        made = _made(data)
        assert made.__array_interface__["data"][0] == addresses[-1]


def test_parts_of_an_array_in_memory_are_not_copied(tmp_path: Path) -> None:
    data = da.from_array(VOXELS, chunks=(16, 32, 32))
    assert np.shares_memory(_made(data), data.dask[data.name, 0, 0, 0])
    np.save(tmp_path / "voxels.npy", VOXELS)
    mapped = da.from_array(np.load(tmp_path / "voxels.npy", mmap_mode="r"), chunks=(16, 32, 32))
    (opened,) = (value for value in dict(mapped.dask).values() if isinstance(value, np.ndarray))
    assert np.shares_memory(_made(mapped), opened)


def test_what_this_package_reads_is_not_copied(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    data = dataset_from_zarr(tmp_path / "a.zarr").data
    found = analyse_source(data)
    recipe, (shared,) = found.recipe((0, 0, 0), (0, 0, 0), (16, 16, 16))
    volume = found.nodes[shared]()
    read: list[np.ndarray] = []

    class Telling:
        def __getitem__(self, index: Any) -> np.ndarray:
            block: np.ndarray = volume[index]
            read.append(block.__array_interface__["data"][0])
            return block

    made = recipe.make({shared: Telling()})
    assert [made.__array_interface__["data"][0]] == read


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda b: b * 1.5, "is of float64"),
        (lambda b: b.tolist(), "is a list"),
        (lambda b: b[1:], "has shape"),
        (lambda b: b.astype("u4"), "is of uint32"),
    ],
    ids=["floats", "list", "smaller", "wider"],
)
@pytest.mark.parametrize("way", ["slabs", "overlapping blocks"])
def test_verify_tells_that_a_block_of_the_source_is_not_what_it_declares(
    way: str, function: Callable[[np.ndarray], Any], said: str, tmp_path: Path
) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    problems = verify(tmp_path / "a.zarr", make_dataset(source(way, function)))
    assert {problem.kind for problem in problems} == {"source"}
    assert all(said in problem.message for problem in problems)


def test_verify_tells_what_a_mask_hides_now(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    masked = source("slabs", lambda b: np.ma.masked_equal(b, VOXELS[0, 0, 0]))
    problems = verify(tmp_path / "a.zarr", make_dataset(masked))
    assert problems[0].kind == "voxels"
    assert "the first at (0, 0, 0)" in problems[0].message


@pytest.mark.parametrize("lengths", [(3, 0, 3), (0, 6), (6, 0)], ids=str)
def test_blocks_without_voxels_change_nothing(lengths: tuple[int, ...], tmp_path: Path) -> None:
    voxels = np.arange(300 * 4 * 6, dtype="u2").reshape(300, 4, 6)
    data = da.from_array(voxels, chunks=((1,) * 300, (4,), lengths))
    whole = {"chunks": (300, 4, 6), "shards": (300, 4, 6)}
    for blocks, path in (
        (data, tmp_path / "made"),
        # As many as are joined before they are gathered.
        (data.map_overlap(lambda b: b, depth=(1, 0, 0), boundary="none"), tmp_path / "gathered"),
    ):
        dataset_to_zarr(make_dataset(blocks), path, **whole)
        np.testing.assert_array_equal(dataset_from_zarr(f"{path}.zarr").data, voxels)
        assert verify(f"{path}.zarr", make_dataset(blocks)) == []


def test_blocks_that_a_cluster_holds_are_looked_at_too(tmp_path: Path, cluster: Client) -> None:
    with cluster.as_current(), dask.config.set(scheduler="distributed"):
        x = da.from_array(VOXELS, chunks=(12, 32, 32))
        wrong = x.map_blocks(lambda b: b * 1.5, dtype="u2", meta=META).persist()
        with pytest.raises(WriteFailedError, match="is of float64"):
            dataset_to_zarr(make_dataset(wrong), tmp_path / "a", **LAYOUT)
        # Cut, and moved to the other worker, which dask cannot do with masked arrays.
        masked = da.ma.masked_greater(x.map_overlap(lambda b: b, depth=1, boundary="none"), 30000)
        dataset_to_zarr(make_dataset(masked), tmp_path / "b", **LAYOUT)
    stored = dataset_from_zarr(tmp_path / "b.zarr").data
    np.testing.assert_array_equal(stored, np.where(VOXELS > 30000, MASK, VOXELS))


def test_a_delayed_write_raises_what_was_wrong(tmp_path: Path) -> None:
    data = source("slabs", lambda b: b * 1.5)
    write_later = dataset_to_zarr(make_dataset(data), tmp_path / "a", compute=False, **LAYOUT)
    with pytest.raises(BlockError, match="is of float64"):
        write_later.compute()


def test_the_place_of_a_block_is_named() -> None:
    with pytest.raises(BlockError, match="at voxels 4:6, 0:3 "):
        accepted_block([[1]], (4, 0), (2, 3), np.dtype("u1"), None)
