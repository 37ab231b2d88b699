"""A write under way, as workers see it: where its shards, receipts and pieces go.

The staging folder keeps what was written too, so whoever goes on or commits needs nothing else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.errors import StagingExistsError
from ctlab_dask_zarr.execution.progress import Reporter, topic_of
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import ShardReceipt
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import piece_layouts
from ctlab_dask_zarr.planning.rechunk import band_layout
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.shards.array import LazyBlock, NextLevel, StagedArray, piece_array
from ctlab_dask_zarr.write.shards.shard import receipt_of_stored, write_shards
from ctlab_dask_zarr.write.staging.request import StageRequest


@dataclass(frozen=True)
class StagedWrite:
    """A write under way, as workers see it."""

    request: StageRequest
    staging_id: str
    is_committed: bool = False

    @property
    def store(self) -> Store:
        """Where the dataset is put together."""
        return self.request.destination.staged_store(self.staging_id)

    @property
    def receipts(self) -> Store:
        """Where receipts are kept until the commit."""
        return self.request.destination.staged("receipts", self.staging_id)

    @property
    def pieces(self) -> Store:
        """Where the tasks of one level leave what those of the next need."""
        return self.request.destination.staged("pieces", self.staging_id)

    def array(self, level: int) -> StagedArray:
        """Return one array of the write."""
        request = self.request
        chosen = request.levels[level]
        is_in_place = level < request.n_existing or self._is_moved(level)
        return StagedArray(
            store=request.destination.store if is_in_place else self.store,
            path=chosen.path,
            array=chosen.array,
            mask_value=request.mask_value,
            level=level,
            next_level=self._next_level(level, self._encoded_pieces(level + 1)),
        )

    @property
    def bands(self) -> StagedArray | None:
        """Level 0 as it is cut into bands, which are pieces of its shards; None without bands."""
        level, band = self.request.levels[0], self.request.band
        if band is None:
            return None
        return StagedArray(
            store=self.pieces,
            path=f"bands-{band}",
            array=piece_array(level.array, self._task_layout(0)),
            mask_value=self.request.mask_value,
            next_level=self._next_level(0, self._encoded_pieces(1)),
            is_piece=True,
        )

    def written(self, level: int) -> StagedArray:
        """Return a level as it is cut into what single tasks write: bands, or shards."""
        return (self.bands if level == 0 else None) or self.array(level)

    def _task_layout(self, level: int) -> Layout:
        """Return how a level is cut into what single tasks write."""
        chosen, band = self.request.levels[level], self.request.band
        if level or band is None:
            return chosen.layout
        return band_layout(chosen.layout, row_axis_of(chosen.array), band)

    def _is_moved(self, level: int) -> bool:
        """Whether a commit has moved a level into the store that gets it."""
        destination = self.request.destination
        if self.request.extends is None or not destination.can_rename:
            return False
        kind, path = destination.files.kind, self.request.levels[level].path
        is_staged = kind(self.store.path(path)) is not None
        return not is_staged and kind(destination.store.path(path)) == "folder"

    def _next_level(self, level: int, pieces: StagedArray | None) -> NextLevel | None:
        """Return how a level becomes the next one; None for the last."""
        request = self.request
        if level + 1 == len(request.levels):
            return None
        factors = request.levels[level + 1].factors
        return NextLevel(factors, request.downsample, self.pieces, pieces)

    def _encoded_pieces(self, level: int) -> StagedArray | None:
        """Return a level as it is cut into the encoded pieces that tasks of the finer one leave."""
        request, levels = self.request, self.request.levels
        if level == len(levels) or not all(level.array.is_direct for level in levels):
            return None
        written = [self._task_layout(number) for number in range(len(levels))]
        layouts = piece_layouts(written, [a.factors for a in levels])
        layout = layouts[level - 1]
        if layout is None:
            return None
        return StagedArray(
            store=self.pieces,
            path=f"{level - 1}" if level > 1 or not request.band else f"0-bands-{request.band}",
            array=piece_array(levels[level].array, layout),
            mask_value=self.request.mask_value,
            level=level,
            next_level=self._next_level(level, None),
            is_piece=True,
        )

    def refuse_taken_over(self) -> None:
        """Raise if another write has the destination now; to be asked before each shard.

        On a file system the folder of this write is gone then. In an object store all writes put
        their shards in the same place, so a late one has to look.
        """
        destination = self.request.destination
        if not destination.can_rename and (
            destination.staged_plan().get("staging_id") != self.staging_id
        ):
            raise taken_over(destination)

    def write(
        self, level: int, group: Sequence[Shape], blocks: Iterable[LazyBlock]
    ) -> list[ShardReceipt]:
        """Write the shards at the coordinates of `group`, except those that are there whole.

        An attempt that died with its worker may have finished some of a row of shards.
        """
        if self.is_committed:
            return []
        self.refuse_taken_over()
        staged = self.array(level)
        receipts: list[ShardReceipt] = []
        missing = []
        for coords in group:
            found = self.find(level, coords)
            if found is None:
                missing.append(coords)
            else:
                receipts += found
        if missing:
            reporter = self.reporter()
            receipts += write_shards(staged, missing, blocks, reporter.add, reporter.finish)
            reporter.finish()
        return receipts

    def reporter(self) -> Reporter:
        """Return what tells this run of the bytes of a task."""
        return Reporter(topic_of(self.request.run_id[:8]))

    def find(self, level: int, coords: Shape) -> list[ShardReceipt] | None:
        """Return receipts for the objects of a task, read back, if all are there whole.

        The first level added to a store counts as missing: its receipts tell the range of the
        finer level, which cannot be read back from it.
        """
        if level == self.request.n_existing > 0:
            return None
        staged = self.array(level)
        receipts = []
        for object_coords in staged.layout.object_coords(coords):
            if not staged.store.may_have(staged.key(object_coords)):
                return None
            receipt = receipt_of_stored(staged, object_coords)
            if receipt is None:
                return None
            receipts.append(receipt)
        return receipts

    def record(self, receipts: Sequence[ShardReceipt]) -> int:
        """Keep receipts in the staging folder; return how many."""
        if receipts and not self.is_committed:
            text = json.dumps([list(receipt) for receipt in receipts])
            self.receipts.put(f"{uuid.uuid4().hex}.json", text.encode())
        return len(receipts)

    def recorded(self, sizes: Mapping[str, int] | None = None) -> dict[str, ShardReceipt]:
        """Return the kept receipts, by key, of objects that are there with the size they say.

        `sizes` of the objects are looked up where they are not given. Where two attempts disagree
        about an object, neither is believed.
        """
        sizes = self.sizes() if sizes is None else sizes
        kept = self.receipts
        found: dict[str, ShardReceipt] = {}
        doubtful = set()
        for name in kept.list():
            try:
                text = kept.get(name)
            except FileNotFoundError:
                # Another process removes or commits this staging folder.
                continue
            for receipt in _parsed(text):
                if found.setdefault(receipt.key, receipt) != receipt:
                    doubtful.add(receipt.key)
        return {
            key: receipt
            for key, receipt in found.items()
            if key not in doubtful and sizes.get(key) == receipt.nbytes
        }

    def sizes(self) -> dict[str, int]:
        """Return the size of every object of this write, by key."""
        return {key: nbytes for key, (nbytes, _) in self.stats().items()}

    def stats(self) -> dict[str, tuple[int, float]]:
        """Return size and time of every object of this write, by key."""
        found = self.store.stats()
        destination = self.request.destination.store
        for number, level in enumerate(self.request.levels):
            if number >= self.request.n_existing and self._is_moved(number):
                moved = Store(destination.path(level.path), destination.files)
                found |= {f"{level.path}/{key}": facts for key, facts in moved.stats().items()}
        return found

    def planned_keys(self) -> Iterator[str]:
        """Yield the key of every object that the write makes."""
        for level in range(self.request.n_existing, len(self.request.levels)):
            yield from self.level_keys(level)

    def level_keys(self, level: int) -> Iterator[str]:
        """Yield the key of every object of one level."""
        array = self.array(level)
        for coords in array.layout.task_coords():
            yield from map(array.key, array.layout.object_coords(coords))


def taken_over(destination: Destination) -> StagingExistsError:
    """Return the error of a write that has lost its staging folder to another one."""
    return StagingExistsError(
        f"another write has removed or committed {destination.staging}, in which this write was "
        "staged: check whether the other one is still running, then try again"
    )


def _parsed(text: bytes) -> list[ShardReceipt]:
    """Return the receipts of a file; a damaged file counts as missing."""
    try:
        found = [ShardReceipt(*fields) for fields in json.loads(text)]
    except (TypeError, ValueError, RecursionError):
        return []
    return found if all(isinstance(receipt.key, str) for receipt in found) else []
