"""Labels under the faults that images are put to: the image stays as it is, whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import (
    DatasetNotFoundError,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from tests.builders import make_dataset
from tests.reliability import killed_write
from tests.reliability.faults import everything, kill_group, tmpfs

SHAPE = (64, 96, 96)
LAYOUT: dict[str, Any] = {"chunks": (8, 16, 16), "shards": (16, 32, 32)}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.reliability.killed_write"])


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, SHAPE, dtype="uint16")


def make_image(path: Path, voxels: np.ndarray) -> Path:
    dataset_to_zarr(make_dataset(voxels, (16, 32, 32)), path, levels=2, **LAYOUT)
    return path


def start(image: Path, name: str, modulus: int, *, resume: bool = False) -> tuple[Any, Any]:
    """Start a write of labels; return its process, which waits to be told, and its end."""
    ours, theirs = _processes.Pipe()
    arguments = (str(image), name, modulus, 0.01, resume, theirs)
    process = _processes.Process(target=killed_write.write_labels, args=arguments)
    process.start()
    theirs.close()
    assert ours.poll(240)
    assert ours.recv() == "ready"
    return process, ours


def assert_labels(image: Path, name: str, wanted: np.ndarray) -> None:
    path = image / "labels" / name
    labels = dataset_from_zarr(path)
    np.testing.assert_array_equal(labels.data.compute(), wanted)
    assert len(labels.levels) == 2
    assert verify(path) == []


def test_labels_that_are_killed_again_and_again_are_gone_on_with(
    voxels: np.ndarray, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "scan.zarr", voxels)
    before = everything(image)
    rng = random.Random(0)
    n_kills = 0
    while True:
        process, end = start(image, "phases", 3, resume=True)
        end.send("go")
        # Longer each time, or a slow machine would never come to its end.
        process.join(rng.uniform(0.02, 0.3) * (1 + n_kills / 10))
        if process.is_alive():
            kill_group(process)
        if process.exitcode == 0:
            assert end.recv() == "done"
            break
        n_kills += 1
        kept = {k: v for k, v in everything(image).items() if not str(k).startswith("labels")}
        if (image / "labels").exists():
            # An entry more in the folder of the image gives it a new time.
            before["."] = kept["."]
        assert kept == before
        if not (image / "labels" / "phases").exists():
            with pytest.raises(DatasetNotFoundError):
                dataset_from_zarr(image / "labels" / "phases")
    assert n_kills > 2
    assert_labels(image, "phases", voxels % 3)
    assert os.listdir(tmp_path) == ["scan.zarr"]
    assert verify(image) == []


@pytest.mark.root
def test_a_disk_that_fills_up_leaves_the_image_and_the_labels_go_on_when_there_is_room(
    voxels: np.ndarray, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "disk", size="16m") as remount:
        image = make_image(tmp_path / "disk" / "scan.zarr", voxels)
        before = everything(image)
        room = os.statvfs(tmp_path / "disk")
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        remount(size=str(used + (256 << 10)))
        labels = dataset_from_zarr(image).data.astype("uint8")
        with pytest.raises(WriteFailedError, match="No space left"):
            labels_to_zarr(labels, image, "phases", **LAYOUT)
        assert everything(image) == before
        remount(size="16m")
        labels_to_zarr(labels, image, "phases", **LAYOUT, resume=True)
        assert_labels(image, "phases", voxels.astype("uint8"))
        assert os.listdir(tmp_path / "disk") == ["scan.zarr"]


def meet(image: Path, first: tuple[str, int], second: tuple[str, int]) -> list[str]:
    """Let two processes write labels at the same moment; return how each ended."""
    started = [start(image, *job) for job in (first, second)]
    for _, end in started:
        end.send("go")
    outcomes = []
    for process, end in started:
        assert end.poll(240), "a writer hangs"
        outcomes.append(end.recv())
        process.join(240)
    return outcomes


@pytest.mark.parametrize("number", range(5))
def test_of_two_writers_of_the_same_labels_one_wins_whole(
    number: int, voxels: np.ndarray, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "scan.zarr", voxels)
    outcomes = meet(image, ("phases", 3), ("phases", 5))
    assert outcomes.count("done") == 1, outcomes
    assert_labels(image, "phases", voxels % (3, 5)[outcomes.index("done")])
    assert verify(image) == []


@pytest.mark.parametrize("number", range(5))
def test_writers_of_different_labels_do_not_disturb_one_another(
    number: int, voxels: np.ndarray, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "scan.zarr", voxels)
    assert meet(image, ("phases", 3), ("grains", 5)) == ["done", "done"]
    assert_labels(image, "phases", voxels % 3)
    assert_labels(image, "grains", voxels % 5)
    listed = (image / "labels" / "zarr.json").read_text()
    assert '"phases"' in listed
    assert '"grains"' in listed
    assert os.listdir(tmp_path) == ["scan.zarr"]
