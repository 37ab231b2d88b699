from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError
from ctlab_dask_zarr.formats.zarr_array import StoredArray, is_key, parse_array_document


def document(**options: Any) -> dict[str, Any]:
    objects: dict[str, Any] = {}
    given: dict[str, Any] = {"shape": (10, 11, 12), "dtype": "u2", "chunks": (2, 3, 4)}
    zarr.create_array(MemoryStore(objects), zarr_format=3, **(given | options))
    content: dict[str, Any] = json.loads(objects["zarr.json"].to_bytes())
    return content


def parse(content: dict[str, Any]) -> StoredArray:
    return parse_array_document(json.dumps(content))


def test_a_sharded_array() -> None:
    array = parse(document(shards=(4, 6, 8), dimension_names=["z", "y", "x"]))
    assert (array.shape, array.object_shape, array.inner_chunk_shape) == (
        (10, 11, 12),
        (4, 6, 8),
        (2, 3, 4),
    )
    assert (array.chunks_per_object, array.grid_shape) == ((2, 2, 2), (3, 2, 2))
    assert (array.is_sharded, array.is_direct, array.index_checksum) == (True, True, True)
    assert (array.inner_chunk_nbytes, array.index_nbytes) == (48, 8 * 16 + 4)
    assert [spec.name for spec in array.codecs] == ["zstd"]
    assert array.dimension_names == ("z", "y", "x")


def test_an_array_without_shards() -> None:
    array = parse(document(compressors=None))
    assert array.object_shape == array.inner_chunk_shape == (2, 3, 4)
    assert (array.is_sharded, array.is_direct, array.codecs) == (False, True, ())
    assert array.dimension_names is None


@pytest.mark.parametrize(
    ("encoding", "key"),
    [
        ({"name": "default", "separator": "/"}, "c/1/0/2"),
        ({"name": "default", "separator": "."}, "c.1.0.2"),
        ({"name": "v2", "separator": "/"}, "1/0/2"),
        ({"name": "v2", "separator": "."}, "1.0.2"),
    ],
)
def test_keys_are_where_zarr_stores(encoding: Any, key: str) -> None:
    objects: dict[str, Any] = {}
    written = zarr.create_array(
        MemoryStore(objects),
        shape=(10, 11, 12),
        dtype="u2",
        chunks=(2, 3, 4),
        chunk_key_encoding=encoding,
    )
    written[2, 0, 8] = 1
    array = parse_array_document(objects["zarr.json"].to_bytes().decode())
    assert array.key((1, 0, 2)) == key
    assert set(objects) == {"zarr.json", key}


def test_separators_that_the_document_leaves_out() -> None:
    content = document()
    content["chunk_key_encoding"] = {"name": "default"}
    assert parse(content).key((1, 2, 3)) == "c/1/2/3"
    content["chunk_key_encoding"] = {"name": "v2"}
    assert parse(content).key((1, 2, 3)) == "1.2.3"


@given(st.sampled_from(["u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8"]), st.data())
def test_a_fill_value_has_the_bits_that_zarr_gives_it(dtype: str, data: Any) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        value = data.draw(st.floats(width=kind.itemsize * 8))
    else:
        limits = np.iinfo(kind)
        value = data.draw(st.integers(int(limits.min), int(limits.max)))
    content = document(dtype=dtype, fill_value=value)
    expected = np.array(value, kind)
    assert parse(content).fill_value.tobytes() == expected.tobytes() or np.isnan(expected)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("0x7fc00001", 0x7FC00001), ("0x80000000", 0x80000000), ("NaN", 0x7FC00000),
     ("Infinity", 0x7F800000), ("-Infinity", 0xFF800000), (-0.0, 0x80000000)],
)  # fmt: skip
def test_a_float_may_be_given_by_its_bits(text: Any, bits: int) -> None:
    content = document(dtype="f4")
    content["fill_value"] = text
    assert parse(content).fill_value.view("u4") == bits


@pytest.mark.parametrize(
    "change",
    [
        {"zarr_format": 2},
        {"node_type": "group"},
        {"shape": [10, -1, 12]},
        {"shape": [10, 2**60, 12]},
        {"shape": [10, True, 12]},
        {"shape": [10, 11.0, 12]},
        {"shape": "abc"},
        {"shape": 3},
        {"shape": [10, 11]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3, 4]}}},
        {"chunk_grid": {"name": "regular"}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "|"}}},
        {"fill_value": "x"},
        {"fill_value": "0xzz"},
        {"fill_value": [1]},
        {"fill_value": []},
        {"fill_value": {}},
        {"fill_value": 1.5},
        {"fill_value": 70000},
        {"fill_value": -1},
        {"fill_value": None},
        {"codecs": []},
        {"codecs": {}},
    ],
    ids=lambda change: json.dumps(change)[:70],
)
def test_a_document_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MetadataError):
        parse(document() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_grid": {"name": "rectilinear", "configuration": {"chunk_shape": [1, 1, 1]}}},
        {"chunk_key_encoding": {"name": "hashed"}},
    ],
)
def test_what_is_not_read_here_is_told_apart(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFormatError):
        parse(document() | change)


def test_inner_chunks_that_do_not_divide_shards_are_refused() -> None:
    content = document(shards=(4, 6, 8))
    content["codecs"][0]["configuration"]["chunk_shape"] = [3, 3, 4]
    with pytest.raises(MetadataError, match="do not divide"):
        parse(content)


@pytest.mark.parametrize(
    "change",
    [
        {"index_location": "start"},
        {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {
            "codecs": [
                {"name": "transpose", "configuration": {"order": [2, 1, 0]}},
                {"name": "bytes"},
            ]
        },
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "new"}]},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_what_the_direct_way_does_not_know_is_left_to_zarr(change: dict[str, Any]) -> None:
    content = document(shards=(4, 6, 8))
    content["codecs"][0]["configuration"].update(change)
    assert not parse(content).is_direct


def test_an_index_without_checksum_is_shorter() -> None:
    content = document(shards=(4, 6, 8))
    content["codecs"][0]["configuration"]["index_codecs"].pop()
    array = parse(content)
    assert (array.is_direct, array.index_nbytes) == (True, 8 * 16)


def test_a_key_names_something_inside_the_store() -> None:
    texts = ("labels/cells/0", "../0", "/tmp/0", "a//b", "", "a\\b", "a\x00", "\ud800", None)
    assert [is_key(text) for text in texts] == [True] + [False] * 8
