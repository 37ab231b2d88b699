"""What is gone on with, and what is refused because something else was asked for."""

from __future__ import annotations

import json
import os
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
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
)
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.manage.status import write_status
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset, random_voxels, run_here
from tests.reliability.faults import everything

VOXELS = random_voxels((32, 32, 32))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
CLI_LAYOUT = ("--chunks", "8,8,8", "--shards", "16,16,16", "-q")
#: Where the metadata stands otherwise: what a dataset and its write are given.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "group": ({}, {}),
    "array": ({}, {"ome_zarr_version": None}),
    "no data type": ({"datatype": None}, {}),
}
GZIP = {"create_array_kwargs": {"compressors": {"name": "gzip", "configuration": {"level": 5}}}}


#: How many blocks of a scan are made again at most to compare them with what is stored.
SAMPLE = 4


class Identity:
    """A source that says that it is the same one."""

    def identity(self) -> dict[str, str]:
        return {"kind": "test"}

    def facts(self) -> dict[str, str]:
        return {}


def scan(n_readable: int = 8, **options: Any) -> Dataset:
    """A scan of eight blocks of which only the first few can be read."""
    n_left = n_readable

    def load(block: np.ndarray) -> np.ndarray:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError("the disk is on fire")
        return block

    blocks = da.from_array(VOXELS, chunks=16)
    data = blocks.map_blocks(load, dtype="u2", meta=VOXELS[:0])
    return make_dataset(data, source=Identity(), **options)


def write(path: Path, dataset: Dataset, **options: Any) -> None:
    with dask.config.set(scheduler="sync"):
        dataset_to_zarr(dataset, path, **LAYOUT, **options)


def build_part(path: Path, part: int, n_parts: int, dataset: Dataset, **options: Any) -> Any:
    resume = options.pop("resume", False)
    arguments = WriteOptions(**(LAYOUT | options))
    return prepare_write(dataset, path, arguments, part=(part, n_parts), resume=resume)


