"""In what a write that is there differs from the one that would go on with it."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

__all__ = ["identity_difference", "requested_difference", "source_difference"]

#: Characters of a value that a message shows.
_MAX_SHOWN = 100


def identity_difference(found: Any, wanted: str) -> str:
    """Name the first thing in which two identities differ, and nothing around it.

    Examples
    --------
    >>> import json
    >>> one = {"arrays": [{"path": "0"}], "datatype": "tomo", "source": {"size": 3}}
    >>> other = one | {"source": {"size": 4}}
    >>> identity_difference(json.dumps(one), json.dumps(other))
    'source.size was 3 and is now 4'
    """
    if not isinstance(found, str):
        return "it does not say what was being written"
    # The first two explain further differences.
    before, now = (
        {"levels": len(identity["arrays"]), "datatype": identity["datatype"]} | identity
        for identity in (json.loads(found), json.loads(wanted))
    )
    place, *values = _first_difference(before, now, "")
    if place.startswith("source"):
        return source_difference(before["source"], wanted)
    return _change(place, *values)


def source_difference(found: Any, wanted: str) -> str:
    """Name in what a source differs from that of an identity; '' where it does not, or is not told.

    Examples
    --------
    >>> source_difference({"kind": "zarr", "root": "a"}, '{"source": {"kind": "netCDF"}}')
    "source.kind was 'zarr' and is now 'netCDF'"
    """
    now = json.loads(wanted)["source"]
    if not isinstance(found, dict) or found == now:
        return ""
    change = _change(*_first_difference(found, now, "source"))
    if found.get("kind") == "dask":
        name = found.get("name")
        change += f": if the voxels are the same, say so by Dataset(..., identity={name!r})"
    return change


def _first_difference(before: Any, now: Any, place: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        # A codec of another name has another configuration too, a source of another kind as well.
        for key in sorted(before | now, key=lambda key: key not in ("kind", "name")):
            if before.get(key) != now.get(key):
                return _first_difference(
                    before.get(key), now.get(key), f"{place}.{key}".lstrip(".")
                )
    if isinstance(before, list) and isinstance(now, list):
        for n, (b, w) in enumerate(zip_longest(before, now)):
            if b != w:
                return _first_difference(b, w, f"{place}[{n}]")
    return place, before, now


def requested_difference(found: Any, wanted: Any) -> str:
    """Name everything of the metadata that was asked for otherwise; '' where nothing was.

    Where one does not say what was asked for, as stores of earlier versions, nothing is different.

    Examples
    --------
    >>> requested_difference({"voxel_unit": "um"}, {"voxel_unit": "mm"})
    "voxel_unit was 'um' and is now 'mm'"
    """
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return ""
    changes = [
        _change(key, found.get(key), wanted.get(key))
        for key in found | wanted
        if found.get(key) != wanted.get(key)
    ]
    return ", ".join(changes)


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} was {_shown(before)} and is now {_shown(now)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
