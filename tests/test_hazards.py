"""What happened to users of other writers, and must not happen here.

Hazards that belong to one room have their tests there: replacing and resuming in
``write/staging/test_commit.py``, arguments and reading in ``api/test_write.py``, exit codes in
``cli``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, plan
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((64, 48, 48))
LAYOUT = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks=st.tuples(*[st.integers(3, 30)] * 3), edge=st.sampled_from([8, 16, 24]))
def test_blocks_that_do_not_align_with_shards_lose_no_data(
    blocks: tuple[int, ...], edge: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # zarr-python#3682, dask#12583: two tasks read, change and write one shard.
    voxels = random_voxels((33, 29, 31)) + 1
    path = tmp_path_factory.mktemp("a") / "a.zarr"
    dataset_to_zarr(make_dataset(voxels, blocks), path, chunks=(8, 8, 8), shards=(edge,) * 3)
    np.testing.assert_array_equal(dataset_from_zarr(path).data, voxels)


PROGRAM = """
import sys, time
import dask, dask.array as da, numpy as np
from ctlab_dask_zarr import Dataset, dataset_to_zarr

class Source:
    def identity(self):
        return {"kind": "test"}

    def facts(self):
        return {}

def slow(block):
    time.sleep(0.05)
    return block

voxels = np.random.default_rng(0).integers(0, 100, (64, 48, 48)).astype("u2")
data = da.from_array(voxels, chunks=(16, 16, 16)).map_blocks(slow, meta=voxels[:0])
dataset = Dataset(
    data, dimension_names="zyx", voxel_unit="um", voxel_size=(3, 2, 1.5), datatype="tomo",
    source=Source(),
)
with dask.config.set(scheduler="sync"):
    dataset_to_zarr(
        dataset, sys.argv[1], chunks=(8, 8, 8), shards=(16, 16, 16), resume="resume" in sys.argv
    )
"""


def test_a_killed_job_leaves_no_store_that_reads_as_zeros_and_can_go_on(tmp_path: Path) -> None:
    # Rarr#60, zarr-python#486: metadata first, data later.
    store = tmp_path / "a.zarr"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(store)]
    job = subprocess.Popen(command)
    end = time.monotonic() + 240
    # os.walk takes folders in its stride that are renamed while it looks.
    while sum(n.startswith("c.") for _, _, names in os.walk(tmp_path) for n in names) < 5:
        assert job.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=240)
    assert os.listdir(tmp_path) == [".a.zarr.staging"]
    whole = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("c.*")}
    subprocess.run([*command, "resume"], check=True, timeout=240)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, VOXELS)
    for path, modified in whole.items():
        assert (store / "0" / path.name).stat().st_mtime_ns == modified
    assert not list(store.rglob("*.partial"))


def test_a_worker_killed_in_the_middle_of_a_shard_does_no_harm(
    tmp_path: Path, cluster: Client
) -> None:
    # iohub#415, zarrs#420: a torn file fails every retry.
    mark = tmp_path / "killed"

    def kill_once(block: np.ndarray, block_info=None) -> np.ndarray:
        if block_info[0]["chunk-location"] == (2, 0, 0) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    data = da.from_array(VOXELS, chunks=(4, 48, 48)).map_blocks(
        kill_once, dtype="u2", meta=VOXELS[:0]
    )
    with cluster.as_current():
        dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
    assert mark.exists()
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)
    assert not list(tmp_path.rglob("*.partial"))


def test_blocks_of_a_store_without_shards_are_not_its_chunks(tmp_path: Path) -> None:
    # dask#12586: 262,144 tasks for 2048^3 voxels.
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", chunks=(4, 4, 4), shards=None)
    assert dataset_from_zarr(tmp_path / "a.zarr").data.npartitions == 1


def test_a_shard_of_nothing_but_fill_value_is_written_all_the_same(tmp_path: Path) -> None:
    data = da.full((32, 32, 32), 65535, chunks=16, dtype="u2")
    dataset_to_zarr(make_dataset(data), tmp_path / "a", **LAYOUT)
    assert len(list((tmp_path / "a.zarr" / "0").glob("c.*"))) == 8


def test_codec_settings_of_the_client_are_those_of_the_workers(
    tmp_path: Path, cluster: Client
) -> None:
    codec = zarr.codecs.BloscCodec(cname="lz4", clevel=1)
    with cluster.as_current(), zarr.config.set({"codec_pipeline.batch_size": 1}):
        dataset_to_zarr(
            make_dataset(VOXELS, 16),
            tmp_path / "a",
            create_array_kwargs={"compressors": [codec]},
            **LAYOUT,
        )
    document = json.loads((tmp_path / "a.zarr" / "0" / "zarr.json").read_text())
    inner = document["codecs"][0]["configuration"]["codecs"]
    assert inner[1]["configuration"]["cname"] == "lz4"
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "0", mode="r"), VOXELS)


def test_float64_is_not_stored_as_tomo(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tomo is uint16 but the data is float64"):
        dataset_to_zarr(make_dataset(VOXELS.astype("f8"), datatype="tomo"), tmp_path / "a")


def test_a_whole_array_rechunk_is_never_built() -> None:
    # distributed#7599: memory blow-up, or a disk-sized shuffle.
    data = da.zeros((6540, 2520, 2520), chunks=(40, 2520, 2520), dtype="u2")
    with dask.config.set(num_workers=2):
        rechunk = plan(make_dataset(data), "a").rechunk
    assert rechunk.method == "stream"
    assert rechunk.peak_nbytes < 1.1 * 2**30


def test_the_number_of_objects_is_told_and_warned_of() -> None:
    # icechunk#1867: quotas of 2^21 files.
    data = da.zeros((6400, 2520, 2520), chunks=(512, 512, 512), dtype="u2")
    write_plan = plan(make_dataset(data), "a", shards=None)
    assert write_plan.n_objects > 10**6
    assert any("quotas" in note for note in write_plan.notes)
    # The voxels may need more space than there is here.
    notes = plan(make_dataset(data), "a").notes
    assert not [note for note in notes if "before compression" not in note]


def test_a_dataset_of_another_class_with_the_same_properties_is_written(tmp_path: Path) -> None:
    class Foreign:
        data = da.from_array(VOXELS)
        dimension_names = ("z", "y", "x")
        voxel_size = np.array([3.0, 2.0, 1.5], "f4")
        voxel_unit = "um"
        history = {"a": {"b": "c"}}  # noqa: RUF012
        dataset_id = None
        _datatype = "tomo"

    dataset_to_zarr(Foreign(), tmp_path / "a")  # type: ignore[arg-type]
    found = Dataset.from_path(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.data, VOXELS)
    assert (found.history, str(found.datatype)) == ({"a": {"b": "c"}}, "tomo")
