"""What may stand at a destination, and how many ways there are to name one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    CTLabError,
    DestinationExistsError,
    InvalidArgumentError,
    dataset_from_zarr,
    dataset_to_zarr,
)
from tests.builders import make_dataset
from tests.reliability.faults import (
    LAYOUT,
    LAYOUT_OPTIONS,
    OLD_VOXELS,
    TIMEOUT_S,
    environment,
    everything,
    need_root,
    new_dataset,
    old_dataset,
    run_cli,
    tmpfs,
)


def _a_file(path: Path) -> None:
    path.write_text("three years of work")


def _an_empty_folder(path: Path) -> None:
    path.mkdir()


def _an_ordinary_folder(path: Path) -> None:
    (path / "0").mkdir(parents=True)
    (path / "0" / "thesis.txt").write_text("three years of work")


def _a_zarr_v2_store(path: Path) -> None:
    group = zarr.create_group(path, zarr_format=2, attributes={"multiscales": []})
    group.create_array("0", data=OLD_VOXELS, chunks=(16, 16, 16))


def _a_group_of_somebody_else(path: Path) -> None:
    group = zarr.create_group(path, zarr_format=3, attributes={"author": "somebody else"})
    group.create_array("0", data=OLD_VOXELS, chunks=(16, 16, 16))


def _a_store_with_a_further_file(path: Path) -> None:
    dataset_to_zarr(old_dataset(), path, **LAYOUT)
    (path / "0" / "notes.txt").write_text("three years of work")


def _a_store_with_a_broken_document(path: Path) -> None:
    dataset_to_zarr(old_dataset(), path, **LAYOUT)
    document = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(document[: len(document) // 2])


def _a_store_with_a_link_out_of_it(path: Path) -> None:
    dataset_to_zarr(old_dataset(), path, **LAYOUT)
    (path / "raw").symlink_to(path.parent / "somewhere")


def _a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.zarr")


STRANGERS = [
    _a_file,
    _an_empty_folder,
    _an_ordinary_folder,
    _a_zarr_v2_store,
    _a_group_of_somebody_else,
    _a_store_with_a_further_file,
    _a_store_with_a_broken_document,
    _a_store_with_a_link_out_of_it,
    _a_dangling_link,
]


@pytest.mark.parametrize("mode", [{}, {"overwrite": True}, {"overwrite": True, "restart": True}])
@pytest.mark.parametrize("make", STRANGERS, ids=lambda make: make.__name__.strip("_"))
def test_what_is_no_volume_of_ours_is_refused_and_not_touched(
    make: Callable[[Path], None], mode: dict[str, Any], tmp_path: Path
) -> None:
    destination = tmp_path / "scan.zarr"
    make(destination)
    before = everything(tmp_path)
    with pytest.raises(DestinationExistsError, match=re.escape(str(destination))):
        dataset_to_zarr(new_dataset(), destination, **LAYOUT, **mode)
    assert everything(tmp_path) == before


def test_a_pipe_is_refused_and_not_waited_for(reference: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.zarr")
    done = run_cli("convert", reference, tmp_path / "scan.zarr", "--overwrite", "-q")
    assert done.returncode == 4, done.stderr
    assert (tmp_path / "scan.zarr").is_fifo()


@pytest.mark.parametrize(
    "make", [_an_ordinary_folder, _a_zarr_v2_store, _a_dangling_link], ids=lambda m: m.__name__
)
def test_the_command_line_refuses_with_the_exit_code_of_its_own(
    make: Callable[[Path], None], reference: Path, tmp_path: Path
) -> None:
    make(tmp_path / "scan.zarr")
    before = everything(tmp_path)
    done = run_cli("convert", reference, tmp_path / "scan.zarr", "--overwrite", "-q")
    assert done.returncode == 4, done.stderr
    assert str(tmp_path / "scan.zarr") in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == before


@pytest.mark.root
def test_a_read_only_file_system_is_refused_and_not_touched(
    reference: Path, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "disk") as remount:
        destination = tmp_path / "disk" / "scan.zarr"
        dataset_to_zarr(old_dataset(), destination, **LAYOUT)
        remount("ro")
        before = everything(tmp_path / "disk")
        with pytest.raises((CTLabError, OSError), match=f"{destination}.*Read-only"):
            dataset_to_zarr(new_dataset(), destination, **LAYOUT, overwrite=True)
        done = run_cli(
            *("convert", reference, destination, "--overwrite", "--workers", "1", "-q"),
            *LAYOUT_OPTIONS,
        )
        assert done.returncode == 1, done.stderr
        assert str(destination) in done.stderr
        assert "Traceback" not in done.stderr
        assert everything(tmp_path / "disk") == before


_WRITE_AS_SOMEBODY_ELSE = """
import os
import sys
import dask
from ctlab_dask_zarr import CTLabError, dataset_to_zarr
from tests.reliability.faults import LAYOUT, new_dataset
dask.config.set(scheduler="sync")
# Once as root, so that every module is loaded: another user may not be able to read them.
dataset_to_zarr(new_dataset(), sys.argv[1], overwrite=True, **LAYOUT)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    dataset_to_zarr(new_dataset(), sys.argv[2], overwrite=True, **LAYOUT)
except (CTLabError, OSError) as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o755, 0o000], ids=oct)
def test_a_folder_of_somebody_else_is_refused_and_not_touched(mode: int) -> None:
    need_root()
    # Not below pytest's own folder, which nobody but root may enter.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        theirs = Path(name) / "theirs"
        theirs.mkdir()
        destination = theirs / "scan.zarr"
        dataset_to_zarr(old_dataset(), destination, **LAYOUT)
        before = everything(theirs)
        theirs.chmod(mode)
        script = [sys.executable, "-c", _WRITE_AS_SOMEBODY_ELSE, f"{name}/mine", destination]
        done = subprocess.run(
            script, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment()
        )
        assert done.returncode == 1
        assert done.stderr.startswith("refused: "), done.stderr
        assert str(destination) in done.stderr
        assert "Permission denied" in done.stderr
        assert everything(theirs) == before


