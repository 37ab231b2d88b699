"""``ctlab-zarr info``: what a dataset is, from its metadata alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.options import with_storage_options
from ctlab_dask_zarr.cli.output import say

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
        say(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        for number, line in enumerate(_lines(name, value, facts["voxel_unit"])):
            title = "" if number else name.replace("_", " ")
            say(f"{title:<{width}}  {line}")


def _lines(name: str, value: Any, voxel_unit: str) -> list[str]:
    """Return a fact for people, one line or several."""
    if value is None:
        return ["not known"]
    if name == "levels":
        return [
            f"{_by(level['shape'])}, voxel {_by(level['voxel_size'])} {voxel_unit}"
            for level in value
        ]
    if name == "labels":
        value = [f"{label['name']} (levels: {label['n_levels']})" for label in value]
    if name in ("axes", "codecs", "history", "labels"):
        return [", ".join(value) or "none"]
    return [_by(value) if isinstance(value, list) else str(value)]


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:.6g}" if isinstance(n, float) else str(n) for n in numbers)


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
    """Return how the source is stored; the labels of a store beside its levels."""
    facts: dict[str, Any] = dataset.source.facts()
    if "levels" not in facts:
        return facts | {"blocks": list(dataset.data.numblocks)}
    return {"levels": facts.pop("levels"), "labels": _label_facts(dataset)} | facts


def _label_facts(dataset: Any) -> list[dict[str, Any]] | None:
    from ctlab_dask_zarr.errors import CTLabError
    from ctlab_dask_zarr.views.labels import read_label_images

    try:
        images = read_label_images(dataset)
    except (CTLabError, OSError) as error:
        # What the image is, is known all the same.
        say(f"the labels cannot be read: {error}", err=True)
        return None
    return [{"name": image.name, "n_levels": len(image.volume.levels)} for image in images]