class TestAfterTheCommit:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_arguments_find_that_it_is_done(self, kind: str, tmp_path: Path) -> None:
        options, arguments = KINDS[kind]
        write(tmp_path / "scan", scan(**options), **arguments)
        before = everything(tmp_path)
        write(tmp_path / "scan", scan(SAMPLE, **options), resume=True, **arguments)
        assert everything(tmp_path) == before

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"voxel_size": (5.0, 5.0, 4.0)}, r"voxel_size_xyz was \[1.5, .* now \[4.0, 5.0, 5.0"),
            ({"voxel_unit": "mm"}, "voxel_unit was 'um' and is now 'mm'"),
            ({"dataset_id": "mine"}, "dataset_id was nothing and is now 'mine'"),
            ({"extra_attrs": {"sample": "A7"}}, "sample was nothing and is now 'A7'"),
        ],
        ids=["size", "unit", "id", "attribute"],
    )
    def test_other_metadata_is_refused_and_named(
        self, kind: str, change: dict[str, Any], named: str, tmp_path: Path
    ) -> None:
        options, arguments = KINDS[kind]
        path = tmp_path / "scan.zarr"
        write(path, scan(**options), **arguments)
        before = everything(tmp_path)
        with pytest.raises(DestinationExistsError, match=named) as error:
            write(path, scan(0, **options, **change), resume=True, **arguments)
        assert "set-voxel" in str(error.value)
        assert "overwrite=True" in str(error.value)
        assert everything(tmp_path) == before
        write(path, scan(**options, **change), overwrite=True, resume=True, **arguments)
        ((name, expected),) = change.items()
        found = getattr(dataset_from_zarr(path), name)
        assert found["sample"] == "A7" if name == "extra_attrs" else found == expected

    def test_another_placement_of_the_scale_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "scan", scan())
        with pytest.raises(DestinationExistsError, match="scale_placement was 'dataset'"):
            write(tmp_path / "scan", scan(0), resume=True, scale_placement="multiscales")

    def test_other_colours_of_labels_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.zarr"
        write(path, scan())
        labels = make_dataset((VOXELS % 3).astype("u1"), source=Identity())
        labels_to_zarr(labels, path, "phases", colors={1: (255, 0, 0)}, **LAYOUT)
        same = {"colors": {1: (255, 0, 0)}, "resume": True}
        labels_to_zarr(labels, path, "phases", **same, **LAYOUT)
        other = {"colors": {1: (0, 255, 0)}, "resume": True}
        with pytest.raises(DestinationExistsError, match=r"image-label was .* is now"):
            labels_to_zarr(labels, path, "phases", **other, **LAYOUT)

    def test_metadata_that_was_corrected_later_is_in_nobodys_way(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.zarr"
        write(path, scan())
        edit_metadata(path, voxel_size=7.0, dataset_id="other", history={"note": {"by": "me"}})
        before = everything(path)
        write(path, scan(SAMPLE), resume=True)
        write(path, scan(SAMPLE), resume=True, overwrite=True)
        assert everything(path) == before

    def test_a_history_that_grew_is_no_other_write(self, tmp_path: Path) -> None:
        """A script that adds its own entry, by the time, is run again."""
        write(tmp_path / "scan", scan(history={"20200101_000000_crop": {"by": "me"}}))
        write(tmp_path / "scan", scan(SAMPLE, history={"20200102_000000_crop": {}}), resume=True)

    def test_a_store_of_an_earlier_version_is_not_asked_what_it_was_asked_for(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "scan.zarr"
        write(path, scan())
        document = json.loads((path / "zarr.json").read_text())
        del document["attributes"]["ctlab_dask_zarr"]["requested"]
        (path / "zarr.json").write_text(json.dumps(document))
        write(path, scan(SAMPLE, voxel_size=(5.0, 5.0, 5.0)), resume=True)


class TestAnInterruptedWrite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with pytest.raises(WriteFailedError, match="on fire"):
            write(tmp_path / "scan.zarr", scan(4, dataset_id="first"))
        return tmp_path / "scan.zarr"

    def test_gets_the_metadata_that_is_asked_for_last(self, path: Path) -> None:
        other = {"voxel_size": (5.0, 5.0, 5.0), "dataset_id": "last", "history": {"a": {"b": 1}}}
        write(path, scan(4 + SAMPLE, **other), resume=True)
        dataset = dataset_from_zarr(path)
        assert dataset.voxel_size == (5.0, 5.0, 5.0)
        assert (dataset.dataset_id, dict(dataset.history)) == ("last", {"a": {"b": 1}})
        # And that is what it is known by from here on.
        write(path, scan(SAMPLE, **other), resume=True)
        with pytest.raises(DestinationExistsError, match="voxel_size_xyz"):
            write(path, scan(0, dataset_id="last"), resume=True)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"levels": 2}, "begun with levels=1, and this is with levels=2"),
            (
                {"datatype": "proju16"},
                "begun with datatype='tomo', and this is with datatype='proju16'",
            ),
            ({"codec": "none"}, "begun with codec='zstd', and this is with codec='none'"),
            (GZIP, "begun with codec='zstd', and this is with codec='gzip'"),
            (
                {
                    "create_array_kwargs": {
                        "filters": [{"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}]
                    }
                },
                r"codecs\[0\]",
            ),
            (
                {"shards": (32, 16, 16)},
                r"with shards=\(16, 16, 16\), and this is with shards=\(32, 16, 16\)",
            ),
        ],
    )
    def test_other_settings_are_named_and_nothing_around_them(
        self, path: Path, change: dict, named: str
    ) -> None:
        with pytest.raises(StagingExistsError, match=named) as error:
            dataset_to_zarr(scan(0), path, resume=True, **(LAYOUT | change))
        assert len(str(error.value)) < 300 + len(str(path))
        assert "restart=True" in str(error.value)

    def test_says_how_many_shards_are_whole_half_made_and_missing(self, path: Path) -> None:
        shards = sorted(path.parent.rglob("c.*"))
        assert len(shards) == 4
        shards[0].write_bytes(shards[0].read_bytes()[:-5])
        shards[1].write_bytes(b"")
        remaining = prepare_write(scan(), path, WriteOptions(**LAYOUT), resume=True).remaining
        assert (remaining.n_done, remaining.n_half_made, len(remaining.tasks)) == (2, 2, 6)

    def test_chunks_without_shards_of_which_some_are_missing_are_half_made(
        self, tmp_path: Path
    ) -> None:
        run(build_part(tmp_path / "plain", 1, 1, scan(), shards=None))
        chunks = list(tmp_path.rglob("c.*"))
        assert len(chunks) == 64
        chunks[0].unlink()
        remaining = build_part(tmp_path / "plain", 1, 1, scan(), shards=None).remaining
        assert (remaining.n_done, remaining.n_half_made, len(remaining.tasks)) == (0, 1, 1)


