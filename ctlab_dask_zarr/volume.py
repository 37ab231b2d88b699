"""The record of a volume: a lazy dask array, and what is known about it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError, is_delayed, no_dataset
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.history import unused_key
from ctlab_dask_zarr.formats.level import Level
from ctlab_dask_zarr.formats.units import (
    VoxelUnit,
    given_size,
    validated_axes,
    validated_origin,
)
from ctlab_dask_zarr.text import shown, size_text

if TYPE_CHECKING:
    import dask.array as da
    import numpy.typing as npt

    from ctlab_dask_zarr.formats.history import History, HistoryValue
    from ctlab_dask_zarr.formats.problems import Problem

#: Fields of the mango block that are wrong for other voxels.
VOXEL_DERIVED_FIELDS = frozenset({"data_min_max"})


class SourceChecks(NamedTuple):
    """How a source is compared with the checksums that it keeps of itself."""

    #: Functions without arguments, small to pickle; each returns what is wrong with a part.
    tasks: Sequence[Callable[[], list[Problem]]]
    #: Files or stored objects, and how many of them have no checksum.
    n_objects: int
    n_unchecked: int
    #: What is wrong with the checksums themselves.
    problems: Sequence[Problem] = ()
    #: What else a user should know.
    notes: Sequence[str] = ()
    #: Start and shape of what each task reads, if it reads a region of the source, and may be
    #: called with these voxels instead, by whoever has read them anyway.
    regions: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = ()


class Source(Protocol):
    """What the voxels of an opened volume are read from.

    Tasks of many processes hold it: it keeps no file open, and is small to pickle.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the voxels."""

    @property
    def location(self) -> str:
        """Where it is, as messages name it."""

    @property
    def levels(self) -> Sequence[Level]:
        """The levels of a stored image, finest first; none where there is one resolution."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the voxels at integers and slices, a new array."""

    def facts(self) -> dict[str, Any]:
        """Return how it is stored: its ``format``, maybe ``files``, ``shards``, ``chunks``, ...

        ``name``, ``omero`` and ``colors`` are those of an OME-Zarr image, which its copy keeps.
        """

    def identity(self) -> dict[str, Any]:
        """Return what tells it from every other source, plain JSON with a ``kind``.

        An interrupted write goes on only from a source with the same identity.
        """

    def check_unchanged(self) -> None:
        """Raise `IncompleteSourceError` or `DatasetNotFoundError` unless it is as it was opened.

        Every task asks after it has read, and the commit before it publishes: it has to be cheap.
        """

    def checks(self) -> SourceChecks:
        """Return how it is compared with its own checksums; reads no voxels yet."""


