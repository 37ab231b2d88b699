"""The dask array of a source that reads with many threads by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.local
import dask.threaded
import numpy as np
from dask.base import get_scheduler
from dask.callbacks import Callback

if TYPE_CHECKING:
    from ctlab_dask_zarr.volume import Source

#: Schedulers of this process, by which nothing is gained over reading at once.
_OF_THIS_PROCESS = (dask.threaded.get, dask.local.get_sync)


class SourceArray(da.Array):
    """A dask array like any other, of a region of a source.

    `compute` reads the region by one call instead of by a task for each block, so that all of its
    requests are under way together, where the scheduler would do that in this process. What is made
    of it is a plain dask array, but for its slices of step 1.
    """

    #: The source and, for each of its axes, an index or what is left of the axis; and the name that
    #: the array has for as long as nothing is assigned to parts of it.
    _region: tuple[Source, tuple[int | range, ...], str]

    @classmethod
    def of(cls, array: da.Array, source: Source, axes: tuple[int | range, ...]) -> SourceArray:
        """Return a dask array as one that knows which region of a source it is."""
        made: SourceArray = cls(array.dask, array.name, array.chunks, meta=array._meta)
        made._region = (source, axes, array.name)
        return made

    def __getitem__(self, index: Any) -> da.Array:
        part: da.Array = da.Array.__getitem__(self, index)
        source, axes, name = self._region
        cut = _cut(axes, index)
        if part is self or cut is None or self.name != name:
            return part
        return SourceArray.of(part, source, cut)

    @property
    def region(self) -> tuple[Source, tuple[int | slice, ...]] | None:
        """The source and the index of what this array is of it; None if it was changed."""
        source, axes, name = self._region
        if self.name != name:
            return None
        return source, tuple(n if isinstance(n, int) else slice(n.start, n.stop) for n in axes)

    def compute(self, **options: Any) -> Any:
        """Return the voxels in memory, as `dask.array.Array.compute` does."""
        scheduler = get_scheduler(scheduler=options.get("scheduler"), cls=type(self))
        region = self.region
        # Who watches tasks, with a progress bar for example, sees them.
        if scheduler not in _OF_THIS_PROCESS or Callback.active or region is None:
            return da.Array.compute(self, **options)
        source, index = region
        return source[index]


def _cut(axes: tuple[int | range, ...], index: Any) -> tuple[int | range, ...] | None:
    """Return what an index leaves of axes; None for one that is more than a region."""
    parts = list(index) if isinstance(index, tuple) else [index]
    left = [n for n, axis in enumerate(axes) if isinstance(axis, range)]
    if any(part is Ellipsis for part in parts):
        place = next(n for n, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (len(left) - len(parts) + 1)
    cut = list(axes)
    for n, part in zip(left, parts, strict=False):
        axis = axes[n]
        assert isinstance(axis, range)
        if isinstance(part, slice):
            cut[n] = axis[part]
            if part.step not in (None, 1):
                return None
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            cut[n] = axis[part]
        else:
            return None
    return tuple(cut)
