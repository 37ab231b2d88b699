"""Which programs will show a store, and what they will not: from its metadata alone.

What is said of a reader was read off that reader; a program that changes may do better.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from ctlab_dask_zarr.formats.units import OME_UNITS, VoxelUnit
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.hierarchy import label_names
from ctlab_dask_zarr.views.neuroglancer import LABEL_DTYPES, SHOWN_DTYPES

__all__ = ["ReaderReport", "check_readers"]

Verdict = Literal["shows it", "shows it, but", "does not show it"]

#: Beyond this, a level is no longer looked at as a whole: 512**3 voxels.
_LARGE = 512**3
_WEBKNOSSOS_DTYPES = SHOWN_DTYPES | {"int64"}
_COMMON_CODECS = frozenset({"zstd", "blosc", "gzip", "crc32c"})


@dataclass(frozen=True)
class ReaderReport:
    """What one program makes of a store.

    Attributes
    ----------
    reader
        The program.
    verdict
        ``'shows it'``, ``'shows it, but'`` or ``'does not show it'``.
    remarks
        What it will not show, or will show wrongly, and what helps.
    """

    reader: str
    verdict: Verdict
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """What the readers' rules ask for; `labels` are data types by name."""

    array: StoredArray
    has_dotted_keys: bool
    is_group: bool
    has_outer_transform: bool
    n_levels: int
    lacks_translation: bool
    unit: VoxelUnit | None
    axes: tuple[str, ...]
    mango: dict[str, Any]
    labels: dict[str, str]
    ome: dict[str, Any]


def check_readers(path: str | os.PathLike[str]) -> list[ReaderReport]:
    """Return what each known reader makes of the store at `path`; voxels are not read.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> from ctlab_dask_zarr import Dataset, dataset_to_zarr
    >>> ds = Dataset(
    ...     da.ones((40, 65, 97), dtype="float64"), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.5, 2.5, 2.5),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset_to_zarr(ds, folder + "/scan.zarr")
    ...     reports = {r.reader: r.verdict for r in check_readers(folder + "/scan.zarr")}
    >>> reports["Neuroglancer"], reports["ngff-zarr"]
    ('does not show it', 'shows it')
    """
    facts = _facts(read_store_metadata(path))
    reports = []
    for reader, rules in _READERS.items():
        failures: list[str] = []
        remarks: list[str] = []
        for is_fatal, remark in rules(facts):
            (failures if is_fatal else remarks).append(remark)
        verdict: Verdict = "shows it, but" if remarks else "shows it"
        if failures:
            verdict, remarks = "does not show it", failures
        reports.append(ReaderReport(reader, verdict, tuple(remarks)))
    return reports


def _facts(metadata: StoreMetadata) -> _Facts:
    arrays = [parse_array_document(document) for _, document in metadata.arrays]
    ome = metadata.attributes.get("ome") if metadata.ome else None
    ome = ome if isinstance(ome, dict) else {}
    levels = () if metadata.ome is None else metadata.ome.levels
    coarser = [
        any(abs(t - (s - f) / 2 - o) > 1e-6 * s for t, s, f, o in zip(
            level.translation, level.scale, levels[0].scale, levels[0].translation, strict=True
        ))
        for level in levels[1:]
    ]  # fmt: skip
    mango = metadata.attributes.get("mango")
    return _Facts(
        array=arrays[0],
        has_dotted_keys=any(array.separator == "." for array in arrays),
        is_group=metadata.ome is not None,
        has_outer_transform=bool(ome and ome["multiscales"][0].get("coordinateTransformations")),
        n_levels=len(metadata.arrays),
        lacks_translation=any(coarser),
        unit=None if metadata.ome is None else metadata.ome.voxel_unit,
        axes=() if metadata.ome is None else metadata.ome.axes,
        mango=mango if isinstance(mango, dict) else {},
        labels=_label_dtypes(metadata),
        ome=ome,
    )


def _label_dtypes(metadata: StoreMetadata) -> dict[str, str]:
    folder = os.path.join(metadata.path, "labels")
    dtypes = {}
    for name in label_names(metadata.files, folder):
        labels = read_store_metadata(os.path.join(folder, name), metadata.files)
        dtypes[name] = _dtype_name(parse_array_document(labels.arrays[0][1]))
    return dtypes


def _dtype_name(array: StoredArray) -> str:
    return str(array.dtype.newbyteorder("="))


Remark = tuple[bool, str]


def _ome_readers(facts: _Facts) -> Iterator[Remark]:
    """Yield what ome-zarr-py, napari-ome-zarr and ngff-zarr have in common."""
    if not facts.is_group:
        yield True, "it is a plain array, not an OME-Zarr group: convert it with --layout ome"
    if facts.has_outer_transform:
        yield (
            False,
            (
                "the voxel size stands on the multiscales entry, which is not read: voxels appear "
                "with an edge of 1. Convert with --scale-placement dataset"
            ),
        )
    yield from _codec_remarks(facts)


