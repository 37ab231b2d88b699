"""From exceptions to messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ctlab_dask_zarr.errors import CTLabError

__all__ = ["exit_codes"]

#: Set to see the traceback of an expected error.
_DEBUG_VARIABLE = "CTLAB_ZARR_DEBUG"


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn expected errors into one message and the exit code of their class.

    Anything unexpected keeps its traceback and ends with 1, as Python does.
    """
    try:
        yield
    except (CTLabError, OSError) as error:
        if os.environ.get(_DEBUG_VARIABLE):
            raise
        print(f"ctlab-zarr: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, CTLabError) else 1)
