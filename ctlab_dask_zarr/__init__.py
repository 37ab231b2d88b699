"""Write and read large CT volumes as committed, sharded OME-Zarr, on dask."""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctlab_dask_zarr.api.add import add_levels as add_levels
    from ctlab_dask_zarr.api.add import labels_to_zarr as labels_to_zarr
    from ctlab_dask_zarr.api.export import dataset_to_netcdf as dataset_to_netcdf
    from ctlab_dask_zarr.api.export import dataset_to_raw as dataset_to_raw
    from ctlab_dask_zarr.api.export import dataset_to_tiff as dataset_to_tiff
    from ctlab_dask_zarr.api.export import export_dataset as export_dataset
    from ctlab_dask_zarr.api.mending import repair as repair
    from ctlab_dask_zarr.api.mending import seal as seal
    from ctlab_dask_zarr.api.stores import Problems as Problems
    from ctlab_dask_zarr.api.stores import abort as abort
    from ctlab_dask_zarr.api.stores import check_source as check_source
    from ctlab_dask_zarr.api.stores import pull as pull
    from ctlab_dask_zarr.api.stores import push as push
    from ctlab_dask_zarr.api.stores import status as status
    from ctlab_dask_zarr.api.stores import verify as verify
    from ctlab_dask_zarr.api.write import WriteResult as WriteResult
    from ctlab_dask_zarr.api.write import commit as commit
    from ctlab_dask_zarr.api.write import dataset_to_zarr as dataset_to_zarr
    from ctlab_dask_zarr.api.write import plan as plan
    from ctlab_dask_zarr.api.write import write_dataset as write_dataset
    from ctlab_dask_zarr.api.writer import ZarrWriter as ZarrWriter
    from ctlab_dask_zarr.api.writer import zarr_writer as zarr_writer
    from ctlab_dask_zarr.dataset import Dataset as Dataset
    from ctlab_dask_zarr.demo import synthetic_volume as synthetic_volume
    from ctlab_dask_zarr.demo import write_mango_netcdf as write_mango_netcdf
    from ctlab_dask_zarr.errors import BlockError as BlockError
    from ctlab_dask_zarr.errors import ClusterError as ClusterError
    from ctlab_dask_zarr.errors import CTLabError as CTLabError
    from ctlab_dask_zarr.errors import DatasetNotFoundError as DatasetNotFoundError
    from ctlab_dask_zarr.errors import DestinationExistsError as DestinationExistsError
    from ctlab_dask_zarr.errors import IncompleteDatasetError as IncompleteDatasetError
    from ctlab_dask_zarr.errors import IncompleteSourceError as IncompleteSourceError
    from ctlab_dask_zarr.errors import InvalidArgumentError as InvalidArgumentError
    from ctlab_dask_zarr.errors import MetadataError as MetadataError
    from ctlab_dask_zarr.errors import MissingExtraError as MissingExtraError
    from ctlab_dask_zarr.errors import ShardDecodeError as ShardDecodeError
    from ctlab_dask_zarr.errors import StagingExistsError as StagingExistsError
    from ctlab_dask_zarr.errors import StorageError as StorageError
    from ctlab_dask_zarr.errors import UnsupportedFormatError as UnsupportedFormatError
    from ctlab_dask_zarr.errors import VerificationError as VerificationError
    from ctlab_dask_zarr.errors import VoxelSizeError as VoxelSizeError
    from ctlab_dask_zarr.errors import WriteFailedError as WriteFailedError
    from ctlab_dask_zarr.errors import WriteStoppedError as WriteStoppedError
    from ctlab_dask_zarr.execution.clusters import cluster_from_config as cluster_from_config
    from ctlab_dask_zarr.execution.clusters import cluster_resources as cluster_resources
    from ctlab_dask_zarr.execution.progress import Progress as Progress
    from ctlab_dask_zarr.execution.stopping import Stop as Stop
    from ctlab_dask_zarr.export.staged import ExportResult as ExportResult
    from ctlab_dask_zarr.formats.codecs import array_kwargs as array_kwargs
    from ctlab_dask_zarr.formats.datatype import DataType as DataType
    from ctlab_dask_zarr.formats.history import History as History
    from ctlab_dask_zarr.formats.ome import OMEZarrVersion as OMEZarrVersion
    from ctlab_dask_zarr.formats.problems import Problem as Problem
    from ctlab_dask_zarr.formats.units import VoxelUnit as VoxelUnit
    from ctlab_dask_zarr.manage.discard import AbortResult as AbortResult
    from ctlab_dask_zarr.manage.edit import MetadataEdit as MetadataEdit
    from ctlab_dask_zarr.manage.edit import edit_metadata as edit_metadata
    from ctlab_dask_zarr.manage.edit import plan_edit as plan_edit
    from ctlab_dask_zarr.manage.status import PartStatus as PartStatus
    from ctlab_dask_zarr.manage.status import WriteStatus as WriteStatus
    from ctlab_dask_zarr.manage.transfer import CopyResult as CopyResult
    from ctlab_dask_zarr.opening import dataset_from_netcdf as dataset_from_netcdf
    from ctlab_dask_zarr.opening import dataset_from_zarr as dataset_from_zarr
    from ctlab_dask_zarr.planning.plan import WritePlan as WritePlan
    from ctlab_dask_zarr.planning.rechunk import Resources as Resources
    from ctlab_dask_zarr.settings import Setting as Setting
    from ctlab_dask_zarr.settings import settings_in_force as settings_in_force
    from ctlab_dask_zarr.verification.repairs import RepairResult as RepairResult
    from ctlab_dask_zarr.verification.sealing import SealResult as SealResult
    from ctlab_dask_zarr.views.compatibility import ReaderReport as ReaderReport
    from ctlab_dask_zarr.views.compatibility import check_readers as check_readers
    from ctlab_dask_zarr.views.info import DatasetInfo as DatasetInfo
    from ctlab_dask_zarr.views.info import info as info
    from ctlab_dask_zarr.views.neuroglancer import serve_store as serve_store
    from ctlab_dask_zarr.views.preview import preview as preview
    from ctlab_dask_zarr.write.staging.commit import CommitResult as CommitResult

