"""Disks that fill up and file systems that fail, in the middle of a write."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from ctlab_dask_zarr import CTLabError, WriteFailedError, dataset_to_zarr
from tests.reliability.faults import (
    LAYOUT,
    LAYOUT_OPTIONS,
    N_SHARDS,
    TIMEOUT_S,
    FaultyFolder,
    assert_only_whole_shards,
    assert_same_store,
    environment,
    everything,
    faulty_folder,
    new_dataset,
    old_dataset,
    replaced_of,
    run_cli,
    staged_objects,
    tmpfs,
)

pytestmark = pytest.mark.root

#: What fills up a disk with the old dataset on it while the third to sixth shard is written, and
#: what lifts that.
FULL = {
    "bytes": ({"size": "384k"}, {"size": "8m"}, "No space left on device"),
    "inodes": ({"nr_inodes": 26}, {"nr_inodes": 1000}, "No space left on device"),
}


@contextmanager
def full_disk(parent: Path, kind: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    little, enough, _ = FULL[kind]
    with tmpfs(parent / "disk", **little) as remount:
        yield parent / "disk", lambda: remount(**enough)


def write_as_shell(source: Path, destination: Path, cluster: Client, *flags: str) -> Any:
    return run_cli(
        *("convert", source, destination, "--overwrite", *LAYOUT_OPTIONS, *flags, "-q"),
        *("--scheduler", cluster.scheduler.address),
    )


def assert_failed_clearly(done: Any, destination: Path, reason: str) -> None:
    assert done.returncode == 1, done.stderr
    assert str(destination) in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("kind", FULL)
def test_a_disk_that_fills_up_costs_nothing_and_the_write_goes_on_when_there_is_room(
    kind: str, reference: Path, cluster: Client, tmp_path: Path
) -> None:
    with full_disk(tmp_path, kind) as (disk, make_room):
        destination = disk / "scan.zarr"
        dataset_to_zarr(old_dataset(), destination, **LAYOUT)
        before = everything(destination)
        failed = write_as_shell(reference, destination, cluster)
        assert_failed_clearly(failed, destination, FULL[kind][2])
        assert everything(destination) == before
        assert 0 < len(staged_objects(destination)) < N_SHARDS
        assert_only_whole_shards(destination, reference)
        make_room()
        # Times of modification tell that what was there already is not written again.
        kept = {key: path.stat().st_mtime_ns for key, path in staged_objects(destination).items()}
        resumed = write_as_shell(reference, destination, cluster, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert_same_store(destination, reference)
        assert kept == {key: (destination / key).stat().st_mtime_ns for key in kept}
        assert [path.name for path in disk.iterdir()] == ["scan.zarr"]


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_told_in_python_with_nothing_at_a_new_destination(
    kind: str, reference: Path, tmp_path: Path
) -> None:
    with full_disk(tmp_path, kind) as (disk, make_room):
        destination = disk / "scan.zarr"
        # In the place of the old dataset, so that the disk is as full.
        (disk / "other.bin").write_bytes(bytes(96 << 10))
        for n in range(9):
            (disk / f"other-{n}.bin").touch()
        with pytest.raises(WriteFailedError, match=rf"{destination}.*No space left"):
            dataset_to_zarr(new_dataset(), destination, **LAYOUT)
        assert not destination.exists()
        assert 0 < len(staged_objects(destination)) < N_SHARDS
        assert_only_whole_shards(destination, reference)
        make_room()
        dataset_to_zarr(new_dataset(), destination, **LAYOUT, resume=True)
        assert_same_store(destination, reference)


@pytest.mark.parametrize(
    ("operation", "errno", "after", "reason"),
    [
        ("write", "EIO", 50, "Input/output error"),
        ("write", "EDQUOT", 50, "Disk quota exceeded"),
        ("write", "ESTALE", 50, "Stale file handle"),
        ("create", "ENOSPC", 14, "No space left on device"),
        ("fsync", "EIO", 8, "Input/output error"),
        ("rename", "EIO", 12, "Input/output error"),
        ("rename", "ESTALE", 12, "Stale file handle"),
    ],
)
def test_a_file_system_that_fails_costs_nothing_and_the_write_goes_on_afterwards(
    operation: str,
    errno: str,
    after: int,
    reason: str,
    reference: Path,
    cluster: Client,
    tmp_path: Path,
) -> None:
    with faulty_folder(tmp_path) as faulty:
        destination = faulty.path / "scan.zarr"
        dataset_to_zarr(old_dataset(), faulty.backing / "scan.zarr", **LAYOUT)
        before = everything(faulty.backing / "scan.zarr")
        faulty.fail(**{operation: {"errno": errno, "after": after}})
        failed = write_as_shell(reference, destination, cluster)
        faulty.fail()
        assert_failed_clearly(failed, destination, reason)
        assert everything(faulty.backing / "scan.zarr") == before
        assert 0 < len(staged_objects(destination)) < N_SHARDS
        assert_only_whole_shards(destination, reference)
        resumed = write_as_shell(reference, destination, cluster, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert_same_store(destination, reference)


@pytest.mark.parametrize(
    ("operation", "errno", "step"),
    [
        ("rename", "EIO", 1),
        ("mkdir", "ENOSPC", 1),
        ("open", "ESTALE", 2),
        ("readdir", "EIO", 4),
        ("unlink", "EIO", 4),
        ("rmdir", "EIO", 4),
        ("getattr", "ESTALE", 16),
    ],
)
def test_wherever_a_file_system_begins_to_fail_the_old_dataset_or_the_new_one_is_there_whole(
    operation: str, errno: str, step: int, reference: Path, tmp_path: Path
) -> None:
    """From the first operation of its kind to the last: between the renames of a commit, too."""
    problems: list[str] = []
    after = 0
    while True:
        folder = tmp_path / f"{after}"
        folder.mkdir()
        fault = {operation: {"errno": errno, "after": after}}
        with faulty_folder(folder) as faulty, dask.config.set(scheduler="sync"):
            is_over, found = _write_through(faulty, fault, reference)
        problems += [f"{fault}: {problem}" for problem in found]
        if is_over:
            break
        after += step
    assert problems == []


def _write_through(
    faulty: FaultyFolder, fault: dict[str, Any], reference: Path
) -> tuple[bool, list[str]]:
    """Return whether the write was through before the fault began, and what was wrong after it."""
    destination = faulty.path / "scan.zarr"
    backing = faulty.backing / "scan.zarr"
    dataset_to_zarr(old_dataset(), backing, **LAYOUT)
    before = everything(backing)
    faulty.fail(**fault)
    error: Exception | None = None
    try:
        dataset_to_zarr(new_dataset(), destination, **LAYOUT, overwrite=True)
    except (CTLabError, OSError) as raised:
        error = raised
    faulty.fail()
    problems = []
    if error is None:
        assert_same_store(destination, reference)
    else:
        if str(destination) not in str(error):
            problems.append(f"the destination is not named: {error}")
        if not backing.exists():
            assert everything(replaced_of(backing)) == before
            if "as it was" in str(error):
                problems.append(f"nothing is at the destination any more, but: {error}")
        elif everything(backing) != before:
            assert_same_store(backing, reference)
            if "as it was" in str(error):
                problems.append(f"the new dataset is at the destination, but: {error}")
        assert_only_whole_shards(destination, reference)
    try:
        dataset_to_zarr(new_dataset(), destination, **LAYOUT, overwrite=True, resume=True)
    except CTLabError as raised:
        return error is None, [*problems, f"cannot be gone on with: {raised}"]
    assert_same_store(destination, reference)
    litter = sorted(path.name for path in faulty.path.iterdir() if path != destination)
    if litter:
        problems.append(f"left for ever: {litter}")
    return error is None, problems


@pytest.mark.parametrize("operation", ["fsyncdir", "fsync"])
@pytest.mark.parametrize("errno", ["EINVAL", "ENOTSUP"])
def test_a_file_system_that_cannot_sync_is_told_once_and_written_to(
    operation: str, errno: str, reference: Path, tmp_path: Path
) -> None:
    # In a process of its own: each tells it once.
    code = (
        "import sys, dask\n"
        "from ctlab_dask_zarr import dataset_to_zarr\n"
        "from tests.reliability.faults import LAYOUT, new_dataset\n"
        "dask.config.set(scheduler='sync')\n"
        "dataset_to_zarr(new_dataset(), sys.argv[1], **LAYOUT)\n"
    )
    with faulty_folder(tmp_path) as faulty:
        destination = faulty.path / "scan.zarr"
        faulty.fail(**{operation: {"errno": errno}})
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", code, destination],
            capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (told,) = re.findall(".*cannot sync.*", done.stderr)
        assert str(faulty.path) in told
        assert_same_store(destination, reference)


def test_a_folder_that_fails_to_sync_is_named(tmp_path: Path) -> None:
    with faulty_folder(tmp_path) as faulty, dask.config.set(scheduler="sync"):
        destination = faulty.path / "scan.zarr"
        faulty.fail(fsyncdir={"errno": "EIO"})
        with pytest.raises(WriteFailedError, match=f"Input/output error: '{faulty.path}"):
            dataset_to_zarr(new_dataset(), destination, **LAYOUT)
        assert not destination.exists()


def test_a_folder_that_cannot_be_listed_is_not_taken_for_one_without_other_files(
    tmp_path: Path,
) -> None:
    with faulty_folder(tmp_path) as faulty, dask.config.set(scheduler="sync"):
        destination = faulty.path / "scan.zarr"
        dataset_to_zarr(old_dataset(), faulty.backing / "scan.zarr", **LAYOUT)
        (faulty.backing / "scan.zarr" / "notes.txt").write_text("three years of work")
        before = everything(faulty.backing / "scan.zarr")
        faulty.fail(readdir={"errno": "EIO"})
        with pytest.raises((CTLabError, OSError), match=str(destination)):
            dataset_to_zarr(new_dataset(), destination, **LAYOUT, overwrite=True)
        faulty.fail()
        assert everything(faulty.backing / "scan.zarr") == before
