"""Sources made of files: which files they are, and voxels that lie in them uncompressed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ctlab_dask_zarr.errors import DatasetNotFoundError, IncompleteSourceError
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.read.lazy import split_index
from ctlab_dask_zarr.volume import SourceChecks

#: One `readinto` moves less than 2^31 bytes on Linux.
_MAX_READ_NBYTES = 1 << 30
#: About the size of a block where a source can be cut at any slice: thin enough to be streamed.
_SLAB_NBYTES = 32 << 20
#: Slabs are cut at multiples of this many slices, so that inner chunks of usual sizes fit them.
_SLAB_STEP = 32

Region = tuple[slice, ...]


class FileVersion(Protocol):
    """A file as it was when it was opened."""

    @property
    def name(self) -> str:
        """Its name below the source's folder."""

    @property
    def nbytes(self) -> int:
        """Its size, in bytes."""

    @property
    def mtime_ns(self) -> int:
        """When it was last changed, in nanoseconds since the epoch."""


class SourceFile(NamedTuple):
    """One file: its name below the source's folder, and its version when it was opened."""

    name: str
    nbytes: int
    mtime_ns: int

    @classmethod
    def at(cls, folder: str, name: str) -> SourceFile:
        """Return the file as it is now, or raise `DatasetNotFoundError`."""
        path = os.path.join(folder, name)
        try:
            status = os.stat(path)
        except FileNotFoundError as error:
            raise DatasetNotFoundError(f"{path} does not exist") from error
        return cls(name, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, repr=False)
