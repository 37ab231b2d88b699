from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DataType,
    InvalidArgumentError,
    OMEZarrVersion,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    verify,
)
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((4, 5, 6))


def test_what_is_known_about_it() -> None:
    ds = make_dataset(VOXELS, dataset_id="x")
    assert (ds.shape, ds.dtype, ds.dimension_names) == ((4, 5, 6), np.uint16, ("z", "y", "x"))
    assert (ds.voxel_size, ds.voxel_unit, ds.datatype) == ((3.0, 2.0, 1.5), "um", DataType.TOMO)
    assert (ds.mask_value, ds.dataset_id, ds.history) == (65535, "x", {})
    assert repr(ds) == "<Dataset tomo (z: 4, y: 5, x: 6) uint16, voxel 3 x 2 x 1.5 um>"


def test_the_mask() -> None:
    voxels = VOXELS.copy()
    voxels[0] = 65535
    ds = make_dataset(voxels)
    np.testing.assert_array_equal(ds.mask.compute(), voxels == 65535)
    assert ds.masked_data.compute().mask.sum() == 30
    unmasked = make_dataset(voxels, datatype="proju16")
    assert unmasked.mask_value is None
    assert not unmasked.mask.compute().any()
    assert unmasked.masked_data.compute().mask is np.ma.nomask


def test_history_is_copied_and_never_shared() -> None:
    entries = {"a": {"b": [1]}}
    ds = make_dataset(VOXELS, history=entries)
    entries["a"]["b"].append(2)
    ds.history["c"] = 1
    assert ds.history == {"a": {"b": [1]}}
    value = {"x": [1]}
    ds.add_to_history("d", value)
    ds.update_history({"e": value})
    value["x"].append(2)
    assert ds.history == {"a": {"b": [1]}, "d": {"x": [1]}, "e": {"x": [1]}}


def test_a_modified_dataset_leaves_its_source_alone() -> None:
    source = make_dataset(
        VOXELS, dataset_id="id", history={"a": 1}, extra_attrs={"data_min_max": [0, 9], "k": 1}
    )
    new = Dataset.from_modified(
        source,
        data=source.data[1:],
        voxel_size=(1, 1, 1),
        voxel_unit="mm",
        history_entry={"crop": 1},
        dataset_id_suffix="cropped",
    )
    assert (new.shape, new.voxel_size, new.voxel_unit) == ((3, 5, 6), (1.0, 1.0, 1.0), "mm")
    assert new.dataset_id == "id_cropped"
    (key,) = set(new.history) - {"a"}
    assert key.endswith("_modification")
    assert new.extra_attrs == {"k": 1}, "other voxels have another minimum and maximum"
    assert (source.history, source.dataset_id, source.shape) == ({"a": 1}, "id", (4, 5, 6))
    assert Dataset.from_modified(source, history_entry=1, history_key="k").history["k"] == 1


def test_classes_and_the_origin_are_facts_of_a_dataset() -> None:
    ds = make_dataset(VOXELS, datatype=None, origin=[30, 20, 15], is_discrete=True)
    assert (ds.origin, ds.is_discrete) == ((30.0, 20.0, 15.0), True)
    assert make_dataset(VOXELS).origin == (0.0, 0.0, 0.0)
    kinds = ("labels", "segmented", "tomo", None)
    found = [make_dataset(VOXELS, datatype=kind).is_discrete for kind in kinds]
    assert found == [True, True, False, False]
    for wrong in ((1, 2), (1, 2, float("nan")), "abc", 3):
        with pytest.raises(InvalidArgumentError, match="origin"):
            make_dataset(VOXELS, origin=wrong)
    with pytest.raises(InvalidArgumentError, match="is_discrete"):
        make_dataset(VOXELS, is_discrete="yes")


def test_a_modified_dataset_keeps_classes_and_position() -> None:
    ds = make_dataset(VOXELS, datatype=None, origin=(30.0, 20.0, 15.0), is_discrete=True)
    filtered = Dataset.from_modified(ds, data=ds.data + 1)
    assert (filtered.origin, filtered.is_discrete) == (ds.origin, True)
    # The origin is as many voxels from zero, in whatever unit and size.
    mm = ds.voxel_size_with_unit("mm")
    converted = Dataset.from_modified(ds, voxel_size=mm, voxel_unit="mm")
    assert converted.origin == pytest.approx((0.03, 0.02, 0.015))
    assert Dataset.from_modified(ds, voxel_size=(6, 2, 1.5)).origin == (60.0, 20.0, 15.0)
    # What is given is taken; of a part that says nothing nobody knows where it lies.
    assert Dataset.from_modified(ds, data=ds.data[1:]).origin == (0.0, 0.0, 0.0)
    moved = Dataset.from_modified(ds, data=ds.data[1:], origin=(33, 20, 15), is_discrete=False)
    assert (moved.origin, moved.is_discrete) == ((33.0, 20.0, 15.0), False)
    assert not Dataset.from_modified(ds, datatype="tomo").is_discrete
    assert Dataset.from_modified(ds, dataset_id="other").dataset_id == "other"
    pointwise = ds.map_masked(np.negative, method="pointwise")
    assert (pointwise.origin, pointwise.is_discrete) == (ds.origin, True)


