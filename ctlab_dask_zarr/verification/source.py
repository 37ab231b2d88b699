"""What a verification looks at because it was given a source: metadata, voxels, and the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from dask._task_spec import Task

from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.execution.graphs import (
    add_block_tasks,
    add_closure,
    analyse_source,
    is_read,
    results_of,
)
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.problems import Problem
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.rechunk import (
    Rechunk,
    Resources,
    band_layout,
    choose_rechunk,
    group_rows,
)
from ctlab_dask_zarr.read.receipts import Expected
from ctlab_dask_zarr.read.zarr import volume_of
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.verification.checks import Verification, reported
from ctlab_dask_zarr.verification.comparison import (
    metadata_differences,
    native,
    of_source,
    refuse_itself,
)
from ctlab_dask_zarr.verification.contents import Image
from ctlab_dask_zarr.verification.objects import Finding
from ctlab_dask_zarr.verification.scan import all_rows
from ctlab_dask_zarr.verification.voxels import ComparedRows, VoxelCheck, block_problems
from ctlab_dask_zarr.volume import Source, SourceChecks, Volume
from ctlab_dask_zarr.write.graph import overlapping_blocks


class SourceComparison:
    """An image compared with its source; raises `InvalidArgumentError` where they are the same."""

    def __init__(self, checks: Verification, image: Image, source: Volume) -> None:
        self._checks, self._image, self._source = checks, image, source
        self._blocks = analyse_source(source.data)
        if is_read(source.data):
            # What was computed from the dataset may be compared with it.
            refuse_itself(self._blocks.volumes, image.metadata)
        self._found: Volume | None = None
        message = "the documents of its finest level are broken"
        try:
            self._found = volume_of(image.metadata, strict=True) if image.has_finest else None
        except CTLabError as error:
            message = str(error)
        if self._found is None:
            path = image.metadata.path
            text = f"{path} was not compared with the source: {message}"
            checks.problems.append(Problem(path, "unreadable", text))
        else:
            checks.problems += metadata_differences(self._found, source)
        self._kept = [(volume, _checks_of(volume)) for volume in self._blocks.volumes]
        #: Tasks that compare the source with its own checksums, and are not done by others.
        self._left = {id(task) for _, kept in self._kept for task in kept.tasks}
        self._is_compared = not self._is_comparable

    @property
    def _is_comparable(self) -> bool:
        found, source = self._found, self._source
        if found is None or found.shape != source.shape:
            return False
        return bool(native(found.dtype) == native(source.dtype))

    def rechunk(self, path: str, array: StoredArray, resources: Resources) -> Rechunk | None:
        """Return how the blocks of the source become rows of the shards of an array.

        None where the array is not the one to compare, or blocks are better compared one by one.
        """
        is_finest = self._image.has_finest and path == self._image.arrays[0][0]
        is_whole = array.shape == self._source.shape and array.is_direct and array.is_sharded
        if not (is_finest and is_whole and self._is_comparable and self._blocks.is_independent):
            return None
        found = choose_rechunk(
            Layout.of(array), self._blocks.chunks, array.dtype.itemsize, row_axis_of(array),
            independent=True, resources=resources, can_merge=True,
        )  # fmt: skip
        return None if found.method == "tasks" else found

    def add_rows(
        self,
        store: Store,
        path: str,
        array: StoredArray,
        shards: Iterable[Expected],
        rechunk: Rechunk,
    ) -> None:
        """Add tasks that compare shards row by row, and with their receipts."""
        self._is_compared = True
        assert self._found is not None
        layout, axis = Layout.of(array), row_axis_of(array)
        cells = layout if rechunk.band is None else band_layout(layout, axis, rechunk.band)
        expected = {shard.coords: shard for shard in shards}
        made_of = {cell: c for c in expected for cell in layout.cells(c, cells.task_shape)}
        groups = [[cell] for cell in made_of]
        if rechunk.method == "stream":
            groups = list(group_rows(cells, made_of))
        n_rows = cells.task_shape[axis] // array.inner_chunk_shape[axis]
        checks, checked = self._checks, self._voxel_checks()
        used: dict[Any, None] = {}
        blocks_of = overlapping_blocks(self._blocks, cells, groups)
        for group, blocks in zip(groups, blocks_of, strict=True):
            first = group[0][axis] * n_rows % len(all_rows(array))
            # Rows beyond the array have bytes too, maybe; so has the index, at the end.
            is_last = (group[0][axis] + 1) * cells.task_shape[axis] >= array.shape[axis]
            rows = range(first, len(all_rows(array)) if is_last else first + n_rows)
            work = ComparedRows(
                store, path, array.document, self._found.mask_value,
                tuple(expected[made_of[cell]] for cell in group), rows,
            )  # fmt: skip
            made = [self._blocks.recipe(*block) for block in blocks]
            recipes = [(r, checked.pop((r.start, r.shape), None)) for r, _ in made]
            self._left.difference_update(id(check) for _, check in recipes)
            inputs = dict.fromkeys(key for _, needed in made for key in needed)
            used |= inputs
            key = (f"compare-rows-{checks.token}", *group[0])
            topic = topic_of(checks.token)
            checks.tasks[key] = Task(
                key, _compare_rows, topic, work, recipes, results_of(inputs), _data_producer=True
            )
            checks.keys.append(key)
        add_closure(checks.tasks, self._blocks, used)

    def _voxel_checks(self) -> dict[tuple[Shape, Shape], VoxelCheck]:
        """Return what compares blocks, by their places, with checksums of the source."""
        mine = [kept for volume, kept in self._kept if volume is self._source.source]
        if not is_read(self._source.data):
            return {}
        return {
            region: task
            for kept in mine
            for region, task in zip(kept.regions, kept.tasks, strict=False)
        }

    def add_rest(self) -> None:
        """Add tasks for blocks that no rows were compared with, and for the source itself."""
        checks = self._checks
        if not self._is_compared:
            assert self._found is not None
            assert self._found.source is not None
            stored, mask_value = self._found.source, self._found.mask_value
            check = partial(check_block, topic_of(checks.token), stored, mask_value)
            name = f"compare-block-{checks.token}"
            checks.keys += add_block_tasks(checks.tasks, self._blocks, check, name)
            checks.nbytes += int(self._source.data.nbytes)
        for volume, kept in self._kept:
            left = [task for task in kept.tasks if id(task) in self._left]
            _add_source_checks(checks, volume, kept, left)


def prepare_source_check(source: Volume) -> Verification:
    """Prepare to compare what a dataset is read from with the checksums that its source keeps."""
    checks = Verification()
    for volume in analyse_source(source.data).volumes:
        kept = _checks_of(volume)
        _add_source_checks(checks, volume, kept, kept.tasks)
    return checks


def _checks_of(volume: Source) -> SourceChecks:
    volume.check_unchanged()
    return volume.checks()


def _add_source_checks(
    checks: Verification, volume: Source, kept: SourceChecks, tasks: Iterable[VoxelCheck]
) -> None:
    """Add the `tasks` among those that a source keeps, and what else it says of itself."""
    checks.problems += map(of_source, kept.problems)
    checks.notes += kept.notes
    for task in tasks:
        checks.add("check-source", _check_source, task)
    if kept.n_unchecked:
        checks.notes.append(
            f"the source {volume.location} keeps no checksums of {kept.n_unchecked} of "
            f"{kept.n_objects} objects: damage that can be decoded is not found in them"
        )


def _check_source(check: Callable[[], list[Problem]]) -> list[Problem]:
    return [*map(of_source, check())]


def _compare_rows(
    topic: str,
    rows: ComparedRows,
    recipes: Sequence[tuple[BlockRecipe, VoxelCheck | None]],
    shared: Mapping[Any, Any],
) -> list[Finding]:
    reporter = Reporter(topic)
    found = rows.compare(recipes, shared, reporter.add)
    reporter.finish()
    return found


def check_block(
    topic: str,
    stored: Source,
    mask_value: Number | None,
    start: Shape,
    shape: Shape,
    block: Any,
) -> list[Finding]:
    """Compare a block with the same region of what is stored, and report progress."""
    nbytes = prod(shape) * stored.dtype.itemsize
    return reported(topic, nbytes, block_problems, stored, mask_value, start, shape, block)
