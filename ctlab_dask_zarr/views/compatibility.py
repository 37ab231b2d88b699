"""Which programs will show a store, and what they will not show, from its metadata alone.

What each rule says about a program was read in its source or seen when it was run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from ctlab_dask_zarr.formats.ome_versions import plain_multiscale
from ctlab_dask_zarr.formats.units import OME_UNITS, VoxelUnit
from ctlab_dask_zarr.formats.zarr_array import StoredArray, parse_array_document
from ctlab_dask_zarr.read.zarr import StoreMetadata, read_store_metadata
from ctlab_dask_zarr.store.hierarchy import label_names
from ctlab_dask_zarr.views.neuroglancer import LABEL_DTYPES, SHOWN_DTYPES

#: 512**3 voxels; nobody views a larger level as a whole.
_LARGE = 512**3
_WEBKNOSSOS_DTYPES = SHOWN_DTYPES | {"int64"}
_COMMON_CODECS = frozenset({"zstd", "blosc", "gzip", "crc32c"})


@dataclass(frozen=True)
class ReaderReport:
    """How one program shows a store.

    Attributes
    ----------
    reader
        The program.
    verdict
        ``'shows it'``, ``'shows it, but'`` or ``'does not show it'``.
    remarks
        What it will not show or will show wrongly, and how to help that.
    """

    reader: str
    verdict: Literal["shows it", "shows it, but", "does not show it"]
    remarks: tuple[str, ...] = ()


def check_readers(path: str | os.PathLike[str]) -> list[ReaderReport]:
    """Return how each known reader shows the store at `path`; voxels are not read.

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
    metadata = read_store_metadata(path)
    metadata.refuse_changes()
    facts = _Facts(metadata)
    reports = []
    for reader, (obstacles, flaws) in _READERS.items():
        if found := _remarks(obstacles, facts):
            reports.append(ReaderReport(reader, "does not show it", found))
        elif found := _remarks(flaws, facts):
            reports.append(ReaderReport(reader, "shows it, but", found))
        else:
            reports.append(ReaderReport(reader, "shows it"))
    return reports


class _Facts:
    """What rules need to know about a store; `labels` are data types by name."""

    def __init__(self, metadata: StoreMetadata) -> None:
        arrays = [parse_array_document(document) for _, document in metadata.arrays]
        self.array = arrays[0]
        self.dtype = _dtype_name(arrays[0])
        self.n_levels = len(arrays)
        self.has_dotted_keys = any(array.separator == "." for array in arrays)
        self.image = metadata.ome
        self.ome: dict[str, Any] = metadata.attributes["ome"] if metadata.ome else {}
        self.multiscale = plain_multiscale(self.ome) if metadata.ome else {}
        self.version = metadata.ome.version if metadata.ome else ""
        self.has_outer_scale = bool(self.multiscale.get("coordinateTransformations"))
        mango = metadata.attributes.get("mango")
        self.mango: dict[str, Any] = mango if isinstance(mango, dict) else {}
        self.labels: dict[str, str] = {}
        for name in label_names(metadata.files, metadata.path):
            path = os.path.join(metadata.path, "labels", name)
            found = read_store_metadata(path, metadata.files)
            self.labels[name] = _dtype_name(parse_array_document(found.arrays[0][1]))


def _dtype_name(array: StoredArray) -> str:
    return str(array.dtype.newbyteorder("="))


#: What a rule looks for, and the remark if it finds that. If it finds several things, as a list, a
#: remark is made for each.
_Rule = tuple[Callable[[_Facts], Any], str]


def _remarks(rules: Iterable[_Rule], facts: _Facts) -> tuple[str, ...]:
    texts = []
    for find, remark in rules:
        found = find(facts)
        things = found if isinstance(found, list) else [found] if found else []
        texts += [remark.format(*(x if isinstance(x, tuple) else [x])) for x in things]
    return tuple(texts)


def _refused_units(facts: _Facts) -> list[str]:
    axes = [axis for axis in facts.multiscale.get("axes", ()) if isinstance(axis, dict)]
    units = [axis.get("unit", "") for axis in axes if axis.get("type", "space") == "space"]
    return [unit for unit in units if unit != "" and unit not in OME_UNITS][:1]


def _has_shifted_levels(facts: _Facts) -> bool:
    """Whether the centre of a coarser voxel is not in the middle of the voxels below it."""
    levels = facts.image.levels if facts.image else ()
    return any(
        abs(t - (s - f) / 2 - o) > 1e-6 * s
        for level in levels[1:]
        for t, s, f, o in zip(
            level.origin, level.voxel_size, levels[0].voxel_size, levels[0].origin, strict=True
        )
    )


def _new_version(facts: _Facts) -> str:
    return facts.version if facts.version.startswith("0.6") else ""


