"""Level 0 of a write whose slabs a program hands over, from any process, in any order.

A *layer* is what is encoded at once: a row of bands, or of shards where there are none. Whoever has
all slices of a layer encodes it. Slices of a layer that several processes have wait in the staging
folder, as files, and the process that adds the last of them encodes it. A small file says of each
layer that it is encoded, so that the staging folder tells everybody which slices are there.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, product
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from dask.system import CPU_COUNT

from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.errors import IncompleteDatasetError, InvalidArgumentError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.store.opened import new_memory
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.bands import is_done, merge_bands, write_bands
from ctlab_dask_zarr.write.shards.array import LazyBlock
from ctlab_dask_zarr.write.staging.staged import StagedWrite

Voxels = npt.NDArray[Any]
#: The most bands of one shard: each is a file for a moment.
_MAX_BANDS = 64
_CRC_NBYTES = 4
_FOLDER = "slabs"
_NAME = re.compile(
    r"(?P<layer>\d{1,9})\.(?:(?P<start>\d{1,9})-(?P<stop>\d{1,9})|done)\.[0-9a-f]{32}"
)


def slab_band(levels: Sequence[PlannedLevel]) -> int | None:
    """Return the thickness of bands along the first axis; None where layers are whole shards.

    It is small, since slices wait for the others of their layer. With two inner chunks, what a band
    leaves of the next level is one, and can be encoded at once.
    """
    array = levels[0].array
    n_rows = array.chunks_per_object[0]
    if not array.is_direct or not array.is_sharded or row_axis_of(array) or n_rows == 1:
        return None
    step = array.inner_chunk_shape[0]
    counts = [n for n in range(-(-n_rows // _MAX_BANDS), n_rows) if n_rows % n == 0]
    is_halved = len(levels) > 1 and levels[1].factors[0] == 2
    wanted = 2 if is_halved else 1
    fitting = [n for n in counts if n % wanted == 0] or [
        n for n in counts if not is_halved or n * step % 2 == 0
    ]
    return fitting[0] * step if fitting else None


@dataclass(frozen=True)
class _Waiting:
    """Slices of a layer that wait in a file, counted from its first."""

    name: str
    start: int
    stop: int


@dataclass
class Layer:
    """What the staging folder has of a layer."""

    waiting: list[_Waiting] = field(default_factory=list)
    #: Names of the files that say that it is encoded: one, or two processes have encoded it.
    done: list[str] = field(default_factory=list)

    def has(self, length: int) -> npt.NDArray[np.bool_]:
        """Return which of its slices are there."""
        found = np.full(length, bool(self.done))
        for part in self.waiting:
            found[part.start : part.stop] = True
        return found


@dataclass(frozen=True)
class SlabWrite:
    """A staged write whose level 0 is made of slabs, as every process sees it."""

    write: StagedWrite

    @cached_property
    def layout(self) -> Layout:
        """Level 0 as it is cut into what is encoded at once; layers lie along the first axis."""
        return self.write.written(0).layout

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.layout.grid_shape[0]

    @cached_property
    def layers_per_row(self) -> int:
        """Number of layers of a row of shards."""
        return self.write.array(0).layout.task_shape[0] // self.layout.task_shape[0]

    def span(self, layer: int) -> range:
        """Return the slices of a layer."""
        thickness = self.layout.task_shape[0]
        return range(layer * thickness, min((layer + 1) * thickness, self.layout.shape[0]))

    def columns(self, layer: int) -> list[Shape]:
        """Return the coordinates of the bands, or shards, of a layer."""
        return [(layer, *rest) for rest in product(*map(range, self.layout.grid_shape[1:]))]

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield for each layer that has slices ``start:stop`` its number and its part of them."""
        thickness = self.layout.task_shape[0]
        for layer in range(start // thickness, -(-stop // thickness)):
            span = self.span(layer)
            yield layer, max(start, span.start) - span.start, min(stop, span.stop) - span.start

    def found(self) -> dict[int, Layer]:
        """Return what the staging folder has, by layer."""
        layers: dict[int, Layer] = {}
        if self.write.is_committed:
            return {layer: Layer(done=[""]) for layer in range(self.n_layers)}
        pieces = self.write.pieces
        for name in Store(pieces.path(_FOLDER), pieces.files).list():
            match = _NAME.fullmatch(name)
            if match is None or int(match["layer"]) >= self.n_layers:
                continue
            layer = layers.setdefault(int(match["layer"]), Layer())
            if match["start"] is None:
                layer.done.append(name)
            else:
                layer.waiting.append(_Waiting(name, int(match["start"]), int(match["stop"])))
        return layers

    def missing(self) -> npt.NDArray[np.bool_]:
        """Return which slices are not in the staging folder."""
        missing = np.ones(self.layout.shape[0], bool)
        for number, layer in self.found().items():
            span = self.span(number)
            missing[span.start : span.stop] = ~layer.has(len(span))
        return missing

    def add(self, start: int, slab: Voxels) -> None:
        """Take a slab that begins at a slice; it is in the staging folder when this returns."""
        parts = list(self.parts(start, start + len(slab)))
        found = self.found()
        self.refuse_repeated(parts, lambda n: found.get(n, Layer()).has(len(self.span(n))))
        for layer, first, stop in parts:
            span = self.span(layer)
            voxels = slab[span.start + first - start : span.start + stop - start]
            if stop - first == len(span):
                self._encode_all(layer, voxels, (), uuid.uuid4().hex)
            else:
                self.keep(layer, first, voxels)
                self.settle(layer)

    def refuse_repeated(
        self, parts: Sequence[tuple[int, int, int]], there: Callable[[int], npt.NDArray[np.bool_]]
    ) -> None:
        """Raise where parts of layers that are to be added are among those that are `there`."""
        again = np.concatenate(
            [
                np.flatnonzero(there(layer)[first:stop]) + self.span(layer).start + first
                for layer, first, stop in parts
            ]
        )
        if again.size:
            raise InvalidArgumentError(
                f"slices {runs_text(again)} of {self.write.request.destination.path} were written "
                "before, and nothing of this slab was: each slice is written once. missing() "
                "tells which are left; restart=True begins anew"
            )

    def keep(self, layer: int, first: int, voxels: Voxels) -> None:
        """Put slices of a layer into a file, where they wait for the others."""
        data = np.ascontiguousarray(voxels, self.write.written(0).array.dtype)
        content = data.reshape(-1).view(np.uint8)
        name = f"{layer}.{first}-{first + len(voxels)}.{uuid.uuid4().hex}"
        with self.write.pieces.create(f"{_FOLDER}/{name}", durable=False) as writer:
            writer.write(content)
            writer.write(google_crc32c.value(content).to_bytes(_CRC_NBYTES, "little"))

    def fill(self, layer: int, voxels: Voxels, has: npt.NDArray[np.bool_]) -> list[str]:
        """Copy what waits of a layer to where it is not yet; return the names of the files."""
        waiting = self.found().get(layer, Layer()).waiting
        for part in waiting:
            at = slice(part.start, part.stop)
            if has[at].any():
                raise self._doubled([layer])
            found = self._read(part)
            if found is None:
                lost = np.arange(part.start, part.stop) + self.span(layer).start
                raise IncompleteDatasetError(
                    f"slices {runs_text(lost)} that were written to {self.write.pieces.root} "
                    "cannot be read back: go on by resume=True, and write them again"
                )
            voxels[at], has[at] = found, True
        return [part.name for part in waiting]

    def _read(self, part: _Waiting) -> Voxels | None:
        """Return slices that wait; None where they are damaged, or gone."""
        shape = (part.stop - part.start, *self.layout.shape[1:])
        dtype = self.write.written(0).array.dtype
        nbytes = int(np.prod(shape)) * dtype.itemsize
        try:
            opened = self.write.pieces.open(f"{_FOLDER}/{part.name}")
            data = np.frombuffer(opened.read(0, nbytes + _CRC_NBYTES, new_memory), np.uint8)
        except FileNotFoundError:
            return None
        content, crc = data[:nbytes], data[nbytes:].tobytes()
        if len(crc) < _CRC_NBYTES or google_crc32c.value(content) != int.from_bytes(crc, "little"):
            return None
        return content.view(dtype).reshape(shape)

    def settle(self, layer: int) -> None:
        """Encode a layer if all of it waits in files."""
        found, length = self.found().get(layer, Layer()), len(self.span(layer))
        if found.done or not found.has(length).all():
            return
        dtype = self.write.written(0).array.dtype
        voxels = np.empty((length, *self.layout.shape[1:]), dtype)
        try:
            names = self.fill(layer, voxels, np.zeros(length, bool))
        except IncompleteDatasetError:
            if self.found().get(layer, Layer()).done:
                # Another process was faster, and has removed them.
                return
            raise
        # Two processes may do this at once: they say the same of it.
        same = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:32]
        self._encode_all(layer, voxels, names, same)

    def _encode_all(self, layer: int, voxels: Voxels, names: Sequence[str], identity: str) -> None:
        for coords in self.columns(layer):
            self.encode(coords, voxels)
        for coords in self.finish(layer, names, identity):
            self.merge(coords)

    def encode(self, coords: Shape, voxels: Voxels) -> None:
        """Encode the band, or shard, at `coords` of a layer whose slices are `voxels`."""
        region = self.layout.region(coords)
        cut = voxels[(slice(None), *region[1:])]
        block = LazyBlock(tuple(part.start for part in region), cut.shape, lambda: cut)
        if self.write.bands is None:
            self.write.record(self.write.write(0, [coords], [block]))
        else:
            write_bands(self.write, [coords], [block])

    def finish(self, layer: int, names: Sequence[str], identity: str) -> list[Shape]:
        """Say that a layer is encoded; return the shards that can be put together now.

        `names` are files that are not needed any more; `identity` tells one encoding of the layer
        from that by another process.
        """
        pieces = self.write.pieces
        with pieces.create(f"{_FOLDER}/{layer}.done.{identity}", durable=False) as writer:
            writer.write("\n".join(names).encode())
        for name in names:
            pieces.remove(f"{_FOLDER}/{name}")
        found = self.found()
        row = layer // self.layers_per_row
        is_complete = all(n in found and found[n].done for n in self._layers_of(row))
        return self.shards_of(row) if is_complete and self.write.bands is not None else []

    def _layers_of(self, row: int) -> range:
        first = row * self.layers_per_row
        return range(first, min(first + self.layers_per_row, self.n_layers))

    def shards_of(self, row: int) -> list[Shape]:
        """Return the coordinates of the shards of a row."""
        return [(row, *coords[1:]) for coords in self.columns(0)]

    def merge(self, coords: Shape) -> None:
        """Put a shard together from its bands, and keep its receipt."""
        self.write.record(merge_bands(self.write, coords))

    def complete(self) -> None:
        """Finish what a process has left that died; raise where slices are missing, or twice."""
        for number, layer in self.found().items():
            if layer.waiting and not layer.done:
                self.settle(number)
        found = self.found()
        doubled = [number for number, layer in sorted(found.items()) if self._is_doubled(layer)]
        if doubled:
            raise self._doubled(doubled)
        missing = np.flatnonzero(self.missing())
        if missing.size:
            raise IncompleteDatasetError(
                f"{self.write.request.destination.path} is not committed: slices "
                f"{runs_text(missing)} were not written; go on by resume=True, and write them"
            )
        if self.write.bands is None:
            return
        recorded, array = self.write.recorded(), self.write.array(0)
        rows = range(self.write.array(0).layout.grid_shape[0])
        lacking = [c for row in rows for c in self.shards_of(row) if array.key(c) not in recorded]
        with ThreadPoolExecutor(CPU_COUNT) as pool:
            list(pool.map(self.merge, lacking))

    def tidy(self) -> None:
        """Remove what a dead process has left damaged, or half made, before anybody goes on."""
        if self.write.is_committed:
            return
        recorded, found = self.write.recorded(), self.found()
        shards, written = self.write.array(0), self.write.written(0)

        def is_whole(coords: Shape) -> bool:
            shard = (coords[0] // self.layers_per_row, *coords[1:])
            keys = map(shards.key, shards.layout.object_coords(shard))
            if all(key in recorded for key in keys):
                return True
            bands = self.write.bands
            return bands is not None and is_done(self.write, bands, coords)

        present = set(written.store.list())
        with ThreadPoolExecutor(CPU_COUNT) as pool:
            for number in range(self.n_layers):
                layer = found.get(number, Layer())
                if layer.done and all(pool.map(is_whole, self.columns(number))):
                    continue
                lost = [part.name for part in layer.waiting if self._read(part) is None]
                for name in (*layer.done, *lost):
                    self.write.pieces.remove(f"{_FOLDER}/{name}")
                for coords in self.columns(number):
                    keys = map(written.key, written.layout.object_coords(coords))
                    for key in present.intersection(keys):
                        written.store.remove(key)

    def _is_doubled(self, layer: Layer) -> bool:
        """Whether two processes have had the same slices.

        Slices may wait in vain: their layer was made of them, and its process died before it could
        remove them.
        """
        if len(layer.done) != 1 or not layer.waiting:
            return len(layer.done) > 1
        used = self.write.pieces.get(f"{_FOLDER}/{layer.done[0]}").decode().split("\n")
        return not {part.name for part in layer.waiting}.issubset(used)

    def _doubled(self, layers: Sequence[int]) -> IncompleteDatasetError:
        slices = np.concatenate([self.span(layer) for layer in layers])
        return IncompleteDatasetError(
            f"{self.write.request.destination.path} is not committed: of slices "
            f"{runs_text(slices)} some were written by two processes at the same moment, and which "
            "voxels are there is not known: begin anew by restart=True"
        )


def runs_of(numbers: Sequence[int] | npt.NDArray[Any]) -> list[range]:
    """Return increasing numbers as runs of consecutive ones."""
    grouped = groupby(enumerate(map(int, numbers)), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in grouped]
    return [range(run[0], run[-1] + 1) for run in runs]


def runs_text(numbers: Sequence[int] | npt.NDArray[Any], most: int = 8) -> str:
    """Return numbers as slices for people: 0:4, 7:8."""
    runs = runs_of(numbers)
    text = ", ".join(f"{run.start}:{run.stop}" for run in runs[:most])
    return text if len(runs) <= most else f"{text} and {len(runs) - most} more runs"