def _viewers(facts: _Facts) -> Iterator[Remark]:
    """Yield what concerns everything that is looked at as a whole."""
    if facts.lacks_translation:
        yield (
            False,
            ("its levels have no translation: they are shifted against each other by half a voxel"),
        )
    if facts.n_levels == 1 and prod(facts.array.shape) > _LARGE:
        yield (
            False,
            (
                "it has one level only, so that looking at the whole reads every voxel: use "
                "`ctlab-zarr pyramid`"
            ),
        )


def _codec_remarks(facts: _Facts) -> Iterator[Remark]:
    if not facts.array.is_direct:
        yield False, "its codecs are unusual: whether they are known there was not tried"
        return
    odd = sorted({spec.name for spec in facts.array.codecs} - _COMMON_CODECS)
    if odd:
        yield False, f"the codec {', '.join(odd)} is known to zarr-python only, with numcodecs"


def _untried_keys(facts: _Facts) -> Iterator[Remark]:
    """Yield what concerns readers that have not been tried with every way to name a chunk."""
    if facts.has_dotted_keys:
        yield (
            False,
            (
                "keys of chunks are separated by '.', as in arrays of few shards: some readers do "
                "not find those, and this one was not tried. Should it show nothing, write the "
                "store from Python with dimension_separator_threshold=0"
            ),
        )


def _napari(facts: _Facts) -> Iterator[Remark]:
    yield from _ome_readers(facts)
    yield from _viewers(facts)
    if facts.is_group and "omero" not in facts.ome and not facts.labels:
        yield False, "no contrast is suggested (omero): it is estimated from the voxels"


def _neuroglancer(facts: _Facts) -> Iterator[Remark]:
    dtype = _dtype_name(facts.array)
    if dtype not in SHOWN_DTYPES:
        yield True, f"voxels of {dtype} are not shown: convert them to float32 or uint16"
    if any(spec.name.startswith("numcodecs.") for spec in facts.array.codecs):
        yield True, "its codec is not known there: convert with --codec zstd:3"
    units = [a.get("unit", "") for a in _axes(facts) if a.get("type", "space") == "space"]
    refused = [unit for unit in units if unit != "" and unit not in OME_UNITS]
    if refused:
        yield True, f"an axis has the unit {refused[0]!r}, which is refused: correct it (set-voxel)"
    if not facts.is_group:
        yield False, "it is a plain array: `ctlab-zarr view` adds the voxel size, others do not"
    for name, label_dtype in facts.labels.items():
        if label_dtype not in LABEL_DTYPES:
            yield (
                False,
                (
                    f"the labels {name!r} are {label_dtype} and not shown (`ctlab-zarr view` "
                    "leaves them out): write them as uint32 or int32"
                ),
            )
    yield from _viewers(facts)


def _axes(facts: _Facts) -> list[dict[str, Any]]:
    if not facts.ome:
        return []
    return [axis for axis in facts.ome["multiscales"][0]["axes"] if isinstance(axis, dict)]


def _webknossos(facts: _Facts) -> Iterator[Remark]:
    if not facts.is_group:
        yield True, "it is a plain array, not an OME-Zarr group: convert it with --layout ome"
    dtype = _dtype_name(facts.array)
    if dtype not in _WEBKNOSSOS_DTYPES:
        yield True, f"voxels of {dtype} are not shown: convert them to float32 or uint16"
    if facts.is_group and facts.unit == VoxelUnit.VOXEL:
        yield False, "its axes have no unit: nanometres are assumed"
    yield from _codec_remarks(facts)
    yield from _untried_keys(facts)
    yield from _viewers(facts)
    yield False, "by its documentation: it was not tried with this package"


def _drishti(facts: _Facts) -> Iterator[Remark]:
    if not facts.mango:
        yield False, "there is no mango block: voxel size and history are not shown"
    elif facts.is_group and not facts.has_outer_transform:
        yield (
            False,
            (
                "it multiplies the voxel size of the mango block by that of the dataset, so that "
                "the scale is wrong: convert with --scale-placement multiscales"
            ),
        )
    if facts.mango and "data_min_max" not in facts.mango:
        yield False, "the mango block has no data_min_max: set the contrast by hand"
    if len(facts.array.shape) != 3:
        yield True, "it shows volumes of three axes"
    yield from _codec_remarks(facts)
    yield from _untried_keys(facts)


def _reference(facts: _Facts) -> Iterator[Remark]:
    if "basename" not in facts.mango or "history" not in facts.mango:
        yield (
            True,
            ("the mango block lacks its data type or history: convert with --datatype, as tomo"),
        )
    if facts.is_group and len(facts.axes) != 3:
        yield True, "it reads groups of three axes only"
    if facts.n_levels > 1:
        yield False, "it reads level 0 only"
    if facts.labels:
        yield False, "it does not see labels; open each by its own path"


_READERS: dict[str, Callable[[_Facts], Iterator[Remark]]] = {
    "napari-ome-zarr": _napari,
    "ome-zarr-py": _ome_readers,
    "ngff-zarr": _ome_readers,
    "Neuroglancer": _neuroglancer,
    "WebKnossos": _webknossos,
    "Drishti": _drishti,
    "anu_ctlab_io": _reference,
}
