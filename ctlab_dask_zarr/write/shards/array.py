"""One array of a write under way: what it looks like, and where its objects go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number, object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.store.store import Store


@dataclass(frozen=True, order=True)
class ShardTask:
    """One unit of writing: the objects of one cell of a level's task grid."""

    level: int
    coords: Shape


@dataclass(frozen=True)
class LazyBlock:
    """Voxels at a place in an array, loaded when the first row needs them."""

    start: Shape
    shape: Shape
    #: Returns memory that nobody changes afterwards. `execution.graphs.accepted_block` checks it.
    load: Callable[[], Any]


@dataclass(frozen=True)
class NextLevel:
    """How a level becomes the next one, and where its tasks leave their pieces of that."""

    factors: Shape
    method: DownsampleMethod
    store: Store
    #: The next level, cut into encoded pieces; None where the pieces hold voxels.
    pieces: StagedArray | None = None


@dataclass(frozen=True)
class StagedArray:
    """One array of a write under way, or the encoded pieces that its shards are made of.

    The objects of the latter are pieces, and so are the cells of its grid.
    """

    store: Store
    path: str
    array: StoredArray
    #: Of masked voxels, which do not count as data.
    mask_value: Number | None = None
    level: int = 0
    next_level: NextLevel | None = None
    #: Pieces end with a checksum and the range of their voxels, and need not be durable.
    is_piece: bool = False

    @cached_property
    def layout(self) -> Layout:
        """The tasks of writing it."""
        return Layout.of(self.array)

    def key(self, coords: Shape) -> str:
        """Return the key of the object at `coords`, below the root of the store."""
        return object_key(self.path, self.array, coords)

    def voxel_piece_key(self, coords: Shape) -> str:
        """Return the key under which the task at `coords` leaves voxels of the next level."""
        # Pieces, beside which it lies, are named by the task that leaves them.
        folder = self.path if self.is_piece else str(self.level)
        return f"{folder}/{'.'.join(map(str, coords))}.of-level-{self.level + 1}"


def piece_array(array: StoredArray, layout: Layout) -> StoredArray:
    """Return an array with encoded pieces for objects, one for each task of `layout`."""
    return replace(array, object_shape=layout.object_shape, key_encoding="v2", separator=".")
