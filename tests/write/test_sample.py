"""Before a write goes on, a sample of what is stored is compared with the source at hand."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    StagingExistsError,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset, random_voxels, run_here
from tests.reliability.faults import everything

VOXELS = random_voxels((32, 32, 32))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
CLI_LAYOUT = ("--chunks", "8,8,8", "--shards", "16,16,16", "--workers", "1", "-q")
LOSSY = {
    "create_array_kwargs": {
        "filters": [{"name": "numcodecs.bitround", "configuration": {"keepbits": 3}}]
    }
}


class Stored:
    """A volume that tells how much of it was read."""

    def __init__(self, voxels: np.ndarray, n_readable: int = 99) -> None:
        self._voxels = voxels
        self._n_left = n_readable
        self.n_read = 0
        self.shape, self.dtype, self.ndim = voxels.shape, voxels.dtype, voxels.ndim

    def __getitem__(self, index: Any) -> np.ndarray:
        self._n_left -= 1
        if self._n_left < 0:
            raise OSError("the disk is on fire")
        block = self._voxels[index]
        self.n_read += block.size
        return block


def scan(volume: Stored, edge: int = 16) -> Dataset:
    """A scan that is known by a name, whatever the voxels are."""
    options = {"asarray": False, "inline_array": True, "meta": volume._voxels[:0]}
    return make_dataset(da.from_array(volume, chunks=edge, name="vol", **options))


def made(voxels: np.ndarray, n_readable: int = 99) -> Dataset:
    """The same, of blocks that a function makes."""
    block = Stored(voxels, n_readable)
    array = da.map_blocks(
        lambda block_info: block[tuple(slice(a, b) for a, b in block_info[None]["array-location"])],
        chunks=da.core.normalize_chunks(16, voxels.shape),
        dtype=voxels.dtype,
        meta=voxels[:0],
        name="vol",
    )
    return make_dataset(array)


def write(path: Path, dataset: Dataset, **options: Any) -> None:
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(dataset, path, **(LAYOUT | options))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A write of which half of the eight shards is there."""
    with pytest.raises(WriteFailedError, match="on fire"):
        write(tmp_path / "scan.zarr", scan(Stored(VOXELS, 4)))
    assert len(list(tmp_path.rglob("c.*"))) == 4
    return tmp_path / "scan.zarr"


