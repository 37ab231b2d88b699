"""Measure codecs on a sample: inner chunks of a few blocks from across the volume.

A task makes a block, or a part of it, and encodes some of its inner chunks with every codec; what
it returns are sizes and times alone. So it runs where the write will run.
"""

from __future__ import annotations

import time
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, cycle, islice
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from ctlab_dask_zarr.codec.chunk import chunk_codec
from ctlab_dask_zarr.codec.values import valid_voxels
from ctlab_dask_zarr.errors import CTLabError, WriteFailedError
from ctlab_dask_zarr.execution.graphs import (
    SourceGraph,
    accepted_block,
    add_closure,
    analyse_source,
    is_read,
    results_of,
)
from ctlab_dask_zarr.execution.recipe import BlockRecipe
from ctlab_dask_zarr.execution.scheduler import current_client, waiting_for
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import CodecSpec, StoredArray
from ctlab_dask_zarr.planning.codec import (
    MeasuredCodec,
    candidate_chains,
    choose_codec,
    default_choice,
)
from ctlab_dask_zarr.planning.plan import WritePlan

#: Places along the first axis, in fifths; the middle comes first, and alone where it takes long.
_FIFTHS = (2, 0, 4, 1, 3)
#: Of a place: the most that is read of a block, the inner chunks that are looked at, and the most
#: that is encoded, in bytes.
_READ_NBYTES, _N_LOOKED_AT, _ENCODED_NBYTES = 32 << 20, 16, 1 << 20
#: A block that takes longer is not made a second time, and no more blocks are.
_MAX_MAKING_S = 2.0
#: Steps that spread points evenly over an axis, one for each (the sequence R3 of Roberts, 2018).
_STEPS = (0.8191725134, 0.6710436067, 0.5497004779)

Chains = Mapping[str, tuple[CodecSpec, ...]]


class _Found(NamedTuple):
    """What a task has measured: bytes made and encoded, and for each codec (bytes, seconds)."""

    made_nbytes: int
    made_s: float | None
    nbytes: int
    encoded: dict[str, tuple[int, float]]


class _Place(NamedTuple):
    """What is made for a place of the sample: a region of one block, or all of it."""

    block: Shape
    region: tuple[slice, ...]


def choose_by_measuring(plan: WritePlan, source: SourceGraph, asked: str) -> dict[str, Any]:
    """Return the codec for a planned write, with the reason and what was measured.

    `plan` has any codec. The blocks are made by the scheduler in force. Where no inner chunk of the
    sample has voxels that differ, the choice is the default, and says so.
    """
    array = plan.levels[0].array
    chains = candidate_chains(plan.levels[0].layout, array.dtype)
    measure = partial(_measured, array, plan.mask_value, chains)
    first, *others = _places(array, source)
    found = _computed(source, measure, [first])
    if (found[0].made_s or 0.0) <= _MAX_MAKING_S:
        found += _computed(source, measure, others)
    found = [one for one in found if one.nbytes]
    if not found:
        return default_choice(
            asked,
            "the default, as the voxels of the sample are masked or all alike: there is nothing "
            "to measure",
        )
    measured = []
    for codec in chains:
        nbytes, seconds = (sum(one.encoded[codec][n] for one in found) for n in (0, 1))
        total = sum(one.nbytes for one in found)
        measured.append(MeasuredCodec(codec, total / nbytes, total / max(seconds, 1e-9) / 1e6))
    made_s = sum(one.made_s or 0.0 for one in found)
    made_nbytes = sum(one.made_nbytes for one in found if one.made_s)
    return choose_codec(asked, measured, made_nbytes / made_s / 1e6 if made_s else None)


