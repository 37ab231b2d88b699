"""OME-Zarr 0.6, written where it is asked for: others validate and read it, and theirs is read."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from ctlab_dask_zarr import (
    Dataset,
    DestinationExistsError,
    InvalidArgumentError,
    MetadataError,
    OMEZarrVersion,
    UnsupportedFormatError,
    add_levels,
    check_readers,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    info,
    labels_to_zarr,
    push,
    verify,
)
from ctlab_dask_zarr.cli import main
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((20, 24, 28))
LAYOUT: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
HAS_MODELS = importlib.util.find_spec("ome_zarr_models.v06") is not None


def dataset(**changes: Any) -> Dataset:
    described = {"voxel_size": (3.0, 2.0, 1.5), "origin": (10.0, 0.0, 5.0)}
    return make_dataset(VOXELS, **described | changes)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(dataset(), path, ome_zarr_version=OMEZarrVersion.v06, **LAYOUT)
    return path


@pytest.fixture
def store(image: Path) -> Path:
    """An image with labels, and levels that came later."""
    labels_to_zarr((VOXELS % 3).astype("u1"), image, "phases", **LAYOUT)
    add_levels(image, levels=2)
    return image


def ome(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]


def change(path: Path, changed: Callable[[Any], Any]) -> None:
    document = json.loads((path / "zarr.json").read_text())
    changed(document["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(document))


def validate(path: Path) -> Any:
    """Validate an image by the schemas of ngff-zarr, and by ome-zarr-models where it has 0.6."""
    ngff_zarr = pytest.importorskip("ngff_zarr")
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    ngff_zarr.validate(attributes, version="0.6")
    if HAS_MODELS:
        models = importlib.import_module("ome_zarr_models.v06")
        models.Image.from_zarr(zarr.open_group(path, mode="r"))
    return ngff_zarr.from_ngff_zarr(str(path), validate=True)


def test_others_accept_it_and_read_levels_sizes_and_positions(store: Path) -> None:
    for path in (store, store / "labels" / "phases"):
        found = validate(path)
        assert [image.data.shape for image in found.images] == [(20, 24, 28), (20, 12, 14)]
        assert found.images[0].scale == {"z": 3.0, "y": 2.0, "x": 1.5}
        assert found.images[1].scale == {"z": 3.0, "y": 4.0, "x": 3.0}
        assert found.images[0].translation == {"z": 10.0, "y": 0.0, "x": 5.0}
        assert found.images[1].translation == {"z": 10.0, "y": 1.0, "x": 5.75}
    np.testing.assert_array_equal(validate(store).images[0].data, VOXELS)
    assert ome(store / "labels") == {"version": "0.6", "labels": ["phases"]}


def test_ome_zarr_reads_its_voxels(store: Path) -> None:
    io = pytest.importorskip("ome_zarr.io")
    reader = pytest.importorskip("ome_zarr.reader")
    image, *_ = reader.Reader(io.parse_url(str(store)))()
    np.testing.assert_array_equal(image.data[0], VOXELS)
    assert [level.shape for level in image.data] == [(20, 24, 28), (20, 12, 14)]


def test_every_form_of_scale_is_valid(tmp_path: Path) -> None:
    for name, options in {
        "unit": {"voxel_unit": "voxel", "origin": None},
        "image": {"data": VOXELS[0], "voxel_size": (2.0, 1.5), "origin": None},
        "type": {"datatype": None, "origin": (0.0, -1.0, 0.0)},
    }.items():
        voxels = options.pop("data", VOXELS)
        described = {"voxel_size": (3.0, 2.0, 1.5)} | options
        made = make_dataset(voxels, **described)
        path = tmp_path / f"{name}.zarr"
        dataset_to_zarr(made, path, ome_zarr_version=OMEZarrVersion.v06, levels=2)
        validate(path)
        found = dataset_from_zarr(path)
        assert (found.voxel_size, found.origin) == (made.voxel_size, made.origin)
        assert found.voxel_unit == made.voxel_unit
        assert not verify(path)


def test_levels_labels_edits_and_copies_keep_the_version(store: Path, tmp_path: Path) -> None:
    found = verify(store)
    assert (list(found), found.scope) == ([], "every byte verified")
    edit_metadata(store, voxel_size=(6.0, 4.0, 3.0), voxel_unit="mm")
    assert (dataset_from_zarr(store).voxel_size, dataset_from_zarr(store).voxel_unit) == (
        *((6.0, 4.0, 3.0), "mm"),
    )
    assert dataset_from_zarr(store, level=1).origin == (20.0, 2.0, 11.5)
    push(store, tmp_path / "copy.zarr")
    for path in (store, tmp_path / "copy.zarr"):
        validate(path)
        assert not verify(path)
        assert info(path).format == "Zarr v3, OME-Zarr 0.6"
        assert info(path).labels == {"phases": 2}


def test_a_write_is_resumed_by_its_own_version_alone(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    options = LAYOUT | {"ome_zarr_version": OMEZarrVersion.v06}
    dataset_to_zarr(dataset(), path, **options)
    dataset_to_zarr(dataset(), path, resume=True, **options)
    with pytest.raises(DestinationExistsError, match=r"ome_zarr_version was '0\.6'"):
        dataset_to_zarr(dataset(), path, resume=True, **LAYOUT)
    dataset_to_zarr(dataset(), path, overwrite=True, **LAYOUT)
    with pytest.raises(DestinationExistsError, match=r"ome_zarr_version was nothing"):
        dataset_to_zarr(dataset(), path, resume=True, **options)


def test_the_default_stays_0_5_and_the_command_line_asks_for_0_6(tmp_path: Path) -> None:
    dataset_to_zarr(dataset(), tmp_path / "a.zarr", **LAYOUT)
    assert ome(tmp_path / "a.zarr")["version"] == "0.5"
    command = ["convert", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), "--ome-version"]
    done = CliRunner().invoke(main, [*command, "0.6"])
    assert done.exit_code == 0, done.output
    validate(tmp_path / "b.zarr")
    done = CliRunner().invoke(main, [*command, "0.6", "--layout", "plain"])
    assert (done.exit_code, "leave --ome-version out" in done.output) == (2, True)
    with pytest.raises(InvalidArgumentError, match="each level says its own"):
        dataset_to_zarr(
            dataset(),
            tmp_path / "c.zarr",
            ome_zarr_version=OMEZarrVersion.v06,
            scale_placement="multiscales",
        )
    assert not os.path.lexists(tmp_path / "c.zarr")


def test_readers_that_do_not_know_it_are_named(image: Path) -> None:
    reports = {report.reader: report for report in check_readers(image)}
    lost = {name for name, report in reports.items() if report.verdict == "does not show it"}
    assert lost == {"Neuroglancer", "anu_ctlab_io"}
    assert "neither its axes" in " ".join(reports["ome-zarr-py"].remarks)
    assert reports["ngff-zarr"].verdict == "shows it"


class TestOfOthers:
    def test_what_ngff_zarr_writes_is_read(self, tmp_path: Path) -> None:
        ngff_zarr = pytest.importorskip("ngff_zarr")
        path = tmp_path / "theirs.zarr"
        theirs = ngff_zarr.to_ngff_image(
            VOXELS,
            dims=["z", "y", "x"],
            scale={"z": 3.0, "y": 2.0, "x": 1.5},
            translation={"z": 10.0, "y": 0.0, "x": 5.0},
            axes_units=dict.fromkeys("zyx", "micrometer"),
            name="theirs",
        )
        made = ngff_zarr.to_multiscales(theirs, scale_factors=[], cache=False)
        ngff_zarr.to_ngff_zarr(str(path), made, version="0.6")
        assert ome(path)["version"] == "0.6"
        found = dataset_from_zarr(path)
        assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "um")
        assert (found.origin, len(found.levels)) == ((10.0, 0.0, 5.0), 1)
        np.testing.assert_array_equal(found.data, VOXELS)
        dataset_to_zarr(found, tmp_path / "ours.zarr")
        assert ome(tmp_path / "ours.zarr")["version"] == "0.5"

    def test_a_rotation_to_another_system_is_named_and_kept_by_edits(self, image: Path) -> None:
        scanner = {
            "name": "scanner",
            "axes": ome(image)["multiscales"][0]["coordinateSystems"][0]["axes"],
        }
        turned = {
            "type": "rotation",
            "rotation": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
            "input": {"name": "intrinsic"},
            "output": {"name": "scanner"},
        }

        def add(found: Any) -> None:
            found["multiscales"][0]["coordinateSystems"].append(scanner)
            found["multiscales"][0]["coordinateTransformations"] = [turned]

        change(image, add)
        validate(image)
        with pytest.warns(UserWarning, match="rotation to 'scanner'.*not applied"):
            found = dataset_from_zarr(image)
        assert (found.voxel_size, found.origin) == ((3.0, 2.0, 1.5), (10.0, 0.0, 5.0))
        edit_metadata(image, voxel_size=(6.0, 4.0, 3.0), voxel_unit="um")
        multiscale = ome(image)["multiscales"][0]
        assert multiscale["coordinateTransformations"] == [turned]
        assert [system["name"] for system in multiscale["coordinateSystems"]] == [
            *("intrinsic", "scanner"),
        ]

    @pytest.mark.parametrize(
        ("step", "error", "message"),
        [
            (
                {"type": "rotation", "rotation": [[0, 1], [1, 0]]},
                UnsupportedFormatError,
                "rotation",
            ),
            ({"type": "affine", "affine": [[1, 0, 0, 0]]}, UnsupportedFormatError, "affine"),
            ({"type": "mapAxis", "mapAxis": [2, 1, 0]}, UnsupportedFormatError, "mapAxis"),
            ({"type": "scale", "scale": [1.0, 2.0]}, MetadataError, "does not fit 3 axes"),
            ({"type": "sequence"}, MetadataError, "transformations"),
        ],
    )
    def test_levels_that_do_not_lie_along_their_axes_are_refused_unless_the_size_is_given(
        self, step: dict[str, Any], error: type[Exception], message: str, image: Path
    ) -> None:
        ends = {"input": {"path": "0"}, "output": {"name": "intrinsic"}}
        before = copy.deepcopy(ome(image))

        def turn(found: Any) -> None:
            found["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [step | ends]

        change(image, turn)
        with pytest.raises(error, match=message):
            dataset_from_zarr(image)
        assert any(problem.kind == "ome" for problem in verify(image))
        if "transformations" not in message:
            with pytest.warns(UserWarning, match="not applied"):
                found = dataset_from_zarr(image, voxel_size=2.5, voxel_unit="um")
            assert found.voxel_size == (2.5, 2.5, 2.5)
        change(image, lambda found: found.update(before))
        assert dataset_from_zarr(image).voxel_size == (3.0, 2.0, 1.5)

    def test_a_coordinate_system_that_is_not_there_is_named(self, image: Path) -> None:
        def rename(found: Any) -> None:
            found["multiscales"][0]["coordinateSystems"][0]["name"] = "world"

        change(image, rename)
        with pytest.raises(MetadataError, match=r"placed in 'intrinsic'.* are world"):
            dataset_from_zarr(image)
