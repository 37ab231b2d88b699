"""A history that is written as mango's text is read again as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.formats.history import (
    history_attributes,
    history_from_attributes,
    mango_history_text,
    parse_mango_history,
)

CASES: dict[str, Any] = {
    "empty": {},
    "log": {"work dir": "/a b/c", "start time": "Fri Mar 14 12:29:13 2025"},
    "log with lines": {"executable": "<mango>"[1:-1], "_log_text": ["begun", "ended"]},
    "sections": {"base": "parms", "is_on": True, "Run_00": {"empty": {}, "Subset": {"n": "3"}}},
    "lists": {"sizes": [1, 2.5, "a"], "Run": {"names": ["x", "y"]}},
    "repeated": {"Run": [{"a": "1"}, {"a": "2"}], "file": ["a <1>", "b <2>"]},
    "several lines": {"Run": {"comment": "first\n\n  second\nthird", "after": "1"}},
    "brackets": {"Run": {"package": "<>"[0:0], "text": "a > b"}},
    "one letter": {"k": "v", "Run": {"k": ""}},
}


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_read_as_they_were_written(name: str) -> None:
    assert parse_mango_history(mango_history_text(CASES[name])) == CASES[name]


_KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(
    lambda key: key not in ("BeginSection", "EndSection", "_log_text", "_raw_history")
)
_WORDS = st.from_regex(r"[A-Za-z0-9/.,=+-][A-Za-z0-9 /.,=+-]{0,20}", fullmatch=True).map(str.strip)
_TEXTS = _WORDS.filter(lambda text: text.lower() not in ("true", "false"))
_VALUES = st.one_of(_TEXTS, st.booleans())


@given(
    st.dictionaries(
        _KEYS,
        st.recursive(_VALUES, lambda inner: st.dictionaries(_KEYS, inner, max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_nested_parameters_are_read_as_they_were_written(parameters: dict[str, Any]) -> None:
    assert parse_mango_history(mango_history_text(parameters)) == parameters


def test_values_become_text_as_in_any_history_of_mango() -> None:
    parameters = {"n": 3, "x": 0.5, "none": None, "Run": {"one": [7], "a key": "v"}}
    text = mango_history_text(parameters)
    expected = {"n": "3", "x": "0.5", "none": "", "Run": {"one": "7", "a_key": "v"}}
    assert parse_mango_history(text) == expected


def test_a_history_is_read_from_the_attributes_that_it_becomes() -> None:
    history = {
        "20250314_012913_tomo": {"parameters": {"Run": {"a": "1"}}, "output": "log: text\n more"},
        "20250315_000000_crop": {"operation": "crop", "z": "1:5"},
        "20250316_000000_note": "by hand",
        "20250317_000000_empty": {"parameters": {}, "output": ""},
    }
    found = history_from_attributes(history_attributes(history))
    assert found == {
        "20250314_012913_tomo": history["20250314_012913_tomo"],
        "20250315_000000_crop": {"parameters": history["20250315_000000_crop"], "output": ""},
        "20250316_000000_note": {"parameters": {"by": "hand"}, "output": ""},
        "20250317_000000_empty": history["20250317_000000_empty"],
    }
