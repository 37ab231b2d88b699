"""Filters that leave the mask out, and put it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.datatype import DataType

if TYPE_CHECKING:
    from ctlab_dask_zarr.dataset import Dataset
    from ctlab_dask_zarr.formats.history import HistoryValue

__all__ = ["MaskedMethod", "map_masked"]

MaskedMethod = Literal["linear", "pointwise", "nan"]

#: Below this share of the kernel's weight there is nothing to make a value of.
_LEAST_WEIGHT = 1e-6

Filter = Callable[..., Any]


def map_masked(
    dataset: Dataset,
    func: Filter,
    *,
    method: MaskedMethod = "linear",
    depth: int | tuple[int, ...] = 0,
    datatype: DataType | str | None = None,
    history_key: str | None = None,
    **kwargs: Any,
) -> Dataset:
    """Return a dataset whose valid voxels went through `func`: see `Dataset.map_masked`."""
    import dask.array as da

    if method not in get_args(MaskedMethod):
        raise InvalidArgumentError(
            f"method={method!r} is none of {', '.join(map(repr, get_args(MaskedMethod)))}"
        )
    if not callable(func):
        raise InvalidArgumentError(f"func={func!r} cannot be called")
    depths = _validated_depth(depth, dataset.shape, method)
    try:
        kind = dataset.datatype if datatype is None else DataType.from_basename(str(datatype))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    target = np.dtype(dataset.dtype) if datatype is None or kind is None else kind.dtype
    mask_value = dataset.mask_value
    new_mask = None if kind is None else kind.mask_value
    may_be_masked = mask_value is not None or np.dtype(dataset.dtype).kind == "f"
    if may_be_masked and new_mask is None and target.kind != "f":
        raise InvalidArgumentError(
            f"datatype={str(datatype)!r} has no mask value for the voxels that are masked"
        )
    name = getattr(func, "__name__", type(func).__name__)
    data = da.map_overlap(
        partial(_filtered, func, method, (mask_value, new_mask), target, kwargs),
        dataset.data,
        depth=depths,
        # At the faces of the volume the filter sees what it would see of the whole volume.
        boundary="none",
        dtype=target,
        meta=np.empty((0,) * dataset.data.ndim, target),
    )
    entry: dict[str, HistoryValue] = {
        "operation": "map_masked",
        "function": f"{getattr(func, '__module__', '')}.{name}".lstrip("."),
        "method": method,
        "depth": list(depths),
        "arguments": {key: _plain(value) for key, value in kwargs.items()},
    }
    key = history_key or f"{datetime.now():%Y%m%d_%H%M%S}_{name}"
    return type(dataset).from_modified(
        dataset,
        data=data,
        datatype=kind,
        history_entry=entry,
        history_key=key,
        dataset_id_suffix=name,
    )


def _validated_depth(
    depth: int | tuple[int, ...], shape: tuple[int, ...], method: MaskedMethod
) -> tuple[int, ...]:
    depths = (depth,) * len(shape) if isinstance(depth, int) else tuple(depth)
    if len(depths) != len(shape) or not all(
        isinstance(d, int) and not isinstance(d, bool) and d >= 0 for d in depths
    ):
        raise InvalidArgumentError(
            f"depth={depth!r} is not one number of voxels, nor one for each of {len(shape)} axes"
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
    valid = np.ones(block.shape, bool) if mask_value is None else block != mask_value
    if block.dtype.kind == "f":
        valid &= ~np.isnan(block)
    masked_as = new_mask
    if new_mask is None:
        masked_as = np.nan if target.kind == "f" else 0  # Of integers none is masked then.
    result = np.full(block.shape, masked_as, target)
    if not valid.any():
        return result
    # Exact for integers of 16 bits.
    work = np.float32 if block.dtype.itemsize <= 2 else np.float64
    if method == "pointwise":
        found = _checked(func(block[valid], **kwargs), block[valid].shape)
        result[valid] = _as_voxels(found, target, new_mask)
        return result
    if method == "nan":
        found = func(np.where(valid, block, work(np.nan)).astype(work, copy=False), **kwargs)
        found = _checked(found, block.shape)
    else:
        weights = _checked(func(valid.astype(work), **kwargs), block.shape)
        values = func(np.where(valid, block, 0).astype(work, copy=False), **kwargs)
        sums = _checked(values, block.shape)
        # A valid voxel without weight keeps its value: the kernel does not see it itself.
        has_weight = np.abs(weights) > _LEAST_WEIGHT
        found = np.divide(sums, weights, out=block.astype(work), where=has_weight)
    valid &= ~np.isnan(found)
    result[valid] = _as_voxels(found[valid], target, new_mask)
    return result


def _checked(found: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.asarray(found)
    if array.shape != shape:
        raise InvalidArgumentError(
            f"the function made {array.shape} of a block of {shape}: map_masked is for functions "
            "that keep the shape"
        )
    return array


def _as_voxels(
    values: npt.NDArray[Any], target: np.dtype[Any], mask_value: Any
) -> npt.NDArray[Any]:
    """Return values rounded into the type of the voxels, none of them the mask's."""
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


def _plain(value: Any) -> Any:
    """Return an argument as JSON keeps it; as text where it cannot."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
