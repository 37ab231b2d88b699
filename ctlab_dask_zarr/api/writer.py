"""Write a volume that comes slice by slice, as a reconstruction makes it."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ctlab_dask_zarr.api.preparing import bound, plan_dataset
from ctlab_dask_zarr.arguments import refuse_other_meanings
from ctlab_dask_zarr.errors import CTLabError, InvalidArgumentError, WriteFailedError
from ctlab_dask_zarr.formats.codecs import AUTO_CODECS
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.ome import OMEZarrVersion, ScalePlacement
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.planning.layout import ChunkSpec, ShardSpec
from ctlab_dask_zarr.planning.levels import DownsampleMethod, LevelSpec
from ctlab_dask_zarr.planning.plan import Overwrite
from ctlab_dask_zarr.planning.resolve import WriteOptions, refuse_contradictions
from ctlab_dask_zarr.settings import setting
from ctlab_dask_zarr.store.store import storage_options_in_force
from ctlab_dask_zarr.volume import Volume
from ctlab_dask_zarr.write.gathering import Gathering
from ctlab_dask_zarr.write.prepared import prepare_rest
from ctlab_dask_zarr.write.run import run
from ctlab_dask_zarr.write.slabs import SlabWrite, runs_of, slab_band
from ctlab_dask_zarr.write.staging.remaining import resolve_request
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import History


# The parameters are most of it.
def zarr_writer(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    voxel_size: Sequence[float] | float | str,
    voxel_unit: VoxelUnit | str | None = None,
    dtype: Any = None,
    dimension_names: Sequence[str] | None = None,
    origin: Sequence[float] | None = None,
    is_discrete: bool | None = None,
    identity: str | None = None,
    datatype: DataType | str | None = None,
    dataset_id: str | None = None,
    ome_zarr_version: OMEZarrVersion | None = OMEZarrVersion.v05,
    history: History | None = None,
    chunks: ChunkSpec = "auto",
    shards: ShardSpec = "auto",
    create_array_kwargs: Mapping[str, Any] | None = None,
    dimension_separator_threshold: int | None = 64,
    codec: str | None = None,
    overwrite: Overwrite = False,
    scale_placement: ScalePlacement | None = None,
    levels: LevelSpec | None = None,
    downsample: DownsampleMethod | None = None,
    resume: bool = False,
    restart: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    **extra_attrs: Any,
) -> ZarrWriter:
    """Write a volume whose slices come one after the other, as a reconstruction makes them.

    What is written is what `dataset_to_zarr` writes of the same voxels. Nothing is visible at the
    destination before the block ends with all slices written. If it raises, or its process dies,
    the staging folder stays, and ``resume=True`` goes on.

    Slabs may come in any order and from several threads. They are copied, gathered and encoded by
    threads of their own, in the memory of a row of shards at most: by default 512 slices, and less
    while slabs come in order. Other processes of a machine, or dask workers that see the folder,
    get the writer pickled, as an argument. A slab is in the staging folder when `ZarrWriter.write`
    returns there, and the block has to end after all of them.

    Parameters
    ----------
    path
        The store to make; ``.zarr`` is appended where it is missing.
    shape
        Number of voxels along each axis, (z, y, x) or (y, x). Slabs are runs along the first axis.
    voxel_size, voxel_unit
        Length of a voxel along each axis, or one for all, and its unit; or text, as ``"2.5um"``.
    dtype
        NumPy dtype of the voxels; it follows from a `datatype`.
    dimension_names
        By default the last of ``("z", "y", "x")``.
    origin, is_discrete
        As in `Dataset`.
    identity
        Text that tells this volume from another one of the same shape: an interrupted write goes on
        only with the same.
    datatype, dataset_id, ome_zarr_version, history, chunks, shards, create_array_kwargs, codec
        As in `dataset_to_zarr`; a codec cannot be chosen by measuring, as there are no voxels yet.
    dimension_separator_threshold, overwrite, scale_placement, levels, downsample, resume, restart
        As in `dataset_to_zarr`.
    storage_options, **extra_attrs
        As in `dataset_to_zarr`.

    Returns
    -------
    ZarrWriter
        To be entered by ``with``; nothing is touched before that.

    Raises
    ------
    InvalidArgumentError, MetadataError
        Something is wrong with the arguments; nothing was touched.
    DestinationExistsError, StagingExistsError
        Something is at the destination, or another write is under way or was interrupted.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from ctlab_dask_zarr import dataset_from_zarr, zarr_writer
    >>> folder = tempfile.TemporaryDirectory()
    >>> with zarr_writer(
    ...     folder.name + "/scan.zarr", shape=(40, 65, 97), datatype="tomo", levels=2,
    ...     voxel_size="2.5um",
    ... ) as writer:
    ...     for z in range(0, 40, 8):
    ...         writer.write(z, np.full((8, 65, 97), z, "uint16"))
    >>> dataset_from_zarr(folder.name + "/scan.zarr").data[:, 0, 0].compute()[::8]
    array([ 0,  8, 16, 24, 32], dtype=uint16)
    >>> folder.cleanup()
    """
    given = locals()
    refuse_contradictions(resume, restart)
    refuse_other_meanings(extra_attrs, given.keys() - {"path", "extra_attrs"})
    options = bound(WriteOptions, given)
    if (codec or setting("codec")) in AUTO_CODECS:
        raise InvalidArgumentError(
            f"codec={codec or setting('codec')!r} is chosen by measuring, and there are no voxels "
            "yet: pass a codec, as codec='zstd:3'"
        )
    volume = _empty_volume(given)
    with storage_options_in_force(storage_options):
        plan = plan_dataset(volume, path, options, goes_on=resume)
        request = StageRequest.of(plan, resume=resume, restart=restart)
        request = replace(request, band=slab_band(request.levels))
        resolve_request(request, None)
    return ZarrWriter(request, volume.dimension_names)


def _empty_volume(given: Mapping[str, Any]) -> Volume:
    """Return a volume like the one that will be written."""
    import dask.array as da

    shape, dtype, datatype = given["shape"], given["dtype"], given["datatype"]
    try:
        shape = tuple(map(operator.index, shape))
        if dtype is None and datatype is not None:
            dtype = DataType.from_basename(str(datatype)).dtype
        if dtype is None:
            raise InvalidArgumentError("give dtype=, or a datatype= from which it follows")
        data = da.empty(shape, dtype=np.dtype(dtype), chunks=shape)
    except (TypeError, ValueError) as error:
        if isinstance(error, CTLabError):
            raise
        raise InvalidArgumentError(f"shape={shape!r}, dtype={dtype!r}: {error}") from error
    names, identity = given["dimension_names"], given["identity"]
    return Volume(
        data,
        dimension_names=names,
        voxel_unit=given["voxel_unit"],
        voxel_size=given["voxel_size"],
        datatype=datatype,
        origin=given["origin"],
        is_discrete=given["is_discrete"],
        identity="slabs of zarr_writer" if identity is None else identity,
    )


class ZarrWriter:
    """Takes the slices of a volume in a ``with`` block, at whose end they are committed.

    `zarr_writer` makes it. Pickled within the block, it takes slabs in another process too.
    """

    def __init__(self, request: StageRequest, dimension_names: Sequence[str]) -> None:
        level = request.levels[0]
        self._request, self._names = request, tuple(dimension_names)
        self._shape, self._dtype = level.shape, level.array.dtype
        self._slabs: SlabWrite | None = None
        #: In the process that entered the block, and in no other.
        self._gathering: Gathering | None = None
        self._process: int | None = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        if self._slabs is None:
            raise InvalidArgumentError(
                "a writer is pickled within its block: write `with zarr_writer(...) as writer:` "
                "around what sends it to other processes"
            )
        return self.__dict__ | {"_gathering": None, "_process": None}

    def __repr__(self) -> str:
        shape = ", ".join(f"{n}: {s}" for n, s in zip(self._names, self._shape, strict=True))
        return f"<ZarrWriter {self._request.destination.path} ({shape}) {self._dtype}>"

    def __enter__(self) -> Self:
        if self._slabs is not None:
            raise InvalidArgumentError("a writer is entered once: make another by zarr_writer()")
        request, remaining = resolve_request(self._request, None)
        staged = stage(request)
        staged.record(remaining.found)
        slabs = SlabWrite(staged)
        if request.resumes is not None:
            slabs.tidy()
        self._slabs, self._gathering = slabs, Gathering(slabs)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        slabs, gathering = self._slabs, self._gathering
        if slabs is None or gathering is None or os.getpid() != self._process:
            return
        self._gathering = None
        if kind is not None:
            gathering.give_up()
            return
        try:
            gathering.close()
            slabs.complete()
        except OSError as problem:
            raise self._failed(problem) from problem
        run(prepare_rest(slabs.write))

    def write(self, z: int, slab: Any) -> None:
        """Write slices, the first of which is `z`.

        Parameters
        ----------
        z
            Where the slab begins along the first axis, counted from 0.
        slab
            Whole slices, an array of the shape (n, y, x) or, for one slice, (y, x), of the dtype of
            the volume. Masked voxels get the mask value of the data type.

        Raises
        ------
        InvalidArgumentError
            The slab does not fit the volume, or slices of it were written before; nothing of it was
            written. If another process writes the same slices at that moment, the end of the block
            raises.
        WriteFailedError
            The staging folder took no more.
        """
        slabs = self._slabs
        is_here = os.getpid() == self._process
        if slabs is None or (self._gathering is None and is_here):
            raise InvalidArgumentError(
                "slabs are written within the block: with zarr_writer(...) as writer: "
                "writer.write(z, slab)"
            )
        start, voxels = self._checked(z, slab)
        try:
            if self._gathering is not None and is_here:
                self._gathering.add(start, voxels)
            else:
                slabs.add(start, voxels)
        except CTLabError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def missing(self) -> list[range]:
        """Return the runs of slices that are not written yet.

        With ``resume=True`` these are the ones to make. What is in the memory of the process that
        entered the block counts as missing in other processes.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from ctlab_dask_zarr import zarr_writer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zarr_writer(
        ...         folder + "/a", shape=(6, 8, 8), dtype="uint8", voxel_size=1, voxel_unit="mm"
        ...     ) as writer:
        ...         writer.write(2, np.zeros((2, 8, 8), "uint8"))
        ...         print(writer.missing())
        ...         for run in writer.missing():
        ...             writer.write(run.start, np.ones((len(run), 8, 8), "uint8"))
        [range(0, 2), range(4, 6)]
        """
        slabs = self._slabs
        if slabs is None:
            raise InvalidArgumentError("missing() is known within the block of the writer")
        gathering = self._gathering if os.getpid() == self._process else None
        return runs_of(np.flatnonzero((gathering or slabs).missing()))

    def _checked(self, z: Any, slab: Any) -> tuple[int, Any]:
        """Return the first slice and the voxels, or raise what is wrong with them."""
        axis, n_slices = self._names[0], self._shape[0]
        try:
            start = operator.index(z)
        except TypeError:
            raise InvalidArgumentError(f"{axis}={z!r} is not the number of a slice") from None
        voxels = np.asanyarray(slab)
        if voxels.ndim == len(self._shape) - 1:
            voxels = voxels[np.newaxis]
        if (
            voxels.ndim != len(self._shape)
            or voxels.shape[1:] != self._shape[1:]
            or not len(voxels)
        ):
            raise InvalidArgumentError(
                f"the slab at {axis}={start} has the shape {np.shape(slab)}: slices are of the "
                f"shape {self._shape[1:]}, and a slab has one or more of them, as "
                f"{(1, *self._shape[1:])}"
            )
        if voxels.dtype.newbyteorder("=") != self._dtype.newbyteorder("="):
            raise InvalidArgumentError(
                f"the slab at {axis}={start} is of {voxels.dtype}, and the volume of "
                f"{self._dtype.newbyteorder('=')}: convert it by slab.astype(...)"
            )
        if start < 0 or start + len(voxels) > n_slices:
            raise InvalidArgumentError(
                f"a slab of slices {start}:{start + len(voxels)} along {axis} is not inside the "
                f"volume, whose slices are 0:{n_slices}"
            )
        if np.ma.is_masked(voxels):
            if self._request.mask_value is None:
                raise InvalidArgumentError(
                    f"the slab at {axis}={start} has masked voxels, and the volume no value for "
                    "them: pass a datatype that has one, or fill them by slab.filled(...)"
                )
            voxels = voxels.filled(self._request.mask_value)
        return start, np.asarray(voxels)

    def _failed(self, error: OSError) -> WriteFailedError:
        destination = self._request.destination
        return WriteFailedError(
            f"writing {destination.path} failed: {type(error).__name__}: {error}. The destination "
            f"is as it was; what was written so far is in {destination.staging}. Go on by "
            "resume=True, or start anew by restart=True"
        )
