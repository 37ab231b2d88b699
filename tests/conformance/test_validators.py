"""Other people's validators accept what this package writes, and would refuse what is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    InvalidArgumentError,
    VoxelUnit,
    dataset_from_zarr,
    dataset_to_zarr,
)


def validate_with_ome_zarr_models(path: str) -> None:
    models = pytest.importorskip("ome_zarr_models.v05")
    models.Image.from_zarr(zarr.open_group(path, mode="r"))


def validate_with_ngff_zarr(path: str) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    pytest.importorskip("jsonschema", reason="ngff-zarr validates with its extra [validate] only")
    ngff_zarr.from_ngff_zarr(path, validate=True)


VALIDATORS = [validate_with_ome_zarr_models, validate_with_ngff_zarr]
each_validator = pytest.mark.parametrize(
    "validate", VALIDATORS, ids=["ome_zarr_models", "ngff_zarr"]
)


@each_validator
def test_every_form_of_image_is_valid(validate: Callable[[str], None], image: Any) -> None:
    validate(image.path)


@each_validator
@pytest.mark.parametrize("unit", list(VoxelUnit), ids=str)
def test_an_image_is_valid_in_every_unit(
    validate: Callable[[str], None],
    unit: VoxelUnit,
    tmp_path: Path,
    make_dataset: Callable[..., Dataset],
) -> None:
    store = str(tmp_path / "scan.zarr")
    dataset_to_zarr(make_dataset(voxel_unit=unit), store)
    validate(store)


def test_an_image_with_its_scale_on_the_multiscales_entry_is_valid(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    pytest.importorskip("jsonschema", reason="ngff-zarr validates with its extra [validate] only")
    store = str(tmp_path / "scan.zarr")
    dataset_to_zarr(make_dataset(), store, scale_placement="multiscales")
    validate_with_ome_zarr_models(store)
    # Its schema alone: ngff-zarr 0.50's further rules stop with an AttributeError at any
    # transformation on the multiscales entry, which the specification allows.
    attributes = json.loads((tmp_path / "scan.zarr" / "zarr.json").read_text())["attributes"]
    ngff_zarr.validate(attributes, version="0.5")


def _multiscale(document: dict[str, Any]) -> Any:
    return document["attributes"]["ome"]["multiscales"][0]


def _transforms(document: dict[str, Any]) -> Any:
    return _multiscale(document)["datasets"][0]["coordinateTransformations"]


#: Name -> what to do to the root document; each breaks a MUST of OME-Zarr 0.5.
BREAKAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a scale that lacks an axis": lambda d: _transforms(d)[0]["scale"].pop(),
    "a scale that is not a list": lambda d: _transforms(d)[0].update(scale="big"),
    "a scale of words": lambda d: _transforms(d)[0].update(scale=["a", "b", "c"]),
    "two scales": lambda d: _transforms(d).append({"type": "scale", "scale": [1.0, 2.0, 3.0]}),
    "no transformation": lambda d: _multiscale(d)["datasets"][0].pop("coordinateTransformations"),
    "no axes": lambda d: _multiscale(d).pop("axes"),
    "an axis named twice": lambda d: _multiscale(d)["axes"][0].update(name="y"),
    "axes in another order than the array's": lambda d: _multiscale(d)["axes"].reverse(),
    "no datasets": lambda d: _multiscale(d).update(datasets=[]),
    "an array that is not there": lambda d: _multiscale(d)["datasets"][0].update(path="7"),
    "no ome attribute": lambda d: d["attributes"].pop("ome"),
}


@pytest.fixture(params=list(BREAKAGES))
def broken(
    request: pytest.FixtureRequest, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> str:
    """Return an image that was valid."""
    dataset_to_zarr(make_dataset(), tmp_path / "scan.zarr")
    _edit(tmp_path / "scan.zarr" / "zarr.json", BREAKAGES[request.param])
    return str(tmp_path / "scan.zarr")


@each_validator
def test_a_broken_image_is_refused(validate: Callable[[str], None], broken: str) -> None:
    with pytest.raises(Exception, match=r".") as refusal:
        validate(broken)
    # Not for a reason of the validator's own.
    assert not isinstance(refusal.value, ImportError | AttributeError | OSError)


def test_a_broken_image_is_refused_by_our_reader_with_an_error_of_ours(broken: str) -> None:
    with pytest.raises(CTLabError) as refusal:
        dataset_from_zarr(broken)
    # The store is wrong, not what the user asked for.
    assert not isinstance(refusal.value, InvalidArgumentError)


def test_an_array_whose_dimensions_are_named_otherwise_is_refused(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    # "The ... dimension_names ... MUST match the names in the axes metadata".
    dataset_to_zarr(make_dataset(), tmp_path / "scan.zarr")
    rename = {"dimension_names": ["x", "y", "z"]}
    _edit(tmp_path / "scan.zarr" / "0" / "zarr.json", lambda d: d.update(rename))
    with pytest.raises(ValueError, match="dimension names"):
        validate_with_ome_zarr_models(str(tmp_path / "scan.zarr"))


def test_an_image_without_a_version_is_refused(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset_to_zarr(make_dataset(), tmp_path / "scan.zarr")
    _edit(tmp_path / "scan.zarr" / "zarr.json", lambda d: d["attributes"]["ome"].pop("version"))
    with pytest.raises(ValueError, match="version"):
        validate_with_ome_zarr_models(str(tmp_path / "scan.zarr"))
    with pytest.raises(CTLabError, match="version"):
        dataset_from_zarr(tmp_path / "scan.zarr")


@each_validator
def test_a_store_without_its_array_is_refused(
    validate: Callable[[str], None], tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset_to_zarr(make_dataset(), tmp_path / "scan.zarr")
    shutil.rmtree(tmp_path / "scan.zarr" / "0")
    with pytest.raises(Exception, match="array"):
        validate(str(tmp_path / "scan.zarr"))
    with pytest.raises(CTLabError, match="incomplete"):
        dataset_from_zarr(tmp_path / "scan.zarr")


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
