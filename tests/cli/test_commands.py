"""The command line as people and job scripts use it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import logging
import re
import resource
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster

from ctlab_dask_zarr import CTLabError, Dataset, dataset_to_zarr, labels_to_zarr, verify
from ctlab_dask_zarr.cli.options import CLUSTER, with_options
from ctlab_dask_zarr.cli.output import exit_codes
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels
from tests.builders import run_here as run
from tests.reliability.faults import run_cli

SHAPE = (40, 70, 90)


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: Client) -> Iterator[None]:
    """Let commands that are not told where to run do so on the cluster of the tests."""
    with dask.config.set({"ctlab-zarr.cluster": cluster.scheduler.address}):
        yield


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE, dtype="uint16")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomoSmall_nc"
    write_mango_netcdf(path, voxels, slices_per_block=9, voxel_size=(3.0, 2.0, 1.5))
    return path


def test_convert_writes_what_it_read_and_prints_only_the_result(
    source: Path, voxels: np.ndarray, tmp_path: Path
) -> None:
    done = run_cli("convert", source, tmp_path / "out", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["destination"] == str(tmp_path / "out.zarr")
    assert result["shape"] == list(SHAPE)
    assert "shards" in done.stderr
    assert "\r" not in done.stderr, "a log is not a terminal"
    written = Dataset.from_path(tmp_path / "out.zarr")
    np.testing.assert_array_equal(written.data.compute(), voxels)
    assert written.voxel_size == pytest.approx((3.0, 2.0, 1.5))


def test_convert_takes_layout_codec_voxel_size_and_type(source: Path, tmp_path: Path) -> None:
    done = run_cli(
        *("convert", source, tmp_path / "out.zarr", "--workers", "1", "-q"),
        *("--chunks", "16,16,16", "--shards", "32,32,64", "--codec", "blosc:zstd:3:shuffle"),
        *("--voxel-size", "3,2,1nm", "--yes", "--layout", "plain", "--datatype", "proju16"),
        *("--dataset-id", "20200101_000000_mine"),
    )
    assert done.returncode == 0, done.stderr
    # A machine that is busy may say for how long it waits for its worker, and nothing else.
    assert re.sub(r"[-\d: ]+ starting 1 worker, for \d+s now.*\n", "", done.stderr) == ""
    array = zarr.open_array(tmp_path / "out.zarr", mode="r")
    assert (array.shards, array.chunks) == ((32, 32, 64), (16, 16, 16))
    block = array.attrs["mango"]
    assert block["voxel_size_xyz"] == [1.0, 2.0, 3.0]
    assert (block["voxel_unit"], block["basename"]) == ("nm", "proju16")
    assert block["dataset_id"] == "20200101_000000_mine"


def test_input_aligned_makes_shards_of_the_blocks_of_the_source(tmp_path: Path) -> None:
    voxels = random_voxels((40, 50, 60))
    zarr.create_array(tmp_path / "in.zarr", data=voxels, chunks=(10, 10, 10), shards=(20, 50, 60))
    more = ("--voxel-size", "2um", "--input-aligned")
    planned = run("plan", tmp_path / "in.zarr", tmp_path / "out", *more, "--json")
    assert json.loads(planned.stdout)["shards"] == [20, 50, 60], planned.stderr
    done = run("convert", tmp_path / "in.zarr", tmp_path / "out", *more, "-q")
    assert done.returncode == 0, done.stderr
    array = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    assert (array.shards, array.chunks) == ((20, 50, 60), (20, 25, 30))
    np.testing.assert_array_equal(array, voxels)


def test_convert_on_a_running_scheduler(source: Path, tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        processes=False,
        protocol="tcp",
    ) as cluster:
        address = cluster.scheduler_address
        done = run("convert", source, tmp_path / "a.zarr", "--scheduler", address)
        assert done.returncode == 0, done.stderr
        file = tmp_path / "scheduler.json"
        file.write_text(json.dumps({"type": "Scheduler", "address": address}))
        done = run("convert", source, tmp_path / "b.zarr", "--scheduler-file", file)
        assert done.returncode == 0, done.stderr


def test_converted_labels_are_known_as_classes_and_lie_where_they_lay(tmp_path: Path) -> None:
    image = make_dataset(random_voxels((8, 8, 8)), origin=(6.0, 4.0, 3.0))
    dataset_to_zarr(image, tmp_path / "scan.zarr")
    labels_to_zarr(random_voxels((8, 8, 8), "uint8"), tmp_path / "scan.zarr", "phases")
    arguments = [tmp_path / "scan.zarr" / "labels" / "phases", tmp_path / "copy.zarr"]
    done = run("convert", *arguments, "--levels", 2, "--verify", "--quiet")
    assert done.returncode == 0, done.stderr
    copy = Dataset.from_path(tmp_path / "copy.zarr")
    assert (copy.is_discrete, copy.origin) == (True, (6.0, 4.0, 3.0))
    ome = zarr.open(tmp_path / "copy.zarr", mode="r").attrs["ome"]
    assert ome["multiscales"][0]["type"] == "mode"
    assert "omero" not in ome


def test_an_existing_output_is_exit_4_and_untouched(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for extra in ([], ["--overwrite"]):
        done = run("convert", source, folder, *extra)
        assert done.returncode == 4
        assert "Traceback" not in done.stderr
    assert (folder / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_store(source: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    store = tmp_path / "out.zarr"
    assert run("convert", source, store).returncode == 0
    assert run("convert", source, store).returncode == 4
    again = run("convert", store, store, "--overwrite", "--codec", "none")
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(Dataset.from_path(store).data.compute(), voxels)


def test_a_missing_block_is_exit_5_and_named(voxels: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "tomoHole_nc"
    write_mango_netcdf(folder, voxels, slices_per_block=9)
    (folder / "block00000002.nc").unlink()
    done = run("convert", folder, tmp_path / "out.zarr")
    assert done.returncode == 5
    assert "block 00000002 missing (z 18-26)" in done.stderr
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_exit_1_and_leaves_no_dataset(
    source: Path, tmp_path: Path
) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))

    arguments = ["convert", source, tmp_path / "out.zarr", "--workers", "1"]
    done = run_cli(*arguments, preexec_fn=limit_file_size)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.zarr").exists()
    again = run_cli(*arguments)
    assert again.returncode == 4
    assert "--restart" in again.stderr
    assert run_cli(*arguments, "--resume").returncode == 0


def test_a_damaged_block_is_exit_5_and_leaves_no_dataset(
    voxels: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "tomoBad_nc"
    write_mango_netcdf(folder, voxels, slices_per_block=9)
    block = folder / "block00000003.nc"
    data = bytearray(block.read_bytes())
    # The compressed voxels are by far the largest part: damage the middle of the file.
    middle = len(data) // 2
    data[middle : middle + 64] = b"\x00" * 64
    block.write_bytes(data)
    done = run("convert", folder, tmp_path / "out.zarr")
    assert done.returncode == 5, done.stderr
    assert not (tmp_path / "out.zarr").exists()
    assert "block00000003" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["convert", "SOURCE", "out", "--shards", "big"],
        ["convert", "SOURCE", "out", "--codec", "middle-out"],
        ["convert", "SOURCE", "out", "--voxel-size", "0"],
        ["convert", "SOURCE", "out", "--shards", "64,64,64"],
        ["convert", "SOURCE", "out", "--resume", "--restart"],
        ["convert", "SOURCE", "out", "--datatype", "segmented"],
        ["convert", "SOURCE", "out", "--voxel-unit", "furlong"],
        ["convert", "SOURCE", "out", "--voxel-size", "2.5furlong"],
        ["convert", "SOURCE", "out", "--memory-limit", "plenty"],
        ["convert", "SOURCE", "out", "--memory-limit", "4"],
        ["convert", "SOURCE", "out", "--scheduler", "tcp://127.0.0.1:9", "--workers", "2"],
        ["plan", "SOURCE", "out", "--scheduler", "tcp://127.0.0.1:9", "--scheduler-file", "x"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_2(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*(source if a == "SOURCE" else a for a in arguments))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there_is_exit_1(tmp_path: Path) -> None:
    done = run_cli("convert", tmp_path / "none_nc", tmp_path / "out.zarr")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_plan_does_nothing(source: Path, tmp_path: Path) -> None:
    done = run("plan", source, tmp_path / "out", "--shards", "32,32,64", "--chunks", "16,16,16")
    assert done.returncode == 0, done.stderr
    assert "32 x 32 x 64" in done.stdout
    as_json = json.loads(run("plan", source, tmp_path / "out", "--json").stdout)
    assert as_json["shape"] == list(SHAPE)
    assert as_json["rechunk"]["peak_nbytes"] > 0
    assert as_json["n_worker_threads_that_fit"] > 0
    assert list(tmp_path.iterdir()) == []


def test_plan_tells_what_convert_would_do_with_the_same_workers(
    source: Path, tmp_path: Path
) -> None:
    layout = ("--shards", "16,96,96", "--chunks", "16,96,96")
    arguments = ("plan", source, tmp_path / "out", *layout, "--json")
    few = json.loads(run(*arguments, "--workers", "2").stdout)
    many = json.loads(run(*arguments, "--workers", "64", "--memory-limit", "1GiB").stdout)
    assert (few["n_worker_threads"], few["rechunk"]["method"]) == (2, "stream")
    assert (many["n_worker_threads"], many["rechunk"]["method"]) == (64, "tasks")


def test_plan_says_that_the_destination_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zarr").mkdir()
    done = run("plan", source, tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert f"note: {tmp_path / 'out.zarr'}" in done.stdout


def test_what_cannot_fit_into_a_worker_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tomoWide_nc"
    wide = np.zeros((16, 2048, 2048), dtype="uint16")
    write_mango_netcdf(folder, wide, slices_per_block=16)
    arguments = [folder, tmp_path / "out.zarr", "--workers", "1", "--memory-limit", "100MB"]
    done = run("convert", *arguments, "--shards", "0,0,0", "--chunks", "0,0,0")
    assert done.returncode == 2, done.stderr
    assert "--memory-limit" in done.stderr
    assert sorted(tmp_path.iterdir()) == [folder]
    planned = run("plan", *arguments, "--shards", "0,0,0", "--chunks", "0,0,0")
    assert "too little" in planned.stdout


def test_debug_shows_where_an_expected_error_was_raised(tmp_path: Path) -> None:
    done = run_cli("--debug", "info", tmp_path / "none.zarr")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_info_tells_sources_and_stores_apart(source: Path, tmp_path: Path) -> None:
    assert run("convert", source, tmp_path / "out.zarr").returncode == 0
    store = json.loads(run("info", tmp_path / "out.zarr", "--json").stdout)
    blocks = json.loads(run("info", source, "--json").stdout)
    assert store["shape"] == blocks["shape"] == list(SHAPE)
    assert store["field_of_view"] == pytest.approx([120.0, 140.0, 135.0])
    assert (store["chunks"], store["codecs"]) == ([32, 32, 32], ["zstd"])
    assert blocks["format"] == "mango netCDF"
    text = run("info", tmp_path / "out.zarr").stdout
    assert "voxel size" in text
    assert "120 x 140 x 135" in text
    assert "\naxes           z, y, x\n" in text
    assert "\nlabels         none\n" in text


@pytest.mark.slow
def test_demo_converts_compares_and_draws(tmp_path: Path) -> None:
    # Again in the same folder: with more blocks before than after.
    for size in (65, 36):
        done = run_cli("demo", tmp_path / "demo", "--size", size, "-q")
        assert (done.returncode, done.stderr) == (0, "")
        assert "every voxel is equal" in done.stdout
    assert (tmp_path / "demo" / "tomoDemo.png").read_bytes().startswith(b"\x89PNG")


def test_info_lists_no_shards(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A store of 10^5 shards answers as fast as one of ten."""
    run("convert", source, tmp_path / "a.zarr", "-q")

    def refuse(self: Any, folder: str) -> Any:
        raise AssertionError(f"{folder} was listed")

    monkeypatch.setattr(LocalFiles, "entries", refuse)
    done = run("info", tmp_path / "a.zarr", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards"]
    assert json.loads(done.stdout)["labels"] == []


def test_info_says_what_an_image_is_whose_labels_cannot_be_read(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a.zarr"
    assert run("convert", source, store, "-q").returncode == 0
    (store / "labels").mkdir()
    (store / "labels" / "zarr.json").write_text("{")
    done = run("info", store, "--json")
    assert done.returncode == 0, done.stderr
    assert "labels/zarr.json does not list labels" in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["shape"], facts["labels"]) == (list(SHAPE), None)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    done = run_cli("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("convert", "plan", "info", "demo"))
    check = (
        "import sys, ctlab_dask_zarr.cli; "
        "print([m for m in ('dask', 'zarr', 'numpy', 'distributed', 'h5py', 'rich', "
        "'importlib.metadata') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=240, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_levels_labels_preview_and_check_from_the_shell(
    source: Path, voxels: np.ndarray, tmp_path: Path
) -> None:
    store, picture = tmp_path / "a.zarr", tmp_path / "a.png"
    quiet = ("-q",)
    layout = ("--chunks", "16,16,16", "--shards", "32,32,32")
    assert run("convert", source, store, *layout, *quiet).returncode == 0
    done = run("pyramid", store, "--levels", "3", *quiet, "--json")
    assert done.returncode == 0, done.stderr
    # The voxels are 3 x 2 x 1.5 um: z is not halved until the others are as long.
    assert json.loads(done.stdout)["levels"] == [[40, 70, 90], [40, 35, 45], [20, 18, 23]]
    assert run("pyramid", store, *quiet).returncode == 2
    segmented = tmp_path / "segmented_nc"
    phases = (voxels // 1500).astype("uint8")
    write_mango_netcdf(
        segmented, phases, datatype="segmented", slices_per_block=9, voxel_size=(3.0, 2.0, 1.5)
    )
    done = run("add-labels", store, segmented, "--name", "phases", "--color", "1=ff8000", *quiet)
    assert done.returncode == 0, done.stderr
    assert "labels with 3 levels" in done.stdout
    assert run("add-labels", store, segmented, "--name", "phases", *quiet).returncode == 4
    assert run("add-labels", store, source, "--name", "a/b", *quiet).returncode == 2
    assert run("verify", store, *quiet).returncode == 0
    facts = json.loads(run("info", store, "--json").stdout)
    assert [level["shape"][2] for level in facts["levels"]] == [90, 45, 23]
    assert [level["voxel_size"] for level in facts["levels"]] == [[3, 2, 1.5], [3, 4, 3], [6, 8, 6]]
    assert facts["labels"] == [{"name": "phases", "n_levels": 3}]
    described = run("info", store).stdout
    assert "40 x 35 x 45, voxel 3 x 4 x 3 um" in described
    assert "phases (levels: 3)" in described
    done = run("preview", store, "-o", picture)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 1000
    reports = {r["reader"]: r for r in json.loads(run("check", store, "--json").stdout)}
    assert reports["Neuroglancer"]["verdict"] == "shows it"
    assert reports["Drishti"]["verdict"] == "shows it, but"
    assert "level 0 only" in run("check", store).stdout


def test_status_tells_from_the_staging_folder_how_far_each_part_is(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    absent = run("status", out)
    assert (absent.returncode, absent.stdout) == (5, "")
    layout = ("--chunks", "10,10,10", "--shards", "20,20,30", "--levels", "2")
    assert run("convert", source, out, "--part", "1/2", *layout, "-q").returncode == 0
    told = run("status", out)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0].startswith(f"{out}: 12 of 32 shards, ")
    assert "the latest shard" in lines[1]
    assert lines[-2:] == ["part 1 of 2: 12 of 12 shards", "part 2 of 2: 0 of 12 shards"]
    found = json.loads(run("status", out, "--json").stdout)
    # The voxels are too long along z for that axis to be halved.
    assert (found["n_done"], found["n_shards"], found["is_committed"]) == (12, 32, False)
    assert found["nbytes"] == 2 * (40 * 70 * 90 + 40 * 35 * 45)
    assert found["rate"] > 0
    assert found["seconds_left"] > 0
    assert run("convert", source, out, "--part", "2/2", *layout, "-q").returncode == 0
    assert run("commit", out, "-q").returncode == 0
    assert run("status", out).stdout == f"{out}: committed\n"


def test_labels_are_shared_by_jobs_as_a_conversion_is(
    source: Path, voxels: np.ndarray, tmp_path: Path
) -> None:
    store, labels = tmp_path / "a.zarr", tmp_path / "a.zarr" / "labels" / "phases"
    layout: dict[str, Any] = {"chunks": (10, 10, 10), "shards": (20, 20, 30)}
    dataset_to_zarr(Dataset.from_path(source), store, levels=2, **layout)
    segmented = tmp_path / "segmented_nc"
    phases = (voxels // 1500).astype("uint8")
    write_mango_netcdf(
        segmented, phases, datatype="segmented", slices_per_block=9, voxel_size=(3.0, 2.0, 1.5)
    )
    for part in (1, 2):
        done = run(
            *("add-labels", store, segmented, "--name", "phases", "--part", f"{part}/2"),
            *("--chunks", "10,10,10", "--shards", "20,20,30", "-q"),
        )
        assert done.returncode == 0, done.stderr
        assert f"12 shards; when all parts are there: ctlab-zarr commit {labels}" in done.stdout
        told = run("status", labels).stdout.splitlines()
        assert told[0].startswith(f"{labels}: {12 * part} of 32 shards, ")
        assert told[-1] == f"part 2 of 2: {12 * part - 12} of 12 shards"
    done = run("commit", labels, "-q")
    assert done.returncode == 0, done.stderr
    assert run("status", labels).stdout == f"{labels}: committed\n"
    assert verify(labels, segmented) == []


def test_a_performance_report_is_written_where_it_is_asked_for(
    source: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bokeh")
    report = tmp_path / "report.html"
    done = run_cli("convert", source, tmp_path / "out", "--workers", "1", "--report", report)
    assert done.returncode == 0, done.stderr
    assert "write-shard" in report.read_text()
    assert ", 1 worker\n" in done.stderr


def test_a_number_that_most_take_for_an_edge_is_asked_about(source: Path, tmp_path: Path) -> None:
    for option in ("--shards", "--chunks"):
        done = run("plan", source, tmp_path / "out", option, "64")
        assert done.returncode == 2
        assert "64,64,64 for edges of 64 voxels, or 4,4,4 for about 64" in done.stderr
    assert run("plan", source, tmp_path / "out", "--chunks", "4096").returncode == 0


def test_a_voxel_size_of_another_magnitude_is_asked_about(source: Path, tmp_path: Path) -> None:
    command = ("convert", source, tmp_path / "out", "-q")
    done = run(*command, "--voxel-size", "3,2,1.5mm")
    assert done.returncode == 2
    assert "--voxel-size says 3 x 2 x 1.5 mm" in done.stderr
    assert "itself 3 x 2 x 1.5 um: if the first is right, add --yes" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run(*command, "--voxel-size", "6,4,3")
    assert done.returncode == 0, done.stderr
    assert "taken in the unit of the source: 6 x 4 x 3 um" in done.stderr
    assert run(*command, "--voxel-size", "3mm", "--yes", "--overwrite").returncode == 0


def test_the_last_lines_say_what_was_written_and_what_to_do_next(
    source: Path, tmp_path: Path
) -> None:
    done = run("convert", source, tmp_path / "a b")
    out = tmp_path / "a b.zarr"
    assert re.fullmatch(
        rf"{out}: [\d.]+ KiB in 1 shard, [\d.]+ KiB on disk( \([\d.]+ x smaller\))?, [\d.]+ s\n",
        done.stdout,
    )
    assert done.stderr.endswith(f"next: ctlab-zarr verify '{out}' --source {source}\n")
    for line in ("--resume", "--overwrite --verify"):
        done = run("convert", source, tmp_path / "a b", *line.split())
        assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(", verified\n")
    assert done.stderr.endswith(f"next: ctlab-zarr view '{out}'\n")


def test_advice_is_in_the_words_of_the_command(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zarr").mkdir()
    done = run("convert", source, tmp_path / "out")
    assert "replace it with --overwrite\n" in done.stderr
    done = run("plan", source, tmp_path / "no" / "out")
    assert done.returncode == 1
    assert "(--mkdir)" in done.stdout
    done = run("convert", source, tmp_path / "b", "--shards", "64,64,64")
    assert "--shards 64,64,64 is a shape" in done.stderr


def test_the_command_that_is_printed_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    odd = tmp_path / "it's a scan; rm.zarr"
    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8)), 4), tmp_path / "scan.zarr")
    done = run("convert", tmp_path / "scan.zarr", odd, "--part", "1/1", "--workers", "1")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.split("all parts are there: ")[1])
    assert words == ["ctlab-zarr", "commit", str(odd)]
    again = run("convert", tmp_path / "scan.zarr", odd, "--part", "1/2", "--workers", "1")
    assert "remove them by `ctlab-zarr abort " in again.stderr
    assert shlex.split(again.stderr.split("`")[1]) == ["ctlab-zarr", "abort", str(odd)]
    told = run("status", odd).stdout
    assert shlex.split(told.split("all parts are there: ")[1].splitlines()[0])[-1] == str(odd)
    gone = run("convert", tmp_path / "scan.zarr", tmp_path / "no such" / "a.zarr")
    assert shlex.split(gone.stderr.split("`")[1]) == ["mkdir", "-p", str(tmp_path / "no such")]


def test_what_the_command_of_the_reference_takes_is_taken(source: Path, tmp_path: Path) -> None:
    """Formats by its names, in any case; its `-j`, `--log-level` and `--dask-graph`."""
    options = ("--input-format", "NetCDF", "--output-format", "zarr", "-j", "1")
    graph = ("--dask-graph", tmp_path / "g.dot", "--log-level", "ERROR")
    assert run("convert", source, tmp_path / "a", *options, *graph).returncode == 0
    text = (tmp_path / "g.dot").read_text()
    assert text.startswith("digraph {")
    assert re.search(r'label="stage-', text)
    assert re.search(r"\d+ -> \d+", text)
    refused = run("convert", source, tmp_path / "b", "--output-format", "raw")
    assert (refused.returncode, "ctlab-zarr export" in refused.stderr) == (2, True)
    refused = run("convert", source, tmp_path / "b", "--dask-graph", tmp_path / "g.svg")
    assert (refused.returncode, "dot -Tsvg" in refused.stderr) == (2, True)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize(("level", "told"), [(None, True), ("info", True), ("error", False)])
def test_warnings_are_hidden_where_only_errors_are_asked_for(level: str | None, told: bool) -> None:
    @click.command()
    @with_options(*CLUSTER)
    def noisy(**_: Any) -> None:
        with exit_codes():
            logging.getLogger("ctlab_dask_zarr").warning("a logged one")
            warnings.warn_explicit("a warning", UserWarning, "a.py", 1, "ctlab_dask_zarr.a")

    done = CliRunner().invoke(noisy, ["--log-level", level] if level else [])
    assert done.exit_code == 0
    assert ("a logged one" in done.stderr, "a warning" in done.stderr) == (told, told)


def test_an_option_that_has_to_be_given_is_asked_for(source: Path, tmp_path: Path) -> None:
    for command, missing in (
        (("preview", source), "'-o'"),
        (("add-labels", source, source), "'--name'"),
    ):
        done = run(*command)
        assert done.returncode == 2, done.stderr
        assert f"Missing option {missing}" in done.stderr


def test_the_next_command_names_what_the_source_was_given(source: Path, tmp_path: Path) -> None:
    done = run("convert", source, tmp_path / "a", "--crop", "0:16,:,:", "--bin", "2")
    assert done.stderr.endswith(f"--source {source}   (with the same --crop, --bin)\n")
    done = run("convert", tmp_path / "a.zarr", tmp_path / "a.zarr", "--overwrite")
    assert done.stderr.endswith(f"next: ctlab-zarr view {tmp_path / 'a.zarr'}\n")


def test_a_plan_tells_that_another_write_has_begun(source: Path, tmp_path: Path) -> None:
    scan = Dataset.from_path(source)
    assert run("plan", source, tmp_path / "a").returncode == 0

    def fails(block: Any) -> Any:
        raise RuntimeError("no more")

    failing = Dataset.from_modified(scan, data=scan.data.map_blocks(fails, dtype=scan.dtype))
    with pytest.raises(CTLabError, match="no more"):
        dataset_to_zarr(failing, tmp_path / "a")
    done = run("plan", source, tmp_path / "a")
    assert done.returncode == 1
    assert "another write to" in done.stdout


def test_what_is_printed_of_a_dataset_is_as_it_is(source: Path, tmp_path: Path) -> None:
    """Only messages are put into the words of the command."""
    path = tmp_path / "of levels=2.zarr"
    assert run("convert", source, path, "-q").returncode == 0
    note = "made with levels=2, and resume=True (--resume)"
    assert run("history", path, "--add", f"note={note}", "--yes").returncode == 0
    assert note in run("history", path).stdout
    assert json.loads(run("info", path, "--json").stdout)["path"] == str(path)
    assert str(path) in run("status", path).stdout
