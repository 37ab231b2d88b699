"""`Dataset`: the record of a volume, with methods that open, write, filter and show it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from ctlab_dask_zarr.arguments import refuse_unknown
from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.mango import new_dataset_id
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    import xarray as xr
    from dask.delayed import Delayed

    from ctlab_dask_zarr.interop.masked import MaskedMethod


class Dataset(Volume):
    """A lazy dask array and what is known about it.

    Each parameter is an attribute too, which cannot be set: `from_modified` makes a new dataset.

    Parameters
    ----------
    data
        The voxels, a dask array of two or three axes.
    dimension_names
        One name for each axis, usually ``("z", "y", "x")``.
    voxel_unit
        Unit of `voxel_size`: a `VoxelUnit` or its name.
    voxel_size
        Edge lengths of a voxel, in the order of `dimension_names`.
    datatype
        The mango data type, or its name; None if it is not known.
    history
        Entries by their key; copied.
    dataset_id
        mango's identifier, ``YYYYMMDD_HHMMSS_<name>``.
    extra_attrs
        Further fields of the mango block, carried through to what is written.
    source
        What `data` was opened from, with an ``identity()``; None for an array in memory. It belongs
        to this dask array alone: if that is changed in place, the dataset has no source any more.
    origin
        Position of the first voxel's centre, in `voxel_unit`, in the order of `dimension_names`;
        by default zero.
    is_discrete
        Whether the voxels are classes instead of grey values; by default what `datatype` says.
    identity
        A text by which an interrupted write recognises the voxels; by default that of `source`, or
        else the name that dask gives them. You promise that the same text means the same voxels
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

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        filetype: str = "auto",
        parse_history: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Open a Zarr store, or mango netCDF (a file, or a folder of blocks), lazily.

        Parameters
        ----------
        path
            The store, the file or the folder.
        filetype
            ``'zarr'``, ``'NetCDF'``, or ``'auto'``: by the content, then by the name.
        parse_history
            Whether the text of a history becomes nested parameters (mango netCDF).
        **kwargs
            ``datatype``, ``voxel_size``, ``voxel_unit`` instead of what is said there, ``chunks``
            of the dask array, and what `dataset_from_zarr` takes for a Zarr store.

        Raises
        ------
        DatasetNotFoundError, UnsupportedFormatError, IncompleteSourceError, MetadataError
        """
        from ctlab_dask_zarr.read.source import open_volume

        return cls._of(open_volume(path, filetype, parse_history=parse_history, **kwargs))

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
            ``'auto'``: that of the dataset; None: a new one; else this one.
        compute, **kwargs
            For `dataset_to_zarr`.

        Raises
        ------
        InvalidArgumentError
            The name or the file type is of another format.
        """
        from ctlab_dask_zarr.api.write import dataset_to_zarr

        named_zarr = os.fspath(path).rstrip("/").endswith(".zarr")
        if filetype.lower() != "zarr" and not (filetype == "auto" and named_zarr):
            raise InvalidArgumentError(
                f"cannot tell a format to write from {os.fspath(path)!r} and filetype "
                f"{filetype!r}: use a name that ends in .zarr, or filetype='zarr'"
            )
        dataset = self
        if dataset_id == "auto":
            dataset_id = self.dataset_id
        elif dataset_id is None and (kwargs.get("datatype") or self.datatype) is None:
            dataset_id = new_dataset_id(None, datetime.now())
        elif dataset_id is None:
            # The plan makes a new one then, which does not count as given by the caller.
            dataset = copy.copy(self)
            vars(dataset)["dataset_id"] = None
        return dataset_to_zarr(dataset, path, dataset_id=dataset_id, compute=compute, **kwargs)

    def map_masked(
        self,
        func: Callable[..., Any],
        *,
        method: MaskedMethod = "linear",
        depth: int | tuple[int, ...] | None = None,
        datatype: DataType | str | None = None,
        history_key: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a new, lazy dataset whose valid voxels went through a filter.

        Masked voxels, and NaN of floats, never enter a value, and are masked in the result.

        Parameters
        ----------
        func
            Takes a block and returns one of its shape: `scipy.ndimage.gaussian_filter`.
        method
            How the mask is kept out. Where `func` makes NaN, the result is masked.

            ``'linear'``: masked voxels count as zero, and the result is divided by the share of the
            kernel's weight that lies on valid voxels (normalised convolution; Knutsson and Westin,
            1993). For smoothing, which is linear filters with weights that are not negative and add
            up to one: Gaussian, uniform. Derivatives are refused. A median is not linear, but that
            cannot be seen: its result is wrong.

            ``'pointwise'``: `func` gets the valid voxels alone, as one row. For functions of one
            voxel.

            ``'nan'``: `func` gets masked voxels as NaN. For functions that leave NaN out, such as
            `scipy.ndimage.generic_filter` with `numpy.nanmedian`, and for derivatives, such as
            `scipy.ndimage.sobel` and `gaussian_laplace`: voxels whose window meets the mask are
            masked. Wrong for running sums such as `uniform_filter`, which carry NaN along a whole
            line, and for sorting such as `median_filter`, which cannot order NaN.
        depth
            How many voxels the filter looks to each side: one number for all axes, or one each; for
            a Gaussian ``int(4 * sigma + 0.5)``. It has to be given where there are several blocks;
            if it is too small, seams between them are visible.
        datatype
            The mango data type of the result; by default that of this dataset. Integers are
            rounded, and negative values become 0 in unsigned types: for derivatives use
            ``'tomo_float'``.
        history_key
            Key of the entry that is added to the history; by default the time and the name of
            `func`.
        **kwargs
            For `func`.

        Raises
        ------
        InvalidArgumentError
            An argument is wrong. When it is computed: `func` changes the shape, makes NaN that the
            data type cannot hold, or does not smooth with ``method='linear'``.

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

        return type(self)._of(map_masked(self, func, method, depth, datatype, history_key, kwargs))

    def to_xarray(self) -> xr.DataArray:
        """Return the volume, still lazy, as a `xarray.DataArray`; coordinates begin at `origin`."""
        from ctlab_dask_zarr.interop.xarray import CTLabAccessor, to_xarray

        CTLabAccessor.dataset_class = type(self)
        return to_xarray(self)

    @classmethod
    def from_xarray(cls, array: xr.DataArray, *, datatype: str | None = None) -> Self:
        """Return a `xarray.DataArray` as a dataset; lazy voxels stay lazy.

        The voxel size is the spacing of the coordinates, its unit their ``units``, and the origin
        the first position along each axis; coordinates of no axis are dropped. Name and attributes
        are kept, those of others among `extra_attrs`, from where `to_xarray` brings them back; an
        array without a name gets that of its data type.

        Parameters
        ----------
        array
            Two or three axes of space, with regular increasing coordinates, or with none at all
            (the unit is then the voxel). An axis of one voxel needs the attribute ``spacing`` of
            its coordinate, because one position tells no size.
        datatype
            The mango data type; by default the attribute ``datatype``.

        Raises
        ------
        InvalidArgumentError
            Other axes, coordinates that are not regular, units that are not lengths or differ,
            or attributes that cannot be read.
        """
        from ctlab_dask_zarr.interop.xarray import volume_from_xarray

        return cls._of(volume_from_xarray(array, datatype=datatype))

    def _repr_html_(self) -> str:
        """Return the card that notebooks show, with a picture of the volume."""
        from ctlab_dask_zarr.views.card import dataset_card

        return dataset_card(self)

    @classmethod
    def _of(cls, volume: Volume) -> Self:
        """Return a record as a dataset; both share the same data."""
        dataset = cls.__new__(cls)
        dataset.__dict__.update(volume.__dict__)
        return dataset


