"""The text in which mango records how a volume was made, parsed into a history.

The text of a run's parameters looks like this::

    base                    parms_20250314_122855
    make_log_files          False

    BeginSection Run_00
        threshold           <0.5><1.5>
        comment             __start_multi_string__
    any text
    __end_multi_string__
        BeginSection Subset
            size_x              300
        EndSection
    EndSection

Histories come from many years of programs: any text is accepted, and none of it is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from itertools import chain, count
from typing import Any

#: A history entry, or a part of one: what JSON can hold.
HistoryValue = str | bool | int | float | list["HistoryValue"] | dict[str, "HistoryValue"] | None

#: The history of a volume: entries by their key, ``YYYYMMDD_HHMMSS_<name>``.
History = dict[str, HistoryValue]

#: The key for lines that do not belong to the structure, such as a stray ``EndSection``.
LEFT_OVER_KEY = "_log_text"

#: Sections nested deeper stay text. mango nests about ten levels; JSON readers have limits.
MAX_SECTION_DEPTH = 32

_MULTI_START = "__start_multi_string__"
_MULTI_END = "__end_multi_string__"
_LOG_LINE = re.compile(r"([A-Za-z][\w ]*):(?:\s+(.*))?")
_BRACKETED = re.compile(r"<([^<>]*)>")
_ALL_BRACKETED = re.compile(r"(?:<[^<>]*>\s*)+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]*(?:[eE][+-]?[0-9]{1,4})?")

#: A section while it is read: every value of each key, and under None the lines left over.
_Section = dict[str | None, list[Any]]


def unused_key(key: str, taken: Container[str]) -> str:
    """Return a key, with a number if it is taken: two entries may come in the same second."""
    return next(k for k in chain([key], (f"{key}_{n}" for n in count(2))) if k not in taken)


def parse_mango_history(text: str) -> dict[str, HistoryValue]:
    """Return the parameters in a text of mango's, with sections as nested dicts.

    Values stay text, except ``True``, ``False`` and values in angle brackets: a single value loses
    its brackets, several become a list, of numbers if they are numbers. A key or a section that
    occurs more than once in its section becomes a list of all its values. A text without sections
    whose lines look like ``key: value`` is read as a log.
    """
    lines = text.strip("\0").split("\n")
    section = _parse_log(lines) if _is_log(lines) else _parse_sections(iter(lines))
    return _values_of(section)


def history_from_attributes(
    attributes: Mapping[str, str], *, parse_history: bool = True
) -> History:
    """Return the history in the attributes of a netCDF file, in the order of the file.

    The pair ``history_<id>`` (parameters) and ``history_<id>_output`` (log) becomes ``{<id>:
    {"parameters": {...}, "output": str}}``; one of the two may be missing or empty. The log stays
    text; the parameters do too without `parse_history`. A bare ``history``, which general netCDF
    tools write, becomes the output of an entry ``history``.
    """
    history: History = {}
    for key, text in attributes.items():
        if key == "history":
            entry_id, is_output = "history", True
        elif key.startswith("history_"):
            entry_id, is_output = _split_key(key, attributes)
        else:
            continue
        entry = history.setdefault(
            entry_id, {"parameters": {} if parse_history else "", "output": ""}
        )
        assert isinstance(entry, dict)
        if is_output:
            entry["output"] = text
        else:
            entry["parameters"] = parse_mango_history(text) if parse_history else text
    return history


def _split_key(key: str, attributes: Mapping[str, str]) -> tuple[str, bool]:
    """Return the entry's id, and whether the attribute is its output."""
    stem = key.removesuffix("_output")
    # The id itself may end in _output: its attribute then has an output of its own.
    is_output = stem not in (key, "history") and (
        stem in attributes or f"{key}_output" not in attributes
    )
    return (stem if is_output else key).removeprefix("history_"), is_output


def _is_log(lines: list[str]) -> bool:
    stripped = [line.strip() for line in lines]
    if any(line.split(None, 1)[0] == "BeginSection" for line in stripped if line):
        return False
    first = next((line for line in stripped if line), "")
    return _LOG_LINE.fullmatch(first) is not None


def _parse_log(lines: list[str]) -> _Section:
    section: _Section = {}
    for line in lines:
        match = _LOG_LINE.fullmatch(line.strip())
        if match:
            _add(section, match[1].strip(), _parse_value(match[2] or ""))
        elif line.strip():
            _add(section, None, line.strip())
    return section


def _parse_sections(lines: Iterator[str]) -> _Section:
    # A stack instead of recursion: sections may be nested to any depth.
    stack: list[_Section] = [{}]
    for line in lines:
        key, rest = _split_line(line)
        if not key:
            continue
        if key == "BeginSection":
            if len(stack) > MAX_SECTION_DEPTH:
                _add(stack[-1], rest, _text_of_section(lines))
                continue
            section: _Section = {}
            _add(stack[-1], rest, section)
            stack.append(section)
        elif key == "EndSection" and len(stack) > 1:
            stack.pop()
        elif key == "EndSection":
            _add(stack[-1], None, line.strip())
        elif rest.startswith(_MULTI_START):
            value, tail = _multi_line_value(rest.removeprefix(_MULTI_START), lines)
            _add(stack[-1], key, value)
            if tail:
                _add(stack[-1], None, tail)
        else:
            _add(stack[-1], key, _parse_value(rest))
    return stack[0]


