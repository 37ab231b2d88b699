"""Voxels of TIFF files that have to be decoded, strip by strip or tile by tile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import (
    IncompleteSourceError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.read.files import FilesSource, Region
from ctlab_dask_zarr.text import install_text

#: The number of a tag of the TIFF 6.0 specification.
_JPEG_TABLES = 347


class Page(NamedTuple):
    """One page: its file, and the byte offset and size of each strip or tile.

    `decoder` is the file and the number of a page that is decoded in the same way.
    """

    file: int
    decoder: tuple[int, int]
    offsets: tuple[int, ...]
    nbytes: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class PagesSource(FilesSource):
    """Voxels in strips or tiles that have to be decoded, a page for each slice."""

    pages: tuple[Page, ...] = field(hash=False)

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from others: also where its pages begin."""
        begins = [self.pages[0].offsets[0], self.pages[-1].offsets[0]]
        return super().identity() | {"begins": begins}

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        zs, ys, xs = (slice(0, 1), *region)[-3:]
        voxels = np.zeros([part.stop - part.start for part in (zs, ys, xs)], self.dtype)
        pages = self.pages[zs] if voxels.size else ()
        for page, target in zip(pages, voxels, strict=False):
            with self.opened(page.file) as file:
                for number, (offset, nbytes) in enumerate(
                    zip(page.offsets, page.nbytes, strict=True)
                ):
                    rows, columns = self._place(page, number)
                    low, high = max(rows.start, ys.start), min(rows.stop, ys.stop)
                    left, right = max(columns.start, xs.start), min(columns.stop, xs.stop)
                    # Of no bytes are those that hold nothing but zeros.
                    if low >= high or left >= right or not nbytes:
                        continue
                    data = file.read(offset, nbytes).tobytes()
                    part = self._decode(file.path, page, number, data)
                    target[low - ys.start : high - ys.start, left - xs.start : right - xs.start] = (
                        part[low - rows.start : high - rows.start]
                    )[:, left - columns.start : right - columns.start]
        return voxels.reshape([part.stop - part.start for part in region])

    def _keyframe(self, page: Page) -> Any:
        number, index = page.decoder
        file = self.files[number]
        path = os.path.join(self.folder, file.name)
        return _keyframe_of(path, index, file.nbytes, file.mtime_ns)

    def _place(self, page: Page, number: int) -> tuple[slice, slice]:
        """Return the rows and columns of a page that a strip or a tile holds."""
        key = self._keyframe(page)
        height, width = self.shape[-2:]
        if not key.is_tiled:
            n_rows = min(key.rowsperstrip, height)
            return slice(number * n_rows, min((number + 1) * n_rows, height)), slice(0, width)
        down, across = divmod(number, -(-width // key.tilewidth))
        top, left = down * key.tilelength, across * key.tilewidth
        rows = slice(top, min(top + key.tilelength, height))
        return rows, slice(left, min(left + key.tilewidth, width))

    def _decode(self, path: str, page: Page, number: int, data: bytes) -> npt.NDArray[Any]:
        """Return a strip or a tile, shape (rows, columns); those beyond the page may be there."""
        key = self._keyframe(page)
        try:
            decoded, _, _ = key.decode(data, number, jpegtables=key.jpegtables)
        except (ImportError, NotImplementedError) as error:
            raise _needs_extra(path, error) from error
        except Exception as error:
            # Each codec raises errors of its own.
            what = f"tile {number}" if key.is_tiled else f"strip {number}"
            raise IncompleteSourceError(
                f"{path} is damaged: {what} cannot be decoded ({error}): copy it again from where "
                "it was made"
            ) from error
        part: npt.NDArray[Any] = decoded.reshape(decoded.shape[-3:-1])
        return part


@lru_cache(maxsize=64)
def _keyframe_of(path: str, index: int, nbytes: int, mtime_ns: int) -> Any:
    """Return a page of tifffile's that decodes; size and time are the version of the file."""
    with open_tiff(path) as tiff:
        page = tiff.pages[index].aspage()
        table = page.tags.get(_JPEG_TABLES)
        page.jpegtables = None if table is None else table.value
        # Now: several threads may ask for it at once afterwards.
        page.decode  # noqa: B018
    return page


def _needs_extra(path: str, error: Exception) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"{path} is compressed in a way that needs imagecodecs too ({error}): "
        + install_text("tiff")
    )


@contextmanager
def open_tiff(path: str) -> Iterator[Any]:
    """Open a file with tifffile; its errors become those of this package."""
    try:
        import tifffile
    except ImportError as error:
        raise UnsupportedFormatError(
            f"{path} is TIFF, which needs tifffile: {install_text('tiff')}"
        ) from error
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    except tifffile.TiffFileError as error:
        raise IncompleteSourceError(
            f"{path} is a damaged TIFF file ({error}): copy it again from where it was made"
        ) from error
