from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.json_values import plain_json

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
)


@given(json_values)
def test_plain_json_stays_as_it_is(value: Any) -> None:
    plain = plain_json(value, "x")
    assert plain == value
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.True_, True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]], ">i2"), [[1, 2], [3, 4]]),
        (np.array(3.0), 3.0),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"a": (np.int8(1),)}, {"a": [1]}),
        (range(3), [0, 1, 2]),
    ],
)
def test_numpy_and_tuples_become_plain(value: Any, plain: Any) -> None:
    found = plain_json(value, "x")
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [0, float("nan")]}, r"x\['a'\]\[1\] is nan"),
        ([np.float32("inf")], r"x\[0\] is inf"),
        (np.array([1.0, np.nan]), r"x\[1\] is nan"),
        ({"a": {3: 1}}, r"x\['a'\] has the key 3"),
        ({"a": b"bytes"}, r"x\['a'\] is a bytes"),
        ({"a": {1, 2}}, r"x\['a'\] is a set"),
        ([1j], r"x\[0\] is a complex"),
        ([object()], r"x\[0\] is a object"),
        ("\ud800", "x holds text"),
        ({"\ud800": 1}, "x holds text"),
        (np.datetime64("2020-01-01"), "x is a"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(MetadataError, match=place):
        plain_json(value, "x")


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(MetadataError, match="levels deep"):
        plain_json(endless, "x")


def test_nothing_is_shared_with_the_original() -> None:
    original: dict[str, Any] = {"a": [1, {"b": 2}]}
    plain = plain_json(original, "x")
    original["a"][1]["b"] = 3
    assert plain == {"a": [1, {"b": 2}]}
