"""A dataset as HTML, for notebooks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from html import escape
from math import prod
from typing import Any

from PIL import Image

from ctlab_dask_zarr.codec.values import contrast_of, valid_voxels
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.text import nbytes_text, shown, table
from ctlab_dask_zarr.views.slices import array_of, extents_of, grey_levels, levels_of, read_slice
from ctlab_dask_zarr.volume import Volume

#: A picture is made only if this many bytes of voxels or fewer have to be decoded for it: the inner
#: chunks that the middle slice of the coarsest level crosses.
PICTURE_NBYTES = 32 << 20
_PICTURE_PIXELS = 160
_N_HISTORY = 3


def dataset_card(volume: Volume) -> str:
    """Return a dataset as an HTML table with a small picture; nothing of its graph is computed.

    The picture is the middle slice along the first axis, from the coarsest level of the store that
    the dataset was opened from. There is no picture for netCDF, for computed data, or if more than
    32 MiB would have to be decoded.
    """
    unit = str(volume.voxel_unit)
    data = volume.data
    rows = [
        ("shape", f"{_by(volume.shape)} ({', '.join(volume.dimension_names)})"),
        ("size", f"{volume.dtype}, {nbytes_text(data.nbytes)}"),
        ("type", "not known" if volume.datatype is None else str(volume.datatype)),
        ("voxel", f"{_by(volume.voxel_size)} {unit}"),
        ("field of view", f"{_by(extents_of(volume))} {unit}"),
        ("blocks", f"{data.npartitions:,} of {_by(c[0] for c in data.chunks)}"),
    ]
    if len(volume.levels) > 1:
        rows.append(("levels", ", ".join(_by(level.shape) for level in volume.levels)))
    rows.append(("source", _source(volume.source)))
    if volume.dataset_id:
        rows.append(("identifier", volume.dataset_id))
    return (
        '<div style="display:flex;align-items:flex-start;gap:12px">'
        f"<div>{table(rows)}{_history(volume)}</div>{_picture(volume)}</div>"
    )


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{n:,}" if isinstance(n, int) else f"{n:.6g}" for n in numbers)


def _source(source: Any) -> str:
    if not hasattr(source, "location"):
        return "memory"
    return ": ".join(filter(None, (source.location, source.facts().get("files"))))


def _history(volume: Volume) -> str:
    history = volume.history
    if not history:
        return ""
    # In the order in which they were added: not all keys begin with a time.
    newest = list(history)[-_N_HISTORY:][::-1]
    entries = "".join(
        f"<details><summary>{escape(shown(key))}</summary>"
        f"<pre>{escape(shown(_shortened(history[key])))}</pre>"
        "</details>"
        for key in newest
    )
    title = f"history: {len(history)} entries" if len(history) > 1 else "history: one entry"
    if len(history) > len(newest):
        title += f", the newest {len(newest)}"
    return f"<details><summary>{title}</summary>{entries}</details>"


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
    return text if len(text) < 2000 else f"{text[:2000]} ..."


def _picture(volume: Volume) -> str:
    """Return the picture as an HTML image with its data; '' if there is none."""
    if not isinstance(volume.source, ZarrSource):
        return ""
    try:
        coarsest = levels_of(volume)[-1]
        array = array_of(volume, coarsest)
        if _decoded_nbytes(array) > PICTURE_NBYTES:
            return ""
        plane = read_slice(volume, coarsest, array, 0 if array.ndim == 3 else None).voxels
    except (OSError, ValueError):
        # A card shows what is known, even if shards are missing or damaged.
        return ""
    contrast = contrast_of(plane, volume.mask_value)
    grey = grey_levels(plane, valid_voxels(plane, volume.mask_value), contrast)
    picture = Image.fromarray(grey)
    picture.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img alt="middle slice" src="{address}" style="margin:4px">'


def _decoded_nbytes(volume: ZarrSource) -> int:
    """Return the size of the inner chunks that the middle slice goes through, in bytes."""
    stored = volume.stored
    thickness = stored.inner_chunk_shape[0] if volume.ndim == 3 else volume.shape[0]
    if not stored.is_direct:
        thickness = stored.object_shape[0]
    return thickness * prod(volume.shape[1:]) * volume.dtype.itemsize
