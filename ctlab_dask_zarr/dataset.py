"""A volume: a lazy dask array, and what is known about it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from ctlab_dask_zarr.arguments import copied_mapping, is_delayed, no_dataset
from ctlab_dask_zarr.errors import InvalidArgumentError, UnsupportedFormatError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.history import unused_key
from ctlab_dask_zarr.formats.mango import new_dataset_id
from ctlab_dask_zarr.formats.units import (
    VoxelUnit,
    size_text,
    validated_axes,
    validated_origin,
)
from ctlab_dask_zarr.text import shown

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    from dask.delayed import Delayed

    from ctlab_dask_zarr.formats.history import History, HistoryValue
    from ctlab_dask_zarr.interop.masked import MaskedMethod
    from ctlab_dask_zarr.read.zarr import StoredLevel

__all__ = ["FACTS_OF_THE_VOXELS", "Dataset"]

#: Fields of the mango block that other voxels would make untrue.
FACTS_OF_THE_VOXELS = frozenset({"data_min_max"})


class Dataset:
    """A lazy dask array and what is known about it.

    Parameters
    ----------
    data
        The voxels, a dask array of two or three axes.
    dimension_names
        One name an axis, usually ``("z", "y", "x")``.
    voxel_unit
        Unit of `voxel_size`: a `VoxelUnit` or its name.
    voxel_size
        Edge lengths of a voxel, in the order of `dimension_names`.
    datatype
        The mango data type, or its name; None where it is not known.
    history
        Entries by their key; copied.
    dataset_id
        mango's identifier, ``YYYYMMDD_HHMMSS_<name>``.
    extra_attrs
        Further fields of the mango block, carried through to what is written.
    source
        What the data was opened from, with an ``identity()``; None for an array from memory. It
        stands for this dask array only, and no longer once that was changed in place.
    origin
        Position of the first voxel's centre, in `voxel_unit`, in the order of `dimension_names`;
        by default zero.
    is_discrete
        Whether voxels are names of classes, and not grey values; by default what `datatype` says.
    identity
        A text by which an interrupted write knows the voxels again; by default what `source` says,
        else the name that dask gives them. You vouch that the same text stands for the same voxels
        (docs/reliability.md).

    Examples
    --------
    >>> import dask.array as da
    >>> ds = Dataset(
    ...     da.zeros((4, 5, 6), dtype="uint16"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
    ... )
    >>> ds
    <Dataset tomo (z: 4, y: 5, x: 6) uint16, voxel 2.5 um>
    """

    def __init__(
        self,
        data: da.Array,
        *,
        dimension_names: Sequence[str],
        voxel_unit: VoxelUnit | str,
        voxel_size: Sequence[float],
        datatype: DataType | str | None = None,
        history: Mapping[str, HistoryValue] | None = None,
        dataset_id: str | None = None,
        extra_attrs: Mapping[str, Any] | None = None,
        source: Any = None,
        origin: Sequence[float] | None = None,
        is_discrete: bool | None = None,
        identity: str | None = None,
    ) -> None:
        if is_delayed(data) or not hasattr(data, "dask"):
            raise no_dataset(data, "data", "dask array")
        self._data = data
        self._dimension_names, self._voxel_size = validated_axes(
            dimension_names, voxel_size, data.ndim
        )
        try:
            self._voxel_unit = VoxelUnit.from_str(str(voxel_unit))
            self._datatype = None if datatype is None else DataType.from_basename(str(datatype))
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error
        self._history: History = copied_mapping("history", history)
        if not isinstance(dataset_id, str | None):
            raise InvalidArgumentError(f"dataset_id={dataset_id!r} is no text")
        self._dataset_id = dataset_id
        self._extra_attrs = copied_mapping("extra_attrs", extra_attrs)
        if identity is not None and not (isinstance(identity, str) and identity):
            raise InvalidArgumentError(f"identity={identity!r} is no text")
        self._source = source
        self._origin = validated_origin(origin, data.ndim)
        if not isinstance(is_discrete, bool | None):
            raise InvalidArgumentError(f"is_discrete={is_discrete!r} is neither True nor False")
        if is_discrete is None:
            is_discrete = self._datatype is not None and self._datatype.is_discrete
        self._is_discrete = is_discrete
        self._identity = identity
        # dask's assignment in place, as data[0] = 0, gives the array another name.
        self._opened_as = getattr(data, "name", None)

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        filetype: str = "auto",
        parse_history: bool = True,
        **kwargs: Any,
    ) -> Dataset:
        """Open a mango netCDF file or block directory, or a Zarr store, lazily.

        Parameters
        ----------
        path
            The file, the ``_nc`` directory or the store.
        filetype
            ``'NetCDF'``, ``'zarr'``, or ``'auto'``: by what is there, then by its name.
        parse_history
            Whether the text of mango's history becomes nested parameters (netCDF only).
        **kwargs
            For `dataset_from_zarr` or the netCDF reader.

        Raises
        ------
        DatasetNotFoundError, UnsupportedFormatError, IncompleteSourceError
        """
        from ctlab_dask_zarr.read.netcdf import dataset_from_netcdf
        from ctlab_dask_zarr.read.source import guess_filetype
        from ctlab_dask_zarr.read.zarr import dataset_from_zarr

        kind = guess_filetype(path) if filetype == "auto" else filetype
        if kind.lower() == "netcdf":
            return dataset_from_netcdf(path, parse_history=parse_history, **kwargs)
        if kind.lower() == "zarr":
            return dataset_from_zarr(path, **kwargs)
        raise UnsupportedFormatError(f"filetype {filetype!r} is none of 'NetCDF', 'zarr', 'auto'")

    def to_path(
        self,
        path: str | os.PathLike[str],
        *,
        filetype: str = "auto",
        dataset_id: str | None = "auto",
        compute: bool = True,
        **kwargs: Any,
    ) -> Delayed | None:
        """Write the dataset.

        Parameters
        ----------
        path
            Where to: a name that ends in ``.zarr``.
        filetype
            ``'zarr'``, or ``'auto'``: by the name of the path.
        dataset_id
            ``'auto'``: the dataset's own; None: a new one; else this one.
        compute, **kwargs
            For `dataset_to_zarr`.

        Raises
        ------
        InvalidArgumentError
            The extension, or the file type, is not one that is written here.
        """
        from ctlab_dask_zarr.api import dataset_to_zarr

        named_zarr = os.fspath(path).rstrip("/").endswith(".zarr")
        if filetype.lower() != "zarr" and not (filetype == "auto" and named_zarr):
            raise InvalidArgumentError(
                f"cannot tell a format to write from {os.fspath(path)!r} and filetype "
                f"{filetype!r}: use a name that ends in .zarr, or filetype='zarr'"
            )
        dataset = self
        if dataset_id == "auto":
            dataset_id = self._dataset_id
        elif dataset_id is None and (kwargs.get("datatype") or self._datatype) is None:
            dataset_id = new_dataset_id(None, datetime.now())
        elif dataset_id is None:
            # The plan makes one, which it does not take for one that was asked for.
            dataset = Dataset.from_modified(self)
            dataset._dataset_id = None
        return dataset_to_zarr(dataset, path, dataset_id=dataset_id, compute=compute, **kwargs)

    @classmethod
    def from_modified(
        cls,
        source: Dataset,
        *,
        data: da.Array | None = None,
        voxel_size: Sequence[float] | None = None,
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
    ) -> Dataset:
        """Return a new dataset with some things changed; `source` stays as it is.

        Parameters
        ----------
        source
            Gives everything that is not given here.
        data
            Other voxels. Those of another shape are a part of which nobody knows where it begins:
            their origin is zero where `origin` is not given.
        voxel_size, voxel_unit
            The numbers of the voxel size, and their unit: one of them alone leaves the other as it
            is. The origin stays at the same number of voxels from zero.
        datatype
            Another one decides `is_discrete` too, where that is not given.
        history_entry, history_key
            An entry to add, and its key (``YYYYMMDD_HHMMSS_modification`` by default).
        dataset_id_suffix
            Makes the identifier ``<id>_<suffix>``; ignored where the source has none.
        identity
            Of the voxels, as of `Dataset`; by default that of `source`, where they are the same.
        extra_attrs
            Fields to add to the mango block.
        """
        if not isinstance(source, Dataset):
            raise no_dataset(source, "source")
        history = copy.deepcopy(source._history)
        if history_entry is not None:
            default = f"{datetime.now():%Y%m%d_%H%M%S}_modification"
            history[history_key or unused_key(default, history)] = history_entry
        dataset_id = source._dataset_id if dataset_id is None else dataset_id
        if dataset_id is not None and dataset_id_suffix is not None:
            dataset_id = f"{dataset_id}_{dataset_id_suffix}"
        if is_discrete is None and (datatype is None or datatype == source._datatype):
            is_discrete = source._is_discrete
        modified = cls(
            source._data if data is None else data,
            dimension_names=dimension_names or source._dimension_names,
            voxel_unit=source._voxel_unit if voxel_unit is None else voxel_unit,
            voxel_size=source._voxel_size if voxel_size is None else voxel_size,
            datatype=source._datatype if datatype is None else datatype,
            history=history,
            dataset_id=dataset_id,
            extra_attrs={
                key: value
                for key, value in source.extra_attrs.items()
                if data is None or key not in FACTS_OF_THE_VOXELS
            }
            | copied_mapping("extra_attrs", extra_attrs),
            source=source.source if data is None else None,
            origin=origin,
            is_discrete=is_discrete,
            identity=source.identity if identity is None and data is None else identity,
        )
        if origin is None and modified.shape == source.shape:
            edges = zip(source._origin, source._voxel_size, modified._voxel_size, strict=True)
            modified._origin = tuple(start * (new / old) for start, old, new in edges)
        return modified

    @property
    def data(self) -> da.Array:
        """The voxels, a lazy dask array."""
        return self._data

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""
        return tuple(self._data.shape)

    @property
    def dtype(self) -> Any:
        """NumPy dtype of the voxels."""
        return self._data.dtype

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """Name of each axis."""
        return self._dimension_names

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """Edge lengths of a voxel in `voxel_unit`, in the order of `dimension_names`."""
        return self._voxel_size

    @property
    def voxel_unit(self) -> VoxelUnit:
        """Unit of the voxel size."""
        return self._voxel_unit

    @property
    def datatype(self) -> DataType | None:
        """The mango data type, where it is known."""
        return self._datatype

    @property
    def history(self) -> History:
        """A copy of the history, entries by their key; `add_to_history` adds to it."""
        return copy.deepcopy(self._history)

    @property
    def dataset_id(self) -> str | None:
        """Mango's identifier, where there is one."""
        return self._dataset_id

    @property
    def extra_attrs(self) -> dict[str, Any]:
        """A copy of the further fields of the mango block, carried through to what is written."""
        lost = frozenset() if self._is_as_opened else FACTS_OF_THE_VOXELS
        return copy.deepcopy({k: v for k, v in self._extra_attrs.items() if k not in lost})

    @property
    def source(self) -> Any:
        """What the data was opened from; None for an array from memory, or changed in place."""
        return self._source if self._is_as_opened else None

    @property
    def identity(self) -> str | None:
        """The text that was given for the voxels; None where none was, or they were changed."""
        return self._identity if self._is_as_opened else None

    @property
    def _is_as_opened(self) -> bool:
        return getattr(self._data, "name", None) == self._opened_as

    @property
    def levels(self) -> tuple[StoredLevel, ...]:
        """The levels of the stored image that this was opened from, finest first; else none.

        `dataset_from_zarr` opens one of them.
        """
        levels: tuple[StoredLevel, ...] = getattr(self.source, "levels", ())
        return levels

    @property
    def origin(self) -> tuple[float, ...]:
        """Position of the first voxel's centre, in `voxel_unit`, one number an axis."""
        return self._origin

    @property
    def is_discrete(self) -> bool:
        """Whether voxels are names of classes, as in segmentations and labels, not grey values."""
        return self._is_discrete

    @property
    def mask_value(self) -> Any:
        """The value that marks voxels outside the sample; None where the type has none."""
        return None if self._datatype is None else self._datatype.mask_value

    @property
    def mask(self) -> da.Array:
        """Which voxels are masked: a boolean dask array of the data's shape."""
        import dask.array as da

        if self.mask_value is None:
            return cast("da.Array", da.zeros_like(self._data, dtype=bool))
        return cast("da.Array", self._data == self.mask_value)

    @property
    def masked_data(self) -> da.Array:
        """The voxels as a dask array of masked arrays, with `nomask` where no mask is defined."""
        import dask.array as da

        if self.mask_value is None:
            return cast("da.Array", da.ma.masked_array(self._data))
        return cast("da.Array", da.ma.masked_array(self._data, mask=self.mask))

    def voxel_size_with_unit(self, unit: VoxelUnit | str) -> tuple[float, ...]:
        """Return the voxel size in `unit`.

        Raises
        ------
        ValueError
            One of the two units is `VoxelUnit.VOXEL`, which is no length.
        """
        target = VoxelUnit.from_str(str(unit))
        if target == self._voxel_unit:
            return self._voxel_size
        factor = self._voxel_unit.conversion_factor(target)
        return tuple(v * factor for v in self._voxel_size)

    def map_masked(
        self,
        func: Callable[..., Any],
        *,
        method: MaskedMethod = "linear",
        depth: int | tuple[int, ...] | None = None,
        datatype: DataType | str | None = None,
        history_key: str | None = None,
        **kwargs: Any,
    ) -> Dataset:
        """Return a new, lazy dataset whose valid voxels went through a filter.

        Masked voxels, and NaN of floats, never enter a value, and are masked in the result.

        Parameters
        ----------
        func
            Takes a block and returns one of its shape: `scipy.ndimage.gaussian_filter`.
        method
            How the mask is kept out. What `func` makes NaN is masked in the result.

            ``'linear'``: masked voxels count as zero, and the result is divided by the share of the
            kernel's weight that lies on valid voxels (normalised convolution; Knutsson and Westin,
            1993). Right for smoothing, linear filters with weights that are not negative and add up
            to one: Gaussian, uniform. Derivatives are refused; a median, which is not linear, is
            not known for one and comes out wrong.

            ``'pointwise'``: `func` gets the valid voxels alone, as one row. Right for whatever
            looks at one voxel at a time.

            ``'nan'``: `func` gets masked voxels as NaN. Right for functions that leave NaN out, as
            `scipy.ndimage.generic_filter` with `numpy.nanmedian`, and for derivatives, as
            `scipy.ndimage.sobel` and `gaussian_laplace`: voxels whose window meets the mask are
            masked. Wrong for running sums, as `uniform_filter`, which carry NaN along a whole line,
            and for sorting, as `median_filter`, where NaN has no place.
        depth
            How many voxels the filter looks to each side, along every axis or one number each; for
            a Gaussian ``int(4 * sigma + 0.5)``. Too few are seen as seams between blocks, so that
            it has to be given where there are several.
        datatype
            mango's type of the result; by default that of this dataset. Integers are rounded, and
            negative values become 0 where the type has none: for derivatives ``'tomo_float'``.
        history_key
            Of the entry that the history gets; by default the time and the name of `func`.
        **kwargs
            For `func`.

        Raises
        ------
        InvalidArgumentError
            An argument is wrong; when it is computed: `func` changes the shape, makes NaN for which
            the data type has no value, or does not smooth though `method` is ``'linear'``.

        Examples
        --------
        >>> import dask.array as da, numpy as np
        >>> from scipy.ndimage import uniform_filter
        >>> ds = Dataset(
        ...     da.from_array(np.array([[4, 8, 65535, 6]], "uint16")), dimension_names=("y", "x"),
        ...     voxel_unit="um", voxel_size=(2.5, 2.5), datatype="tomo",
        ... )
        >>> ds.map_masked(uniform_filter, depth=(0, 1), size=(1, 3)).data.compute().tolist()
        [[5, 6, 65535, 6]]
        """
        from ctlab_dask_zarr.interop.masked import map_masked

        return map_masked(
            self,
            func,
            method=method,
            depth=depth,
            datatype=datatype,
            history_key=history_key,
            **kwargs,
        )

    def to_xarray(self) -> xr.DataArray:
        """Return the volume as a `xarray.DataArray` with physical coordinates, still lazy.

        They begin at the `origin`.
        """
        from ctlab_dask_zarr.interop.xarray import to_xarray

        return to_xarray(self)

    @classmethod
    def from_xarray(cls, array: xr.DataArray, *, datatype: str | None = None) -> Dataset:
        """Return a `xarray.DataArray` as a dataset: see `ctlab_dask_zarr.xarray.from_xarray`."""
        from ctlab_dask_zarr.interop.xarray import from_xarray

        return from_xarray(array, datatype=datatype)

    def add_to_history(self, key: str, value: HistoryValue) -> None:
        """Add one entry to this dataset's history."""
        self._history[key] = copy.deepcopy(value)

    def update_history(self, entries: Mapping[str, HistoryValue]) -> None:
        """Add several entries to this dataset's history."""
        self._history.update(copy.deepcopy(dict(entries)))

    def _repr_html_(self) -> str:
        """Return the card that notebooks show: see `views.card`."""
        from ctlab_dask_zarr.views.card import dataset_card

        return dataset_card(self)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}: {n}" for name, n in zip(self._dimension_names, self.shape, strict=True)
        )
        voxel = size_text(self._voxel_size, self._voxel_unit)
        kind = "" if self._datatype is None else f"{self._datatype} "
        return shown(f"<Dataset {kind}({sizes}) {self.dtype}, voxel {voxel}>")
