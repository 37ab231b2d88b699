"""A dataset and a plan as HTML, for notebooks."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from math import prod
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.text import nbytes_text, shown, table

if TYPE_CHECKING:
    from ctlab_dask_zarr.volume import Volume

__all__ = ["dataset_card"]

#: A picture is made only where no more voxels than this have to be decoded for it: those of the
#: inner chunks that the middle slice of the coarsest level goes through.
PICTURE_NBYTES = 32 << 20
_PICTURE_PIXELS = 160
_N_HISTORY = 3


def dataset_card(dataset: Volume) -> str:
    """Return a dataset as an HTML table with a small picture; nothing of a graph is computed.

    The picture is the middle slice, along the first axis, of the coarsest level of the store that
    the dataset was opened from. There is none of a dataset that was computed, of netCDF, nor where
    more than 32 MiB would have to be decoded.
    """
    size = zip(dataset.shape, dataset.voxel_size, strict=True)
    unit = str(dataset.voxel_unit)
    data = dataset.data
    rows = [
        ("shape", f"{_by(dataset.shape)} ({', '.join(dataset.dimension_names)})"),
        ("size", f"{dataset.dtype}, {nbytes_text(data.nbytes)}"),
        ("type", "not known" if dataset.datatype is None else str(dataset.datatype)),
        ("voxel", f"{_by(dataset.voxel_size)} {unit}"),
        ("field of view", f"{_by(n * v for n, v in size)} {unit}"),
        ("blocks", f"{data.npartitions:,} of {_by(c[0] for c in data.chunks)}"),
    ]
    if len(dataset.levels) > 1:
        rows.append(("levels", ", ".join(_by(level.shape) for level in dataset.levels)))
    rows.append(("source", _source(dataset.source)))
    if dataset.dataset_id:
        rows.append(("identifier", dataset.dataset_id))
    picture = _picture(dataset)
    image = f'<img alt="middle slice" src="{picture}" style="margin:4px">' if picture else ""
    return (
        '<div style="display:flex;align-items:flex-start;gap:12px">'
        f"<div>{table(rows)}{_history(dataset)}</div>{image}</div>"
    )


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{n:,}" if isinstance(n, int) else f"{n:.6g}" for n in numbers)


def _source(source: Any) -> str:
    from ctlab_dask_zarr.read.netcdf_volume import NetCDFVolume

    if isinstance(source, NetCDFVolume):
        names = [block.name for block in source.blocks]
        if len(names) == 1:
            return os.path.join(source.folder, names[0])
        return f"{source.folder}: {names[0]} to {names[-1]}, {len(names):,} files"
    path = getattr(source, "path", None)
    return "memory" if path is None else str(path)


def _history(dataset: Volume) -> str:
    history = dataset.history
    if not history:
        return ""
    # In the order in which they came: keys of some programs begin with no time.
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


def _picture(dataset: Volume) -> str | None:
    """Return the picture as an address that holds it, or None where there is none."""
    from ctlab_dask_zarr.read.zarr import ZarrVolume
    from ctlab_dask_zarr.views.slices import dataset_levels

    if not isinstance(dataset.source, ZarrVolume):
        return None
    try:
        volume = dataset_levels(dataset)[-1].array
        if not isinstance(volume, ZarrVolume) or _decoded_nbytes(volume) > PICTURE_NBYTES:
            return None
        return _png(volume, dataset.mask_value)
    except (OSError, ValueError):
        # A card is to show what is known, and not to fail where shards are missing or damaged.
        return None


def _decoded_nbytes(volume: Any) -> int:
    stored = volume.stored
    thickness = stored.inner_chunk_shape[0] if volume.ndim == 3 else volume.shape[0]
    if not stored.is_direct:
        thickness = stored.object_shape[0]
    return int(thickness * prod(volume.shape[1:]) * volume.dtype.itemsize)


def _png(volume: Any, mask_value: Any) -> str:
    import numpy as np
    from PIL import Image

    from ctlab_dask_zarr.codec.sample import grey_range
    from ctlab_dask_zarr.views.slices import valid_voxels

    whole: Sequence[slice] = [slice(0, n) for n in volume.shape[-2:]]
    middle = (slice(volume.shape[0] // 2, volume.shape[0] // 2 + 1),) if volume.ndim == 3 else ()
    plane = volume[(*middle, *whole)].reshape(volume.shape[-2:])
    valid = valid_voxels(plane, mask_value)
    low, high = grey_range(plane[valid])
    grey = np.clip((np.where(valid, plane, low).astype(float) - low) / (high - low), 0, 1) * 255
    picture = Image.fromarray(np.where(valid, grey, 0).astype(np.uint8))
    picture.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
