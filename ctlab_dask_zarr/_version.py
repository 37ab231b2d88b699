"""The version of this package, in a module of its own: it is imported from everywhere."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ctlab-dask-zarr")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
