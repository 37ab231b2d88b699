"""Write single objects of a store again: staged beside it, proven, and then put in their place.

Objects of level 0 are made of the source, as a write makes them; those of a coarser level of the
next finer one, where what was just made counts. The rest of the store is only read. An object whose
bytes are not those that its receipt asks for, as another program encodes otherwise, needs a proof
that the source is the same: all that is left of the array has to be equal to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, List, TaskRef
from dask.delayed import Delayed

from ctlab_dask_zarr.codec.extents import Region, cells
from ctlab_dask_zarr.codec.region import read_region, rows_of
from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.codec.values import have_same_bits
from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.execution.graphs import SourceGraph, accepted_block, add_tree
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number, ShardReceipt, object_key
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.planning.rechunk import Resources, choose_rechunk
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.graph import Group, WriteGraph
from ctlab_dask_zarr.write.shards.array import LazyBlock, ShardTask, StagedArray
from ctlab_dask_zarr.write.staging.remaining import Remaining
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite

#: So many intact objects of a level tell by which method it was made.
_N_SAMPLED = 4


@dataclass(frozen=True)
class MendedArray:
    """An array some of whose objects are made again, `damaged` by their coordinates.

    It is at `place` in the store; its voxels are those of a source, or follow from the array
    number `finer` of the repair by `factors` and `method`. `absent` objects are all fill value, and
    `lost` ones are damaged and stay so.
    """

    place: str
    array: StoredArray
    damaged: frozenset[Shape]
    absent: frozenset[Shape] = frozenset()
    lost: frozenset[Shape] = frozenset()
    mask_value: Number | None = None
    finer: int | None = None
    factors: Shape = ()
    method: DownsampleMethod = "mean"

    @cached_property
    def layout(self) -> Layout:
        """The tasks of writing it."""
        return Layout.of(self.array)

    @cached_property
    def tasks(self) -> list[Shape]:
        """The tasks that make the damaged objects; without sharding they make others too."""
        return sorted({self.task_of(coords) for coords in self.damaged})

    def task_of(self, coords: Shape) -> Shape:
        """Return the task that makes the object at some coordinates."""
        layout = self.layout
        places = zip(coords, layout.object_shape, layout.task_shape, strict=True)
        return tuple(c * n // t for c, n, t in places)

    def intact(self) -> Iterable[Shape]:
        """Yield the coordinates of all objects that are stored whole."""
        others = self.damaged | self.absent | self.lost
        for coords in product(*map(range, self.array.grid_shape)):
            if coords not in others:
                yield coords

    def finer_region(self, region: tuple[slice, ...], finer: StoredArray) -> tuple[slice, ...]:
        """Return what of the finer array becomes a region of this one."""
        places = zip(region, self.factors, finer.shape, strict=True)
        return tuple(slice(part.start * f, min(part.stop * f, n)) for part, f, n in places)


@dataclass(frozen=True)
class StagedRepair(StagedWrite):
    """A repair under way, as workers see it; level 0 of the image is the first array."""

    arrays: tuple[MendedArray, ...] = ()

    @property
    def store(self) -> Store:
        """Where objects are made; in an object store not in their place, as it is not empty."""
        return self.request.destination.staged("store", self.staging_id)

    def array(self, level: int) -> StagedArray:
        """Return one array of the repair."""
        one = self.arrays[level]
        return StagedArray(self.store, one.place, one.array, one.mask_value, level)

    def sizes(self) -> dict[str, int]:
        """Return the size of every object that was made, by key."""
        return {key: nbytes for key, (nbytes, _) in self.store.stats().items()}

    def voxels(self, number: int, region: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read a region of an array; objects that were made again count, not what they replace."""
        one, there = self.arrays[number], self.request.destination.store
        out = np.empty(tuple(part.stop - part.start for part in region), one.array.dtype)
        start = tuple(part.start for part in region)
        for coords, _, at in cells(region, one.array.object_shape):
            store = self.store if coords in one.damaged else there
            strict = coords not in one.absent
            inside = _moved(at, start)
            out[at] = read_region(store, one.place, one.array, inside, strict=strict)
        return out

    def made(self, number: int, region: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Return a region of a coarser array, made of the finer one."""
        from ctlab_dask_zarr.codec.downsample import halve

        one = self.arrays[number]
        assert one.finer is not None
        finer = self.arrays[one.finer].array
        voxels = self.voxels(one.finer, one.finer_region(region, finer))
        return halve(voxels, one.factors, one.method, one.mask_value)


def _moved(region: Region, start: Shape) -> Region:
    return tuple(slice(p.start + s, p.stop + s) for p, s in zip(region, start, strict=True))


def stage_repair(
    destination: Destination, arrays: Sequence[MendedArray], root: bytes, source: Any
) -> StagedRepair:
    """Make the staging folder of a repair, or go on in it; `source` is the identity of the source.

    Raises `StagingExistsError` where another write has the folder, or a repair from another source.
    """
    described = [
        {"path": one.place, "document": json.loads(one.array.document)} for one in arrays[:1]
    ]
    identity = {"source": source, "datatype": None, "arrays": described, "repair": True}
    first = arrays[0].array
    level = PlannedLevel(
        arrays[0].place, shape=first.shape, factors=(1,) * len(first.shape), document=first.document
    )
    request = StageRequest(
        destination=destination,
        levels=(level,),
        documents=(),
        identity=json.dumps(identity, sort_keys=True),
        resume=True,
        extends=hashlib.sha256(root).hexdigest(),
    )
    staged = stage(request)
    return StagedRepair(staged.request, staged.staging_id, arrays=tuple(arrays))


class Repairing(NamedTuple):
    """The tasks that make objects, or compare them: how many, and the size of their voxels."""

    graph: Delayed
    keys: list[Any]
    nbytes: int


def prepare_making(
    staged: StagedRepair, source: SourceGraph | None, resources: Resources
) -> Repairing:
    """Return the tasks that make all damaged objects; those that are made already are left out."""
    is_left = _is_left(staged, staged.recorded(staged.sizes()))
    graph, method = _graph_of(staged, source, resources, is_left)
    writers: dict[int, Mapping[Shape, Any]] = {}
    nbytes = 0
    for number, one in enumerate(staged.arrays):
        tasks = [coords for coords in one.tasks if is_left(number, coords)]
        nbytes += sum(map(one.layout.n_elements, tasks)) * one.array.dtype.itemsize
        if one.finer is None:
            writers[number] = graph.add_finest(source, method) if source and tasks else {}
            continue
        mine: dict[Shape, Any] = {}
        finer, above = staged.arrays[one.finer], writers[one.finer]
        for coords in tasks:
            region = one.finer_region(one.layout.region(coords), finer.array)
            parents = [c for c, _, _ in cells(region, finer.layout.task_shape)]
            awaited = [above[c] for c in parents if c in above]
            key = (f"repair-level-{graph.token}", number, *coords)
            mine[coords] = graph.add_making(key, _write_coarser, number, coords, awaited=awaited)
        writers[number] = mine
    keys = [key for found in writers.values() for key in dict.fromkeys(found.values())]
    end = f"repair-{graph.token}"
    graph.add(end, list, graph.add_recording(keys))
    return Repairing(graph.ending(end), keys, nbytes)


def _is_left(staged: StagedRepair, kept: Mapping[str, ShardReceipt]) -> Any:
    """Return whether a task of an array has objects that were not made yet."""

    def is_left(number: int, coords: Shape) -> bool:
        one = staged.arrays[number]
        keys = (object_key(one.place, one.array, c) for c in one.layout.object_coords(coords))
        return any(key not in kept for key in keys)

    return is_left


def _graph_of(
    staged: StagedRepair, source: SourceGraph | None, resources: Resources, is_left: Any
) -> tuple[WriteGraph, Any]:
    first = staged.arrays[0]
    tasks = [ShardTask(0, coords) for coords in first.tasks if is_left(0, coords)]
    graph = WriteGraph(staged.request, Remaining(tuple(tasks)))
    graph.tasks[graph.staged.key] = DataNode(graph.staged.key, staged)
    if source is None:
        return graph, "none"
    found = choose_rechunk(
        first.layout, source.chunks, first.array.dtype.itemsize, row_axis_of(first.array),
        independent=source.is_independent, resources=resources,
    )  # fmt: skip
    return graph, found.method


def _write_coarser(
    staged: StagedRepair, number: int, coords: Shape, parents: Any
) -> list[ShardReceipt]:
    """Write one task of a coarser level, after those of the finer one that it is made of."""
    one = staged.arrays[number]
    blocks = [
        LazyBlock(
            tuple(part.start for part in row),
            tuple(part.stop - part.start for part in row),
            partial(staged.made, number, row),
        )
        for row in rows_of(one.layout.region(coords), one.array)
    ]
    return staged.write(number, [coords], blocks)


def prepare_proof(
    staged: StagedRepair, source: SourceGraph, resources: Resources
) -> Repairing | None:
    """Return the tasks that compare all intact objects of level 0 with the source; None for none.

    The result is a list of the keys of objects that differ.
    """
    first = staged.arrays[0]
    tasks = sorted({first.task_of(coords) for coords in first.intact()})
    if not tasks:
        return None
    graph, method = _graph_of(staged, source, resources, lambda *_: False)
    found = graph.add_tasks("compare-shard", source, method, first.layout, tasks, _compare_shards)
    keys = [*dict.fromkeys(found.values())]
    end = f"proof-{graph.token}"
    root = add_tree(graph.tasks, keys, _joined, f"join-proof-{graph.token}")
    graph.add(end, _joined, List(TaskRef(root)))
    nbytes = sum(map(first.layout.n_elements, tasks)) * first.array.dtype.itemsize
    return Repairing(graph.ending(end), keys, nbytes)


def _joined(parts: Sequence[Sequence[str]]) -> list[str]:
    return [key for part in parts for key in part]


def _compare_shards(staged: StagedRepair, group: Group, blocks: Iterable[LazyBlock]) -> list[str]:
    """Return the keys of intact objects of level 0 that are not what the source has there."""
    one, there = staged.arrays[0], staged.request.destination.store
    mine = {c for task in group for c in one.layout.object_coords(task)} - one.damaged - one.lost
    differ = set()
    for block in blocks:
        voxels = accepted_block(
            block.load(), block.start, block.shape, one.array.dtype, one.mask_value
        )
        region = tuple(slice(s, s + n) for s, n in zip(block.start, block.shape, strict=True))
        for coords, _, at in cells(region, one.array.object_shape):
            if coords in mine and coords not in differ:
                inside = _moved(at, block.start)
                found = read_region(there, one.place, one.array, inside, strict=False)
                wanted = np.ascontiguousarray(voxels[at])
                if not have_same_bits(found, wanted):
                    differ.add(coords)
    return [object_key(one.place, one.array, coords) for coords in differ]


def method_of(
    staged: StagedRepair, number: int, methods: Sequence[DownsampleMethod]
) -> DownsampleMethod | None:
    """Return the first method by which some intact objects of a level follow from the finer one."""
    one, there = staged.arrays[number], staged.request.destination.store
    assert one.finer is not None
    finer = staged.arrays[one.finer]
    samples = []
    for coords in one.intact():
        region = one.array.object_region(coords)
        above = one.finer_region(region, finer.array)
        broken = finer.damaged | finer.lost
        if any(c in broken for c, _, _ in cells(above, finer.array.object_shape)):
            continue
        samples.append(region)
        if len(samples) == _N_SAMPLED:
            break
    for method in methods if samples else ():
        arrays = [*staged.arrays]
        arrays[number] = replace(one, method=method)
        tried = replace(staged, arrays=tuple(arrays))
        try:
            if all(
                have_same_bits(
                    read_region(there, one.place, one.array, region, strict=True),
                    np.ascontiguousarray(tried.made(number, region)),
                )
                for region in samples
            ):
                return method
        except CTLabError:
            continue
    return None
