"""Public functions for existing stores: verify, copy, ask how far a write is, abort it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    Starting,
    reported,
    source_to_compare,
    started,
)
from ctlab_dask_zarr.execution.progress import Progress, counted
from ctlab_dask_zarr.execution.scheduler import current_client, waiting_for
from ctlab_dask_zarr.execution.stopping import Stop, compute_until
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.manage.discard import AbortResult, abort_write
from ctlab_dask_zarr.manage.status import WriteStatus, write_status
from ctlab_dask_zarr.manage.transfer import CopyResult, copy_dataset
from ctlab_dask_zarr.planning.resolve import existing_write, resolve_destination
from ctlab_dask_zarr.read.source import open_to_compare
from ctlab_dask_zarr.store.store import storage_options_in_force
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.verification.checks import Verification
from ctlab_dask_zarr.verification.files import are_files, prepare_file_comparison
from ctlab_dask_zarr.verification.source import prepare_source_check
from ctlab_dask_zarr.verification.verify import prepare_verification
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.waits import opening

if TYPE_CHECKING:
    from ctlab_dask_zarr.write.repairing import Repairing


class Problems(list[Problem]):
    """A list of everything that is wrong (`Problem`); it is empty if nothing is.

    Attributes
    ----------
    scope
        What was verified, as text: ``'every byte verified'``.
    count_text
        The number of problems, as text: ``'1 problem'``.
    """

    def __init__(self, problems: Iterable[Problem] = (), scope: str = "") -> None:
        super().__init__(problems)
        self.scope = scope

    @property
    def count_text(self) -> str:
        """The number of problems, as text."""
        return "1 problem" if len(self) == 1 else f"{len(self)} problems"


def verify(
    path: str | os.PathLike[str],
    source: Volume | str | os.PathLike[str] | None = None,
    *,
    checksums: bool = True,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Problems:
    """Return everything that is wrong with a dataset; an empty list if nothing is.

    The metadata must follow the rules of OME-Zarr 0.5 and mango, every shard must be there and
    nothing else, and every inner chunk must decode. What this package wrote is also compared with
    the checksums of its commit, which cover every byte.

    Parameters
    ----------
    path
        The store; or files of another format that were exported, if there is a `source`.
    source
        What it was made from, to compare every voxel and the metadata with; of files, shape, type
        and voxel size. The source itself is compared with its own checksums: MD5 of mango netCDF,
        receipts of a Zarr store.
    checksums
        False checks only documents, sizes and the index of each shard, and reads no voxels.
    client, progress, stop, storage_options
        As in `dataset_to_zarr`.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at `path`, or at `source`.
    UnsupportedFormatError, MetadataError, IncompleteSourceError, IncompleteDatasetError
        `source` cannot be opened. If `path` cannot, that is returned as a problem.
    InvalidArgumentError
        `source` is the dataset itself; or `storage_options`, or a URL, holds a credential.
    StorageError
        An object store does not answer, or refuses access.
    WriteStoppedError, ClusterError
        `stop` ended it; a `ClusterError` if the same time would not be enough another time either.

    Warns
    -----
    UserWarning
        The source keeps no checksums, or lacks objects that are read as fill values.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, verify
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> dataset_to_zarr(ds, folder.name + "/scan.zarr")
    >>> problems = verify(folder.name + "/scan.zarr", ds)
    >>> problems, problems.scope
    ([], 'every byte verified')
    >>> folder.cleanup()
    """
    with storage_options_in_force(storage_options):
        volume, starting = source_to_compare(source), Starting(client)
        with reported(progress, noun="checks"):
            if volume is not None and are_files(path):
                checks = prepare_file_comparison(path, volume)
                starting.start()
            else:
                with opening(path):
                    checks = prepare_verification(
                        path, volume, checksums=checksums, resources=starting.resources
                    )
            for note in checks.notes:
                warnings.warn(shown(note), stacklevel=3)
            reading = f"{os.fspath(path)} was not verified to the end"
            found = computed(checks, starting.client, progress, stop, reading)
            return Problems(checks.problems + found, checks.scope)


def check_source(
    source: Volume | str | os.PathLike[str],
    *,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
) -> Problems:
    """Compare the files that a dataset was opened from with the checksums stored with them.

    These are the MD5 of mango netCDF, and the receipts of a Zarr store of this package. Other
    sources have none, and a warning says so.

    Parameters
    ----------
    source
        The dataset that would be written, or its path.
    client, progress, stop
        As in `dataset_to_zarr`.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, check_source, dataset_to_zarr
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr")
    ...     check_source(folder + "/scan.zarr")
    []
    """
    volume = open_to_compare(source) if isinstance(source, str | os.PathLike) else source
    checks = prepare_source_check(volume)
    for note in checks.notes:
        warnings.warn(shown(note), stacklevel=3)
    reading = "the source was being checked, and nothing is begun; give the same command again"
    with reported(progress, noun="checks"):
        found = computed(checks, started(client), progress, stop, reading)
        return Problems(checks.problems + found)


def computed(
    checks: Verification | Repairing,
    client: Any,
    progress: ProgressSink,
    stop: Stop | None,
    reading: str,
) -> list[Any]:
    """Return what checks find; `reading` says what it means that they were stopped."""
    total = Progress(len(checks.keys), checks.nbytes, 0)
    client = client or current_client()
    with (
        waiting_for(checks.graph, client),
        reported(progress, client, "checks") as tell,
        counted(checks.graph, total, client, tell=tell),
    ):
        if client is None:
            return list(checks.graph.compute())
        return list(compute_until(checks.graph, client, stop, reading=reading))


def status(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> WriteStatus:
    """Return how far the write of a dataset is, read from its staging folder; nothing is changed.

    This works on any machine that sees the folder; the writing processes are not asked.

    Parameters
    ----------
    path
        The destination of the write; ``scan.zarr/labels/phases`` for labels.
    storage_options
        As in `dataset_to_zarr`.

    Raises
    ------
    IncompleteDatasetError
        No write is under way, and no dataset of this package is there.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, status
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr", chunks=32, shards=32**3, part=(1, 2))
    ...     found = status(folder + "/scan.zarr")
    >>> found.n_done, found.n_shards, found.is_committed
    (12, 24, False)
    """
    with storage_options_in_force(storage_options), opening(path):
        return write_status(existing_write(path))


def abort(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> AbortResult:
    """Remove what an interrupted write or copy to `path` has left; a committed dataset stays.

    Make sure that no write or copy to `path` is running. Uploads to S3 that were cut off cost as
    much as objects and are not listed; they are ended too, if botocore is installed.

    Parameters
    ----------
    path
        The destination of the write; ``scan.zarr/labels/phases`` for labels.
    storage_options
        As in `dataset_to_zarr`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     abort(folder + "/scan.zarr").was_staged
    False
    """
    with storage_options_in_force(storage_options):
        return abort_write(existing_write(path))


def push(
    source: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    progress: ProgressSink = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CopyResult:
    """Copy a committed store to an object store, or to another folder.

    Every object is compared with the checksums of the commit and with what was received. The
    destination is not readable as a dataset before the copy is complete. After an interruption,
    the same call continues it.

    Parameters
    ----------
    source
        The store, local or not.
    url
        The destination. Only what an interrupted copy of the same store has left may be there.
    progress, storage_options
        As in `dataset_to_zarr`.

    Raises
    ------
    DestinationExistsError, StagingExistsError
        Another dataset is there, or is being written or copied there.
    IncompleteDatasetError
        An object of the source is missing or damaged, or was not received as it was sent.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, push
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr")
    ...     push(folder + "/scan.zarr", folder + "/copy.zarr").n_skipped
    0
    """
    with storage_options_in_force(storage_options):
        destination = resolve_destination(url)
        with reported(progress, noun="stores") as tell:
            nbytes_done = 0

            def on_copied(nbytes: int, total: int) -> None:
                nonlocal nbytes_done
                nbytes_done += nbytes
                if tell is not None:
                    tell(Progress(1, total, nbytes_done))

            return copy_dataset(os.fspath(source), destination, on_copied)


def pull(
    url: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    progress: ProgressSink = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CopyResult:
    """Copy a committed store from a URL to a folder: `push` in the other direction.

    An https:// URL cannot be listed; there the store's own documents say which objects it has.
    """
    return push(url, path, progress=progress, storage_options=storage_options)
