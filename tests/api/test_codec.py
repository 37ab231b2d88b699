"""`codec=`, as users write it, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import InvalidArgumentError, dataset_to_zarr, labels_to_zarr, plan
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((40, 65, 97))


def test_a_codec_is_a_keyword_wherever_zarrs_arguments_are(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS)
    path = tmp_path / "a.zarr"
    typed = "blosc:zstd:3:shuffle"
    assert plan(dataset, path, codec=typed).to_dict()["codec"] == typed
    assert typed in plan(dataset, path, codec=typed).describe()
    dataset_to_zarr(dataset, path, codec=typed, levels=2)
    found = [level.array for level in plan(dataset, path, codec=typed, levels=2).levels]
    stored = zarr.open_array(path / "0", mode="r")
    assert stored.compressors[0].to_dict()["configuration"] == {
        "cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": 2, "blocksize": 0
    }  # fmt: skip
    assert all(array.codecs == found[0].codecs for array in found)
    np.testing.assert_array_equal(stored[...], VOXELS)
    labels_to_zarr((VOXELS > 0).astype("uint8"), path, "x", codec="gzip:2")
    (codec,) = zarr.open_array(path / "labels" / "x" / "0", mode="r").compressors
    assert codec.to_dict() == {"name": "gzip", "configuration": {"level": 2}}


def test_a_codec_beside_zarrs_own_arguments_has_to_say_the_same(tmp_path: Path) -> None:
    dataset, path = make_dataset(VOXELS), tmp_path / "a.zarr"
    same = {"compressors": [{"name": "gzip", "configuration": {"level": 5}}], "fill_value": 3}
    assert plan(dataset, path, codec="gzip", create_array_kwargs=same).codec == "gzip"
    for codec, zarrs in (("gzip:4", same), ("zstd", {"compressors": None}), ("none", same)):
        with pytest.raises(InvalidArgumentError, match="are different codecs: pass one of them"):
            dataset_to_zarr(dataset, path, codec=codec, create_array_kwargs=zarrs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"codec": "zstd:99"},
            "codec='zstd:99' is not a codec: its level is a number",
        ),
        ({"codec": "zlob"}, r"write zstd\[:LEVEL\], blosc"),
        ({"codec": 3}, "codec=3 is not text: write zstd"),
        ({"codec": zarr.codecs.ZstdCodec()}, "goes into create_array_kwargs={'compressors'"),
        ({"codecs": "zstd"}, "codec='blosc:zstd:3:shuffle'"),
        ({"compression": "gzip"}, "codec='blosc:zstd:3:shuffle'"),
        ({"create_array_kwargs": {"codecs": []}}, "pass codec='blosc:zstd:3:shuffle'"),
        ({"create_array_kwargs": {"compressor": None}}, "pass codec='blosc:zstd:3:shuffle'"),
        ({"create_array_kwargs": {"compressors": [{"name": "zlob"}]}}, "'zlob'"),
    ],
)
def test_a_codec_that_is_none_is_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    for function in (plan, dataset_to_zarr):
        with pytest.raises(InvalidArgumentError, match=message):
            function(make_dataset(VOXELS), tmp_path / "a.zarr", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["compressors", "filters", "serializer"])
def test_what_is_to_be_chosen_is_not_said_at_the_same_time(tmp_path: Path, argument: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"chooses the codecs.*says '{argument}'"):
        plan(
            make_dataset(VOXELS), tmp_path / "a", codec="auto",
            create_array_kwargs={argument: "auto"},
        )  # fmt: skip


def test_a_shuffle_that_does_nothing_is_told() -> None:
    told = "shuffle does nothing to voxels of one byte"
    for dtype, codec, is_told in (
        ("uint8", "blosc:zstd:3:shuffle", True),
        ("uint8", "blosc:zstd:3:bitshuffle", False),
        ("uint16", "blosc:zstd:3:shuffle", False),
    ):
        dataset = make_dataset(VOXELS.astype(dtype))
        assert (told in plan(dataset, "a.zarr", codec=codec).describe()) == is_told
