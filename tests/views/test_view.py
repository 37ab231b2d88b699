"""`ctlab-zarr view` in a real browser: the volume and its labels are seen."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from ctlab_dask_zarr import (
    Dataset,
    MissingExtraError,
    UnsupportedFormatError,
    dataset_to_zarr,
    labels_to_zarr,
)
from ctlab_dask_zarr.views import neuroglancer
from ctlab_dask_zarr.views.neuroglancer import serve_store
from tests.builders import make_dataset, random_voxels
from tests.views.browser import Browser, find_chromium

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


def test_the_command_prints_an_address_that_serves_until_it_is_ended(tmp_path: Path) -> None:
    import signal
    import urllib.request

    dataset_to_zarr(make_dataset(random_voxels((8, 8, 8))), tmp_path / "a.zarr")
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "view", str(tmp_path / "a.zarr")]
    process = subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{30,}/", url)
        with urllib.request.urlopen(f"{url}a.zarr/zarr.json", timeout=10) as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "ssh -N -L" in errors
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
