"""Whatever differs from the source is found, by tasks that share shards too, and read once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import Dataset, dataset_to_zarr, verify
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.execution.graphs import analyse_source
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.verification.verify import prepare_verification
from tests.builders import make_dataset, random_voxels, with_voxels

LAYOUT = {"chunks": (4, 8, 8), "shards": (16, 16, 16)}
#: Shards that reach beyond the array, and one that ends with it.
SHAPE = (38, 20, 32)


@pytest.fixture(autouse=True, params=[1, 16])
def threads(request: Any) -> Iterator[int]:
    """Have 16 threads share the shards, or one look at each."""
    with dask.config.set(scheduler="threads", num_workers=request.param):
        yield request.param


def names_of_tasks(path: Path, source: Dataset, n_threads: int) -> Counter[str]:
    checks = prepare_verification(
        path, source, checksums=True, resources=lambda: Resources(n_threads)
    )
    return Counter(str(key[0]).rpartition("-")[0] for key in checks.keys)


@pytest.mark.parametrize(
    "blocks", [(7, 20, 32), (4, 20, 32), (40, 20, 32), 16, (16, 8, 4), (5, 6, 7)]
)
@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8", "float64"])
def test_a_single_other_bit_is_found_wherever_it_is(
    blocks: Any, dtype: str, tmp_path: Path, threads: int
) -> None:
    voxels = random_voxels(SHAPE, dtype)
    voxels[8:24, :16] = 0
    voxels[:4] = np.iinfo("u2").max if dtype == "uint16" else 3
    if dtype.startswith("float"):
        voxels[:2, 1, :3] = np.nan, -0.0, np.inf
    dataset = make_dataset(voxels, blocks)
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    path = tmp_path / "a.zarr"
    assert verify(path, dataset) == []
    rng = np.random.default_rng(0)
    places = [tuple(rng.integers(0, SHAPE).tolist()) for _ in range(6)]
    for place in [(0, 1, 1), (9, 3, 3), (37, 19, 31), *places]:
        changed = voxels.copy()
        bits = changed.view(f"u{changed.itemsize}")
        bits[place] ^= 1
        (problem,) = verify(path, make_dataset(changed, blocks))
        assert problem.kind == "voxels"
        assert f"1 of {np.prod(_shape_of(problem.location))} differ" in problem.message
        assert f"the first at {place}: " in problem.message


def _shape_of(location: str) -> list[int]:
    bounds = [part.split(":") for part in location.removeprefix("voxels ").split(", ")]
    return [int(stop) - int(start) for start, stop in bounds]


def test_slabs_and_aligned_blocks_are_compared_by_rows_and_others_one_by_one(
    tmp_path: Path,
) -> None:
    voxels = random_voxels(SHAPE)
    dataset_to_zarr(make_dataset(voxels), tmp_path / "a", **LAYOUT)
    names = partial(names_of_tasks, tmp_path / "a.zarr")
    assert names(make_dataset(voxels, (4, 20, 32)), 1) == {"compare-rows": 3}
    # A row of inner chunks is the least that a task takes.
    assert names(make_dataset(voxels, (4, 20, 32)), 64) == {"compare-rows": 10}
    assert names(make_dataset(voxels, 16), 1) == {"compare-rows": 12}
    overlapping = make_dataset(voxels, 16)
    shifted = replace_data(overlapping, da.map_overlap(np.copy, overlapping.data, depth=1))
    found = names(shifted, 1)
    assert found["compare-block"] == 12
    assert found["verify-shard"] > 0


def replace_data(dataset: Dataset, data: da.Array) -> Dataset:
    return with_voxels(dataset, data)


def test_differences_in_a_block_are_one_problem(tmp_path: Path, threads: int) -> None:
    voxels = random_voxels(SHAPE)
    dataset_to_zarr(make_dataset(voxels), tmp_path / "a", **LAYOUT)
    problems = verify(tmp_path / "a.zarr", make_dataset(voxels + 1, (4, 20, 32)))
    assert len(problems) == 10
    assert str(problems[0]).startswith(
        "voxels 0:4, 0:20, 0:32: 2560 of 2560 differ from the source"
    )
    assert "the first at (0, 0, 0): " in str(problems[0])


def test_damage_is_told_once_and_hides_no_difference(tmp_path: Path, threads: int) -> None:
    voxels = random_voxels(SHAPE)
    none = {"create_array_kwargs": {"compressors": [zarr.codecs.ZstdCodec(checksum=True)]}}
    dataset_to_zarr(make_dataset(voxels), tmp_path / "a", **LAYOUT, **none)
    store = tmp_path / "a.zarr" / "0"
    (store / "c.0.0.0").unlink()
    damaged = bytearray((store / "c.1.0.0").read_bytes())
    damaged[100] ^= 1
    (store / "c.1.0.0").write_bytes(damaged)
    (store / "c.1.0.1").write_bytes((store / "c.1.0.1").read_bytes()[:-9])
    changed = voxels.copy()
    changed[33, 18, 20] += 1
    changed[3, 3, 3] += 1
    found = verify(tmp_path / "a.zarr", make_dataset(changed, (4, 20, 32)))
    assert Counter((p.location, p.kind) for p in found) == {
        ("0/c.0.0.0", "missing"): 1,
        ("0/c.1.0.0", "decode"): 1,
        ("0/c.1.0.0", "checksum"): 1,
        ("0/c.1.0.1", "size"): 1,
        ("0/c.1.0.1", "index"): 1,
        ("voxels 32:36, 0:20, 0:32", "voxels"): 1,
    }


def test_a_block_that_is_not_what_it_says_hides_no_difference(tmp_path: Path) -> None:
    voxels = random_voxels(SHAPE)
    dataset_to_zarr(make_dataset(voxels), tmp_path / "a", **LAYOUT)
    changed = voxels.copy()
    changed[5, 0, 0] += 1
    data = da.from_array(changed, chunks=(2, 20, 32)).map_blocks(_wrong_first, dtype="u2")
    found = verify(tmp_path / "a.zarr", make_dataset(data))
    assert {(p.location, p.kind) for p in found} == {
        ("voxels 6:8, 0:20, 0:32", "source"),
        ("voxels 4:6, 0:20, 0:32", "voxels"),
    }


def _wrong_first(block: Any, block_info: Any = None) -> Any:
    is_fourth = block_info[0]["chunk-location"][0] == 3
    return block[:1] if is_fourth else block


def test_shards_of_another_program_are_compared_in_whatever_order_they_are(tmp_path: Path) -> None:
    """zarr stores inner chunks in Morton order, and what is beyond the array as it comes."""
    voxels = random_voxels(SHAPE)
    dataset_to_zarr(make_dataset(voxels), tmp_path / "a", **LAYOUT)
    array = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r+")
    array[...] = voxels
    changed = voxels.copy()
    changed[30, 3, 3] += 1
    for source, kinds in ((voxels, set()), (changed, {"voxels"})):
        found = {p.kind for p in verify(tmp_path / "a.zarr", make_dataset(source, (4, 20, 32)))}
        assert found - {"checksum", "size"} == kinds


@pytest.mark.parametrize("slices", [4, 5])
def test_a_source_is_read_once_for_its_voxels_and_for_its_checksums(
    slices: int, tmp_path: Path, threads: int
) -> None:
    folder = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(folder, random_voxels(SHAPE), slices_per_block=slices)
    dataset = Dataset.from_path(folder)
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    names = names_of_tasks(tmp_path / "a.zarr", dataset, 1)
    assert names.keys() == {"compare-rows"}
    assert verify(tmp_path / "a.zarr", folder) == []
    import h5py

    last = sorted(os.listdir(folder))[-1]
    with h5py.File(folder / last, "r+") as file:
        file["md5_checksum"][0] = (int(file["md5_checksum"][0]) + 1) % 100
    (problem,) = verify(tmp_path / "a.zarr", folder)
    assert (problem.location, problem.kind) == (last, "md5")
    # Part of a volume is not what its files have checksums of.
    part = Dataset.from_path(folder)
    part = replace_data(part, part.data[:, 4:])
    dataset_to_zarr(part, tmp_path / "b", **LAYOUT)
    assert names_of_tasks(tmp_path / "b.zarr", part, 1)["check-source"] > 0
    assert {p.kind for p in verify(tmp_path / "b.zarr", part)} == {"md5"}
    assert analyse_source(part.data).is_independent