class FilesSource:
    """What sources of files have in common: all of `volume.Source` but how voxels are read.

    It holds no open file and no lock, so many threads and processes can use it at once. The array
    has two or three axes, the last one x; `dtype` is in native byte order.
    """

    format: str
    folder: str
    files: tuple[FileVersion, ...]
    shape: Shape
    dtype: np.dtype[Any]

    levels = ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def location(self) -> str:
        """The file, or the folder."""
        if len(self.files) == 1:
            return os.path.join(self.folder, self.files[0].name)
        return self.folder

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        region, rest = split_index(index, self.shape)
        selected: npt.NDArray[Any] = self.read(region)[rest]
        return selected

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a volume on disk cannot become an array without a copy")
        voxels = self[...]
        return voxels if dtype is None else voxels.astype(dtype, copy=False)

    def __repr__(self) -> str:
        n_files = len(self.files)
        return f"<{self.format} {self.shape} {self.dtype}, {n_files} files in {self.folder}>"

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the format, and the files where there are several."""
        first, last = self.files[0].name, self.files[-1].name
        files = f"{first} to {last}, {len(self.files):,} files"
        return {"format": self.format} | ({"files": files} if len(self.files) > 1 else {})

    def identity(self) -> dict[str, Any]:
        """Return the files by name, size and modification time, and how they are read.

        The folder does not count, so that a volume that was moved is still the same.
        """
        return {
            "kind": self.format,
            "dtype": self.dtype.str,
            "shape": list(self.shape),
            "files": [[file.name, file.nbytes, file.mtime_ns] for file in self.files],
        }

    def check_unchanged(self) -> None:
        """Raise `IncompleteSourceError` unless every file is the one that was opened."""
        for file in self.files:
            check_file(os.path.join(self.folder, file.name), file)

    def checks(self) -> SourceChecks:
        """Return nothing to run: these formats keep no checksums."""
        return SourceChecks([], n_objects=0, n_unchecked=0)

    def opened(self, number: int) -> OpenedFile:
        """Open a file of the source, to be read and then closed by ``with``."""
        return OpenedFile(os.path.join(self.folder, self.files[number].name), self.files[number])


class OpenedFile:
    """A file that is read and found unchanged afterwards."""

    def __init__(self, path: str, file: FileVersion) -> None:
        self.path = path
        self._file = file

    def __enter__(self) -> OpenedFile:
        try:
            self._raw: io.FileIO = open(self.path, "rb", buffering=0)
        except FileNotFoundError as error:
            raise gone(self.path) from error
        try:
            refuse_other(os.fstat(self._raw.fileno()), self.path, self._file)
        except BaseException:
            self._raw.close()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            # An error of a file that is written to meanwhile is the change, and not the damage.
            refuse_other(os.fstat(self._raw.fileno()), self.path, self._file)
        finally:
            self._raw.close()

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset`, or raise `IncompleteSourceError`."""
        try:
            fill_from(self._raw, offset, target)
        except EOFError as error:
            raise IncompleteSourceError(
                f"{self.path} is not whole: {error}: copy it again from where it was made"
            ) from error

    def read(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return `nbytes` bytes from `offset`."""
        data = np.empty(nbytes, np.uint8)
        self.read_into(memoryview(data), offset)
        return data


def fill_from(file: io.FileIO, offset: int, target: memoryview) -> None:
    """Fill `target` with the bytes of a file from `offset`, or raise `EOFError`."""
    file.seek(offset)
    done = 0
    while done < len(target):
        n = file.readinto(target[done : done + _MAX_READ_NBYTES])
        if not n:
            raise EOFError(f"it ends at byte {offset + done} of {offset + len(target)}")
        done += n


def check_file(path: str, file: FileVersion) -> None:
    """Raise `IncompleteSourceError` unless a file is the one that was opened."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise gone(path) from error
    refuse_other(status, path, file)


def gone(path: str) -> IncompleteSourceError:
    """Return the error of a file that is not there any more."""
    return IncompleteSourceError(
        f"{path} is gone since the volume was opened: put it back and open the volume again"
    )


def refuse_other(status: os.stat_result, path: str, file: FileVersion) -> None:
    """Raise `IncompleteSourceError` unless the status is that of the file that was opened."""
    # No inode: some network file systems give a file another one each time, or on each machine.
    if (status.st_size, status.st_mtime_ns) != (file.nbytes, file.mtime_ns):
        raise IncompleteSourceError(
            f"{path} changed since the volume was opened ({file.nbytes:,} bytes then, "
            f"{status.st_size:,} now): open the volume again"
        )


class Run(NamedTuple):
    """Lines of voxels that follow one another in a file, uncompressed, from byte `offset`."""

    file: int
    offset: int
    n_lines: int


@dataclass(frozen=True, repr=False)
class RunsSource(FilesSource):
    """Voxels that lie in files as they are: lines along x, in runs, in the order of the array."""

    runs: tuple[Run, ...] = field(hash=False)
    #: Whether the files have the other byte order than this machine.
    is_swapped: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what tells this source from others: also where its voxels begin."""
        begins = [self.runs[0].offset, self.runs[-1].offset]
        return super().identity() | {"begins": begins, "is_swapped": self.is_swapped}

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Return a region as a new array; raises `IncompleteSourceError` if a file changed."""
        voxels = np.empty(tuple(part.stop - part.start for part in region), self.dtype)
        if not voxels.size:
            return voxels
        *outer, xs = region
        if voxels.shape[-1] == self.shape[-1]:
            lines = voxels.reshape(-1, self.shape[-1])
        else:
            # Whole lines: one is about a page, so that fewer bytes would save nothing.
            lines = np.empty((voxels.size // voxels.shape[-1], self.shape[-1]), self.dtype)
        done = 0
        for first, last in _line_ranges(outer, self.shape):
            self._read_lines(first, lines[done : done + last - first])
            done += last - first
        if self.is_swapped:
            lines.byteswap(inplace=True)
        if voxels.shape[-1] != self.shape[-1]:
            voxels[...] = lines[:, xs].reshape(voxels.shape)
        return voxels

    def _read_lines(self, first: int, lines: npt.NDArray[Any]) -> None:
        """Fill `lines` with those from number `first` of the array."""
        starts = self._starts()
        number = int(np.searchsorted(starts, first, "right")) - 1
        target = memoryview(lines.reshape(-1).view(np.uint8))
        line_nbytes = lines.shape[1] * lines.itemsize
        while len(target):
            run = self.runs[number]
            skipped = first - int(starts[number])
            nbytes = min((run.n_lines - skipped) * line_nbytes, len(target))
            with self.opened(run.file) as file:
                file.read_into(target[:nbytes], run.offset + skipped * line_nbytes)
            target = target[nbytes:]
            first += nbytes // line_nbytes
            number += 1

    def _starts(self) -> npt.NDArray[np.int64]:
        """Return the number of the first line of each run."""
        starts: npt.NDArray[np.int64] | None = self.__dict__.get("_kept_starts")
        if starts is None:
            counts = [run.n_lines for run in self.runs]
            starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
            self.__dict__["_kept_starts"] = starts
        return starts


def _line_ranges(outer: list[slice], shape: Shape) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the lines of a region, as ranges that are as long as they can be."""
    ys = outer[-1]
    if len(outer) == 1:
        yield ys.start, ys.stop
        return
    zs, n = outer[0], shape[1]
    if (ys.start, ys.stop) == (0, n):
        yield zs.start * n, zs.stop * n
        return
    for z in range(zs.start, zs.stop):
        yield z * n + ys.start, z * n + ys.stop


def slab_blocks(
    shape: Shape, itemsize: int, unit: int = 1, nbytes: int = _SLAB_NBYTES
) -> tuple[tuple[int, ...], ...]:
    """Return blocks of whole slices, of about `nbytes`; `unit` slices are best read together."""
    if len(shape) == 2:
        return tuple((n,) for n in shape)
    slice_nbytes = max(shape[1] * shape[2] * itemsize, 1)
    height = max(nbytes // slice_nbytes, 1)
    if height > _SLAB_STEP:
        height -= height % _SLAB_STEP
    height = max(height // unit, 1) * unit
    heights = [min(height, shape[0] - z) for z in range(0, shape[0], height)]
    return tuple(heights), (shape[1],), (shape[2],)
