"""The source of a command: opened as its options say, and looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import SOURCE
from ctlab_dask_zarr.cli.output import say
from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.text import size_text

if TYPE_CHECKING:
    from ctlab_dask_zarr import Dataset

#: What describes raw voxels without a header.
_RAW = ("shape", "dtype", "byte_order", "offset")


def given_source_options(options: dict[str, Any]) -> list[str]:
    """Return the options that were given to correct what a source says, by their names."""
    return [f"--{name.replace('_', '-')}" for name in SOURCE if options[name] is not None]


def open_source(
    source: str, options: dict[str, Any], *, to_compare: bool = False, slabs: bool = False
) -> Dataset:
    """Open the source; take out the options that correct what it says about itself.

    A source that is only compared may lack a voxel size; one that becomes files is best read in
    `slabs`.
    """
    from ctlab_dask_zarr import Dataset, VoxelSizeError

    size, said = options.pop("voxel_size") or (None, None)
    unit, is_sure = options.pop("voxel_unit") or said, options.pop("yes")
    datatype, dataset_id = options.pop("datatype"), options.pop("dataset_id")
    names = ("filetype", "level", "slices", "pattern", *_RAW)
    own = {name: options.pop(name, None) for name in names}
    given = {name: value for name, value in own.items() if value is not None}
    if given.keys() & set(_RAW):
        # A file without a header can have any name.
        given["filetype"] = "raw"
    given["datatype"] = datatype
    if slabs:
        given["chunks"] = "slabs"
    try:
        dataset = Dataset.from_path(source, voxel_size=size, voxel_unit=unit, **given)
    except VoxelSizeError:
        if not to_compare:
            raise
        dataset = Dataset.from_path(source, voxel_size=1.0, voxel_unit="voxel", **given)
    if size is not None:
        _look_at_size(source, dataset, given, is_sure=bool(is_sure), has_unit=unit is not None)
    crop = options.pop("crop")
    dataset = dataset if crop is None else dataset[crop]
    factor, dtype = options.pop("bin"), options.pop("to")
    dataset = dataset if factor is None else dataset.binned(factor)
    limits = {name: options.pop(name) for name in ("window", "values")}
    if dtype is not None:
        dataset = dataset.rescaled(dtype, **limits)
    elif any(limits.values()):
        raise click.UsageError("--window and --values are for --to: give the type too")
    return Dataset.from_modified(dataset, datatype=datatype, dataset_id=dataset_id)


def _look_at_size(
    source: str, dataset: Dataset, given: dict[str, Any], *, is_sure: bool, has_unit: bool
) -> None:
    """Tell the unit that a bare number gets, and refuse a size of another magnitude."""
    from ctlab_dask_zarr import Dataset

    chosen = size_text(dataset.voxel_size, dataset.voxel_unit)
    if not has_unit:
        say(f"--voxel-size is taken in the unit of the source: {chosen}", err=True)
    if is_sure or dataset.voxel_unit == "voxel":
        return
    try:
        own = Dataset.from_path(source, **given)
    except MetadataError:
        # It says none, or none that can be.
        return
    if own.voxel_unit == "voxel":
        return
    sizes = zip(dataset.voxel_size, own.voxel_size_with_unit(dataset.voxel_unit), strict=True)
    if any(not 0.1 < new / old < 10 for new, old in sizes):
        raise click.UsageError(
            f"--voxel-size says {chosen}, and {source} itself "
            f"{size_text(own.voxel_size, own.voxel_unit)}: if the first is right, add --yes"
        )