class TestReplacing:
    """A job script may always give --resume, with --overwrite too."""

    def test_the_same_job_that_is_queued_again_after_its_commit_is_done(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "scan.zarr"
        write(path, make_dataset(VOXELS + 1, 16), overwrite=True)
        write(path, scan(), overwrite=True, resume=True)
        before = everything(path)
        write(path, scan(SAMPLE), overwrite=True, resume=True)
        assert everything(path) == before

    def test_what_is_being_replaced_by_the_same_anew_is_replaced_to_the_end(
        self, tmp_path: Path
    ) -> None:
        """The old dataset was damaged, say, and its replacement was interrupted."""
        path = tmp_path / "scan.zarr"
        write(path, scan())
        for shard in path.glob("0/c*"):
            shard.write_bytes(b"damaged")
        with pytest.raises(WriteFailedError, match="on fire"):
            write(path, scan(4), overwrite=True)
        write(path, scan(4 + SAMPLE), overwrite=True, resume=True)
        np.testing.assert_array_equal(dataset_from_zarr(path).data.compute(), VOXELS)
        assert os.listdir(tmp_path) == ["scan.zarr"]

    def test_without_resume_it_is_made_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.zarr"
        write(path, scan())
        before = path.stat().st_ino
        write(path, scan(), overwrite=True)
        assert path.stat().st_ino != before


class TestParts:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        run(build_part(tmp_path / "scan", 1, 3, scan()))
        return tmp_path / "scan.zarr"

    @pytest.mark.parametrize("resume", [False, True])
    def test_of_another_number_of_parts_are_refused(self, path: Path, resume: bool) -> None:
        before = everything(path.parent)
        with pytest.raises(StagingExistsError, match=r"are 3 in all.* one of 4") as error:
            build_part(path, 2, 4, scan(), resume=resume)
        assert f"ctlab-zarr abort {path}`" in str(error.value)
        assert everything(path.parent) == before

    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (
                {"shards": (32, 16, 16)},
                r"with shards=\(16, 16, 16\), and this is with shards=\(32, 16, 16\)",
            ),
            (GZIP, "begun with codec='zstd', and"),
            ({"levels": 2}, "begun with levels=1, and this is with levels=2"),
            ({"dataset_id": "mine"}, "dataset_id was nothing and is now 'mine'"),
            ({"scale_placement": "multiscales"}, "scale_placement was 'dataset' and is now"),
        ],
    )
    def test_with_other_settings_or_metadata_are_refused_without_advice_that_they_refuse(
        self, path: Path, resume: bool, change: dict, named: str
    ) -> None:
        with pytest.raises(StagingExistsError, match=named) as error:
            build_part(path, 2, 3, scan(), resume=resume, **change)
        assert "abort" in str(error.value)
        assert "restart" not in str(error.value)

    def test_with_another_voxel_size_are_refused(self, path: Path) -> None:
        with pytest.raises(StagingExistsError, match="voxel_size_xyz was"):
            build_part(path, 2, 3, scan(voxel_size=(5.0, 5.0, 5.0)))
        for part in (2, 3):
            run(build_part(path, part, 3, scan()))
        commit(path)
        assert dataset_from_zarr(path).voxel_size == (3.0, 2.0, 1.5)

    def test_beside_a_write_by_one_are_told_of_what_they_accept(self, tmp_path: Path) -> None:
        with pytest.raises(WriteFailedError):
            write(tmp_path / "scan.zarr", scan(4))
        with pytest.raises(StagingExistsError, match=r"resume=True.*abort") as error:
            build_part(tmp_path / "scan.zarr", 1, 2, scan())
        assert "restart" not in str(error.value)
        for part in (1, 2):
            run(build_part(tmp_path / "scan.zarr", part, 2, scan(), resume=True))
        assert commit(tmp_path / "scan.zarr").n_objects == 8

    def test_more_than_there_are_shards_leave_some_jobs_nothing_to_do(self, tmp_path: Path) -> None:
        """As where a script for eight jobs is given a small volume."""
        for part in range(1, 11):
            run(build_part(tmp_path / "scan", part, 10, scan()))
        assert commit(tmp_path / "scan").n_objects == 8

    def test_of_millions_have_their_status_at_once(self, path: Path) -> None:
        plan = path.parent / ".scan.zarr.staging" / "plan.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "n_parts": 50_000_000}))
        assert len(write_status(Destination(str(path))).parts) == 8


