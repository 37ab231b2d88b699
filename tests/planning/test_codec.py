"""Which codec is chosen among those that were measured."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ctlab_dask_zarr.formats.codecs import array_kwargs
from ctlab_dask_zarr.planning.codec import MeasuredCodec, candidate_chains, choose_codec
from ctlab_dask_zarr.planning.layout import resolve_layout

#: As of a real tomogram of concrete: ratio, and MB/s of encoding.
CONCRETE = [
    MeasuredCodec("zstd", 1.079, 1270),
    MeasuredCodec("blosc:zstd:1:shuffle", 1.136, 486),
    MeasuredCodec("blosc:zstd:3:shuffle", 1.219, 224),
    MeasuredCodec("blosc:zstd:5:shuffle", 1.220, 133),
    MeasuredCodec("blosc:lz4:5:bitshuffle", 1.118, 2210),
]
#: As of noise: nothing makes it much smaller.
NOISE = [
    MeasuredCodec("zstd:1", 1.0712, 1300),
    MeasuredCodec("zstd", 1.0711, 1200),
    MeasuredCodec("blosc:zstd:5:shuffle", 1.072, 600),
    MeasuredCodec("blosc:lz4:5:bitshuffle", 1.0001, 3900),
]


@pytest.mark.parametrize(
    ("asked", "source_mb_per_s", "codec", "reason"),
    [
        # Nothing is known of the source, or it is faster than the default: as fast as that.
        ("auto", None, "blosc:lz4:5:bitshuffle", "as fast as zstd does, 1270 MB/s; 3.5% smaller"),
        ("auto", 5000.0, "blosc:lz4:5:bitshuffle", "as fast as zstd does"),
        ("auto", 400.0, "blosc:zstd:1:shuffle", "as fast as a thread makes blocks .*, 400 MB/s"),
        # A little slower than the source, within what measuring can tell.
        ("auto", 240.0, "blosc:zstd:3:shuffle", "11.5% smaller than zstd"),
        # A sixth of a percent is not worth half of the speed.
        ("auto", 1.0, "blosc:zstd:3:shuffle", "smallest"),
        ("auto:small", 5000.0, "blosc:zstd:3:shuffle", "^the smallest; 11.5% smaller than zstd$"),
        ("auto:fast", 1.0, "blosc:lz4:5:bitshuffle", "at least half of the bytes"),
    ],
)
def test_a_codec_is_chosen_for_what_was_asked(
    asked: str, source_mb_per_s: float | None, codec: str, reason: str
) -> None:
    choice = choose_codec(asked, CONCRETE, source_mb_per_s)
    assert (choice["asked"], choice["codec"]) == (asked, codec)
    assert re.search(reason, choice["reason"])
    assert [m["codec"] for m in choice["measured"]] == [m.codec for m in CONCRETE]


@pytest.mark.parametrize(
    ("asked", "codec"), [("auto", "zstd"), ("auto:small", "zstd"), ("auto:fast", "zstd:1")]
)
def test_where_nothing_is_smaller_the_default_stays(asked: str, codec: str) -> None:
    """Nor is a codec fast that saves nothing."""
    assert choose_codec(asked, NOISE, 1.0)["codec"] == codec


def test_codecs_that_are_measured_fit_the_type() -> None:
    layout = resolve_layout((64, 64, 64), "auto", "auto")
    wide, bytes_ = (candidate_chains(layout, np.dtype(name)) for name in ("<f4", "u1"))
    assert wide.keys() - bytes_.keys() == {c for c in wide if c.endswith(":shuffle")}
    assert wide["blosc:zstd:3:shuffle"][0].options["typesize"] == 4
    assert all(array_kwargs(codec) for codec in wide)
