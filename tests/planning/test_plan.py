"""The documents of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import InvalidArgumentError
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.plan import array_document


def document(n: int, kind: str = "chunks", **options: Any) -> str:
    """Return the document of an array with chunks of `n` bytes."""
    if kind == "beside odd codecs":
        options["filters"] = [zarr.codecs.TransposeCodec(order=(2, 1, 0))]
    return array_document(
        Layout((1, 1, 2**34), (1, 1, n), (1, 1, 2 * n) if kind == "inner chunks" else None),
        np.dtype("u1"),
        fill_value=0,
        dimension_names=("z", "y", "x"),
        attributes={},
        separator_threshold=64,
        create_array_kwargs=options,
    )


@pytest.mark.parametrize("kind", ["chunks", "inner chunks", "beside odd codecs"])
@pytest.mark.parametrize(
    ("codec", "most"),
    [
        (zarr.codecs.BloscCodec(), 2**31 - 17),
        ({"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}, 0x7E000000),
    ],
    ids=["blosc", "lz4"],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in")
def test_a_chunk_that_its_codec_cannot_take_is_refused(kind: str, codec: Any, most: int) -> None:
    document(most, kind, compressors=codec)
    with pytest.raises(InvalidArgumentError, match=rf"{most + 1:,} bytes.*takes {most:,} at most"):
        document(most + 1, kind, compressors=codec)


@pytest.mark.parametrize(
    "compressors", ["auto", None, zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec()]
)
def test_a_chunk_above_two_gibibytes_is_fine_for_other_codecs(compressors: Any) -> None:
    document(2**32, compressors=compressors)
