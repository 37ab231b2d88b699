"""Files of other formats, compared with the dataset that they were exported from."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from ctlab_dask_zarr.errors import (
    CTLabError,
    DatasetNotFoundError,
    UnsupportedFormatError,
    VoxelSizeError,
)
from ctlab_dask_zarr.execution.graphs import add_block_tasks, analyse_source
from ctlab_dask_zarr.execution.progress import topic_of
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.units import VoxelUnit, are_same_sizes
from ctlab_dask_zarr.read.source import in_slabs, kind_of, open_volume
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.verification.checks import Verification
from ctlab_dask_zarr.verification.comparison import native
from ctlab_dask_zarr.verification.source import check_block, prepare_source_check
from ctlab_dask_zarr.volume import Volume


def are_files(path: str | os.PathLike[str]) -> bool:
    """Whether at a path there are files of another format than Zarr, by content or name."""
    root = storage_path(path)
    try:
        return not is_url(root) and os.path.exists(root) and kind_of(root).NAME != "zarr"
    except UnsupportedFormatError:
        return False


def prepare_file_comparison(path: str | os.PathLike[str], source: Volume) -> Verification:
    """Prepare to compare files with their source, and the source with its own checksums."""
    root = storage_path(path)
    data = in_slabs(source).data
    checks = prepare_source_check(source)
    checks.scope = "every voxel compared"
    try:
        found = _opened(root, source)
    except DatasetNotFoundError:
        raise
    except CTLabError as error:
        checks.problems.append(Problem(root, "unreadable", str(error)))
        return checks
    if found.shape == source.shape[1:] and source.shape[0] == 1:
        # Some formats make no difference between an image and a volume of one slice.
        data = data[0]
    facts: dict[str, tuple[Any, Any]] = {
        "shape": (found.shape, tuple(data.shape)),
        "dtype": (native(found.dtype), native(source.dtype)),
    }
    different = {name: pair for name, pair in facts.items() if pair[0] != pair[1]}
    if VoxelUnit.VOXEL not in (found.voxel_unit, source.voxel_unit):
        size = found.voxel_size_with_unit(source.voxel_unit)
        wanted = source.voxel_size[-len(size) :]
        if not are_same_sizes(size, wanted):
            checks.problems.append(_difference(root, "voxel_size", size, wanted))
    if different:
        checks.problems += [_difference(root, name, *pair) for name, pair in different.items()]
        return checks
    assert found.source is not None
    check = partial(check_block, topic_of(checks.token), found.source, source.mask_value)
    name = f"compare-block-{checks.token}"
    checks.keys += add_block_tasks(checks.tasks, analyse_source(data), check, name)
    checks.nbytes += int(source.data.nbytes)
    return checks


def _opened(root: str, source: Volume) -> Volume:
    """Return files as a volume; what they do not say themselves is as in the source."""
    options: dict[str, Any] = {}
    kind = kind_of(root)
    if kind.NAME == "raw" and not kind.can_open(root):
        options = {"shape": list(source.shape), "dtype": native(source.dtype).name}
    try:
        return open_volume(root, **options)
    except VoxelSizeError:
        return open_volume(root, voxel_size=1.0, voxel_unit=VoxelUnit.VOXEL, **options)


def _difference(root: str, name: str, found: object, wanted: object) -> Problem:
    return Problem(root, "metadata", f"{root}: {name} is {found}, the source has {wanted}")
