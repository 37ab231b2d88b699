"""Metadata as JSON: parsed, made plain, or refused with its place in the message."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import MetadataError

#: Python's JSON reader fails near 1,000 levels; histories of mango have fewer than ten.
_MAX_DEPTH = 64


def parse_json_object(text: str | bytes, where: str, advice: str = "") -> dict[str, Any]:
    """Parse a text that has to be a JSON object.

    If it is not one, the message of the `MetadataError` begins with `where` and ends with `advice`.
    """
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise MetadataError(f"{where} is not JSON: {error}{advice}") from error
    if not isinstance(document, dict):
        raise MetadataError(f"{where} is not a JSON object{advice}")
    return document


def json_object_or_empty(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one if the text is not an object."""
    try:
        return parse_json_object(text, "")
    except MetadataError:
        return {}


def are_numbers(values: Any, n: int) -> bool:
    """Whether values from JSON are `n` finite numbers in the range of a float."""
    return len(values) == n and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**1023 for v in values
    )


def plain_json(value: Any, where: str, *, depth: int = 0) -> Any:
    """Return a copy of `value` as strict JSON can store it; NumPy scalars and arrays are converted.

    If JSON cannot hold something, the message of the `MetadataError` names its place, such as
    ``history['20250101_000000_tomo']['sigma']``.
    """
    if depth > _MAX_DEPTH:
        raise MetadataError(f"{where} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MetadataError(f"{where} is {value}, which JSON cannot hold: leave it out")
        return float(value)
    if isinstance(value, Mapping):
        plain = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise MetadataError(f"{where} has the key {key!r}; keys have to be text")
            plain[_text(str(key), where)] = plain_json(item, f"{where}[{key!r}]", depth=depth + 1)
        return plain
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_json(v, f"{where}[{n}]", depth=depth + 1) for n, v in enumerate(value)]
    raise MetadataError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: pass text, numbers, "
        "lists or dicts"
    )


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MetadataError(f"{where} holds text that UTF-8 cannot encode: {value!r}") from None
    return str(value)
