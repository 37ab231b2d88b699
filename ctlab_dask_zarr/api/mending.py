"""Public functions that guard a store against damage, and mend it: seal, repair."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ctlab_dask_zarr.api.preparing import (
    Executor,
    ProgressSink,
    Starting,
    analysed_source,
    in_force,
    reported,
    source_to_compare,
)
from ctlab_dask_zarr.api.stores import computed
from ctlab_dask_zarr.errors import StagingExistsError
from ctlab_dask_zarr.execution.graphs import is_read
from ctlab_dask_zarr.execution.stopping import Stop
from ctlab_dask_zarr.manage.edit import refuse_level, refuse_unfinished
from ctlab_dask_zarr.planning.identity import source_identity
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.paths import is_url, storage_path
from ctlab_dask_zarr.store.store import files_at, storage_options_in_force
from ctlab_dask_zarr.text import command_text
from ctlab_dask_zarr.verification.comparison import refuse_itself
from ctlab_dask_zarr.verification.repairs import RepairResult, Repairs
from ctlab_dask_zarr.verification.sealing import SealResult, prepare_sealing
from ctlab_dask_zarr.verification.verify import prepare_verification
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.waits import opening
from ctlab_dask_zarr.write.repairing import prepare_making, prepare_proof, stage_repair
from ctlab_dask_zarr.write.staging.mended import finish_published, publish
from ctlab_dask_zarr.write.staging.stage import is_repair


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
        starting = Starting(client)
        with opening(path):
            sealing = prepare_sealing(metadata.store, starting.resources)
        sealing.refuse_damage()
        found = []
        if sealing.checks.keys:
            reading = f"{root} was not sealed, and nothing was changed; give the same command again"
            found = computed(sealing.checks, starting.client, progress, stop, reading)
        sealing.refuse_damage(found)
        return sealing.publish(found)


def repair(
    path: str | os.PathLike[str],
    source: Volume | str | os.PathLike[str] | None = None,
    *,
    client: Executor = None,
    progress: ProgressSink = False,
    stop: Stop | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> RepairResult:
    """Write again the stored objects that `verify` names as damaged or missing, and no others.

    Level 0 is made of the source, and each coarser level of the next finer one. Objects are made in
    a staging folder, and put into their places when all are there. What comes out as the bytes that
    were committed is certain. Where it does not, as another program or version encodes otherwise,
    the whole level has to be equal to the source wherever it is intact; receipts follow then.

    Parameters
    ----------
    path
        The store, of any writer; ``scan.zarr/labels/phases`` for labels.
    source
        What level 0 was made from, or None to repair coarser levels alone.
    client, progress, stop, storage_options
        As in `dataset_to_zarr`. After a stop or an interruption, the same call goes on.

    Returns
    -------
    What was repaired, and in `problems` what could not be, with the reason.

    Raises
    ------
    DatasetNotFoundError, MetadataError, UnsupportedFormatError
        There is nothing at `path`, or its root document cannot be read; or it is an https:// URL.
    InvalidArgumentError
        `path` is a level of an image, or `source` is the dataset itself.
    StagingExistsError
        Another write to `path`, or a repair from another source, is under way or was interrupted.
    WriteFailedError
        Something else changed the store at the same time.
    WriteStoppedError
        `stop` ended it; the store is as it was.

    Examples
    --------
    >>> import dask.array as da, os, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr, repair, verify
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> folder = tempfile.TemporaryDirectory()
    >>> dataset_to_zarr(ds, folder.name + "/scan.zarr", chunks=(32,) * 3, shards=(64,) * 3)
    >>> os.remove(folder.name + "/scan.zarr/0/c.0.1.1")
    >>> repair(folder.name + "/scan.zarr", ds).repaired
    ('0/c.0.1.1',)
    >>> verify(folder.name + "/scan.zarr", ds)
    []
    >>> folder.cleanup()
    """
    with storage_options_in_force(storage_options), reported(progress, noun="checks"):
        volume, starting = source_to_compare(source), Starting(client)
        destination, metadata = _to_repair(path)
        finish_published(destination)
        how = progress, stop, f"{metadata.path} is as it was; the same command goes on"
        with opening(path):
            checks = prepare_verification(
                metadata.path, None, checksums=True, resources=starting.resources
            )
        running = starting.client
        found = [*checks.problems, *computed(checks, running, *how)]
        repairs = Repairs(metadata.store, found, volume)
        if not repairs.arrays:
            return RepairResult(metadata.path, problems=repairs.problems)
        blocks = analysed_source(volume) if volume is not None and repairs.needs_source else None
        if blocks is not None and volume is not None and is_read(volume.data):
            refuse_itself(blocks.volumes, metadata)
        identity = None if volume is None else source_identity(volume).fields
        root = metadata.store.get(ROOT_DOCUMENT)
        staged = repairs.with_methods(stage_repair(destination, repairs.arrays, root, identity))
        with in_force(running) as offered:
            computed(prepare_making(staged, blocks, offered), running, *how)

            def proof() -> list[str] | None:
                compared = None if blocks is None else prepare_proof(staged, blocks, offered)
                return None if compared is None else computed(compared, running, *how)

            accepted = repairs.accept(staged.recorded(staged.sizes()), proof)
        for one in blocks.volumes if blocks else ():
            one.check_unchanged()
        if accepted:
            publish(staged, list(accepted.values()), *repairs.documents(accepted))
        else:
            destination.discard_staging()
        nbytes = sum(receipt.nbytes for receipt in accepted.values())
        return RepairResult(metadata.path, tuple(sorted(accepted)), nbytes, repairs.problems)


def _to_repair(path: str | os.PathLike[str]) -> tuple[Destination, StoreMetadata]:
    """Return where a store is staged, and its documents; raise where it cannot be changed."""
    root = storage_path(path)
    # Staging has to lie beside the store itself, not beside a link to it.
    root = root if is_url(root) else os.path.realpath(root)
    metadata = read_store_metadata(root, files_at(root))
    folder, _ = os.path.split(root)
    image, kind = os.path.split(folder)
    is_labels = metadata.is_labels and kind == "labels"
    destination = Destination(root, metadata.files, image if is_labels else None)
    found = destination.staged_plan()
    if not is_repair(found):
        if found and not destination.is_staging_committed():
            raise StagingExistsError(
                f"{destination.staging} is there: another write to {root} is under way, or was "
                f"interrupted. Finish it, or remove it by {command_text('abort', root)}"
            )
        refuse_unfinished(metadata)
    refuse_level(metadata)
    return destination, metadata
