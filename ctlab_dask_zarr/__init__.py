"""Write and read large CT volumes as committed, sharded OME-Zarr, on dask."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctlab_dask_zarr.additions import add_levels, labels_to_zarr
    from ctlab_dask_zarr.api import commit, dataset_to_zarr, plan
    from ctlab_dask_zarr.dataset import Dataset, dataset_from_zarr
    from ctlab_dask_zarr.errors import (
        BlockError,
        ClusterError,
        CTLabError,
        DatasetNotFoundError,
        DestinationExistsError,
        IncompleteDatasetError,
        IncompleteSourceError,
        InvalidArgumentError,
        MetadataError,
        MissingExtraError,
        ShardDecodeError,
        StagingExistsError,
        StorageError,
        UnsupportedFormatError,
        VerificationError,
        WriteFailedError,
        WriteStoppedError,
    )
    from ctlab_dask_zarr.execution.cluster import cluster_from_config
    from ctlab_dask_zarr.formats.datatype import DataType
    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.formats.ome import OMEZarrVersion
    from ctlab_dask_zarr.formats.units import VoxelUnit
    from ctlab_dask_zarr.manage.edit import edit_metadata
    from ctlab_dask_zarr.planning.plan import WritePlan
    from ctlab_dask_zarr.verification.verify import verify

__all__ = [
    "BlockError",
    "CTLabError",
    "ClusterError",
    "DataType",
    "Dataset",
    "DatasetNotFoundError",
    "DestinationExistsError",
    "History",
    "IncompleteDatasetError",
    "IncompleteSourceError",
    "InvalidArgumentError",
    "MetadataError",
    "MissingExtraError",
    "OMEZarrVersion",
    "ShardDecodeError",
    "StagingExistsError",
    "StorageError",
    "UnsupportedFormatError",
    "VerificationError",
    "VoxelUnit",
    "WriteFailedError",
    "WritePlan",
    "WriteStoppedError",
    "add_levels",
    "cluster_from_config",
    "commit",
    "dataset_from_zarr",
    "dataset_to_zarr",
    "edit_metadata",
    "labels_to_zarr",
    "plan",
    "verify",
]

_HOMES = {
    "Dataset": "dataset",
    "DataType": "formats.datatype",
    "History": "formats.history",
    "OMEZarrVersion": "formats.ome",
    "VoxelUnit": "formats.units",
    "WritePlan": "planning.plan",
    "add_levels": "additions",
    "cluster_from_config": "execution.cluster",
    "commit": "api",
    "dataset_from_zarr": "dataset",
    "dataset_to_zarr": "api",
    "edit_metadata": "manage.edit",
    "labels_to_zarr": "additions",
    "plan": "api",
    "verify": "verification.verify",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: the command line has to start quickly."""
    if name == "__version__":
        from ctlab_dask_zarr._version import __version__

        globals()[name] = __version__
        return __version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
