"""What bars replacing what is at a destination, and where none can be."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import stat
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    DestinationExistsError,
    InvalidArgumentError,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.manage.transfer import copy_dataset
from ctlab_dask_zarr.planning.occupied import folder_problem, space_problem
from ctlab_dask_zarr.read.netcdf import open_volume
from ctlab_dask_zarr.store.destination import Destination
from tests.builders import make_dataset, random_voxels, run_here

VOXELS = random_voxels((16, 16, 16))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (8, 8, 8)}
#: What macOS, Windows, NFS and file servers leave.
LEFT = [
    *(".DS_Store", "0/.DS_Store", "._zarr.json", "Thumbs.db", "desktop.ini"),
    *("0/.nfs0000000001ab", ".snapshot/hourly.0/zarr.json"),
]


@pytest.fixture(autouse=True)
def _in_this_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Path:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan.zarr", **LAYOUT)
    return tmp_path / "scan.zarr"


def _array(path: Path) -> None:
    zarr.create_array(path, data=np.arange(3), zarr_format=3)


def _image(path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), path.parents[1] / "made.zarr", **LAYOUT)
    (path.parents[1] / "made.zarr").rename(path)


def _group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))


@pytest.mark.parametrize("make", [_array, _image, _group], ids=["array", "image", "group"])
def test_what_somebody_has_put_into_a_store_bars_replacing_it_and_is_named(
    make: Any, store: Path, snapshot: Any
) -> None:
    make(store / "filtered")
    before = snapshot(store.parent)
    with pytest.raises(DestinationExistsError, match=r"holds 'filtered', which is not part"):
        dataset_to_zarr(make_dataset(VOXELS + 1), store, overwrite=True, **LAYOUT)
    assert snapshot(store.parent) == before
    assert [(p.location, p.kind) for p in verify(store)] == [("filtered", "stray")]


@pytest.mark.parametrize(
    "attributes",
    [
        {"ome": {"version": "0.5", "bioformats2raw.layout": 3}},
        {"bioformats2raw.layout": 3, "ome": {"version": "0.5"}},
        {"ome": {"version": "0.5", "plate": {"columns": [], "rows": [], "wells": []}}},
        {"ome": {"version": "0.5", "well": {"images": []}}},
    ],
)
def test_a_collection_of_images_is_never_replaced_by_one(
    attributes: dict[str, Any], tmp_path: Path, snapshot: Any
) -> None:
    zarr.create_group(tmp_path / "many.zarr", attributes=attributes)
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match="a collection of images"):
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "many", overwrite=True, **LAYOUT)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_nothing_is_written_into_somebodys_store(zarr_format: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "theirs", zarr_format=zarr_format)
    group.create_group("a")
    for place in ("scan", "a/scan", "a/deeper/scan"):
        (tmp_path / "theirs" / place).parent.mkdir(exist_ok=True)
        with pytest.raises(DestinationExistsError, match="which is a Zarr store"):
            dataset_to_zarr(make_dataset(VOXELS), tmp_path / "theirs" / place, **LAYOUT)
    assert not list(tmp_path.rglob("*scan*"))


def test_a_copy_is_not_put_into_somebodys_store_nor_into_a_folder_that_is_not_there(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(DestinationExistsError, match="which is a Zarr store"):
        copy_dataset(str(store), Destination(str(store / "copy.zarr")))
    with pytest.raises(InvalidArgumentError, match="mkdir -p"):
        copy_dataset(str(store), Destination(str(tmp_path / "gone" / "copy.zarr")))
    assert os.listdir(tmp_path) == ["scan.zarr"]


def test_labels_are_written_into_their_image(store: Path) -> None:
    labels_to_zarr((VOXELS % 3).astype("uint8"), store, "a.b%c", **LAYOUT)
    assert verify(store) == []
    np.testing.assert_array_equal(dataset_from_zarr(store / "labels" / "a.b%c").data, VOXELS % 3)
    with pytest.raises(DestinationExistsError, match="it has labels, which would be lost"):
        dataset_to_zarr(make_dataset(VOXELS), store, overwrite=True, **LAYOUT)


def test_labels_are_lost_with_their_image_only_where_that_is_asked_for(
    store: Path, snapshot: Any
) -> None:
    labels_to_zarr((VOXELS % 3).astype("uint8"), store, "phases", **LAYOUT)
    new = make_dataset(VOXELS + 1)
    assert "--drop-labels" in str(plan(new, store, overwrite=True, **LAYOUT).destination_problem)
    (store / "labels" / "notes.txt").write_text("three years of work")
    before = snapshot(store)
    with pytest.raises(DestinationExistsError, match=re.escape("'labels/notes.txt'")):
        dataset_to_zarr(new, store, overwrite="drop_labels", **LAYOUT)
    assert snapshot(store) == before
    (store / "labels" / "notes.txt").unlink()
    with pytest.raises(InvalidArgumentError, match="nor 'drop_labels'"):
        dataset_to_zarr(new, store, **(LAYOUT | {"overwrite": "drop"}))
    dataset_to_zarr(new, store, overwrite="drop_labels", **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, VOXELS + 1)
    assert not (store / "labels").exists()
    assert os.listdir(store.parent) == ["scan.zarr"]
    assert verify(store) == []


def test_the_command_drops_labels_where_it_is_told_to(store: Path, tmp_path: Path) -> None:
    labels_to_zarr((VOXELS % 3).astype("uint8"), store, "phases", **LAYOUT)
    dataset_to_zarr(make_dataset(VOXELS + 1), tmp_path / "new.zarr", **LAYOUT)
    convert = ("convert", tmp_path / "new.zarr", store, "--workers", "1", "-q")
    alone = run_here(*convert, "--drop-labels")
    assert alone.returncode == 2
    assert "give both" in alone.stderr
    assert run_here(*convert, "--overwrite").returncode == 4
    parts = (*convert, "--overwrite", "--drop-labels", "--part", "1/1")
    assert run_here(*parts).returncode == 0
    assert run_here("commit", store, "--overwrite").returncode == 4
    assert (store / "labels" / "phases" / "zarr.json").exists()
    assert run_here("commit", store, "--overwrite", "--drop-labels").returncode == 0
    assert not (store / "labels").exists()
    np.testing.assert_array_equal(dataset_from_zarr(store).data, VOXELS + 1)


def test_a_conversion_into_its_own_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "tomo_nc"
    write_mango_netcdf(
        source, VOXELS, datatype="tomo", voxel_size=(1, 1, 1), voxel_unit="um", slices_per_block=8
    )
    before = sorted(os.listdir(source))
    with pytest.raises(InvalidArgumentError, match="inside its source"):
        dataset_to_zarr(open_volume(source), source / "scan", **LAYOUT)
    assert sorted(os.listdir(source)) == before


@pytest.mark.parametrize("name", LEFT)
def test_what_systems_leave_bars_nothing_and_is_no_part(
    name: str, store: Path, tmp_path: Path
) -> None:
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(b"\0\5\26\7")
    assert verify(store) == []
    copy_dataset(str(store), Destination(str(tmp_path / "copy.zarr")))
    assert not (tmp_path / "copy.zarr" / name).exists()
    dataset_to_zarr(make_dataset(VOXELS + 1), store, overwrite=True, **LAYOUT)
    np.testing.assert_array_equal(dataset_from_zarr(store).data, VOXELS + 1)


@pytest.mark.parametrize("name", ["._notes/thesis.txt", ".DS_Store.txt", "x.partial", ".nfs.txt"])
def test_what_only_sounds_like_it_bars_replacing(name: str, store: Path, snapshot: Any) -> None:
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_text("three years of work")
    before = snapshot(store)
    with pytest.raises(DestinationExistsError, match=re.escape(repr(name))):
        dataset_to_zarr(make_dataset(VOXELS), store, overwrite=True, **LAYOUT)
    assert [p.location for p in verify(store)] == [name]
    assert snapshot(store) == before


def test_a_file_of_the_user_stays_when_levels_are_added(store: Path) -> None:
    (store / "notes.partial").write_text("three years of work")
    add_levels(store, 2)
    assert (store / "notes.partial").read_text() == "three years of work"


def test_an_array_without_data_type_is_ours_to_replace(tmp_path: Path) -> None:
    options = LAYOUT | {"ome_zarr_version": None}
    for value in (1, 2):
        voxels = np.full((16, 16, 16), value, "uint8")
        dataset_to_zarr(make_dataset(voxels), tmp_path / "a", overwrite=True, **options)
    assert dataset_from_zarr(tmp_path / "a.zarr").data.max().compute() == 2


def test_a_name_too_long_for_what_is_hidden_beside_it_is_refused_by_the_plan(
    tmp_path: Path,
) -> None:
    # .NAME.staging.<32 digits>
    longest = "x" * (255 - 42 - len(".zarr"))
    plan(make_dataset(VOXELS), tmp_path / longest)
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / longest, **LAYOUT)
    for make in (plan, dataset_to_zarr):
        with pytest.raises(InvalidArgumentError, match="too long by 2 bytes"):
            make(make_dataset(VOXELS), tmp_path / f"{longest}ä")
    with pytest.raises(InvalidArgumentError, match="too long by"):
        labels_to_zarr((VOXELS % 3).astype("uint8"), tmp_path / f"{longest}.zarr", "phases")
    assert os.listdir(tmp_path) == [f"{longest}.zarr"]


def test_the_command_makes_the_folder_where_it_is_told_to(tmp_path: Path) -> None:
    source = tmp_path / "tomo_nc"
    write_mango_netcdf(
        source, VOXELS, datatype="tomo", voxel_size=(1, 1, 1), voxel_unit="um", slices_per_block=8
    )
    place = tmp_path / "a" / "b" / "scan.zarr"
    arguments = ["convert", str(source), str(place), "--workers", "1", "-q"]
    with pytest.raises(SystemExit) as refused:
        main(arguments, standalone_mode=False)
    assert refused.value.code == 2
    assert not (tmp_path / "a").exists()
    main([*arguments, "--mkdir"], standalone_mode=False)
    np.testing.assert_array_equal(dataset_from_zarr(place).data, VOXELS)


def _modes(folder: Path) -> set[str]:
    paths = [folder, *folder.rglob("*")]
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}


def test_what_was_its_owners_alone_stays_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (store, *store.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    edit_metadata(store, history={"a": "b"})
    assert _modes(store) == {"0o700", "0o600"}
    add_levels(store, 2)
    assert _modes(store) == {"0o700", "0o600"}
    seen: list[str] = []
    rename = os.rename

    def look(source: str, target: str) -> None:
        if str(target).endswith(".staging"):
            seen.append(oct(stat.S_IMODE(os.stat(source).st_mode)))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    dataset_to_zarr(make_dataset(VOXELS + 1), store, overwrite=True, **LAYOUT)
    assert _modes(store) == {"0o700", "0o600"}
    assert seen == ["0o700"], "while it is written nobody else looks into it"


def test_new_stores_are_made_as_the_process_makes_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **LAYOUT)
    finally:
        os.umask(before)
    assert _modes(tmp_path / "a.zarr") == {"0o750", "0o640"}
    shutil.rmtree(tmp_path / "a.zarr")


def test_a_folder_that_gives_its_group_to_what_is_made_in_it_does_so_after_it_was_replaced(
    store: Path,
) -> None:
    store.chmod(0o2770)
    (store / "0").chmod(0o2770)
    dataset_to_zarr(make_dataset(VOXELS + 1), store, overwrite=True, **LAYOUT)
    modes = {oct(stat.S_IMODE(path.stat().st_mode)) for path in (store, store / "0")}
    assert modes == {"0o2770"}


def test_a_plan_tells_of_too_few_open_files_and_refuses_a_link_that_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(limit: int) -> str:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        scan = make_dataset(random_voxels((32, 32, 32)), (4, 32, 32))
        with dask.config.set(scheduler="threads", num_workers=2):
            found = plan(scan, tmp_path / "a", shards=(8, 8, 8), chunks=(4, 4, 4))
        assert (found.rechunk.method, found.rechunk.band) == ("stream", None)
        return found.describe()

    assert "a task writes 16 shards at once, each a file" in rows(16)
    assert "ulimit" not in rows(17)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "gone.zarr")
    problem = plan(make_dataset(VOXELS), tmp_path / "link.zarr", **LAYOUT).destination_problem
    assert str(tmp_path / "link.zarr") in str(problem)
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "scan.zarr", **LAYOUT)
    done = run_here("plan", tmp_path / "scan.zarr", tmp_path / "link.zarr")
    assert done.returncode == 1
    assert os.readlink(tmp_path / "link.zarr") == str(tmp_path / "gone.zarr")


def test_a_folder_that_cannot_be_written_to_is_a_problem_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = folder_problem(Destination.at(str(tmp_path / "a.zarr")))
    assert found == (
        f"the folder {tmp_path} cannot be written to: choose another, or ask who owns it"
    )
    assert folder_problem(Destination.at("memory://bucket/a.zarr")) is None


def test_little_space_is_told(tmp_path: Path) -> None:
    place = Destination.at(str(tmp_path / "a.zarr"))
    assert space_problem(place, 0) is None
    found = space_problem(place, 2**60)
    assert found is not None
    assert "left, and the voxels take 1048576.0 TiB before compression" in found
