from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.formats.codecs import CODECS, Codec, array_kwargs
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from tests.builders import make_dataset


@pytest.mark.parametrize(
    ("typed", "name", "configuration"),
    [
        ("zstd", "zstd", {"level": 0, "checksum": False}),
        ("zstd:-3", "zstd", {"level": -3, "checksum": False}),
        ("blosc", "blosc", {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle"}),
        ("blosc:lz4:1", "blosc", {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}),
        ("gzip:6", "gzip", {"level": 6}),
        ("lz4", "numcodecs.lz4", {"acceleration": 1}),
    ],
)
def test_a_codec_is_known_by_its_short_name(
    typed: str, name: str, configuration: dict[str, Any]
) -> None:
    assert array_kwargs(typed) == {"compressors": [{"name": name, "configuration": configuration}]}


@pytest.mark.parametrize(
    "typed",
    [
        *("", "crc32c", "lzma", "none:1", "lz4:1", "zstd:", "zstd:best", "zstd:23", "zstd:3:1"),
        *("gzip:10", "blosc:zip", "blosc:zstd:10", "blosc:zstd:5:shuffled"),
    ],
)
def test_what_is_no_codec_or_no_option_of_it_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="is not a codec"):
        array_kwargs(typed)


def _zlib(options: dict[str, Any]) -> Any:
    def decode(data: Any, limit: int) -> bytes:
        return zlib.decompressobj().decompress(data, limit)

    return lambda data: zlib.compress(data, options["level"]), decode


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning")
def test_a_codec_that_is_added_to_the_table_is_applied_without_zarr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = Codec(_zlib, "zlib", {"level": (1, range(10))})
    monkeypatch.setitem(CODECS, "numcodecs.zlib", added)
    voxels = np.random.default_rng(0).integers(0, 50, (20, 20, 20), dtype="uint16")
    dataset_to_zarr(
        make_dataset(voxels, voxel_size=(1, 1, 1)), tmp_path / "a", levels=2,
        chunks=(4, 4, 4), shards=(8, 8, 8), create_array_kwargs=array_kwargs("zlib:3"),
    )  # fmt: skip
    parse_array_document.cache_clear()
    document = (tmp_path / "a.zarr" / "0" / "zarr.json").read_text()
    assert parse_array_document(document).is_direct
    assert (dataset_from_zarr(tmp_path / "a.zarr").data.compute() == voxels).all()
    assert (zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[...] == voxels).all()
