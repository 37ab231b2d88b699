"""What can go wrong: one class for each case that a caller may want to handle by itself.

Every class also derives from the built-in exception that Python programmers expect
(`FileExistsError`, `ValueError`, ...), and has the exit code of the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ctlab_dask_zarr.text import in_python, shown


class CTLabError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return in_python(format(self))

    def __format__(self, spec: str) -> str:
        # Within another message, and on the command line, the options are needed too. Messages
        # name paths, identifiers and URLs of others.
        return format(shown(super().__str__()), spec)


class InvalidArgumentError(CTLabError, ValueError):
    """An argument is wrong; nothing was touched."""

    exit_code = 2


class BlockError(CTLabError, ValueError):
    """A block of a dask array is not what the array declares, or has no place in the format."""


class ClusterError(CTLabError, RuntimeError):
    """No workers come, or they cannot do the work."""


class MetadataError(CTLabError, ValueError):
    """Metadata of a file or a store says something that cannot be true or cannot be kept."""


class VoxelSizeError(MetadataError):
    """A source does not say its voxel size, or the unit of it, and neither did the caller."""


class MissingExtraError(CTLabError, ImportError):
    """An optional package is needed that is not installed."""


class UnsupportedFormatError(CTLabError, ValueError):
    """What is at a path has a format, or a version of it, that is not read here."""


class DatasetNotFoundError(CTLabError, FileNotFoundError):
    """There is nothing at the path."""


class IncompleteSourceError(CTLabError, ValueError):
    """The source lacks blocks, or a block of it is truncated or belongs to another volume."""

    exit_code = 5


class IncompleteDatasetError(CTLabError, ValueError):
    """A store lacks an array or a shard that its metadata promises, or a write lacks a part."""

    exit_code = 5


class ShardDecodeError(CTLabError, ValueError):
    """The bytes of a shard or of an inner chunk are not what the metadata says."""


class DestinationExistsError(CTLabError, FileExistsError):
    """There is something at the destination that must not, or cannot, be replaced."""

    exit_code = 4


class StagingExistsError(CTLabError, FileExistsError):
    """An interrupted write, or one still running, left its staging folder."""

    exit_code = 4


class StorageError(CTLabError, OSError):
    """An object store does not answer, refuses access, or has no such bucket."""


class WriteFailedError(CTLabError, RuntimeError):
    """The write did not complete; the destination is as it was."""


class WriteStoppedError(CTLabError, RuntimeError):
    """The write was asked to stop, or its time was up; it can be resumed."""

    #: EX_TEMPFAIL of sysexits.h: try again later.
    exit_code = 75


class VerificationError(CTLabError, ValueError):
    """A dataset is not what it should be; `problems` has all that was found."""

    exit_code = 3


def is_delayed(value: Any) -> bool:
    """Whether a value is one of dask.delayed, which has every attribute that it is asked for."""
    return type(value).__module__ == "dask.delayed"


def no_dataset(value: Any, argument: str, wanted: str = "a Dataset") -> InvalidArgumentError:
    """Return the error for what stands in place of a dataset: it shows the line to write."""
    kind = type(value)
    home = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]} "
    return InvalidArgumentError(
        f"{argument} is a {home}{kind.__name__}, where {wanted} is needed: write {_line(value)}"
    )


def _line(value: Any) -> str:
    """Return what makes a dataset of a value."""
    kind = type(value)
    if kind.__module__.startswith("xarray.") and kind.__name__ != "DataArray":
        name = next(iter(getattr(value, "data_vars", ())), "tomo")
        return f"Dataset.from_xarray(ds[{name!r}]), for one of its variables"
    if is_delayed(value):
        return "Dataset(da.from_delayed(value, shape, dtype), ...), after `import dask.array as da`"
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return "Dataset.from_path(path), for what is stored at a path"
    return "Dataset.from_array(array, voxel_size='2.5um'), with the size of its voxels"
