"""What a kind of output has to say; a kind is one module of this room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy.typing as npt


class File(NamedTuple):
    """One file of an export: the slices of the volume, along its first axis, that it holds."""

    #: In the folder of the export; a single file has the name of the destination.
    name: str
    start: int
    stop: int


class Kind(Protocol):
    """One volume as one kind of output.

    Every task holds it: it is small to pickle, and keeps neither voxels nor open files.
    """

    #: As messages name it: ``mango netCDF``.
    name: str

    @property
    def is_folder(self) -> bool:
        """Whether the destination is a folder of the files, or the only file itself."""

    def files(self) -> Sequence[File]:
        """Return the files in the order of their slices, which cover the volume."""

    def settings(self) -> dict[str, Any]:
        """Return as plain JSON what else has to be the same for an interrupted export to go on."""

    def is_own(self, name: str) -> bool:
        """Whether a folder that may be replaced can have a file of this name."""


class SlabKind(Kind, Protocol):
    """Files that are written from slabs in order, one after another."""

    def write(self, path: str, file: File, slabs: Iterator[npt.NDArray[Any]]) -> None:
        """Write one file to a path at which nothing is.

        `slabs` are its slices in order, some at a time, in the dtype of the volume; the next one is
        made when it is asked for, so that one that was written should be let go. The caller renames
        what is at the path when it is durable.
        """


@runtime_checkable
class FlatKind(Kind, Protocol):
    """One file in which voxels have fixed places, so that blocks are written in any order."""

    def allocate(self, path: str) -> tuple[int, Any]:
        """Make the file, in its whole size, with all but its voxels.

        Returns the byte at which the voxels begin, in C order, and their dtype in the file.
        """


@runtime_checkable
class JoinedKind(SlabKind, Protocol):
    """Files that become one file when all of them are there; only that one is published."""

    is_folder: bool

    def join(self, paths: Sequence[str], path: str) -> None:
        """Make the one file at a path at which nothing is, of the files in their order."""


@runtime_checkable
class HeaderKind(Kind, Protocol):
    """One file of voxels, with a header in a file of its own beside it."""

    def header_file(self) -> tuple[str, bytes]:
        """Return name and content of the header."""
