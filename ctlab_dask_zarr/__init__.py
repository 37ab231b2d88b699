"""Write and read large CT volumes as committed, sharded OME-Zarr, on dask."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctlab_dask_zarr.api import dataset_from_zarr, dataset_to_zarr, plan
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.errors import (
        CTLabError,
        DatasetNotFoundError,
        DestinationExistsError,
        IncompleteDatasetError,
        IncompleteSourceError,
        InvalidArgumentError,
        MetadataError,
        ShardDecodeError,
        StagingExistsError,
        UnsupportedFormatError,
        WriteFailedError,
    )
    from ctlab_dask_zarr.formats.datatype import DataType
    from ctlab_dask_zarr.formats.history import History
    from ctlab_dask_zarr.formats.ome import OMEZarrVersion
    from ctlab_dask_zarr.formats.units import VoxelUnit
    from ctlab_dask_zarr.write.plan import WritePlan

try:
    __version__ = version("ctlab-dask-zarr")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "CTLabError",
    "DataType",
    "Dataset",
    "DatasetNotFoundError",
    "DestinationExistsError",
    "History",
    "IncompleteDatasetError",
    "IncompleteSourceError",
    "InvalidArgumentError",
    "MetadataError",
    "OMEZarrVersion",
    "ShardDecodeError",
    "StagingExistsError",
    "UnsupportedFormatError",
    "VoxelUnit",
    "WriteFailedError",
    "WritePlan",
    "dataset_from_zarr",
    "dataset_to_zarr",
    "plan",
]

_HOMES = {
    "Dataset": "dataset",
    "DataType": "formats.datatype",
    "History": "formats.history",
    "OMEZarrVersion": "formats.ome",
    "VoxelUnit": "formats.units",
    "WritePlan": "write.plan",
    "dataset_from_zarr": "api",
    "dataset_to_zarr": "api",
    "plan": "api",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: the command line has to start quickly."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
