"""Methods of a dataset that make another one of it: parts, bins, other grey values, filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.datatype import DataType
    from ctlab_dask_zarr.interop.masked import MaskedMethod


class DerivableVolume(Volume):
    """A volume with the methods that make a new, lazy one; `Dataset` is one of these."""

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
        >>> from ctlab_dask_zarr import Dataset
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

    def __getitem__(self, index: Any) -> Self:
        """Return a part of the dataset as a dataset of its own, still lazy.

        Its origin is where its voxels lie, its identifier that of the dataset with ``_crop``, and
        its history has an entry that says which voxels it has.

        Parameters
        ----------
        index
            Slices of step 1 and whole numbers, in the order of the axes; a whole number leaves its
            axis out, and two axes have to remain.

        Raises
        ------
        InvalidArgumentError
            Nothing is there, or not all of it.

        Examples
        --------
        >>> import dask.array as da
        >>> from ctlab_dask_zarr import Dataset
        >>> ds = Dataset(
        ...     da.zeros((40, 50, 60), dtype="uint16"), dimension_names=("z", "y", "x"),
        ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
        ... )
        >>> part = ds[10:20, :, 30:]
        >>> part, part.origin
        (<Dataset tomo (z: 10, y: 50, x: 30) uint16, voxel 2.5 um>, (25.0, 0.0, 75.0))
        """
        from ctlab_dask_zarr.interop.crop import cropped

        return type(self)._of(cropped(self, index))

    def crop(self, **ranges: slice | tuple[int, int]) -> Self:
        """Return a part of the dataset, by ranges of voxels along named axes.

        Parameters
        ----------
        **ranges
            First voxel and the one after the last, as in ``scan.crop(z=(100, 200))``, or a slice;
            axes that are not named stay whole.

        Raises
        ------
        InvalidArgumentError
            There is no such axis, or a range is not inside it.

        Examples
        --------
        >>> import dask.array as da
        >>> from ctlab_dask_zarr import Dataset
        >>> ds = Dataset(
        ...     da.zeros((40, 50, 60), dtype="uint16"), dimension_names=("z", "y", "x"),
        ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
        ... )
        >>> ds.crop(z=(10, 20)).shape
        (10, 50, 60)
        """
        from ctlab_dask_zarr.interop.crop import by_name

        slices = {n: slice(*r) if isinstance(r, tuple | list) else r for n, r in ranges.items()}
        return self[tuple(by_name(self, slices, "crop"))]

    def sel(self, **positions: slice | float) -> Self:
        """Return a part of the dataset, by positions along named axes in `voxel_unit`.

        Parameters
        ----------
        **positions
            ``z=slice(0.5, 1.2)`` takes the voxels whose centres lie there, both ends included, as
            xarray does; ``z=0.5`` takes the nearest plane. Positions begin at `origin`.

        Raises
        ------
        InvalidArgumentError
            There is no such axis, or no voxel there; the message says where the axis begins and
            ends.

        Examples
        --------
        >>> import dask.array as da
        >>> from ctlab_dask_zarr import Dataset
        >>> ds = Dataset(
        ...     da.zeros((40, 50, 60), dtype="uint16"), dimension_names=("z", "y", "x"),
        ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5), datatype="tomo",
        ... )
        >>> ds.sel(z=slice(10, 20), x=slice(None, 50)).shape
        (5, 50, 21)
        """
        from ctlab_dask_zarr.interop.crop import selected

        return type(self)._of(selected(self, positions))

    def binned(self, factor: int = 2, *, method: str | None = None) -> Self:
        """Return the dataset with voxels `factor` times as large along each axis, still lazy.

        The rules are those of levels: masked voxels do not enter a mean (docs/pyramids.md).

        Parameters
        ----------
        factor
            2, 4, 8 or another power of two.
        method
            ``'mean'``, ``'mode'``, ``'nearest'`` or ``'max'``; by default that of levels.

        Raises `InvalidArgumentError` for another factor, or a method that does not fit the voxels.
        """
        from ctlab_dask_zarr.interop.resample import binned

        return type(self)._of(binned(self, factor, method))

    def rescaled(
        self,
        dtype: Any,
        *,
        window: tuple[float, float] | None = None,
        values: tuple[float, float] | None = None,
    ) -> Self:
        """Return the dataset with its grey values in another dtype, still lazy.

        Parameters
        ----------
        dtype
            ``'uint8'``, ``'uint16'`` (data type tomo) or ``'float32'`` (tomo_float). Masked voxels
            stay masked: the mask value of that type, and 0 in uint8, whose valid voxels begin at 1.
        window, values
            For integers: which greys to keep, as percentiles of the valid voxels of 16 planes
            (``(0.5, 99.5)``; all by default), or as values. What lies outside becomes the first or
            the last one.

        Raises `InvalidArgumentError` for classes, another dtype, or limits that are not in order.
        """
        from ctlab_dask_zarr.interop.resample import rescaled

        return type(self)._of(rescaled(self, dtype, window, values))

    @classmethod
    def _of(cls, volume: Volume) -> Self:
        """Return a record as a dataset; both share the same data."""
        dataset = cls.__new__(cls)
        dataset.__dict__.update(volume.__dict__)
        return dataset
