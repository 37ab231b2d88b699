"""mango's own text about how a volume was made, and the history that it becomes.

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

Histories come from programs of many years, so nothing in a text makes the parser fail, and
nothing in it is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from itertools import chain, count

__all__ = [
    "LEFT_OVER_KEY",
    "MAX_SECTION_DEPTH",
    "History",
    "HistoryValue",
    "history_from_attributes",
    "parse_mango_history",
    "unused_key",
]

#: One history entry, or a part of one: what JSON can hold.
HistoryValue = str | bool | int | float | list["HistoryValue"] | dict[str, "HistoryValue"] | None

#: The history of a volume: entries by their key, ``YYYYMMDD_HHMMSS_<name>``.
History = dict[str, HistoryValue]

#: Lines that are no part of the structure (a stray ``EndSection``) are kept under this key.
LEFT_OVER_KEY = "_log_text"

#: Sections nested deeper stay text. mango's go to about ten; JSON readers give up somewhere.
MAX_SECTION_DEPTH = 32

_MULTI_START = "__start_multi_string__"
_MULTI_END = "__end_multi_string__"
_LOG_LINE = re.compile(r"([A-Za-z][\w ]*):(?:\s+(.*))?")
_BRACKETED = re.compile(r"<([^<>]*)>")
_ALL_BRACKETED = re.compile(r"(?:<[^<>]*>\s*)+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]*(?:[eE][+-]?[0-9]{1,4})?")


def unused_key(key: str, taken: Container[str]) -> str:
    """Return a key of the history that replaces none: entries may come in the same second.

    Examples
    --------
    >>> unused_key("20261124_120000_set_id", {"20261124_120000_set_id"})
    '20261124_120000_set_id_2'
    """
    return next(k for k in chain([key], (f"{key}_{n}" for n in count(2))) if k not in taken)


def parse_mango_history(text: str) -> dict[str, HistoryValue]:
    r"""Return the parameters that a text of mango's holds, sections as nested dicts.

    Values stay text, except for ``True`` and ``False``, and for several values in angle brackets,
    which become a list (of numbers where they are such). One value in angle brackets loses them.
    A key or a section that occurs again in its section makes a list of all its values. A text
    without sections whose lines are ``key: value`` is read as such.

    Nothing is an error: what does not fit is kept, under `LEFT_OVER_KEY` of its section, and a
    section nested deeper than `MAX_SECTION_DEPTH` stays text.

    Examples
    --------
    >>> parse_mango_history("fast True\nBeginSection Run\n  size <3><4.5>\nEndSection\n")
    {'fast': True, 'Run': {'size': [3, 4.5]}}
    """
    lines = text.strip("\0").split("\n")
    if _is_log(lines):
        return _parse_log(lines)
    return _parse_sections(iter(lines))


def history_from_attributes(
    attributes: Mapping[str, str], *, parse_history: bool = True
) -> History:
    """Return the history that the attributes of a netCDF file hold.

    The pair ``history_<id>`` (parameters) and ``history_<id>_output`` (log), either of which may
    be missing or empty, becomes ``{<id>: {"parameters": {...}, "output": str}}``, in the order of
    the file. The log stays text. A bare ``history``, which general netCDF tools write, becomes
    the output of an entry ``history``.

    Parameters
    ----------
    attributes
        The file's attributes; those that are no history are passed over.
    parse_history
        False leaves the parameters as the text that they are.

    Examples
    --------
    >>> history_from_attributes({"history_1_tomo": "a 1", "history_1_tomo_output": "done"})
    {'1_tomo': {'parameters': {'a': '1'}, 'output': 'done'}}
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
    """Return the entry's id and whether the attribute is its output.

    An id may itself end in ``_output``; then the attribute has an output of its own.
    """
    stem = key.removesuffix("_output")
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


def _parse_log(lines: list[str]) -> dict[str, HistoryValue]:
    section = _Section()
    for line in lines:
        match = _LOG_LINE.fullmatch(line.strip())
        if match:
            section.add(match[1].strip(), _parse_value(match[2] or ""))
        elif line.strip():
            section.keep(line)
    return section.values


def _parse_sections(lines: Iterator[str]) -> dict[str, HistoryValue]:
    # A stack instead of recursion: the depth of a file is not a reason to fail.
    stack = [_Section()]
    for line in lines:
        key, rest = _split_line(line)
        if not key:
            continue
        if key == "BeginSection":
            if len(stack) > MAX_SECTION_DEPTH:
                stack[-1].add(rest, _text_of_section(lines))
                continue
            section = _Section()
            stack[-1].add(rest, section.values)
            stack.append(section)
        elif key == "EndSection" and len(stack) > 1:
            stack.pop()
        elif key == "EndSection":
            stack[-1].keep(line)
        elif rest.startswith(_MULTI_START):
            value, tail = _multi_line_value(rest.removeprefix(_MULTI_START), lines)
            stack[-1].add(key, value)
            if tail:
                stack[-1].keep(tail)
        else:
            stack[-1].add(key, _parse_value(rest))
    return stack[0].values


def _split_line(line: str) -> tuple[str, str]:
    words = line.strip().split(None, 1)
    return words[0] if words else "", words[1] if len(words) > 1 else ""


def _multi_line_value(first: str, lines: Iterator[str]) -> tuple[str, str]:
    """Return the text up to the end marker, or to the end where there is none, and what follows.

    `first` is the remainder of the line that holds the start marker.
    """
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
    """Return the lines up to the ``EndSection`` that belongs to a section begun before."""
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


class _Section:
    """The values of one section while it is read, and which of its keys occurred again."""

    def __init__(self) -> None:
        self.values: dict[str, HistoryValue] = {}
        self._repeated: dict[str, list[HistoryValue]] = {}

    def add(self, key: str, value: HistoryValue) -> None:
        if key not in self.values:
            self.values[key] = value
        elif key in self._repeated:
            self._repeated[key].append(value)
        else:
            self._repeated[key] = [self.values[key], value]
            self.values[key] = self._repeated[key]

    def keep(self, line: str) -> None:
        if LEFT_OVER_KEY in self._repeated:
            self._repeated[LEFT_OVER_KEY].append(line.strip())
        elif LEFT_OVER_KEY in self.values:
            self.add(LEFT_OVER_KEY, line.strip())
        else:
            self.values[LEFT_OVER_KEY] = self._repeated[LEFT_OVER_KEY] = [line.strip()]