def test_the_advice_that_is_given_works_on_the_command_line(
    tmp_path: Path, cluster: Client
) -> None:
    source, path = tmp_path / "tomoA_nc", tmp_path / "scan.zarr"
    write_mango_netcdf(source, VOXELS, slices_per_block=8)

    def convert(*options: str) -> Any:
        where = ("--scheduler", cluster.scheduler.address)
        return run_here("convert", source, path, *CLI_LAYOUT, *where, *options)

    run(build_part(path, 1, 3, Dataset.from_path(source)))
    refused = convert("--part", "2/4", "--resume")
    assert refused.returncode == 4
    advice = refused.stderr.split("`")[1].split()
    assert advice[0] == "ctlab-zarr"
    assert run_here(*advice[1:]).returncode == 0
    run(build_part(path, 2, 4, Dataset.from_path(source)))
    shard = next((tmp_path / ".scan.zarr.staging").rglob("c.*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    whole = convert("--resume", "--voxel-size", "5um")
    assert whole.returncode == 0, whole.stderr
    counts = "8 shards, 1 of them were there, 1 were incomplete and written again, 6 are new"
    assert counts in whole.stdout
    refused = convert("--resume", "--voxel-size", "7um", "--dataset-id", "mine")
    assert refused.returncode == 4
    assert "now [7.0, 7.0, 7.0]" in refused.stderr
    assert "now 'mine'" in refused.stderr


def _minus_flag(block: np.ndarray, flag: str) -> np.ndarray:
    if os.path.exists(flag):
        raise OSError("the disk is on fire")
    return block


def test_an_error_that_a_notebook_still_holds_does_not_fail_the_write_that_goes_on(
    cluster: Client, tmp_path: Path
) -> None:
    """The failed blocks have the same names in both; the kept error keeps the first ones alive."""
    flag = tmp_path / "flag"
    flag.touch()
    blocks = da.from_array(VOXELS, chunks=(32, 16, 16)).map_blocks(
        _minus_flag, str(flag), dtype="u2", meta=VOXELS[:0]
    )
    # Blocks that overlap are tasks of their own.
    data = da.map_overlap(np.copy, blocks, depth=1, boundary="nearest", dtype="u2")
    dataset = make_dataset(data)
    with cluster.as_current():
        with pytest.raises(WriteFailedError) as kept:
            dataset_to_zarr(dataset, tmp_path / "a.zarr", **LAYOUT)
        flag.unlink()
        dataset_to_zarr(dataset, tmp_path / "a.zarr", resume=True, **LAYOUT)
    assert "on fire" in str(kept.value)
    found = dataset_from_zarr(tmp_path / "a.zarr").data.compute(scheduler="sync")
    np.testing.assert_array_equal(found, VOXELS)
