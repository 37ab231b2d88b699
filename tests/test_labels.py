"""Labels from end to end: written beside their image, with its levels, verified, replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
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
    IncompleteDatasetError,
    InvalidArgumentError,
    add_levels,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.api.add import prepare_labels
from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset
from tests.test_levels import (
    ISOTROPIC,
    LAYOUT,
    SHAPE,
    assert_levels,
    attributes,
    failing_after,
    masked_voxels,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), path, levels=3, **LAYOUT)
    return path


def phases() -> np.ndarray:
    voxels = masked_voxels()
    return np.where(voxels == 65535, 255, voxels // 1000).astype("uint8")


def labels_of(path: Path) -> list[str]:
    names: list[str] = json.loads((path / "labels" / "zarr.json").read_text())["attributes"]["ome"][
        "labels"
    ]
    return names


def test_labels_have_the_levels_of_their_image(image: Path) -> None:
    segmented = make_dataset(phases(), 32, datatype="segmented", **ISOTROPIC)
    labels_to_zarr(
        segmented, image, "phases", colors={1: (255, 0, 0), 2: (0, 255, 0, 128)}, **LAYOUT
    )
    labels_to_zarr(da.from_array(phases().astype("int32"), chunks=40), image, "other", **LAYOUT)
    assert sorted(labels_of(image)) == ["other", "phases"]
    expected = [phases()]
    for _ in range(2):
        expected.append(halve(expected[-1], (2, 2, 2), "mode", 255))
    assert_levels(image / "labels" / "phases", expected)
    label = attributes(image / "labels" / "phases")["ome"]["image-label"]
    assert label["source"] == {"image": "../../"}
    assert label["colors"][1] == {"label-value": 2, "rgba": [0, 255, 0, 128]}
    assert verify(image) == []
    assert verify(image / "labels" / "phases", segmented) == []
    assert os.listdir(image.parent) == ["scan.zarr"]
    coarsest = dataset_from_zarr(image / "labels" / "phases", level=2).data.compute()
    assert set(np.unique(coarsest)) <= {0, 1, 2, 3, 255}


def test_labels_are_valid_for_other_validators(image: Path) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    labels_to_zarr(da.from_array(phases(), chunks=32), image, "phases", colors={1: (9, 9, 9)})
    Labels.from_zarr(zarr.open_group(image / "labels", mode="r"))
    ImageLabel.from_zarr(zarr.open_group(image / "labels" / "phases", mode="r"))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros(SHAPE, "float32"), {}, "integers"),
        (np.zeros((70, 65, 96), "uint8"), {}, "x: 96"),
        (np.zeros(SHAPE, "uint8"), {"name": "../up"}, "not a name"),
        (np.zeros(SHAPE, "uint8"), {"name": ""}, "not a name"),
        (np.zeros(SHAPE, "uint8"), {"colors": {1: (300, 0, 0)}}, "0 to 255"),
        (np.zeros(SHAPE, "uint8"), {"colors": {256: (1, 0, 0)}}, "256"),
        (np.zeros(SHAPE, "uint8"), {"downsample": "mean"}, "classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    data: np.ndarray, options: Mapping[str, Any], message: str, image: Path
) -> None:
    arguments = {"name": "phases", **options}
    with pytest.raises(InvalidArgumentError, match=message):
        labels_to_zarr(da.from_array(data, chunks=32), image, **arguments)
    assert sorted(os.listdir(image)) == ["0", "1", "2", "zarr.json"]
    assert os.listdir(image.parent) == ["scan.zarr"]


def test_labels_of_another_voxel_size_are_refused(image: Path) -> None:
    labels = make_dataset(phases(), 32, datatype="segmented", voxel_size=(2.0, 2.0, 2.1))
    with pytest.raises(InvalidArgumentError, match=r"2\.1"):
        labels_to_zarr(labels, image, "phases")
    in_mm = make_dataset(
        phases(), 32, datatype="segmented", voxel_size=(0.002,) * 3, voxel_unit="mm"
    )
    labels_to_zarr(in_mm, image, "phases", **LAYOUT)


def test_labels_are_replaced_only_if_asked_and_protect_their_image(image: Path) -> None:
    first, second = da.zeros(SHAPE, dtype="uint8"), da.ones(SHAPE, dtype="uint8")
    labels_to_zarr(first, image, "phases")
    with pytest.raises(DestinationExistsError, match="phases exists"):
        labels_to_zarr(second, image, "phases")
    labels_to_zarr(second, image, "phases", overwrite=True)
    assert labels_of(image) == ["phases"]
    assert (dataset_from_zarr(image / "labels" / "phases").data == 1).all().compute()
    with pytest.raises(DestinationExistsError, match="labels, which would be lost"):
        dataset_to_zarr(make_dataset(masked_voxels(), **ISOTROPIC), image, overwrite=True)


def test_interrupted_labels_leave_the_image_as_it_was_and_are_resumed(image: Path) -> None:
    known = {"datatype": "segmented", "identity": "the phases", **ISOTROPIC}
    broken = make_dataset(failing_after(6, phases()), **known)
    with dask.config.set(scheduler="sync"), pytest.raises(CTLabError):
        labels_to_zarr(broken, image, "phases", **LAYOUT)
    assert sorted(os.listdir(image)) == ["0", "1", "2", "zarr.json"]
    assert sorted(os.listdir(image.parent)) == [".scan.zarr.phases.labels-staging", "scan.zarr"]
    whole = make_dataset(phases(), 32, **known)
    with pytest.raises(CTLabError, match="resume=True"):
        labels_to_zarr(whole, image, "phases", **LAYOUT)
    labels_to_zarr(whole, image, "phases", resume=True, **LAYOUT)
    assert labels_of(image) == ["phases"]
    assert verify(image / "labels" / "phases", whole) == []
    assert os.listdir(image.parent) == ["scan.zarr"]


def test_labels_written_by_parts_appear_when_all_are_there(image: Path) -> None:
    labels = image / "labels" / "phases"
    options = WriteOptions(**LAYOUT)

    def add(part: tuple[int, int], **how: bool) -> None:
        same = {"colors": None, "resume": False, "restart": False} | how
        whole = da.from_array(phases(), chunks=32)
        run(prepare_labels(whole, image, "phases", options, part=part, **same))

    with pytest.raises(InvalidArgumentError, match="abort"):
        add((1, 2), restart=True)
    add((2, 2))
    with pytest.raises(CTLabError, match="2 in all"):
        add((1, 3))
    with pytest.raises(IncompleteDatasetError, match="of 2 parts, not whole: 1"):
        commit(labels)
    assert not labels.exists()
    add((1, 2))
    commit(labels)
    assert labels_of(image) == ["phases"]
    assert_levels(labels, _modes(3))
    assert verify(image) == []
    assert os.listdir(image.parent) == ["scan.zarr"]
    commit(labels)
    with pytest.raises(IncompleteDatasetError, match=r"no write to .*labels/others is under way"):
        commit(image / "labels" / "others")


def test_verify_names_what_is_wrong_with_labels(image: Path) -> None:
    labels_to_zarr(da.from_array(phases(), chunks=32), image, "phases", **LAYOUT)
    shard = next(p for p in (image / "labels" / "phases" / "1").glob("c*") if p.is_file())
    shard.unlink()
    (problem,) = verify(image)
    assert problem.location == f"labels/phases/1/{shard.name}"
    group = image / "labels" / "zarr.json"
    text = group.read_text()
    for damaged in ('{"attributes": []}', '{"attributes": {"ome": {"labels": 7}}}', "no JSON"):
        group.write_text(damaged)
        assert ("labels/phases", "unlisted") in {(p.location, p.kind) for p in verify(image)}
    group.write_text(text)
    group.write_text(group.read_text().replace('"phases"', '"grains"'))
    assert {(p.location, p.kind) for p in verify(image)} >= {
        ("labels/grains", "missing"),
        ("labels/phases", "unlisted"),
    }


def _modes(n_levels: int, factors: tuple[int, ...] = (2, 2, 2)) -> list[np.ndarray]:
    expected = [phases()]
    while len(expected) < n_levels:
        expected.append(halve(expected[-1], factors, "mode", None))
    return expected


def test_an_image_and_its_labels_get_their_levels_together(tmp_path: Path) -> None:
    """Labels need as many levels as their image, and are never averaged."""
    image = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), image, **LAYOUT)
    labels_to_zarr(phases(), image, "phases", **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="give the path of the image"):
        add_levels(image / "labels" / "phases", 3)
    add_levels(image, 3, "max")
    assert_levels(image / "labels" / "phases", _modes(3))
    ome = attributes(image / "labels" / "phases")["ome"]
    assert ome["multiscales"][0]["type"] == "mode"
    assert "omero" not in ome, "classes have no contrast"
    assert attributes(image)["ome"]["multiscales"][0]["type"] == "max"
    assert verify(image) == []
    assert os.listdir(tmp_path) == ["scan.zarr"]


def test_labels_that_lack_levels_get_those_of_their_image(tmp_path: Path) -> None:
    """As after an interruption between the two, or in a store of another writer."""
    image = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), image, **LAYOUT)
    labels_to_zarr(phases(), image, "phases", **LAYOUT)
    aside = (image / "labels").rename(tmp_path / "aside")
    add_levels(image, 3)
    aside.rename(image / "labels")
    assert any("levels" in problem.message for problem in verify(image))
    add_levels(image)
    assert_levels(image / "labels" / "phases", _modes(3))
    assert verify(image) == []


def test_labels_follow_an_image_of_other_factors_and_another_place(tmp_path: Path) -> None:
    """As another writer has made it: halved along each axis, though voxels are longer along z."""
    image = tmp_path / "other.zarr"
    group = zarr.open_group(image, mode="w", zarr_format=3)
    shape, datasets = SHAPE, []
    for n in range(3):
        group.create_array(str(n), shape=shape, chunks=(32, 32, 32), dtype="u2",
                           dimension_names=["z", "y", "x"])  # fmt: skip
        transforms = [
            {"type": "scale", "scale": [3.0 * 2**n, 2.0 * 2**n, 2.0 * 2**n]},
            {"type": "translation", "translation": [10.0 + n, 20.0, 30.0]},
        ]
        datasets.append({"path": str(n), "coordinateTransformations": transforms})
        shape = tuple(-(-length // 2) for length in shape)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    multiscales = [{"name": "a", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    labels = make_dataset(
        phases(), 32, datatype="segmented", voxel_unit="mm", voxel_size=(0.003, 0.002, 0.002)
    )
    labels_to_zarr(labels, image, "phases", **LAYOUT)
    opened = dataset_from_zarr(image / "labels" / "phases")
    assert opened.levels == dataset_from_zarr(image).levels
    assert opened.voxel_unit == "um"
    expected = [phases()]
    for _ in range(2):
        expected.append(halve(expected[-1], (2, 2, 2), "mode", 255))
    assert_levels(image / "labels" / "phases", expected)


def test_labels_of_levels_that_are_not_halves_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), image, levels=2, **LAYOUT)
    document = json.loads((image / "1" / "zarr.json").read_text())
    document["shape"] = [35, 32, 48]
    (image / "1" / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(InvalidArgumentError, match="not half of"):
        labels_to_zarr(phases(), image, "phases")


def test_labels_are_written_wherever_their_graph_is_computed(image: Path) -> None:
    write = labels_to_zarr(phases(), image, "phases", compute=False, **LAYOUT)
    assert not (image / "labels").exists()
    assert write is not None
    write.compute(scheduler="sync")
    assert_levels(image / "labels" / "phases", _modes(3))


def test_labels_opened_by_themselves_are_known_as_classes(image: Path, tmp_path: Path) -> None:
    """Also where no data type says so: they are not averaged when they are written anew."""
    labels_to_zarr(phases(), image, "phases", **LAYOUT)
    opened = Dataset.from_path(image / "labels" / "phases")
    assert opened.datatype is None
    assert opened.is_discrete
    dataset_to_zarr(opened, tmp_path / "again.zarr", **LAYOUT)
    copy = Dataset.from_path(tmp_path / "again.zarr")
    assert (copy.datatype, copy.is_discrete) == (None, True)
    assert "omero" not in zarr.open(tmp_path / "again.zarr", mode="r").attrs["ome"]
    add_levels(tmp_path / "again.zarr", 2)
    assert_levels(tmp_path / "again.zarr", _modes(2))


def test_labels_lie_where_their_image_does(image: Path, tmp_path: Path) -> None:
    moved = Dataset.from_modified(Dataset.from_path(image), origin=(10.0, 20.0, 30.0))
    dataset_to_zarr(moved, tmp_path / "moved.zarr", **LAYOUT)
    labels_to_zarr(phases(), tmp_path / "moved.zarr", "phases", **LAYOUT)
    labels = Dataset.from_path(tmp_path / "moved.zarr" / "labels" / "phases")
    assert labels.origin == (10.0, 20.0, 30.0)
    # Those that say that they lie elsewhere are not moved there without a word.
    with pytest.raises(InvalidArgumentError, match=r"origin=\(0.0, 0.0, 0.0\)"):
        labels_to_zarr(labels, image, "others")
    labels_to_zarr(Dataset.from_modified(labels, origin=(0, 0, 0)), image, "others", **LAYOUT)


def test_labels_that_others_have_listed_stay_listed(image: Path) -> None:
    folder = image / "labels"
    group = zarr.create_group(folder, zarr_format=3, attributes={"mine": 7})
    listed = ["orphaned/0", "bare", "gone"]
    group.attrs["ome"] = {"version": "0.5", "labels": listed, "theirs": 8}
    labels_to_zarr(phases(), image, "first", **LAYOUT)
    shutil.copytree(folder / "first", folder / "orphaned" / "0")
    shutil.copytree(folder / "first", folder / "found")
    labels_to_zarr(phases(), image, "second", **LAYOUT)
    assert labels_of(image) == [*listed, "first", "found", "second"]
    assert attributes(folder)["mine"] == 7
    assert attributes(folder)["ome"]["theirs"] == 8


def test_levels_and_labels_are_seen_where_zarr_had_consolidated_the_store(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), path, **LAYOUT)
    zarr.create_group(path / "labels", zarr_format=3)
    for number in range(3):
        with pytest.warns(zarr.errors.ZarrUserWarning, match="Consolidated"):
            zarr.consolidate_metadata(path)
        assert "consolidated_metadata" in (path / "zarr.json").read_text()
        if number == 0:
            add_levels(path, levels=2)
        elif number == 1:
            labels_to_zarr(phases(), path, "phases", **LAYOUT)
        else:
            labels_to_zarr(phases() // 2, path, "phases", overwrite=True, **LAYOUT)
        group = zarr.open_group(path, mode="r")
        assert group["1"].shape == (35, 33, 49)
        if number:
            assert group["labels/phases/1"].shape == (35, 33, 49)
    assert verify(path) == []


def test_greys_are_refused_as_labels_unless_they_are_said_to_be_classes(image: Path) -> None:
    greys = make_dataset(masked_voxels(), 32, **ISOTROPIC)
    with pytest.raises(InvalidArgumentError, match="data type tomo, whose values are greys"):
        labels_to_zarr(greys, image, "phases", **LAYOUT)
    many = np.arange(greys.data.size, dtype="int32").reshape(SHAPE)
    assert many.size > 2**16
    with pytest.raises(InvalidArgumentError, match="looks like greys"):
        labels_to_zarr(many, image, "phases", **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="looks like greys"):
        labels_to_zarr(make_dataset(many, 32, **ISOTROPIC), image, "phases", **LAYOUT)
    assert not (image / "labels").exists()
    labels_to_zarr(
        make_dataset(many, 32, datatype="labels", **ISOTROPIC), image, "objects", **LAYOUT
    )
    said = Dataset.from_modified(greys, is_discrete=True)
    labels_to_zarr(said, image, "phases", **LAYOUT)
    assert labels_of(image) == ["objects", "phases"]


@pytest.mark.parametrize("name", ["-x", "a/b", "a'b", 'a"b', " a", "a\nb", "`a`", "zarr.json"])
def test_labels_get_no_name_that_a_shell_or_a_folder_takes_otherwise(
    name: str, image: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a name for labels"):
        labels_to_zarr(phases(), image, name, **LAYOUT)
    assert not (image / "labels").exists()
