"""What is found out about pages of TIFF files when they are opened; all of them are looked at."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ctlab_dask_zarr.errors import IncompleteSourceError, UnsupportedFormatError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.tiff_metadata import VoxelSize, imagej_voxel_size, ome_voxel_size
from ctlab_dask_zarr.read.files import Run, SourceFile
from ctlab_dask_zarr.read.tiff_source import Page
from ctlab_dask_zarr.text import shown

#: "No compression" in the TIFF 6.0 specification.
_UNCOMPRESSED = 1
#: A slice with more bytes besides its voxels is read by tifffile.
_MAX_OUTLINE = 1 << 16


class Pages(NamedTuple):
    """The pages of one file that make slices, and what its metadata says of voxels."""

    file: SourceFile
    shape: Shape
    dtype: np.dtype[Any]
    byteorder: str
    #: Where the lines lie; None where pages have to be decoded.
    runs: list[Run] | None
    pages: list[Page]
    voxel_size: VoxelSize | None


def described(
    file: SourceFile,
    path: str,
    pages: Sequence[Any],
    tiff: Any,
    stack: tuple[int, int, int] | None,
) -> Pages:
    """Return what is known of pages of a file, after looking at each.

    `stack` has, for an ImageJ stack of one page, where its voxels begin and which slices to take.
    """
    keys = [page.aspage() for page in pages]
    for number, page in enumerate(keys):
        where = path if len(keys) == 1 else f"page {number} of {path}"
        dtype = _checked_dtype(page, where)
        if stack is None:
            _refuse_truncated(page, file.nbytes, where)
    shape = (len(keys), keys[0].imagelength, keys[0].imagewidth)
    runs = [run for page in keys for run in _runs_of(0, page)]
    is_plain = all(map(_is_uncompressed, keys))
    if stack is not None:
        offset, start, stop = stack
        page_nbytes = shape[1] * shape[2] * dtype.itemsize
        if offset + stop * page_nbytes > file.nbytes:
            raise IncompleteSourceError(
                f"{path} is truncated: its pixels end at byte {offset + stop * page_nbytes:,}, and "
                f"the file has {file.nbytes:,}: copy it again from where it was made"
            )
        shape = (stop - start, *shape[1:])
        runs, is_plain = [Run(0, offset + start * page_nbytes, shape[0] * shape[1])], True
    elif len({(k.imagelength, k.imagewidth, k.dtype) for k in keys}) > 1:
        raise _different(path, keys)
    if keys[0].photometric == 0:
        text = f"{path}: white is zero there; its values are taken as they are stored"
        warnings.warn(shown(text), stacklevel=2)
    # Files without pages of other kinds have one decoder, which is read once in each process.
    first_alike: dict[int, int] = {}
    decoders = [(0, first_alike.setdefault(key.hash, key.index)) for key in keys]
    return Pages(
        file,
        shape,
        dtype,
        tiff.byteorder,
        runs if is_plain else None,
        [
            Page(0, decoder, tuple(key.dataoffsets), tuple(key.databytecounts))
            for key, decoder in zip(keys, decoders, strict=True)
        ],
        _stored_voxel_size(tiff, keys[0]),
    )


def _different(path: str, keys: Sequence[Any]) -> IncompleteSourceError:
    first = keys[0]
    number, other = next(
        (n, key)
        for n, key in enumerate(keys)
        if (key.imagelength, key.imagewidth, key.dtype)
        != (first.imagelength, first.imagewidth, first.dtype)
    )
    return IncompleteSourceError(
        f"page {number} of {path} is {other.imagelength} x {other.imagewidth} {other.dtype}, and "
        f"the first one {first.imagelength} x {first.imagewidth} {first.dtype}: "
        "it is not one volume"
    )


def _stored_voxel_size(tiff: Any, page: Any) -> VoxelSize | None:
    """Return what ImageJ or OME says; resolution tags alone are often nonsense."""
    if tiff.is_ome and tiff.ome_metadata:
        return ome_voxel_size(tiff.ome_metadata)
    if tiff.is_imagej and tiff.imagej_metadata:
        tags = [page.tags.get(name) for name in ("YResolution", "XResolution")]
        resolution = [None if tag is None else tag.value for tag in tags]
        return imagej_voxel_size(tiff.imagej_metadata, resolution)
    return None


def _checked_dtype(page: Any, where: str) -> np.dtype[Any]:
    """Return the dtype of a page's voxels in native byte order.

    Raises `UnsupportedFormatError` for colours and for types that are not numbers of whole bytes.
    """
    if page.samplesperpixel != 1:
        raise UnsupportedFormatError(
            f"{where} has {page.samplesperpixel} samples a pixel (colours): convert it to grey "
            "values first"
        )
    dtype = page.dtype
    if dtype is None or dtype.kind not in "iuf":
        raise UnsupportedFormatError(
            f"{where} has pixels of {page.bitspersample} bits ({dtype}), where integers of 8, 16, "
            "32 or 64 bits and floating-point numbers are read: convert it first"
        )
    native: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return native


def _is_uncompressed(page: Any) -> bool:
    """Whether the voxels of a page lie in the file as they are in memory, line after line."""
    return bool(
        page.compression == _UNCOMPRESSED
        and page.predictor == 1
        and page.fillorder == 1
        and not page.is_tiled
        and page.bitspersample == 8 * page.dtype.itemsize
        and all(page.databytecounts)
    )


def _runs_of(file: int, page: Any) -> list[Run]:
    """Return where the lines of an uncompressed page lie; strips that touch become one run."""
    line_nbytes = page.imagewidth * page.dtype.itemsize
    runs: list[Run] = []
    rows_left = page.imagelength
    for offset in page.dataoffsets:
        n_lines = min(page.rowsperstrip, rows_left)
        rows_left -= n_lines
        if runs and runs[-1].offset + runs[-1].n_lines * line_nbytes == offset:
            runs[-1] = runs[-1]._replace(n_lines=runs[-1].n_lines + n_lines)
        else:
            runs.append(Run(file, offset, n_lines))
    return runs


def _refuse_truncated(page: Any, nbytes: int, where: str) -> None:
    """Raise `IncompleteSourceError` if a strip or tile lies beyond the end of its file."""
    sizes = page.databytecounts
    if _is_uncompressed(page):
        line_nbytes = page.imagewidth * page.dtype.itemsize
        sizes = [run.n_lines * line_nbytes for run in _runs_of(0, page)]
        offsets = [run.offset for run in _runs_of(0, page)]
    else:
        offsets = page.dataoffsets
    stop = max(map(sum, zip(offsets, sizes, strict=False)), default=0)
    if stop > nbytes or len(offsets) != len(sizes):
        raise IncompleteSourceError(
            f"{where} is truncated: its pixels end at byte {stop:,}, and the file has "
            f"{nbytes:,}: copy it again from where it was made"
        )


def outline_of(folder: str, slice_: Pages) -> tuple[bytes, int, bytes] | None:
    """Return what a slice has before its voxels, where they end, and what is behind them.

    None where they are not one run of plain bytes, or where there is much else.
    """
    if slice_.runs is None or len(slice_.runs) != 1:
        return None
    run, nbytes = slice_.runs[0], slice_.file.nbytes
    stop = run.offset + run.n_lines * slice_.shape[-1] * slice_.dtype.itemsize
    if run.offset + nbytes - stop > _MAX_OUTLINE:
        return None
    with open(os.path.join(folder, slice_.file.name), "rb") as file:
        head = file.read(run.offset)
        file.seek(stop)
        return head, stop, file.read()


def alike_slice(
    folder: str, name: str, first: Pages, outline: tuple[bytes, int, bytes]
) -> Pages | None:
    """Return a slice that differs from the first one in nothing but its voxels, else None.

    To compare the rest takes a tenth of the time in which tifffile reads a header.
    """
    file, (head, stop, tail) = SourceFile.at(folder, name), outline
    if file.nbytes != first.file.nbytes:
        return None
    with open(os.path.join(folder, name), "rb", buffering=0) as opened:
        if opened.read(len(head)) != head:
            return None
        opened.seek(stop)
        return first._replace(file=file) if opened.read() == tail else None
