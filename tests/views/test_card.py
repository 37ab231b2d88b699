"""What notebooks show of a dataset and of a plan."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from PIL import Image

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, plan
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.views import card
from tests.builders import make_dataset

LAYOUT = {"chunks": (16, 16, 16), "shards": (32, 32, 32)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    voxels = np.full((64, 48, 96), 65535, "uint16")
    voxels[:, 12:36, 24:72] = np.linspace(100, 900, 48, dtype="uint16")
    dataset = make_dataset(
        voxels,
        32,
        datatype="tomo",
        voxel_size=(2.0, 2.0, 2.0),
        dataset_id="20200101_000000_rock",
        history={"20200101_scan": {"exposure": "<1 s>"}},
    )
    dataset_to_zarr(dataset, tmp_path / "rock.zarr", levels=2, **LAYOUT)
    return tmp_path / "rock.zarr"


def picture_in(html: str) -> np.ndarray | None:
    found = re.search(r"base64,([^\"]+)", html)
    return found and np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_the_card_tells_what_is_known_and_shows_the_middle_of_the_coarsest_level(
    store: Path,
) -> None:
    html = dataset_from_zarr(store)._repr_html_()
    for text in (
        *("64 x 48 x 96 (z, y, x)", "uint16, 576.0 KiB", "2 x 2 x 2 um", "128 x 96 x 192 um"),
        *("64 x 48 x 96, 32 x 24 x 48", str(store), "20200101_000000_rock", "&lt;1 s&gt;"),
        *("history: ", "12 of 32 x 32 x 32"),
    ):
        assert text in html, text
    picture = picture_in(html)
    assert picture.shape == (24, 48)
    assert picture[0].max() == 0, "the mask is black"
    assert (np.diff(picture[12, 14:34].astype(int)) >= 0).all()
    assert picture[12].max() == 255


def test_of_what_is_computed_nothing_is_computed(store: Path) -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("a card computes nothing")

    stored = dataset_from_zarr(store)
    data = stored.data.map_blocks(explode, dtype="u2", meta=np.empty((0, 0, 0), "u2"))
    html = Dataset.from_modified(stored, data=data)._repr_html_()
    assert picture_in(html) is None
    assert "memory" in html


def test_of_what_was_assigned_in_place_no_stored_picture_is_shown(store: Path) -> None:
    dataset = dataset_from_zarr(store)
    dataset.data[:] = 7
    html = dataset._repr_html_()
    assert picture_in(html) is None
    assert str(store) not in html
    assert "32 x 24 x 48" not in html, "nor are its levels"


def test_a_picture_that_is_not_cheap_is_not_made(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "PICTURE_NBYTES", 16 * 24 * 48 * 2 - 1)
    assert picture_in(dataset_from_zarr(store)._repr_html_()) is None
    monkeypatch.setattr(card, "PICTURE_NBYTES", 16 * 24 * 48 * 2)
    assert picture_in(dataset_from_zarr(store)._repr_html_()) is not None


def test_a_damaged_store_has_a_card_too(store: Path) -> None:
    dataset = dataset_from_zarr(store)
    for shard in (store / "1").glob("c*"):
        shard.unlink()
    assert "64 x 48 x 96" in dataset._repr_html_()


def test_the_newest_history_is_what_was_added_last() -> None:
    dataset = make_dataset(np.zeros((4, 4, 4), "u2"), history={"zoom": "first", "b": "2"})
    for key in ("20200101_a", "crop"):
        dataset.add_to_history(key, f"did {key}")
    html = dataset._repr_html_()
    assert re.findall("<summary>(.*?)</summary>", html)[1:] == ["crop", "20200101_a", "b"]


def test_the_source_is_said_of_netcdf_too(tmp_path: Path) -> None:
    voxels = np.zeros((32, 8, 8), "uint16")
    write_mango_netcdf(tmp_path / "tomo_nc", voxels, slices_per_block=16)
    write_mango_netcdf(tmp_path / "tomo.nc", voxels)
    card = Dataset.from_path(tmp_path / "tomo_nc")._repr_html_()
    assert f"{tmp_path / 'tomo_nc'}: block00000000.nc to block00000001.nc, 2 files" in card
    card = Dataset.from_path(tmp_path / "tomo.nc")._repr_html_()
    assert f">{tmp_path / 'tomo.nc'}<" in card


def test_a_plan_is_printed_in_one_line(tmp_path: Path) -> None:
    dataset = make_dataset(da.zeros((64, 64, 64), dtype="u2"), datatype="tomo")
    assert repr(plan(dataset, tmp_path / "a.zarr", **LAYOUT)) == (
        f"<WritePlan {tmp_path / 'a.zarr'}: 64 x 64 x 64 uint16, 8 shards, 512.0 KiB>"
    )
    assert ": 64 x 64 x 64 uint16, 2 levels, " in repr(
        plan(dataset, tmp_path / "a.zarr", levels=2, **LAYOUT)
    )


def test_a_plan_shows_its_table(tmp_path: Path) -> None:
    dataset = make_dataset(da.zeros((64, 64, 64), dtype="u2"), datatype="tomo")
    found = plan(dataset, tmp_path / "a.zarr", **LAYOUT)
    html = found._repr_html_()
    assert html.startswith("<table>")
    for line in found.describe().splitlines():
        assert line.split("  ")[0] in html
