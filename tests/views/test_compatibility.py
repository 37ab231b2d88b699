"""What is said of readers, held against the readers themselves where they can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import Dataset, dataset_to_zarr
from ctlab_dask_zarr.views.compatibility import ReaderReport, check_readers
from tests.builders import make_dataset, random_voxels
from tests.views.stores import write_labels

VOXELS = random_voxels((8, 9, 10))


def reports_of(path: Path, **options: Any) -> dict[str, ReaderReport]:
    dataset = options.pop("dataset", None) or make_dataset(VOXELS)
    dataset_to_zarr(dataset, path, **options)
    return {report.reader: report for report in check_readers(path)}


def text(report: ReaderReport) -> str:
    return " ".join(report.remarks)


def test_an_ordinary_store_is_shown_by_all(tmp_path: Path) -> None:
    reports = reports_of(tmp_path / "a.zarr")
    assert {r.verdict for r in reports.values()} <= {"shows it", "shows it, but"}
    assert reports["ngff-zarr"].verdict == "shows it"
    assert reports["anu_ctlab_io"].verdict == "shows it"
    assert "scale-placement multiscales" in text(reports["Drishti"])


def test_the_scale_on_the_multiscales_entry_is_indeed_not_read(tmp_path: Path) -> None:
    from ngff_zarr import from_ngff_zarr

    reports = reports_of(
        tmp_path / "a.zarr", scale_placement="multiscales", dimension_separator_threshold=0
    )
    for reader in ("napari-ome-zarr", "ome-zarr-py", "ngff-zarr"):
        assert "multiscales entry" in text(reports[reader])
    assert reports["Drishti"].verdict == "shows it"
    image = from_ngff_zarr(tmp_path / "a.zarr").images[0]
    assert set(image.scale.values()) == {1.0}


def test_a_plain_array_is_no_image(tmp_path: Path) -> None:
    from ome_zarr.io import parse_url

    reports = reports_of(tmp_path / "a.zarr", ome_zarr_version=None)
    assert reports["ome-zarr-py"].verdict == "does not show it"
    assert reports["anu_ctlab_io"].verdict == "shows it"
    location = parse_url(str(tmp_path / "a.zarr"))
    assert location is None or not location.root_attrs.get("ome")


@pytest.mark.parametrize("dtype", ["float64", "int64", "float16"])
def test_types_that_neuroglancer_does_not_have(tmp_path: Path, dtype: str) -> None:
    dataset = make_dataset(VOXELS.astype(dtype), datatype=None)
    report = reports_of(tmp_path / "a.zarr", dataset=dataset)["Neuroglancer"]
    assert report.verdict == "does not show it"
    assert dtype in text(report)


def test_a_codec_of_zarr_python_alone(tmp_path: Path) -> None:
    lz4 = [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}]
    reports = reports_of(tmp_path / "a.zarr", create_array_kwargs={"compressors": lz4})
    assert reports["Neuroglancer"].verdict == "does not show it"
    assert "numcodecs.lz4" in text(reports["ngff-zarr"])


def test_levels_without_their_places_and_none_at_all(tmp_path: Path) -> None:
    import zarr

    large = da.zeros((600, 600, 600), dtype="uint8", chunks=512)
    dataset = Dataset(
        large, dimension_names=("z", "y", "x"), voxel_unit="um", voxel_size=(1.0,) * 3
    )
    assert "only one level" in text(
        reports_of(tmp_path / "a.zarr", dataset=dataset)["napari-ome-zarr"]
    )
    reports_of(tmp_path / "b.zarr", levels=2, chunks=(4, 4, 4), shards=(8, 8, 8))
    group = zarr.open_group(tmp_path / "b.zarr")
    ome: Any = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][1]["coordinateTransformations"].pop()
    group.attrs["ome"] = ome
    reports = {r.reader: r for r in check_readers(tmp_path / "b.zarr")}
    assert "half a voxel" in text(reports["Neuroglancer"])


def test_keys_with_dots_are_named_to_readers_that_were_not_tried_with_them(tmp_path: Path) -> None:
    dotted = reports_of(tmp_path / "dotted.zarr")
    nested = reports_of(tmp_path / "nested.zarr", dimension_separator_threshold=0)
    assert (tmp_path / "dotted.zarr/0/c.0.0.0").exists()
    assert (tmp_path / "nested.zarr/0/c/0/0/0").exists()
    for reader in ("Drishti", "WebKnossos"):
        assert "dimension_separator_threshold=0" in text(dotted[reader])
        assert dotted[reader].verdict == "shows it, but"
        assert "separated by" not in text(nested[reader])
    for reader in ("napari-ome-zarr", "Neuroglancer", "anu_ctlab_io"):
        assert "separated by" not in text(dotted[reader])


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_labels_that_neuroglancer_does_not_show_are_named(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.zarr"
    reports_of(path)
    write_labels(path, "phases", [VOXELS.astype("uint8")])
    write_labels(path, "grains", [VOXELS.astype(dtype)])
    reports = {report.reader: report for report in check_readers(path)}
    assert reports["Neuroglancer"].verdict == "shows it, but"
    assert f"'grains' are {dtype}" in text(reports["Neuroglancer"])
    assert "phases" not in text(reports["Neuroglancer"])
    assert "grains" not in text(reports["napari-ome-zarr"])


def test_what_the_reference_reader_needs(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS.astype("float32"), datatype=None)
    report = reports_of(tmp_path / "a.zarr", dataset=dataset)["anu_ctlab_io"]
    assert report.verdict == "does not show it"
    assert "--datatype" in text(report)
    image = make_dataset(np.zeros((9, 10), "uint16"), voxel_size=(1.0, 1.0))
    assert "three axes" in text(reports_of(tmp_path / "b.zarr", dataset=image)["anu_ctlab_io"])
