"""The blocks that are loaded while rows of shards are gone through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.execution.graphs import accepted_block
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.write.shards.array import LazyBlock

#: Where voxels begin, and the voxels.
Placed = tuple[Shape, npt.NDArray[Any]]


class BlockWindow:
    """The loaded blocks that the row under way needs, and no others.

    Nobody else may keep `blocks`: a slab that is still referred to while the next one is loaded
    doubles the memory of a task.
    """

    def __init__(
        self,
        blocks: Iterable[LazyBlock],
        axis: int,
        dtype: np.dtype[Any],
        mask_value: Number | None,
    ) -> None:
        self._axis = axis
        self._declared = (dtype, mask_value)
        # Blocks come in C order. Where an object is one inner chunk thick along the axes before the
        # row axis, that is another order.
        self._coming = sorted(blocks, key=lambda block: block.start[axis], reverse=True)
        self.blocks: list[Placed] = []

    def move_to(self, start: int, stop: int) -> None:
        """Have every block that has elements in ``start:stop``, and drop those before.

        A block that raises is not asked for again.
        """
        axis = self._axis
        self.blocks = [(at, b) for at, b in self.blocks if at[axis] + b.shape[axis] > start]
        while self._coming and self._coming[-1].start[axis] < stop:
            block = self._coming.pop()
            voxels = accepted_block(block.load(), block.start, block.shape, *self._declared)
            self.blocks.append((block.start, voxels))
            del block, voxels
