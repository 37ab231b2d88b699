"""How a source is known again, and what is done where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    InvalidArgumentError,
    StagingExistsError,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.planning.identity import (
    identity_difference,
    requested_difference,
    source_difference,
)
from ctlab_dask_zarr.text import in_command, in_python
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((8, 16, 16))
LAYOUT: dict[str, Any] = {"chunks": (2, 8, 8), "shards": (2, 16, 16)}


class Reader:
    """Reads slices of a file that it holds open, so that it cannot be hashed."""

    def __init__(self, n_readable: int = 99) -> None:
        self._lock = threading.Lock()
        self._n_left = n_readable

    def read(self, number: int) -> np.ndarray:
        with self._lock:
            self._n_left -= 1
            if self._n_left < 0:
                raise OSError("the disk is on fire")
            return VOXELS[number]


def stacked(read: Any, n_slices: int = 8, **options: Any) -> Dataset:
    slices = [
        da.from_delayed(dask.delayed(read, **options)(n), VOXELS.shape[1:], VOXELS.dtype)
        for n in range(n_slices)
    ]
    return make_dataset(da.stack(slices))


def source_of(dataset: Dataset) -> dict[str, str]:
    source: dict[str, str] = json.loads(plan(dataset, "a.zarr").identity)["source"]
    return source


IDENTITY = {"arrays": [{"path": "0"}], "datatype": "tomo", "source": {"kind": "a", "size": 3}}


class TestADifference:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"source": {"kind": "a", "size": 4}}, "source.size was 3 and is now 4"),
            ({"source": {"kind": "b", "path": "x"}}, "source.kind was 'a' and is now 'b'"),
            (
                {"arrays": [{"path": "0"}] * 2},
                "begun with levels=1 (--levels 1), and this is with levels=2 (--levels 2)",
            ),
            ({"arrays": [{"path": "1"}]}, "arrays[0].path was '0' and is now '1'"),
            ({"datatype": None}, "datatype was 'tomo' and is now nothing"),
        ],
    )
    def test_of_identities_is_named_by_the_first_thing(self, change: Any, message: str) -> None:
        wanted = json.dumps(IDENTITY | change)
        assert identity_difference(json.dumps(IDENTITY), wanted) == message
        assert identity_difference(None, wanted) == "it does not say what was being written"

    def test_of_settings_is_said_as_the_options_that_were_given(self) -> None:
        layout = {"chunks": (8, 8, 8), "shards": (8, 16, 16), "codec": "gzip:9"}
        begun, now = (
            plan(make_dataset(VOXELS), "a.zarr", levels=2, **options).identity
            for options in (layout, layout | {"shards": None, "codec": None, "downsample": "max"})
        )
        told = identity_difference(begun, now)
        assert in_command(told) == (
            "begun with --downsample mean --shards 8,16,16 --codec gzip:9, "
            "and this is with --downsample max --shards none --codec zstd"
        )
        assert in_python(told) == (
            "begun with downsample='mean', shards=(8, 16, 16), codec='gzip:9', "
            "and this is with downsample='max', shards=None, codec='zstd'"
        )

    def test_of_sources_says_what_to_do_where_dask_has_named_them(self) -> None:
        wanted = json.dumps({"source": {"kind": "dask", "name": "b"}})
        told = source_difference({"kind": "dask", "name": "a"}, wanted)
        assert told.startswith("source.name was 'a' and is now 'b': ")
        assert "identity='a'" in told
        assert source_difference({"kind": "dask", "name": "b"}, wanted) == ""

    def test_of_the_metadata_names_all_that_was_asked_for(self) -> None:
        found = {"voxel_unit": "um", "sample": "A7" * 99}
        told = requested_difference(found, {"voxel_unit": "mm", "scale_placement": "dataset"})
        assert told.startswith("voxel_unit was 'um' and is now 'mm', sample was 'A7A7")
        assert "... and is now nothing, scale_placement was nothing and is now 'dataset'" in told
        assert requested_difference(None, found) == requested_difference(found, found) == ""


class TestASourceChangedInPlace:
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Dataset:
        voxels = make_dataset(VOXELS, extra_attrs={"data_min_max": [0, 99], "sample": "A7"})
        dataset_to_zarr(voxels, tmp_path / "scan.zarr", levels=2, **LAYOUT)
        return dataset_from_zarr(tmp_path / "scan.zarr")

    def test_is_no_longer_what_it_was_opened_from(self, opened: Dataset) -> None:
        assert opened.source is not None
        assert len(opened.levels) == 2
        assert opened.extra_attrs["data_min_max"] == [0, 99]
        opened.data[0] = 7
        assert opened.source is None
        assert opened.levels == ()
        assert source_of(opened)["kind"] == "dask"
        corrected = Dataset.from_modified(opened, voxel_size=(1, 1, 1))
        assert corrected.source is None
        for dataset in (opened, corrected):
            assert dataset.extra_attrs["sample"] == "A7"
            assert "data_min_max" not in dataset.extra_attrs

    def test_is_not_known_by_what_the_user_called_it_before(self) -> None:
        dataset = make_dataset(VOXELS, identity="mine")
        assert source_of(dataset)["name"] == "mine"
        dataset.data[0] = 7
        assert dataset.identity is None
        assert source_of(dataset)["name"] == dataset.data.name

    def test_is_compared_as_it_is_now(self, opened: Dataset, tmp_path: Path) -> None:
        dataset_to_zarr(opened, tmp_path / "copy.zarr", **LAYOUT)
        opened.data[0] = 7
        kinds = {problem.kind for problem in verify(tmp_path / "copy.zarr", opened)}
        assert "voxels" in kinds


class TestAnIdentityThatIsGiven:
    def test_stays_with_the_same_voxels_only(self) -> None:
        dataset = make_dataset(VOXELS, identity="mine")
        assert Dataset.from_modified(dataset, voxel_unit="mm").identity == "mine"
        assert Dataset.from_modified(dataset, data=dataset.data + 1).identity is None
        other = Dataset.from_modified(dataset, data=dataset.data + 1, identity="plus one")
        assert source_of(other) == {"kind": "dask", "name": "plus one"}

    @pytest.mark.parametrize("identity", ["", 7])
    def test_is_a_text(self, identity: Any) -> None:
        with pytest.raises(InvalidArgumentError, match="is not text"):
            make_dataset(VOXELS, identity=identity)


class TestSlicesWithRandomNames:
    def test_are_known_by_their_functions_and_arguments(self) -> None:
        def read(number: int) -> np.ndarray:
            return VOXELS[number]

        first, again = stacked(read), stacked(read)
        assert first.data.name != again.data.name
        assert source_of(first) == source_of(again)
        assert source_of(first)["name"].startswith("tasks-")
        backwards = make_dataset(first.data[::-1])
        assert source_of(first) != source_of(backwards)
        assert source_of(first) != source_of(stacked(lambda n: VOXELS[n] + 1))
        assert any("pure=True" in note for note in plan(first, "a").notes)

    def test_the_plan_says_where_no_other_process_knows_them_and_what_helps(self) -> None:
        dataset = stacked(Reader().read)
        (note,) = plan(dataset, "a").notes
        assert "no other process knows it again" in note
        assert "pure=True" in note
        assert "identity=..." in note
        assert plan(Dataset.from_modified(dataset, identity="mine"), "a").notes == ()

    def test_the_order_of_what_is_joined_counts(self) -> None:
        def joined(*numbers: int) -> Dataset:
            read = dask.delayed(lambda number: VOXELS[number])
            both = dask.delayed(np.stack)([read(number) for number in numbers])
            return make_dataset(da.from_delayed(both, (2, 16, 16), VOXELS.dtype))

        assert source_of(joined(1, 2)) == source_of(joined(1, 2))
        assert source_of(joined(1, 2)) != source_of(joined(2, 1))

    def test_an_array_whose_name_was_to_be_made_without_reading_it_is_not_hashed(self) -> None:
        dataset = make_dataset(da.zeros((300, 512, 512), dtype="u1") + 0)
        assert plan(dataset, "a").random_name is None
        large = da.from_array(np.zeros((300, 512, 512), "u1"), chunks=(100, 512, 512), name=False)
        assert plan(make_dataset(large, datatype=None), "a").random_name == large.name

    def test_a_name_with_its_own_pattern_is_no_harm(self) -> None:
        named = da.from_array(VOXELS, name=f"scan-{uuid.uuid4()}")
        assert source_of(make_dataset(named)) == source_of(make_dataset(named))


def test_an_interrupted_write_of_them_is_gone_on_with_by_the_line_that_is_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    with dask.config.set(scheduler="sync"):
        with pytest.raises(WriteFailedError, match=r"in another one, .*identity='stack-") as failed:
            dataset_to_zarr(stacked(Reader(4).read), path, **LAYOUT)
        again = stacked(Reader().read)
        with pytest.raises(StagingExistsError, match="if the voxels are the same") as refused:
            dataset_to_zarr(again, path, resume=True, **LAYOUT)
        told = str(refused.value).split("identity='")[1].split("'")[0]
        assert f"identity={told!r}" in str(failed.value)
        shards = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("c.*")}
        assert len(shards) >= 1
        dataset_to_zarr(Dataset.from_modified(again, identity=told), path, resume=True, **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(path).data, VOXELS)
    assert {n: (path / "0" / n).stat().st_mtime_ns for n in shards} == shards
    # Queued again after its commit it is told how that is found, too.
    with pytest.raises(DestinationExistsError, match=f"identity={told!r}"):
        dataset_to_zarr(stacked(Reader().read), path, resume=True, **LAYOUT)
    done = Dataset.from_modified(stacked(Reader().read), identity=told)
    dataset_to_zarr(done, path, resume=True, **LAYOUT)


SCRIPT = """
import sys, dask, dask.array as da, numpy as np
from ctlab_dask_zarr import Dataset, dataset_to_zarr
seen = []
def imread(number):
    if sys.argv[2] == "die" and len(seen) == 5: raise RuntimeError("node lost")
    seen.append(number)
    return np.full((16, 16), number, "u2")
slices = [da.from_delayed(dask.delayed(imread)(n), (16, 16), "u2") for n in range(8)]
scan = Dataset(da.stack(slices), dimension_names="zyx", voxel_unit="um", voxel_size=(1, 1, 1))
with dask.config.set(scheduler="sync"):
    dataset_to_zarr(scan, sys.argv[1], chunks=(2, 8, 8), shards=(2, 16, 16), resume=True)
"""


def test_a_script_of_delayed_slices_that_is_run_again_goes_on(tmp_path: Path) -> None:
    # dask#1595, dask#10905: their names are other ones in each process.
    path = tmp_path / "scan.zarr"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    died = subprocess.run([*command, "die"], capture_output=True, text=True, timeout=120)
    assert "node lost" in died.stderr
    assert "Go on by resume=True, or" in died.stderr
    shards = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("c.*")}
    assert len(shards) == 2
    subprocess.run([*command, "go"], check=True, timeout=120)
    stored = dataset_from_zarr(path).data.compute()
    np.testing.assert_array_equal(stored[:, 0, 0], range(8))
    assert {n: (path / "0" / n).stat().st_mtime_ns for n in shards} == shards
