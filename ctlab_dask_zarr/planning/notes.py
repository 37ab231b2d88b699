"""What a user should know of a layout before its write starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from ctlab_dask_zarr.formats.codecs import codec_syntax
from ctlab_dask_zarr.planning.plan import PlannedLevel
from ctlab_dask_zarr.text import nbytes_text

#: Number of objects worth a warning: parallel file systems have quotas for files, and 2**21 have
#: been the limit of a whole directory.
_MANY_OBJECTS = 10_000
#: Inner chunks of fewer voxels cost readers more in requests than in voxels, where they are many.
_SMALL_CHUNK = 16**3
_MANY_CHUNKS = 100_000
#: Shards above this do not fit the memory of many workers, nor the uploads of some stores.
_LARGE_SHARD_NBYTES = 4 << 30


def notes_on(levels: Sequence[PlannedLevel]) -> Iterator[str]:
    """Yield what a user should know before starting."""
    n_objects = sum(level.layout.n_objects for level in levels)
    if n_objects >= _MANY_OBJECTS:
        yield (
            f"{n_objects:,} objects: quotas of parallel file systems count files; larger shards "
            "make fewer"
        )
    array, layout = levels[0].array, levels[0].layout
    chunk = layout.inner_chunk_shape
    n_chunks = prod(-(-n // c) for n, c in zip(layout.shape, chunk, strict=True))
    n_voxels = prod(chunk)
    if n_voxels < _SMALL_CHUNK and n_chunks >= _MANY_CHUNKS:
        yield (
            f"{n_chunks:,} inner chunks of {n_voxels} voxels: each costs readers a request or a "
            "seek, and an entry in the index; 32,32,32 is usual"
        )
    shard_nbytes = prod(layout.task_shape) * array.dtype.itemsize
    if shard_nbytes > _LARGE_SHARD_NBYTES:
        yield (
            f"a shard of {nbytes_text(shard_nbytes)} is written and repaired whole: 512,512,512 "
            "voxels are usual"
        )
    if levels[0].layout.shard_shape is None:
        yield f"without sharding every chunk is an object of its own, {n_objects:,} of them"
    is_of_bytes = levels[0].array.dtype.itemsize == 1
    if is_of_bytes and any(
        spec.options.get("shuffle") == "shuffle" for spec in levels[0].array.codecs
    ):
        yield "shuffle does nothing to voxels of one byte: bitshuffle does, or take zstd"
    if not levels[0].array.is_direct:
        yield (
            f"the codecs are not {codec_syntax()}: shards are encoded by zarr, in memory and more "
            "slowly"
        )
