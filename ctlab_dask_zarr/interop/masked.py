"""Filters that ignore masked voxels and keep them masked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.json_values import plain_json
from ctlab_dask_zarr.interop.derived import derived
from ctlab_dask_zarr.volume import Volume

if TYPE_CHECKING:
    from ctlab_dask_zarr.formats.history import HistoryValue

MaskedMethod = Literal["linear", "pointwise", "nan"]

#: With a smaller share of the kernel's weight on valid voxels, there is no value to compute.
_LEAST_WEIGHT = 1e-6
#: How far rounding may move a smoothing filter's share below zero or above one. scipy's
#: gaussian_laplace, whose weights should add up to zero, turns ones into 0.0003.
_WEIGHT_TOLERANCE = 1e-3

Filter = Callable[..., Any]


def map_masked(
    volume: Volume,
    func: Filter,
    method: MaskedMethod,
    depth: int | tuple[int, ...] | None,
    datatype: DataType | str | None,
    history_key: str | None,
    kwargs: Mapping[str, Any],
) -> Volume:
    """Return a volume whose valid voxels went through `func`: see `Dataset.map_masked`."""
    import dask.array as da

    if method not in get_args(MaskedMethod):
        raise InvalidArgumentError(
            f"method={method!r} is not one of {', '.join(map(repr, get_args(MaskedMethod)))}"
        )
    if not callable(func):
        raise InvalidArgumentError(f"func={func!r} cannot be called")
    depths = _validated_depth(depth, volume.data.numblocks, method)
    try:
        kind = volume.datatype if datatype is None else DataType.from_basename(str(datatype))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    target = np.dtype(volume.dtype) if datatype is None or kind is None else kind.dtype
    mask_value, new_mask = volume.mask_value, None if kind is None else kind.mask_value
    may_be_masked = mask_value is not None or np.dtype(volume.dtype).kind == "f"
    if may_be_masked and new_mask is None and target.kind != "f":
        raise InvalidArgumentError(
            f"datatype={str(datatype)!r} has no mask value for the voxels that are masked"
        )
    data = da.map_overlap(
        partial(_filtered, func, method, (mask_value, new_mask), target, kwargs),
        volume.data,
        # dask refuses a depth larger than the volume.
        depth=tuple(map(min, depths, volume.shape)),
        # No padding: at the faces of the volume the filter behaves as it does without blocks.
        boundary="none",
        dtype=target,
        meta=np.empty((0,) * volume.data.ndim, target),
    )
    function = _function_name(func)
    name = function.rpartition(".")[2]
    entry: dict[str, HistoryValue] = {
        "operation": "map_masked",
        "function": function,
        "method": method,
        "depth": list(depths),
        "arguments": _arguments(func, kwargs),
    }
    return derived(volume, name, entry, history_key=history_key, data=data, datatype=kind)


def _validated_depth(
    depth: Any, numblocks: tuple[int, ...], method: MaskedMethod
) -> tuple[int, ...]:
    if depth is None:
        if method != "pointwise" and max(numblocks) > 1:
            raise InvalidArgumentError(
                f"the data are {' x '.join(map(str, numblocks))} blocks, and depth is not given: "
                "pass how many voxels the function looks to each side, or there will be seams "
                "between blocks: int(4 * sigma + 0.5) for a Gaussian, n // 2 for a window of n "
                "voxels; for a function of single voxels pass method='pointwise'"
            )
        return (0,) * len(numblocks)
    try:
        given = depth if isinstance(depth, tuple | list) else (depth,) * len(numblocks)
        depths = tuple(map(operator.index, given))
    except TypeError:
        depths = ()
    if len(depths) != len(numblocks) or min(depths) < 0 or isinstance(depth, bool):
        raise InvalidArgumentError(
            f"depth={depth!r}: pass a whole number of voxels, or one for each of the "
            f"{len(numblocks)} axes"
        )
    if method == "pointwise" and any(depths):
        raise InvalidArgumentError(
            f"depth={depth!r}: a pointwise function sees no neighbours; leave depth out"
        )
    return depths


def _filtered(
    func: Filter,
    method: MaskedMethod,
    masks: tuple[Any, Any],
    target: np.dtype[Any],
    kwargs: Mapping[str, Any],
    block: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    mask_value, new_mask = masks
    if isinstance(block, np.ma.MaskedArray) and np.ma.is_masked(block):
        if mask_value is None and block.dtype.kind != "f":
            raise InvalidArgumentError(
                "the data are masked arrays, but their data type has no value for masked voxels: "
                "give the dataset a datatype that has one, as datatype='tomo'"
            )
        block = block.filled(np.nan if mask_value is None else mask_value)
    valid = np.ones(block.shape, bool) if mask_value is None else block != mask_value
    if block.dtype.kind == "f":
        valid &= ~np.isnan(block)
    masked_as = new_mask
    if new_mask is None:
        # Integers without a mask value have no masked voxels here.
        masked_as = np.nan if target.kind == "f" else 0
    result = np.full(block.shape, masked_as, target)
    if not valid.any():
        return result
    # float32 holds integers of 16 bits exactly.
    work = np.float32 if block.dtype.itemsize <= 2 else np.float64
    if method == "pointwise":
        values = _checked(func(block[valid], **kwargs), block[valid].shape)
    elif method == "nan":
        found = func(np.where(valid, block, work(np.nan)).astype(work, copy=False), **kwargs)
        values = _checked(found, block.shape)[valid]
    else:
        weights = _smoothing_weights(func, kwargs, valid, work)
        sums = func(np.where(valid, block, 0).astype(work, copy=False), **kwargs)
        sums = _checked(sums, block.shape)
        # A valid voxel keeps its value if the kernel gives no weight to any valid one.
        found = np.divide(sums, weights, out=block.astype(work), where=weights > _LEAST_WEIGHT)
        values = found[valid]
    is_number = ~np.isnan(values)
    if new_mask is None and target.kind != "f" and not is_number.all():
        raise InvalidArgumentError(
            f"{_function_name(func)} returned NaN, which {target} without a mask value cannot "
            "store: pass a datatype that can, as datatype='tomo_float'"
        )
    valid[valid] = is_number
    result[valid] = _as_voxels(values[is_number], target, new_mask)
    return result


def _smoothing_weights(
    func: Filter, kwargs: Mapping[str, Any], valid: npt.NDArray[np.bool_], work: type
) -> npt.NDArray[Any]:
    """Return for every voxel the share of the filter's weight that lies on valid voxels.

    Raises `InvalidArgumentError` if the filter does not smooth, as then this is not a share.
    """
    weights = _checked(func(valid.astype(work), **kwargs), valid.shape)
    whole = weights
    if not valid.all() and (weights[valid] <= _LEAST_WEIGHT).any():
        # Either these voxels have no valid neighbour, or the weights add up to zero everywhere.
        whole = _checked(func(np.ones(valid.shape, work), **kwargs), valid.shape)
    lowest, highest = float(weights.min()), float(weights.max())
    is_share = lowest > -_WEIGHT_TOLERANCE and highest < 1 + _WEIGHT_TOLERANCE
    if not is_share or whole.max() < _WEIGHT_TOLERANCE:
        raise InvalidArgumentError(
            f"{_function_name(func)} does not smooth: its weights are negative or do not add up to "
            f"one (a voxel's share of valid ones is {lowest:.3g} to {highest:.3g}), and "
            "method='linear' would divide by them. For derivatives such as sobel and "
            "gaussian_laplace use method='nan', which masks voxels whose window meets the mask, or "
            "fill the masked voxels first"
        )
    return weights


def _checked(found: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.asarray(found)
    if array.shape != shape:
        raise InvalidArgumentError(
            f"the function returned {array.shape} for a block of {shape}: map_masked is for "
            "functions that keep the shape"
        )
    return array


def _as_voxels(
    values: npt.NDArray[Any], target: np.dtype[Any], mask_value: Any
) -> npt.NDArray[Any]:
    """Return values rounded to the type of the voxels; none of them is the mask value."""
    if target.kind == "f":
        found = values.astype(target)
        if mask_value is not None:
            found[found == mask_value] = np.nextafter(target.type(mask_value), target.type(0))
        return found
    limits = np.iinfo(target)
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    whole: npt.NDArray[Any] = np.clip(rounded, limits.min, limits.max).astype(target)
    if mask_value is not None:
        whole[whole == mask_value] = mask_value - 1 if mask_value > limits.min else mask_value + 1
    return whole


def _function_name(func: Filter) -> str:
    inner = func.func if isinstance(func, partial) else func
    name = getattr(inner, "__name__", type(inner).__name__)
    return f"{getattr(inner, '__module__', None) or ''}.{name}".lstrip(".")


def _arguments(func: Filter, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, as JSON, with those of a `functools.partial`."""
    if isinstance(func, partial):
        kwargs = ({"*": func.args} if func.args else {}) | func.keywords | dict(kwargs)
    return {key: _plain(value) for key, value in kwargs.items()}


def _plain(value: Any) -> Any:
    try:
        return plain_json(value, "")
    except MetadataError:
        # The repr of a function is an address in memory.
        return _function_name(value) if hasattr(value, "__name__") else repr(value)
