"""`ctlab-zarr view` in a real browser: the volume and its labels are seen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dask.array as da
import numcodecs
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    Dataset,
    MissingExtraError,
    OMEZarrVersion,
    UnsupportedFormatError,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.views import neuroglancer
from ctlab_dask_zarr.views.neuroglancer import serve_store
from tests.builders import make_dataset, random_voxels
from tests.views.browser import Browser, find_chromium
from tests.views.stores import write_labels, write_store

SIZE = 96
CODECS = {
    "zstd": [{"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
    "blosc": [
        {
            "name": "blosc",
            "configuration": {
                "cname": "zstd",
                "clevel": 5,
                "shuffle": "bitshuffle",
                "typesize": 2,
                "blocksize": 0,
            },
        }
    ],
    "none": None,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"), (900, 700))
    yield browser
    browser.close()


def ball() -> np.ndarray:
    """A bright ball in a dark box, in a mask."""
    z, y, x = np.ogrid[:SIZE, :SIZE, :SIZE]
    distance = np.sqrt((z - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2 + (x - SIZE / 2) ** 2)
    voxels = np.where(distance < SIZE / 4, 30000, 10000).astype("uint16")
    voxels += np.random.default_rng(0).integers(0, 500, voxels.shape, dtype="uint16")
    voxels[distance > SIZE / 2] = 65535
    return voxels


def write_ball(path: Path, codec: str) -> None:
    dataset = Dataset(
        da.from_array(ball(), chunks=32),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(2.0, 2.0, 2.0),
        datatype="tomo",
    )
    dataset_to_zarr(
        dataset,
        path,
        chunks=(16, 16, 16),
        shards=(32, 32, 32),
        levels=3,
        create_array_kwargs={"compressors": CODECS[codec]},
    )


def shares(picture: np.ndarray) -> dict[str, float]:
    """What part of the page is black, dark grey, light grey, coloured."""
    low, high = picture.min(axis=2).astype(int), picture.max(axis=2).astype(int)
    grey = high - low < 12
    return {
        "light": float((grey & (low > 190) & (high < 256)).mean()),
        "coloured": float((high - low > 60).mean()),
    }


def write_other_version(path: Path, form: str) -> str:
    """Write the ball at another place, as OME-Zarr of a version; return the end of its address."""
    dataset = Dataset(
        da.from_array(ball(), chunks=32),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(2.0, 2.0, 2.0),
        datatype="tomo",
        origin=(10.0, 0.0, 20.0),
    )
    if form == "0.6":
        dataset_to_zarr(dataset, path, ome_zarr_version=OMEZarrVersion.v06, chunks=(32, 32, 32))
        return "/scan.zarr/0/|zarr3:"
    group = zarr.create_group(path, zarr_format=2)
    array = zarr.create_array(
        f"{path}/0",
        shape=(SIZE,) * 3,
        dtype="<u2",
        chunks=(32, 32, 32),
        compressors=numcodecs.Blosc(),
        zarr_format=2,
    )
    array[...] = ball()
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    transforms = [
        {"type": "scale", "scale": [2.0, 2.0, 2.0]},
        {"type": "translation", "translation": [10.0, 0.0, 20.0]},
    ]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return "/scan.zarr/|zarr2:"


@pytest.mark.browser
@pytest.mark.parametrize("form", ["0.4", "0.6"])
def test_other_versions_are_seen(browser: Browser, form: str, tmp_path: Path) -> None:
    write_other_version(tmp_path / "scan.zarr", form)
    with serve_store(tmp_path / "scan.zarr") as server:
        browser.open(server.url)
        # In 0.4 nothing says that the corners are masked: they are light.
        picture = browser.wait_for_picture(lambda p: shares(p)["light"] > 0.05)
    y, x = picture.shape[0] // 4, picture.shape[1] // 4
    place = (y - 85, x - 115) if form == "0.4" else (y, x)
    assert picture[place].astype(int).min() > 190, (shares(picture), browser.log)


@pytest.mark.parametrize("codec", CODECS)
def test_the_volume_is_seen(browser: Browser, tmp_path: Path, codec: str) -> None:
    write_ball(tmp_path / "scan.zarr", codec)
    with serve_store(tmp_path / "scan.zarr") as server:
        browser.open(server.url)
        picture = browser.wait_for_picture(lambda p: shares(p)["light"] > 0.05)
    seen = shares(picture)
    # Three slices through the ball, each light in the middle of a dark disk on black.
    assert 0.05 < seen["light"] < 0.5, (seen, browser.log)
    middle = picture[picture.shape[0] // 4, picture.shape[1] // 4].astype(int)
    assert middle.min() > 190, "the ball is in the middle of the first panel"


def test_labels_are_a_layer_in_their_colour(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_ball(path, "zstd")
    voxels = ball()
    labels = ((voxels > 20000) & (voxels < 65535)).astype("uint8")
    array = da.from_array(labels, chunks=32)
    labels_to_zarr(array, path, "balls", colors={1: (255, 0, 0)})
    with serve_store(path) as server:
        browser.open(server.url)
        picture = browser.wait_for_picture(lambda p: shares(p)["coloured"] > 0.05)
    assert shares(picture)["coloured"] > 0.05, browser.log
    red, green, blue = picture[picture.shape[0] // 4, picture.shape[1] // 4].astype(int)
    assert red > green + 60
    assert red > blue + 60


def ball_phases() -> Dataset:
    """The ball 2 in the box 1, in the mask of segmentations."""
    voxels = ball()
    phases = np.where(voxels == 65535, 255, np.where(voxels > 20000, 2, 1)).astype("uint8")
    return Dataset(
        da.from_array(phases, chunks=32),
        dimension_names=("z", "y", "x"),
        voxel_unit="um",
        voxel_size=(2.0, 2.0, 2.0),
        datatype="segmented",
    )


def test_a_segmentation_is_whole_in_its_panel_and_its_mask_has_no_colour(
    browser: Browser, tmp_path: Path
) -> None:
    dataset_to_zarr(ball_phases(), tmp_path / "phases.zarr", levels=2)
    with serve_store(tmp_path / "phases.zarr") as server:
        browser.open(server.url)
        picture = browser.wait_for_picture(lambda p: shares(p)["coloured"] > 0.25)
    panel = first_panel(browser, picture)
    coloured = np.ptp(panel.astype(int), axis=2) > 60
    y, x = panel.shape[0] // 2, panel.shape[1] // 2
    assert coloured[y - 30, x - 30], browser.log
    # A disk, and not the square that it would be with the mask.
    for corner in (coloured[y - 115 : y - 95, x - 115 : x - 95],
                   coloured[y - 115 : y - 95, x + 95 : x + 115]):  # fmt: skip
        assert not corner.any()
    rows = np.flatnonzero(coloured[:, x - 40 : x + 40].any(axis=1))
    assert 5 < rows[0] < rows[-1] < panel.shape[0] - 5
    assert rows[-1] - rows[0] > 200


def test_the_mask_of_labels_is_not_seen_over_the_volume(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_ball(path, "zstd")
    # The mask is not a label, even where it is given a colour.
    colors = {1: (255, 0, 0), 2: (0, 0, 255), 255: (0, 255, 0)}
    labels_to_zarr(ball_phases(), path, "phases", colors=colors)
    with serve_store(path) as server:
        browser.open(server.url)
        picture = browser.wait_for_picture(lambda p: shares(p)["coloured"] > 0.25)
    panel = first_panel(browser, picture).astype(int)
    red, green, blue = panel[..., 0], panel[..., 1], panel[..., 2]
    assert (red > green + 60).mean() > 0.1, browser.log
    assert (blue > green + 60).mean() > 0.02
    # The axis of y, one pixel wide, is green too.
    assert ((green > red + 60) & (green > blue + 60)).mean() < 0.01


def first_panel(browser: Browser, picture: np.ndarray) -> np.ndarray:
    """Cut out the slice across z, without what Neuroglancer draws in the corners."""
    box = browser.evaluate(
        "(r => [r.top, r.bottom, r.left, r.right])"
        "(document.querySelector('.neuroglancer-rendered-data-panel').getBoundingClientRect())"
    )
    top, bottom, left, right = map(int, box)
    return picture[top:bottom, left:right]


def state_of(path: Path, **options: Any) -> dict[str, Any]:
    """Return what Neuroglancer is told to show; needs none that is installed."""
    with serve_store(path, neuroglancer="https://viewer.example/", **options) as server:
        _, _, state = server.redirects[""].partition("#!")
        found: dict[str, Any] = json.loads(unquote(state))
        return found


@pytest.mark.parametrize("form", ["0.4", "0.6"])
def test_other_versions_are_shown_in_their_place(form: str, tmp_path: Path) -> None:
    place = write_other_version(tmp_path / "scan.zarr", form)
    state = state_of(tmp_path / "scan.zarr")
    source = state["layers"][0]["source"]
    assert source["url"].endswith(place)
    assert state["position"] == [SIZE / 2 + 10, SIZE / 2, SIZE / 2 + 5]
    matrix = [[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 10]]
    assert source.get("transform", {}).get("matrix") == (matrix if form == "0.6" else None)


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
def test_labels_that_neuroglancer_does_not_show_are_left_out_and_named(
    tmp_path: Path, dtype: str
) -> None:
    voxels = random_voxels((8, 8, 8))
    store = write_store(tmp_path / "a.zarr", [voxels])
    write_labels(store, "phases", [voxels.astype("uint8")])
    write_labels(store, "grains", [voxels.astype(dtype)])
    told: list[str] = []
    layers = state_of(store, on_left_out=told.append)["layers"]
    assert [layer["name"] for layer in layers] == ["a.zarr", "phases"]
    (line,) = told
    assert re.search(f"'grains'.*{dtype}.*uint32", line)


def test_labels_opened_by_their_own_path_are_in_colours(tmp_path: Path) -> None:
    voxels = random_voxels((8, 8, 8), "uint8")
    store = write_store(tmp_path / "a.zarr", [voxels])
    write_labels(store, "phases", [voxels])
    write_labels(store, "odd", [voxels.astype("float32")])
    (layer,) = state_of(store / "labels" / "phases")["layers"]
    assert layer["type"] == "segmentation"
    with pytest.raises(UnsupportedFormatError, match="labels of float32"):
        state_of(store / "labels" / "odd")


@pytest.mark.parametrize(
    ("datatype", "dtype", "equivalences"),
    [
        ("segmented", "uint8", [["0", "255"]]),
        ("labels", "int32", [["0", "2147483647"]]),
        # Made from a scan, whose data type they kept.
        ("tomo", "uint8", []),
        ("tomo_float", "uint8", []),
        ("distance_map", "int8", []),
        (None, "uint8", []),
    ],
)
def test_the_mask_value_of_labels_is_background(
    tmp_path: Path, datatype: str | None, dtype: str, equivalences: list[list[str]]
) -> None:
    voxels = random_voxels((8, 8, 8), dtype)
    store = write_store(tmp_path / "a.zarr", [voxels])
    write_labels(store, "phases", [voxels], datatype=datatype)
    for path in (store, store / "labels" / "phases"):
        layer = state_of(path)["layers"][-1]
        assert layer["equivalences"] == equivalences


def test_the_command_prints_an_address_that_serves_until_it_is_ended(tmp_path: Path) -> None:
    import signal
    import urllib.request

    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8))), tmp_path / "a.zarr")
    labels_to_zarr(da.from_array(random_voxels((8, 8, 8), "int64")), tmp_path / "a.zarr", "grains")
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "view", str(tmp_path / "a.zarr")]
    process = subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{30,}/", url)
        with urllib.request.urlopen(f"{url}a.zarr/zarr.json", timeout=240) as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert "ssh -N -L" in errors
        assert "'grains' is left out" in errors
    finally:
        process.kill()
        process.wait()


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8))), tmp_path / "a.zarr")
    monkeypatch.setattr(neuroglancer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ctlab-dask-zarr\[view\]"):
        serve_store(tmp_path / "a.zarr")


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_a_type_that_neuroglancer_does_not_show_is_refused(tmp_path: Path, dtype: Any) -> None:
    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8), dtype)), tmp_path / "a.zarr")
    with pytest.raises(UnsupportedFormatError, match=dtype):
        serve_store(tmp_path / "a.zarr")
