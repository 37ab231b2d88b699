"""From exceptions to messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.text import shown

__all__ = ["exit_codes"]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn expected errors into one message and the exit code of their class.

    Anything unexpected keeps its traceback and ends with 1, as Python does.
    """
    try:
        yield
    except (CTLabError, OSError) as error:
        if click.get_current_context().find_root().params.get("debug"):
            raise
        print(f"ctlab-zarr: {shown(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, CTLabError) else 1)
    except ValueError as error:
        # dask reads its files when it is imported.
        if not str(error).startswith("A dask config file"):
            raise
        print(f"ctlab-zarr: {shown(str(error))}", file=sys.stderr)
        sys.exit(1)