def _spellings(store: Path) -> dict[str, str]:
    """Names of one store, seen from the folder that it is in."""
    folder = store.parent
    return {
        "as it is": str(store),
        "through the folder above": f"{folder}/../{folder.name}/{store.name}",
        "with a slash at its end": f"{store}/",
        "with two slashes": f"{folder}//{store.name}",
        "without .zarr": str(store.with_suffix("")),
        "relative": store.name,
        "relative without .zarr": f"./{store.stem}",
        "as a URL": f"file://{store}",
        "through a linked folder": f"{folder.parent}/linked/{store.name}",
    }


SPELLINGS = list(_spellings(Path("/a/scan.zarr")))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in a folder that a link leads to, too; the current folder is that one."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    dataset_to_zarr(old_dataset(), folder / "scan.zarr", **LAYOUT)
    return folder / "scan.zarr"


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_dataset_that_is_read_is_never_written_over_unasked(name: str, store: Path) -> None:
    before = everything(store.parent)
    dataset = dataset_from_zarr(store)
    with pytest.raises(DestinationExistsError):
        dataset_to_zarr(dataset, _spellings(store)[name], **LAYOUT)
    assert everything(store.parent) == before


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("read_as", ["as it is", "through a linked folder"])
def test_the_dataset_that_is_read_is_replaced_by_what_was_made_of_it(
    read_as: str, name: str, store: Path
) -> None:
    source = dataset_from_zarr(_spellings(store)[read_as])
    made = make_dataset(source.data[::-1] + np.uint16(1))
    dataset_to_zarr(made, _spellings(store)[name], **LAYOUT, overwrite=True)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, OLD_VOXELS[::-1] + 1)
    assert os.listdir(store.parent) == ["scan.zarr"]


def test_a_link_to_the_dataset_that_is_read_stays_a_link_to_the_new_one(store: Path) -> None:
    link = store.parent / "link.zarr"
    link.symlink_to("scan.zarr")
    before = everything(store.parent)
    source = dataset_from_zarr(link)
    made = make_dataset(source.data[::-1] + np.uint16(1))
    with pytest.raises(DestinationExistsError, match=re.escape(str(store))):
        dataset_to_zarr(made, link, **LAYOUT)
    assert everything(store.parent) == before
    dataset_to_zarr(made, link, **LAYOUT, overwrite=True)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, OLD_VOXELS[::-1] + 1)
    assert os.readlink(link) == "scan.zarr"
    assert sorted(os.listdir(store.parent)) == ["link.zarr", "scan.zarr"]


def test_the_command_line_converts_a_dataset_onto_itself(store: Path) -> None:
    done = run_cli(
        *("convert", "scan.zarr", "../linked/scan/", "--workers", "1", "-q", "--overwrite"),
        *("--chunks", "8,8,8", "--shards", "16,16,16", "--codec", "gzip:1"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((store / "0" / "zarr.json").read_text())["chunk_grid"]["configuration"] == {
        "chunk_shape": [16, 16, 16]
    }
    np.testing.assert_array_equal(dataset_from_zarr(store).data, OLD_VOXELS)
    assert os.listdir(store.parent) == ["scan.zarr"]


def test_a_name_that_is_a_file_further_up_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("three years of work")
    before = everything(tmp_path)
    with pytest.raises((CTLabError, OSError), match="notes"):
        dataset_to_zarr(new_dataset(), tmp_path / "notes" / "scan.zarr", **LAYOUT)
    assert everything(tmp_path) == before


def test_a_folder_that_is_not_there_is_not_made_but_told(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(tmp_path / "gone")
    for folder in ("a/b", "elsewhere"):
        told = f"mkdir -p {os.path.realpath(tmp_path / folder)}"
        with pytest.raises(InvalidArgumentError, match=re.escape(told)):
            dataset_to_zarr(new_dataset(), tmp_path / folder / "scan.zarr", **LAYOUT)
    assert os.listdir(tmp_path) == ["elsewhere"]
