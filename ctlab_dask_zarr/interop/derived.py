"""A volume that is made of another one: with an identifier, and an entry in its history."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ctlab_dask_zarr.formats.history import HistoryValue, unused_key
from ctlab_dask_zarr.volume import Volume


def derived(
    volume: Volume,
    name: str,
    entry: Mapping[str, HistoryValue],
    *,
    history_key: str | None = None,
    **changes: Any,
) -> Volume:
    """Return a volume with `changes`, as of `Volume.from_modified`, that says what was done.

    `name` ends the key of the `entry`, which begins with the time, and the identifier.
    """
    key = history_key or unused_key(f"{datetime.now():%Y%m%d_%H%M%S}_{name}", volume.history)
    return Volume.from_modified(
        volume, history_entry=dict(entry), history_key=key, dataset_id_suffix=name, **changes
    )


def of_volume(volume: Volume) -> dict[str, HistoryValue]:
    """Return what an entry says of the volume that another one is made of."""
    return {} if volume.dataset_id is None else {"dataset_id": volume.dataset_id}


def facts_of(volume: Volume) -> dict[str, Any]:
    """Return what is known of a volume, but for its source, as arguments of `Volume`."""
    names = (
        *("dimension_names", "voxel_unit", "voxel_size", "datatype", "history", "dataset_id"),
        *("extra_attrs", "origin", "is_discrete"),
    )
    return {name: getattr(volume, name) for name in names}
