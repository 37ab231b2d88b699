"""mango's history text: what it becomes, and that nothing in it makes the parser fail."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctlab_dask_zarr.formats.history import (
    LEFT_OVER_KEY,
    MAX_SECTION_DEPTH,
    HistoryValue,
    history_from_attributes,
    parse_mango_history,
)
from ctlab_dask_zarr.formats.json_values import plain_json


def test_sections_nest_and_values_stay_text() -> None:
    text = (
        "base                    parms_1\n\n"
        "BeginSection Run_00\n"
        "    enabled                 True\n"
        "    run_identifier          \n"
        "    size_x                  300\n\n"
        "    BeginSection Subset\n"
        "        factor 1.5\n"
        "    EndSection\n"
        "EndSection\n"
    )
    assert parse_mango_history(text) == {
        "base": "parms_1",
        "Run_00": {
            "enabled": True,
            "run_identifier": "",
            "size_x": "300",
            "Subset": {"factor": "1.5"},
        },
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<a b>", "a b"),
        ("<>", ""),
        ("<1><-2><+3.5><1.5e3><x><nan><1e999.>", [1, -2, 3.5, 1500.0, "x", "nan", "1e999."]),
        ("<1> <2>", [1, 2]),
        ("<a> and more", "<a> and more"),
        ("<<a>>", "<<a>>"),
        ("<1.0e9999><99999999999999999999>", ["1.0e9999", "99999999999999999999"]),
        ("true", True),
        ("False", False),
        ("10", "10"),
    ],
)
def test_values(text: str, value: HistoryValue) -> None:
    assert parse_mango_history(f"key {text}\n") == {"key": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("__start_multi_string__\none\n  two\n__end_multi_string__", "one\n  two"),
        ("__start_multi_string__ one\ntwo __end_multi_string__", " one\ntwo "),
        ("__start_multi_string__ one __end_multi_string__", " one "),
        ("__start_multi_string__\nEndSection\n__end_multi_string__", "EndSection"),
        ("__start_multi_string____end_multi_string__", ""),
    ],
)
def test_multi_line_values(text: str, value: str) -> None:
    parsed = parse_mango_history(f"BeginSection S\nkey {text}\nnext 1\nEndSection\n")
    assert parsed == {"S": {"key": value, "next": "1"}}


def test_a_multi_line_value_without_an_end_keeps_the_rest() -> None:
    assert parse_mango_history("k __start_multi_string__\na 1\nEndSection") == {
        "k": "a 1\nEndSection"
    }


def test_repeated_keys_and_sections_are_all_kept() -> None:
    text = "a <1><2>\na 3\na 4\nBeginSection S\nb 1\nEndSection\nBeginSection S\nEndSection\n"
    assert parse_mango_history(text) == {"a": [[1, 2], "3", "4"], "S": [{"b": "1"}, {}]}


def test_log_lines_are_read_as_keys_and_other_lines_are_kept() -> None:
    text = "\n   executable: </bin/mango>\n package version: <>\nstep: 1\nstep: 2\nodd line\nmore\n"
    assert parse_mango_history(text) == {
        "executable": "/bin/mango",
        "package version": "",
        "step": ["1", "2"],
        LEFT_OVER_KEY: ["odd line", "more"],
    }


def test_stray_and_missing_section_ends_lose_nothing() -> None:
    text = "EndSection\na 1\nEndSection\nBeginSection S\nb 2\n"
    assert parse_mango_history(text) == {
        LEFT_OVER_KEY: ["EndSection", "EndSection"],
        "a": "1",
        "S": {"b": "2"},
    }


def test_a_section_nested_too_deep_stays_text() -> None:
    n = MAX_SECTION_DEPTH + 2
    text = "BeginSection S\n" * n + "deep 1\n" + "EndSection\n" * n + "after 2\n"
    parsed = parse_mango_history(text)
    assert parsed["after"] == "2"
    value: HistoryValue = parsed
    for _ in range(MAX_SECTION_DEPTH):
        assert isinstance(value, dict)
        value = value["S"]
    assert value == {"S": "BeginSection S\ndeep 1\nEndSection"}
    assert plain_json({"id": {"parameters": parsed}}, "history")


@pytest.mark.parametrize("text", ["", "\0\0", "\n \n"])
def test_empty_text_has_no_parameters(text: str) -> None:
    assert parse_mango_history(text) == {}


LINES = st.one_of(
    st.sampled_from(
        [
            *("BeginSection", "BeginSection A", "EndSection", "a", "a 1", "b: c", "\tx\ty\r", ""),
            *("k __start_multi_string__ x", "__end_multi_string__ tail", "k <1><2.5>"),
            *(LEFT_OVER_KEY, f"{LEFT_OVER_KEY} 1", f"BeginSection {LEFT_OVER_KEY}"),
        ]
    ),
    st.text(max_size=20),
)


@given(st.lists(LINES, max_size=30).map("\n".join))
def test_any_text_is_read_and_is_json(text: str) -> None:
    parsed = parse_mango_history(text)
    assert json.loads(json.dumps(parsed, allow_nan=False)) == parsed


WORDS = st.text("abcxyz<>:_", min_size=1, max_size=6)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=20))
def test_no_word_of_a_text_is_lost(pairs: list[tuple[str, str]]) -> None:
    text = "BeginSection S\n" + "".join(f"{key} {value}\n" for key, value in pairs) + "EndSection"
    kept = json.dumps(parse_mango_history(text))
    for key, value in pairs:
        assert key in kept
        assert value.strip("<>") in kept or "><" in value


@pytest.mark.parametrize(
    "text",
    [
        "BeginSection a\n" * 100_000,
        "k " + "<1" * 200_000,
        "k " + "<a>" * 200_000 + "x",
        "k __start_multi_string__\n" * 100_000,
        "a: " * 200_000,
        "a 1\n" * 200_000,
        "EndSection\n" * 200_000,
    ],
)
def test_a_long_text_takes_time_in_proportion(text: str) -> None:
    # Of this process, however busy the machine is.
    start = time.process_time()
    parse_mango_history(text)
    assert time.process_time() - start < 5


def test_pairs_of_attributes_become_entries() -> None:
    attributes = {
        "zdim_total": "3",
        "history_1_tomo": "a 1",
        "history_1_tomo_output": "log: x",
        "history_2_seg": "",
        "history_2_seg_output": "",
        "history_3_only_output": "log",
        "history": "ncks a.nc b.nc",
    }
    assert history_from_attributes(attributes) == {
        "1_tomo": {"parameters": {"a": "1"}, "output": "log: x"},
        "2_seg": {"parameters": {}, "output": ""},
        "3_only": {"parameters": {}, "output": "log"},
        "history": {"parameters": {}, "output": "ncks a.nc b.nc"},
    }


def test_unparsed_history_stays_text() -> None:
    attributes = {"history_1": "a 1", "history_1_output": "log"}
    assert history_from_attributes(attributes, parse_history=False) == {
        "1": {"parameters": "a 1", "output": "log"}
    }


def test_an_id_that_ends_in_output_keeps_its_own_output() -> None:
    attributes = {"history_x_output": "a 1", "history_x_output_output": "log"}
    assert history_from_attributes(attributes) == {
        "x_output": {"parameters": {"a": "1"}, "output": "log"}
    }