def _add(section: _Section, key: str | None, value: Any) -> None:
    section.setdefault(key, []).append(value)


def _values_of(section: _Section) -> dict[str, HistoryValue]:
    found = {
        key: [_values_of(value) if isinstance(value, dict) else value for value in values]
        for key, values in section.items()
    }
    left_over = found.pop(None, [])
    values = {str(key): item if len(item) > 1 else item[0] for key, item in found.items()}
    if left_over:
        values[LEFT_OVER_KEY] = [*found.get(LEFT_OVER_KEY, []), *left_over]
    return values


def _split_line(line: str) -> tuple[str, str]:
    words = line.strip().split(None, 1)
    return words[0] if words else "", words[1] if len(words) > 1 else ""


def _multi_line_value(first: str, lines: Iterator[str]) -> tuple[str, str]:
    """Return the text from `first` to the end marker or the last line, and what follows."""
    collected = []
    line: str | None = first
    tail = ""
    while line is not None:
        text, end, tail = line.partition(_MULTI_END)
        if not end or text.strip():
            collected.append(text)
        line = None if end else next(lines, None)
    return "\n".join(collected).strip("\n"), tail.strip()


def _text_of_section(lines: Iterator[str]) -> str:
    """Return the lines up to the ``EndSection`` of a section that has begun."""
    collected = []
    depth = 1
    for line in lines:
        word, _ = _split_line(line)
        depth += (word == "BeginSection") - (word == "EndSection")
        if depth == 0:
            break
        collected.append(line)
    return "\n".join(collected)


def _parse_value(text: str) -> HistoryValue:
    text = text.strip()
    if text in ("True", "true"):
        return True
    if text in ("False", "false"):
        return False
    if text.startswith("<") and _ALL_BRACKETED.fullmatch(text):
        values = _BRACKETED.findall(text)
        return [_parse_number(value) for value in values] if len(values) > 1 else values[0]
    return text


def _parse_number(text: str) -> HistoryValue:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text) and any(c.isdigit() for c in text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def mango_history_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as the text from which `parse_mango_history` reads them again.

    anu_ctlab_io reads the same from it, but for what it cannot read of any text: of a key that
    occurs several times the values before the last, and parameters without sections of which one
    has no text or several lines. White space in keys becomes ``_``, because a key ends there.
    """
    values = {str(key): value for key, value in parameters.items()}
    if list(values) == ["_raw_history"]:
        return str(values["_raw_history"])
    if values and all(_is_log_value(key, value) for key, value in values.items()):
        return "".join(_log_lines(values))
    return "".join(_section_lines(values, 0))


def history_attributes(history: Mapping[str, Any]) -> dict[str, str]:
    """Return a history as attributes of a netCDF file, from which the same history is read.

    An entry that is no pair of parameters and output counts as its parameters.
    """
    attributes = {}
    for key, entry in history.items():
        is_pair = isinstance(entry, Mapping) and entry.keys() == {"parameters", "output"}
        parameters = entry["parameters"] if is_pair else entry
        is_nested = isinstance(parameters, Mapping)
        text = mango_history_text(parameters) if is_nested else _scalar_text(parameters)
        attributes[f"history_{key}"] = text
        if is_pair:
            attributes[f"history_{key}_output"] = _scalar_text(entry["output"])
    return attributes


def _is_log_value(key: str, value: Any) -> bool:
    if key == LEFT_OVER_KEY:
        return isinstance(value, list) and not any(map(_LOG_LINE.fullmatch, map(str, value)))
    texts = _texts(value)
    is_key = re.fullmatch(r"[A-Za-z][\w ]*\w", key) is not None
    return is_key and texts is not None and all(text.strip() for text in texts)


def _texts(value: Any) -> list[str] | None:
    """Return a value as the texts of its lines, if each has one; None for a section."""
    values = value if isinstance(value, list) and not _is_bracketed(value) else [value]
    if not values or any(isinstance(v, Mapping) for v in values):
        return None
    texts = [_scalar_text(v) for v in values]
    return None if any("\n" in text for text in texts) else texts


def _is_bracketed(value: Any) -> bool:
    """Whether a list is written as ``<a><b>``."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in value)
        and not any(set("<>\n") & set(str(v)) for v in value)
    )


def _scalar_text(value: Any) -> str:
    if _is_bracketed(value):
        return "".join(f"<{v}>" for v in value)
    return "" if value is None else str(value)


def _log_lines(values: Mapping[str, Any]) -> Iterator[str]:
    # The first line decides that it is a log.
    for key, value in sorted(values.items(), key=lambda item: item[0] == LEFT_OVER_KEY):
        if key == LEFT_OVER_KEY:
            yield from (f"{line}\n" for line in value)
        else:
            yield from (f"{key}: {text}\n" for text in _texts(value) or ())


def _section_lines(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    indent = " " * (4 * depth)
    for key, value in values.items():
        name = "_".join(str(key).split()) or "_"
        items = value if isinstance(value, list) and not _is_bracketed(value) else [value]
        for item in items:
            if isinstance(item, Mapping):
                yield f"{indent}BeginSection {name}\n"
                yield from _section_lines(item, depth + 1)
                yield f"{indent}EndSection\n"
                continue
            text = _scalar_text(item)
            if "\n" in text.strip("\n"):
                text = f"{_MULTI_START}\n{text}\n{_MULTI_END}"
            yield f"{indent}{name:<23} {text}\n"
