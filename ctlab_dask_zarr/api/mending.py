"""Public functions that guard a store against damage, and mend it: seal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ctlab_dask_zarr.api.preparing import Executor, ProgressSink, in_force, reported, started
from ctlab_dask_zarr.api.stores import computed
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.manage.edit import refuse_level, refuse_unfinished
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.read.zarr import read_store_metadata
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.store.store import files_at, storage_options_in_force
from ctlab_dask_zarr.verification.sealing import SealResult, prepare_sealing


def seal(
    path: str | os.PathLike[str],
    *,
    client: Executor = None,
    progress: ProgressSink = None,
    stop: Stop | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> SealResult:
    """Give a store of any writer receipts and checksums, so that later damage is found.

    Every stored object of every level, and of the labels, is read and decoded once; its size and
    its CRC-32C are kept beside its array, as a commit of this package keeps them. From then on
    `verify`, `push` and `pull` compare every byte. No voxel and no document of an array is changed;
    the root documents of the image and of its labels get the attribute ``ctlab_dask_zarr``, at the
    end. Damage from before that still decodes cannot be told from data.

    Parameters
    ----------
    path
        An OME-Zarr 0.5 image or a plain Zarr v3 array, sharded or not, in a folder or an object
        store. Nothing else may write to it meanwhile.
    client, progress, stop, storage_options
        As in `dataset_to_zarr`. A call that is stopped leaves the store as it was; the next one
        begins anew.

    Raises
    ------
    DatasetNotFoundError, MetadataError, UnsupportedFormatError
        There is nothing at `path`, or no image or array that can be read; or it is an https:// URL.
    VerificationError
        Something is missing or cannot be decoded, or a checksum that is there already does not fit;
        each is named, and nothing is sealed.
    InvalidArgumentError
        `path` is a level of an image, or something is being added to it.
    WriteFailedError
        Something else changed the store at the same time.
    WriteStoppedError, ClusterError
        `stop` ended it; a `ClusterError` if the same time would not be enough another time either.

    Examples
    --------
    >>> import dask.array as da, tempfile, zarr
    >>> from ctlab_dask_zarr import seal, verify
    >>> folder = tempfile.TemporaryDirectory()
    >>> scan = zarr.create_array(
    ...     folder.name + "/scan.zarr", shape=(40, 64, 64), dtype="uint16", chunks=(8, 32, 32),
    ...     shards=(40, 64, 64), dimension_names=("z", "y", "x"),
    ... )
    >>> scan[...] = 1000
    >>> seal(folder.name + "/scan.zarr").n_objects
    1
    >>> verify(folder.name + "/scan.zarr").scope
    'every byte verified'
    >>> folder.cleanup()
    """
    with storage_options_in_force(storage_options), reported(progress, noun="checks"):
        root = storage_path(path)
        metadata = read_store_metadata(path, files_at(root))
        refuse_level(metadata)
        refuse_unfinished(metadata)
        running = None

        def resources() -> Resources:
            nonlocal running
            running = started(client)
            with in_force(running) as found:
                return found

        sealing = prepare_sealing(metadata.store, resources)
        sealing.refuse_damage()
        found = []
        if sealing.checks.keys:
            reading = f"{root} was not sealed, and nothing was changed; give the same command again"
            found = computed(sealing.checks, running, progress, stop, reading)
        sealing.refuse_damage(found)
        return sealing.publish(found)
