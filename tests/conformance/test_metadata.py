"""What other people's readers say about voxel size, units and axes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from ctlab_dask_zarr import Dataset, OMEZarrVersion, VoxelUnit, dataset_from_zarr, dataset_to_zarr

FULL_NAMES = {
    VoxelUnit.M: "meter",
    VoxelUnit.CM: "centimeter",
    VoxelUnit.MM: "millimeter",
    VoxelUnit.UM: "micrometer",
    VoxelUnit.NM: "nanometer",
    VoxelUnit.ANGSTROM: "angstrom",
    VoxelUnit.VOXEL: None,
}
SIZES = {"z": 3.0, "y": 2.0, "x": 1.5}


@pytest.fixture(params=list(VoxelUnit), ids=str)
def unit(request: pytest.FixtureRequest) -> VoxelUnit:
    found: VoxelUnit = request.param
    return found


@pytest.fixture
def path(unit: VoxelUnit, tmp_path: Path, make_dataset: Callable[..., Dataset]) -> str:
    """Return an image whose voxels are measured in the unit."""
    store = str(tmp_path / "scan.zarr")
    dataset_to_zarr(make_dataset(voxel_unit=unit), store)
    return store


def test_ngff_zarr_sees_the_voxel_size_of_each_axis(path: str, unit: VoxelUnit) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image = ngff_zarr.from_ngff_zarr(path).images[0]
    assert tuple(image.dims) == ("z", "y", "x")
    assert image.scale == SIZES
    assert image.translation == {"z": 0.0, "y": 0.0, "x": 0.0}
    assert image.axes_units == dict.fromkeys("zyx", FULL_NAMES[unit])


def test_ome_zarr_sees_the_voxel_size_of_each_axis(path: str, unit: VoxelUnit) -> None:
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    (node,) = Reader(parse_url(path))()
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    assert {axis["type"] for axis in node.metadata["axes"]} == {"space"}
    assert {axis.get("unit") for axis in node.metadata["axes"]} == {FULL_NAMES[unit]}
    assert node.metadata["coordinateTransformations"] == [
        [{"type": "scale", "scale": [3.0, 2.0, 1.5]}]
    ]


def test_bioio_sees_the_voxel_size_of_each_axis(path: str, unit: VoxelUnit) -> None:
    bioio_ome_zarr = pytest.importorskip("bioio_ome_zarr")
    reader = bioio_ome_zarr.Reader(path)
    assert reader.dims.order == "ZYX"
    sizes = reader.physical_pixel_sizes
    assert {"z": sizes.Z, "y": sizes.Y, "x": sizes.X} == SIZES
    for axis in "ZYX":
        properties = getattr(reader.dimension_properties, axis)
        found = None if properties.unit is None else str(properties.unit)
        assert (properties.type, found) == ("space", FULL_NAMES[unit])


def test_ome_zarr_models_sees_the_voxel_size_of_each_axis(path: str, unit: VoxelUnit) -> None:
    models = pytest.importorskip("ome_zarr_models.v05")
    image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
    (multiscale,) = image.ome_attributes.multiscales
    assert [(axis.name, axis.unit) for axis in multiscale.axes] == [
        (name, FULL_NAMES[unit]) for name in "zyx"
    ]
    (level,) = multiscale.datasets
    assert level.coordinateTransformations[0].scale == [3.0, 2.0, 1.5]


def test_zarrita_sees_the_attributes(
    path: str, unit: VoxelUnit, zarrita: Callable[[str, str], Any]
) -> None:
    said, _ = zarrita(path, "0")
    (multiscale,) = said["attributes"]["ome"]["multiscales"]
    found = [axis.get("unit", "absent") for axis in multiscale["axes"]]
    # Neuroglancer refuses a null.
    assert found == [FULL_NAMES[unit] or "absent"] * 3
    assert said["attributes"]["mango"]["voxel_size_xyz"] == [1.5, 2.0, 3.0]
    assert said["attributes"]["mango"]["voxel_unit"] == str(unit)
    assert said["dimension_names"] == ["z", "y", "x"]


def test_the_axes_are_in_the_order_of_the_array(written: Any) -> None:
    names = written.dataset.dimension_names
    assert zarr.open_array(written.array_folder, mode="r").metadata.dimension_names == names


def test_tensorstore_names_the_axes(written: Any) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": written.array_folder}}
    opened = tensorstore.open(spec, open=True, read=True).result()
    assert opened.domain.labels == written.dataset.dimension_names


def test_xarray_names_the_axes(image: Any) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(image.path, consolidated=False) as opened:
        assert opened["0"].dims == image.dataset.dimension_names


def test_the_voxel_size_of_a_plain_array_is_in_x_y_z(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    store = str(tmp_path / "scan.zarr")
    dataset_to_zarr(make_dataset(), store, ome_zarr_version=None)
    mango = zarr.open_array(store, mode="r").attrs["mango"]
    assert mango["voxel_size_xyz"] == [1.5, 2.0, 3.0]
    assert dataset_from_zarr(store).voxel_size == (3.0, 2.0, 1.5)


def test_an_image_of_two_axes_has_its_own_voxel_size(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    store = str(tmp_path / "slice.zarr")
    dataset_to_zarr(make_dataset(shape=(30, 50)), store)
    image = ngff_zarr.from_ngff_zarr(store).images[0]
    assert (tuple(image.dims), image.scale) == (("y", "x"), {"y": 2.0, "x": 1.5})


def test_with_the_scale_on_the_multiscales_entry_bioio_sees_the_same_size(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    bioio_ome_zarr = pytest.importorskip("bioio_ome_zarr")
    store = str(tmp_path / "scan.zarr")
    dataset_to_zarr(make_dataset(), store, scale_placement="multiscales")
    sizes = bioio_ome_zarr.Reader(store).physical_pixel_sizes
    assert (sizes.Z, sizes.Y, sizes.X) == (3.0, 2.0, 1.5)
    assert dataset_from_zarr(store).voxel_size == (3.0, 2.0, 1.5)


@pytest.mark.parametrize("layout", [OMEZarrVersion.v05, None], ids=["ome", "plain"])
def test_the_documents_are_strict_json(
    layout: OMEZarrVersion | None, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    dataset_to_zarr(make_dataset("tomo_float"), tmp_path / "scan.zarr", ome_zarr_version=layout)
    documents = list((tmp_path / "scan.zarr").rglob("zarr.json"))
    assert len(documents) == (1 if layout is None else 2)
    for document in documents:
        json.loads(document.read_text(), parse_constant=refuse)