def _places(array: StoredArray, source: SourceGraph) -> list[_Place]:
    """Return places across the volume, that in the middle first, no two alike."""
    is_cut = is_read(source.data)
    stops = [list(accumulate(lengths)) for lengths in source.chunks]
    found = []
    for fifth in _FIFTHS:
        # Along the other axes in the middle half: outside of it volumes are masked or empty.
        steps = islice(cycle(_STEPS), 1, len(array.shape))
        parts = [(fifth + 0.5) / 5] + [0.25 + (0.5 + (fifth - 2) * step) % 1 / 2 for step in steps]
        point = [int(f * n) for f, n in zip(parts, array.shape, strict=True)]
        block = tuple(bisect_right(s, p) for s, p in zip(stops, point, strict=True))
        spans = [
            slice(ends[i - 1] if i else 0, ends[i]) for ends, i in zip(stops, block, strict=True)
        ]
        if is_cut:
            lengths = [span.stop - span.start for span in spans]
            sizes = _box(array.inner_chunk_shape, lengths, _READ_NBYTES // array.dtype.itemsize)
            starts = [
                min(max(p - size // 2, span.start), span.stop - size)
                for p, size, span in zip(point, sizes, spans, strict=True)
            ]
            spans = [slice(a, a + size) for a, size in zip(starts, sizes, strict=True)]
        found.append(_Place(block, tuple(spans)))
    return [place for n, place in enumerate(found) if place not in found[:n]]


def _box(cell: Shape, lengths: Sequence[int], n_elements: int) -> Shape:
    """Return a shape of up to `n_elements` within `lengths`: a cell, longer along the last axes."""
    sizes = [min(c, n) for c, n in zip(cell, lengths, strict=True)]
    for axis in range(len(sizes)):
        sizes[axis] = max(1, min(sizes[axis], sizes[axis] * n_elements // prod(sizes)))
    for axis in reversed(range(len(sizes))):
        sizes[axis] = max(sizes[axis], min(lengths[axis], sizes[axis] * n_elements // prod(sizes)))
    return tuple(sizes)


def _computed(source: SourceGraph, measure: Any, places: Sequence[_Place]) -> list[_Found]:
    """Return what the tasks of the places have measured, which the scheduler in force computes."""
    graph: dict[Any, GraphNode] = {}
    keys: list[Any] = []
    token = uuid.uuid4().hex[:8]
    for number, place in enumerate(places):
        part, index = source, place.block
        start = tuple(span.start for span in place.region)
        shape = tuple(span.stop - span.start for span in place.region)
        if shape != tuple(n[i] for n, i in zip(source.chunks, index, strict=True)):
            part, index = analyse_source(source.data[place.region].rechunk(-1)), (0,) * len(start)
        key = f"measure-codecs-{number}-{token}"
        needed: Sequence[Any] = [(part.name, *index)]
        if part.is_independent:
            recipe, needed = part.recipe(index, start, shape)
            graph[key] = Task(key, _made_and_measured, measure, recipe, results_of(needed))
        else:
            graph[key] = Task(key, measure, start, shape, TaskRef(needed[0]))
        add_closure(graph, part, needed)
        keys.append(key)
    end = f"measured-codecs-{token}"
    graph[end] = Task(end, list, List(*map(TaskRef, keys)))
    delayed = Delayed(end, HighLevelGraph({end: MaterializedLayer(graph)}, {end: set()}))
    try:
        with waiting_for(delayed, current_client()):
            found: list[_Found] = delayed.compute()
    except CTLabError:
        raise
    except Exception as error:  # a task of the source may raise anything
        raise WriteFailedError(
            f"no codec can be chosen, because a block of the source cannot be made ({error!r}); "
            "nothing was written. Mend the source; a codec that is named (codec='zstd', --codec "
            "zstd) needs no sample"
        ) from error
    return found


def _made_and_measured(measure: Any, recipe: BlockRecipe, shared: Mapping[Any, Any]) -> _Found:
    """Make a block and measure; a block that is made fast is made twice, and timed the second time.

    What the first time finds on a disk, the second finds in memory. So the time is nearly the same
    each time that somebody measures.
    """
    block = None
    for _ in range(2):
        del block
        start_s = time.perf_counter()
        block = recipe.make(shared)
        seconds = time.perf_counter() - start_s
        if seconds > _MAX_MAKING_S:
            break
    found: _Found = measure(recipe.start, recipe.shape, block, seconds)
    return found


def _measured(
    array: StoredArray,
    mask_value: Number | None,
    chains: Chains,
    start: Shape,
    shape: Shape,
    block: Any,
    seconds: float | None = None,
) -> _Found:
    """Encode inner chunks of a block by every codec."""
    voxels = accepted_block(block, start, shape, array.dtype, mask_value)
    most = max(1, min(_ENCODED_NBYTES, array.inner_chunk_nbytes) // array.dtype.itemsize)
    size = _box(array.inner_chunk_shape, shape, most)
    chunks = []
    for chunk in _spread(voxels, size):
        flat = np.ascontiguousarray(chunk, array.dtype).ravel()
        bits = flat.view(f"u{array.dtype.itemsize}")
        if (bits != bits[0]).any():
            chunks.append((np.count_nonzero(valid_voxels(flat, mask_value)), flat))
    # Those with the most valid voxels; of a thin sample all that there are.
    chunks.sort(key=lambda pair: -pair[0])
    n_encoded = max(1, _ENCODED_NBYTES // (prod(size) * array.dtype.itemsize))
    sample = [flat.view(np.uint8) for n_valid, flat in chunks[:n_encoded] if n_valid]
    # In a thread of its own: in the main thread numcodecs' blosc takes more threads than one.
    with ThreadPoolExecutor(1) as thread:
        encoded = thread.submit(_encoded, chains, sample).result()
    return _Found(voxels.nbytes, seconds, sum(chunk.nbytes for chunk in sample), encoded)


def _spread(voxels: npt.NDArray[Any], size: Shape) -> Iterator[npt.NDArray[Any]]:
    """Yield boxes of a size from all over the voxels, no box twice."""
    counts = [n // s for n, s in zip(voxels.shape, size, strict=True)]
    cells = [
        tuple(int((k + 0.5) * a % 1 * n) for a, n in zip(cycle(_STEPS), counts, strict=False))
        for k in range(_N_LOOKED_AT)
    ]
    for cell in dict.fromkeys(cells):
        yield voxels[tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, size, strict=True))]


def _encoded(
    chains: Chains, chunks: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, tuple[int, float]]:
    """Return for each codec the size of the chunks that it has encoded, and the faster of two."""
    found = dict.fromkeys(chains, (0, inf))
    for _ in range(2):
        for codec, chain in chains.items():
            encode = chunk_codec(chain).encode
            start_s = time.thread_time()
            nbytes = sum(memoryview(encode(chunk)).nbytes for chunk in chunks)
            found[codec] = (nbytes, min(time.thread_time() - start_s, found[codec][1]))
    return found
