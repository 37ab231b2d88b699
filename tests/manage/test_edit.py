"""Metadata that is changed in place: every level and the mango block at once, labels after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from ctlab_dask_zarr import (
    InvalidArgumentError,
    WriteFailedError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.manage.edit import plan_edit
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels
from tests.reliability.faults import dying_at_rename

SHAPE = (40, 65, 97)
NOW = datetime(2026, 1, 31, 15, 45)


def make_store(folder: Path, **options: object) -> Path:
    path = folder / "scan.zarr"
    dataset = make_dataset(random_voxels(SHAPE), dataset_id="20250101_120000_tomo")
    dataset_to_zarr(dataset, path, **{"levels": 2, **options})
    return path


def attributes_of(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())["attributes"]


@pytest.mark.parametrize("placement", ["dataset", "multiscales"])
def test_a_voxel_size_changes_on_every_level_and_in_the_mango_block(
    tmp_path: Path, placement: str
) -> None:
    path = make_store(tmp_path, scale_placement=placement)
    before = [dataset_from_zarr(path, level=n) for n in range(2)]
    edit_metadata(path, voxel_size=(0.6, 0.4, 0.3), voxel_unit="mm")
    after = [dataset_from_zarr(path, level=n) for n in range(2)]
    assert after[0].voxel_size == pytest.approx((0.6, 0.4, 0.3), rel=1e-12)
    # z, twice as coarse as x, was not halved.
    assert after[1].voxel_size == pytest.approx((0.6, 0.8, 0.6), rel=1e-12)
    assert str(after[0].voxel_unit) == "mm"
    # The first voxel of a level is in the middle of those it is made of, as before.
    factors = np.divide(after[0].voxel_size, before[0].voxel_size)
    origin = np.multiply(before[1].levels[1].origin, factors)
    assert after[1].levels[1].origin == pytest.approx(origin)
    assert any(before[1].levels[1].origin)
    mango = attributes_of(path)["mango"]
    assert mango["voxel_size_xyz"] == [0.3, 0.4, 0.6]
    assert mango["voxel_unit"] == "mm"
    (key, entry), *_ = after[0].history.items()
    assert key.endswith("_set_voxel")
    assert entry == {
        "operation": "set_voxel",
        "before": "3 x 2 x 1.5 um",
        "after": "0.6 x 0.4 x 0.3 mm",
    }
    assert verify(path) == []


def test_labels_follow_their_image(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    labels_to_zarr(dataset_from_zarr(path).data.astype("uint8") % 3, path, "phases")
    changes = edit_metadata(path, voxel_size=5)
    labels = dataset_from_zarr(path / "labels" / "phases", level=1)
    assert labels.voxel_size == (5, 10, 10)
    assert changes == (
        "voxel size on 2 levels: 3 x 2 x 1.5 um -> 5 um",
        "voxel size of labels 'phases': 3 x 2 x 1.5 um -> 5 um",
    )
    ((key, entry),) = labels.history.items()
    assert key.endswith("_set_voxel")
    assert (entry["before"], entry["after"]) == ("3 x 2 x 1.5 um", "5 um")
    assert verify(path) == []


@pytest.mark.parametrize("n_documents", range(4))
@pytest.mark.parametrize("asked_next", ["the same", "the old size"])
def test_a_change_that_is_cut_off_is_done_or_undone_by_asking_again(
    tmp_path: Path, n_documents: int, asked_next: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path)
    edit_metadata(path, voxel_size=5)
    for name in ("grains", "phases"):
        labels_to_zarr(np.ones(SHAPE, "uint8"), path, name)
    stores = [path, path / "labels" / "grains", path / "labels" / "phases"]
    replaced: list[str] = []
    rename = LocalFiles.rename

    def dying(self: LocalFiles, source: str, target: str) -> None:
        if os.path.basename(target) == "zarr.json":
            if len(replaced) == n_documents:
                raise KeyboardInterrupt
            replaced.append(os.path.dirname(target))
        rename(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "rename", dying)
        if n_documents < len(stores):
            with pytest.raises(KeyboardInterrupt):
                edit_metadata(path, voxel_size=6)
        else:
            edit_metadata(path, voxel_size=6)
    # The image is changed first: labels that lag behind are what they were.
    assert replaced == [str(store) for store in stores[:n_documents]]
    assert verify(path) == []
    wanted = 6 if asked_next == "the same" else 5
    changes = edit_metadata(path, voxel_size=wanted)
    sizes = [dataset_from_zarr(store, level=1).voxel_size for store in stores]
    assert sizes == [(wanted, 2 * wanted, 2 * wanted)] * 3
    n_to_do = 3 - n_documents if wanted == 6 else n_documents
    assert len(changes) == n_to_do
    assert verify(path) == []
    assert edit_metadata(path, voxel_size=wanted) == ()


def coarse_labels(path: Path, shape: tuple[int, ...], voxel_size: tuple[float, ...]) -> Path:
    """Labels as another writer may place them: coarser than their image."""
    folder, written = path / "labels" / "coarse", path.parent / "coarse.zarr"
    dataset_to_zarr(make_dataset(np.ones(shape, "uint8"), voxel_size=voxel_size), written)
    folder.parent.mkdir()
    document = json.loads((written / "zarr.json").read_text())
    document["attributes"]["ome"]["image-label"] = {}
    del document["attributes"]["ctlab_dask_zarr"]
    (written / "zarr.json").write_text(json.dumps(document))
    return written.rename(folder)


def test_labels_that_are_coarser_than_their_image_follow_the_level_of_their_shape(
    tmp_path: Path,
) -> None:
    path = make_store(tmp_path)
    level = dataset_from_zarr(path, level=1)
    labels = coarse_labels(path, level.shape, level.voxel_size)
    edit_metadata(path, voxel_size=5)
    assert dataset_from_zarr(labels).voxel_size == (5, 10, 10)
    assert edit_metadata(path, voxel_size=5) == ()


def test_labels_of_which_nobody_can_tell_how_they_follow_are_left_and_named(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    labels = coarse_labels(path, (7, 8, 9), (17, 16, 16))
    _, left = edit_metadata(path, voxel_size=5)
    assert left.startswith("labels 'coarse' stay at 17 x 16 x 16 um: no level has their shape")
    assert dataset_from_zarr(labels).voxel_size == (17, 16, 16)
    assert edit_metadata(path, voxel_size=5) == ()
    edit_metadata(labels, voxel_size=28)
    assert dataset_from_zarr(labels).voxel_size == (28, 28, 28)


def test_one_length_is_that_of_every_axis_and_a_unit_alone_is_only_the_unit(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    edit_metadata(path, voxel_size=2.37)
    assert dataset_from_zarr(path).voxel_size == (2.37, 2.37, 2.37)
    edit_metadata(path, voxel_unit="mm")
    dataset = dataset_from_zarr(path)
    assert (dataset.voxel_size, str(dataset.voxel_unit)) == ((2.37, 2.37, 2.37), "mm")


def test_an_identifier_changes_where_the_image_is_named_by_it(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    edit_metadata(path, dataset_id="20260131_154500_tomo")
    attributes = attributes_of(path)
    assert attributes["mango"]["dataset_id"] == "20260131_154500_tomo"
    assert attributes["ome"]["multiscales"][0]["name"] == "20260131_154500_tomo"
    assert attributes["ome"]["omero"]["channels"][0]["label"] == "20260131_154500_tomo"
    assert dataset_from_zarr(path).dataset_id == "20260131_154500_tomo"
    assert verify(path) == []


def test_what_is_so_already_changes_nothing(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    path = make_store(tmp_path)
    before = snapshot(tmp_path)
    assert edit_metadata(path, voxel_size=(3, 2, 1.5), dataset_id="20250101_120000_tomo") == ()
    assert snapshot(tmp_path) == before


def test_an_entry_of_the_history_is_added_and_none_is_rewritten(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    edit_metadata(path, history={"note": "the sample had dried"})
    assert dataset_from_zarr(path).history == {"note": "the sample had dried"}
    with pytest.raises(InvalidArgumentError, match="entries are never replaced"):
        edit_metadata(path, history={"note": "it had not"})


def test_changes_in_the_same_second_have_an_entry_each(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    for size in (4, 5, 6):
        plan_edit(path, voxel_size=size, now=NOW).apply()
    history = dataset_from_zarr(path).history
    stamp = "20260131_154500_set_voxel"
    assert list(history) == [stamp, f"{stamp}_2", f"{stamp}_3"]
    assert [entry["after"] for entry in history.values()] == ["4 um", "5 um", "6 um"]


@pytest.mark.parametrize("layout", ["without data type", "plain", "of another writer"])
def test_every_kind_of_store_can_be_changed(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "scan.zarr"
    voxels = random_voxels((8, 9, 10))
    if layout == "plain":
        dataset_to_zarr(make_dataset(voxels), path, ome_zarr_version=None)
    elif layout == "without data type":
        dataset_to_zarr(make_dataset(voxels.astype("float64")), path)
    else:
        scale = {"type": "scale", "scale": [3.0, 2.0, 1.5]}
        multiscale = {
            "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
            "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
        }
        attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}, "mine": 7}
        group = zarr.create_group(path, zarr_format=3, attributes=attributes)
        # Fill values only: nothing of this writer promises that every chunk is stored.
        group.create_array("s0", shape=(8, 9, 10), chunks=(4, 4, 4), dtype="uint16")
    edit_metadata(path, voxel_size=2.5, history={"note": "calibrated"}, dataset_id="x")
    dataset = dataset_from_zarr(path)
    assert dataset.voxel_size == (2.5, 2.5, 2.5)
    assert dataset.history["note"] == "calibrated"
    assert len(dataset.history) == 3
    assert dataset.dataset_id == "x"
    dataset.data.compute()
    if layout == "of another writer":
        assert attributes_of(path)["mine"] == 7
    else:
        assert verify(path) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"voxel_size": (1, 2)}, "2 values for 3 axes"),
        ({"voxel_size": -1.0}, "not a length"),
        ({"voxel_unit": "parsec"}, "not a voxel unit"),
        ({"voxel_unit": "voxel"}, "a voxel is not a length"),
        ({"dataset_id": " "}, "not text"),
        ({"history": {"": "x"}}, "not a name"),
    ],
)
def test_a_wrong_wish_touches_nothing(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, str]], wanted: dict, message: str
) -> None:
    path = make_store(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(InvalidArgumentError, match=message):
        edit_metadata(path, **wanted)
    assert snapshot(tmp_path) == before


def test_a_change_by_another_at_the_same_time_is_not_lost(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    mine = plan_edit(path, voxel_size=5, now=NOW)
    edit_metadata(path, dataset_id="theirs")
    with pytest.raises(WriteFailedError, match="at the same time"):
        mine.apply()
    dataset = dataset_from_zarr(path)
    assert (dataset.dataset_id, dataset.voxel_size) == ("theirs", (3.0, 2.0, 1.5))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_size_that_another_gives_while_a_change_is_planned_does_not_mix_with_it(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path)
    read = LocalFiles.read
    n_reads = 0

    def interrupted(self: LocalFiles, document: str, *limits: Any) -> bytes:
        nonlocal n_reads
        if document == str(path / "zarr.json"):
            n_reads += 1
            if n_reads == number:
                edit_metadata(path, voxel_size=6)
        return read(self, document, *limits)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "read", interrupted)
        edit_metadata(path, voxel_size=5)
    assert n_reads >= number
    # Whichever of the two was last.
    size = dataset_from_zarr(path).voxel_size[0]
    assert size in (5, 6)
    assert dataset_from_zarr(path, level=1).voxel_size == (size, 2 * size, 2 * size)
    assert attributes_of(path)["mango"]["voxel_size_xyz"] == [size] * 3


def test_of_entries_that_four_processes_add_at_once_all_are_there(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    program = (
        "import sys; from ctlab_dask_zarr import edit_metadata\n"
        "for n in range(12): edit_metadata(sys.argv[1], history={f'{sys.argv[2]}-{n}': 'x'})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(who)]) for who in range(4)
    ]
    assert [process.wait(120) for process in processes] == [0] * 4
    wanted = {f"{who}-{number}" for who in range(4) for number in range(12)}
    assert set(dataset_from_zarr(path).history) == wanted
    assert verify(path) == []
    assert sorted(os.listdir(path)) == ["0", "1", "zarr.json"]


def test_labels_follow_the_last_of_two_sizes_that_are_given_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    rename = LocalFiles.rename
    n_documents = 0

    def interrupted(self: LocalFiles, source: str, target: str) -> None:
        nonlocal n_documents
        rename(self, source, target)
        if os.path.basename(target) == "zarr.json":
            n_documents += 1
            if n_documents == 1:
                # The image is done, its labels are not.
                edit_metadata(path, voxel_size=6, history={"theirs": "x"})

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "rename", interrupted)
        edit_metadata(path, voxel_size=5, history={"mine": "x"})
    assert {"mine", "theirs"} < set(dataset_from_zarr(path).history)
    sizes = [dataset_from_zarr(store).voxel_size for store in (path, path / "labels" / "phases")]
    assert sizes == [(6, 6, 6), (6, 6, 6)]


def test_an_edit_keeps_who_may_read(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    (path / "zarr.json").chmod(0o640)
    edit_metadata(path, history={"note": "x"})
    assert (path / "zarr.json").stat().st_mode & 0o777 == 0o640


def test_an_entry_of_the_same_name_that_came_at_the_same_moment_is_not_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(tmp_path)
    mine = plan_edit(path, history={"note": "mine"}, now=NOW)
    edit_metadata(path, history={"note": "theirs"})
    with pytest.raises(WriteFailedError, match="at the same time"):
        mine.apply()
    assert dataset_from_zarr(path).history == {"note": "theirs"}


def consolidate(path: Path) -> None:
    with pytest.warns(zarr.errors.ZarrUserWarning, match="Consolidated"):
        zarr.consolidate_metadata(path)


def scale_of(group: zarr.Group) -> list[float]:
    ome: Any = group.attrs["ome"]
    scale: list[float] = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0][
        "scale"
    ]
    return scale


def test_what_zarr_has_consolidated_does_not_hide_a_change(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "all.zarr", zarr_format=3)
    path = make_store(tmp_path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    path = path.rename(tmp_path / "all.zarr" / "scan")
    for folder in (path / "labels", path, tmp_path / "all.zarr"):
        consolidate(folder)
    assert verify(path) == []
    edit_metadata(path, voxel_size=5)
    for root, below in (("all.zarr", "scan"), ("all.zarr/scan", "."), ("all.zarr", "scan/labels")):
        group = zarr.open_group(tmp_path / root, mode="r")
        group = group if below == "." else group[below]
        if below.endswith("labels"):
            group = group["phases"]
        assert scale_of(group) == [5, 5, 5]
    assert verify(path) == []


def test_what_others_say_that_is_no_number_is_kept(tmp_path: Path) -> None:
    """zarr-python writes NaN into its documents, and reads it."""
    (tmp_path / "group").mkdir()
    path = make_store(tmp_path / "group")
    group = zarr.create_group(tmp_path / "group", zarr_format=3)
    for node in (group, zarr.open_group(path)):
        node.attrs["noise"] = float("nan")
    consolidate(tmp_path / "group")
    edit_metadata(path, history={"a": "b"})
    for node in (tmp_path / "group", path):
        assert np.isnan(zarr.open_group(node, mode="r").attrs["noise"])
    assert "consolidated" not in (tmp_path / "group" / "zarr.json").read_text()
    assert dataset_from_zarr(path).history["a"] == "b"


def test_a_change_through_a_link_drops_copies_in_the_group_that_the_image_is_in(
    tmp_path: Path,
) -> None:
    zarr.create_group(tmp_path / "all.zarr", zarr_format=3)
    path = make_store(tmp_path).rename(tmp_path / "all.zarr" / "scan")
    (tmp_path / "link.zarr").symlink_to(path)
    consolidate(tmp_path / "all.zarr")
    edit_metadata(tmp_path / "link.zarr", voxel_size=5)
    assert scale_of(zarr.open_group(tmp_path / "all.zarr", mode="r")["scan"]) == [5, 5, 5]
    consolidate(tmp_path / "all.zarr")
    labels_to_zarr(np.ones(SHAPE, "uint8"), tmp_path / "link.zarr", "phases")
    assert "scan/labels/phases" in zarr.open_group(tmp_path / "all.zarr", mode="r")


def test_an_image_with_labels_and_copies_of_their_documents_gets_levels(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(random_voxels(SHAPE)), path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    zarr.open_group(path).attrs["noise"] = float("nan")
    consolidate(path)
    add_levels(path, 2)
    assert [len(dataset_from_zarr(p).levels) for p in (path, path / "labels" / "phases")] == [2, 2]
    assert np.isnan(zarr.open_group(path, mode="r").attrs["noise"])
    assert verify(path) == []


def test_verify_tells_of_copies_that_are_out_of_date(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    consolidate(path)
    assert verify(path) == []
    labels = path / "labels" / "phases"
    whole = (labels / "zarr.json").read_text()
    # As by a program that knows nothing of the copies.
    (labels / "zarr.json").write_text(whole.replace("micrometer", "millimeter"))
    found = [p for p in verify(path) if p.kind == "consolidated"]
    assert [p.location for p in found] == ["zarr.json"]
    assert "labels/phases" in found[0].message
    (labels / "zarr.json").write_text(whole)
    shutil.rmtree(path / "labels")
    (problem,) = verify(path)
    assert "its copy of the document of labels" in problem.message


def test_labels_follow_their_image_wherever_they_are_listed(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    folder = path / "labels"
    (folder / "deep").mkdir()
    (folder / "phases").rename(folder / "deep" / "0")
    (folder / "zarr.json").write_text(
        (folder / "zarr.json")
        .read_text()
        .replace('"phases"', '"deep/0", "gone", "../../scan.zarr"')
    )
    assert len(edit_metadata(path, voxel_size=5)) == 2
    assert dataset_from_zarr(folder / "deep" / "0").voxel_size == (5, 5, 5)


def test_labels_that_another_changed_meanwhile_leave_the_image_as_it_was(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, "phases")
    mine = plan_edit(path, voxel_size=5, now=NOW)
    edit_metadata(path / "labels" / "phases", history={"note": "theirs"})
    with pytest.raises(WriteFailedError, match="at the same time"):
        mine.apply()
    assert dataset_from_zarr(path).voxel_size == (3.0, 2.0, 1.5)


def test_a_level_is_not_changed_apart_from_its_image(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    path = make_store(tmp_path)
    (tmp_path / "link").symlink_to(path / "1")
    before = snapshot(path)
    for level in (path / "0", path / "1", tmp_path / "link"):
        with pytest.raises(InvalidArgumentError, match=f"a level of the image {path}, "):
            edit_metadata(level, voxel_size=5)
    assert snapshot(path) == before
    # An array that the image beside it does not list is one of its own.
    raw = tmp_path / "raw.zarr"
    dataset_to_zarr(make_dataset(random_voxels((8, 9, 10))), raw, ome_zarr_version=None)
    raw.rename(path / "raw.zarr")
    edit_metadata(path / "raw.zarr", voxel_size=5)
    assert dataset_from_zarr(path / "raw.zarr").voxel_size == (5, 5, 5)


def test_a_store_whose_levels_are_being_made_is_left_alone(tmp_path: Path) -> None:
    path = make_store(tmp_path, levels=1)
    with dying_at_rename(lambda _, target: target == str(path / "1")):
        add_levels(path, levels=2)
    with pytest.raises(InvalidArgumentError, match="given further levels"):
        edit_metadata(path, voxel_size=5)


@pytest.mark.parametrize("name", ["phases", "a.staging"])
def test_an_image_whose_labels_are_being_written_is_left_alone(tmp_path: Path, name: str) -> None:
    path = make_store(tmp_path)
    # Of an image whose name this one's begins with.
    (tmp_path / ".scan.phases.labels-staging").mkdir()
    edit_metadata(path, voxel_size=5)
    with dying_at_rename(lambda _, target: target == str(path / "labels" / name)):
        labels_to_zarr(np.ones(SHAPE, "uint8"), path, name)
    with pytest.raises(InvalidArgumentError, match=rf"labels/{name} is being written"):
        edit_metadata(path, voxel_size=6)
    labels_to_zarr(np.ones(SHAPE, "uint8"), path, name, resume=True)
    edit_metadata(path, voxel_size=6)
    assert dataset_from_zarr(path / "labels" / name).voxel_size == (6, 6, 6)


def run(*arguments: str, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments), input=answer)
    return result.exit_code, result.output


def test_the_command_shows_the_change_and_asks(tmp_path: Path) -> None:
    path = str(make_store(tmp_path))
    code, output = run("set-voxel", path, "2.37um", "--dry-run")
    assert (code, output) == (0, "voxel size on 2 levels: 3 x 2 x 1.5 um -> 2.37 um\n")
    code, output = run("set-voxel", path, "2.37um", answer="n\n")
    assert code == 1
    assert "3 x 2 x 1.5 um -> 2.37 um" in output
    assert dataset_from_zarr(path).voxel_size == (3.0, 2.0, 1.5)
    code, output = run("set-voxel", path, "2.37um", answer="y\n")
    assert (code, output.splitlines()[-1]) == (0, "changed")
    assert dataset_from_zarr(path).voxel_size == (2.37, 2.37, 2.37)
    assert run("set-voxel", path, "2.37um", "--yes") == (
        0,
        "nothing to change: the metadata says so already\n",
    )


def test_what_is_changed_without_a_question_waits_for_nobody(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    make_folder = LocalFiles.make_folder
    entries = iter(range(3))

    def between(self: LocalFiles, path: str) -> None:
        make_folder(self, path)
        if next(entries, None) is not None:
            document = os.path.join(os.path.dirname(path), "zarr.json")
            text = Path(document).read_text()
            Path(document).write_text(text + " ")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFiles, "make_folder", between)
        assert run("history", str(path), "--add", "note=x", "--yes")[0] == 0
    assert next(entries, None) is None
    assert dataset_from_zarr(path).history["note"] == "x"


def test_different_lengths_have_to_be_meant(tmp_path: Path) -> None:
    path = str(make_store(tmp_path))
    assert run("set-voxel", path, "3,2,2um")[0] == 2
    assert run("set-voxel", path, "3um", "--anisotropic")[0] == 2
    assert run("set-voxel", path, "3,2,2um", "--anisotropic", "--yes")[0] == 0
    assert dataset_from_zarr(path).voxel_size == (3.0, 2.0, 2.0)


def test_the_history_is_shown_and_added_to(tmp_path: Path) -> None:
    path = str(make_store(tmp_path))
    assert run("set-id", path, "20260131_154500_tomo", "--yes")[0] == 0
    assert run("history", path, "--add", "note=dry = wet", "--yes")[0] == 0
    code, output = run("history", path)
    assert code == 0
    assert "note  dry = wet" in output
    assert '"operation": "set_id"' in output
    assert json.loads(run("history", path, "--json")[1])["note"] == "dry = wet"
    assert run("history", path, "--add", "nothing")[0] == 2
    code, output = run("history", path, "--add", "x=1", "--add", "x=2", "--yes")
    assert code == 2
    assert "'x' is given twice" in output
    assert "x" not in dataset_from_zarr(path).history
