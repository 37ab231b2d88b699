"""The kind of source that is TIFF: a folder of slices, or one file of many pages."""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import (
    DatasetNotFoundError,
    IncompleteSourceError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.numbered import missing_numbers, numbered, parse_slices
from ctlab_dask_zarr.formats.tiff_metadata import VoxelSize, ome_files, ome_voxel_size
from ctlab_dask_zarr.formats.units import VoxelUnit, chosen_voxel_size
from ctlab_dask_zarr.read.files import FilesSource, Run, RunsSource, SourceFile, slab_blocks
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.tiff_pages import Pages, alike_slice, described, outline_of
from ctlab_dask_zarr.read.tiff_source import PagesSource, open_tiff
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.text import shown
from ctlab_dask_zarr.volume import Volume

NAME = "TIFF"
DESCRIPTION = "TIFF (a file, or a folder of slices)"

#: Little- and big-endian, TIFF and BigTIFF.
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ENDINGS = (".tif", ".tiff")
#: Headers are read together: a parallel file system answers each in milliseconds.
_N_THREADS = 16
#: So many names are listed in a message.
_MAX_LISTED = 5


def can_open(path: str) -> bool:
    """Whether a path is a TIFF file, or a folder with one, by the first bytes."""
    if os.path.isdir(path):
        names = _names(path, None)
        return bool(names) and _is_tiff(os.path.join(path, names[0]))
    return _is_tiff(path)


def looks_like(path: str) -> bool:
    """Whether a path has the name of a TIFF file, or is a folder of such names."""
    if os.path.isdir(path):
        return bool(_names(path, None))
    return path.lower().endswith(_ENDINGS)


def is_ours(path: str) -> bool:
    """Return False: the CTLab's programs write no TIFF."""
    return False


def _is_tiff(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


def _names(folder: str, pattern: str | None) -> list[str]:
    """Return the names of TIFF files in a folder; of those that match, if there is a pattern."""
    return sorted(
        name
        for name in os.listdir(folder)
        if name.lower().endswith(_ENDINGS)
        and not name.startswith(".")
        and (pattern is None or fnmatch.fnmatchcase(name, pattern))
    )


def open_volume(
    path: str | os.PathLike[str],
    *,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    slices: slice | str | None = None,
    pattern: str | None = None,
    **kwargs: Any,
) -> Volume:
    """Open a TIFF file, or a folder of slices, lazily; only headers are read.

    The slices of a folder are in the order of the numbers in their names. All are looked at first,
    so that a missing, truncated or different one is known before anything is done.

    Parameters
    ----------
    path
        A file of one or many pages (also BigTIFF, an ImageJ stack, or OME-TIFF of one channel), or
        a folder with one file for each slice. An OME-TIFF of several files is opened by the one
        that has the metadata, or by their folder if it holds nothing else.
    datatype
        The mango data type, if the voxels are one.
    chunks
        Blocks of the dask array; by default slabs of about 32 MiB.
    voxel_size, voxel_unit
        Instead of what ImageJ or OME says; needed where neither says all lengths.
    slices
        A run of slices, as in ``slice(100, 900)`` or ``"100:900"``: by the numbers in the names of
        a folder's files; by the number of the page, from 0, in a file.
    pattern
        Names of the slices, as in ``"slice_*.tif"``, where a folder holds other files too.
    **kwargs
        For `dask.array.from_array`.

    Raises
    ------
    DatasetNotFoundError
        There is nothing at the path, or no TIFF file in the folder.
    UnsupportedFormatError
        Colours, several channels or times, or pixels that are not whole bytes.
    IncompleteSourceError
        Slices are missing, truncated, or of another size or type; they are named.
    VoxelSizeError
        The voxel size is not known: give it with `voxel_size` and `voxel_unit`.
    """
    local = local_path(path)
    run = parse_slices(slices)
    is_folder = os.path.isdir(local)
    files = _open_folder(local, run, pattern) if is_folder else _open_file(local, run)
    first = files[0]
    _refuse_others(local, files)
    shape = (sum(f.shape[0] for f in files), *first.shape[1:])
    if not is_folder and shape[0] == 1:
        shape = shape[1:]
    stored = _stored_size(first.voxel_size, len(shape))
    size, unit = chosen_voxel_size(local, len(shape), stored, voxel_size, voxel_unit)
    source = _source(local, files, shape)
    blocks = slab_blocks(shape, source.dtype.itemsize) if chunks is None else chunks
    return Volume(
        lazy_array(source, "tiff", blocks, kwargs),
        dimension_names=("z", "y", "x")[-len(shape) :],
        voxel_unit=unit,
        voxel_size=size,
        datatype=datatype,
        source=source,
    )


def _source(local: str, files: list[Pages], shape: Shape) -> FilesSource:
    """Return what reads the voxels: plain reads, or a decoder where one page needs it."""
    folder = local if os.path.isdir(local) else os.path.dirname(local)
    common = "TIFF", folder, tuple(f.file for f in files), shape, files[0].dtype
    runs = [
        run._replace(file=number)
        for number, file in enumerate(files)
        for run in file.runs or [Run(0, 0, 0)]
    ]
    swapped = {file.byteorder != np.dtype("=u2").newbyteorder("=").str[0] for file in files}
    if all(run.n_lines for run in runs) and len(swapped) == 1:
        is_swapped = swapped.pop() and files[0].dtype.itemsize > 1
        return RunsSource(*common, runs=tuple(runs), is_swapped=is_swapped)
    pages = [
        page._replace(file=number, decoder=(number, page.decoder[1]))
        for number, file in enumerate(files)
        for page in file.pages
    ]
    return PagesSource(*common, pages=tuple(pages))


def _open_folder(folder: str, run: slice, pattern: str | None) -> list[Pages]:
    """Return the slices of a folder in the order of their numbers."""
    names = _names(folder, pattern)
    if not names:
        what = "TIFF files" if pattern is None else f"TIFF files named {pattern}"
        raise DatasetNotFoundError(f"{folder} has no {what}")
    if (together := _open_ome_folder(folder, names, run)) is not None:
        return together
    found = numbered(names, folder)
    found = [
        (number, name)
        for number, name in found
        if (run.start or 0) <= number and (run.stop is None or number < run.stop)
    ]
    if not found:
        raise DatasetNotFoundError(f"{folder} has no slice of those asked for ({names[0]}, ...)")
    missing = missing_numbers(found, run)
    if missing:
        listed = ", ".join(map(str, missing[:_MAX_LISTED]))
        more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise IncompleteSourceError(
            f"{folder} is not a whole volume: slices {listed}{more} are missing between "
            f"{found[0][1]} and {found[-1][1]}. Put them back, or take a run of slices that is "
            "whole, as in slices='100:900'"
        )
    first = _open_slice(folder, found[0][1])
    outline = outline_of(folder, first)

    def look(name: str) -> Pages:
        alike = outline and alike_slice(folder, name, first, outline)
        return alike or _open_slice(folder, name)

    with ThreadPoolExecutor(_N_THREADS) as pool:
        return [first, *pool.map(look, [name for _, name in found[1:]])]


def _open_slice(folder: str, name: str) -> Pages:
    """Return the one page of a file of a folder."""
    path = os.path.join(folder, name)
    file = SourceFile.at(folder, name)
    with open_tiff(path) as tiff:
        if len(tiff.pages) != 1:
            raise UnsupportedFormatError(
                f"{path} has {len(tiff.pages)} pages, where a folder has one slice a file: open "
                "the file alone, or leave it out with pattern="
            )
        return described(file, path, [tiff.pages[0]], tiff, None)


def _open_ome_folder(folder: str, names: list[str], run: slice) -> list[Pages] | None:
    """Return the planes of an OME-TIFF of several files; None where each file is one by itself."""
    name, listed, master = names[0], *_ome_files(os.path.join(folder, names[0]))
    if master is not None:
        if master not in names:
            raise IncompleteSourceError(
                f"{os.path.join(folder, name)} is a part of an OME-TIFF whose metadata is in "
                f"{shown(master)}, which is not a TIFF file of that folder: put it there"
            )
        name, listed = master, _ome_files(os.path.join(folder, master))[0]
    if len(listed) < 2:
        return None
    foreign = sorted(set(names) - listed)
    if foreign:
        raise UnsupportedFormatError(
            f"{folder} holds an OME-TIFF of {len(listed)} files, and others, as {foreign[0]}: open "
            f"{name} alone, or leave the others out with pattern="
        )
    return _open_file(os.path.join(folder, name), run)


def _ome_files(path: str) -> tuple[frozenset[str], str | None]:
    with open_tiff(path) as tiff:
        return ome_files(tiff.ome_metadata) if tiff.is_ome else (frozenset(), None)


def _open_planes(path: str, planes: Sequence[tuple[str, int]]) -> list[Pages]:
    """Return the planes of an OME-TIFF of several files, each by its file and number there."""
    folder = os.path.dirname(path)
    grouped = [
        (place, [number for _, number in group])
        for place, group in groupby(planes, key=lambda plane: plane[0])
    ]

    def look(place: str, numbers: Sequence[int]) -> Pages:
        if os.path.realpath(os.path.dirname(place)) != os.path.realpath(folder):
            raise UnsupportedFormatError(
                f"{path} is an OME-TIFF with a part in another folder, {shown(place)}: put all of "
                "them into one"
            )
        with open_tiff(place) as tiff:
            pages = [tiff.pages[number] for number in numbers]
            return described(
                SourceFile.at(folder, os.path.basename(place)), place, pages, tiff, None
            )

    with ThreadPoolExecutor(_N_THREADS) as pool:
        return list(pool.map(look, *zip(*grouped, strict=True)))


def _open_file(path: str, run: slice) -> list[Pages]:
    """Return the pages of a file that make a volume; also those of other files, where OME does."""
    file_folder, name = os.path.split(path)
    file = SourceFile.at(file_folder, name)
    with open_tiff(path) as tiff:
        listed, master = ome_files(tiff.ome_metadata) if tiff.is_ome else (frozenset(), None)
        if master is not None:
            raise UnsupportedFormatError(
                f"{path} is one part of an OME-TIFF, whose metadata is in {shown(master)}: open "
                "that file, or the folder"
            )
        series = tiff.series[0]
        _refuse_series(path, series)
        for other in tiff.series[1:]:
            page = other.pages[0].aspage()
            if not page.is_reduced:
                raise IncompleteSourceError(
                    f"page {page.index} of {path} is {_by(other.shape)} {other.dtype}, and the "
                    f"first ones are {_by(series.shape[-2:])} {series.dtype}: it is not one "
                    "volume. Save the slices of one volume to a file of their own"
                )
        offset = series.dataoffset
        pages = [page for page in series.pages if page is not None]
        n_pages = int(np.prod(series.shape, dtype=int)) // (
            pages[0].imagelength * pages[0].imagewidth
        )
        if len(listed) > 1 and len(pages) < n_pages:
            lost = [n for n in sorted(listed) if not os.path.isfile(os.path.join(file_folder, n))]
            raise IncompleteSourceError(
                f"{path} is an OME-TIFF of {len(listed)} files with {n_pages} planes, of which "
                f"{len(pages)} are there{f'; {shown(lost[0])} is missing' if lost else ''}: put "
                "all of its files beside it"
            )
        if n_pages != len(pages) and offset is None:
            raise IncompleteSourceError(
                f"{path} has {len(pages)} of the {n_pages} pages that its metadata names: copy it "
                "again from where it was made"
            )
        start, stop, _ = run.indices(n_pages)
        if start >= stop or (run.stop or 0) > n_pages:
            raise DatasetNotFoundError(
                f"{path} has {n_pages} pages, numbered from 0: there is no run "
                f"{run.start or 0}:{stop if run.stop is None else run.stop}"
            )
        if len(pages) < n_pages:
            # ImageJ writes one page alone for a stack above 4 GiB; the others follow it as bytes.
            return [described(file, path, pages[:1], tiff, (offset, start, stop))]
        planes = [(page.parent.filehandle.path, page.index) for page in pages[start:stop]]
        if all(place == tiff.filehandle.path for place, _ in planes):
            return [described(file, path, pages[start:stop], tiff, None)]
        size = ome_voxel_size(tiff.ome_metadata)
    return [part._replace(voxel_size=size) for part in _open_planes(path, planes)]


def _refuse_series(path: str, series: Any) -> None:
    """Raise `UnsupportedFormatError` for colours, channels and times."""
    names = {"S": "samples a pixel (colours)", "C": "channels", "T": "times"}
    long = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if n > 1}
    other = [axis for axis in long if axis in names]
    if len(long) <= 3 and other and "S" not in long:
        # Programs that do not ask what a third axis is write it so.
        text = f"{path}: its {long[other[0]]} {names[other[0]]} are taken for slices"
        warnings.warn(shown(text), stacklevel=2)
    elif other:
        raise UnsupportedFormatError(
            f"{path} has {long[other[-1]]} {names[other[-1]]}, where one volume of grey values is "
            "read: save one of them to a file of its own"
        )
    elif sum(n > 1 for n in series.shape[:-2]) > 1:
        raise UnsupportedFormatError(
            f"{path} has the axes {series.axes} of lengths {series.shape}, where slices, rows and "
            "columns are read"
        )


def _refuse_others(folder: str, files: list[Pages]) -> None:
    """Raise `IncompleteSourceError` for slices of another size or type than the first."""
    first = files[0]
    others = [f for f in files if (f.shape[1:], f.dtype) != (first.shape[1:], first.dtype)]
    if others:
        listed = ", ".join(
            f"{f.file.name} ({_by(f.shape[1:])} {f.dtype})" for f in others[:_MAX_LISTED]
        )
        more = f" and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
        raise IncompleteSourceError(
            f"{folder} is not one volume: {listed}{more} differ from {first.file.name} "
            f"({_by(first.shape[1:])} {first.dtype}). Take them away, or take a run of "
            "slices without them, as in slices='100:900'"
        )


def _stored_size(
    found: VoxelSize | None, ndim: int
) -> tuple[Sequence[float] | None, VoxelUnit | None]:
    """Return the lengths of the axes, if the file says all of them, and their unit."""
    if found is None:
        return None, None
    lengths = [length for length in found.lengths[-ndim:] if length is not None]
    return lengths if len(lengths) == ndim else None, found.unit


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))