_NO_GROUP: _Rule = (
    lambda f: not f.image,
    "it is a plain array, not an OME-Zarr group: convert it with --layout ome",
)
_OUTER_SCALE: _Rule = (
    lambda f: f.has_outer_scale,
    "the voxel size is in the multiscales entry, which is not read: voxels appear with an "
    "edge of 1. Convert with --scale-placement dataset",
)
_UNUSUAL_CODECS: _Rule = (
    lambda f: not f.array.is_direct,
    "its codecs are unusual, and were not tried with this program",
)
_UNCOMMON_CODECS: _Rule = (
    lambda f: ", ".join(sorted({spec.name for spec in f.array.codecs} - _COMMON_CODECS)),
    "only zarr-python with numcodecs knows the codec {}",
)
_SHIFTED: _Rule = (
    _has_shifted_levels,
    "its levels have no translation: they are shifted against each other by half a voxel",
)
_ONE_LEVEL: _Rule = (
    lambda f: f.n_levels == 1 and prod(f.array.shape) > _LARGE,
    "it has only one level, so viewing the whole reads every voxel: use `ctlab-zarr pyramid`",
)
_DOTTED_KEYS: _Rule = (
    lambda f: f.has_dotted_keys,
    "keys of chunks are separated by '.', as in arrays of few shards: some readers do not find "
    "them, and this one was not tried. If it shows nothing, write the store from Python with "
    "dimension_separator_threshold=0",
)
_VERSION: _Rule = (
    _new_version,
    "it does not read OME-Zarr {} yet: convert without --ome-version",
)
_UNTRIED_VERSION: _Rule = (
    _new_version,
    "OME-Zarr {} was not tried with it: most programs read 0.5",
)
_UNSHOWN = "voxels of {} are not shown: convert them to float32 or uint16"
_FLAWS_OF_IMAGES = (_OUTER_SCALE, _UNUSUAL_CODECS, _UNCOMMON_CODECS)

#: For each program: what keeps it from showing a store, and what it does not show or shows wrongly.
_READERS: dict[str, tuple[tuple[_Rule, ...], tuple[_Rule, ...]]] = {
    "napari-ome-zarr": (
        (_NO_GROUP,),
        (
            *(*_FLAWS_OF_IMAGES, _SHIFTED, _ONE_LEVEL),
            (
                lambda f: f.image and "omero" not in f.ome and not f.labels,
                "the store suggests no contrast (omero): it is estimated from the voxels",
            ),
        ),
    ),
    "ome-zarr-py": (
        (_NO_GROUP,),
        (
            *_FLAWS_OF_IMAGES,
            (_new_version, "it reads voxels of OME-Zarr {}, and neither its axes nor its sizes"),
        ),
    ),
    "ngff-zarr": ((_NO_GROUP,), _FLAWS_OF_IMAGES),
    "Neuroglancer": (
        (
            (lambda f: f.dtype not in SHOWN_DTYPES and f.dtype, _UNSHOWN),
            (
                lambda f: any(spec.name.startswith("numcodecs.") for spec in f.array.codecs),
                "it does not know the codec: convert with --codec zstd:3",
            ),
            (
                _new_version,
                "until 2.41 it does not read OME-Zarr {}; `ctlab-zarr view` shows the finest level",
            ),
            (_refused_units, "it refuses {!r} as the unit of an axis: correct it (set-voxel)"),
        ),
        (
            (
                lambda f: not f.image,
                "it is a plain array: only `ctlab-zarr view` adds the voxel size",
            ),
            (
                lambda f: [item for item in f.labels.items() if item[1] not in LABEL_DTYPES],
                "the labels {!r} are {} and not shown (`ctlab-zarr view` leaves them out): write "
                "them as uint32 or int32",
            ),
            *(_SHIFTED, _ONE_LEVEL),
        ),
    ),
    "WebKnossos": (
        (_NO_GROUP, (lambda f: f.dtype not in _WEBKNOSSOS_DTYPES and f.dtype, _UNSHOWN)),
        (
            (
                lambda f: f.image and f.image.voxel_unit == VoxelUnit.VOXEL,
                "its axes have no unit: nanometres are assumed",
            ),
            *(_UNUSUAL_CODECS, _UNCOMMON_CODECS, _DOTTED_KEYS, _SHIFTED, _ONE_LEVEL),
            _UNTRIED_VERSION,
            (lambda f: True, "this is from its documentation; it was not tried with this package"),
        ),
    ),
    "Drishti": (
        ((lambda f: len(f.array.shape) != 3, "it shows volumes of three axes"),),
        (
            (
                lambda f: not f.mango,
                "there is no mango block: voxel size and history are not shown",
            ),
            (
                lambda f: f.mango and f.image and not f.has_outer_scale,
                "it multiplies the voxel size of the mango block by that of the dataset, so that "
                "the scale is wrong: convert with --scale-placement multiscales",
            ),
            (
                lambda f: f.mango and "data_min_max" not in f.mango,
                "the mango block has no data_min_max: set the contrast by hand",
            ),
            *(_UNUSUAL_CODECS, _UNCOMMON_CODECS, _DOTTED_KEYS, _UNTRIED_VERSION),
        ),
    ),
    "anu_ctlab_io": (
        (
            (
                lambda f: not {"basename", "history"} <= f.mango.keys(),
                "the mango block lacks its data type or history: convert with --datatype, as tomo",
            ),
            (
                lambda f: f.image and len(f.image.axes) != 3,
                "it reads groups of three axes only",
            ),
            _VERSION,
        ),
        (
            (lambda f: f.n_levels > 1, "it reads level 0 only"),
            (lambda f: f.labels, "it does not find labels; open each by its own path"),
        ),
    ),
}