OTHERS = {
    "read": lambda: scan(Stored(VOXELS + 1)),
    "read in slabs": lambda: scan(Stored(VOXELS + 1), (5, 32, 32)),
    "made": lambda: made(VOXELS + 1),
    "minus its mean": lambda: make_dataset(
        (da.from_array(VOXELS, chunks=16) + da.from_array(VOXELS).min() + 1).astype("u2"),
        identity="vol",
    ),
    "in memory": lambda: make_dataset(da.from_array(VOXELS + 1, chunks=16, name="vol")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_write_is_not_gone_on_with_by_other_voxels_of_the_same_name(
    staged: Path, kind: str
) -> None:
    before = everything(staged.parent)
    match = r"voxels .*: \d+ of \d+ differ from the source, the first at .* instead of .*restart"
    with pytest.raises(StagingExistsError, match=match):
        write(staged, OTHERS[kind](), resume=True)
    assert everything(staged.parent) == before
    write(staged, scan(Stored(VOXELS)), resume=True)
    np.testing.assert_array_equal(dataset_from_zarr(staged).data, VOXELS)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_dataset_that_is_complete_is_not_taken_for_that_of_other_voxels(
    tmp_path: Path, kind: str
) -> None:
    # dask#6036: another volume under the name that the user gave.
    write(tmp_path / "scan.zarr", scan(Stored(VOXELS)))
    before = everything(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"not of this source: voxels .*overwrite"):
        write(tmp_path / "scan.zarr", OTHERS[kind](), resume=True)
    assert everything(tmp_path) == before
    write(tmp_path / "scan.zarr", scan(Stored(VOXELS)), resume=True)
    assert everything(tmp_path) == before


class TestAssignedInPlace:
    """dask#7392: ``x[index] = v`` changes a dask array where it is."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        write(tmp_path / "source.zarr", make_dataset(VOXELS, 16))
        return tmp_path / "source.zarr"

    def test_is_not_written_over_the_unchanged_half(self, source: Path, tmp_path: Path) -> None:
        left = [4]

        def node_dies(block: np.ndarray) -> np.ndarray:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("node lost")
            return block

        first = dataset_from_zarr(source)
        first.data[:] = first.data.map_blocks(node_dies, dtype="u2", meta=VOXELS[:0])
        with pytest.raises(WriteFailedError, match="node lost"):
            write(tmp_path / "a.zarr", first)
        second = dataset_from_zarr(source)
        second.data[:] = 9
        with pytest.raises(StagingExistsError, match=r"source.name was 'setitem-.*restart=True"):
            dataset_to_zarr(second, tmp_path / "a.zarr", resume=True, **LAYOUT)
        dataset_to_zarr(second, tmp_path / "a.zarr", restart=True, **LAYOUT)
        assert (dataset_from_zarr(tmp_path / "a.zarr").data == 9).all().compute()

    def test_is_not_found_complete(self, source: Path, tmp_path: Path) -> None:
        write(tmp_path / "b.zarr", dataset_from_zarr(source))
        changed = dataset_from_zarr(source)
        changed.data[:4] = 5
        with pytest.raises(
            DestinationExistsError, match=r"kind was 'zarr' and is now 'dask'.*overwrite"
        ):
            dataset_to_zarr(changed, tmp_path / "b.zarr", resume=True, **LAYOUT)
        dataset_to_zarr(changed, tmp_path / "b.zarr", overwrite=True, resume=True, **LAYOUT)
        stored = dataset_from_zarr(tmp_path / "b.zarr").data.compute()
        assert (stored[:4] == 5).all()
        np.testing.assert_array_equal(stored[4:], VOXELS[4:])


@pytest.mark.parametrize("is_complete", [False, True])
def test_what_is_stored_and_damaged_is_not_gone_on_with(tmp_path: Path, is_complete: bool) -> None:
    path = tmp_path / "scan.zarr"
    # With a receipt of each shard, so that none of them is read back whole.
    run(prepare_write(scan(Stored(VOXELS)), path, WriteOptions(**LAYOUT), part=(1, 2)))
    if is_complete:
        write(path, scan(Stored(VOXELS)), resume=True)
    for shard in tmp_path.rglob("c.*"):
        data = bytearray(shard.read_bytes())
        data[:-132] = bytes(len(data) - 132)  # all but the index
        shard.write_bytes(data)
    error = DestinationExistsError if is_complete else StagingExistsError
    with pytest.raises(error, match=r"is damaged: 0/c.*(restart|overwrite)=True"):
        write(path, scan(Stored(VOXELS)), resume=True)


def test_a_delayed_write_compares_too(staged: Path) -> None:
    other = dataset_to_zarr(scan(Stored(VOXELS + 1)), staged, resume=True, compute=False, **LAYOUT)
    with dask.config.set(scheduler="sync"), pytest.raises(StagingExistsError, match="differ"):
        other.compute()
    same = dataset_to_zarr(scan(Stored(VOXELS)), staged, resume=True, compute=False, **LAYOUT)
    with dask.config.set(scheduler="sync"):
        same.compute()
        # Once more finds it complete.
        same.compute()
    np.testing.assert_array_equal(dataset_from_zarr(staged).data, VOXELS)


def test_workers_of_a_cluster_compare_too(staged: Path, cluster: Client) -> None:
    with cluster.as_current():
        with pytest.raises(StagingExistsError, match="differ from the source"):
            dataset_to_zarr(scan(Stored(VOXELS + 1)), staged, resume=True, **LAYOUT)
        dataset_to_zarr(scan(Stored(VOXELS)), staged, resume=True, **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(staged).data, VOXELS)


def test_a_part_of_another_source_does_not_join_the_others(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"

    def part(number: int, dataset: Dataset) -> None:
        run(prepare_write(dataset, path, WriteOptions(**LAYOUT), part=(number, 2)))

    part(1, scan(Stored(VOXELS)))
    before = everything(tmp_path)
    with pytest.raises(StagingExistsError, match=r"differ from the source.*ctlab-zarr abort"):
        part(2, scan(Stored(VOXELS + 1)))
    assert everything(tmp_path) == before
    part(2, scan(Stored(VOXELS)))


def test_other_labels_of_the_same_name_are_not_found_complete(tmp_path: Path) -> None:
    write(tmp_path / "scan.zarr", make_dataset(VOXELS))

    def label(value: int) -> None:
        labels = da.from_array(np.full((32, 32, 32), value, "u1"), chunks=16, name="phases")
        labels_to_zarr(labels, tmp_path / "scan.zarr", "phases", resume=True, **LAYOUT)

    label(1)
    label(1)
    with pytest.raises(DestinationExistsError, match="1 instead of 2"):
        label(2)


def test_a_scan_made_again_with_the_size_and_time_of_the_old_one_is_not_the_old_one(
    tmp_path: Path,
) -> None:
    source, path = tmp_path / "tomo_nc", tmp_path / "scan.zarr"
    stored = {"slices_per_block": 16, "compression_level": None}
    write_mango_netcdf(source, VOXELS, **stored)
    times = {block: block.stat().st_mtime_ns for block in source.iterdir()}
    run(prepare_write(Dataset.from_path(source), path, WriteOptions(**LAYOUT), part=(1, 2)))
    write_mango_netcdf(source, VOXELS[::-1], **stored)
    for block, moment in times.items():
        os.utime(block, ns=(moment, moment))
    refused = run_here("convert", source, path, *CLI_LAYOUT, "--resume")
    assert refused.returncode == 4
    assert "differ from the source" in refused.stderr
    assert "--restart" in refused.stderr
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("options", [{}, LOSSY, {"shards": None}], ids=["", "lossy", "plain"])
def test_floats_without_a_number_and_lossy_codecs_are_compared_as_they_are_stored(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    voxels = np.random.default_rng(0).normal(size=(32, 32, 32)).astype("f4")
    voxels[12:20, 12:20, 12:20] = np.nan
    write(tmp_path / "scan.zarr", made(voxels), **options)
    write(tmp_path / "scan.zarr", made(voxels), resume=True, **options)
    with pytest.raises(DestinationExistsError, match="differ from the source"):
        write(tmp_path / "scan.zarr", made(voxels * 3), resume=True, **options)


def test_of_a_source_that_is_read_only_some_inner_chunks_are_read_again(tmp_path: Path) -> None:
    write(tmp_path / "scan.zarr", scan(Stored(VOXELS)))
    again = Stored(VOXELS)
    write(tmp_path / "scan.zarr", scan(again), resume=True)
    assert again.n_read == 4 * 8**3
    slabs = Stored(VOXELS)
    write(tmp_path / "scan.zarr", scan(slabs, (5, 32, 32)), resume=True)
    assert 0 < slabs.n_read <= 4 * 5 * 8**2


def test_of_large_blocks_that_are_made_only_what_is_worth_it_is_made_again(tmp_path: Path) -> None:
    made_again = []

    def make(block: np.ndarray) -> np.ndarray:
        made_again.append(1)
        return block

    edge = 160  # 8 MiB a block
    zeros = da.zeros((4 * edge, edge, edge), chunks=edge, dtype="u2")
    dataset = make_dataset(zeros.map_blocks(make, dtype="u2", meta=VOXELS[:0], name="vol"))
    layout = {"chunks": (80, 80, 80), "shards": (160, 160, 160)}
    write(tmp_path / "scan.zarr", dataset, **layout)
    assert len(made_again) == 4
    write(tmp_path / "scan.zarr", dataset, resume=True, **layout)
    assert len(made_again) == 5


def test_what_threads_finish_after_a_failure_is_not_mixed_with_other_voxels(
    tmp_path: Path,
) -> None:
    both = threading.Barrier(2)

    def fail(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        both.wait(30)
        if block_info[0]["chunk-location"][0]:
            raise OSError("the node is lost")
        time.sleep(0.3)
        return block

    layout: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}
    blocks = da.full((16, 8, 8), 1, dtype="u2", chunks=8)
    failing = blocks.map_blocks(fail, dtype="u2", meta=np.empty((0, 0, 0), "u2"), name="scan")
    with dask.config.set(scheduler="threads", num_workers=2):
        with pytest.raises(WriteFailedError, match="the node is lost"):
            dataset_to_zarr(make_dataset(failing), tmp_path / "a", **layout)
        other = da.from_array(np.full((16, 8, 8), 2, "u2"), chunks=8, name="scan")
        with pytest.raises(StagingExistsError, match="1 instead of 2"):
            dataset_to_zarr(make_dataset(other), tmp_path / "a", resume=True, **layout)