def dataset_from_zarr(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    strict: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    follow_links: bool | None = None,
    **kwargs: Any,
) -> Dataset:
    """Open a Zarr v3 store lazily, as a `Dataset` whose blocks are shards.

    OME-Zarr 0.5 images and plain arrays are read, with or without mango's metadata; nothing is ever
    written. The voxel size of an image is that of its OME metadata, the voxel size of a plain array
    its ``voxel_size_xyz``, in the order x, y, z. Axes of channels and times with one element are
    left out. If axes have different units, all lengths are converted to one unit. If a unit is not
    known, such as ``pixel``, lengths are taken for voxels, with a warning.

    Parameters
    ----------
    path
        The store.
    level
        Which level of detail, 0 for the finest; `Dataset.levels` lists them.
    strict
        Whether a missing shard is an error (True) or fill values (False). By default it is an error
        if this package wrote the store, because it writes every shard. In other stores missing
        shards are fill values, as the Zarr specification says.
    storage_options
        For a URL of an object store: ``{"endpoint": ..., "region": ...}`` by obstore's names, never
        with credentials, which come from the environment.
    voxel_size, voxel_unit
        Edge lengths of a voxel (one for all axes, or one each) and their unit, instead of what the
        store says. The unit alone does not convert the numbers that are stored.
    follow_links
        Whether to follow links that lead out of the store, as git-annex makes them. By default the
        setting ``ctlab-zarr.follow-links`` decides, which refuses them.
    **kwargs
        For `dask.array.from_array`, for example ``chunks=(64, 512, 512)``.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path.
    UnsupportedFormatError
        It is not a Zarr v3 store, its version of OME-Zarr or of mango's metadata is unknown, or it
        is an image without two or three axes of space, or with several channels or times.
    IncompleteDatasetError
        An array that the metadata lists is missing.
    MetadataError
        The metadata contradicts itself.
    InvalidArgumentError
        There is no such level.
    """
    from ctlab_dask_zarr.read.zarr import open_volume

    refuse_unknown(dataset_from_zarr, kwargs)
    volume = open_volume(
        path,
        level=level,
        strict=strict,
        storage_options=storage_options,
        voxel_size=voxel_size,
        voxel_unit=voxel_unit,
        follow_links=follow_links,
        **kwargs,
    )
    return Dataset._of(volume)