class Volume:
    """The record of a volume; `Dataset`, which users have, adds what opens, writes and shows.

    The parameters are those of `Dataset`, and each is an attribute that cannot be set.
    """

    data: da.Array
    dimension_names: tuple[str, ...]
    voxel_unit: VoxelUnit
    voxel_size: tuple[float, ...]
    datatype: DataType | None
    dataset_id: str | None
    origin: tuple[float, ...]
    is_discrete: bool

    def __init__(
        self,
        data: da.Array | npt.NDArray[Any],
        *,
        dimension_names: Sequence[str] | None = None,
        voxel_unit: VoxelUnit | str | None = None,
        voxel_size: Sequence[float] | float | str,
        datatype: DataType | str | None = None,
        history: Mapping[str, HistoryValue] | None = None,
        dataset_id: str | None = None,
        extra_attrs: Mapping[str, Any] | None = None,
        source: Source | None = None,
        origin: Sequence[float] | None = None,
        is_discrete: bool | None = None,
        identity: str | None = None,
    ) -> None:
        if isinstance(data, np.ndarray):
            import dask.array as da

            data = cast("da.Array", da.from_array(data))
        if is_delayed(data) or not hasattr(data, "dask"):
            raise no_dataset(data, "data", "a dask array")
        self.data = data
        voxel_size, voxel_unit = given_size(voxel_size, voxel_unit)
        if voxel_unit is None:
            raise InvalidArgumentError(
                f"the voxel size {voxel_size} has no unit: write voxel_size='2.5um', or "
                "voxel_unit='um' beside it"
            )
        if dimension_names is None:
            dimension_names = ("z", "y", "x")[-data.ndim :]
        self.dimension_names, self.voxel_size = validated_axes(
            dimension_names, voxel_size, data.ndim
        )
        try:
            self.voxel_unit = VoxelUnit.from_str(str(voxel_unit))
            self.datatype = None if datatype is None else DataType.from_basename(str(datatype))
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error
        if not isinstance(dataset_id, str | None):
            raise InvalidArgumentError(f"dataset_id={dataset_id!r} is not text")
        if identity is not None and not (isinstance(identity, str) and identity):
            raise InvalidArgumentError(f"identity={identity!r} is not text")
        if not isinstance(is_discrete, bool | None):
            raise InvalidArgumentError(f"is_discrete={is_discrete!r} is neither True nor False")
        if is_discrete is None:
            is_discrete = self.datatype is not None and self.datatype.is_discrete
        self.dataset_id = dataset_id
        self.origin = validated_origin(origin, data.ndim)
        self.is_discrete = is_discrete
        self._history: History = copied_mapping("history", history)
        self._extra_attrs = copied_mapping("extra_attrs", extra_attrs)
        self._source, self._identity = source, identity
        # Assignment in place, such as data[0] = 0, gives a dask array another name.
        self._opened_as = getattr(data, "name", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise AttributeError(f"{name} cannot be set: use Dataset.from_modified")
        super().__setattr__(name, value)

    @classmethod
    def from_modified(
        cls,
        source: Volume,
        *,
        data: da.Array | None = None,
        voxel_size: Sequence[float] | float | str | None = None,
        voxel_unit: VoxelUnit | str | None = None,
        dimension_names: Sequence[str] | None = None,
        datatype: DataType | str | None = None,
        history_entry: HistoryValue | None = None,
        history_key: str | None = None,
        dataset_id_suffix: str | None = None,
        dataset_id: str | None = None,
        origin: Sequence[float] | None = None,
        is_discrete: bool | None = None,
        identity: str | None = None,
        extra_attrs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a new dataset with some things changed; `source` stays as it is.

        Parameters
        ----------
        source
            Gives everything that is not given here.
        data
            Other voxels. If their shape is another one, nothing tells where they begin: the origin
            is zero unless it is given.
        voxel_size, voxel_unit
            The numbers of the voxel size, and their unit; either of them alone leaves the other as
            it is. The origin stays at the same number of voxels from zero.
        datatype
            Another data type also decides `is_discrete`, unless that is given.
        history_entry, history_key
            An entry to add, and its key (``YYYYMMDD_HHMMSS_modification`` by default). Other voxels
            get an entry that names the identifier of `source`, if none is given.
        dataset_id_suffix
            Makes the identifier ``<id>_<suffix>``; ignored where the source has none. Other voxels
            have the suffix ``modified``, unless a suffix or an identifier is given.
        identity
            As in `Dataset`; by default that of `source`, if the voxels are the same.
        extra_attrs
            Fields to add to the mango block.
        """
        if not isinstance(source, Volume):
            raise no_dataset(source, "source")
        is_same_data = data is None
        data = source.data if data is None else data
        voxel_size, voxel_unit = given_size(voxel_size, voxel_unit)
        size: Any = source.voxel_size if voxel_size is None else voxel_size
        history = source.history
        if not is_same_data and history_entry is None:
            history_entry = {"operation": "other voxels"}
            if source.dataset_id is not None:
                history_entry["dataset_id"] = source.dataset_id
        if history_entry is not None:
            default = f"{datetime.now():%Y%m%d_%H%M%S}_modification"
            history[history_key or unused_key(default, history)] = history_entry
        if dataset_id is None and not is_same_data:
            dataset_id_suffix = dataset_id_suffix or "modified"
        dataset_id = source.dataset_id if dataset_id is None else dataset_id
        if dataset_id is not None and dataset_id_suffix is not None:
            dataset_id = f"{dataset_id}_{dataset_id_suffix}"
        if is_discrete is None and (datatype is None or datatype == source.datatype):
            is_discrete = source.is_discrete
        if origin is None and tuple(data.shape) == source.shape:
            _, new_size = validated_axes(source.dimension_names, size, data.ndim)
            edges = zip(source.origin, source.voxel_size, new_size, strict=True)
            origin = [start * (new / old) for start, old, new in edges]
        kept = source.extra_attrs
        if not is_same_data:
            kept = {key: kept[key] for key in kept if key not in VOXEL_DERIVED_FIELDS}
        return cls(
            data,
            dimension_names=dimension_names or source.dimension_names,
            voxel_unit=source.voxel_unit if voxel_unit is None else voxel_unit,
            voxel_size=size,
            datatype=source.datatype if datatype is None else datatype,
            history=history,
            dataset_id=dataset_id,
            extra_attrs=kept | copied_mapping("extra_attrs", extra_attrs),
            source=source.source if is_same_data else None,
            origin=origin,
            is_discrete=is_discrete,
            identity=source.identity if identity is None and is_same_data else identity,
        )

    def with_blocks(self, data: da.Array) -> Self:
        """Return the same volume, whose voxels are those of `data`, in other blocks."""
        same = copy.copy(self)
        vars(same).update(data=data, _opened_as=data.name)
        return same

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the voxels."""
        return self.data.dtype

    @property
    def history(self) -> History:
        """A copy of the history, entries by their key; `add_to_history` adds to it."""
        return copy.deepcopy(self._history)

    @property
    def extra_attrs(self) -> dict[str, Any]:
        """A copy of the further fields of the mango block, carried through to what is written."""
        lost = frozenset() if self._is_as_opened else VOXEL_DERIVED_FIELDS
        return copy.deepcopy({k: v for k, v in self._extra_attrs.items() if k not in lost})

    @property
    def source(self) -> Source | None:
        """What `data` was opened from; None for an array in memory or one changed in place."""
        return self._source if self._is_as_opened else None

    @property
    def identity(self) -> str | None:
        """The text that was given for the voxels; None without one, or if they were changed."""
        return self._identity if self._is_as_opened else None

    @property
    def _is_as_opened(self) -> bool:
        return getattr(self.data, "name", None) == self._opened_as

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the stored image that this was opened from, finest first; else none.

        `dataset_from_zarr` opens one of them.
        """
        return tuple(getattr(self.source, "levels", ()))

    @property
    def mask_value(self) -> Any:
        """The value that marks voxels outside the sample; None where the type has none."""
        return None if self.datatype is None else self.datatype.mask_value

    @property
    def mask(self) -> da.Array:
        """Which voxels are masked: a boolean dask array of the data's shape."""
        import dask.array as da

        if self.mask_value is None:
            return cast("da.Array", da.zeros_like(self.data, dtype=bool))
        return cast("da.Array", self.data == self.mask_value)

    @property
    def masked_data(self) -> da.Array:
        """The voxels as a dask array of masked arrays, with `nomask` where no mask is defined."""
        import dask.array as da

        if self.mask_value is None:
            return cast("da.Array", da.ma.masked_array(self.data))
        return cast("da.Array", da.ma.masked_array(self.data, mask=self.mask))

    def voxel_size_with_unit(self, unit: VoxelUnit | str) -> tuple[float, ...]:
        """Return the voxel size in `unit`.

        Raises
        ------
        ValueError
            One of the two units is `VoxelUnit.VOXEL`, which is not a length.
        """
        target = VoxelUnit.from_str(str(unit))
        if target == self.voxel_unit:
            return self.voxel_size
        factor = self.voxel_unit.conversion_factor(target)
        return tuple(v * factor for v in self.voxel_size)

    def add_to_history(self, key: str, value: HistoryValue) -> None:
        """Add one entry to this dataset's history."""
        self._history[key] = copy.deepcopy(value)

    def update_history(self, entries: Mapping[str, HistoryValue]) -> None:
        """Add several entries to this dataset's history."""
        self._history.update(copy.deepcopy(dict(entries)))

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}: {n}" for name, n in zip(self.dimension_names, self.shape, strict=True)
        )
        voxel = size_text(self.voxel_size, self.voxel_unit)
        kind = "" if self.datatype is None else f"{self.datatype} "
        return shown(f"<{type(self).__name__} {kind}({sizes}) {self.dtype}, voxel {voxel}>")


def as_volume(dataset: Any) -> Volume:
    """Return a dataset as a record; it may be any object with the properties of a `Dataset`."""
    if isinstance(dataset, Volume):
        return dataset
    more = ("dataset_id", "extra_attrs", "origin", "is_discrete", "identity")
    return Volume(
        dataset.data,
        dimension_names=dataset.dimension_names,
        voxel_unit=dataset.voxel_unit,
        voxel_size=dataset.voxel_size,
        # An anu_ctlab_io.Dataset keeps its data type in a private attribute.
        datatype=getattr(dataset, "datatype", None) or getattr(dataset, "_datatype", None),
        history=dataset.history,
        **{name: getattr(dataset, name, None) for name in more},
    )


def copied_mapping(name: str, mapping: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a deep copy of an argument that has to be a mapping; of None an empty one."""
    if not isinstance(mapping, Mapping | None):
        raise InvalidArgumentError(
            f"{name} is a {type(mapping).__name__}, where a mapping of names is needed"
        )
    return copy.deepcopy(dict(mapping or {}))