#: The public names, by the module that has them. A test holds the imports above and docs/api.md
#: against this list.
_HOMES = {
    "api.add": "add_levels labels_to_zarr",
    "api.export": "dataset_to_netcdf dataset_to_raw dataset_to_tiff export_dataset",
    "api.mending": "repair seal",
    "api.stores": "Problems abort check_source pull push status verify",
    "api.write": "WriteResult commit dataset_to_zarr plan write_dataset",
    "api.writer": "ZarrWriter zarr_writer",
    "dataset": "Dataset",
    "opening": "dataset_from_netcdf dataset_from_zarr",
    "demo": "synthetic_volume write_mango_netcdf",
    "errors": (
        "BlockError CTLabError ClusterError DatasetNotFoundError DestinationExistsError "
        "IncompleteDatasetError IncompleteSourceError InvalidArgumentError MetadataError "
        "MissingExtraError ShardDecodeError StagingExistsError StorageError "
        "UnsupportedFormatError VerificationError VoxelSizeError WriteFailedError "
        "WriteStoppedError"
    ),
    "execution.clusters": "cluster_from_config cluster_resources",
    "execution.progress": "Progress",
    "execution.stopping": "Stop",
    "export.staged": "ExportResult",
    "formats.codecs": "array_kwargs",
    "formats.datatype": "DataType",
    "formats.history": "History",
    "formats.ome": "OMEZarrVersion",
    "formats.problems": "Problem",
    "formats.units": "VoxelUnit",
    "manage.discard": "AbortResult",
    "manage.edit": "MetadataEdit edit_metadata plan_edit",
    "manage.status": "PartStatus WriteStatus",
    "manage.transfer": "CopyResult",
    "planning.plan": "WritePlan",
    "planning.rechunk": "Resources",
    "settings": "Setting settings_in_force",
    "verification.repairs": "RepairResult",
    "verification.sealing": "SealResult",
    "views.compatibility": "ReaderReport check_readers",
    "views.info": "DatasetInfo info",
    "views.neuroglancer": "serve_store",
    "views.preview": "preview",
    "write.staging.commit": "CommitResult",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line has to start quickly.

    Functions get the explanation of keywords that they do not take.
    """
    if name not in _MODULES and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_MODULES.get(name, '_version')}")
    value = getattr(home, name)
    if isinstance(value, FunctionType):
        from ctlab_dask_zarr.arguments import explains_keywords

        value = explains_keywords(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
