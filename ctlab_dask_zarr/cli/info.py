"""``ctlab-zarr info``: what a dataset is, from its metadata alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import with_storage_options

__all__ = ["info_command"]


@click.command("info")
@click.argument("path", type=click.Path())
@with_storage_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info_command(path: str, as_json: bool) -> None:
    """Show what the dataset at PATH is; voxels are not read."""
    with exit_codes():
        facts = _facts(path)
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, list) and name != "levels":
            value = " x ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
        if name == "levels":
            value = ", ".join(" x ".join(map(str, level["shape"])) for level in facts[name])
        if isinstance(value, dict):
            value = ", ".join(value) or "none"
        click.echo(f"{name.replace('_', ' '):<{width}}  {'not known' if value is None else value}")


def _facts(path: str) -> dict[str, Any]:
    from ctlab_dask_zarr.dataset import Dataset

    dataset = Dataset.from_path(path)
    return {
        "path": path,
        "shape": list(dataset.shape),
        "axes": list(dataset.dimension_names),
        "dtype": str(dataset.dtype),
        "datatype": None if dataset.datatype is None else str(dataset.datatype),
        "nbytes": int(dataset.data.nbytes),
        "voxel_size": list(dataset.voxel_size),
        "voxel_unit": str(dataset.voxel_unit),
        "field_of_view": [n * v for n, v in zip(dataset.shape, dataset.voxel_size, strict=True)],
        **_stored_facts(dataset),
        "dataset_id": dataset.dataset_id,
        "history": dataset.history,
    }


def _stored_facts(dataset: Any) -> dict[str, Any]:
    """Return the layout of a Zarr store; of a netCDF source its blocks."""
    from ctlab_dask_zarr.read.zarr import ZarrVolume

    if not isinstance(dataset.source, ZarrVolume):
        return {"format": "mango netCDF", "blocks": list(dataset.data.numblocks)}
    stored = dataset.source.stored
    return {
        "levels": [asdict(level) for level in dataset.levels],
        "format": "Zarr v3, OME-Zarr 0.5" if dataset.source.array_path else "Zarr v3, plain array",
        "shards": list(stored.object_shape) if stored.is_sharded else None,
        "chunks": list(stored.inner_chunk_shape),
        "codecs": [spec.name for spec in stored.codecs] if stored.is_direct else None,
    }
