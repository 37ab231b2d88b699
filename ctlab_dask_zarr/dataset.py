"""`Dataset`: the record of a volume, with methods that open, write, filter and show it."""

from __future__ import annotations

import copy
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ctlab_dask_zarr.arguments import refuse_unknown
from ctlab_dask_zarr.formats.mango import new_dataset_id
from ctlab_dask_zarr.interop.derivable import DerivableVolume
from ctlab_dask_zarr.volume import Volume, as_volume

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr
    from dask.delayed import Delayed
    from PIL.Image import Image


class Dataset(DerivableVolume):
    """A lazy dask array and what is known about it.

    Each parameter is an attribute too, which cannot be set: `from_modified` makes a new dataset.

    Parameters
    ----------
    data
        The voxels, a dask or NumPy array of two or three axes.
    dimension_names
        One name for each axis; by default ``("z", "y", "x")``, or the last two of them.
    voxel_unit
        Unit of `voxel_size`: a `VoxelUnit` or its name.
    voxel_size
        Edge lengths of a voxel in the order of `dimension_names`, or one for all axes; or text that
        says the unit too, as ``"2.5um"``.
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
    >>> Dataset(da.zeros((4, 5, 6), dtype="uint16"), voxel_size="2.5um", datatype="tomo")
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
            of the dask array (``'slabs'``: whole slices), and what `dataset_from_zarr` takes.

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
        """Write the dataset: as Zarr, or as files of another format.

        Parameters
        ----------
        path
            Where to. A name that ends in ``.zarr``, in ``.nc`` or ``_nc`` (mango netCDF), or in
            ``.raw`` tells what is written, as do the others of `export_dataset`; one that begins
            with the data type is of mango netCDF.
        filetype
            ``'zarr'``, ``'NetCDF'``, ``'raw'``, or ``'auto'``: by the name of the path.
        dataset_id
            ``'auto'``: that of the dataset; None: a new one; else this one.
        compute, **kwargs
            For `dataset_to_zarr`, `dataset_to_netcdf`, `dataset_to_raw` or `export_dataset`.

        Raises
        ------
        InvalidArgumentError
            The name or the file type is of another format.
        """
        from ctlab_dask_zarr.api.export import dataset_to_netcdf, dataset_to_raw, export_to_path
        from ctlab_dask_zarr.api.write import dataset_to_zarr
        from ctlab_dask_zarr.export.named import filetype_of

        # Not only of this class: what anu_ctlab_io makes is written as well.
        kind = filetype_of(path, filetype, self)
        if kind == "raw":
            refuse_unknown(dataset_to_raw, kwargs, "Dataset.to_path of raw")
            return dataset_to_raw(self, path, compute, **kwargs)
        dataset: Volume = as_volume(self)
        if kind == "files":
            return export_to_path(dataset, path, compute, kwargs)
        if dataset_id == "auto":
            dataset_id = dataset.dataset_id
        elif dataset_id is None and (kwargs.get("datatype") or dataset.datatype) is None:
            dataset_id = new_dataset_id(None, datetime.now())
        elif dataset_id is None:
            # The plan makes a new one then, which does not count as given by the caller.
            dataset = copy.copy(dataset)
            vars(dataset)["dataset_id"] = None
        write = dataset_to_netcdf if kind == "netcdf" else dataset_to_zarr
        return write(dataset, path, dataset_id=dataset_id, compute=compute, **kwargs)

    @classmethod
    def from_array(cls, array: Any, *, chunks: Any = "auto", **facts: Any) -> Self:
        """Return any array as a dataset: of NumPy, dask, h5py, Zarr, xarray, or one that slices.

        Parameters
        ----------
        array
            The voxels, two or three axes. What is not in memory stays where it is, and open.
        chunks
            The blocks of the dask array, as `dask.array.from_array` takes them.
        **facts
            What `Dataset` takes: ``voxel_size="2.5um"``, ``datatype``, ``origin``, ... The axes
            have the names that xarray gives them; its coordinates are for `from_xarray`.

        Raises
        ------
        InvalidArgumentError
            It is no array, or a fact is wrong or missing.

        Examples
        --------
        >>> import numpy as np
        >>> Dataset.from_array(np.zeros((4, 5, 6), "uint16"), voxel_size="2.5um")
        <Dataset (z: 4, y: 5, x: 6) uint16, voxel 2.5 um>
        """
        from ctlab_dask_zarr.read.arrays import volume_from_array

        return cls._of(volume_from_array(array, chunks=chunks, **facts))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the voxels in memory, as ``numpy.asarray(scan)`` asks for them."""
        return np.asarray(self.data, dtype)

    def preview(
        self, path: str | os.PathLike[str] | None = None, *, size: int = 512, **options: Any
    ) -> Image:
        """Return a picture of the slices through the middle: see `ctlab_dask_zarr.preview`."""
        from ctlab_dask_zarr.views.preview import preview

        return preview(self, path, size=size, **options)

    def plot(self, axes: Any = None, *, size: int = 512, **imshow: Any) -> Any:
        """Plot the slices through the middle with matplotlib, along axes in `voxel_unit`.

        Parameters
        ----------
        axes
            As many matplotlib axes as there are slices: three, or one for two axes. By default a
            new figure.
        size
            Voxels along the longest edge; if a store has levels, a coarser one is read.
        **imshow
            For `matplotlib.axes.Axes.imshow`, as ``cmap="viridis"``.

        Returns the axes. Raises `MissingExtraError` without matplotlib.
        """
        from ctlab_dask_zarr.views.plot import plot

        return plot(self, axes, size, imshow)

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
        from ctlab_dask_zarr.read.arrays import volume_from_xarray

        return cls._of(volume_from_xarray(array, datatype=datatype))

    def _repr_html_(self) -> str:
        """Return the card that notebooks show, with a picture of the volume."""
        from ctlab_dask_zarr.views.card import dataset_card

        return dataset_card(self)
