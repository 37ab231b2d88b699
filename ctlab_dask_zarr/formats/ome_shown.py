"""How an image of another program is shown: what a copy of it keeps of that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ctlab_dask_zarr.formats.json_values import are_numbers
from ctlab_dask_zarr.formats.ome import build_omero


def kept_omero(ome: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ``omero`` of an image of one channel as it is written again.

    Label, colour and contrast are kept. None where there is no contrast, or several channels.
    """
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    channel = channels[0] if isinstance(channels, list) and len(channels) == 1 else None
    window = channel.get("window") if isinstance(channel, Mapping) else None
    if not isinstance(channel, Mapping) or not isinstance(window, Mapping):
        return None
    limits = [window.get(name) for name in ("min", "max", "start", "end")]
    if not are_numbers(limits, 4):
        return None
    low, high, black, white = (float(limit) for limit in limits if limit is not None)
    kept = build_omero(str(channel.get("label") or ""), (low, high), (black, white))
    color = channel.get("color")
    if isinstance(color, str) and re.fullmatch("[0-9A-Fa-f]{6}", color):
        kept["channels"][0]["color"] = color
    return kept


def kept_colors(ome: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """Return the colours of labels, each red, green, blue and opacity, but for wrong ones."""
    label = ome.get("image-label")
    entries = label.get("colors") if isinstance(label, Mapping) else None
    found = []
    for entry in entries if isinstance(entries, list) else []:
        rgba = entry.get("rgba") if isinstance(entry, Mapping) else None
        value = entry.get("label-value") if isinstance(entry, Mapping) else None
        parts = [*rgba, value] if isinstance(rgba, list) and len(rgba) in (3, 4) else [None]
        are_integers = all(isinstance(part, int) and part is not True for part in parts)
        if are_integers and isinstance(rgba, list) and isinstance(value, int):
            found += [(value, rgba)] if all(0 <= part <= 255 for part in rgba) else []
    return found
