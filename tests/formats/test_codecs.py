from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import InvalidArgumentError, dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.formats.codecs import CODECS, Codec, array_kwargs, codec_syntax, codec_text
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.resolve import WriteOptions
from tests.builders import make_dataset, run_here


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
    ("typed", "there_is"),
    [
        *((name, "write zstd.*blosc.*gzip.*lz4 or none") for name in ("", "crc32c", "lzma")),
        *((f"zstd:{level}", "level is a number from -131072 to 22") for level in (23, "best", "")),
        ("gzip:10", "level is a number from 0 to 9, and not '10'"),
        ("blosc:zip", "cname is one of blosclz, lz4, lz4hc, snappy, zlib, zstd, and not 'zip'"),
        ("blosc:zstd:10", "clevel is a number from 0 to 9"),
        ("blosc:zstd:5:shuffled", "shuffle is one of noshuffle, shuffle, bitshuffle"),
        ("zstd:3:1", r"more options than zstd\[:LEVEL\]"),
        ("lz4:1", "more options than lz4$"),
        ("none:1", "lz4 or none; or auto"),
    ],
)
def test_what_is_no_codec_is_refused_with_what_there_is(typed: str, there_is: str) -> None:
    with pytest.raises(ValueError, match=f"^'{typed}' is not a codec: .*{there_is}"):
        array_kwargs(typed)


@pytest.mark.parametrize(
    "typed",
    ["none", "zstd", "zstd:3", "blosc:zstd:3:shuffle", "blosc:lz4:0:noshuffle", "gzip:6", "lz4"],
)
def test_a_codec_is_told_as_it_is_typed(typed: str) -> None:
    compressors = array_kwargs(typed)["compressors"] or ()
    assert codec_text((c["name"], c["configuration"]) for c in compressors) == typed


def test_what_cannot_be_typed_has_no_text() -> None:
    zstd = ("zstd", {"level": 3, "checksum": False})
    assert codec_text([zstd, ("crc32c", {})]) is None
    assert codec_text([("zstd", {"level": 3, "checksum": True})]) is None
    assert codec_text([("bz2", {"level": 3})]) is None


def test_the_help_of_the_command_line_lists_every_codec() -> None:
    # It has a text of its own, because help loads nothing.
    text = " ".join(run_here("convert", "--help").stdout.split())
    assert codec_syntax() in text


def test_what_lists_codecs_lists_one_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "numcodecs.zlib", Codec(_zlib, "zlib", {"level": (1, range(10))}))
    assert "zlib[:LEVEL]" in codec_syntax()
    with pytest.raises(InvalidArgumentError, match=r"zlib\[:LEVEL\]"):
        WriteOptions(codec="zlob")


def _zlib(options: dict[str, Any]) -> Any:
    def decode(data: Any, limit: int, memory: Any) -> bytes:
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
        chunks=(4, 4, 4), shards=(8, 8, 8), codec="zlib:3",
    )  # fmt: skip
    parse_array_document.cache_clear()
    document = (tmp_path / "a.zarr" / "0" / "zarr.json").read_text()
    assert parse_array_document(document).is_direct
    assert (dataset_from_zarr(tmp_path / "a.zarr").data.compute() == voxels).all()
    assert (zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[...] == voxels).all()


def test_zlib_has_a_level_of_its_own_and_gzip_has_to_say_one() -> None:
    encode, decode = CODECS["numcodecs.zlib"].make({})
    assert bytes(decode(encode(b"voxels"), 6, None)) == b"voxels"
    with pytest.raises(KeyError, match="level"):
        CODECS["gzip"].make({})
