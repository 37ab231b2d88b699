"""What a write will do, decided before anything is touched.

A plan is made from shapes, metadata and what is known of the source's blocks. It holds every
document that the commit will put, and the numbers that a user wants to see first. zarr itself makes
the documents, in a dict: no file, no store and no clock is needed.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.codecs import CODECS, codec_text
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Level, Shape
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.planning.rechunk import Rechunk, Resources
from ctlab_dask_zarr.text import nbytes_text, shown, table

#: All threads of a process share its filters of warnings: two that change them at once would put
#: back each other's.
_one_at_a_time = threading.Lock()
#: Arguments of zarr.create_array that follow from the dataset and the other arguments.
OWN_ARRAY_ARGUMENTS = {"store", "name", "path", "shape", "dtype", "data", "chunks", "shards"} | {
    *("overwrite", "order", "zarr_format", "attributes"),
    *("dimension_names", "storage_options", "write_data"),
}
#: What people call compressors, of which zarr.create_array knows nothing.
_OTHER_WORDS = {"codec", "codecs", "compression", "compressor"}


@dataclass(frozen=True)
class Document:
    """A metadata document: its key below the root of the dataset, and its text."""

    key: str
    text: str


@dataclass(frozen=True)
class PlannedLevel(Level):
    """A level of a write, with the ``zarr.json`` of its array."""

    document: str = field(kw_only=True)

    @property
    def array(self) -> StoredArray:
        """The array as it will be stored."""
        return parse_array_document(self.document)

    @cached_property
    def layout(self) -> Layout:
        """How the array is cut into shards."""
        return Layout.of(self.array)

    @property
    def nbytes(self) -> int:
        """Size of the voxels before compression, in bytes."""
        return prod(self.shape) * self.array.dtype.itemsize


#: Hashes of an image's voxels, and of their place and size.
ImageIdentity = tuple[str, str]


#: Whether what is at a destination is replaced; its labels are lost only where that is asked for.
Overwrite: TypeAlias = bool | Literal["drop_labels"]


@dataclass(frozen=True, kw_only=True)
class WriteContent:
    """What a write puts into a store, in plain values; plans and staging folders have it in common.

    Attributes
    ----------
    levels
        The arrays, finest first.
    documents
        What the commit puts, leaf to root.
    identity
        Source, shape, dtype, layout, codecs and data type: an interrupted write goes on only with
        the same.
    requested
        What the user asked of the metadata; None where that is not known. A write of the same
        voxels that is committed, or shared with other jobs, is the same one only if this is too.
    datatype, downsample, is_discrete, overwrite
        As they were asked for, or follow from the dataset.
    image
        For labels, what tells their image from another one.
    codec_choice
        How the codec was chosen, as `planning.codec` says it; None for one that was asked for.
    """

    levels: tuple[PlannedLevel, ...]
    documents: tuple[Document, ...]
    identity: str
    requested: dict[str, Any] | None = None
    datatype: DataType | None = None
    downsample: DownsampleMethod = "mean"
    is_discrete: bool = False
    overwrite: Overwrite = False
    image: ImageIdentity | None = None
    codec_choice: dict[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of `identity`, by which an interrupted write knows its own staging folder."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    @property
    def mask_value(self) -> Number | None:
        """The value of masked voxels; None where the data type has none."""
        mask_value = None if self.datatype is None else self.datatype.mask_value
        return None if mask_value is None else mask_value.item()


@dataclass(frozen=True, kw_only=True, repr=False)
class WritePlan(WriteContent):
    """Everything that a write will do.

    Attributes
    ----------
    destination
        The store that will be there after the commit.
    rechunk
        How blocks become shards, and the memory that it takes.
    notes
        What a user should know before starting.
    resources
        What the workers have for which it was planned.
    labels_of
        The image to which labels belong.
    random_name
        dask's name of a source that no other process can recognise; None where one can.
    destination_problem
        Why nothing could be committed to the destination, or None.
    """

    destination: str
    rechunk: Rechunk
    dataset_id: str | None
    notes: tuple[str, ...]
    resources: Resources
    labels_of: str | None = None
    random_name: str | None = None
    destination_problem: str | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the finest level, in voxels."""
        return self.levels[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the voxels."""
        return self.levels[0].array.dtype

    @property
    def codec(self) -> str | None:
        """The codec as users write it; None where they cannot."""
        array = self.levels[0].array
        if not array.is_direct:
            return None
        return codec_text((spec.name, spec.options) for spec in array.codecs)

    @property
    def n_objects(self) -> int:
        """Number of stored objects besides metadata, over all levels."""
        return sum(level.layout.n_objects for level in self.levels)

    @property
    def n_shards(self) -> int:
        """Number of shards (without sharding: of shard-sized groups of chunks)."""
        return sum(level.layout.n_tasks for level in self.levels)

    @property
    def nbytes(self) -> int:
        """Size of the voxels of all levels before compression, in bytes."""
        return sum(level.nbytes for level in self.levels)

    @property
    def memory_problem(self) -> str | None:
        """Why the workers that it was planned for would be killed; None for enough memory."""
        needed, memory = self.rechunk.peak_nbytes, self.resources.thread_nbytes
        if memory is None or needed <= memory:
            return None
        return (
            f"a worker thread needs {nbytes_text(needed)} and has {nbytes_text(memory)}: use fewer "
            "workers or threads (--workers, --threads), more memory (--memory-limit), or smaller "
            "shards (--shards)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's figures as plain JSON."""
        layout = self.levels[0].layout
        return {
            "destination": self.destination,
            "destination_problem": self.destination_problem,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "datatype": None if self.datatype is None else str(self.datatype),
            "dataset_id": self.dataset_id,
            "shards": None if layout.shard_shape is None else list(layout.shard_shape),
            "chunks": list(layout.inner_chunk_shape),
            "codec": self.codec,
            "codec_choice": self.codec_choice,
            "codecs": [spec.name for spec in self.levels[0].array.codecs],
            "n_shards": self.n_shards,
            "n_objects": self.n_objects + len(self.documents),
            "nbytes": self.nbytes,
            "levels": [list(level.shape) for level in self.levels],
            "downsample": self.downsample,
            "fingerprint": self.fingerprint,
            "rechunk": asdict(self.rechunk),
            "notes": list(self.notes),
            "n_worker_threads": self.resources.n_threads,
            "n_worker_threads_that_fit": self._n_threads_that_fit(),
        }

    def describe(self) -> str:
        """Return the plan as a table for people."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return shown("\n".join(lines + [f"note: {note}" for note in self.notes]))

    def __repr__(self) -> str:
        levels = f"{len(self.levels)} levels, " if len(self.levels) > 1 else ""
        return shown(
            f"<WritePlan {self.destination}: {_by(self.shape)} {self.dtype}, {levels}"
            f"{self.n_shards:,} shards, {nbytes_text(self.nbytes)}>"
        )

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        return table([*self._rows(), *(("note", note) for note in self.notes)])

    def _rows(self) -> list[tuple[str, str]]:
        layout, array = self.levels[0].layout, self.levels[0].array
        shard = layout.shard_shape
        codecs = self.codec or " + ".join(spec.name for spec in array.codecs)
        n_coarser, peak = self.n_shards - layout.n_tasks, self.rechunk.peak_nbytes
        in_all = nbytes_text(peak * self.resources.n_threads)
        finest, *coarser = self.levels
        shapes = ", ".join(_by(level.shape) for level in coarser)
        more = f"{nbytes_text(self.nbytes - finest.nbytes)} more"
        levels = f"{len(self.levels)}: then {shapes}, by {self.downsample}, {more}"
        return [
            ("destination", self.destination),
            ("shape", f"{_by(self.shape)} {self.dtype}, {nbytes_text(finest.nbytes)}"),
            ("data type", "not known" if self.datatype is None else str(self.datatype)),
            ("shards", "none" if shard is None else f"{_by(shard)}, {layout.n_tasks:,} of them"),
            ("inner chunks", f"{_by(layout.inner_chunk_shape)}, {codecs}"),
            *self._codec_rows(),
            ("objects", f"{self.n_objects:,} and {len(self.documents)} of metadata"),
            ("rechunking", f"{self.rechunk.method}: {self.rechunk.reason}"),
            *([("levels", levels)] if coarser else []),
            ("tasks", f"{self.rechunk.n_tasks + n_coarser:,}"),
            ("memory", f"{nbytes_text(peak)} for each thread at work, {in_all} in all"),
            *self._worker_rows(),
        ]

    def _codec_rows(self) -> list[tuple[str, str]]:
        if self.codec_choice is None:
            return []
        rows = [(f"codec {self.codec_choice['asked']}", self.codec_choice["reason"])]
        for m in self.codec_choice["measured"]:
            text = f"{m['codec']:<24} ratio {m['ratio']:5.2f} {m['mb_per_s']:6.0f} MB/s a thread"
            rows.append(("", text + (", chosen" if m["codec"] == self.codec else "")))
        return rows

    def _worker_rows(self) -> list[tuple[str, str]]:
        n_threads, memory = self.resources.n_threads, self.resources.thread_nbytes
        if memory is None:
            return [("workers", f"{n_threads} threads, their memory is not known")]
        fit = f"their memory is enough for {self._n_threads_that_fit()}"
        if self.memory_problem is not None:
            fit = f"too little, {fit} (--workers), or make --shards smaller"
        return [("workers", f"{n_threads} threads, {nbytes_text(memory)} for each: {fit}")]

    def _n_threads_that_fit(self) -> int | None:
        """Return how many threads the memory of all workers is enough for."""
        if self.resources.thread_nbytes is None:
            return None
        nbytes = self.resources.thread_nbytes * self.resources.n_threads
        return nbytes // max(self.rechunk.peak_nbytes, 1)


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def array_document(
    layout: Layout,
    dtype: np.dtype[Any],
    *,
    fill_value: Any,
    dimension_names: tuple[str, ...],
    attributes: Mapping[str, Any],
    separator_threshold: int | None,
    create_array_kwargs: Mapping[str, Any],
) -> str:
    """Let zarr make the array's ``zarr.json`` from the layout and the user's own arguments."""
    # Imported here, because workers need plans, but make no documents.
    import zarr
    from zarr.storage import MemoryStore

    kwargs = dict(create_array_kwargs)
    own = sorted(OWN_ARRAY_ARGUMENTS.intersection(kwargs))
    if own:
        raise InvalidArgumentError(
            f"create_array_kwargs holds {own[0]!r}, which follows from the dataset and the other "
            "arguments: use those instead"
        )
    other = sorted(_OTHER_WORDS.intersection(kwargs))
    if other:
        raise InvalidArgumentError(
            f"create_array_kwargs holds {other[0]!r}, which zarr.create_array does not take: pass "
            "codec='blosc:zstd:3:shuffle', or create_array_kwargs={'compressors': ...}"
        )
    kwargs.setdefault("fill_value", fill_value)
    if "chunk_key_encoding" not in kwargs and separator_threshold is not None:
        separator = "/" if layout.n_objects > separator_threshold else "."
        kwargs["chunk_key_encoding"] = {"name": "default", "separator": separator}
    objects: dict[str, Any] = {}
    try:
        with _one_at_a_time, warnings.catch_warnings():
            # A codec or dtype without a v3 specification is the user's choice, made elsewhere.
            warnings.simplefilter("ignore")
            zarr.create_array(
                MemoryStore(objects),
                shape=layout.shape,
                dtype=dtype,
                chunks=layout.inner_chunk_shape,
                shards=layout.shard_shape,
                dimension_names=dimension_names,
                attributes=dict(attributes),
                zarr_format=3,
                **kwargs,
            )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        reason = f"it does not know {error}" if isinstance(error, KeyError) else error
        raise InvalidArgumentError(
            f"zarr does not accept create_array_kwargs={create_array_kwargs!r} for this array: "
            f"{reason}"
        ) from error
    text = str(objects["zarr.json"].to_bytes().decode())
    _refuse_large_chunks(text)
    return text


def _refuse_large_chunks(text: str) -> None:
    codecs = json.loads(text)["codecs"]
    inner = [c for codec in codecs for c in codec.get("configuration", {}).get("codecs", ())]
    nbytes = parse_array_document(text).inner_chunk_nbytes
    for name in (codec["name"] for codec in (*codecs, *inner)):
        codec = CODECS.get(name) or CODECS.get(name.removeprefix("numcodecs."))
        most = None if codec is None else codec.most_nbytes
        if most is not None and nbytes > most:
            raise InvalidArgumentError(
                f"a chunk has {nbytes:,} bytes, and the codec {name} takes {most:,} at most: pass "
                "smaller chunks=..., or another codec"
            )


def document_of_shape(document: str, layout: Layout) -> str:
    """Return the document of an array like another one, but with this layout."""
    content = json.loads(document)
    content["shape"] = list(layout.shape)
    content["attributes"] = {}
    grid = content["chunk_grid"]["configuration"]
    grid["chunk_shape"] = list(layout.object_shape)
    for codec in content["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = list(layout.inner_chunk_shape)
    return json.dumps(content, indent=2)


def group_document(attributes: Mapping[str, Any]) -> str:
    """Let zarr make a group's ``zarr.json``."""
    import zarr
    from zarr.storage import MemoryStore

    objects: dict[str, Any] = {}
    zarr.create_group(MemoryStore(objects), zarr_format=3, attributes=dict(attributes))
    return str(objects["zarr.json"].to_bytes().decode())
