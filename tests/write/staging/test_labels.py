"""Labels that are under way know their image: they are never put into another one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    InvalidArgumentError,
    StagingExistsError,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.api.add import prepare_labels
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.store.files import LOCAL_FILES
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.write.run import run
from ctlab_dask_zarr.write.staging.labels import image_identity
from tests.builders import make_dataset, random_voxels

SHAPE = (8, 8, 16)
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": None}
VOXELS = random_voxels(SHAPE)
LABELS = (VOXELS % 3).astype("uint8")


@pytest.fixture(autouse=True)
def _in_this_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def write_image(path: Any, voxels: np.ndarray = VOXELS, **options: Any) -> None:
    dataset_to_zarr(make_dataset(voxels), path, **(LAYOUT | options))


def others_image(path: Path, voxels: np.ndarray = VOXELS) -> None:
    """An image as another writer makes it."""
    group = zarr.create_group(path, zarr_format=3, overwrite=True)
    array = group.create_array(
        "s0", shape=voxels.shape, chunks=(8, 8, 8), dtype=voxels.dtype, dimension_names="zyx"
    )
    array[...] = voxels
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": [3.0, 2.0, 1.5]}
    dataset = {"path": "s0", "coordinateTransformations": [scale]}
    multiscales = [{"axes": axes, "datasets": [dataset]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    for document in (path / "zarr.json", path / "s0" / "zarr.json"):
        # Written in the same moment by a test, and not by a user.
        os.utime(document, (0, hash(voxels.tobytes()) % 10**6))


def replaced_by_another_shape(path: Path) -> None:
    write_image(path, np.zeros((8, 8, 24), "uint16"), overwrite=True)


def replaced_by_other_voxels(path: Path) -> None:
    write_image(path, VOXELS[::-1].copy(), overwrite=True)


def replaced_by_more_levels(path: Path) -> None:
    write_image(path, overwrite=True, levels=2)


@pytest.mark.parametrize(
    "replace", [replaced_by_another_shape, replaced_by_other_voxels, replaced_by_more_levels]
)
def test_labels_planned_for_an_image_are_not_put_into_the_one_that_took_its_place(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    graph = labels_to_zarr(LABELS, path, "phases", compute=False, **LAYOUT)
    replace(path)
    with pytest.raises(DestinationExistsError, match="another image than the one for which"):
        graph.compute()
    assert not (path / "labels").exists()
    assert os.listdir(tmp_path) == ["scan.zarr"]


def test_labels_of_another_writers_image_that_was_written_again_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    others_image(path)
    graph = labels_to_zarr(LABELS, path, "phases", compute=False, **LAYOUT)
    edit_metadata(path, history={"note": "no other image"})
    others_image(path, VOXELS[::-1].copy())
    with pytest.raises(DestinationExistsError, match="another image"):
        graph.compute()


def interrupted(path: Path) -> da.Array:
    """Leave labels half written; return what they are, to be gone on with."""
    stopped = [False]

    def block(part: np.ndarray, block_info: Any = None) -> np.ndarray:
        if not stopped[0] and block_info and block_info[0]["chunk-location"][-1] == 1:
            raise RuntimeError("stopped")
        return part

    labels = da.from_array(LABELS, chunks=8, name="labels")
    labels = labels.map_blocks(block, dtype="uint8", name="checked", meta=LABELS[:0])
    labels = Dataset(
        labels,
        dimension_names="zyx",
        voxel_unit="um",
        voxel_size=dataset_from_zarr(path).voxel_size,
        identity="these labels",
    )
    with pytest.raises(CTLabError, match="stopped"):
        labels_to_zarr(labels, path, "phases", **LAYOUT)
    stopped[0] = True
    return labels


def test_labels_begun_for_an_image_are_not_gone_on_with_in_another_but_begun_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    labels = interrupted(path)
    (staging,) = set(os.listdir(tmp_path)) - {"scan.zarr"}
    replaced_by_other_voxels(path)
    with pytest.raises(StagingExistsError, match=r"of another image.* restart=True"):
        labels_to_zarr(labels, path, "phases", resume=True, **LAYOUT)
    assert not (path / "labels").exists()
    assert staging in os.listdir(tmp_path)
    labels_to_zarr(labels, path, "phases", restart=True, **LAYOUT)
    np.testing.assert_array_equal(
        dataset_from_zarr(path / "labels" / "phases").data.compute(), LABELS
    )
    assert verify(path) == []
    assert os.listdir(tmp_path) == ["scan.zarr"]


def test_parts_of_labels_are_all_of_one_image(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)

    def add(part: tuple[int, int]) -> None:
        same = {"colors": None, "resume": False, "restart": False}
        options = WriteOptions(**LAYOUT)
        labels = da.from_array(LABELS, chunks=8)
        run(prepare_labels(labels, path, "phases", options, part=part, **same))

    add((1, 2))
    add((2, 2))
    replaced_by_other_voxels(path)
    with pytest.raises(DestinationExistsError, match="another image"):
        commit(path / "labels" / "phases")
    with pytest.raises(StagingExistsError, match=r"of another image.* `ctlab-zarr abort"):
        add((2, 2))


def test_a_voxel_size_that_was_corrected_before_its_labels_are_there_is_theirs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    graph = labels_to_zarr(LABELS, path, "phases", compute=False, **LAYOUT)
    edit_metadata(path, voxel_size=5)
    with pytest.raises(DestinationExistsError, match=r"voxel size or position of .* was changed"):
        graph.compute()
    labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    assert dataset_from_zarr(path / "labels" / "phases").voxel_size == (5, 5, 5)


def test_resumed_labels_take_over_a_voxel_size_that_another_program_corrected(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    others_image(path)
    labels = interrupted(path)
    document = json.loads((path / "zarr.json").read_text())
    (dataset,) = document["attributes"]["ome"]["multiscales"][0]["datasets"]
    dataset["coordinateTransformations"] = [{"type": "scale", "scale": [4.0, 4.0, 4.0]}]
    (path / "zarr.json").write_text(json.dumps(document))
    labels = Dataset.from_modified(labels, voxel_size=(4.0, 4.0, 4.0))
    labels_to_zarr(labels, path, "phases", resume=True, **LAYOUT)
    assert dataset_from_zarr(path / "labels" / "phases").voxel_size == (4, 4, 4)
    assert os.listdir(tmp_path) == ["scan.zarr"]


def test_a_history_or_an_identifier_makes_no_other_image(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    graph = labels_to_zarr(LABELS, path, "phases", compute=False, **LAYOUT)
    edit_metadata(path, history={"note": "dried"}, dataset_id="20260131_154500_tomo")
    labels_to_zarr(LABELS, path, "others", **LAYOUT)
    graph.compute()
    assert verify(path) == []
    assert sorted(os.listdir(path / "labels")) == ["others", "phases", "zarr.json"]


def test_an_image_in_an_object_store_is_known_again(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    path = f"memory://labels/{tmp_path.name}/scan.zarr"
    files = ObjectFiles()
    write_image(path)
    graph = labels_to_zarr(LABELS, path, "phases", compute=False, **LAYOUT)
    files.remove_all(path, lambda key: True)
    write_image(path, VOXELS[::-1].copy())
    with pytest.raises(DestinationExistsError, match="another image"):
        graph.compute()
    assert files.kind(f"{path}/labels") is None
    labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    assert verify(path) == []


def test_a_copy_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    """Moved to a faster disk, or written anew with the same voxels."""
    for name in ("a", "b"):
        write_image(tmp_path / name)
    one, other = (image_identity(LOCAL_FILES, str(tmp_path / f"{n}.zarr")) for n in "ab")
    assert one == other


@pytest.mark.parametrize("name", ["zarr.json", "Zarr.JSON"])
def test_labels_do_not_take_the_place_of_the_document_that_lists_them(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="not a name for labels"):
        labels_to_zarr(LABELS, path, name, **LAYOUT)
    assert verify(path) == []


@pytest.mark.parametrize(
    "attributes", ["x", {"ome": "x"}, {"ome": {"labels": "abc"}}, {"ome": {"labels": {"a": 1}}}]
)
def test_labels_that_could_not_be_listed_are_refused_before_they_are_written(
    attributes: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    (path / "labels").mkdir()
    document = path / "labels" / "zarr.json"
    text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    document.write_text(text)
    with pytest.raises(DestinationExistsError, match=f"{document} does not list labels"):
        labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    assert document.read_text() == text
    assert os.listdir(path / "labels") == ["zarr.json"]
    assert os.listdir(tmp_path) == ["scan.zarr"]


@pytest.mark.parametrize("is_there", [False, True])
def test_who_may_not_look_into_an_image_may_not_look_into_its_labels_while_they_are_written(
    is_there: bool, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    if is_there:
        labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    path.chmod(0o700)

    def block(part: np.ndarray) -> np.ndarray:
        staging = tmp_path / ".scan.zarr.phases.labels-staging"
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700
        return part

    data = da.from_array(LABELS, chunks=(8, 8, 8)).map_blocks(block, dtype="uint8", meta=LABELS)
    labels_to_zarr(data, path, "phases", overwrite=is_there, **LAYOUT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "a link"])
def test_a_place_for_labels_that_is_no_folder_is_told_before_they_are_made(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    write_image(path)
    if kind == "a file":
        (path / "labels").write_text("mine")
    else:
        (path / "labels").symlink_to(tmp_path / "elsewhere")
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        labels_to_zarr(LABELS, path, "phases", **LAYOUT)
        assert sorted(os.listdir(tmp_path / "elsewhere")) == ["phases", "zarr.json"]
        return
    with pytest.raises(DestinationExistsError, match="labels is not a folder"):
        labels_to_zarr(LABELS, path, "phases", **LAYOUT)
    assert os.listdir(tmp_path) == ["scan.zarr"]