@pytest.mark.parametrize("layout", ["group", "array"])
def test_a_copy_says_that_it_is_of_classes_and_where_it_lies(tmp_path: Path, layout: str) -> None:
    version = OMEZarrVersion.v05 if layout == "group" else None
    ds = make_dataset(
        VOXELS.astype("uint8"), datatype=None, origin=(30.0, -20.0, 15.0), is_discrete=True
    )
    dataset_to_zarr(ds, tmp_path / "a.zarr", ome_zarr_version=version)
    again = dataset_from_zarr(tmp_path / "a.zarr")
    dataset_to_zarr(again, tmp_path / "b.zarr", ome_zarr_version=version)
    for name in ("a.zarr", "b.zarr"):
        found = dataset_from_zarr(tmp_path / name)
        assert (found.origin, found.is_discrete) == (ds.origin, True)
        assert verify(tmp_path / name, ds) == []
        attributes = zarr.open(tmp_path / name, mode="r").attrs
        assert "omero" not in attributes.get("ome", {}), "classes have no grey levels"
    # A corrected voxel size moves it too, and a lost fact is found.
    edit_metadata(tmp_path / "b.zarr", voxel_size=(6.0, 2.0, 1.5))
    assert dataset_from_zarr(tmp_path / "b.zarr").origin == (60.0, -20.0, 15.0)
    other = Dataset.from_modified(ds, origin=(30.0, -20.0, 16.0), is_discrete=False)
    messages = [problem.message for problem in verify(tmp_path / "a.zarr", other)]
    assert [m.split(" is ")[0] for m in messages] == ["origin", "is_discrete"]
    # The same voxels said to be something else are another write.
    with pytest.raises(CTLabError, match="is_discrete was True and is now nothing"):
        dataset_to_zarr(other, tmp_path / "a.zarr", ome_zarr_version=version, resume=True)


@pytest.mark.parametrize("name", ["data", "voxel_size", "origin", "is_discrete", "history"])
def test_a_field_cannot_be_set(name: str) -> None:
    ds = make_dataset(VOXELS)
    before = getattr(ds, name)
    with pytest.raises(AttributeError):
        setattr(ds, name, None)
    assert getattr(ds, name) is before or getattr(ds, name) == before


def test_units_are_converted() -> None:
    ds = make_dataset(VOXELS)
    assert ds.voxel_size_with_unit("nm") == pytest.approx((3000, 2000, 1500))
    assert ds.voxel_size_with_unit("um") == ds.voxel_size
    with pytest.raises(ValueError, match="voxel"):
        ds.voxel_size_with_unit("voxel")


@pytest.mark.parametrize(
    "options",
    [
        {"dimension_names": ("z", "y")},
        {"dimension_names": ("z", "y", "y")},
        {"voxel_size": (1, 1)},
        {"voxel_size": (1, 1, 0)},
        {"voxel_size": (1, 1, float("nan"))},
        {"voxel_unit": "parsec"},
        {"datatype": "nonsense"},
    ],
)
def test_what_cannot_be_is_refused(options) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several classes, each tested elsewhere
        make_dataset(VOXELS, **options)


def test_to_path_and_back(tmp_path: Path) -> None:
    ds = make_dataset(VOXELS, dataset_id="own")
    ds.to_path(tmp_path / "a.zarr")
    ds.to_path(tmp_path / "b", filetype="zarr", dataset_id="given")
    ds.to_path(tmp_path / "c.zarr", dataset_id=None)
    write = ds.to_path(tmp_path / "d.zarr", compute=False)
    assert write is not None
    assert not (tmp_path / "d.zarr").exists()
    ids = [Dataset.from_path(tmp_path / f"{name}.zarr").dataset_id for name in "abc"]
    assert ids[:2] == ["own", "given"]
    assert ids[2] not in (None, "own")
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data, VOXELS)


@pytest.mark.parametrize("name", ["a.jpg", "a", "nc"])
def test_an_extension_that_is_not_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        make_dataset(VOXELS).to_path(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_known_by_its_content(tmp_path: Path) -> None:
    make_dataset(VOXELS).to_path(tmp_path / "a.zarr")
    (tmp_path / "a.zarr").rename(tmp_path / "renamed_nc")
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "renamed_nc").data, VOXELS)
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(UnsupportedFormatError, match=r"text\.bin"):
        Dataset.from_path(tmp_path / "text.bin")
    with pytest.raises(UnsupportedFormatError, match="filetype"):
        Dataset.from_path(tmp_path / "renamed_nc", filetype="jpeg")


def test_an_array_that_is_no_dask_array_is_refused(tmp_path: Path) -> None:
    from ctlab_dask_zarr import dataset_to_zarr

    class Like:
        data = VOXELS

    with pytest.raises(InvalidArgumentError, match="dask array"):
        dataset_to_zarr(Like(), tmp_path / "a")  # type: ignore[arg-type]
    unknown = da.from_array(VOXELS)[da.from_array(VOXELS[:, 0, 0] > 5)]
    with pytest.raises(InvalidArgumentError, match="unknown length"):
        dataset_to_zarr(make_dataset(unknown), tmp_path / "a")
